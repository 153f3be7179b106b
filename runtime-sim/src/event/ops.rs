//! One vector op on one PE: as many elements as words and room allow, with their times and their numbers.

use super::cause::{Cause, Causes};
use super::compute::{Addresses, Numbers, Values, compute, compute_all};
use super::pe::Pe;
use super::ports::Cx;
use super::steps::{Input, explain, inputs, pace};
use super::values::decode;
use super::words::{gather, send};
use crate::lower::{LoweredOp, Sink, Source};
use crate::network::NONE;

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
    pub starts: Vec<u64>,
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
