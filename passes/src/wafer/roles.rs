//! PEs that get the same code: columns of one role crossed with rows of one role.
//!
//! A role is the list of everything about a line that the kernels ask and that is not affine: whether it is first or last,
//! its parity, whether its tiles are the larger or the smaller ones, where its head block begins and ends.

use super::WaferSpec;
use super::kernel;
use super::line::Axis;
use super::placed::{Layout, OpKind, Placed};
use super::tile::{Tiles, progressions};
use lapidary_hardware::price::wafer::Reduce;
use lapidary_runtime_sim::program::{Coord, Region};
use std::collections::BTreeMap;

/// PEs of one role.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// Name, by the numbers of the column role and the row role.
    pub name: String,
    /// One of the PEs.
    pub sample: Coord,
    /// All of them.
    pub regions: Vec<Region>,
}

/// All roles of a placed computation, in the order of their first columns and rows.
pub fn roles(placed: &Placed, spec: &WaferSpec) -> Vec<Role> {
    let sums = sums(placed, spec);
    let columns = group(placed.width, |x| {
        [column_role(placed, x), sum_role(placed, &sums, Coord { x, y: 0 }, true)].concat()
    });
    let rows = group(placed.rows(), |y| {
        [row_role(placed, y), sum_role(placed, &sums, Coord { x: 0, y }, false)].concat()
    });
    let pair = |(j, rows): (usize, &Vec<u32>)| -> Vec<Role> {
        let cross = |(i, columns): (usize, &Vec<u32>)| Role {
            name: format!("column{i}.row{j}"),
            sample: Coord { x: columns[0], y: rows[0] },
            regions: regions(columns, rows),
        };
        columns.iter().enumerate().map(cross).collect()
    };
    rows.iter().enumerate().flat_map(pair).collect()
}

/// Lines by role, each role a sorted list, ordered by their first line.
fn group(lines: u32, role: impl Fn(u32) -> Vec<u32>) -> Vec<Vec<u32>> {
    let mut by_role: BTreeMap<Vec<u32>, Vec<u32>> = BTreeMap::new();
    for line in 0..lines {
        by_role.entry(role(line)).or_default().push(line);
    }
    let mut groups: Vec<_> = by_role.into_values().collect();
    groups.sort();
    groups
}

/// The cross of columns and rows as regions.
fn regions(columns: &[u32], rows: &[u32]) -> Vec<Region> {
    let across = |(y, rows, step_y): (u32, u32, u32)| {
        let region =
            move |(x, columns, step_x): (u32, u32, u32)| Region { x, y, columns, rows, step_x, step_y };
        progressions(columns).into_iter().map(region).collect::<Vec<_>>()
    };
    progressions(rows).into_iter().flat_map(across).collect()
}

fn column_role(placed: &Placed, x: u32) -> Vec<u32> {
    let last = placed.width - 1;
    let mut role = vec![u32::from(x == 0), u32::from(x == last), x % 2];
    for layout in placed.values.values() {
        if let Layout::Columns { features } = layout {
            let tiles = Tiles::new(*features, placed.width);
            let before = x.checked_sub(1).unwrap_or(last);
            role.extend([tiles.size(x), u32::from(tiles.is_large(x)), tiles.size(before)]);
        }
    }
    for op in &placed.ops {
        if let OpKind::CachedAttention(attention) = &op.kind {
            let tiles = Tiles::new(attention.capacity, placed.width);
            role.extend([tiles.size(x), u32::from(tiles.is_large(x))]);
        }
    }
    role.extend(head_role(placed, x));
    role
}

/// Every way in which lines of an axis make sums.
fn sums(placed: &Placed, spec: &WaferSpec) -> Vec<(Axis, Reduce)> {
    let of_op = |op| kernel::sums::of(placed, op);
    let mut sums: Vec<_> =
        placed.ops.iter().flat_map(of_op).map(|sum| (sum.axis, sum.kind(placed, spec))).collect();
    sums.sort_unstable();
    sums.dedup();
    sums
}

/// The places of a column on rows, or of a row on columns.
fn sum_role(placed: &Placed, sums: &[(Axis, Reduce)], at: Coord, of_column: bool) -> Vec<u32> {
    let along = sums.iter().filter(|(axis, _)| (*axis == Axis::Row) == of_column);
    let role =
        |(axis, kind): &(Axis, Reduce)| axis.place(placed, at).map_or(vec![], |place| place.role(*kind));
    along.flat_map(role).collect()
}

fn head_role(placed: &Placed, x: u32) -> Vec<u32> {
    let Some(heads) = placed.heads else { return vec![] };
    let blocks = heads.column_blocks();
    if !blocks.contains(x) {
        return vec![0, u32::from(x == blocks.lines())];
    }
    let column = blocks.local(x);
    let mut role = vec![1, u32::from(column == 0), u32::from(column + 1 == heads.columns)];
    let row = placed.tokens.tiles();
    let tilings = [row.base(), row.largest(), heads.query_features(), heads.key_features()]
        .map(|items| Tiles::new(items, heads.columns));
    for tiles in tilings {
        role.extend([tiles.is_large(column), column > 0 && tiles.is_large(column - 1)].map(u32::from));
    }
    role
}

fn row_role(placed: &Placed, y: u32) -> Vec<u32> {
    let (row, rows) = (placed.tokens.blocks().local(y), placed.tokens.rows);
    let last = y + 1 == placed.rows();
    let mut role = vec![u32::from(placed.tokens.tiles().is_large(row)), u32::from(last)];
    // The first row of a sequence is set as if the row above sent to it, which it never does.
    let is = |test: fn(&OpKind) -> bool| placed.ops.iter().any(|op| test(&op.kind));
    let streams = is(OpKind::passes_rows);
    let attends = is(|op| matches!(op, OpKind::Attention(_) | OpKind::AttentionDx(_))) && rows > 1;
    if streams {
        role.push(u32::from(y == 0));
    }
    if attends {
        role.push(u32::from(row + 1 == rows));
        // Gradients of keys and values go on from the last row of a sequence to its first.
        role.push(u32::from(row == 0 && is(|op| matches!(op, OpKind::AttentionDx(_)))));
    }
    if streams || attends {
        role.push(y % 2);
    }
    for layout in placed.values.values() {
        match layout {
            Layout::Rows { features } => {
                let tiles = Tiles::new(*features, placed.rows());
                role.extend([tiles.size(y), u32::from(tiles.is_large(y))]);
            }
            Layout::HeadRows { heads, .. } => {
                let (inside, row) = (heads.blocks().contains(y), heads.blocks().local(y));
                role.push(u32::from(inside));
                let tiles = [heads.pair_tiles(), heads.rest_tiles()];
                role.extend(tiles.map(|tiles| u32::from(inside && tiles.is_large(row))));
                role.extend(tiles.map(|tiles| if inside { tiles.size(row) } else { 0 }));
            }
            _ => {}
        }
    }
    role
}
