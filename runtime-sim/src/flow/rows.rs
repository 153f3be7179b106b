//! Which rows stand for all: rows joined by traffic between their PEs form a group, and groups that look the same take
//! the same time, except for how far the host is.

use crate::lower::{Linear, LoweredClass};
use crate::network::Network;
use crate::program::{Affine, Class, Colour, Direction, HostStream, Port, Route, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

/// Rows to be timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Ascending.
    pub chosen: BTreeSet<u32>,
    /// How many rows each chosen one stands for, by row.
    pub weight: BTreeMap<u32, Weight>,
    /// Shape of each class: classes of one shape take the same time.
    pub shape_of: Vec<u16>,
}

/// A weight as a fraction: rows stood for, over rows chosen for them.
pub type Weight = (u32, u32);

/// Chooses, for each kind of group, the one farthest from the north edge, and also the nearest one where the host
/// feeds other edges too.
pub fn choose(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Rows {
    let groups = groups(program, class_of);
    let shape_of = shapes(program, classes);
    let by_row: Vec<Vec<Linear>> = classes.iter().map(|c| c.lengths_of(false)).collect();
    let mut alike: BTreeMap<Vec<Signature>, Vec<Vec<u32>>> = BTreeMap::new();
    for group in groups {
        let signature = group.iter().map(|y| signature(program, class_of, &by_row, &shape_of, *y)).collect();
        alike.entry(signature).or_default().push(group);
    }
    let inputs = || program.host.iter().filter(|h| h.direction == Direction::In);
    let both = inputs().any(|h| h.edge != Port::North);
    let mut rows = Rows { chosen: BTreeSet::new(), weight: BTreeMap::new(), shape_of };
    for groups in alike.values() {
        let mut picked: Vec<&Vec<u32>> = groups.last().into_iter().collect();
        picked.extend(groups.first().filter(|_| both && groups.len() > 1));
        let weight = (groups.len() as u32, picked.len() as u32);
        for y in picked.into_iter().flatten() {
            rows.chosen.insert(*y);
            rows.weight.insert(*y, weight);
        }
    }
    rows
}

/// What a row consists of: shapes of classes by column, and what its counts owe to y.
type Signature = (Vec<u16>, Vec<i64>);

fn signature(
    program: &WaferProgram,
    class_of: &[u16],
    by_row: &[Vec<Linear>],
    shape_of: &[u16],
    y: u32,
) -> Signature {
    let width = program.width as usize;
    let row = &class_of[y as usize * width..(y as usize + 1) * width];
    let used: BTreeSet<u16> = row.iter().copied().filter(|c| *c != u16::MAX).collect();
    let shape = |c: &u16| shape_of.get(*c as usize).copied().unwrap_or(u16::MAX);
    let ordered: BTreeMap<u16, u16> = used.iter().map(|c| (shape(c), *c)).collect();
    let lengths = ordered.values().flat_map(|c| &by_row[*c as usize]);
    let counts = lengths.map(|l| l.part(false, i64::from(y)));
    let parts = counts.chain(fed_from_the_side(program, y)).collect();
    (row.iter().map(shape).collect(), parts)
}

/// What the host does on the west and east edges of a row.
fn fed_from_the_side(program: &WaferProgram, y: u32) -> impl Iterator<Item = i64> + '_ {
    let sides = program.host.iter().filter(|h| matches!(h.edge, Port::West | Port::East));
    let here = move |h: &&HostStream| {
        let lane = y.checked_sub(h.first).map(|d| (d / h.step.max(1), d % h.step.max(1)));
        lane.is_some_and(|(n, rest)| rest == 0 && n < h.lanes)
    };
    sides.filter(here).flat_map(move |h| {
        let length = |d: &Affine| d.eval(|v| v.at_place(0, y).unwrap_or(0)).max(0);
        let words = h.dims.iter().map(length).fold(1, i64::saturating_mul);
        [h.edge as i64, h.direction as i64, i64::from(h.colour.0), i64::from(h.interval), words]
    })
}

/// Numbers classes by shape: the same code and the same routes, whatever the colours are called and however far the
/// host's words travel on.
fn shapes(program: &WaferProgram, classes: &[LoweredClass]) -> Vec<u16> {
    let sent = sent_by_pes(program);
    let routes: Vec<Vec<Route>> = program.classes.iter().map(|c| local_routes(c, &sent)).collect();
    let mut distinct: Vec<usize> = Vec::new();
    let mut shape_of = Vec::new();
    for (index, class) in classes.iter().enumerate() {
        let alike = |other: &usize| routes[*other] == routes[index] && classes[*other].tasks == class.tasks;
        let shape = distinct.iter().position(alike).unwrap_or(distinct.len());
        if shape == distinct.len() {
            distinct.push(index);
        }
        shape_of.push(shape as u16);
    }
    shape_of
}

