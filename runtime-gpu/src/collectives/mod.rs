//! Ranks on GPUs: how they find each other, what they say, and a device that stands among others.
//!
//! - [`Peers`]: who says it. [`NcclPeers`] say it through NCCL, which is opened at run time and never assumed; tests have others,
//!   among threads.
//! - [`Among`]: a device with peers is a device again, so that what executes programs need not know.
//! - [`bootstrap`]: the first rank hands the others the names of their meetings over TCP, at the address that the launcher gives.

mod among;
pub mod bootstrap;
mod calls;
mod library;

pub use among::Among;
pub use calls::NcclPeers;
pub use library::{Nccl, NcclError};

use crate::device::{Address, Device, DeviceError};
use crate::program::{Dtype, Group, Member, Said, Share};

/// Where a rank stands among those of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// In its tensor-parallel group.
    pub tensor: Member,
    /// In the pipeline.
    pub stage: Member,
    /// Among the replicas.
    pub replica: Member,
}

impl Standing {
    /// Where a rank stands: ranks of a tensor-parallel group are neighbours, then replicas, then stages, as Megatron-LM
    /// counts them, so that what talks most is nearest.
    pub fn of(rank: u64, [tensor, replicas, stages]: [u64; 3]) -> Standing {
        let member = |index: u64, of: u64| Member { index: index % of.max(1), of };
        Standing {
            tensor: member(rank, tensor),
            replica: member(rank / tensor.max(1), replicas),
            stage: member(rank / tensor.max(1) / replicas.max(1), stages),
        }
    }

    /// The place in a group.
    pub fn member(&self, group: Group) -> Member {
        match group {
            Group::Tensor => self.tensor,
            Group::Data => self.replica,
            Group::Pipeline => self.stage,
        }
    }

    /// Which of the groups of a kind it is: ranks meet those with the same number.
    pub fn circle(&self, group: Group) -> u64 {
        let Standing { tensor, stage, replica } = self;
        match group {
            Group::Tensor => replica.index + replica.of * stage.index,
            Group::Data => tensor.index + tensor.of * stage.index,
            Group::Pipeline => tensor.index + tensor.of * replica.index,
        }
    }

    /// Ranks of the job.
    pub fn world(&self) -> u64 {
        self.tensor.of * self.stage.of * self.replica.of
    }

    /// Whether it is the first of all ranks.
    pub fn first(&self) -> bool {
        self.tensor.index == 0 && self.stage.index == 0 && self.replica.index == 0
    }

    /// The plan in a word.
    pub fn plan(&self) -> String {
        format!("tp{}pp{}dp{}", self.tensor.of, self.stage.of, self.replica.of)
    }

    /// Whether a program of that share is this rank's.
    pub fn has(&self, share: &Share) -> bool {
        share.tensor == self.tensor && share.stage == self.stage && share.replicas == self.replica.of
    }
}

/// A meeting with the places of its operands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The step, for messages.
    pub name: String,
    /// What is said.
    pub said: Said,
    /// Who meets.
    pub group: Group,
    /// Element type.
    pub dtype: Dtype,
    /// Elements of one rank's part.
    pub count: u64,
    /// What the rank tells.
    pub x: Option<Address>,
    /// What it hears.
    pub out: Option<Address>,
    /// Whether the work behind goes on meanwhile.
    pub beside: bool,
    /// Whether only the last micro-batch of a step has it.
    pub last: bool,
}

impl Word {
    /// Bytes of one rank's part.
    pub fn bytes(&self) -> u64 {
        self.count * self.dtype.bytes()
    }

    /// Where the rank's part lies: in its place among all parts where it has no memory of its own.
    pub fn own_part(&self, index: u64) -> Option<Address> {
        let placed = |whole: Address| whole.after(index * self.bytes());
        match self.said {
            Said::Gather => self.x.or(self.out.map(placed)),
            Said::SumScatter => self.out.or(self.x.map(placed)),
            _ => self.x,
        }
    }
}

/// The ranks that a rank meets. Each word is met by the same word of the others of the group, in the same order.
pub trait Peers {
    /// Where the rank stands.
    fn standing(&self) -> Standing;

    /// Whether a word may be noted in a graph.
    fn noted(&self) -> bool {
        false
    }

    /// Says a word behind all earlier work of the device.
    ///
    /// # Errors
    /// [`DeviceError::Peers`] where the others are not met.
    fn say(&mut self, device: &mut dyn Device, word: &Word) -> Result<(), DeviceError>;

    /// Lets later work of the device wait for all words that were said beside.
    ///
    /// # Errors
    /// As [`Peers::say`].
    fn join(&mut self, device: &mut dyn Device) -> Result<(), DeviceError>;

    /// Waits until all work of the device is done, and ends where the others do not come.
    ///
    /// # Errors
    /// As [`Peers::say`].
    fn settle(&mut self, device: &mut dyn Device) -> Result<(), DeviceError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rank has a place of its own, and a circle is a group's ranks and nobody else.
    #[test]
    fn ranks_have_places_and_circles() {
        let degrees = [2, 3, 4];
        let all: Vec<Standing> = (0..24).map(|rank| Standing::of(rank, degrees)).collect();
        assert!(all.iter().all(|one| one.world() == 24 && one.plan() == "tp2pp4dp3"));
        assert_eq!((all[1].tensor.index, all[2].replica.index, all[6].stage.index), (1, 1, 1));
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate().filter(|(j, _)| i != *j) {
                let same = |group: Group| a.member(group).index == b.member(group).index;
                for (group, others) in [
                    (Group::Tensor, [Group::Data, Group::Pipeline]),
                    (Group::Data, [Group::Tensor, Group::Pipeline]),
                    (Group::Pipeline, [Group::Tensor, Group::Data]),
                ] {
                    let meets = a.circle(group) == b.circle(group);
                    assert_eq!(meets, others.into_iter().all(same), "{i} {j} {group:?}");
                }
            }
        }
    }
}
