//! Whether a program ends with the queues that there are, found without time.
//!
//! Where each PE uses its streams in an order of its own, it is no matter of time how far everybody comes: words that have
//! room are sent, words that are there are read, until nobody can go on. Only a PE that takes up several tasks as their
//! words come has no such order; where one had to choose, nothing is said.

use super::engine::FlowError;
use crate::lower::{Env, Instr, LoweredClass, LoweredOp, Sink, Source};
use crate::network::{End, NONE, Network, Origin, Target};
use crate::program::{Trigger, WaferProgram};
use std::collections::VecDeque;

/// What is known of the end of a program.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// All come to their end.
    Reached,
    /// Nobody can go on.
    Stuck(FlowError),
    /// It takes too long to tell, or depends on time.
    Unknown,
}

/// Turns of PEs after which nothing is said.
const MOST_TURNS: u64 = 4_000_000;

/// How far an op is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    scalars: usize,
    steps: u64,
    /// Words of the last steps that have not been sent.
    unsent: u64,
    done: bool,
}

/// A PE without a clock.
#[derive(Clone, Debug, Default)]
struct Pe {
    finished: bool,
    running: Option<usize>,
    pc: usize,
    env: Env,
    /// Per task: runs done, activations pending.
    runs: Vec<(u64, u64)>,
    ops: Vec<Progress>,
    wait: Option<Wait>,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Word(u32),
    Room(u32),
    Task,
}

struct Run<'a> {
    net: &'a Network,
    classes: &'a [LoweredClass],
    pes: Vec<Option<Pe>>,
    /// By stream: words sent; of the host, also how many it has.
    sent: Vec<u64>,
    host: Vec<u64>,
    /// By end: words read.
    taken: Vec<u64>,
    queue: VecDeque<u32>,
    queued: Vec<bool>,
    /// Some PE had more than one task to choose from.
    chose: bool,
    turns: u64,
}

/// Looks how far the PEs of the traced rows of a program come; each stands for so many.
pub fn ending(
    program: &WaferProgram,
    net: &Network,
    classes: &[LoweredClass],
    weight: &dyn Fn(u32) -> f64,
) -> Ending {
    let mut run = Run::new(program, net, classes);
    while let Some(pe) = run.queue.pop_front() {
        run.queued[pe as usize] = false;
        let Some(mut state) = run.pes[pe as usize].take() else { continue };
        run.act(pe, &mut state);
        run.pes[pe as usize] = Some(state);
        run.turns += 1;
        if run.turns > MOST_TURNS {
            return Ending::Unknown;
        }
    }
    let stuck: Vec<u32> = (0u32..)
        .zip(&run.pes)
        .filter(|(_, pe)| pe.as_ref().is_some_and(|pe| !pe.finished))
        .map(|(pe, _)| pe)
        .collect();
    match stuck.first() {
        None => Ending::Reached,
        Some(_) if run.chose => Ending::Unknown,
        Some(first) => {
            let all: f64 = stuck.iter().map(|pe| weight(*pe)).sum();
            Ending::Stuck(FlowError::Standstill { stuck: all.round() as usize, chain: run.explain(*first) })
        }
    }
}

impl<'a> Run<'a> {
    fn new(program: &WaferProgram, net: &'a Network, classes: &'a [LoweredClass]) -> Self {
        let mut run = Run {
            net,
            classes,
            pes: vec![None; net.class_of.len()],
            sent: vec![0; net.streams.len()],
            host: vec![0; net.streams.len()],
            taken: vec![0; net.ends.len()],
            queue: VecDeque::new(),
            queued: vec![false; net.class_of.len()],
            chose: false,
            turns: 0,
        };
        for (pe, class) in net.traced_pes() {
            let at = net.coord(pe);
            let env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
            let runs = vec![(0, 0); classes[usize::from(class)].tasks.len()];
            run.pes[pe as usize] = Some(Pe { env, runs, ..Pe::default() });
            run.wake(pe);
        }
        for lane in net.host_in.iter().filter(|lane| lane.link != NONE) {
            let words = |part: &u32| program.host[*part as usize].words_at(lane.at);
            run.host[lane.link as usize] = lane.parts.iter().map(words).sum();
            run.feed(lane.link);
        }
        run
    }

    fn wake(&mut self, pe: u32) {
        if !std::mem::replace(&mut self.queued[pe as usize], true) {
            self.queue.push_back(pe);
        }
    }

