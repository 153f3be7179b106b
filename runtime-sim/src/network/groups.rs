//! Rows that belong together: rows joined by words that PEs send from one to the other form a group; between groups
//! only words of the host pass.

use crate::lower::output_colours;
use crate::program::{Affine, Class, Colour, HostStream, Port, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Which classes of PEs a row has, column by column, as the number of the first row with the same.
pub fn kinds_of_rows(program: &WaferProgram, class_of: &[u16]) -> Vec<u32> {
    let mut kinds: BTreeMap<&[u16], u32> = BTreeMap::new();
    let rows = class_of.chunks(program.width.max(1) as usize);
    rows.zip(0..).map(|(row, y)| *kinds.entry(row).or_insert(y)).collect()
}

/// Rows joined by words that PEs send from row to row, from north to south.
pub fn groups(program: &WaferProgram, class_of: &[u16]) -> Vec<Vec<u32>> {
    let rows = Crossings::by_row(program, class_of);
    let mut groups: Vec<Vec<u32>> = Vec::new();
    for y in 0..program.height {
        let meets = y > 0 && rows[y as usize - 1].meets(&rows[y as usize]);
        match groups.last_mut() {
            Some(last) if meets => last.push(y),
            _ => groups.push(vec![y]),
        }
    }
    groups
}

/// By row: whether words of PEs can pass from it to the row above.
pub fn northward(program: &WaferProgram, class_of: &[u16]) -> Vec<bool> {
    let rows = Crossings::by_row(program, class_of);
    let up = |y: usize| y > 0 && !rows[y].out_north.is_disjoint(&rows[y - 1].from_south);
    (0..rows.len()).map(up).collect()
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
    /// Those of every row, from north to south.
    fn by_row(program: &WaferProgram, class_of: &[u16]) -> Vec<Rc<Crossings>> {
        let sent = sent_by_pes(program);
        let crossings: Vec<Crossings> = program.classes.iter().map(|c| Crossings::of(c, &sent)).collect();
        let mut by_kind: BTreeMap<u32, Rc<Crossings>> = BTreeMap::new();
        let of_kind = |kind: u32| {
            let known = by_kind.entry(kind).or_insert_with(|| {
                let row = &class_of[(kind * program.width) as usize..((kind + 1) * program.width) as usize];
                let used: BTreeSet<u16> = row.iter().copied().collect();
                Rc::new(Crossings::sum(used.iter().filter_map(|c| crossings.get(usize::from(*c)))))
            });
            Rc::clone(known)
        };
        kinds_of_rows(program, class_of).into_iter().map(of_kind).collect()
    }

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

    fn sum<'a>(all: impl Iterator<Item = &'a Crossings>) -> Self {
        let mut sum = Crossings::default();
        for one in all {
            sum.out_north.extend(&one.out_north);
            sum.out_south.extend(&one.out_south);
            sum.from_north.extend(&one.from_north);
            sum.from_south.extend(&one.from_south);
        }
        sum
    }

    /// Whether words can pass between this row and the one below it.
    fn meets(&self, below: &Crossings) -> bool {
        !self.out_south.is_disjoint(&below.from_north) || !below.out_north.is_disjoint(&self.from_south)
    }
}

/// Colours on which any PE sends.
pub fn sent_by_pes(program: &WaferProgram) -> BTreeSet<Colour> {
    program.classes.iter().flat_map(output_colours).collect()
}

/// What the host does on the west and east edges of a row.
pub fn fed_from_the_side(program: &WaferProgram, y: u32) -> impl Iterator<Item = i64> + '_ {
    let sides = program.host.iter().filter(|h| matches!(h.edge, Port::West | Port::East));
    let here = move |h: &&HostStream| {
        let lane = y.checked_sub(h.first).map(|d| (d / h.step.max(1), d % h.step.max(1)));
        lane.is_some_and(|(n, rest)| rest == 0 && n < h.lanes)
    };
    sides.filter(here).flat_map(move |h| {
        let length = |d: &Affine| d.eval(|v| v.at_place(0, y).unwrap_or(0)).max(0);
        let words = h.dims.iter().map(length).fold(1, i64::saturating_mul);
        let (then, lanes) = (h.then.map_or(-1, |then| then as i64), i64::from(h.wire.lanes()));
        [h.edge as i64, h.direction as i64, i64::from(h.colour.0), i64::from(h.interval), words, lanes, then]
    })
}
