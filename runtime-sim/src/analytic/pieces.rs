//! The code of a PE as pieces: its outermost statements, each with its price and its words.

use crate::flow::Profile;
use crate::lower::{Code, Env, Instr, LoweredClass, LoweredOp, LoweredTask};
use crate::program::Trigger;

/// One piece.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// What it costs and moves.
    pub profile: Profile,
    /// Cycles that start tasks, part of the work.
    pub activation: f64,
    /// Exchanges, where a PE sends and takes side by side: by input slot, how many there are.
    pub exchanges: Vec<(usize, u64)>,
    /// Phases that begin with it.
    pub phases: Vec<u16>,
    /// By stream written: words that one iteration sends, and from the first to the last of them.
    pub bursts: Vec<(u64, f64)>,
    /// It runs beside the piece before it.
    pub beside: bool,
    /// Task and place of the loop that it is, if the loop is in no other.
    pub head: Option<(usize, usize)>,
}

/// The pieces of a PE of `class` in the order of execution; tasks that words or other tasks start are one piece, the last.
pub fn pieces(class: &LoweredClass, mut env: Env, activation: f64) -> Vec<Piece> {
    let mut out = Pieces::default();
    let started = |task: &&LoweredTask| task.trigger == Trigger::Start;
    for (number, task) in class.tasks.iter().enumerate().filter(|(_, task)| started(task)) {
        for turn in 0..task.times.at(&env).max(0) {
            env.turn = turn;
            out.task = number;
            out.sequence(&task.code, 0..task.code.len(), &mut env);
        }
    }
    let mut rest = Piece::default();
    for task in class.tasks.iter().filter(|task| !started(task)) {
        awaited(task, &mut env, activation, &mut rest);
    }
    rest.bursts = bursts(&rest.profile);
    if rest.profile.work > 0.0 {
        out.done.push(rest);
    }
    out.done
}

/// Adds all runs of a task that something starts.
fn awaited(task: &LoweredTask, env: &mut Env, activation: f64, piece: &mut Piece) {
    let times = task.times.at(env).max(0) as u64;
    let differ = task.code.iter().any(Instr::length_varies_by_turn);
    let (turns, each) = if differ { (times, 1) } else { (times.min(1), times) };
    for turn in 0..turns {
        env.turn = turn as i64;
        let mut once = Profile { work: activation, ..Profile::default() };
        if let Trigger::Data { .. } = task.trigger {
            once.reads.push(crate::flow::Access::new(task.slot, 1, 0.0, 0.0));
        }
        once.append(&Profile::of(&task.code, 0..task.code.len(), env));
        piece.profile.append(&once.times(each));
        piece.activation += activation * each as f64;
        add(&mut piece.exchanges, exchanges(&task.code, 0..task.code.len(), env), each);
    }
    env.turn = 0;
}

/// Pieces under construction.
#[derive(Default)]
struct Pieces {
    done: Vec<Piece>,
    phases: Vec<u16>,
    /// The task that is looked at, and how many loops with phases are around.
    task: usize,
    around: usize,
}

impl Pieces {
    fn sequence(&mut self, code: &Code, range: std::ops::Range<usize>, env: &mut Env) {
        let mut pc = range.start;
        while pc < range.end {
            let mut last = pc;
            match &code[pc] {
                Instr::Phase(phase) => self.phases.push(*phase as u16),
                Instr::Loop { depth, count, length, .. } => {
                    last = pc + length;
                    let inside = pc + 1..last;
                    if code.within(inside.clone()).iter().any(|i| matches!(i, Instr::Phase(_))) {
                        for i in 0..count.at(env).max(0) {
                            env.loops[*depth] = i;
                            self.around += 1;
                            self.sequence(code, inside.clone(), env);
                            self.around -= 1;
                        }
                        env.loops[*depth] = 0;
                    } else {
                        self.repeat(code, pc, env);
                    }
                }
                Instr::Par(ops) => self.side_by_side(ops, env),
                Instr::Op(_) | Instr::Serial { .. } => self.push(code, pc..pc + 1, env),
                Instr::Control { .. } => {
                    self.add(Piece {
                        profile: Profile { work: 1.0, busy: 1.0, ..Profile::default() },
                        ..Piece::default()
                    });
                }
                Instr::Next { .. } | Instr::Activate(_) | Instr::End => {}
            }
            pc = last + 1;
        }
    }