    fn ends(&self, stream: u32) -> impl Iterator<Item = (u32, &'a End)> + use<'a> {
        let s = &self.net.streams[stream as usize];
        (s.first_end..).zip(self.net.ends_of(stream))
    }

    /// Words that a stream has room for.
    fn room(&self, stream: u32) -> u64 {
        let sent = self.sent[stream as usize];
        let free =
            |(end, e): (u32, &End)| (self.taken[end as usize] + u64::from(e.depth)).saturating_sub(sent);
        self.ends(stream).map(free).min().unwrap_or(u64::MAX)
    }

    fn send(&mut self, stream: u32, words: u64) {
        self.sent[stream as usize] += words;
        for (end, e) in self.ends(stream) {
            match e.target {
                Target::Pe(pe) => self.wake(pe),
                // The host takes all that comes.
                Target::Host(_) | Target::Switch(..) => self.taken[end as usize] = self.sent[stream as usize],
            }
        }
    }

    /// Lets the host send what there is room for.
    fn feed(&mut self, stream: u32) {
        let words = self.room(stream).min(self.host[stream as usize]);
        self.host[stream as usize] -= words;
        if words > 0 {
            self.send(stream, words);
        }
    }

    fn there(&self, end: u32) -> u64 {
        let Some(e) = self.net.ends.get(end as usize) else { return 0 };
        self.sent[e.stream as usize] - self.taken[end as usize]
    }

    fn take(&mut self, end: u32, words: u64) {
        self.taken[end as usize] += words;
        let stream = self.net.ends[end as usize].stream;
        match self.net.streams[stream as usize].origin {
            Origin::Pe(pe) => self.wake(pe),
            Origin::Host(_) => self.feed(stream),
            Origin::Switch(..) => {}
        }
    }

    /// Lets a PE run as far as it can.
    fn act(&mut self, pe: u32, state: &mut Pe) {
        state.wait = None;
        while !state.finished && state.wait.is_none() {
            match state.running {
                None => self.pick(pe, state),
                Some(task) => self.step(pe, state, task),
            }
        }
    }

    fn class(&self, pe: u32) -> &'a LoweredClass {
        &self.classes[usize::from(self.net.class_of[pe as usize])]
    }

    fn pick(&mut self, pe: u32, state: &mut Pe) {
        let (class, mut open, mut ready) = (self.class(pe), None, Vec::new());
        for (n, task) in class.tasks.iter().enumerate() {
            let (done, pending) = state.runs[n];
            if done >= task.times.at(&state.env).max(0) as u64 {
                continue;
            }
            // Only tasks that words start have an input.
            let end = || self.net.input(pe as usize, task.slot);
            match task.trigger {
                Trigger::Start => {
                    ready = vec![n];
                    break;
                }
                Trigger::Local if pending > 0 => ready.push(n),
                Trigger::Local => open = open.or(Some(Wait::Task)),
                Trigger::Data { .. } | Trigger::Control { .. } if self.there(end()) > 0 => ready.push(n),
                Trigger::Data { .. } | Trigger::Control { .. } => open = Some(Wait::Word(end())),
            }
        }
        self.chose |= ready.len() > 1 || (ready.len() == 1 && open.is_some());
        match (ready.first(), open) {
            (Some(&task), _) => {
                let lowered = &class.tasks[task];
                match lowered.trigger {
                    Trigger::Start => {}
                    Trigger::Local => state.runs[task].1 -= 1,
                    Trigger::Data { .. } | Trigger::Control { .. } => {
                        self.take(self.net.input(pe as usize, lowered.slot), 1);
                    }
                }
                state.env.turn = state.runs[task].0 as i64;
                (state.running, state.pc) = (Some(task), 0);
            }
            (None, Some(wait)) => state.wait = Some(wait),
            (None, None) => state.finished = true,
        }
    }

    fn step(&mut self, pe: u32, state: &mut Pe, task: usize) {
        let code = &self.class(pe).tasks[task].code;
        match &code[state.pc] {
            Instr::Op(op) => self.group(pe, state, std::slice::from_ref(op)),
            Instr::Par(ops) => self.group(pe, state, ops),
            Instr::Loop { depth, count, length, .. } => {
                state.env.loops[*depth] = 0;
                state.pc += if count.at(&state.env) > 0 { 1 } else { length + 1 };
            }
            Instr::Next { depth, length } => {
                state.env.loops[*depth] += 1;
                let head = state.pc - length;
                let Instr::Loop { count, .. } = &code[head] else { return state.pc += 1 };
                let more = state.env.loops[*depth] < count.at(&state.env);
                state.pc = if more { head + 1 } else { state.pc + 1 };
            }
            Instr::Activate(other) => {
                state.runs[*other].1 += 1;
                state.pc += 1;
            }
            Instr::End => {
                state.runs[task].0 += 1;
                state.running = None;
            }
            Instr::Control { .. } | Instr::Serial { .. } | Instr::Phase(_) => state.pc += 1,
        }
    }

