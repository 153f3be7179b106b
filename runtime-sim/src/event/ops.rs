//! One vector op on one PE: as many elements as words and room allow, with their times and their numbers.

use super::cause::{Cause, Causes};
use super::compute::{Addresses, Numbers, Values, compute, compute_all};
use super::flow::{Cell, Flow, Kind};
use super::pe::{Cx, Pe, Spent};
use super::values::{decode, encode};
use crate::lower::{LoweredOp, Sink, Source};
use crate::network::NONE;
use crate::program::{Command, Wire};

/// How far an op has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpState {
    /// Scalars have been read and issue has been paid.
    started: bool,
    /// Elements done.
    pub done: u64,
    /// When the next element can begin.
    pub ready: u64,
    /// Values of scalar operands.
    pub scalars: [f32; 3],
    /// Whether it is complete.
    pub complete: bool,
}

impl OpState {
    /// An op that is reached at `time`.
    pub fn at(time: u64) -> Self {
        OpState { ready: time, ..OpState::default() }
    }
}

/// What an op waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A word at this end.
    Word(u32),
    /// Room in this stream.
    Room(u32),
}

/// Why an op cannot be executed.
#[derive(Clone, Debug, PartialEq)]
pub struct OpFault {
    /// Name of the op.
    pub op: &'static str,
    /// The element reached.
    pub index: i64,
    /// Size of the buffer.
    pub elements: u32,
}

/// Buffers reused between ops.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Numbers.
    pub values: Values,
    /// When the steps begin.
    starts: Vec<u64>,
    /// What the PE that ran last waits for.
    pub waits: Vec<Wait>,
}

/// Steps done at once; bounds the scratch space.
pub const CHUNK: u64 = 512;

/// Runs `op` until it is complete (`Ok(None)`) or must wait.
pub fn run(
    op: &LoweredOp,
    state: &mut OpState,
    pe: &mut Pe,
    causes: &mut Causes,
    cx: &mut Cx,
) -> Result<Option<Wait>, OpFault> {
    let env = pe.env(&cx.ports);
    let elements = op.elements(&env);
    if elements == 0 {
        state.complete = true;
        return Ok(None);
    }
    if !state.started
        && let Some(wait) = start(op, state, pe, causes, cx)
    {
        return Ok(Some(wait));
    }
    let addresses = Addresses::new(op, &env)?;
    if op.streams() {
        return Ok(stream(op, state, elements, pe, causes, cx, &addresses));
    }
    let cycles = op.memory_cycles(&env);
    compute_all(op, state, elements, &addresses, &mut Numbers::of(cx));
    pe.spent.busy += cycles;
    causes.add(Cause::Busy, cycles);
    state.ready += cycles;
    state.complete = true;
    Ok(None)
}

/// Reads scalar operands and pays the issue.
fn start(op: &LoweredOp, state: &mut OpState, pe: &mut Pe, causes: &mut Causes, cx: &mut Cx) -> Option<Wait> {
    for source in &op.src {
        if let Source::Scalar { slot, .. } = source {
            let end = cx.data(*slot);
            if end == NONE || cx.links.available(end) == 0 {
                return Some(Wait::Word(end));
            }
        }
    }
    for (k, source) in op.src.iter().enumerate() {
        state.scalars[k] = match source {
            Source::Scalar { slot, wire } => {
                let end = cx.data(*slot);
                let Some(word) = cx.links.front(end) else { return Some(Wait::Word(end)) };
                if word.time > state.ready {
                    pe.spent.wait_data += word.time - state.ready;
                    state.ready = word.time;
                    *causes = cx.links.arrival_causes(end);
                }
                cx.links.take(end, state.ready, *causes);
                decode(*wire, word.value, 0)
            }
            Source::Trigger { wire } => decode(*wire, pe.trigger, 0),
            Source::Const(v) => *v,
            Source::Mem(_) | Source::In { .. } => 0.0,
        };
    }
    state.ready += op.price.issue;
    pe.spent.issue += op.price.issue;
    causes.add(Cause::Issue, op.price.issue);
    state.started = true;
    None
}

/// A stream that an op reads.
#[derive(Clone, Copy)]
struct Input {
    /// Number of the operand.
    operand: usize,
    end: u32,
    wire: Wire,
    /// Words of this operand per step.
    words: u64,
    /// Words of the stream per step, for all operands.
    stride: u64,
    /// Words of earlier operands in a step.
    offset: u64,
}