    fn push(&mut self, code: &Code, range: std::ops::Range<usize>, env: &mut Env) {
        let profile = Profile::of(code, range, env);
        if profile.work > 0.0 {
            let bursts = bursts(&profile);
            self.add(Piece { profile, bursts, ..Piece::default() });
        }
    }

    /// The loop whose head is at `head`, as one piece.
    fn repeat(&mut self, code: &Code, head: usize, env: &mut Env) {
        let Instr::Loop { length, varies, .. } = &code[head] else { return };
        let end = head + length;
        let profile = Profile::of(code, head..end + 1, env);
        if profile.work > 0.0 {
            let once = if *varies { profile.clone() } else { Profile::of(code, head + 1..end, env) };
            let exchanges = exchanges(code, head..end + 1, env);
            let head = (self.around == 0).then_some((self.task, head));
            self.add(Piece { bursts: bursts(&once), profile, exchanges, head, ..Piece::default() });
        }
    }

    /// Ops side by side: those that only send wait for nobody, so they are a piece beside the others.
    fn side_by_side(&mut self, ops: &[LoweredOp], env: &mut Env) {
        let takes = |op: &&LoweredOp| op.src.iter().any(|source| source.stream().is_some());
        let (take, rest): (Vec<&LoweredOp>, Vec<&LoweredOp>) = ops.iter().partition(takes);
        let profile = |ops: Vec<&LoweredOp>, env: &mut Env| {
            Profile::of(&vec![Instr::Par(ops.into_iter().cloned().collect())].into(), 0..1, env)
        };
        let (mut take, rest) = (profile(take, env), profile(rest, env));
        let both = take.work > 0.0 && rest.work > 0.0;
        take.busy = (take.busy - rest.busy).max(0.0);
        take.issue = (take.issue - rest.issue).max(0.0);
        if rest.work > 0.0 {
            self.add(Piece { bursts: bursts(&rest), profile: rest, ..Piece::default() });
        }
        if take.work > 0.0 {
            self.add(Piece { bursts: bursts(&take), profile: take, beside: both, ..Piece::default() });
        }
    }

    /// Appends a piece; what only computes joins what only computes.
    fn add(&mut self, piece: Piece) {
        let silent = |p: &Piece| p.profile.reads.is_empty() && p.profile.writes.is_empty();
        match self.done.last_mut().filter(|last| silent(last) && silent(&piece)) {
            Some(last) if self.phases.is_empty() && !piece.beside => last.profile.append(&piece.profile),
            _ => {
                let phases = std::mem::take(&mut self.phases);
                self.done.push(Piece { phases, ..piece });
            }
        }
    }
}

fn bursts(once: &Profile) -> Vec<(u64, f64)> {
    once.writes.iter().map(|access| (access.words, access.last - access.first)).collect()
}

/// How often a PE sends and takes side by side, by the slot it takes from.
fn exchanges(code: &Code, range: std::ops::Range<usize>, env: &mut Env) -> Vec<(usize, u64)> {
    let mut found = Vec::new();
    let mut pc = range.start;
    while pc < range.end {
        match &code[pc] {
            Instr::Loop { depth, count, length, .. } => {
                let n = count.at(env).max(0) as u64;
                if n > 0 {
                    env.loops[*depth] = 0;
                    add(&mut found, exchanges(code, pc + 1..pc + length, env), n);
                }
                pc += length;
            }
            Instr::Par(ops) => {
                let runs = |op: &&LoweredOp| op.elements(env) > 0;
                let sends =
                    ops.iter().filter(runs).any(|op| matches!(op.dst, crate::lower::Sink::Out { .. }));
                let taken =
                    ops.iter().filter(runs).flat_map(|op| &op.src).filter_map(|source| source.stream());
                if sends {
                    add(&mut found, taken.map(|(slot, _)| (slot, 1)).collect(), 1);
                }
            }
            _ => {}
        }
        pc += 1;
    }
    found
}

fn add(sums: &mut Vec<(usize, u64)>, more: Vec<(usize, u64)>, times: u64) {
    for (slot, n) in more {
        match sums.iter_mut().find(|sum| sum.0 == slot) {
            Some(sum) => sum.1 += n * times,
            None => sums.push((slot, n * times)),
        }
    }
}
