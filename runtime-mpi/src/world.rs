//! The processes that a launcher started, and the grid of ranks that a plan makes of them.

use crate::Ranks;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::Communicator;
use std::cell::RefCell;
use std::time::Duration;

/// How long a rank waits for others, and what it does when they do not come.
pub struct Terms {
    /// Longest wait in one meeting.
    pub patience: Duration,
    /// Time since any fixed moment.
    pub clock: Box<dyn Fn() -> Duration>,
    /// Tells the user in which step the wait ended.
    pub late: Box<dyn Fn(&str)>,
    /// Exit code of the job that ends so.
    pub exit: i32,
}

/// All processes of a job. There is one in a process, and it ends with it.
pub struct World {
    pub(crate) terms: Terms,
    universe: RefCell<Universe>,
}

/// Over how many ranks a model is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degrees {
    /// Ranks of a tensor-parallel group.
    pub tensor: u64,
    /// Stages of the pipeline.
    pub pipeline: u64,
    /// Replicas that share the sequences.
    pub data: u64,
}

/// Where a rank stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Place in its tensor-parallel group.
    pub tensor: u64,
    /// Stage of the pipeline.
    pub stage: u64,
    /// Which replica.
    pub replica: u64,
}

/// The ranks of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Its sides.
    pub degrees: Degrees,
}

impl Degrees {
    /// Ranks in all.
    pub const fn ranks(self) -> u64 {
        self.tensor.saturating_mul(self.pipeline).saturating_mul(self.data)
    }
}

impl Grid {
    /// Where a rank stands.
    pub const fn place(self, rank: u64) -> Place {
        let Degrees { tensor, data, .. } = self.degrees;
        Place { tensor: rank % tensor, replica: rank / tensor % data, stage: rank / tensor / data }
    }

    /// The rank at a place.
    pub const fn rank(self, place: Place) -> u64 {
        (place.stage * self.degrees.data + place.replica) * self.degrees.tensor + place.tensor
    }
}

impl World {
    /// Joins the job that the launcher started; a job of one without a launcher. None if it was joined before.
    pub fn join(terms: Terms) -> Option<World> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
        Some(World { terms, universe: RefCell::new(universe) })
    }

    pub(crate) fn communicator(&self) -> SimpleCommunicator {
        self.universe.borrow().world()
    }

    /// Gives the library memory for messages that are on their way, if it has less; waits until those before are gone.
    pub(crate) fn room(&self, bytes: usize) {
        let mut universe = self.universe.borrow_mut();
        if universe.buffer_size() < bytes {
            universe.set_buffer_size(bytes);
        }
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        usize::try_from(self.communicator().size()).unwrap_or(1)
    }

    /// Which of them this is.
    pub fn rank(&self) -> usize {
        usize::try_from(self.communicator().rank()).unwrap_or(0)
    }

    /// The ranks that this one meets; every process of the world calls it with the same grid, which has as many ranks as
    /// the world. None where it has not.
    pub fn ranks(&self, grid: Grid) -> Option<Ranks<'_>> {
        if grid.degrees.ranks() != self.size() as u64 {
            return None;
        }
        let Place { tensor, stage, replica } = grid.place(self.rank() as u64);
        let color = |n: u64| Color::with_value(n as i32);
        let Degrees { tensor: width, data, .. } = grid.degrees;
        let world = self.communicator();
        let beside = world.split_by_color_with_key(color(stage * data + replica), tensor as i32)?;
        let behind = world.split_by_color_with_key(color(replica * width + tensor), stage as i32)?;
        let again = world.split_by_color_with_key(color(stage * width + tensor), replica as i32)?;
        Some(Ranks::new(self, [beside, again, behind]))
    }

    /// Ends all processes of the job with this exit code.
    pub fn abort(&self, exit: i32) -> ! {
        self.communicator().abort(exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_group() {
        let grid = Grid { degrees: Degrees { tensor: 2, pipeline: 3, data: 4 } };
        let places: Vec<Place> = (0..grid.degrees.ranks()).map(|rank| grid.place(rank)).collect();
        assert_eq!(places[1], Place { tensor: 1, stage: 0, replica: 0 });
        assert_eq!(places[2], Place { tensor: 0, stage: 0, replica: 1 });
        assert_eq!(places[8], Place { tensor: 0, stage: 1, replica: 0 });
        for (rank, place) in places.into_iter().enumerate() {
            assert_eq!(grid.rank(place), rank as u64);
        }
    }
}
