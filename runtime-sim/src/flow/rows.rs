//! Which rows stand for all: rows joined by traffic between their PEs form a group, and groups that look the same take
//! the same time, except for how far the host is.

use crate::lower::LoweredClass;
use crate::network::Network;
use crate::program::{Colour, Direction, Port, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

/// Rows to be timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Ascending.
    pub chosen: BTreeSet<u32>,
    /// How many rows each chosen one stands for, by row.
    pub weight: BTreeMap<u32, Weight>,
}

/// A weight as a fraction: rows stood for, over rows chosen for them.
pub type Weight = (u32, u32);

/// Chooses, for each kind of group, the one farthest from the north edge, and also the nearest one where the host
/// feeds other edges too.
pub fn choose(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Rows {
    let groups = groups(program, class_of);
    let mut alike: BTreeMap<Vec<Signature>, Vec<Vec<u32>>> = BTreeMap::new();
    for group in groups {
        let signature = group.iter().map(|y| signature(program, class_of, classes, *y)).collect();
        alike.entry(signature).or_default().push(group);
    }
    let inputs = || program.host.iter().filter(|h| h.direction == Direction::In);
    let both = inputs().any(|h| h.edge != Port::North);
    let mut rows = Rows { chosen: BTreeSet::new(), weight: BTreeMap::new() };
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

/// What a row consists of: its classes, and what its counts owe to y.
type Signature = (Vec<u16>, Vec<i64>);

fn signature(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass], y: u32) -> Signature {
    let width = program.width as usize;
    let row = &class_of[y as usize * width..(y as usize + 1) * width];
    let used: BTreeSet<u16> = row.iter().copied().filter(|c| *c != u16::MAX).collect();
    let parts = used.iter().flat_map(|c| classes[*c as usize].lengths_from(false, i64::from(y))).collect();
    (row.to_vec(), parts)
}

/// Rows joined by words that PEs send from row to row.
fn groups(program: &WaferProgram, class_of: &[u16]) -> Vec<Vec<u32>> {
    let sent = sent_by_pes(program);
    let vertical = |p: &&Port| matches!(p, Port::North | Port::South);
    let mut joins: Vec<(bool, bool)> = Vec::new();
    for class in &program.classes {
        let routes = class.routes.iter().filter(|(colour, _)| sent.contains(colour));
        let ports: BTreeSet<Port> = routes
            .flat_map(|(_, r)| r.positions.iter().flat_map(|p| p.to.iter().chain([&p.from])))
            .filter(vertical)
            .copied()
            .collect();
        joins.push((ports.contains(&Port::North), ports.contains(&Port::South)));
    }
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut open = false;
    for y in 0..program.height {
        let row = &class_of[(y * program.width) as usize..((y + 1) * program.width) as usize];
        let used: BTreeSet<u16> = row.iter().copied().filter(|c| *c != u16::MAX).collect();
        let up = used.iter().any(|c| joins[*c as usize].0);
        match groups.last_mut() {
            Some(last) if open || up => last.push(y),
            _ => groups.push(vec![y]),
        }
        open = used.iter().any(|c| joins[*c as usize].1);
    }
    groups
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
