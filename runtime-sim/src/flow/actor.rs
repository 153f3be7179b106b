//! A PE at work: tasks, their statements and phases.

use super::bursts::Burst;
use super::pe::{OpState, Pe};
use super::profile::{Access, Profile};
use super::spans::Spans;
use super::streams::Streams;
use super::work::{Work, Works};
use crate::lower::{Env, Instr, LoweredClass, LoweredOp, Sink, Source};
use crate::network::{NONE, Network};
use crate::program::{Coord, Trigger};

/// A PE with all it needs.
pub struct Actor<'a, 'n> {
    /// The network.
    pub net: &'n Network,
    /// Its class.
    pub class: &'n LoweredClass,
    /// Pieces of all code that only compute.
    pub works: &'n Works,
    /// Its index.
    pub index: usize,
    /// Its place.
    pub at: Coord,
    /// Cycles to start a task.
    pub activation: f64,
    /// All streams.
    pub streams: &'a mut Streams<'n>,
    /// Its state.
    pub pe: &'a mut Pe,
    /// When phases begin and end.
    pub spans: &'a mut Spans,
    /// Instructions executed.
    pub steps: &'a mut u64,
}

impl Actor<'_, '_> {
    /// What affine expressions see.
    pub fn env(&self) -> Env {
        let (x, y) = (i64::from(self.at.x), i64::from(self.at.y));
        Env { x, y, turn: self.pe.turn as i64, loops: self.pe.loops }
    }

    /// Runs as far as words are known.
    pub fn run(&mut self) {
        if self.pe.finished {
            return;
        }
        self.pe.waits_for = NONE;
        loop {
            let go_on = match self.pe.running {
                Some(task) => self.step(task),
                None => self.pick(),
            };
            if !go_on {
                return;
            }
        }
    }

    /// Starts the next task; false if there is none or it must wait.
    fn pick(&mut self) -> bool {
        let mut open = Vec::new();
        let mut best: Option<(f64, usize)> = None;
        for (index, task) in self.class.tasks.iter().enumerate() {
            let times = task.times.at(&self.env()).max(0) as u64;
            let (done, pending) = self.pe.runs[index];
            if done >= times {
                continue;
            }
            open.push(index);
            let ready = match task.trigger {
                Trigger::Start => Some(f64::NEG_INFINITY),
                Trigger::Local => (pending > 0).then_some(self.pe.time),
                Trigger::Data { .. } | Trigger::Control { .. } => {
                    let end = self.net.input(self.index, task.slot);
                    self.streams.rhythm(end, 1).map(|r| r.first)
                }
            };
            if let Some(ready) = ready
                && best.is_none_or(|(b, _)| ready < b)
            {
                best = Some((ready, index));
            }
        }
        match best {
            Some((ready, task)) => self.begin(task, ready, open.len() == 1),
            None if open.is_empty() => self.finish(),
            None => {
                for task in open {
                    if let Trigger::Data { .. } = self.class.tasks[task].trigger {
                        self.wait(self.class.tasks[task].slot);
                    }
                }
                false
            }
        }
    }

    /// Ends, once everything that was read on credit has come.
    fn finish(&mut self) -> bool {
        self.pe.finished = self.settle();
        false
    }

    /// Takes over when everything that was read on credit came; false if some of it has not.
    fn settle(&mut self) -> bool {
        while let Some(&end) = self.pe.credit.last() {
            let Some(arrival) = self.streams.settled(end) else {
                self.pe.waits_for = end;
                self.streams.wait(end);
                return false;
            };
            self.note_word(end, arrival);
            self.pe.time = self.pe.time.max(arrival);
            self.pe.credit.pop();
        }
        true
    }

    /// Notes that the PE waits until a word arrived at an end.
    fn note_word(&mut self, end: u32, arrival: f64) {
        if self.streams.explains {
            let spent = self.pe.spent();
            self.pe.held.word(end, self.pe.time, arrival, spent);
        }
    }

    /// Waits for words on an input.
    pub fn wait(&mut self, slot: usize) {
        let end = self.net.input(self.index, slot);
        self.pe.waits_for = end;
        self.streams.wait(end);
    }

    /// Begins a task; a data task that runs alone takes all triggers of one rhythm at once.
    fn begin(&mut self, task: usize, ready: f64, alone: bool) -> bool {
        let lowered = &self.class.tasks[task];
        let (done, pending) = self.pe.runs[task];
        self.pe.turn = done;
        if let Trigger::Data { .. } = lowered.trigger {
            let times = lowered.times.at(&self.env()).max(0) as u64;
            let simple = alone
                && self.streams.exact.is_none()
                && !lowered.code.iter().any(Instr::length_varies_by_turn);
            if simple && self.triggers(task, times - done) > 0 {
                return true;
            }
            let end = self.net.input(self.index, lowered.slot);
            self.streams.take(end, 1);
            self.streams.note_taken(end, Burst::even(1, self.pe.time.max(ready), 0.0, 1, 0.0));
            self.note_word(end, ready);
        }
        self.pe.time = self.pe.time.max(ready);
        if lowered.trigger != Trigger::Start {
            self.pe.time += self.activation;
            self.pe.activation += self.activation;
        }
        if lowered.trigger == Trigger::Local {
            self.pe.runs[task].1 = pending - 1;
        }
        self.pe.running = Some(task);
        self.pe.pc = 0;
        true
    }

