//! Rows that look the same: groups of rows with the same code, the same routes and the same counts, of which one can
//! stand for all.

use super::NOBODY;
use super::groups::{fed_from_the_side, groups, kinds_of_rows, sent_by_pes};
use crate::lower::{Linear, LoweredClass, LoweredTask};
use crate::program::{Class, Colour, Port, Route, Trigger, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

/// What groups must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// They take the same time: colours may have other names.
    Time,
    /// What is proved of one holds for the other: colours have the same names, and words of PEs leave over an edge of
    /// the grid in both or in none.
    Proof,
}

/// Groups of rows by kind.
pub struct Alike {
    /// Shape of each class: classes of one shape have the same code and the same routes within a row.
    pub shape_of: Vec<u16>,
    /// For each kind of group: its groups from north to south, each of rows from north to south.
    pub kinds: Vec<Vec<Vec<u32>>>,
    /// What distinguishes rows.
    pub looks: Looks,
}

impl Alike {
    /// Sorts the rows of a program.
    pub fn of(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass], as_to: Likeness) -> Self {
        let shape_of = shapes(program, classes, as_to);
        let looks = Looks::of(program, class_of, classes, &shape_of, as_to);
        let mut kinds: BTreeMap<Vec<Signature>, Vec<Vec<u32>>> = BTreeMap::new();
        for group in groups(program, class_of) {
            let signature = group.iter().map(|y| looks.signature(program, *y)).collect();
            kinds.entry(signature).or_default().push(group);
        }
        Alike { shape_of, kinds: kinds.into_values().collect(), looks }
    }
}

/// A row's shapes, as the first row with the same, and what else tells rows apart.
type Signature = (u32, Vec<i64>);

/// Numbers classes by shape: the same code and the same routes, however far the host's words travel on.
fn shapes(program: &WaferProgram, classes: &[LoweredClass], as_to: Likeness) -> Vec<u16> {
    let sent = sent_by_pes(program);
    let routes: Vec<_> =
        program.classes.iter().zip(classes).map(|(c, l)| local_routes(c, l, &sent, as_to)).collect();
    let mut distinct: BTreeMap<(Routes, Vec<Vec<i64>>), u16> = BTreeMap::new();
    let look = |(class, routes): (&LoweredClass, Routes)| {
        let next = distinct.len() as u16;
        *distinct.entry((routes, class.tasks.iter().map(look_of_task).collect())).or_insert(next)
    };
    classes.iter().zip(routes).map(look).collect()
}

/// A task as numbers: the same for tasks that are started alike and do the same.
fn look_of_task(task: &LoweredTask) -> Vec<i64> {
    let started = match task.trigger {
        Trigger::Start => [0, 0, 0],
        Trigger::Data { colour, wire } => [1, i64::from(colour.0), wire as i64],
        Trigger::Control { colour } => [2, i64::from(colour.0), 0],
        Trigger::Local => [3, 0, 0],
    };
    let mut look = started.to_vec();
    look.push(task.slot as i64);
    task.times.encode(false, &mut look);
    look.extend(task.code.segments().map(|segment| i64::from(segment.like)));
    look
}

/// What a route is for: an input slot, an output slot, or words that only pass.
type Use = (u8, usize);

/// Routes of a class, each with its use.
type Routes = Vec<(Use, Route)>;

/// Routes by their use, without the host's words that pass on to other rows. Words that only pass have no order if
/// colours have no names.
fn local_routes(class: &Class, lowered: &LoweredClass, sent: &BTreeSet<Colour>, as_to: Likeness) -> Routes {
    let local = |(colour, route): (&Colour, &Route)| {
        let mut route = route.clone();
        if !sent.contains(colour) {
            let vertical = |p: &Port| matches!(p, Port::North | Port::South);
            route.positions.iter_mut().for_each(|p| p.to.retain(|port| !vertical(port)));
        }
        let (input, output) = (lowered.inputs.binary_search(colour), lowered.outputs.binary_search(colour));
        let used = match (input, output) {
            _ if as_to == Likeness::Proof => (0, usize::from(colour.0)),
            (Ok(slot), _) => (1, slot),
            (_, Ok(slot)) => (2, slot),
            _ => (3, 0),
        };
        (used, route)
    };
    let mut routes: Routes = class.routes.iter().map(local).collect();
    routes.sort();
    routes
}

