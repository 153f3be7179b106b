//! A program that is one rank's part of a spread model: where the rank stands, and what it says to the others.
//!
//! Ranks of a tensor-parallel group, replicas, and stages at the same place of their groups meet. A meeting is a step like a
//! launch: it has its turn in the stream of work, reads memory that was written before and writes memory that is read behind.
use super::{Arg, Dtype};
use lapidary_models::shard::schedule::Schedule;
use lapidary_models::shard::{Part, StateSharding};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A place among several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Which, from 0.
    pub index: u64,
    /// Of how many.
    pub of: u64,
}

/// What one rank has of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Its place in the tensor-parallel group.
    pub tensor: Member,
    /// Its stage of the pipeline.
    pub stage: Member,
    /// Ranks that hold the same weights for other sequences. Their programs are the same.
    pub replicas: u64,
    /// The layers of the whole model that the program's layers 0, 1, .. are.
    pub layers: Vec<u64>,
    /// Parameters that the rank holds in part, by canonical name with `*` for the layer; the others are whole.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Part>,
    /// What of the weights' state a replica holds alone: their programs stay the same, since what is a replica's own is a run
    /// with a buffer of its own ([`super::Buffer::per_replica`]), and only meetings tell the runs apart.
    #[serde(default, skip_serializing_if = "StateSharding::is_none")]
    pub sharding: StateSharding,
    /// Of a training step: how its steps are run for several micro-batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micros: Option<Micros>,
}

/// The steps of a training step that is made of micro-batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Micros {
    /// Index of each segment's first step among the program's steps; the first is 0.
    pub segments: Vec<u64>,
    /// Index of the first step that runs once, behind all micro-batches.
    pub finish: u64,
    /// Segments in the order in which they run. Buffers of kind [`super::BufferKind::Kept`] and the inputs `ids` and `labels`
    /// are there once for each flight.
    pub schedule: Schedule,
}

/// Ranks that meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Those that share the weights of a stage.
    Tensor,
    /// Those that hold the same weights for other sequences.
    Data,
    /// Those with the same place in the groups of all stages.
    Pipeline,
}

/// What is said. Values lie as the buffers have them, row padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub enum Said {
    /// `out` is the sum of everybody's `x`, which may be the same memory.
    Sum,
    /// `out` is the largest of everybody's `x`, element by element.
    Largest,
    /// `out` holds the parts `x` of all ranks, in their order. Without `x` the rank's own part is in its place already.
    Gather,
    /// `out` is the rank's run of the sum of everybody's `x`. Without `out` the run is left in its place in `x`.
    SumScatter,
    /// `x` goes to the rank of a stage with the same place in its group; nobody waits for it to arrive.
    Send {
        /// Index of the stage.
        stage: u64,
        /// Messages of a lane arrive in their order; those of different lanes pass one another.
        lane: u64,
    },
    /// `out` is what the rank of a stage with the same place in its group sent.
    Receive {
        /// Index of the stage.
        stage: u64,
        /// The lane of its [`Said::Send`].
        lane: u64,
    },
    /// `x` of the last stage's rank becomes `out` of the others with the same place in their groups.
    FromLastStage,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Sum => f.write_str("a sum"),
            Said::Largest => f.write_str("a maximum"),
            Said::Gather => f.write_str("a gather"),
            Said::SumScatter => f.write_str("a scattered sum"),
            Said::Send { stage, lane } => write!(f, "a message to stage {stage} on lane {lane}"),
            Said::Receive { stage, lane } => write!(f, "a message from stage {stage} on lane {lane}"),
            Said::FromLastStage => f.write_str("what the last stage tells"),
        }
    }
}

/// A step in which ranks meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meeting {
    /// Its name, for messages.
    pub name: String,
    /// What is said.
    #[serde(flatten)]
    pub said: Said,
    /// Who meets.
    pub group: Group,
    /// Element type.
    pub dtype: Dtype,
    /// Elements of one rank's part: all of them for sums and messages, a run for gathers and scattered sums.
    pub count: u64,
    /// What the rank tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<Arg>,
    /// What it hears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<Arg>,
    /// Whether it runs on a stream of its own, beside the steps behind it, until the next [`super::Step::Join`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// Whether it is left out for all micro-batches but the last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
}

impl Share {
    /// Ranks of the whole job.
    pub fn world(&self) -> u64 {
        self.tensor.of.saturating_mul(self.stage.of).saturating_mul(self.replicas)
    }

    /// Ranks of a group.
    pub fn ranks(&self, group: Group) -> u64 {
        match group {
            Group::Tensor => self.tensor.of,
            Group::Data => self.replicas,
            Group::Pipeline => self.stage.of,
        }
    }

    /// The plan in a word: `tp2pp4dp1`.
    pub fn plan(&self) -> String {
        format!("tp{}pp{}dp{}", self.tensor.of, self.stage.of, self.replicas)
    }
}

impl Meeting {
    /// Elements that `x` and `out` hold in a group of so many ranks.
    pub fn elements(&self, ranks: u64) -> [u64; 2] {
        let all = self.count.saturating_mul(ranks);
        match self.said {
            Said::Gather => [self.count, all],
            Said::SumScatter => [all, self.count],
            _ => [self.count, self.count],
        }
    }
}
