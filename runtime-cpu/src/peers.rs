//! The other ranks of a spread model, as a session sees them. How words travel is somebody else's: a message-passing library.

use thiserror::Error;

/// The ranks that meet in a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Those that share the weights of a stage.
    Tensor,
    /// Those that hold the same weights for other sequences.
    Data,
    /// Those with the same place in the groups of all stages.
    Pipeline,
}

impl Group {
    /// The word in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Tensor => "tensor",
            Group::Data => "data",
            Group::Pipeline => "pipeline",
        }
    }
}

/// The ranks that a rank meets. Every call is met by the same call of the others of the group, in the same order; `what`
/// names the step for messages.
pub trait Peers {
    /// Sums over a group, in place.
    ///
    /// # Errors
    /// [`PeerError`] when the others cannot be met.
    fn all_reduce(&mut self, group: Group, what: &str, data: &mut [f32]) -> Result<(), PeerError>;

    /// The parts of a group one after another; `whole` is as many times as long as `part`.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn all_gather(
        &mut self,
        group: Group,
        what: &str,
        part: &[f32],
        whole: &mut [f32],
    ) -> Result<(), PeerError>;

    /// The rank's part of the sum over a group; `whole` is as many times as long as `part`.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn reduce_scatter(
        &mut self,
        group: Group,
        what: &str,
        whole: &[f32],
        part: &mut [f32],
    ) -> Result<(), PeerError>;

    /// Makes room for values that are sent and not yet received: `messages` of them with up to `values` each.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn room(&mut self, messages: usize, values: usize) -> Result<(), PeerError>;

    /// Hands values to the rank of a stage with the same place in its group, and does not wait until they arrive.
    /// Messages of a lane arrive in their order.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn send(&mut self, what: &str, stage: u64, lane: u64, data: &[f32]) -> Result<(), PeerError>;

    /// What the rank of a stage with the same place in its group sends on a lane.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn receive(&mut self, what: &str, stage: u64, lane: u64, into: &mut [f32]) -> Result<(), PeerError>;

    /// Values of the last stage's rank with the same place in its group, for every stage.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn broadcast_last_stage(&mut self, what: &str, data: &mut [f32]) -> Result<(), PeerError>;
}

/// Why ranks do not meet.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}: {why}")]
pub struct PeerError {
    /// The step.
    pub what: String,
    /// What happened.
    pub why: String,
}
