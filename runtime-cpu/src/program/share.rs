//! What a program says of being one rank's part of a model.

use lapidary_models::shard::schedule::Schedule;
use lapidary_models::shard::{Part, StateSharding};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Which part of a model a program is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Place in the tensor-parallel group.
    pub tensor: Member,
    /// Stage of the pipeline.
    pub stage: Member,
    /// The layer of the whole model that is the program's first.
    pub first_layer: u64,
    /// Parameters that the rank holds in part, by canonical name, `*` for the layer.
    pub parts: BTreeMap<String, Part>,
}

/// Which part of a training step a program is, and how its ranks share the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainShare {
    /// Place in the tensor-parallel group.
    pub tensor: Member,
    /// Stage of the pipeline.
    pub stage: Member,
    /// Ranks that hold the same weights for other sequences.
    pub replicas: u64,
    /// The layers of the whole model that the program's layers are.
    pub layers: Vec<u64>,
    /// Parameters that the rank holds in part, by canonical name, `*` for the layer.
    pub parts: BTreeMap<String, Part>,
    /// Parameters whose gradient is the sum over the tensor-parallel group of what its ranks have.
    pub summed: BTreeSet<String>,
    /// Parameters that the first stage and the last hold, whose gradient is the sum of both.
    pub tied: BTreeSet<String>,
    /// Parameters that count at another rank, where each must count once.
    pub elsewhere: BTreeSet<String>,
    /// What of a replica's state the others of its group hold.
    pub sharding: StateSharding,
    /// The first step of each segment of the body.
    pub segments: Vec<usize>,
    /// In which order the segments run.
    pub schedule: Schedule,
}

/// One of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Which, from 0.
    pub index: u64,
    /// Of how many.
    pub of: u64,
}

impl Member {
    /// Whether it is the last.
    pub const fn is_last(self) -> bool {
        self.index + 1 == self.of
    }

    /// Whether there is such a member.
    pub const fn exists(self) -> bool {
        self.index < self.of
    }
}

/// What ranks say to each other in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "meeting", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Collective {
    /// The sum over the tensor-parallel group.
    AllReduce,
    /// The rows of the tensor-parallel group side by side, cut off at the width of the result.
    AllGather,
    /// Hands rows to a stage, and keeps them.
    Send {
        /// Index of the stage.
        stage: u64,
    },
    /// Rows that a stage handed on.
    Receive {
        /// Index of the stage.
        stage: u64,
    },
}
