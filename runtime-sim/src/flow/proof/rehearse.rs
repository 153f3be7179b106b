//! Actors that only read and write words, run without time until all come to their end, or nobody goes on.

use super::rounds::Rounds;
use super::shape::Shape;
use std::collections::VecDeque;
use std::rc::Rc;

/// An op: so many steps, each of words read from and written to streams.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op {
    pub steps: u64,
    /// Streams, by number, with the words of each step.
    pub reads: Vec<(u32, u64)>,
    pub writes: Vec<(u32, u64)>,
}

/// What an actor does, so many times in a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub times: u64,
    pub unit: Unit,
}

/// What is repeated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Ops side by side.
    Ops(Vec<Op>),
    /// Parts one after the other; two at least.
    Parts(Vec<Part>),
}

/// A stream between actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Words that it holds at the reader with least room.
    pub depth: u64,
    /// Whether the host sends on it: as many words as are read.
    pub of_host: bool,
}

/// Who does something.
#[derive(Debug)]
pub struct Actor {
    pub shape: Rc<Shape>,
    /// Its streams, in the order of the shape.
    pub wires: Vec<u32>,
}

/// Actors joined by streams.
#[derive(Debug, Default)]
pub struct Piece {
    pub actors: Vec<Actor>,
    pub wires: Vec<Wire>,
}

/// Appends a part, once more the last one if it is the same; what is empty is left out.
pub fn append(parts: &mut Vec<Part>, part: Part) {
    if part.times == 0 || matches!(&part.unit, Unit::Ops(ops) if ops.is_empty()) {
        return;
    }
    match parts.last_mut() {
        Some(last) if last.unit == part.unit => last.times += part.times,
        _ => parts.push(part),
    }
}

/// Appends parts `times` times.
pub fn repeat(parts: &mut Vec<Part>, times: u64, mut body: Vec<Part>) {
    match body.len() {
        0 => {}
        1 => {
            let Part { times: each, unit } = body.remove(0);
            append(parts, Part { times: times * each, unit });
        }
        _ if times == 1 => body.into_iter().for_each(|part| append(parts, part)),
        _ => append(parts, Part { times, unit: Unit::Parts(body) }),
    }
}

impl Piece {
    /// All there is to know of it, as numbers.
    pub fn look(&self) -> Vec<u64> {
        let mut look = vec![self.actors.len() as u64, self.wires.len() as u64];
        look.extend(self.wires.iter().flat_map(|wire| [wire.depth, wire.of_host.into()]));
        for Actor { shape, wires } in &self.actors {
            look.extend([shape.number, wires.len() as u32].iter().chain(wires).map(|n| u64::from(*n)));
        }
        look
    }

    /// Whether all actors come to their end, at the cost of turns; false also if that takes more turns than are left.
    pub fn ends(&self, left: &mut u64) -> bool {
        if Rounds::of(self).end(left) {
            return true;
        }
        let least = self.actors.iter().map(|actor| actor.shape.ops).fold(0, u64::saturating_add);
        if least > *left {
            return false;
        }
        let mut run = Run::new(&self.wires);
        for Actor { shape, wires } in &self.actors {
            run.add(|own| wires[own as usize], &shape.parts);
        }
        run.ends(left)
    }
}

/// A step of flat code.
#[derive(Debug)]
enum Step {
    Ops(Vec<Flat>),
    /// Back by so many steps, so many times in all; the counter's number.
    Back(usize, u64, usize),
}

/// An op whose inputs are ends.
#[derive(Debug)]
struct Flat {
    steps: u64,
    reads: Vec<(usize, u64)>,
    writes: Vec<(u32, u64)>,
}

#[derive(Default)]
struct Acting {
    code: Vec<Step>,
    at: usize,
    counters: Vec<u64>,
    /// By op of the current step: steps that are left; none before it begins.
    left: Option<Vec<u64>>,
}

/// A stream under way.
struct Stream {
    sent: u64,
    of_host: bool,
    depth: u64,
    ends: Vec<usize>,
    sender: Option<usize>,
    /// Words that the sender has ready for its only reader beside those sent, and which of its ops side by side sends them.
    ready: u64,
    op: usize,
}

