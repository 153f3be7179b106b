//! PEs run as far as their inputs are known; a loop takes as many iterations at once as keep one rhythm.

use super::bursts::{Burst, Bursts, Cursor};
use super::profile::Profile;
use super::rows::{self, Rows};
use crate::check::Checked;
use crate::fabric::FabricSpec;
use crate::lower::{Env, Instr, LoweredClass, LoweredOp, MAX_DEPTH, lower};
use crate::network::{NONE, Network, Target};
use crate::program::{Coord, Trigger, WaferProgram};
use crate::report::Report;
use std::collections::VecDeque;

/// Why a program cannot be timed at this level.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FlowError {
    /// A feature this level leaves out.
    #[error("class `{class}` has {what}, which level flow leaves out: use level event")]
    LeftOut {
        /// The class.
        class: String,
        /// What it has.
        what: &'static str,
    },
    /// PEs wait for each other, whatever the queues hold.
    #[error("cyclic wait: {}", .chain.join("; "))]
    Deadlock {
        /// Each waits for the next.
        chain: Vec<String>,
    },
}

/// Times a checked program without computing its numbers.
pub fn time(program: &Checked<WaferProgram>) -> Result<Report, FlowError> {
    let (program, spec) = (program.get(), program.fabric());
    let classes = lower(program, spec);
    let rows = rows::choose(program, &rows::cover(program), &classes);
    let Ok(net) = rows::network(program, spec, &rows) else { return Ok(Report::default()) };
    run(program, spec, &net, &classes, &rows)
}

/// Whether the PEs of a traced program can all finish if queues never fill.
pub fn finishes(program: &WaferProgram, spec: &FabricSpec, net: &Network) -> Result<(), FlowError> {
    let classes = lower(program, spec);
    let all = Rows { chosen: (0..program.height).collect(), weight: Default::default() };
    run(program, spec, net, &classes, &all).map(|_| ())
}

fn run(
    program: &WaferProgram,
    spec: &FabricSpec,
    net: &Network,
    classes: &[LoweredClass],
    rows: &Rows,
) -> Result<Report, FlowError> {
    supported(program)?;
    let mut engine = Engine::new(program, spec, net, classes);
    engine.feed();
    engine.run();
    match engine.first_stuck() {
        Some(pe) => Err(FlowError::Deadlock { chain: engine.explain(pe) }),
        None => Ok(super::outcome::report(&engine, rows)),
    }
}

fn supported(program: &WaferProgram) -> Result<(), FlowError> {
    for class in &program.classes {
        let switches = class.routes.values().any(|r| r.positions.len() > 1);
        let control = class.tasks.iter().any(|t| matches!(t.trigger, Trigger::Control { .. }));
        let what = match (switches, control) {
            (true, _) => "routes with switch positions",
            (_, true) => "a control task",
            _ => continue,
        };
        return Err(FlowError::LeftOut { class: class.name.clone(), what });
    }
    Ok(())
}

/// State of a PE.
#[derive(Clone, Debug, Default)]
pub struct Pe {
    /// Local time.
    pub time: f64,
    /// Cycles that moved or computed elements.
    pub busy: f64,
    /// Cycles that started ops.
    pub issue: f64,
    /// Cycles that started tasks.
    pub activation: f64,
    /// Phases entered, with the time.
    pub phases: Vec<(u16, f64)>,
    /// Everything is done.
    pub finished: bool,
    running: Option<usize>,
    pc: usize,
    turn: u64,
    loops: [i64; MAX_DEPTH],
    /// Progress of the ops of the running group: steps done, when the next can begin, whether it has begun.
    ops: Vec<OpState>,
    runs: Vec<(u64, u64)>,
    waits_for: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct OpState {
    steps: u64,
    ready: f64,
    begun: bool,
    done: bool,
}

/// State of a run.
pub struct Engine<'a> {
    pub(super) program: &'a WaferProgram,
    pub(super) spec: &'a FabricSpec,
    pub(super) net: &'a Network,
    pub(super) classes: &'a [LoweredClass],
    pub(super) pes: Vec<Option<Box<Pe>>>,
    pub(super) streams: Streams<'a>,
    queue: VecDeque<u32>,
}