/// Routes in order of colours, without the host's words that pass on to other rows.
fn local_routes(class: &Class, sent: &BTreeSet<Colour>) -> Vec<Route> {
    let local = |(colour, route): (&Colour, &Route)| {
        let mut route = route.clone();
        if !sent.contains(colour) {
            let vertical = |p: &Port| matches!(p, Port::North | Port::South);
            route.positions.iter_mut().for_each(|p| p.to.retain(|port| !vertical(port)));
        }
        route
    };
    class.routes.iter().map(local).collect()
}

/// Rows joined by words that PEs send from row to row.
fn groups(program: &WaferProgram, class_of: &[u16]) -> Vec<Vec<u32>> {
    let sent = sent_by_pes(program);
    let crossings: Vec<Crossings> = program.classes.iter().map(|c| Crossings::of(c, &sent)).collect();
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut above = Crossings::default();
    for y in 0..program.height {
        let row = &class_of[(y * program.width) as usize..((y + 1) * program.width) as usize];
        let used: BTreeSet<u16> = row.iter().copied().filter(|c| *c != u16::MAX).collect();
        let mut here = Crossings::default();
        used.iter().for_each(|c| here.add(&crossings[*c as usize]));
        match groups.last_mut() {
            Some(last) if above.meets(&here) => last.push(y),
            _ => groups.push(vec![y]),
        }
        above = here;
    }
    groups
}

/// Colours that cross the borders of a row.
#[derive(Clone, Debug, Default)]
struct Crossings {
    out_north: BTreeSet<Colour>,
    out_south: BTreeSet<Colour>,
    from_north: BTreeSet<Colour>,
    from_south: BTreeSet<Colour>,
}

impl Crossings {
    fn of(class: &Class, sent: &BTreeSet<Colour>) -> Self {
        let mut out = Crossings::default();
        for (colour, route) in class.routes.iter().filter(|(c, _)| sent.contains(c)) {
            for position in &route.positions {
                let mut note = |set: fn(&mut Crossings) -> &mut BTreeSet<Colour>, is: bool| {
                    if is {
                        set(&mut out).insert(*colour);
                    }
                };
                note(|c| &mut c.from_north, position.from == Port::North);
                note(|c| &mut c.from_south, position.from == Port::South);
                note(|c| &mut c.out_north, position.to.contains(&Port::North));
                note(|c| &mut c.out_south, position.to.contains(&Port::South));
            }
        }
        out
    }

    fn add(&mut self, other: &Crossings) {
        self.out_north.extend(&other.out_north);
        self.out_south.extend(&other.out_south);
        self.from_north.extend(&other.from_north);
        self.from_south.extend(&other.from_south);
    }

    /// Whether words can pass between this row and the one below it.
    fn meets(&self, below: &Crossings) -> bool {
        !self.out_south.is_disjoint(&below.from_north) || !below.out_north.is_disjoint(&self.from_south)
    }
}

/// Colours on which any PE sends.
fn sent_by_pes(program: &WaferProgram) -> BTreeSet<Colour> {
    let classes = program.classes.iter();
    classes.flat_map(crate::lower::output_colours).collect()
}

/// Classes of all PEs, without tracing any route.
pub fn cover(program: &WaferProgram) -> Vec<u16> {
    let mut class_of = vec![u16::MAX; program.width as usize * program.height as usize];
    for (index, class) in program.classes.iter().enumerate() {
        for at in class.regions.iter().flat_map(|r| r.pes().collect::<Vec<_>>()) {
            class_of[at.y as usize * program.width as usize + at.x as usize] = index as u16;
        }
    }
    class_of
}

/// The network of the chosen rows only.
pub fn network(
    program: &WaferProgram,
    spec: &crate::FabricSpec,
    rows: &Rows,
) -> Result<Network, Vec<crate::CheckError>> {
    Network::build(program, spec, &|y| rows.chosen.contains(&y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::lower;
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
        let rows = choose(&program, &cover(&program), &lower(&program, &spec));
        assert_eq!(rows.chosen, BTreeSet::from([4, 5]), "the last pair stands for all");
        assert_eq!(rows.weight[&4], (3, 1));
        let checked = crate::check(&program, &spec).unwrap();
        let flow = crate::flow::time(&checked).unwrap();
        let event = crate::event::simulate(&checked, Default::default()).unwrap().report;
        assert_eq!((flow.cycles, flow.words, flow.pes), (event.cycles, event.words, event.pes));
    }
}