struct End {
    stream: u32,
    reader: usize,
    taken: u64,
}

pub struct Run {
    actors: Vec<Acting>,
    streams: Vec<Stream>,
    ends: Vec<End>,
    queue: VecDeque<usize>,
    queued: Vec<bool>,
}

impl Run {
    /// Streams without actors.
    pub fn new(wires: &[Wire]) -> Run {
        let stream = |wire: &Wire| Stream {
            sent: 0,
            of_host: wire.of_host,
            depth: wire.depth,
            ends: Vec::new(),
            sender: None,
            ready: 0,
            op: 0,
        };
        let streams = wires.iter().map(stream).collect();
        Run { actors: Vec::new(), streams, ends: Vec::new(), queue: VecDeque::new(), queued: Vec::new() }
    }

    /// Adds an actor that does some parts, whose streams have numbers of its own.
    pub fn add(&mut self, number: impl Fn(u32) -> u32, parts: &[Part]) {
        let mut acting = Acting::default();
        self.flatten(&number, parts, &mut acting);
        self.begin(acting);
    }

    /// Adds an actor that does something once.
    pub fn add_once(&mut self, number: impl Fn(u32) -> u32, unit: &Unit) {
        let mut acting = Acting::default();
        self.flatten_once(&number, unit, &mut acting);
        self.begin(acting);
    }

    fn begin(&mut self, acting: Acting) {
        self.queue.push_back(self.actors.len());
        self.queued.push(true);
        self.actors.push(acting);
    }

    fn flatten(&mut self, number: &dyn Fn(u32) -> u32, parts: &[Part], acting: &mut Acting) {
        for Part { times, unit } in parts {
            let begun = acting.code.len();
            self.flatten_once(number, unit, acting);
            if *times > 1 {
                let back = acting.code.len() - begun;
                acting.code.push(Step::Back(back, *times, acting.counters.len()));
                acting.counters.push(0);
            }
        }
    }

    fn flatten_once(&mut self, number: &dyn Fn(u32) -> u32, unit: &Unit, acting: &mut Acting) {
        match unit {
            Unit::Parts(parts) => self.flatten(number, parts, acting),
            Unit::Ops(ops) => {
                let ops = ops.iter().map(|op| self.flat(number, op)).collect();
                acting.code.push(Step::Ops(ops));
            }
        }
    }

    fn flat(&mut self, number: &dyn Fn(u32) -> u32, op: &Op) -> Flat {
        let actor = self.actors.len();
        let reads = op.reads.iter().map(|(own, words)| (self.end(actor, number(*own)), *words)).collect();
        let writes: Vec<(u32, u64)> = op.writes.iter().map(|(own, words)| (number(*own), *words)).collect();
        writes.iter().for_each(|(wire, _)| self.streams[*wire as usize].sender = Some(actor));
        Flat { steps: op.steps, reads, writes }
    }

    /// The end at which an actor reads a stream.
    fn end(&mut self, reader: usize, wire: u32) -> usize {
        let known =
            self.streams[wire as usize].ends.iter().copied().find(|end| self.ends[*end].reader == reader);
        known.unwrap_or_else(|| {
            self.ends.push(End { stream: wire, reader, taken: 0 });
            self.streams[wire as usize].ends.push(self.ends.len() - 1);
            self.ends.len() - 1
        })
    }

    /// Whether all come to their end, with no words left.
    pub fn ends(mut self, left: &mut u64) -> bool {
        while let Some(number) = self.queue.pop_front() {
            self.queued[number] = false;
            let mut actor = std::mem::take(&mut self.actors[number]);
            self.act(number, &mut actor, left);
            self.actors[number] = actor;
            if *left == 0 {
                return false;
            }
        }
        let read = |stream: &Stream| match stream.ends[..] {
            [] => stream.sent == 0,
            _ => stream.ends.iter().all(|end| self.ends[*end].taken == stream.sent),
        };
        self.actors.iter().all(|actor| actor.at == actor.code.len()) && self.streams.iter().all(read)
    }

