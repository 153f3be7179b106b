//! The cost model `physical`: the account of [`crate::step`] for the plans of the search.

use super::{Bound, Cost};
use crate::assumption::Assumption;
use crate::memory::Memory;
use crate::plan::GpuPlan;
use crate::request::Batch;
use crate::step::memory::ROOM;
use crate::step::physics::table;
use crate::step::{Again, Estimate, Job, Layout, Physics, Schedule, Shape, Stack, Work, occupied};
use crate::wafer;
use lapidary_hardware::{Bytes, HardwareSpec, Seconds};
use lapidary_models::ModelSpec;

/// Prices plans by kernels, launches and collectives, as one software stack runs them.
#[derive(Clone, Debug, PartialEq)]
pub struct Physical {
    /// Constants of physics.
    pub physics: Physics,
    /// The software.
    pub stack: Stack,
    /// Whether weights and optimizer live on the host.
    pub offload: bool,
    /// Time of the slowest device's kernels over that of a sound one, which all wait for; it is in the stack's pace
    /// already ([`Physical::with_straggler`]).
    pub straggler: f64,
}

/// What the terms of an estimate are about.
const BOUNDS: [(&str, Bound); 14] = [
    ("ep_comm", Bound::Network),
    ("cp_comm", Bound::Network),
    ("matmul", Bound::Compute),
    ("attention", Bound::Compute),
    ("memory_bound", Bound::Memory),
    ("recompute", Bound::Compute),
    ("tp_comm", Bound::Network),
    ("host", Bound::Host),
    ("pp_bubble", Bound::Pipeline),
    ("pp_comm", Bound::Network),
    ("dp_comm", Bound::Network),
    ("optimizer", Bound::Memory),
    ("offload", Bound::Host),
    ("step", Bound::Host),
];

impl Physical {
    /// The model for a stack that comes with the program; `None` where there is none of this name.
    pub fn of(stack: &str) -> Option<Physical> {
        let stack = Stack::named(stack)?.clone();
        Some(Physical { physics: Physics::builtin(), stack, offload: false, straggler: 1.0 })
    }

    /// The same with one device whose kernels take `times` as long: a step has no pass that does not wait for it.
    pub fn with_straggler(mut self, times: f64) -> Physical {
        self.stack.pace *= times;
        self.straggler *= times;
        self
    }

    /// The job of a plan; `work` is what a rank of its tensor-parallel degree does.
    pub fn job<'a>(
        &'a self,
        model: &ModelSpec,
        machine: &'a HardwareSpec,
        batch: Batch,
        plan: &GpuPlan,
        work: &'a Work,
    ) -> Job<'a> {
        Job {
            shape: Shape::of(model),
            work,
            batch,
            layout: Layout {
                tensor: plan.tp,
                pipeline: plan.pp,
                chunks: plan.chunks,
                data: plan.dp,
                context: plan.cp,
                expert: plan.ep,
                micro_batch: plan.micro_batch,
                accumulation: plan.accumulation as f64,
                sharding: plan.sharding,
                recompute: plan.recompute,
                again: Again::Layers(plan.recompute_layers.unwrap_or(u64::MAX)),
                ends: Some((plan.first_layers, plan.last_layers)),
                sequence_parallel: plan.sequence_parallel,
                schedule: Schedule::OneForwardOneBackward,
            },
            attention: self.stack.attention,
            fused_norm: self.stack.fused_norm,
            offload: self.offload,
            half: false,
            stack: &self.stack,
            machine,
            physics: &self.physics,
        }
    }

    /// Its name, printed beside every figure.
    pub fn name(&self) -> &'static str {
        "physical"
    }

    /// What it takes for granted on a machine, beside the machine's own numbers.
    pub fn assumptions(&self, machine: &HardwareSpec) -> Vec<Assumption> {
        if machine.wafer().is_some() {
            return wafer::price::assumptions();
        }
        let mut list = Vec::new();
        for (name, constant) in table() {
            let value = self.physics.get(&name).unwrap_or(constant.value);
            list.push(Assumption::new(&name, value, &constant.unit, &constant.source));
        }
        if self.straggler != 1.0 {
            list.push(Assumption::new("straggler-slowdown", self.straggler, "ratio", "as asked"));
        }
        let room = "layouts of published runs that overflowed or ran (planner/README.md)";
        list.push(Assumption::new("memory-room", ROOM, "ratio", room));
        let stack = &self.stack;
        let about = |name: &str| format!("software.{}.{name}", stack.name);
        list.push(Assumption::new(&about("pace"), stack.pace / self.straggler, "ratio", &stack.fitted_on));
        list.push(Assumption::new(&about("data-overlap"), stack.data_overlap, "ratio", &stack.source));
        list.push(Assumption::new(&about("gather-overlap"), stack.gather_overlap, "ratio", &stack.source));
        list.push(Assumption::new(&about("tensor-overlap"), stack.tensor_overlap, "ratio", &stack.source));
        list
    }

    /// What one rank among `tp` does for one sequence.
    ///
    /// # Errors
    /// What does not divide, or the dimension that a graph refuses, as a sentence.
    pub fn account(&self, model: &ModelSpec, tp: u64, seq_len: u64) -> Result<Work, String> {
        let stack = &self.stack;
        Work::new(model, tp, seq_len, stack, stack.attention, stack.fused_norm)
    }

    /// Memory of the fullest GPU, with the room that a plan must leave.
    pub fn memory(job: &Job<'_>) -> Memory {
        let held = occupied(job);
        let room = held.total() * (ROOM - 1.0);
        let classes = held.classes().into_iter().chain([("room", room)]);
        Memory(classes.map(|(name, bytes)| (name, Bytes(bytes))).collect())
    }

    /// An estimate as a cost.
    pub fn cost(found: &Estimate) -> Cost {
        let bound = |name: &str| {
            BOUNDS.iter().find(|(known, _)| *known == name).map_or(Bound::Compute, |(_, bound)| *bound)
        };
        let terms = found.terms_s.iter().map(|(name, seconds)| (*name, (bound(name), Seconds(*seconds))));
        Cost { terms: terms.collect() }
    }
}

/// This compiler's kernels under the constants that come with the program.
impl Default for Physical {
    fn default() -> Self {
        let stack = Stack::named("lapidary").unwrap_or(&Stack::builtin()[0]).clone();
        Physical { physics: Physics::builtin(), stack, offload: false, straggler: 1.0 }
    }
}
