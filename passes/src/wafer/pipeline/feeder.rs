//! Rows that hold a region's weights and send them down their columns: first those of the row next to the region, then
//! those of the rows above it, which are passed on from row to row.

use crate::wafer::WaferSpec;
use crate::wafer::code::{dims, from, op, repeat, send, slice, words};
use crate::wafer::placed::{OpKind as Placement, Placed};
use crate::wafer::tile::progressions;
use lapidary_runtime_sim::program::{
    Affine, Buffer, Class, Colour, Direction, HostStream, OpKind, Port, Region, Route, TensorMap, Var, Wire,
};
use std::collections::{BTreeMap, BTreeSet};

/// Rows `0..rows` of a tensor's matrix, of which a column has `features` columns.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    tensor: String,
    rows: u32,
    features: u32,
    /// In terms of x, row (`d0`) and column (`d1`).
    index: Affine,
    wire: Wire,
}

impl Piece {
    fn elements(&self) -> u32 {
        self.rows * self.features
    }

    fn row_bytes(&self) -> u64 {
        u64::from(self.features) * self.wire.dtype().bytes()
    }

    /// The first `rows` rows, and the rest.
    fn split(self, rows: u32) -> (Piece, Piece) {
        let index = self.index.clone();
        let step = index.terms.get(&Var::Dim(0)).copied().unwrap_or(0);
        let rest = Piece {
            rows: self.rows - rows,
            index: index + Affine::constant(step * i64::from(rows)),
            ..self.clone()
        };
        (Piece { rows, ..self }, rest)
    }
}

/// Columns with the same weights but for their place, and what each row of theirs holds, nearest row first.
struct Columns {
    columns: Vec<u32>,
    rows: Vec<Vec<Piece>>,
}

/// All feeder rows of a region.
pub struct Feeders {
    columns: Vec<Columns>,
}

/// Where words of feeder rows go.
pub struct Ways {
    /// Number of feeder rows, and the first of them in the grid.
    pub rows: u32,
    pub first_row: u32,
    /// Colour of the weights.
    pub weights: Colour,
    /// Colours from row to row, in turn.
    pub relays: [Colour; 2],
    /// Colours that pass.
    pub passing: BTreeSet<Colour>,
    /// How often the weights are sent.
    pub times: u32,
}

/// Whether words of a stream are weights, not activations.
pub fn are_weights(placed: &Placed, stream: &HostStream) -> bool {
    let enters = |tensor: &str| {
        placed.ops.iter().any(|op| matches!(&op.kind, Placement::Input { tensor: own, .. } if own == tensor))
    };
    stream.direction == Direction::In && !enters(&stream.tensor)
}

impl Feeders {
    /// Shares the words that the host would send to each column out to as few rows as hold them.
    pub fn of(placed: &Placed, streams: &[HostStream], spec: &WaferSpec) -> Feeders {
        let mut columns: BTreeMap<Vec<usize>, Vec<u32>> = BTreeMap::new();
        for x in 0..placed.width {
            let reaches = |s: &HostStream| {
                let lane = x.checked_sub(s.first).filter(|d| d % s.step == 0).map(|d| d / s.step);
                are_weights(placed, s) && lane.is_some_and(|lane| lane < s.lanes)
            };
            let own = streams.iter().enumerate().filter(|(_, s)| reaches(s)).map(|(n, _)| n);
            columns.entry(own.collect()).or_default().push(x);
        }
        let of_columns = |(own, columns): (Vec<usize>, Vec<u32>)| {
            let pieces = own.iter().map(|n| piece(&streams[*n], placed.micro_batches > 1));
            Columns { columns, rows: filled(pieces.filter(|p| p.elements() > 0), spec.buffer_bytes()) }
        };
        Feeders { columns: columns.into_iter().map(of_columns).collect() }
    }

    /// How many rows.
    pub fn rows(&self) -> u32 {
        self.columns.iter().map(|columns| columns.rows.len() as u32).max().unwrap_or(0)
    }

    /// The classes of the feeder rows.
    pub fn classes(&self, region: &str, ways: &Ways) -> Vec<Class> {
        let mut classes = Vec::new();
        for (group, columns) in self.columns.iter().enumerate() {
            for row in 0..ways.rows {
                let y = ways.first_row + ways.rows - 1 - row;
                let mut class = Class { name: format!("{region}.feeder{group}.{row}"), ..Class::default() };
                let run = |(x, count, step): (u32, u32, u32)| Region::rect(x, y, count, 1).every(step, 1);
                class.regions = progressions(&columns.columns).into_iter().map(run).collect();
                columns.furnish(row as usize, region, ways, &mut class);
                classes.push(class);
            }
        }
        classes
    }
}

