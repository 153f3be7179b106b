//! When the steps of a streaming op begin: each waits for the one before, for its words, and for room.

use super::cause::{Cause, Causes};
use super::flow::Cell;
use super::ops::OpState;
use super::pe::Spent;
use super::ports::Cx;
use crate::lower::{LoweredOp, Sink, Source};
use crate::network::NONE;
use crate::program::Wire;

/// A stream that an op reads.
#[derive(Clone, Copy)]
pub struct Input {
    /// Number of the operand.
    pub operand: usize,
    /// The end of the stream.
    pub end: u32,
    /// How its words hold elements.
    pub wire: Wire,
    /// Words of this operand per step.
    pub words: u64,
    /// Words of the stream per step, for all operands.
    pub stride: u64,
    /// Words of earlier operands in a step.
    pub offset: u64,
}

/// The streams that `op` reads.
pub fn inputs(op: &LoweredOp, cx: &mut Cx) -> ([Input; 3], usize) {
    let nothing = Input { operand: 0, end: NONE, wire: Wire::F32, words: 0, stride: 0, offset: 0 };
    let (mut inputs, mut count) = ([nothing; 3], 0);
    for (operand, source) in op.src.iter().enumerate().take(3) {
        let Source::In { slot, wire } = source else { continue };
        let end = cx.data(*slot);
        let words = u64::from(op.price.step / wire.lanes());
        let offset = inputs[..count].iter().filter(|i| i.end == end).map(|i| i.words).sum();
        inputs[count] = Input { operand, end, wire: *wire, words, stride: offset + words, offset };
        count += 1;
        let stride = offset + words;
        inputs[..count].iter_mut().filter(|i| i.end == end).for_each(|i| i.stride = stride);
    }
    (inputs, count)
}

/// When words come or there is room, step by step.
#[derive(Clone, Copy)]
struct Lane<'l> {
    ring: &'l [Cell],
    mask: usize,
    /// The word that a step waits for last, in the first step.
    at: usize,
    stride: usize,
    way: u64,
}

impl<'l> Lane<'l> {
    fn of(input: &Input, cx: &'l Cx) -> Option<Lane<'l>> {
        let end = &cx.links.net.ends[input.end as usize];
        let flow = cx.links.flow(end.stream)?;
        let at = (cx.links.taken(input.end) + input.offset + input.words - 1) as usize;
        let (ring, way) = (flow.ring(end.column), cx.links.way(input.end));
        Some(Lane { ring, mask: flow.mask, at, stride: input.stride as usize, way })
    }

    fn room(op: &LoweredOp, cx: &'l Cx) -> Option<Lane<'l>> {
        let Sink::Out { slot, wire, .. } = &op.dst else { return None };
        let flow = cx.links.flow(cx.ports.output(*slot))?;
        let words = (op.price.step / wire.lanes()) as usize;
        let at = flow.sent() as usize + words - 1;
        Some(Lane { ring: flow.ring(0), mask: flow.mask, at, stride: words, way: 0 })
    }

    #[inline]
    fn cell(&self, step: usize) -> &Cell {
        &self.ring[(self.at + step * self.stride) & self.mask & (self.ring.len() - 1)]
    }
}

/// Times of `steps` steps, which take their words.
pub fn pace(
    op: &LoweredOp,
    inputs: &[Input],
    steps: u64,
    state: &mut OpState,
    spent: &mut Spent,
    cx: &mut Cx,
) {
    let mut starts = std::mem::take(&mut cx.scratch.starts);
    let lanes: [Option<Lane>; 3] = std::array::from_fn(|k| inputs.get(k).and_then(|i| Lane::of(i, cx)));
    let room = Lane::room(op, cx);
    let (steps, cost) = (steps as usize, op.price.step_cycles);
    state.ready = match (lanes, room) {
        ([Some(a), None, None], None) => run_steps(steps, cost, state.ready, spent, &mut starts, &[a], None),
        ([Some(a), None, None], out) => run_steps(steps, cost, state.ready, spent, &mut starts, &[a], out),
        ([None, None, None], out) => run_steps(steps, cost, state.ready, spent, &mut starts, &[], out),
        (lanes, out) => {
            let lanes: Vec<Lane> = lanes.into_iter().flatten().collect();
            run_steps(steps, cost, state.ready, spent, &mut starts, &lanes, out)
        }
    };
    for input in inputs.iter().filter(|i| i.offset == 0) {
        cx.links.take_steps(input.end, input.stride, &starts);
    }
    cx.scratch.starts = starts;
}

/// The recurrence: a step begins when the one before is done, its words have come, and its results will have room.
#[inline(always)]
fn run_steps(
    steps: usize,
    cost: u64,
    mut ready: u64,
    spent: &mut Spent,
    starts: &mut Vec<u64>,
    lanes: &[Lane],
    room: Option<Lane>,
) -> u64 {
    starts.clear();
    let (mut wait_data, mut wait_room) = (0, 0);
    for step in 0..steps {
        let data = lanes.iter().fold(ready, |start, lane| start.max(lane.cell(step).time + lane.way));
        let free = room.as_ref().map_or(0, |lane| lane.cell(step).free.saturating_sub(cost));
        let start = data.max(free);
        wait_data += data - ready;
        wait_room += start - data;
        ready = start + cost;
        starts.push(start);
    }
    spent.busy += steps as u64 * cost;
    spent.wait_data += wait_data;
    spent.wait_room += wait_room;
    ready
}

/// As [`pace`], for one step, with the causes of its times.
pub fn explain(
    op: &LoweredOp,
    inputs: &[Input],
    state: &mut OpState,
    spent: &mut Spent,
    causes: &mut Causes,
    cx: &mut Cx,
) {
    let before = state.ready;
    let latest = inputs.iter().filter_map(|input| {
        let time = Lane::of(input, cx)?.cell(0).time + cx.links.way(input.end);
        Some((time, input.end, cx.links.taken(input.end) + input.offset + input.words - 1))
    });
    let latest = latest.rev().max_by_key(|(time, ..)| *time).filter(|(time, ..)| *time > before);
    if let Some((time, end, n)) = latest {
        let end = &cx.links.net.ends[end as usize];
        let sent = cx.links.flow(end.stream).map_or(Causes::default(), |flow| flow.word_causes(n));
        *causes = sent.arrived(time, u64::from(end.latency));
    }
    pace(op, inputs, 1, state, spent, cx);
    let (start, data) = (cx.scratch.starts[0], latest.map_or(before, |l| l.0));
    let taken = causes.until(start, Cause::Queue).and(Cause::Queue, 1);
    for input in inputs.iter().filter(|i| i.offset == 0) {
        cx.links.explain_taken(input.end, input.stride, start + 1, taken);
    }
    if start > data
        && let Sink::Out { slot, .. } = &op.dst
    {
        *causes = cx.links.room_causes(cx.ports.output(*slot)).until(state.ready, Cause::Queue);
    } else {
        causes.add(Cause::Busy, op.price.step_cycles);
    }
}
