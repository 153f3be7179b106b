//! The other ranks of a spread model, as a session sees them. How words travel is somebody else's: a message-passing library.

use thiserror::Error;

/// The ranks that a rank meets. Every call is met by the same call of the others, in the same order; `what` names the step
/// for messages.
pub trait Peers {
    /// Sums over the tensor-parallel group, in place.
    ///
    /// # Errors
    /// [`PeerError`] when the others cannot be met.
    fn all_reduce(&mut self, what: &str, data: &mut [f32]) -> Result<(), PeerError>;

    /// The parts of the tensor-parallel group one after another; `whole` is as many times as long as `part`.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn all_gather(&mut self, what: &str, part: &[f32], whole: &mut [f32]) -> Result<(), PeerError>;

    /// Hands values to the rank of a stage with the same place in its group.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn send(&mut self, what: &str, stage: u64, data: &[f32]) -> Result<(), PeerError>;

    /// What the rank of a stage with the same place in its group sends.
    ///
    /// # Errors
    /// As [`Peers::all_reduce`].
    fn receive(&mut self, what: &str, stage: u64, into: &mut [f32]) -> Result<(), PeerError>;

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
