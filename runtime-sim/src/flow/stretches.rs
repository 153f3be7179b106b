//! The code of all PEs, cut where phases begin: within a stretch a PE exchanges words with few others.

use crate::canonical::Canonical;
use crate::lower::{Code, Instr, LoweredClass};
use crate::network::{Network, Target};
use crate::program::Trigger;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The stretches of a program.
#[derive(Debug, Default)]
pub struct Stretches {
    /// How many there are.
    pub count: usize,
    /// By class: its pieces, none for a class without tasks.
    pieces: Vec<Vec<Piece>>,
}

/// What a class does in a stretch.
#[derive(Debug, Default)]
pub struct Piece {
    /// Its first instruction.
    pub start: usize,
    /// Where it ends: the first instruction behind it, or beyond all code.
    pub stop: usize,
    /// Number of its code: pieces of one number do the same to time if what depends on the place is the same.
    pub number: u32,
    /// Its code.
    code: Arc<Canonical>,
}

impl Deref for Piece {
    type Target = Canonical;

    fn deref(&self) -> &Canonical {
        &self.code
    }
}

impl Stretches {
    /// Those of the classes in use; none if a PE has more than one task, or one that does not run once from the start.
    pub fn of(net: &Network, classes: &[LoweredClass]) -> Option<Self> {
        let used: BTreeSet<u16> = net.traced_pes().map(|(_, class)| class).collect();
        let mut marks: Vec<Vec<(usize, usize)>> = vec![Vec::new(); classes.len()];
        for &class in &used {
            match &classes[usize::from(class)].tasks[..] {
                [] => {}
                [task] if task.trigger == Trigger::Start && task.times.as_constant() == Some(1) => {
                    marks[usize::from(class)] = phases(&task.code);
                }
                _ => return None,
            }
        }
        let working = || used.iter().map(|c| usize::from(*c)).filter(|c| !classes[*c].tasks.is_empty());
        let names = |class: usize| marks[class].iter().map(|mark| mark.0).collect::<Vec<_>>();
        let first = working().next().map(names).unwrap_or_default();
        let cut = working().all(|class| names(class) == first);
        let count = if cut { first.len().max(1) } else { 1 };
        let mut codes = Codes::default();
        let mut cut_class = |class: usize| {
            let Some(task) = classes[class].tasks.first().filter(|_| used.contains(&(class as u16))) else {
                return Vec::new();
            };
            let starts = |n: usize| if n == 0 { 0 } else { marks[class][n].1 };
            let piece = |n: usize| {
                let last = n + 1 == count;
                let (start, end) = (starts(n), if last { task.code.len() } else { starts(n + 1) });
                let (number, code) = codes.of(&task.code, start..end);
                Piece { start, stop: if last { usize::MAX } else { end }, number, code }
            };
            (0..count).map(piece).collect()
        };
        let pieces = (0..classes.len()).map(&mut cut_class).collect();
        Some(Stretches { count, pieces })
    }

    /// The same code in fewer stretches: one in which no PE reads words or sends any to another belongs to the one before.
    pub fn joined(&self, net: &Network, classes: &[LoweredClass]) -> Self {
        let silent = self.silent(net);
        let starts: Vec<usize> = (0..self.count).filter(|n| *n == 0 || !silent[*n]).collect();
        let mut codes = Codes::default();
        let mut join = |(pieces, class): (&Vec<Piece>, &LoweredClass)| {
            let Some(task) = class.tasks.first().filter(|_| !pieces.is_empty()) else { return Vec::new() };
            let piece = |n: usize| {
                let behind = starts.get(n + 1).copied().unwrap_or(self.count);
                let (start, stop) = (pieces[starts[n]].start, pieces[behind - 1].stop);
                let (number, code) = codes.of(&task.code, start..stop.min(task.code.len()));
                Piece { start, stop, number, code }
            };
            (0..starts.len()).map(piece).collect()
        };
        let pieces = self.pieces.iter().zip(classes).map(&mut join).collect();
        Stretches { count: starts.len(), pieces }
    }

    /// By stretch: whether PEs neither read nor send words to each other in it, as far as the first one of each class tells.
    fn silent(&self, net: &Network) -> Vec<bool> {
        let mut seen = vec![false; self.pieces.len()];
        let mut silent = vec![true; self.count];
        for (pe, class) in net.traced_pes() {
            if std::mem::replace(&mut seen[usize::from(class)], true) {
                continue;
            }
            for (silent, piece) in silent.iter_mut().zip(&self.pieces[usize::from(class)]) {
                let hears = |slot: &usize| {
                    let ends = net.ends_of(net.output(pe as usize, *slot));
                    ends.iter().any(|end| !matches!(end.target, Target::Host(_)))
                };
                *silent &= piece.inputs.is_empty() && !piece.outputs.iter().any(hears);
            }
        }
        silent
    }

    /// What a class does in a stretch; none if it does nothing at all.
    pub fn piece(&self, class: u16, stretch: usize) -> Option<&Piece> {
        self.pieces[usize::from(class)].get(stretch)
    }
}

/// Codes of pieces, each read once.
#[derive(Default)]
struct Codes {
    /// By numbers of segments, where a piece is made of whole ones.
    whole: BTreeMap<Vec<u32>, (u32, Arc<Canonical>)>,
    numbers: BTreeMap<Vec<i64>, u32>,
}

impl Codes {
    fn of(&mut self, code: &Code, range: Range<usize>) -> (u32, Arc<Canonical>) {
        let parts = code.parts();
        let first = parts.partition_point(|(start, _)| *start < range.start);
        let behind = parts.partition_point(|(start, _)| *start < range.end);
        let begins = |part: usize| parts.get(part).map_or(code.len(), |(start, _)| *start);
        if (begins(first), begins(behind)) != (range.start, range.end) {
            return self.read(range.map(|pc| &code[pc]));
        }
        let key: Vec<u32> = parts[first..behind].iter().map(|(_, segment)| segment.number).collect();
        if let Some(known) = self.whole.get(&key) {
            return known.clone();
        }
        let read = self.read(parts[first..behind].iter().flat_map(|(_, segment)| &segment.instrs));
        self.whole.insert(key, read.clone());
        read
    }

    fn read<'a>(&mut self, code: impl IntoIterator<Item = &'a Instr>) -> (u32, Arc<Canonical>) {
        let canonical = Canonical::of(code);
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry(canonical.code.clone()).or_insert(next);
        (number, Arc::new(canonical))
    }
}

/// Phases and where they begin; none if a loop has one inside.
fn phases(code: &Code) -> Vec<(usize, usize)> {
    let mut marks = Vec::new();
    let mut inside = 0;
    for (pc, instr) in code.iter().enumerate() {
        match instr {
            Instr::Loop { .. } => inside += 1,
            Instr::Next { .. } => inside -= 1,
            Instr::Phase(_) if inside > 0 => return Vec::new(),
            Instr::Phase(phase) => marks.push((*phase, pc)),
            _ => {}
        }
    }
    marks
}
