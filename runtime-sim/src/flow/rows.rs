//! Which rows stand for all: rows joined by traffic between their PEs form a group, and groups that look the same take
//! the same time, except for how far the host is.

use crate::lower::LoweredClass;
use crate::network::{Alike, Likeness};
use crate::program::{Direction, Port, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

/// Rows to be timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Ascending.
    pub chosen: BTreeSet<u32>,
    /// How many rows each chosen one stands for, by row.
    pub weight: BTreeMap<u32, Weight>,
    /// The chosen row that a row is like, where it is not chosen itself.
    pub like: BTreeMap<u32, u32>,
    /// Shape of each class: classes of one shape take the same time.
    pub shape_of: Vec<u16>,
}

/// A weight as a fraction: rows stood for, over rows chosen for them.
pub type Weight = (u32, u32);

/// Chooses, for each kind of group, the one farthest from the north edge, and also the nearest one where the host
/// feeds other edges too.
pub fn choose(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Rows {
    let alike = Alike::of(program, class_of, classes, Likeness::Time);
    let mut inputs = program.host.iter().filter(|h| h.direction == Direction::In);
    let both = inputs.any(|h| h.edge != Port::North);
    let (chosen, weight, like) = Default::default();
    let mut rows = Rows { chosen, weight, like, shape_of: alike.shape_of };
    for groups in &alike.kinds {
        let mut picked: Vec<&Vec<u32>> = groups.last().into_iter().collect();
        picked.extend(groups.first().filter(|_| both && groups.len() > 1));
        let weight = (groups.len() as u32, picked.len() as u32);
        for (group, last) in groups.iter().flat_map(|group| Some((group, groups.last()?))) {
            rows.like.extend(group.iter().copied().zip(last.iter().copied()));
        }
        for y in picked.into_iter().flatten() {
            rows.chosen.insert(*y);
            rows.weight.insert(*y, weight);
        }
    }
    rows
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
        let rows = choose(&program, &cover(&program).unwrap(), &lower(&program, &spec));
        assert_eq!(rows.chosen, BTreeSet::from([4, 5]), "the last pair stands for all");
        assert_eq!(rows.weight[&4], (3, 1));
        let checked = crate::check(&program, &spec).unwrap();
        let flow = crate::flow::time(&checked).unwrap();
        let event = crate::event::simulate(&checked, Default::default()).unwrap().report;
        assert_eq!((flow.cycles, flow.words, flow.pes), (event.cycles, event.words, event.pes));
    }
}
