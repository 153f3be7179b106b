//! What PEs of one row of a line send and read more, or less, than those in the same place of another period.

use super::tally::{Body, Tally};
use crate::lower::{Env, Linear, LoweredClass, Segment};
use crate::network::{Line, Network};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What code whose lengths are not the same in all periods moves, for each row of a line.
pub struct Growth {
    first: u32,
    /// By class: its place in `moved`, if it has such code.
    of_class: Vec<Option<usize>>,
    /// For each different sum of such code: what it moves in each row of the line.
    moved: Vec<Vec<Tally>>,
}

/// Words from which on sums are not trusted to be exact.
pub const MOST: u64 = 1 << 56;

impl Growth {
    /// That of the classes of a line; none where it is not the row alone that decides it, or where it is more than words
    /// that are sent and read. `bodies` are those of all segments, by number.
    pub fn along(
        line: &Line,
        net: &Network,
        classes: &[LoweredClass],
        bodies: &[Arc<Body>],
    ) -> Option<Growth> {
        let mut steady = Steady { line, lengths: Vec::new(), segments: vec![None; bodies.len()] };
        let mut in_line = vec![false; classes.len()];
        let pes = net.traced_pes().filter(|(pe, _)| line.span().contains(&(pe / net.width)));
        pes.for_each(|(_, class)| in_line[usize::from(class)] = true);
        let mut different: BTreeMap<Vec<(u64, u32)>, usize> = BTreeMap::new();
        let mut of_class = vec![None; classes.len()];
        for (class, place) in
            classes.iter().zip(&mut of_class).zip(in_line).filter_map(|(c, is)| is.then_some(c))
        {
            let code = steady.rest(class, bodies)?;
            let next = different.len();
            *place = (!code.is_empty()).then(|| *different.entry(code).or_insert(next));
        }
        let mut moved = vec![Vec::new(); different.len()];
        for (code, at) in different {
            let rows = line.span().map(|y| moved_at(y, &code, bodies));
            moved[at] = rows.collect::<Option<_>>()?;
        }
        Some(Growth { first: line.first, of_class, moved })
    }

    /// Whether a class has such code.
    pub fn is_of(&self, class: u16) -> bool {
        self.of_class[usize::from(class)].is_some()
    }

    /// Words that such code of a class reads from an input in a row of the line.
    pub fn read(&self, class: u16, y: u32, slot: usize) -> u64 {
        self.moved(class, y).and_then(|moved| moved.read.get(slot)).map_or(0, |words| *words)
    }

    /// Words that such code of a class sends through an output in a row of the line.
    pub fn sent(&self, class: u16, y: u32, slot: usize) -> u64 {
        self.moved(class, y).and_then(|moved| moved.sent.get(slot)).map_or(0, |words| *words)
    }

    fn moved(&self, class: u16, y: u32) -> Option<&Tally> {
        self.moved[self.of_class[usize::from(class)]?].get((y - self.first) as usize)
    }
}

/// What segments, each run so often, move in a row; none where that is more than a number of words.
fn moved_at(y: u32, code: &[(u64, u32)], bodies: &[Arc<Body>]) -> Option<Tally> {
    let (mut env, mut values, mut sum) =
        (Env { y: i64::from(y), ..Env::default() }, Vec::new(), Tally::default());
    for (times, segment) in code {
        bodies[*segment as usize].once(&mut env, &mut values, |once| sum.add_all(once, *times));
    }
    let few = sum.read.iter().chain(&sum.sent).all(|words| *words < MOST);
    let words_only = sum.controls.is_empty() && sum.activated.is_empty() && !sum.odd && sum.steps == 0;
    (few && words_only).then_some(sum)
}

/// Lengths and code that are the same in all periods of a line.
struct Steady<'l> {
    line: &'l Line,
    /// Lengths that depend on the row, and whether they are.
    lengths: Vec<(Linear, bool)>,
    /// By number, as far as known.
    segments: Vec<Option<bool>>,
}

impl Steady<'_> {
    /// The code of a class that differs between periods, each segment with how often it runs; none where it is more than
    /// the row that decides what it moves.
    fn rest(&mut self, class: &LoweredClass, bodies: &[Arc<Body>]) -> Option<Vec<(u64, u32)>> {
        let mut rest = Vec::new();
        for task in &class.tasks {
            if !self.is_length(&task.times) {
                return None;
            }
            for segment in task.code.segments().filter(|segment| !self.is_segment(segment)) {
                let body = &bodies[segment.number as usize];
                match body.depends_on() {
                    None => {}
                    Some(1) if !body.has_steps() => {
                        rest.push((task.times.as_constant()?.max(0) as u64, segment.number));
                    }
                    Some(_) => return None,
                }
            }
        }
        rest.sort_unstable();
        Some(rest)
    }

    fn is_segment(&mut self, segment: &Segment) -> bool {
        let number = segment.number as usize;
        if let Some(known) = self.segments[number] {
            return known;
        }
        let is = segment.placed().iter().all(|length| self.is_length(length));
        self.segments[number] = Some(is);
        is
    }

    fn is_length(&mut self, length: &Linear) -> bool {
        if !length.uses_place().1 {
            return true;
        }
        if let Some((_, known)) = self.lengths.iter().find(|(other, _)| other.same_part(length, false)) {
            return *known;
        }
        let part = |y: u32| length.part(false, i64::from(y));
        let is = (self.line.first..self.line.row(self.line.periods - 1))
            .all(|y| part(y) == part(y + self.line.rows));
        self.lengths.push((length.clone(), is));
        is
    }
}