    fn wake(&mut self, number: usize) {
        if !std::mem::replace(&mut self.queued[number], true) {
            self.queue.push_back(number);
        }
    }

    fn act(&mut self, number: usize, actor: &mut Acting, left: &mut u64) {
        let Acting { code, at, counters, left: begun } = actor;
        while let Some(step) = code.get(*at) {
            match step {
                Step::Back(back, times, counter) => {
                    counters[*counter] += 1;
                    if counters[*counter] < *times {
                        *at -= back;
                    } else {
                        counters[*counter] = 0;
                        *at += 1;
                    }
                }
                Step::Ops(ops) => {
                    let progress = begun.get_or_insert_with(|| ops.iter().map(|op| op.steps).collect());
                    for (n, (op, steps)) in ops.iter().zip(progress.iter_mut()).enumerate() {
                        *left = left.saturating_sub(1);
                        self.advance(number, op, steps);
                        self.offer(number, n, op, *steps);
                    }
                    if *left == 0 || progress.iter().any(|steps| *steps > 0) {
                        return;
                    }
                    *begun = None;
                    *at += 1;
                }
            }
        }
    }

    /// Words that the slowest reader of a stream has room for.
    fn room(&self, stream: u32) -> u64 {
        let s = &self.streams[stream as usize];
        let slowest = s.ends.iter().map(|end| self.ends[*end].taken).min();
        slowest.map_or(u64::MAX, |taken| (taken + s.depth).saturating_sub(s.sent))
    }

    fn there(&self, end: usize) -> u64 {
        let End { stream, taken, .. } = self.ends[end];
        let s = &self.streams[stream as usize];
        s.sent + if s.of_host { self.room(stream) } else { s.ready } - taken
    }

    /// Lets an op go on as far as it can.
    fn advance(&mut self, number: usize, op: &Flat, steps: &mut u64) {
        while *steps > 0 {
            let there = op.reads.iter().map(|(end, words)| self.there(*end) / words);
            let room = op.writes.iter().map(|(stream, words)| self.room(*stream) / words);
            let can = there.chain(room).fold(*steps, u64::min);
            if can == 0 {
                return;
            }
            *steps -= can;
            op.reads.iter().for_each(|(end, words)| self.take(number, *end, can * words));
            for (stream, words) in &op.writes {
                self.streams[*stream as usize].sent += can * words;
                self.wake_readers(*stream as usize, None);
            }
        }
    }

    fn take(&mut self, number: usize, end: usize, words: u64) {
        self.ends[end].taken += words;
        let (taken, stream) = (self.ends[end].taken, self.ends[end].stream as usize);
        let s = &mut self.streams[stream];
        if s.of_host {
            s.sent = s.sent.max(taken);
            return self.wake_readers(stream, Some(number));
        }
        let Some(sender) = s.sender else { return };
        if taken <= s.sent {
            return self.wake(sender);
        }
        // Sent and read one after the other.
        let Acting { code, at, left: Some(left), .. } = &mut self.actors[sender] else { return };
        let Some(Step::Ops(ops)) = code.get(*at) else { return };
        let each = ops[s.op].writes[0].1;
        let steps = (taken - s.sent).div_ceil(each);
        (s.sent, s.ready) = (s.sent + steps * each, s.ready - steps * each);
        left[s.op] -= steps;
        if left[s.op] == 0 {
            self.wake(sender);
        }
    }

    /// The only reader of what an op sends need not wait for it to be woken once more.
    fn offer(&mut self, number: usize, n: usize, op: &Flat, steps: u64) {
        let [(stream, words)] = op.writes[..] else { return };
        let s = &mut self.streams[stream as usize];
        if let [end] = s.ends[..]
            && op.reads.is_empty()
            && self.ends[end].reader != number
        {
            (s.ready, s.op) = (steps * words, n);
        }
    }

    fn wake_readers(&mut self, stream: usize, but: Option<usize>) {
        for n in 0..self.streams[stream].ends.len() {
            let reader = self.ends[self.streams[stream].ends[n]].reader;
            if Some(reader) != but {
                self.wake(reader);
            }
        }
    }
}
