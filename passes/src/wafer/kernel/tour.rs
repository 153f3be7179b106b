//! How blocks come by on a tour round a line of PEs: each part of the line starts with its own block, passes on what it
//! has and takes what the part before had. So it meets the blocks of the parts before it, nearest first, and then those
//! of the parts after it, last first.
//!
//! Parts are tiles of one larger or one smaller size. Blocks travel at the larger size and are met at their own, so a
//! part meets up to three stretches of blocks of one size.

use crate::wafer::code::{dims, from, op, send, slice, to, vector, words};
use crate::wafer::tile::Tiles;
use lapidary_runtime_sim::program::{Affine, Colour, OpKind, Stmt, Var, Wire};

/// A stretch of blocks of one size on their way past a PE.
pub struct Stretch {
    /// How many.
    pub count: Affine,
    /// Part that the first of them comes from; the next ones come from the parts before it.
    pub from: Affine,
    /// Whether they are of the larger size.
    pub large: bool,
}

impl Stretch {
    /// Items of each block.
    pub fn size(&self, tiles: Tiles) -> i64 {
        i64::from(tiles.base() + u32::from(self.large))
    }

    /// First item of block number `step`.
    pub fn start(&self, tiles: Tiles, step: Var) -> Affine {
        let part = self.from.clone().plus(step, -1);
        tiles.start_at(part, if self.large { 0 } else { tiles.extra() })
    }
}

/// Blocks from the parts before part `part`, which is `local(x, y)`.
pub fn before(tiles: Tiles, local: Affine, part: u32) -> Vec<Stretch> {
    let extra = i64::from(tiles.extra());
    let nearest = local.clone() - Affine::constant(1);
    if tiles.is_large(part) {
        return vec![Stretch { count: local, from: nearest, large: true }];
    }
    vec![
        Stretch { count: local - Affine::constant(extra), from: nearest, large: false },
        Stretch { count: extra.into(), from: (extra - 1).into(), large: true },
    ]
}

/// Blocks from the parts after part `part`, which is `local(x, y)`.
pub fn after(tiles: Tiles, local: Affine, part: u32) -> Vec<Stretch> {
    let (extra, parts) = (i64::from(tiles.extra()), i64::from(tiles.parts));
    let last = Affine::constant(parts - 1);
    if !tiles.is_large(part) {
        return vec![Stretch { count: last.clone() - local, from: last, large: false }];
    }
    vec![
        Stretch { count: (parts - extra).into(), from: last, large: false },
        Stretch { count: Affine::constant(extra - 1) - local, from: (extra - 1).into(), large: true },
    ]
}

/// A block on tour: what is here, and where the one that comes is put.
pub struct Block {
    /// The buffer that is met.
    pub here: String,
    /// The buffer that takes what comes.
    pub next: String,
    /// Elements that travel.
    pub elements: i64,
    /// How they travel.
    pub wire: Wire,
}

impl Block {
    /// Sends the block on and takes the next.
    pub fn exchange(&self, out: Colour, come: Colour) -> Vec<Stmt> {
        let all = || dims([self.elements]);
        vec![
            Stmt::Par(vec![
                vector(OpKind::Mov, send(out, self.wire), [from(slice(&self.here, 0))], all()),
                vector(OpKind::Mov, to(slice(&self.next, 0)), [words(come, self.wire)], all()),
            ]),
            op(OpKind::Mov, to(slice(&self.here, 0)), [from(slice(&self.next, 0))], all()),
        ]
    }

    /// Sends the block on; none comes.
    pub fn send(&self, out: Colour) -> Stmt {
        op(OpKind::Mov, send(out, self.wire), [from(slice(&self.here, 0))], dims([self.elements]))
    }

    /// Takes the next block; the one that was here stays nowhere.
    pub fn take(&self, come: Colour) -> Stmt {
        op(OpKind::Mov, to(slice(&self.here, 0)), [words(come, self.wire)], dims([self.elements]))
    }
}
