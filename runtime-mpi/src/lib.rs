//! The ranks of a spread model over MPI: [`Peers`] on message passing between processes.
//!
//! ```text
//! rank = (stage * data + replica) * tensor + place     tensor-parallel neighbours are neighbours of the launcher
//! ```
//! Every meeting is a request that is asked for until it is done or patience ends: a peer that never comes ends the whole
//! job with the name of the step that waited, not in a hang. Sums are formed by the library, in its order.

mod world;

pub use world::{Degrees, Grid, Place, Terms, World};

use lapidary_runtime_cpu::{PeerError, Peers};
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

/// Values of one message at most: the library counts in 32 bits.
const MESSAGE: usize = 1 << 28;

/// A rank among those of its replica.
pub struct Ranks<'w> {
    world: &'w World,
    /// Same stage and replica.
    tensor: SimpleCommunicator,
    /// Same place and replica, by stage.
    pipeline: SimpleCommunicator,
    told: Vec<f32>,
}

impl<'w> Ranks<'w> {
    pub(crate) fn new(
        world: &'w World,
        tensor: SimpleCommunicator,
        pipeline: SimpleCommunicator,
    ) -> Ranks<'w> {
        Ranks { world, tensor, pipeline, told: Vec::new() }
    }
}

impl World {
    /// Asks for a request until it is done; ends the job when patience does.
    fn meet<'a, D: ?Sized, S: Scope<'a>>(&self, what: &str, request: Request<'a, D, S>) {
        let start = (self.terms.clock)();
        let mut request = request;
        loop {
            request = match request.test() {
                Ok(_) => return,
                Err(waiting) => waiting,
            };
            if (self.terms.clock)().saturating_sub(start) > self.terms.patience {
                (self.terms.late)(what);
                self.abort(self.terms.exit);
            }
            std::thread::yield_now();
        }
    }

    /// What every rank of the world tells, by rank.
    ///
    /// # Errors
    /// [`PeerError`] for more than a message can hold.
    pub fn gather(&self, what: &str, told: &[u8]) -> Result<Vec<Vec<u8>>, PeerError> {
        let comm = self.communicator();
        let own = i32::try_from(told.len()).map_err(|_| PeerError {
            what: what.into(),
            why: format!("{} bytes to tell are more than a message holds", told.len()),
        })?;
        let mut counts = vec![0i32; self.size()];
        scope(|s| self.meet(what, comm.immediate_all_gather_into(s, &own, &mut counts[..])));
        let starts: Vec<i32> = counts
            .iter()
            .scan(0i32, |end, count| {
                let start = *end;
                *end = end.saturating_add(*count);
                Some(start)
            })
            .collect();
        let all: i64 = counts.iter().map(|count| i64::from(*count)).sum();
        if all > i64::from(i32::MAX) {
            let why = format!("{all} bytes of all ranks are more than a message holds");
            return Err(PeerError { what: what.into(), why });
        }
        let mut heard = vec![0u8; all as usize];
        let mut parts = PartitionMut::new(&mut heard[..], &counts[..], &starts[..]);
        scope(|s| self.meet(what, comm.immediate_all_gather_varcount_into(s, told, &mut parts)));
        let part = |(start, count): (&i32, &i32)| heard[*start as usize..][..*count as usize].to_vec();
        Ok(starts.iter().zip(&counts).map(part).collect())
    }
}

impl Peers for Ranks<'_> {
    fn all_reduce(&mut self, what: &str, data: &mut [f32]) -> Result<(), PeerError> {
        for sum in data.chunks_mut(MESSAGE) {
            self.told.clear();
            self.told.extend_from_slice(sum);
            let told = &self.told[..];
            scope(|s| {
                let request = self.tensor.immediate_all_reduce_into(s, told, sum, SystemOperation::sum());
                self.world.meet(what, request);
            });
        }
        Ok(())
    }

    fn all_gather(&mut self, what: &str, part: &[f32], whole: &mut [f32]) -> Result<(), PeerError> {
        if part.len() > MESSAGE {
            let why = format!("{} values are more than a message holds", part.len());
            return Err(PeerError { what: what.into(), why });
        }
        scope(|s| self.world.meet(what, self.tensor.immediate_all_gather_into(s, part, whole)));
        Ok(())
    }

    fn send(&mut self, what: &str, stage: u64, data: &[f32]) -> Result<(), PeerError> {
        let to = self.pipeline.process_at_rank(stage as i32);
        for part in data.chunks(MESSAGE) {
            scope(|s| self.world.meet(what, to.immediate_send(s, part)));
        }
        Ok(())
    }

    fn receive(&mut self, what: &str, stage: u64, into: &mut [f32]) -> Result<(), PeerError> {
        let from = self.pipeline.process_at_rank(stage as i32);
        for part in into.chunks_mut(MESSAGE) {
            scope(|s| self.world.meet(what, from.immediate_receive_into(s, part)));
        }
        Ok(())
    }

    fn broadcast_last_stage(&mut self, what: &str, data: &mut [f32]) -> Result<(), PeerError> {
        let last = self.pipeline.process_at_rank(self.pipeline.size() - 1);
        for part in data.chunks_mut(MESSAGE) {
            scope(|s| self.world.meet(what, last.immediate_broadcast_into(s, part)));
        }
        Ok(())
    }
}