/// What is known of all streams.
pub struct Streams<'a> {
    net: &'a Network,
    bursts: Vec<Bursts>,
    cursors: Vec<Cursor>,
    waiting: Vec<bool>,
    woken: Vec<u32>,
}

impl Streams<'_> {
    fn write(&mut self, stream: u32, burst: Burst) {
        self.bursts[stream as usize].push(burst);
        let s = &self.net.streams[stream as usize];
        for end in s.first_end..s.first_end + s.ends {
            if std::mem::take(&mut self.waiting[end as usize])
                && let Target::Pe(pe) = self.net.ends[end as usize].target
            {
                self.woken.push(pe);
            }
        }
    }

    /// Words sent on a stream.
    pub fn sent(&self, stream: u32) -> u64 {
        self.bursts[stream as usize].total
    }

    /// When the last word of a stream arrives at an end.
    pub fn last_arrival(&self, end: u32) -> f64 {
        let e = self.net.ends[end as usize];
        self.bursts[e.stream as usize].last_word() + f64::from(e.latency)
    }
}

/// What the next iterations of a piece of code can do.
struct Pace {
    /// How many have one rhythm.
    runs: u64,
    /// When the first begins.
    start: f64,
    /// From one to the next.
    period: f64,
}

impl<'a> Engine<'a> {
    fn new(
        program: &'a WaferProgram,
        spec: &'a FabricSpec,
        net: &'a Network,
        classes: &'a [LoweredClass],
    ) -> Self {
        let mut pes: Vec<Option<Box<Pe>>> = Vec::new();
        let mut queue = VecDeque::new();
        for (index, class) in net.class_of.iter().enumerate() {
            let traced = *class != u16::MAX && net.is_traced(index);
            pes.push(traced.then(|| {
                Box::new(Pe { runs: vec![(0, 0); classes[*class as usize].tasks.len()], ..Pe::default() })
            }));
            if traced {
                queue.push_back(index as u32);
            }
        }
        let streams = Streams {
            net,
            bursts: vec![Bursts::default(); net.streams.len()],
            cursors: vec![Cursor::default(); net.ends.len()],
            waiting: vec![false; net.ends.len()],
            woken: Vec::new(),
        };
        Engine { program, spec, net, classes, pes, streams, queue }
    }

    /// All words of the host, at the pace of their intervals.
    fn feed(&mut self) {
        for lane in &self.net.host_in {
            let mut start = 0.0;
            for &part in &lane.parts {
                let host = &self.program.host[part as usize];
                let at = |a: &crate::program::Affine| {
                    a.eval(|v| v.at_place(lane.at.x, lane.at.y).unwrap_or(0)).max(0)
                };
                let elements: u64 = host.dims.iter().map(|d| at(d) as u64).product();
                let words = elements / u64::from(host.wire.lanes());
                let gap = f64::from(host.interval.max(1));
                self.streams.write(lane.link, Burst { count: 1, words, start, period: 0.0, gap });
                start += (words + u64::from(host.then.is_some())) as f64 * gap;
            }
        }
    }

    fn run(&mut self) {
        while let Some(index) = self.queue.pop_front() {
            let Some(mut pe) = self.pes[index as usize].take() else { continue };
            let class = &self.classes[self.net.class_of[index as usize] as usize];
            let mut actor = Actor {
                net: self.net,
                class,
                index: index as usize,
                at: self.net.coord(index),
                activation: f64::from(self.spec.task_activation),
                streams: &mut self.streams,
                pe: &mut pe,
            };
            actor.run();
            self.pes[index as usize] = Some(pe);
            self.queue.extend(self.streams.woken.drain(..));
        }
    }

    fn first_stuck(&self) -> Option<u32> {
        self.pes.iter().position(|pe| pe.as_ref().is_some_and(|pe| !pe.finished)).map(|p| p as u32)
    }

