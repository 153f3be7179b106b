//! A PE: the task it runs, and how far it has come.

use super::cause::{Cause, Causes};
use super::jit::Compiled;
use super::links::{Decision, Links, control};
use super::ops::{self, OpFault, OpState, Scratch, Wait};
use super::trace::Tracer;
use crate::lower::{Env, Instr, Linear, LoweredClass, LoweredOp, MAX_DEPTH};
use crate::network::{NONE, Network};
use crate::program::{Command, Coord, Serial, Trigger};
use std::collections::{BTreeMap, VecDeque};

/// Cycles of a PE by what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Moving or computing elements.
    pub busy: u64,
    /// Starting ops.
    pub issue: u64,
    /// Starting tasks.
    pub activation: u64,
    /// Waiting for words to arrive.
    pub wait_data: u64,
    /// Waiting for room in a queue.
    pub wait_room: u64,
}

/// How often a task ran, and how often it has been activated beyond that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    done: u64,
    pending: u64,
}

/// Control words that no task has handled yet, by PE and input slot: when and why they came.
pub type Controls = BTreeMap<(u32, usize), VecDeque<(u64, Causes)>>;

/// State of a PE.
#[derive(Debug, Default)]
pub struct Pe {
    /// Local time.
    pub time: u64,
    /// Cycles by what it did.
    pub spent: Spent,
    /// The word that triggered the running task.
    pub trigger: u32,
    /// Everything is done.
    pub finished: bool,
    running: Option<u32>,
    pc: u32,
    turn: u64,
    loops: [i64; MAX_DEPTH],
    op: Option<OpState>,
    side: Option<Box<Side>>,
    /// The earliest decision asked for.
    decides: Option<u64>,
    /// Phases entered, with the time.
    pub phases: Vec<(u16, u64)>,
}

/// Ops that run side by side.
#[derive(Debug)]
struct Side {
    ops: Vec<(OpState, Causes)>,
    /// What had been spent when they began.
    before: Spent,
}

/// The streams of one PE.
#[derive(Clone, Copy)]
pub struct Ports<'a> {
    net: &'a Network,
    /// Its index.
    pub pe: u32,
    /// Where it is.
    pub at: Coord,
}

impl<'a> Ports<'a> {
    /// Those of PE `pe`.
    pub fn new(net: &'a Network, pe: u32) -> Self {
        Ports { net, pe, at: net.coord(pe) }
    }

    /// The end behind an input slot.
    pub fn input(&self, slot: usize) -> u32 {
        self.net.input(self.pe as usize, slot)
    }

    /// The stream behind an output slot.
    pub fn output(&self, slot: usize) -> u32 {
        self.net.output(self.pe as usize, slot)
    }
}

/// What a PE works with.
pub struct Cx<'s, 'a> {
    /// Its streams.
    pub ports: Ports<'a>,
    /// Its class.
    pub class: &'a LoweredClass,
    /// All words under way.
    pub links: &'s mut Links<'a>,
    /// Buffers shared by all ops.
    pub scratch: &'s mut Scratch,
    /// Its memory.
    pub memory: &'s mut [u8],
    /// Its tasks.
    pub runs: &'s mut [Runs],
    /// Control words set aside.
    pub controls: &'s mut Controls,
    /// Why its time is what it is.
    pub causes: &'s mut Causes,
    /// Cycles to start a task.
    pub activation: u64,
    /// Compiled ops.
    pub compiled: Option<&'s Compiled>,
    /// Where what it does is noted, if it is.
    pub tracer: Option<&'s mut Tracer>,
}

impl Cx<'_, '_> {
    /// The end behind an input slot, after setting aside control words that come next there.
    pub fn data(&mut self, slot: usize) -> u32 {
        let end = self.ports.input(slot);
        if end == NONE {
            return NONE;
        }
        while let Some(word) = self.links.front(end).filter(|word| word.kind.control) {
            let causes = self.links.arrival_causes(end);
            self.links.take(end, word.time, causes);
            self.controls.entry((self.ports.pe, slot)).or_default().push_back((word.time, causes));
        }
        end
    }
}

/// What a PE does next.
enum Pick {
    Run { task: usize, at: u64 },
    Later(u64),
    Wait,
    Finished,
}

impl Pe {
    /// What affine expressions see.
    pub fn env(&self, ports: &Ports) -> Env {
        Env { x: i64::from(ports.at.x), y: i64::from(ports.at.y), turn: self.turn as i64, loops: self.loops }
    }

