//! Which rows stand for all: rows joined by traffic between their PEs form a group, and groups that look the same take
//! the same time, except for how far the host is.

use super::profile::Profile;
use super::skip::Skip;
use crate::lower::{Code, Env, LoweredClass, Segment};
use crate::network::{Alike, Likeness, Line};
use crate::program::{Direction, Port, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Rows to be timed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows that are looked at, ascending.
    pub chosen: BTreeSet<u32>,
    /// How many rows each chosen one stands for, by row.
    pub weight: BTreeMap<u32, Weight>,
    /// The chosen row that a row is like, where it is not chosen itself.
    pub like: BTreeMap<u32, u32>,
    /// Shape of each class: classes of one shape take the same time.
    pub shape_of: Vec<u16>,
    /// What is skipped of rows in a line.
    pub skips: Vec<Skip>,
}

/// A weight as a fraction: rows stood for, over rows chosen for them.
pub type Weight = (u32, u32);

impl Rows {
    /// Chooses, for each kind of group, the one farthest from the north edge, and also the nearest one where the host
    /// feeds other edges too. Of rows in a line, only the first `known` periods and the last ones are chosen.
    pub fn choose(
        program: &WaferProgram,
        class_of: &[u16],
        classes: &[LoweredClass],
        known: Option<u32>,
    ) -> Rows {
        let mut inputs = program.host.iter().filter(|h| h.direction == Direction::In);
        let both = inputs.any(|h| h.edge != Port::North);
        Rows::pick_all(program, class_of, classes, (known, both))
    }

    /// All rows, each for itself.
    pub fn all(program: &WaferProgram) -> Rows {
        let weight = (0..program.height).map(|y| (y, (1, 1))).collect();
        Rows { chosen: (0..program.height).collect(), weight, ..Rows::default() }
    }

    /// Chooses, for each kind of group, the one farthest from the north edge and the nearest one.
    pub fn at_both_ends(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Rows {
        Rows::pick_all(program, class_of, classes, (None, true))
    }

    /// How many rows a chosen one stands for.
    pub fn weight_of(&self, y: u32) -> f64 {
        let (rows, chosen) = self.weight.get(&y).copied().unwrap_or((1, 1));
        f64::from(rows) / f64::from(chosen.max(1))
    }

    fn pick_all(
        program: &WaferProgram,
        class_of: &[u16],
        classes: &[LoweredClass],
        (known, both): (Option<u32>, bool),
    ) -> Rows {
        let as_to = Likeness::Time;
        let Alike { shape_of, kinds, looks } = Alike::of(program, class_of, classes, as_to);
        let entering = |y: u32| from_north(program, class_of, classes, y);
        let mut rows = Rows { shape_of, ..Rows::default() };
        for groups in &kinds {
            let mut picked: Vec<&Vec<u32>> = groups.last().into_iter().collect();
            picked.extend(groups.first().filter(|_| both && groups.len() > 1));
            let weight = (groups.len() as u32, picked.len() as u32);
            for group in picked {
                let line =
                    known.and_then(|_| Line::in_group(program, class_of, (&looks, as_to), group, &entering));
                let skip = line.zip(known).and_then(|(line, known)| Skip::of(line, known));
                rows.pick(group, weight, skip);
            }
            for (group, last) in groups.iter().flat_map(|group| Some((group, groups.last()?))) {
                let like = |y: &u32| rows.like.get(y).copied().unwrap_or(*y);
                let like: Vec<u32> = last.iter().map(like).collect();
                rows.like.extend(group.iter().copied().zip(like));
            }
        }
        rows
    }

    /// Chooses the rows of a group, but for what is skipped.
    fn pick(&mut self, group: &[u32], weight: Weight, skip: Option<Skip>) {
        for &y in group {
            let Some(skip) = skip else {
                self.chosen.insert(y);
                self.weight.insert(y, weight);
                continue;
            };
            if skip.skipped().contains(&y) || skip.foretold().contains(&y) {
                self.like.insert(y, skip.like(y));
            }
            if !skip.skipped().contains(&y) {
                self.chosen.insert(y);
            }
            // What lies on a line between two rows counts half for each.
            let half = skip.ends().iter().any(|rows| rows.contains(&y));
            let share = match half {
                _ if skip.foretold().contains(&y) => (0, 1),
                true => (weight.0 * (2 + skip.left_out()), weight.1 * 2),
                false => weight,
            };
            self.weight.insert(y, share);
        }
        self.skips.extend(skip);
    }
}

/// Words that a PE in the middle of a row reads from the north, as far as their number depends on its place.
fn from_north(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass], y: u32) -> f64 {
    let x = program.width / 2;
    let class = class_of[(y * program.width + x) as usize];
    let (Some(routes), Some(lowered)) =
        (program.classes.get(usize::from(class)).map(|class| &class.routes), classes.get(usize::from(class)))
    else {
        return 0.0;
    };
    let from_north = |slot: usize| {
        let route = lowered.inputs.get(slot).and_then(|colour| routes.get(colour));
        route.is_some_and(|route| route.positions.iter().any(|position| position.from == Port::North))
    };
    let parts = lowered.tasks.iter().flat_map(|task| task.code.parts());
    let words = |segment: &Arc<Segment>| {
        let (mut code, mut env) = (Code::default(), Env { x: x.into(), y: y.into(), ..Env::default() });
        code.push(Arc::clone(segment));
        let reads = Profile::of(&code, 0..code.len(), &mut env).reads;
        reads.iter().filter(|read| from_north(read.slot)).map(|read| read.words as f64).sum::<f64>()
    };
    parts.map(|(_, segment)| segment).filter(|segment| !segment.placed().is_empty()).map(words).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::lower;
    use crate::network::cover;
    use crate::text::parse;

    #[test]
    fn rows_that_talk_are_a_group_and_one_group_stands_for_its_likes() {
        let text = "wafer 1 x 6 tensor w[6]
host w in north lanes 0 .. 1 colour 0 tensor w dims 4 at d0
class top at (0, 0) 1 x 3 step 1 x 2 { buffer v: f32[4] @0 route 0: north -> ramp, south route 1: ramp -> south route 2: north -> ramp
  task t start { mov v <- in(0) len 4 mov out(1) <- v len 4 } }
class low at (0, 1) 1 x 2 step 1 x 2 { buffer v: f32[4] @0 route 0: north -> ramp, south route 1: north -> ramp
  task t start { mov v <- in(0) len 4 mov v <- in(1) len 4 } }
class end at (0, 5) { buffer v: f32[4] @0 route 0: north -> ramp route 1: north -> ramp
  task t start { mov v <- in(0) len 4 mov v <- in(1) len 4 } }";
        let program = parse(text, "groups").unwrap();
        let spec = crate::FabricSpec::wse2();
        let rows = Rows::choose(&program, &cover(&program).unwrap(), &lower(&program, &spec), None);
        assert_eq!(rows.chosen, BTreeSet::from([4, 5]), "the last pair stands for all");
        assert_eq!(rows.weight[&4], (3, 1));
        let checked = crate::check(&program, &spec).unwrap();
        let flow = crate::flow::time(&checked).unwrap();
        let event = crate::event::simulate(&checked, Default::default()).unwrap().report;
        assert_eq!((flow.cycles, flow.words, flow.pes), (event.cycles, event.words, event.pes));
    }
}
