//! A PE: the task it runs, and how far it has come.

use super::cause::{Cause, Causes};
use super::links::{Decision, control};
use super::ops::{self, OpFault, OpState, Wait};
use super::ports::{Cx, Ports};
use super::tasks::Pick;
use crate::lower::{Env, Instr, Linear, LoweredOp, MAX_DEPTH};
use crate::program::{Command, Serial};

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
    /// The task that runs.
    pub running: Option<u32>,
    /// Its next instruction.
    pub pc: u32,
    /// Earlier runs of it.
    pub turn: u64,
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
            Instr::Loop { depth, count, length, .. } => {
                self.loops[*depth] = 0;
                if count.at(&self.env(&cx.ports)) <= 0 {
                    self.pc += *length as u32;
                }
            }
            Instr::Next { depth, length } => {
                self.loops[*depth] += 1;
                if let Instr::Loop { count, .. } = &class.tasks[task].code[self.pc as usize - length]
                    && self.loops[*depth] < self.count(count, *depth, &cx.ports)
                {
                    self.pc -= *length as u32;
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