    /// Runs as far as possible.
    pub fn run(&mut self, cx: &mut Cx) -> Result<(), OpFault> {
        cx.scratch.waits.clear();
        loop {
            let Some(task) = self.running else {
                match self.pick(cx) {
                    Pick::Run { task, at } => self.begin(task, at, cx),
                    Pick::Later(time) => {
                        if self.decides.is_none_or(|earlier| time < earlier || earlier <= cx.links.clock) {
                            self.decides = Some(time);
                            cx.links.decide_at(time, Decision::Task(cx.ports.pe));
                        }
                        return Ok(());
                    }
                    Pick::Wait => return Ok(()),
                    Pick::Finished => {
                        self.finished = true;
                        return Ok(());
                    }
                }
                continue;
            };
            if !self.step(task as usize, cx)? {
                return Ok(());
            }
        }
    }

    /// Chooses the next task: start tasks in order, then whatever is ready first.
    fn pick(&mut self, cx: &mut Cx) -> Pick {
        let class = cx.class;
        let mut best: Option<(u64, usize)> = None;
        let mut open = 0;
        for (index, task) in class.tasks.iter().enumerate() {
            let times = task.times.at(&self.env(&cx.ports)).max(0) as u64;
            if cx.runs[index].done >= times {
                continue;
            }
            let ready = match task.trigger {
                Trigger::Start => return Pick::Run { task: index, at: self.time },
                Trigger::Local => (cx.runs[index].pending > 0).then_some(self.time),
                Trigger::Data { .. } => {
                    let end = cx.data(task.slot);
                    let front = if end == NONE { None } else { cx.links.front(end) };
                    front.map(|word| word.time.max(self.time))
                }
                Trigger::Control { .. } => {
                    cx.data(task.slot);
                    let first = cx.controls.get(&(cx.ports.pe, task.slot)).and_then(|times| times.front());
                    first.map(|(time, _)| (*time).max(self.time))
                }
            };
            open += 1;
            if let Some(ready) = ready
                && best.is_none_or(|(b, _)| ready < b)
            {
                best = Some((ready, index));
            }
        }
        match best {
            None if open == 0 => Pick::Finished,
            Some((at, task)) if open == 1 || at <= cx.links.clock => Pick::Run { task, at },
            later => {
                self.await_triggers(cx);
                later.map_or(Pick::Wait, |(at, _)| Pick::Later(at))
            }
        }
    }

    fn await_triggers(&self, cx: &mut Cx) {
        for (index, task) in cx.class.tasks.iter().enumerate() {
            let open = cx.runs[index].done < task.times.at(&self.env(&cx.ports)).max(0) as u64;
            if open && matches!(task.trigger, Trigger::Data { .. } | Trigger::Control { .. }) {
                let end = cx.ports.input(task.slot);
                cx.links.await_word(end);
                cx.scratch.waits.push(Wait::Word(end));
            }
        }
    }

    fn begin(&mut self, task: usize, at: u64, cx: &mut Cx) {
        let lowered = &cx.class.tasks[task];
        let late = at > self.time;
        self.spent.wait_data += at - self.time;
        self.time = at;
        match lowered.trigger {
            Trigger::Start => {}
            Trigger::Local => cx.runs[task].pending -= 1,
            Trigger::Data { .. } => {
                let end = cx.ports.input(lowered.slot);
                if let Some(word) = cx.links.front(end) {
                    self.trigger = word.value;
                    if late {
                        *cx.causes = cx.links.arrival_causes(end);
                    }
                    cx.links.take(end, at, *cx.causes);
                }
            }
            Trigger::Control { .. } => {
                let first = cx.controls.get_mut(&(cx.ports.pe, lowered.slot)).and_then(VecDeque::pop_front);
                if let Some((_, causes)) = first.filter(|_| late) {
                    *cx.causes = causes;
                }
            }
        }
        if lowered.trigger != Trigger::Start {
            self.time += cx.activation;
            self.spent.activation += cx.activation;
            cx.causes.add(Cause::TaskActivation, cx.activation);
        }
        self.turn = cx.runs[task].done;
        self.running = Some(task as u32);
        self.pc = 0;
    }