impl Columns {
    /// Routes, memory and code of the PEs of one row, the nearest being row 0.
    fn furnish(&self, row: usize, region: &str, ways: &Ways, class: &mut Class) {
        let passing = ways.passing.iter().map(|colour| (*colour, Route::fixed(Port::North, &[Port::South])));
        class.routes.extend(passing);
        let out = if row == 0 { ways.weights } else { ways.relays[row % 2] };
        let come = ways.relays[(row + 1) % 2];
        let mut body = Vec::new();
        if let Some(pieces) = self.rows.get(row) {
            class.routes.insert(out, Route::fixed(Port::Ramp, &[Port::South]));
            let mut offset = 0;
            for (n, piece) in pieces.iter().enumerate() {
                let buffer = buffer(piece, region, offset);
                offset += buffer.bytes().next_multiple_of(ALIGNMENT) as u32;
                let name = format!("weights{n}");
                let whole = from(slice(&name, 0));
                body.push(op(OpKind::Mov, send(out, piece.wire), [whole], dims([piece.elements().into()])));
                class.buffers.insert(name, buffer);
            }
        }
        let above = self.rows.get(row + 1..).unwrap_or_default();
        if !above.is_empty() {
            class.routes.insert(come, Route::fixed(Port::North, &[Port::Ramp]));
        }
        for (wire, count) in runs(above.iter().flatten()) {
            body.push(op(OpKind::Mov, send(out, wire), [words(come, wire)], dims([count])));
        }
        if !body.is_empty() {
            class.start("feed", repeat(i64::from(ways.times), body));
        }
    }
}

/// Every buffer starts at a multiple of this.
const ALIGNMENT: u64 = 8;

fn buffer(piece: &Piece, region: &str, offset: u32) -> Buffer {
    let lengths = vec![i64::from(piece.rows).into(), i64::from(piece.features).into()];
    let tensor = format!("{region}.{}", piece.tensor);
    let load = Some(TensorMap { tensor, dims: lengths, index: piece.index.clone() });
    Buffer { load, ..Buffer::new(piece.wire.dtype(), piece.elements(), offset) }
}

/// Words of pieces in their order, by wire.
fn runs<'p>(pieces: impl Iterator<Item = &'p Piece>) -> Vec<(Wire, i64)> {
    let mut runs: Vec<(Wire, i64)> = Vec::new();
    for piece in pieces {
        match runs.last_mut().filter(|run| run.0 == piece.wire) {
            Some(run) => run.1 += i64::from(piece.elements()),
            None => runs.push((piece.wire, piece.elements().into())),
        }
    }
    runs
}

/// The matrix of a stream; one that is sent again for every micro-batch has a dimension for that in front.
fn piece(stream: &HostStream, again: bool) -> Piece {
    let constant = |n: usize| stream.dims.get(n).and_then(Affine::as_constant).unwrap_or(0).max(0) as u32;
    let skipped = usize::from(again);
    let inner = |var: &Var| match var {
        Var::Dim(n) => Var::Dim(n - skipped as u8),
        other => *other,
    };
    let terms = stream.index.terms.iter().map(|(var, factor)| (inner(var), *factor)).collect();
    Piece {
        tensor: stream.tensor.clone(),
        rows: constant(skipped),
        features: constant(skipped + 1),
        index: Affine { base: stream.index.base, terms },
        wire: stream.wire,
    }
}

/// Rows of PEs with `bytes` each, filled in the order of the pieces.
fn filled(pieces: impl Iterator<Item = Piece>, bytes: u64) -> Vec<Vec<Piece>> {
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    let mut left = 0;
    for mut piece in pieces {
        while piece.rows > 0 {
            let fitting = (left / piece.row_bytes()).min(piece.rows.into()) as u32;
            if fitting == 0 {
                rows.push(Vec::new());
                // A single row of a matrix that is larger than a PE's memory is left to the checker.
                left = bytes.max(piece.row_bytes());
                continue;
            }
            let (here, rest) = piece.split(fitting);
            left -= (u64::from(fitting) * here.row_bytes()).next_multiple_of(ALIGNMENT).min(left);
            rows.extend(rows.is_empty().then(Vec::new));
            if let Some(row) = rows.last_mut() {
                row.push(here);
            }
            piece = rest;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fill_rows_in_their_order_and_none_is_lost() {
        let index = Affine::from(Var::X).plus(Var::Dim(0), 10).plus(Var::Dim(1), 1);
        let piece =
            |rows, features, wire| Piece { tensor: "w".into(), rows, features, index: index.clone(), wire };
        let rows = filled([piece(1, 3, Wire::F32), piece(20, 4, Wire::F16)].into_iter(), 64);
        let counts: Vec<Vec<u32>> = rows.iter().map(|row| row.iter().map(|p| p.rows).collect()).collect();
        assert_eq!(counts, [vec![1, 6], vec![8], vec![6]]);
        assert_eq!(rows[1][0].index.base, 60);
        assert_eq!(rows[2][0].index.base, 140);
        assert_eq!(runs(rows.iter().flatten()), [(Wire::F32, 3), (Wire::F16, 80)]);
    }
}