    fn explain(&self, first: u32) -> Vec<String> {
        let (mut chain, mut seen, mut next) = (Vec::new(), Vec::new(), first);
        while !seen.contains(&next) {
            seen.push(next);
            let at = self.net.coord(next);
            let Some(pe) = self.pes[next as usize].as_deref().filter(|pe| !pe.finished) else {
                chain.push(format!("PE {at} has finished"));
                break;
            };
            if pe.waits_for == NONE {
                chain.push(format!("PE {at} waits for a task that is not activated"));
                break;
            }
            let stream = self.net.ends[pe.waits_for as usize].stream;
            let described = &self.net.streams[stream as usize];
            let crate::network::Origin::Pe(sender) = described.origin else {
                chain.push(format!(
                    "PE {at} waits for more words of the host on colour {}",
                    described.colour.0
                ));
                break;
            };
            let from = self.net.coord(sender);
            chain.push(format!("PE {at} waits for words on colour {} from PE {from}", described.colour.0));
            next = sender;
        }
        chain
    }
}

/// A PE at work.
struct Actor<'a, 'n> {
    net: &'n Network,
    class: &'n LoweredClass,
    index: usize,
    at: Coord,
    activation: f64,
    streams: &'a mut Streams<'n>,
    pe: &'a mut Pe,
}

impl Actor<'_, '_> {
    fn env(&self) -> Env {
        let (x, y) = (i64::from(self.at.x), i64::from(self.at.y));
        Env { x, y, turn: self.pe.turn as i64, loops: self.pe.loops }
    }