    /// Executes one instruction; false if it must wait.
    fn step(&mut self, task: usize, cx: &mut Cx) -> Result<bool, OpFault> {
        let class = cx.class;
        match &class.tasks[task].code[self.pc as usize] {
            Instr::Op(op) => {
                if !self.single(op, cx)? {
                    return Ok(false);
                }
            }
            Instr::Par(ops) => {
                if !self.side_by_side(ops, cx)? {
                    return Ok(false);
                }
            }
            Instr::Loop { depth, count, end, .. } => {
                self.loops[*depth] = 0;
                if count.at(&self.env(&cx.ports)) <= 0 {
                    self.pc = *end as u32;
                }
            }
            Instr::Next { depth, head } => {
                self.loops[*depth] += 1;
                if let Instr::Loop { count, .. } = &class.tasks[task].code[*head]
                    && self.loops[*depth] < self.count(count, *depth, &cx.ports)
                {
                    self.pc = *head as u32;
                }
            }
            Instr::Control { slot, command } => {
                if !self.send_control(cx.ports.output(*slot), *command, cx) {
                    return Ok(false);
                }
            }
            Instr::Activate(other) => cx.runs[*other].pending += 1,
            Instr::Serial { cycles, times, what } => {
                let cycles = cycles * times.at(&self.env(&cx.ports)).max(0) as u64;
                self.time += cycles;
                match what {
                    Serial::Tasks => self.spent.activation += cycles,
                    _ => self.spent.issue += cycles,
                }
                let tasks = *what == Serial::Tasks;
                cx.causes.add(if tasks { Cause::TaskActivation } else { Cause::Issue }, cycles);
            }
            Instr::Phase(phase) => self.phases.push((*phase as u16, self.time)),
            Instr::End => {
                cx.runs[task].done += 1;
                self.running = None;
                return Ok(true);
            }
        }
        self.pc += 1;
        Ok(true)
    }

    /// The count of a loop as it was at its head.
    fn count(&self, count: &Linear, depth: usize, ports: &Ports) -> i64 {
        if let Some(count) = count.as_constant() {
            return count;
        }
        let mut env = self.env(ports);
        env.loops[depth] = 0;
        count.at(&env)
    }

    fn send_control(&mut self, stream: u32, command: Command, cx: &mut Cx) -> bool {
        let Some(free) = cx.links.next_room(stream) else {
            cx.links.await_room(stream);
            cx.scratch.waits.push(Wait::Room(stream));
            return false;
        };
        let start = self.time.max(free.saturating_sub(1));
        if start > self.time {
            *cx.causes = cx.links.room_causes(stream).until(start + 1, Cause::Queue);
        } else {
            cx.causes.add(Cause::Busy, 1);
        }
        self.spent.wait_room += start - self.time;
        self.spent.busy += 1;
        self.time = start + 1;
        cx.links.send(stream, self.time, 0, control(command), *cx.causes);
        true
    }

    /// Runs one op; false if it must wait.
    fn single(&mut self, op: &LoweredOp, cx: &mut Cx) -> Result<bool, OpFault> {
        let mut state = self.op.take().unwrap_or_else(|| OpState::at(self.time));
        let mut causes = *cx.causes;
        let wait = ops::run(op, &mut state, self, &mut causes, cx)?;
        *cx.causes = causes;
        if let Some(wait) = wait {
            ask(wait, cx);
            self.op = Some(state);
            return Ok(false);
        }
        if let Some(tracer) = cx.tracer.as_deref_mut() {
            tracer.span(cx.ports.pe, op.kind.name(), self.time, state.ready);
        }
        self.time = state.ready;
        Ok(true)
    }

    /// Runs ops side by side; false if any must wait.
    fn side_by_side(&mut self, ops: &[LoweredOp], cx: &mut Cx) -> Result<bool, OpFault> {
        let mut side = self.side.take().unwrap_or_else(|| {
            let fresh = (OpState::at(self.time), *cx.causes);
            Box::new(Side { ops: vec![fresh; ops.len()], before: self.spent })
        });
        let mut waits = false;
        for (op, (state, causes)) in ops.iter().zip(&mut side.ops) {
            if !state.complete
                && let Some(wait) = ops::run(op, state, self, causes, cx)?
            {
                ask(wait, cx);
                waits = true;
            }
        }
        if waits {
            self.side = Some(side);
            return Ok(false);
        }
        if let Some((state, causes)) = side.ops.iter().rev().max_by_key(|(state, _)| state.ready) {
            if let Some(tracer) = cx.tracer.as_deref_mut() {
                tracer.span(cx.ports.pe, "par", self.time, state.ready);
            }
            *cx.causes = *causes;
            if ops.len() > 1 {
                self.settle(side.before, state.ready);
            }
            self.time = state.ready;
        }
        Ok(true)
    }

    /// Side by side, ops are busy at the same time: what they spent together may not exceed the time that passed.
    fn settle(&mut self, before: Spent, end: u64) {
        let passed = end - self.time;
        let busy = (self.spent.busy - before.busy).min(passed);
        self.spent =
            Spent { busy: before.busy + busy, wait_data: before.wait_data + (passed - busy), ..before };
    }
}

/// Asks to be woken.
fn ask(wait: Wait, cx: &mut Cx) {
    match wait {
        Wait::Word(end) => cx.links.await_word(end),
        Wait::Room(stream) => cx.links.await_room(stream),
    }
    cx.scratch.waits.push(wait);
}