/// What distinguishes rows.
pub struct Looks {
    height: u32,
    /// Per row: the first one with the same shapes in all columns.
    shape: Vec<u32>,
    /// By such a row: the counts that depend on the row.
    counts: BTreeMap<u32, Vec<Linear>>,
    /// By such a row: whether words of PEs leave it to the north and to the south, if that matters.
    crossed: BTreeMap<u32, (bool, bool)>,
}

impl Looks {
    fn of(
        program: &WaferProgram,
        class_of: &[u16],
        classes: &[LoweredClass],
        shape_of: &[u16],
        as_to: Likeness,
    ) -> Self {
        let width = program.width.max(1) as usize;
        let kinds = kinds_of_rows(program, class_of);
        let row = |y: u32| &class_of[y as usize * width..][..width];
        let mut first: BTreeMap<Vec<u16>, u32> = BTreeMap::new();
        let mut by_kind: BTreeMap<u32, u32> = BTreeMap::new();
        for &kind in &kinds {
            let shapes = |y| row(y).iter().map(|c| shape_of.get(usize::from(*c)).copied().unwrap_or(NOBODY));
            by_kind.entry(kind).or_insert_with(|| *first.entry(shapes(kind).collect()).or_insert(kind));
        }
        let shape = kinds.iter().map(|kind| by_kind[kind]).collect();
        let mut rows =
            Looks { height: program.height, shape, counts: BTreeMap::new(), crossed: BTreeMap::new() };
        let sent = sent_by_pes(program);
        for &y in first.values() {
            let used: BTreeSet<u16> = row(y).iter().copied().filter(|c| *c != NOBODY).collect();
            let by_shape: BTreeMap<u16, u16> = used.iter().map(|c| (shape_of[usize::from(*c)], *c)).collect();
            let mut counts: Vec<Linear> = Vec::new();
            for count in by_shape.values().flat_map(|c| classes[usize::from(*c)].lengths_of(false)) {
                if !counts.iter().any(|known| known.same_part(&count, false)) {
                    counts.push(count);
                }
            }
            rows.counts.insert(y, counts);
            let classes = || used.iter().map(|c| &program.classes[usize::from(*c)]);
            let crossed = |port| as_to == Likeness::Proof && classes().any(|c| crosses(c, port, &sent));
            rows.crossed.insert(y, (crossed(Port::North), crossed(Port::South)));
        }
        rows
    }

    /// What a row consists of: its shapes, what its counts owe to y, what the host does at its ends, and whether it
    /// could send its words over an edge of the grid.
    fn signature(&self, program: &WaferProgram, y: u32) -> Signature {
        let (shape, rest) = self.but_counts(program, y);
        (shape, self.counts(y).chain(rest).collect())
    }

    /// The same without the counts.
    pub fn but_counts(&self, program: &WaferProgram, y: u32) -> Signature {
        let shape = self.shape[y as usize];
        let (north, south) = self.crossed[&shape];
        let edges = [north && y == 0, south && y + 1 == self.height];
        (shape, edges.map(i64::from).into_iter().chain(fed_from_the_side(program, y)).collect())
    }

    /// What the counts of a row owe to the row.
    pub fn counts(&self, y: u32) -> impl Iterator<Item = i64> + '_ {
        self.counts[&self.shape[y as usize]].iter().map(move |l| l.part(false, i64::from(y)))
    }
}

/// Whether words of PEs may leave the routers of a class through a port.
fn crosses(class: &Class, port: Port, sent: &BTreeSet<Colour>) -> bool {
    let own = class.routes.iter().filter(|(colour, _)| sent.contains(colour));
    own.flat_map(|(_, route)| &route.positions).any(|p| p.to.contains(&port))
}