    fn run(&mut self) {
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
                Trigger::Data { .. } | Trigger::Control { .. } => self.arrival(task.slot),
            };
            if let Some(ready) = ready
                && best.is_none_or(|(b, _)| ready < b)
            {
                best = Some((ready, index));
            }
        }
        match best {
            Some((ready, task)) => self.begin(task, ready, open.len() == 1),
            None if open.is_empty() => {
                self.pe.finished = true;
                false
            }
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

    /// When the next word of an input arrives.
    fn arrival(&mut self, slot: usize) -> Option<f64> {
        let end = self.net.input(self.index, slot);
        let cursor = self.cursor(end)?;
        let e = self.net.ends[end as usize];
        self.streams.bursts[e.stream as usize].rhythm(&cursor, 1).map(|r| r.first + f64::from(e.latency))
    }

    fn cursor(&mut self, end: u32) -> Option<Cursor> {
        if end == NONE {
            return None;
        }
        let stream = self.net.ends[end as usize].stream as usize;
        self.streams.bursts[stream].settle(&mut self.streams.cursors[end as usize]);
        Some(self.streams.cursors[end as usize])
    }

    fn wait(&mut self, slot: usize) {
        let end = self.net.input(self.index, slot);
        self.pe.waits_for = end;
        if end != NONE {
            self.streams.waiting[end as usize] = true;
        }
    }

    /// Begins a task; a data task that runs alone takes all triggers of one rhythm at once.
    fn begin(&mut self, task: usize, ready: f64, alone: bool) -> bool {
        let lowered = &self.class.tasks[task];
        let (done, pending) = self.pe.runs[task];
        self.pe.turn = done;
        if let Trigger::Data { .. } = lowered.trigger {
            let times = lowered.times.at(&self.env()).max(0) as u64;
            let simple = alone && !lowered.code.iter().any(Instr::length_varies_by_turn);
            if simple && self.triggers(task, times - done) > 0 {
                return true;
            }
            let end = self.net.input(self.index, lowered.slot);
            self.take(end, 1);
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
        let length = lowered.code.len();
        if lowered
            .code
            .iter()
            .any(|i| matches!(i, Instr::Phase(_) | Instr::Activate(_) | Instr::Control { .. }))
        {
            return 0;
        }
        let mut profile = Profile::of(&lowered.code, 0..length, &mut self.env());
        for access in profile.reads.iter_mut().chain(&mut profile.writes) {
            access.first += self.activation;
            access.last += self.activation;
        }
        let trigger = super::profile::Access { slot: lowered.slot, words: 1, first: 0.0, last: 0.0 };
        match profile.reads.iter().any(|a| a.slot == lowered.slot) {
            true => return 0,
            false => profile.reads.push(trigger),
        }
        profile.work += self.activation;
        let runs = self.bulk(&profile, left);
        self.pe.activation += runs as f64 * self.activation;
        self.pe.runs[task].0 += runs;
        runs
    }

    fn take(&mut self, end: u32, words: u64) {
        let stream = self.net.ends[end as usize].stream as usize;
        self.streams.bursts[stream].advance(&mut self.streams.cursors[end as usize], words);
    }

    /// Executes one instruction; false if it must wait.
    fn step(&mut self, task: usize) -> bool {
        let class = self.class;
        let code = &class.tasks[task].code;
        match &code[self.pe.pc] {
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
            Instr::Loop { depth, count, end, varies } => {
                self.pe.loops[*depth] = 0;
                let n = count.at(&self.env()).max(0);
                return self.iterate(code, self.pe.pc, *end, *depth, n, *varies);
            }
            Instr::Next { depth, head } => {
                self.pe.loops[*depth] += 1;
                let mut env = self.env();
                env.loops[*depth] = 0;
                if let Instr::Loop { count, end, varies, .. } = &code[*head] {
                    let n = count.at(&env).max(0);
                    return self.iterate(code, *head, *end, *depth, n, *varies);
                }
            }
            Instr::Control { .. } => {
                self.pe.time += 1.0;
                self.pe.busy += 1.0;
            }
            Instr::Activate(other) => self.pe.runs[*other].1 += 1,
            Instr::Phase(phase) => self.pe.phases.push((*phase as u16, self.pe.time)),
            Instr::End => {
                self.pe.runs[task].0 += 1;
                self.pe.running = None;
                return true;
            }
        }
        self.pe.pc += 1;
        true
    }

    /// Goes on with a loop of `n` iterations, in bulk where possible.
    fn iterate(
        &mut self,
        code: &[Instr],
        head: usize,
        end: usize,
        depth: usize,
        n: i64,
        varies: bool,
    ) -> bool {
        let bulk =
            !varies && !code[head + 1..end].iter().any(|i| matches!(i, Instr::Phase(_) | Instr::Activate(_)));
        if bulk && self.pe.loops[depth] + 1 < n {
            let profile = Profile::of(code, head + 1..end, &mut self.env());
            while self.pe.loops[depth] < n {
                let runs = self.bulk(&profile, (n - self.pe.loops[depth]) as u64);
                if runs == 0 {
                    break;
                }
                self.pe.loops[depth] += runs as i64;
            }
        }
        self.pe.pc = if self.pe.loops[depth] < n { head + 1 } else { end + 1 };
        true
    }

    /// Runs up to `most` times what `profile` describes; returns how often it did.
    fn bulk(&mut self, profile: &Profile, most: u64) -> u64 {
        let Some(pace) = self.pace(profile, self.pe.time, most) else { return 0 };
        self.apply(profile, &pace);
        let runs = pace.runs as f64;
        self.pe.time = pace.start + (runs - 1.0) * pace.period + profile.work;
        self.pe.busy += runs * profile.busy;
        self.pe.issue += runs * profile.issue;
        pace.runs
    }

    /// How often, from when and how fast a piece of code can run that is ready at `time`; none if words are missing.
    fn pace(&mut self, profile: &Profile, time: f64, most: u64) -> Option<Pace> {
        let mut lines: Vec<(f64, f64)> = vec![(time, profile.work)];
        let mut runs = most;
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            let cursor = self.cursor(end)?;
            let e = self.net.ends[end as usize];
            let rhythm = self.streams.bursts[e.stream as usize].rhythm(&cursor, access.words)?;
            runs = runs.min(rhythm.reads);
            let latency = f64::from(e.latency);
            let start = (rhythm.first - access.first).max(rhythm.last - access.last) + latency;
            lines.push((start, rhythm.period.max(profile.work)));
        }
        let start = lines.iter().map(|l| l.0).fold(f64::NEG_INFINITY, f64::max);
        let on_top = lines.iter().filter(|l| l.0 >= start - 1e-9);
        let period = on_top.map(|l| l.1).fold(0.0, f64::max);
        for (other, steeper) in lines.iter().filter(|l| l.1 > period + 1e-9) {
            let meet = ((start - other) / (steeper - period)).floor() as u64 + 1;
            runs = runs.min(meet.max(1));
        }
        Some(Pace { runs, start, period })
    }

    /// Takes the words read and publishes those written.
    fn apply(&mut self, profile: &Profile, pace: &Pace) {
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            self.take(end, access.words * pace.runs);
        }
        for access in &profile.writes {
            let stream = self.net.output(self.index, access.slot);
            let gap =
                if access.words > 1 { (access.last - access.first) / (access.words - 1) as f64 } else { 0.0 };
            let (words, start) = (access.words, pace.start + access.first);
            let burst = match access.words {
                1 => Burst { count: 1, words: pace.runs, start, period: 0.0, gap: pace.period },
                _ => Burst { count: pace.runs, words, start, period: pace.period, gap },
            };
            self.streams.write(stream, burst);
        }
    }

    /// Runs ops side by side; false if any must wait.
    fn group(&mut self, ops: &[LoweredOp]) -> bool {
        if self.pe.ops.is_empty() {
            let state = OpState { ready: self.pe.time, ..OpState::default() };
            self.pe.ops.resize(ops.len(), state);
        }
        let mut done = true;
        for (k, op) in ops.iter().enumerate() {
            if !self.pe.ops[k].done {
                done &= self.op(op, k);
            }
        }
        if done {
            let before = self.pe.time;
            let end = self.pe.ops.iter().map(|o| o.ready).fold(before, f64::max);
            self.pe.time = end;
            self.pe.ops.clear();
        }
        done
    }

    /// Runs one op as far as its words are known; false if it must wait.
    fn op(&mut self, op: &LoweredOp, k: usize) -> bool {
        let env = self.env();
        let elements = op.elements(&env);
        if elements == 0 {
            self.pe.ops[k].done = true;
            return true;
        }
        if !op.streams() {
            let profile = Profile::step(op, &env);
            return self.advance(&profile, k, 1, true);
        }
        if !self.pe.ops[k].begun && !self.scalars(op, k) {
            return false;
        }
        let profile = Profile::step(op, &env);
        self.advance(&profile, k, elements / u64::from(op.price.step), false)
    }

    /// Reads the scalar operands of a streaming op and pays its issue.
    fn scalars(&mut self, op: &LoweredOp, k: usize) -> bool {
        let reads = op.src.iter().filter_map(|s| match s {
            crate::lower::Source::Scalar { slot, .. } => Some(*slot),
            _ => None,
        });
        for slot in reads.collect::<Vec<_>>() {
            let Some(arrival) = self.arrival(slot) else {
                self.wait(slot);
                return false;
            };
            let end = self.net.input(self.index, slot);
            self.take(end, 1);
            self.pe.ops[k].ready = self.pe.ops[k].ready.max(arrival);
        }
        self.pe.ops[k].ready += op.price.issue as f64;
        self.pe.issue += op.price.issue as f64;
        self.pe.ops[k].begun = true;
        true
    }

    /// Advances op `k` of the group to `steps` steps.
    fn advance(&mut self, profile: &Profile, k: usize, steps: u64, issue: bool) -> bool {
        while self.pe.ops[k].steps < steps {
            let left = steps - self.pe.ops[k].steps;
            let Some(pace) = self.pace(profile, self.pe.ops[k].ready, left) else {
                self.wait_for_any(profile);
                return false;
            };
            self.apply(profile, &pace);
            let runs = pace.runs as f64;
            let state = &mut self.pe.ops[k];
            state.steps += pace.runs;
            state.ready = pace.start + (runs - 1.0) * pace.period + profile.work;
            self.pe.busy += runs * profile.busy;
            self.pe.issue += if issue { runs * profile.issue } else { 0.0 };
        }
        self.pe.ops[k].done = true;
        true
    }

    /// Waits for the first input that has not enough words.
    fn wait_for_any(&mut self, profile: &Profile) {
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            let known = self.cursor(end).map_or(0, |c| {
                let stream = self.net.ends[end as usize].stream as usize;
                self.streams.bursts[stream].ahead(&c)
            });
            if known < access.words {
                return self.wait(access.slot);
            }
        }
    }
}
