//! What replicas hold of the state that belongs to the weights.

use serde::{Deserialize, Serialize};

/// How the ranks that hold the same weights share what belongs to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateSharding {
    /// Each holds everything; gradients are summed.
    #[default]
    None,
    /// Each has the optimizer's state for a run of every parameter (ZeRO-1): gradients are summed and scattered, new
    /// weights gathered.
    Optimizer,
    /// Each holds a run of every parameter alone (FSDP): weights are gathered before they are used, gradients summed and
    /// scattered behind that.
    Full,
}

impl StateSharding {
    /// Whether replicas hold everything each.
    pub fn is_none(&self) -> bool {
        *self == StateSharding::None
    }

    /// Every choice, in the order of what it saves.
    pub const ALL: [StateSharding; 3] = [StateSharding::None, StateSharding::Optimizer, StateSharding::Full];

    /// The word on the command line and in programs.
    pub const fn name(self) -> &'static str {
        match self {
            StateSharding::None => "none",
            StateSharding::Optimizer => "optimizer",
            StateSharding::Full => "full",
        }
    }
}