    /// Runs a data task for as many triggers as keep one rhythm; returns how many.
    fn triggers(&mut self, task: usize, left: u64) -> u64 {
        let lowered = &self.class.tasks[task];
        if lowered
            .code
            .iter()
            .any(|i| matches!(i, Instr::Phase(_) | Instr::Activate(_) | Instr::Control { .. }))
        {
            return 0;
        }
        let mut profile = Profile::of(&lowered.code, 0..lowered.code.len(), &mut self.env());
        if profile.reads.iter().any(|a| a.slot == lowered.slot) {
            return 0;
        }
        for access in profile.reads.iter_mut().chain(&mut profile.writes) {
            access.first += self.activation;
            access.last += self.activation;
            access.held = (access.held.0 + self.activation, access.held.1 + self.activation);
        }
        profile.reads.push(Access::new(lowered.slot, 1, 0.0, 0.0));
        profile.work += self.activation;
        let runs = self.bulk(&profile, left);
        self.pe.activation += runs as f64 * self.activation;
        self.pe.runs[task].0 += runs;
        runs
    }

    /// Executes one instruction; false if it must wait.
    fn step(&mut self, task: usize) -> bool {
        let class = self.class;
        let code = &class.tasks[task].code;
        *self.steps += 1;
        if let Some(looping) = self.pe.looping.take() {
            return self.go_on(code, looping);
        }
        if self.pe.pc >= self.pe.stop {
            self.settle();
            return false;
        }
        let (segment, place) = code.locate(self.pe.pc);
        if let Some(work) = self.works[segment][place].filter(|w| self.pe.pc + w.count <= self.pe.stop) {
            self.compute(work);
            return true;
        }
        match &code[self.pe.pc] {
            Instr::Op(op) if !op.streams() && !op.src.iter().any(|s| matches!(s, Source::Scalar { .. })) => {
                self.memory_op(op);
            }
            Instr::Op(op) => {
                if !self.group(std::slice::from_ref(op)) {
                    return false;
                }
            }
            Instr::Par(ops) => {
                if !self.group(ops) {
                    return false;
                }
            }
            Instr::Loop { depth, .. } => {
                self.pe.loops[*depth] = 0;
                let head = self.pe.pc;
                self.pe.profiles.retain(|(of, _)| *of != head);
                self.pe.beats.retain(|beat| beat.head != head);
                self.iterate(head);
                return true;
            }
            Instr::Next { depth, length } => {
                self.pe.loops[*depth] += 1;
                self.iterate(self.pe.pc - length);
                return true;
            }
            Instr::Control { .. } => {
                self.pe.time += 1.0;
                self.pe.busy += 1.0;
            }
            Instr::Activate(other) => self.pe.runs[*other].1 += 1,
            Instr::Serial { cycles, times, .. } => {
                let cycles = (cycles * times.at(&self.env()).max(0) as u64) as f64;
                self.pe.time += cycles;
                self.pe.issue += cycles;
            }
            Instr::Phase(phase) => self.spans.enter(self.pe, *phase as u16, self.pe.time),
            Instr::End => {
                self.pe.runs[task].0 += 1;
                self.pe.running = None;
                return true;
            }
        }
        self.pe.pc += 1;
        true
    }

    fn compute(&mut self, work: Work) {
        self.pe.time += work.busy + work.issue;
        self.pe.busy += work.busy;
        self.pe.issue += work.issue;
        self.pe.pc += work.count;
    }

    fn memory_op(&mut self, op: &LoweredOp) {
        let elements = op.elements(&self.env());
        if elements > 0 {
            let cycles = op.memory_cycles(&self.env()) as f64;
            let issue = op.price.issue as f64;
            self.pe.time += cycles + issue;
            self.pe.busy += cycles;
            self.pe.issue += issue;
        }
    }

    /// Runs ops side by side; false if any must wait.
    fn group(&mut self, ops: &[LoweredOp]) -> bool {
        if self.pe.ops.is_empty() {
            let state = OpState { ready: self.pe.time, ..OpState::default() };
            self.pe.ops.resize(ops.len(), state);
            if ops.len() > 1 && self.streams.explains {
                let streams = ops.iter().map(|op| match op.dst {
                    Sink::Out { slot, .. } => self.net.output(self.index, slot),
                    Sink::Mem(_) => NONE,
                });
                let spent = self.pe.spent();
                self.pe.held.side_by_side(streams, self.pe.time, spent);
            }
        }
        let mut done = true;
        for (k, op) in ops.iter().enumerate() {
            if !self.pe.ops[k].done {
                self.pe.held.at_op(k);
                done &= self.op(op, k);
            }
        }
        if done {
            let before = self.pe.time;
            self.pe.time = self.pe.ops.iter().map(|o| o.ready).fold(before, f64::max);
            let spent = self.pe.spent();
            self.pe.held.together(self.pe.ops.iter().map(|op| op.ready), spent);
            self.pe.ops.clear();
        }
        done
    }
}
