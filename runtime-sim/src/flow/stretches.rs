//! The code of all PEs, cut where phases begin: within a stretch a PE exchanges words with few others.

use crate::canonical::Canonical;
use crate::lower::{Instr, Linear, LoweredClass};
use crate::network::Network;
use crate::parallel;
use crate::program::Trigger;
use std::collections::{BTreeMap, BTreeSet};

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
    /// Number of its code: pieces of one number do the same to time if `placed` is the same.
    pub code: u32,
    /// Input slots by first use.
    pub inputs: Vec<usize>,
    /// Output slots by first use.
    pub outputs: Vec<usize>,
    /// Lengths and counts that depend on the place.
    pub placed: Vec<Linear>,
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
        let numbers: Vec<usize> = (0..classes.len()).collect();
        let cut_class = |class: &usize| {
            let Some(task) = classes[*class].tasks.first().filter(|_| used.contains(&(*class as u16))) else {
                return Vec::new();
            };
            let starts = |n: usize| if n == 0 { 0 } else { marks[*class][n].1 };
            let piece = |n: usize| {
                let (start, end) = (starts(n), if n + 1 == count { task.code.len() } else { starts(n + 1) });
                (start, if n + 1 == count { usize::MAX } else { end }, Canonical::of(&task.code, start..end))
            };
            (0..count).map(piece).collect()
        };
        let canonical: Vec<Vec<(usize, usize, Canonical)>> = parallel::map(&numbers, cut_class);
        let mut known: BTreeMap<Vec<i64>, u32> = BTreeMap::new();
        let mut number = |(start, stop, piece): (usize, usize, Canonical)| {
            let next = known.len() as u32;
            let code = *known.entry(piece.code).or_insert(next);
            Piece { start, stop, code, inputs: piece.inputs, outputs: piece.outputs, placed: piece.placed }
        };
        let pieces =
            canonical.into_iter().map(|class| class.into_iter().map(&mut number).collect()).collect();
        Some(Stretches { count, pieces })
    }

    /// What a class does in a stretch; none if it does nothing at all.
    pub fn piece(&self, class: u16, stretch: usize) -> Option<&Piece> {
        self.pieces[usize::from(class)].get(stretch)
    }
}

/// Phases and where they begin; none if a loop has one inside.
fn phases(code: &[Instr]) -> Vec<(usize, usize)> {
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
