//! A PE: its memory, the task it runs, and how far it has come.

use super::links::{Content, Links};
use super::ops::{self, OpFault, OpState, Scratch, Wait};
use crate::lower::{Env, Instr, LoweredClass, MAX_DEPTH};
use crate::network::{NONE, Network};
use crate::program::{Command, Coord, Trigger};
use std::collections::VecDeque;

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
struct Runs {
    done: u64,
    pending: u64,
}

/// State of a PE.
#[derive(Debug, Default)]
pub struct Pe {
    /// Memory image, as long as the class uses.
    pub memory: Box<[u8]>,
    /// Local time.
    pub time: u64,
    /// Cycles by what it did.
    pub spent: Spent,
    /// The word that triggered the running task.
    pub trigger: u32,
    /// Everything is done.
    pub finished: bool,
    /// What it waits for; empty when it can go on.
    pub waits: Vec<Wait>,
    running: Option<u32>,
    pc: u32,
    turn: u64,
    loops: [i64; MAX_DEPTH],
    ops: Vec<OpState>,
    /// What had been spent when the running group of ops began.
    mark: Spent,
    runs: Box<[Runs]>,
    /// Arrival times of control words that no task has handled yet, by input slot.
    controls: Vec<(usize, VecDeque<u64>)>,
    /// Phases entered, with the time.
    pub phases: Vec<(u16, u64)>,
}

/// The streams of one PE.
#[derive(Clone, Copy)]
pub struct Ports<'a> {
    net: &'a Network,
    pe: usize,
    /// Where the PE is.
    pub at: Coord,
}

impl<'a> Ports<'a> {
    /// Those of PE `pe`.
    pub fn new(net: &'a Network, pe: u32) -> Self {
        Ports { net, pe: pe as usize, at: net.coord(pe) }
    }

    /// The end behind an input slot.
    pub fn input(&self, slot: usize) -> u32 {
        self.net.input(self.pe, slot)
    }

