//! One vector op on one PE: as many elements as words and room allow, with their times and their numbers.

use super::links::{Content, Links};
use super::pe::{Pe, Ports};
use super::values::{Address, apply, decode, encode, load, store};
use crate::lower::{Env, LoweredOp, Sink, Source};
use crate::program::{Command, Wire};

/// How far an op has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpState {
    /// Scalars have been read and issue has been paid.
    started: bool,
    /// Elements done.
    done: u64,
    /// When the next element can begin.
    pub ready: u64,
    /// Values of scalar operands.
    scalars: [f32; 3],
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
    values: [Vec<f32>; 3],
    out: Vec<f32>,
    times: Vec<u64>,
}

/// Elements computed at once; bounds the scratch space.
const CHUNK: u64 = 512;

/// Runs `op` until it is complete (`Ok(None)`) or must wait.
pub fn run(
    op: &LoweredOp,
    state: &mut OpState,
    pe: &mut Pe,
    ports: &Ports,
    links: &mut Links,
    scratch: &mut Scratch,
) -> Result<Option<Wait>, OpFault> {
    let env = pe.env(ports);
    let elements = op.elements(&env);
    if elements == 0 {
        state.complete = true;
        return Ok(None);
    }
    if !state.started
        && let Some(wait) = start(op, state, pe, ports, links)
    {
        return Ok(Some(wait));
    }
    let mut addresses = Addresses::new(op, &env)?;
    if op.streams() {
        stream(op, state, elements, pe, ports, links, scratch, &mut addresses)
    } else {
        let cycles = op.price.memory_cycles(elements);
        compute_all(op, state, elements, pe, scratch, &addresses);
        pe.spent.busy += cycles;
        state.ready += cycles;
        state.complete = true;
        Ok(None)
    }
}

/// Reads scalar operands and pays the issue.
fn start(op: &LoweredOp, state: &mut OpState, pe: &mut Pe, ports: &Ports, links: &mut Links) -> Option<Wait> {
    for source in &op.src {
        if let Source::Scalar { slot, .. } = source
            && pe.front(ports, *slot, links).is_none()
        {
            return Some(Wait::Word(ports.input(*slot)));
        }
    }
    for (k, source) in op.src.iter().enumerate() {
        state.scalars[k] = match source {
            Source::Scalar { slot, wire } => {
                let (arrival, word) = pe.front(ports, *slot, links)?;
                let start = state.ready.max(arrival);
                pe.spent.wait_data += start - state.ready;
                state.ready = start;
                links.take(ports.input(*slot), start);
                decode(*wire, word, 0)
            }
            Source::Trigger { wire } => decode(*wire, pe.trigger, 0),
            Source::Const(v) => *v,
            Source::Mem(_) | Source::In { .. } => 0.0,
        };
    }
    state.ready += op.price.issue;
    pe.spent.issue += op.price.issue;
    state.started = true;
    None
}

/// Addresses of the memory operands.
struct Addresses {
    src: [Option<Address>; 3],
    dst: Option<Address>,
}

impl Addresses {
    fn new(op: &LoweredOp, env: &Env) -> Result<Self, OpFault> {
        let fault = |elements: u32| move |index: i64| OpFault { op: op.kind.name(), index, elements };
        let mut out = Addresses { src: [None; 3], dst: None };
        for (k, source) in op.src.iter().enumerate().take(3) {
            if let Source::Mem(s) = source {
                out.src[k] = Some(Address::new(s, op, env).map_err(fault(s.elements))?);
            }
        }
        if let Sink::Mem(s) = &op.dst {
            out.dst = Some(Address::new(s, op, env).map_err(fault(s.elements))?);
        }
        Ok(out)
    }
}

/// Moves words step by step; the numbers of all steps that were possible are computed together afterwards.
#[allow(clippy::too_many_arguments)]
fn stream(
    op: &LoweredOp,
    state: &mut OpState,
    elements: u64,
    pe: &mut Pe,
    ports: &Ports,
    links: &mut Links,
    scratch: &mut Scratch,
    addresses: &mut Addresses,
) -> Result<Option<Wait>, OpFault> {
    loop {
        let first = state.done;
        let wait = advance(op, state, (first + CHUNK).min(elements), pe, ports, links, scratch);
        compute(op, state, first, state.done, pe, scratch, addresses);
        if let Sink::Out { slot, wire, then } = &op.dst {
            let last = (state.done >= elements).then_some(*then).flatten();
            send(scratch, *wire, op, ports.output(*slot), last, links);
        }
        if state.done >= elements {
            state.complete = true;
            return Ok(None);
        }
        if wait.is_some() {
            return Ok(wait);
        }
    }
}

/// Advances time step by step up to element `until` and gathers arriving words.
fn advance(
    op: &LoweredOp,
    state: &mut OpState,
    until: u64,
    pe: &mut Pe,
    ports: &Ports,
    links: &mut Links,
    scratch: &mut Scratch,
) -> Option<Wait> {
    let (step, cost) = (op.price.step, op.price.step_cycles);
    scratch.times.clear();
    scratch.values.iter_mut().for_each(Vec::clear);
    let mut sending = 0usize;
    while state.done < until {
        let mut start = state.ready;
        for source in &op.src {
            if let Source::In { slot, wire } = source {
                let words = u64::from(step / wire.lanes());
                pe.front(ports, *slot, links);
                match links.ahead(ports.input(*slot), words - 1) {
                    Some((arrival, _)) => start = start.max(arrival),
                    None => return Some(Wait::Word(ports.input(*slot))),
                }
            }
        }
        pe.spent.wait_data += start - state.ready;
        let data = start;
        if let Sink::Out { slot, wire, .. } = &op.dst {
            let words = (step / wire.lanes()) as usize;
            let stream = ports.output(*slot);
            match links.room(stream, sending + words - 1) {
                Some(free) => start = start.max(free.saturating_sub(cost)),
                None => {
                    pe.spent.wait_data -= data - state.ready;
                    return Some(Wait::Room(stream));
                }
            }
            sending += words;
        }
        pe.spent.wait_room += start - data;
        gather(op, start, pe, ports, links, scratch);
        pe.spent.busy += cost;
        state.ready = start + cost;
        state.done += u64::from(step);
        scratch.times.push(start);
    }
    None
}