    /// Lets ops side by side go on as far as they can.
    fn group(&mut self, pe: u32, state: &mut Pe, ops: &[LoweredOp]) {
        state.ops.resize(ops.len(), Progress::default());
        for (n, op) in ops.iter().enumerate().filter(|(n, _)| !state.ops[*n].done).collect::<Vec<_>>() {
            let mut progress = state.ops[n];
            if let Some(wait) = self.advance(pe, &state.env, op, &mut progress) {
                state.wait = state.wait.or(Some(wait));
            }
            state.ops[n] = progress;
        }
        if state.wait.is_none() {
            state.ops.clear();
            state.pc += 1;
        }
    }

    /// Lets an op go on as far as it can; returns what it waits for.
    fn advance(&mut self, pe: u32, env: &Env, op: &LoweredOp, at: &mut Progress) -> Option<Wait> {
        let elements = op.elements(env);
        let input = |slot: usize| self.net.input(pe as usize, slot);
        let step = if op.streams() { u64::from(op.price.step) } else { elements.max(1) };
        let scalars = op.src.iter().filter_map(|s| match s {
            Source::Scalar { slot, .. } => Some(input(*slot)),
            _ => None,
        });
        let scalars: Vec<u32> = if elements > 0 { scalars.collect() } else { Vec::new() };
        let reads = op.src.iter().filter_map(Source::stream);
        let reads: Vec<(u32, u64)> =
            reads.map(|(slot, wire)| (input(slot), step / u64::from(wire.lanes()))).collect();
        let out = match &op.dst {
            Sink::Out { slot, wire, .. } => {
                Some((self.net.output(pe as usize, *slot), step / u64::from(wire.lanes())))
            }
            Sink::Mem(_) => None,
        };
        while at.scalars < scalars.len() {
            if self.there(scalars[at.scalars]) == 0 {
                return Some(Wait::Word(scalars[at.scalars]));
            }
            self.take(scalars[at.scalars], 1);
            at.scalars += 1;
        }
        loop {
            if let Some((stream, _)) = out.filter(|_| at.unsent > 0) {
                let words = self.room(stream).min(at.unsent);
                if words == 0 {
                    return Some(Wait::Room(stream));
                }
                self.send(stream, words);
                at.unsent -= words;
                continue;
            }
            let left = elements / step - at.steps;
            if left == 0 {
                at.done = true;
                return None;
            }
            if let Some((end, _)) = reads.iter().find(|(end, words)| self.there(*end) < *words) {
                return Some(Wait::Word(*end));
            }
            let there = reads.iter().map(|(end, words)| self.there(*end) / words).min().unwrap_or(left);
            let room = out.map_or(left, |(stream, words)| self.room(stream) / words);
            let steps = left.min(there).min(room.max(1));
            reads.iter().for_each(|(end, words)| self.take(*end, steps * words));
            at.steps += steps;
            at.unsent += out.map_or(0, |(_, words)| steps * words);
        }
    }

    /// Who waits for whom, from the first that is stuck.
    fn explain(&self, first: u32) -> Vec<String> {
        let (mut chain, mut seen, mut next) = (Vec::new(), Vec::new(), Some(first));
        while let Some(pe) = next.filter(|pe| !seen.contains(pe)) {
            seen.push(pe);
            let name = |pe: u32| format!("PE {} of class `{}`", self.net.coord(pe), self.class(pe).name);
            let who = name(pe);
            let state = self.pes[pe as usize].as_ref().filter(|state| !state.finished);
            let colour = |stream: u32| self.net.streams[stream as usize].colour.0;
            next = None;
            chain.push(match state.and_then(|state| state.wait) {
                None => format!("{who} has finished"),
                Some(Wait::Task) => format!("{who} waits for a task that is not activated"),
                Some(Wait::Word(NONE)) => format!("{who} waits for a word on a colour that nobody sends"),
                Some(Wait::Word(end)) => {
                    let stream = self.net.ends[end as usize].stream;
                    let (word, colour) = (self.taken[end as usize], colour(stream));
                    let from = match self.net.streams[stream as usize].origin {
                        Origin::Pe(from) => {
                            next = Some(from);
                            name(from)
                        }
                        _ => {
                            next = self.slowest(stream);
                            "the host".into()
                        }
                    };
                    format!("{who} waits for word {word} on colour {colour} from {from}")
                }
                Some(Wait::Room(stream)) => {
                    next = self.slowest(stream);
                    let (word, colour) = (self.sent[stream as usize], colour(stream));
                    let to = next.map_or("nobody".into(), name);
                    format!("{who} waits for room for word {word} on colour {colour}, to be taken by {to}")
                }
            });
        }
        chain
    }

    /// The PE with the fullest queue of a stream.
    fn slowest(&self, stream: u32) -> Option<u32> {
        let read = |(end, e): &(u32, &End)| self.taken[*end as usize] + u64::from(e.depth);
        match self.ends(stream).min_by_key(read)?.1.target {
            Target::Pe(pe) => Some(pe),
            Target::Host(_) | Target::Switch(..) => None,
        }
    }
}
