//! Which buffers share memory: those that are never alive together.
//!
//! Steps are numbered in the order of the text, a loop's body in place of the loop. A buffer is alive from the step that
//! writes it to the last that reads it; what a loop carries stays alive through the whole loop and what the loop yields
//! until the loop's end, where the two change places.

use lapidary_runtime_cpu::program::{Buffer, BufferId, RowOp, Step};
use std::ops::RangeInclusive;

/// Gives every buffer its slot.
pub fn assign(buffers: &mut [Buffer], body: &[Step], logits: BufferId) {
    let mut lives = Lives { spans: vec![None; buffers.len()], clock: 0 };
    lives.steps(body);
    lives.touch(logits);
    let mut order: Vec<(BufferId, RangeInclusive<usize>)> =
        lives.spans.iter().cloned().enumerate().filter_map(|(id, span)| Some((id, span?))).collect();
    order.sort_by_key(|(id, span)| (*span.start(), *id));
    // For every slot: the step after which it is free, its size, and whether it counts per key.
    let mut slots: Vec<(usize, u64, bool)> = Vec::new();
    for (id, span) in order {
        let buffer = &mut buffers[id];
        let fits = |slot: &(usize, u64, bool)| slot.0 < *span.start() && slot.2 == buffer.per_key;
        let free = slots.iter().enumerate().filter(|(_, slot)| fits(slot));
        let best = free.min_by_key(|(_, slot)| slot.1.abs_diff(buffer.width)).map(|(at, _)| at);
        let at = best.unwrap_or(slots.len());
        if at == slots.len() {
            slots.push((0, 0, buffer.per_key));
        }
        slots[at] = (*span.end(), slots[at].1.max(buffer.width), buffer.per_key);
        buffer.slot = at;
    }
}

struct Lives {
    spans: Vec<Option<RangeInclusive<usize>>>,
    clock: usize,
}

impl Lives {
    fn touch(&mut self, id: BufferId) {
        let now = self.clock;
        let span = self.spans[id].get_or_insert(now..=now);
        *span = (*span.start()).min(now)..=now;
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.clock += 1;
            if let Step::Repeat { carried, yielded, body, .. } = step {
                self.touch(*carried);
                self.steps(body);
                self.clock += 1;
                self.touch(*carried);
                self.touch(*yielded);
            }
            reads(step).into_iter().chain(step.writes()).for_each(|id| self.touch(id));
        }
    }
}

fn reads(step: &Step) -> Vec<BufferId> {
    let sources = |function: &lapidary_runtime_cpu::program::RowFn| -> Vec<BufferId> {
        let read = |op: &RowOp| match op {
            RowOp::Buffer { buffer } | RowOp::LastRow { buffer } => Some(*buffer),
            _ => None,
        };
        function.values.iter().filter_map(|v| read(&v.op)).collect()
    };
    match step {
        Step::Rows { function, .. } => sources(function),
        Step::Linear { function, x, .. } => sources(function).into_iter().chain([*x]).collect(),
        Step::Attention { q, .. } | Step::Scores { q, .. } => vec![*q],
        Step::Keys { x, .. } => vec![*x],
        Step::Values { p, .. } => vec![*p],
        Step::Collective { x, .. } => x.iter().copied().collect(),
        Step::Repeat { .. } => Vec::new(),
    }
}