/// The streams that `op` reads.
fn inputs(op: &LoweredOp, cx: &mut Cx) -> ([Input; 3], usize) {
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

/// Moves words in batches of steps: first the times, then the numbers. Returns what it waits for.
fn stream(
    op: &LoweredOp,
    state: &mut OpState,
    elements: u64,
    pe: &mut Pe,
    causes: &mut Causes,
    cx: &mut Cx,
    addresses: &Addresses,
) -> Option<Wait> {
    let step = u64::from(op.price.step);
    let (inputs, count) = inputs(op, cx);
    let inputs = &inputs[..count];
    let mut refresh = false;
    while state.done < elements {
        if std::mem::replace(&mut refresh, true) {
            for (slot, _) in op.src.iter().filter_map(Source::stream) {
                cx.data(slot);
            }
        }
        let most = (elements - state.done).div_ceil(step).min(CHUNK);
        let steps = match possible(op, inputs, most, cx) {
            Ok(steps) => steps,
            Err(wait) => return Some(wait),
        };
        gather(inputs, steps, cx);
        let done = if cx.links.with_causes { 1 } else { steps };
        let first = state.done;
        if cx.links.with_causes {
            explain(op, inputs, state, &mut pe.spent, causes, cx);
        } else {
            pace(op, inputs, steps, state, &mut pe.spent, cx);
        }
        state.done = first + done * step;
        compute(op, state, first, state.done, addresses, &mut Numbers::of(cx));
        if let Sink::Out { slot, wire, then } = &op.dst {
            let last = (state.done >= elements).then_some(*then).flatten();
            send(op, *wire, cx.ports.output(*slot), last, *causes, cx);
        }
    }
    state.complete = true;
    None
}

/// Steps that words and room allow now, at least one and at most `most`.
fn possible(op: &LoweredOp, inputs: &[Input], most: u64, cx: &mut Cx) -> Result<u64, Wait> {
    let mut steps = most;
    for input in inputs {
        let words = if input.end == NONE { 0 } else { data_words(input.end, most * input.stride, cx) };
        if words < input.stride {
            return Err(Wait::Word(input.end));
        }
        steps = steps.min(words / input.stride);
    }
    if let Sink::Out { slot, wire, .. } = &op.dst {
        let stream = cx.ports.output(*slot);
        let words = u64::from(op.price.step / wire.lanes());
        match cx.links.room(stream) / words {
            0 => return Err(Wait::Room(stream)),
            room => steps = steps.min(room),
        }
    }
    Ok(if cx.links.with_causes { 1 } else { steps })
}

/// Data words at an end before the next control word, as far as `most`.
fn data_words(end: u32, most: u64, cx: &Cx) -> u64 {
    let all = cx.links.available(end).min(most);
    let first = cx.links.taken(end);
    match cx.links.flow(cx.links.net.ends[end as usize].stream) {
        Some(flow) if flow.has_kinds() => (0..all).find(|n| flow.kind(first + n).control).unwrap_or(all),
        _ => all,
    }
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
fn pace(op: &LoweredOp, inputs: &[Input], steps: u64, state: &mut OpState, spent: &mut Spent, cx: &mut Cx) {
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
fn explain(
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

/// The words of the next `steps` steps as numbers.
fn gather(inputs: &[Input], steps: u64, cx: &mut Cx) {
    for input in inputs {
        let Some(flow) = cx.links.flow(cx.links.net.ends[input.end as usize].stream) else { continue };
        let first = cx.links.taken(input.end) + input.offset;
        let values = &mut cx.scratch.values.operands[input.operand];
        values.clear();
        let cells = flow.ring(0);
        let word = |step: u64, k: u64| cells[(first + step * input.stride + k) as usize & flow.mask].value;
        if input.wire == Wire::F32 && input.stride == 1 {
            values.extend((0..steps).map(|step| f32::from_bits(word(step, 0))));
            continue;
        }
        for step in 0..steps {
            for k in 0..input.words {
                let word = word(step, k);
                values.extend((0..input.wire.lanes()).map(|lane| decode(input.wire, word, lane)));
            }
        }
    }
}

/// Sends the results of the steps that began at `starts`; the last word may carry a command.
fn send(op: &LoweredOp, wire: Wire, stream: u32, command: Option<Command>, causes: Causes, cx: &mut Cx) {
    let (scratch, cost) = (&*cx.scratch, op.price.step_cycles);
    let lanes = wire.lanes() as usize;
    let words = op.price.step as usize / lanes;
    let out = &scratch.values.out;
    let count = scratch.starts.len() * words;
    let flow: &mut Flow = cx.links.flow_mut(stream);
    if wire == Wire::F32 && words == 1 {
        scratch.starts.iter().zip(out).for_each(|(start, value)| flow.push(start + cost, value.to_bits()));
    } else {
        for (n, elements) in out.chunks(lanes).enumerate().take(count) {
            let early = (words - 1 - n % words) as u64;
            let value = encode(wire, elements[0], elements.get(1).copied().unwrap_or(0.0));
            flow.push(scratch.starts[n / words] + cost.saturating_sub(early), value);
        }
    }
    if command.is_some() {
        flow.mark(Kind { control: false, command });
    }
    flow.explain_word(causes);
    cx.links.publish(stream, count as u64);
}
