//! The ranks of a spread model over MPI: [`Peers`] on message passing between processes.
//!
//! ```text
//! rank = (stage * data + replica) * tensor + place     tensor-parallel neighbours are neighbours of the launcher
//! ```
//! Every meeting is a request that is asked for until it is done or patience ends: a peer that never comes ends the whole
//! job with the name of the step that waited, not in a hang. Sums are formed by the library, in its order. What is sent to
//! another stage is copied into memory that the library sends from, so a stage goes on before it is received.

mod launch;
mod world;

pub use launch::{LaunchError, Launched, Launcher, launched};
pub use world::{Degrees, Grid, Place, Terms, World};

use lapidary_runtime_cpu::{Group, PeerError, Peers};
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

/// Values of one message at most: the library counts in 32 bits.
const MESSAGE: usize = 1 << 28;

/// What the library keeps beside each message that it sends later: above any implementation's `MPI_BSEND_OVERHEAD`.
const OVERHEAD: usize = 1024;

/// A rank among the others that it meets.
pub struct Ranks<'w> {
    world: &'w World,
    /// Same stage and replica.
    tensor: SimpleCommunicator,
    /// Same stage and place, by replica.
    data: SimpleCommunicator,
    /// Same place and replica, by stage.
    pipeline: SimpleCommunicator,
    told: Vec<f32>,
}

impl<'w> Ranks<'w> {
    pub(crate) fn new(world: &'w World, [tensor, data, pipeline]: [SimpleCommunicator; 3]) -> Ranks<'w> {
        Ranks { world, tensor, data, pipeline, told: Vec::new() }
    }

    fn group(&self, group: Group) -> &SimpleCommunicator {
        match group {
            Group::Tensor => &self.tensor,
            Group::Data => &self.data,
            Group::Pipeline => &self.pipeline,
        }
    }
}

fn too_long(what: &str, values: usize) -> PeerError {
    PeerError { what: what.into(), why: format!("{values} values are more than a message holds") }
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
    fn all_reduce(&mut self, group: Group, what: &str, data: &mut [f32]) -> Result<(), PeerError> {
        let mut told = std::mem::take(&mut self.told);
        for sum in data.chunks_mut(MESSAGE) {
            told.clear();
            told.extend_from_slice(sum);
            scope(|s| {
                let comm = self.group(group);
                let request = comm.immediate_all_reduce_into(s, &told[..], sum, SystemOperation::sum());
                self.world.meet(what, request);
            });
        }
        self.told = told;
        Ok(())
    }

    fn all_gather(
        &mut self,
        group: Group,
        what: &str,
        part: &[f32],
        whole: &mut [f32],
    ) -> Result<(), PeerError> {
        if part.len() > MESSAGE {
            return Err(too_long(what, part.len()));
        }
        scope(|s| self.world.meet(what, self.group(group).immediate_all_gather_into(s, part, whole)));
        Ok(())
    }

    fn reduce_scatter(
        &mut self,
        group: Group,
        what: &str,
        whole: &[f32],
        part: &mut [f32],
    ) -> Result<(), PeerError> {
        if part.len() > MESSAGE {
            return Err(too_long(what, part.len()));
        }
        scope(|s| {
            let comm = self.group(group);
            let request = comm.immediate_reduce_scatter_block_into(s, whole, part, SystemOperation::sum());
            self.world.meet(what, request);
        });
        Ok(())
    }

    fn room(&mut self, messages: usize, values: usize) -> Result<(), PeerError> {
        // A long message goes in pieces, each with what the library keeps beside it.
        let pieces = values.div_ceil(MESSAGE).max(1);
        let one = values.saturating_mul(4).saturating_add(pieces * OVERHEAD);
        let wanted = messages.saturating_mul(one);
        if wanted > i32::MAX as usize {
            let why = format!(
                "{messages} messages of {values} values may be on their way at once: more than 2 GiB"
            );
            return Err(PeerError { what: "room for messages".into(), why });
        }
        self.world.room(wanted);
        Ok(())
    }

    fn send(&mut self, what: &str, stage: u64, lane: u64, data: &[f32]) -> Result<(), PeerError> {
        let to = self.pipeline.process_at_rank(stage as i32);
        for part in data.chunks(MESSAGE) {
            scope(|s| self.world.meet(what, to.immediate_buffered_send_with_tag(s, part, lane as i32)));
        }
        Ok(())
    }

    fn receive(&mut self, what: &str, stage: u64, lane: u64, into: &mut [f32]) -> Result<(), PeerError> {
        let from = self.pipeline.process_at_rank(stage as i32);
        for part in into.chunks_mut(MESSAGE) {
            scope(|s| self.world.meet(what, from.immediate_receive_into_with_tag(s, part, lane as i32)));
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