/// Takes the words of one step.
fn gather(op: &LoweredOp, start: u64, pe: &mut Pe, ports: &Ports, links: &mut Links, scratch: &mut Scratch) {
    for (k, source) in op.src.iter().enumerate() {
        if let Source::In { slot, wire } = source {
            for _ in 0..op.price.step / wire.lanes() {
                let Some((_, word)) = pe.front(ports, *slot, links) else { return };
                (0..wire.lanes()).for_each(|lane| scratch.values[k].push(decode(*wire, word, lane)));
                links.take(ports.input(*slot), start);
            }
        }
    }
}

/// Sends the results of the steps recorded in `scratch`; the last word may carry a command.
fn send(
    scratch: &Scratch,
    wire: Wire,
    op: &LoweredOp,
    stream: u32,
    command: Option<Command>,
    links: &mut Links,
) {
    let lanes = wire.lanes() as usize;
    let words = op.price.step as usize / lanes;
    let count = scratch.out.len() / lanes;
    for (n, elements) in scratch.out.chunks(lanes).enumerate() {
        let Some(start) = scratch.times.get(n / words) else { return };
        let early = (words - 1 - n % words) as u64;
        let value = encode(wire, elements[0], elements.get(1).copied().unwrap_or(0.0));
        let content = Content::Last(value, command.filter(|_| n + 1 == count));
        links.send(stream, start + op.price.step_cycles.saturating_sub(early), content);
    }
}

/// Computes all elements of an op on memory, in chunks.
fn compute_all(
    op: &LoweredOp,
    state: &OpState,
    elements: u64,
    pe: &mut Pe,
    scratch: &mut Scratch,
    a: &Addresses,
) {
    let mut first = 0;
    while first < elements {
        let last = (first + CHUNK).min(elements);
        compute(op, state, first, last, pe, scratch, a);
        first = last;
    }
}

/// Computes elements `first..last`; arriving ones are in `scratch`, results for a stream are left in `scratch.out`.
fn compute(
    op: &LoweredOp,
    state: &OpState,
    first: u64,
    last: u64,
    pe: &mut Pe,
    scratch: &mut Scratch,
    a: &Addresses,
) {
    let count = (last - first) as usize;
    scratch.out.clear();
    if op.sequential {
        return one_by_one(op, state, first as usize, count, pe, scratch, a);
    }
    for (k, source) in op.src.iter().enumerate() {
        fill(
            source,
            state.scalars[k],
            a.src[k].as_ref(),
            first as usize,
            count,
            &pe.memory,
            &mut scratch.values[k],
        );
    }
    let Scratch { values: [x, y, z], out, .. } = scratch;
    match op.src.len() {
        1 => out.extend(x[..count].iter().map(|&x| apply(op.kind, x, 0.0, 0.0))),
        2 => out.extend(x[..count].iter().zip(&y[..count]).map(|(&x, &y)| apply(op.kind, x, y, 0.0))),
        _ => out.extend(x.iter().zip(y.iter()).zip(z.iter()).map(|((&x, &y), &z)| apply(op.kind, x, y, z))),
    }
    if let (Sink::Mem(s), Some(address)) = (&op.dst, &a.dst) {
        for (e, value) in out.iter().enumerate() {
            store(&mut pe.memory, s.buffer_offset, s.dtype, address.at(first as usize + e), *value);
        }
    }
}

/// Puts the elements of one operand into `values`, unless they came as words and are there already.
fn fill(
    source: &Source,
    scalar: f32,
    address: Option<&Address>,
    first: usize,
    count: usize,
    memory: &[u8],
    values: &mut Vec<f32>,
) {
    match (source, address) {
        (Source::In { .. }, _) => {}
        (Source::Mem(s), Some(a)) => {
            values.clear();
            values.extend((first..first + count).map(|e| load(memory, s.buffer_offset, s.dtype, a.at(e))));
        }
        _ => {
            values.clear();
            values.resize(count, scalar);
        }
    }
}

/// Computes elements strictly one after the other, each seeing the stores before it.
fn one_by_one(
    op: &LoweredOp,
    state: &OpState,
    first: usize,
    count: usize,
    pe: &mut Pe,
    scratch: &mut Scratch,
    a: &Addresses,
) {
    let (Sink::Mem(to), Some(place)) = (&op.dst, &a.dst) else { return };
    for e in 0..count {
        let mut v = [0.0; 3];
        for (k, source) in op.src.iter().enumerate() {
            v[k] = match (source, &a.src[k]) {
                (Source::Mem(s), Some(at)) => load(&pe.memory, s.buffer_offset, s.dtype, at.at(first + e)),
                (Source::In { .. }, _) => scratch.values[k].get(e).copied().unwrap_or(0.0),
                _ => state.scalars[k],
            };
        }
        let value = apply(op.kind, v[0], v[1], v[2]);
        store(&mut pe.memory, to.buffer_offset, to.dtype, place.at(first + e), value);
    }
}
