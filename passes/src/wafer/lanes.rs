//! The lanes of an edge by what their columns hold.

use super::placed::{Layout, Placed, RowHeads};
use super::tile::{Tiles, progressions};
use lapidary_runtime_sim::program::{Affine, Var};

/// Lanes whose tiles have one size.
pub struct Lanes {
    /// `(first lane, lanes, step)`.
    pub runs: Vec<(u32, u32, u32)>,
    /// Features of each lane.
    pub features: u32,
    /// The first of them, in terms of x.
    pub first: Affine,
}

/// The columns (or rows) that hold features of a layout, by the size of their tile.
pub fn lanes(placed: &Placed, layout: Layout) -> Vec<Lanes> {
    all_lanes(placed, layout).into_iter().filter(|lanes| lanes.features > 0).collect()
}

/// All columns, by the size of their tile.
pub fn all_lanes(placed: &Placed, layout: Layout) -> Vec<Lanes> {
    let x = || Affine::from(Var::X);
    match (layout, placed.heads) {
        (Layout::Columns { features }, _) => {
            let tiles = Tiles::new(features, placed.width);
            let columns: Vec<u32> = (0..placed.width).collect();
            let (large, small) = columns.split_at(tiles.extra() as usize);
            let lanes = |lines: &[u32]| lanes_of(tiles, lines, lines.first().copied(), x(), 0.into());
            [lanes(large), lanes(small)].into_iter().flatten().collect()
        }
        (Layout::HeadColumns { queries }, Some(heads)) => {
            let blocks = heads.column_blocks();
            let tiles = Tiles::new(heads.features(queries), heads.columns);
            let before = blocks.block_of_x() * i64::from(heads.features(queries));
            let is_large = |x: &u32| tiles.is_large(blocks.local(*x));
            let (large, small): (Vec<u32>, Vec<u32>) = (0..blocks.lines()).partition(is_large);
            let lanes = |lines: &[u32]| {
                let sample = lines.first().map(|x| blocks.local(*x));
                lanes_of(tiles, lines, sample, blocks.local_x(), before.clone())
            };
            [lanes(&large), lanes(&small)].into_iter().flatten().collect()
        }
        (Layout::HeadTokens { queries }, Some(heads)) => {
            let blocks = heads.column_blocks();
            let features = heads.features(queries);
            let first = blocks.block_of_x() * i64::from(features);
            vec![Lanes { runs: vec![(0, blocks.lines(), 1)], features, first }]
        }
        (Layout::Rows { features }, _) => {
            let tiles = Tiles::new(features, placed.rows());
            let rows: Vec<u32> = (0..placed.rows()).collect();
            let (large, small) = rows.split_at(tiles.extra() as usize);
            let lanes =
                |lines: &[u32]| lanes_of(tiles, lines, lines.first().copied(), Var::Y.into(), 0.into());
            [lanes(large), lanes(small)].into_iter().flatten().collect()
        }
        (Layout::HeadRows { .. }, _) | (_, None) => vec![],
    }
}

/// The rows of head blocks, by the size of their tile of pairs.
pub fn pair_lanes(heads: RowHeads) -> Vec<Lanes> {
    let (blocks, tiles) = (heads.blocks(), heads.pair_tiles());
    let is_large = |y: &u32| tiles.is_large(blocks.local(*y));
    let (large, small): (Vec<u32>, Vec<u32>) = (0..blocks.lines()).partition(is_large);
    let lanes = |lines: &[u32]| {
        let sample = lines.first().map(|y| blocks.local(*y));
        lanes_of(tiles, lines, sample, blocks.local_y(), 0.into())
    };
    [lanes(&large), lanes(&small)].into_iter().flatten().filter(|lanes| lanes.features > 0).collect()
}

/// Lanes whose tiles are all as that of `sample`, which is one of them if there are any.
fn lanes_of(tiles: Tiles, lines: &[u32], sample: Option<u32>, part: Affine, before: Affine) -> Option<Lanes> {
    let sample = sample?;
    let features = tiles.size(sample);
    let first = before + tiles.start_at(part, sample);
    Some(Lanes { runs: progressions(lines), features, first })
}

impl Lanes {
    /// These lanes, those before column `column` apart from the others.
    pub fn split_at(self, column: u32) -> [Lanes; 2] {
        let Lanes { runs, features, first } = self;
        let before =
            |(at, lanes, step): &(u32, u32, u32)| column.saturating_sub(*at).div_ceil(*step).min(*lanes);
        let some = |(_, lanes, _): &(u32, u32, u32)| *lanes > 0;
        let (head, tail): (Vec<_>, Vec<_>) = runs
            .iter()
            .map(|run| {
                let (n, (at, lanes, step)) = (before(run), *run);
                ((at, n, step), (at + n * step, lanes - n, step))
            })
            .unzip();
        let part = |runs: Vec<(u32, u32, u32)>| {
            let runs = runs.into_iter().filter(some).collect();
            Lanes { runs, features, first: first.clone() }
        };
        [part(head), part(tail)]
    }
}