    /// The stream behind an output slot.
    pub fn output(&self, slot: usize) -> u32 {
        self.net.output(self.pe, slot)
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
    /// A PE of `class` before the start.
    pub fn new(class: &LoweredClass) -> Self {
        Pe {
            memory: vec![0; class.memory as usize].into_boxed_slice(),
            runs: vec![Runs::default(); class.tasks.len()].into_boxed_slice(),
            ..Pe::default()
        }
    }

    /// What affine expressions see.
    pub fn env(&self, ports: &Ports) -> Env {
        Env { x: i64::from(ports.at.x), y: i64::from(ports.at.y), turn: self.turn as i64, loops: self.loops }
    }

    /// The next data word at an input, after setting aside control words before it.
    pub fn front(&mut self, ports: &Ports, slot: usize, links: &mut Links) -> Option<(u64, u32)> {
        let end = ports.input(slot);
        if end == NONE {
            return None;
        }
        loop {
            let (time, word) = links.front(end)?;
            if !word.control {
                return Some((time, word.value));
            }
            links.take(end, time);
            match self.controls.iter_mut().find(|(s, _)| *s == slot) {
                Some((_, times)) => times.push_back(time),
                None => self.controls.push((slot, VecDeque::from([time]))),
            }
        }
    }

    /// Runs as far as possible. Returns a time if it wants to be woken then, whatever else happens.
    pub fn run(
        &mut self,
        class: &LoweredClass,
        ports: &Ports,
        links: &mut Links,
        activation: u64,
        scratch: &mut Scratch,
    ) -> Result<Option<u64>, OpFault> {
        self.waits.clear();
        loop {
            let Some(task) = self.running else {
                match self.pick(class, ports, links) {
                    Pick::Run { task, at } => self.begin(class, task, at, activation, ports, links),
                    Pick::Later(time) => return Ok(Some(time)),
                    Pick::Wait => return Ok(None),
                    Pick::Finished => {
                        self.finished = true;
                        return Ok(None);
                    }
                }
                continue;
            };
            if !self.step(class, task as usize, ports, links, scratch)? {
                return Ok(None);
            }
        }
    }

    /// Chooses the next task: start tasks in order, then whatever is ready first.
    fn pick(&mut self, class: &LoweredClass, ports: &Ports, links: &mut Links) -> Pick {
        let mut best: Option<(u64, usize)> = None;
        let mut open = Vec::new();
        for (index, task) in class.tasks.iter().enumerate() {
            let env = self.env(ports);
            let remaining = task.times.at(&env).max(0) as u64;
            if self.runs[index].done >= remaining {
                continue;
            }
            let ready = match task.trigger {
                Trigger::Start => return Pick::Run { task: index, at: self.time },
                Trigger::Local => (self.runs[index].pending > 0).then_some(self.time),
                Trigger::Data { .. } => self.front(ports, task.slot, links).map(|(t, _)| t.max(self.time)),
                Trigger::Control { .. } => self.control(ports, task.slot, links).map(|t| t.max(self.time)),
            };
            open.push(index);
            if let Some(ready) = ready
                && best.is_none_or(|(b, _)| ready < b)
            {
                best = Some((ready, index));
            }
        }
        match best {
            None if open.is_empty() => Pick::Finished,
            None => {
                self.await_triggers(class, &open, ports, links);
                Pick::Wait
            }
            Some((at, _)) if open.len() > 1 && at > links.clock => Pick::Later(at),
            Some((at, task)) => Pick::Run { task, at },
        }
    }

    fn await_triggers(&mut self, class: &LoweredClass, open: &[usize], ports: &Ports, links: &mut Links) {
        for &task in open {
            let fabric = matches!(class.tasks[task].trigger, Trigger::Data { .. } | Trigger::Control { .. });
            let end = ports.input(class.tasks[task].slot.min(class.inputs.len().saturating_sub(1)));
            if fabric && end != NONE {
                links.await_word(end);
                self.waits.push(Wait::Word(end));
            }
        }
    }

    /// When the next control word of an input arrived.
    fn control(&mut self, ports: &Ports, slot: usize, links: &mut Links) -> Option<u64> {
        self.front(ports, slot, links);
        self.controls.iter().find(|(s, _)| *s == slot).and_then(|(_, times)| times.front().copied())
    }

    fn begin(
        &mut self,
        class: &LoweredClass,
        task: usize,
        at: u64,
        activation: u64,
        ports: &Ports,
        links: &mut Links,
    ) {
        let lowered = &class.tasks[task];
        self.spent.wait_data += at - self.time;
        self.time = at;
        match lowered.trigger {
            Trigger::Start => {}
            Trigger::Local => self.runs[task].pending -= 1,
            Trigger::Data { .. } => {
                if let Some((_, word)) = self.front(ports, lowered.slot, links) {
                    self.trigger = word;
                    links.take(ports.input(lowered.slot), at);
                }
            }
            Trigger::Control { .. } => {
                if let Some((_, times)) = self.controls.iter_mut().find(|(s, _)| *s == lowered.slot) {
                    times.pop_front();
                }
            }
        }
        if lowered.trigger != Trigger::Start {
            self.time += activation;
            self.spent.activation += activation;
        }
        self.turn = self.runs[task].done;
        self.running = Some(task as u32);
        self.pc = 0;
    }

    /// Executes one instruction; false if it must wait.
    fn step(
        &mut self,
        class: &LoweredClass,
        task: usize,
        ports: &Ports,
        links: &mut Links,
        scratch: &mut Scratch,
    ) -> Result<bool, OpFault> {
        match &class.tasks[task].code[self.pc as usize] {
            Instr::Op(op) => {
                if !self.group(std::slice::from_ref(op), ports, links, scratch)? {
                    return Ok(false);
                }
            }
            Instr::Par(ops) => {
                if !self.group(ops, ports, links, scratch)? {
                    return Ok(false);
                }
            }
            Instr::Loop { depth, count, end, .. } => {
                self.loops[*depth] = 0;
                if count.at(&self.env(ports)) <= 0 {
                    self.pc = *end as u32;
                }
            }
            Instr::Next { depth, head } => {
                self.loops[*depth] += 1;
                if let Instr::Loop { count, .. } = &class.tasks[task].code[*head]
                    && self.loops[*depth] < self.count(count, *depth, ports)
                {
                    self.pc = *head as u32;
                }
            }
            Instr::Control { slot, command } => {
                return Ok(self.send_control(ports.output(*slot), *command, links));
            }
            Instr::Activate(other) => self.runs[*other].pending += 1,
            Instr::Phase(phase) => self.phases.push((*phase as u16, self.time)),
            Instr::End => {
                self.runs[task].done += 1;
                self.running = None;
                return Ok(true);
            }
        }
        self.pc += 1;
        Ok(true)
    }

    /// The count of a loop as it was at its head.
    fn count(&self, count: &crate::lower::Linear, depth: usize, ports: &Ports) -> i64 {
        let mut env = self.env(ports);
        env.loops[depth] = 0;
        count.at(&env)
    }

    fn send_control(&mut self, stream: u32, command: Command, links: &mut Links) -> bool {
        let Some(free) = links.room(stream, 0) else {
            links.await_room(stream);
            self.waits.push(Wait::Room(stream));
            return false;
        };
        let start = self.time.max(free.saturating_sub(1));
        self.spent.wait_room += start - self.time;
        self.spent.busy += 1;
        self.time = start + 1;
        links.send(stream, self.time, Content::Control(command));
        self.pc += 1;
        true
    }

    /// Runs ops side by side; false if any must wait.
    fn group(
        &mut self,
        ops: &[crate::lower::LoweredOp],
        ports: &Ports,
        links: &mut Links,
        scratch: &mut Scratch,
    ) -> Result<bool, OpFault> {
        let mut states = std::mem::take(&mut self.ops);
        if states.is_empty() {
            states.resize(ops.len(), OpState::at(self.time));
            self.mark = self.spent;
        }
        for (op, state) in ops.iter().zip(&mut states) {
            if state.complete {
                continue;
            }
            match ops::run(op, state, self, ports, links, scratch)? {
                None => {}
                Some(wait @ Wait::Word(end)) => {
                    if end != NONE {
                        links.await_word(end);
                    }
                    self.waits.push(wait);
                }
                Some(wait @ Wait::Room(stream)) => {
                    links.await_room(stream);
                    self.waits.push(wait);
                }
            }
        }
        let done = self.waits.is_empty();
        if done {
            let end = states.iter().map(|s| s.ready).max().unwrap_or(self.time);
            if ops.len() > 1 {
                self.settle(end);
            }
            self.time = end;
            states.clear();
        }
        self.ops = states;
        Ok(done)
    }

    /// Side by side, ops are busy at the same time: what they spent together may not exceed the time that passed.
    fn settle(&mut self, end: u64) {
        let before = self.mark;
        let passed = end - self.time;
        let busy = (self.spent.busy - before.busy).min(passed);
        self.spent =
            Spent { busy: before.busy + busy, wait_data: before.wait_data + (passed - busy), ..before };
    }
}
