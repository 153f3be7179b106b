//! Which outputs a PE meets in which role.

use super::Kernel;
use crate::wafer::placed::Layout;
use crate::wafer::tile::Tiles;
use lapidary_runtime_sim::program::Affine;

/// Which outputs a PE meets, in their order.
pub struct Share {
    /// Outputs of earlier blocks, passed on.
    pub before: Affine,
    /// Outputs of the block before, begun here.
    pub begun: i64,
    /// Outputs of later blocks, passed on.
    pub after: Affine,
    /// Outputs of the last block, begun at column 0.
    pub begun_last: i64,
    /// First token that a block before leaves for its last column: the ring begins here from this token on.
    pub left: i64,
}

impl Share {
    /// The share of a PE.
    pub fn of(kernel: &Kernel) -> Self {
        match kernel.layout {
            Layout::Columns { features } => kernel.column_share(features),
            _ => kernel.head_share(),
        }
    }
}

impl Kernel<'_> {
    fn column_share(&self, features: u32) -> Share {
        let (placed, x) = (self.site.placed, self.site.at.x);
        let tiles = Tiles::new(features, placed.width);
        let each = self.linear.outputs.len() as i64;
        let (own, start) = self.site.features(self.layout);
        let own = i64::from(own) * each;
        let start = start * each;
        let total = Affine::constant(i64::from(features) * each);
        let before_me = x.checked_sub(1).map_or(0, |column| i64::from(tiles.size(column)) * each);
        let at_last = i64::from(tiles.size(placed.width - 1)) * each;
        let begun_last = if x == 0 { at_last } else { 0 };
        let after = total - start.clone() - Affine::constant(own + begun_last);
        Share { before: start - Affine::constant(before_me), begun: before_me, after, begun_last, left: 0 }
    }

    fn head_share(&self) -> Share {
        let Some(shape) = self.site.placed.heads else {
            return Share { before: 0.into(), begun: 0, after: 0.into(), begun_last: 0, left: 0 };
        };
        let (blocks, x) = (shape.column_blocks(), self.site.at.x);
        let each: i64 = self.linear.outputs.iter().map(|s| self.block_outputs(&s.value)).sum();
        let tiles = Tiles::new(self.site.tokens(), shape.columns);
        let left = i64::from(tiles.start(shape.columns - 1));
        let all = i64::from(shape.blocks) * each;
        if !blocks.contains(x) {
            let begun = if x == blocks.lines() { each } else { 0 };
            return Share { before: (all - begun).into(), begun, after: 0.into(), begun_last: 0, left };
        }
        let earlier = blocks.block_of_x() * each;
        let begun = if blocks.local(x) == 0 && x > 0 { each } else { 0 };
        let begun_last = if x == 0 && blocks.lines() == self.site.placed.width { each } else { 0 };
        // With one block the last block is the own one: its ring begins within [`super::block`].
        let begun_last = if shape.blocks == 1 { 0 } else { begun_last };
        let after = Affine::constant(all - each - begun_last) - earlier.clone();
        Share { before: earlier - Affine::constant(begun), begun, after, begun_last, left }
    }

    fn block_outputs(&self, value: &str) -> i64 {
        let layout = self.site.placed.values.get(value);
        let features = layout.map_or(0, |layout| self.site.placed.features(*layout));
        i64::from(features / self.site.placed.heads.map_or(1, |heads| heads.blocks))
    }
}
