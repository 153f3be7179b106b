//! Cutting a number of items over a line of PEs, remainders included, with positions as affine expressions.

use lapidary_runtime_sim::program::{Affine, Var};
use serde::{Deserialize, Serialize};

/// `items` cut into `parts` runs: the first, or the last, `items % parts` runs hold one item more than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tiles {
    /// How many items there are.
    pub items: u32,
    /// How many parts share them; at least 1.
    pub parts: u32,
    /// Whether it is the last runs that hold one more.
    pub large_last: bool,
}

impl Tiles {
    /// `items` over `parts`, the larger runs first.
    pub fn new(items: u32, parts: u32) -> Self {
        Tiles { items, parts: parts.max(1), large_last: false }
    }

    /// `items` over `parts`, the larger runs last.
    pub fn large_last(items: u32, parts: u32) -> Self {
        Tiles { large_last: true, ..Tiles::new(items, parts) }
    }

    /// Items of a part without the extra one.
    pub fn base(self) -> u32 {
        self.items / self.parts
    }

    /// How many parts hold an extra item.
    pub fn extra(self) -> u32 {
        self.items % self.parts
    }

    /// Items of the fullest part.
    pub fn largest(self) -> u32 {
        self.items.div_ceil(self.parts)
    }

    /// How many parts stand before the larger ones, where these come last.
    pub fn before_large(self) -> u32 {
        if self.large_last { self.parts - self.extra() } else { 0 }
    }

    /// Whether this part holds an extra item.
    pub fn is_large(self, part: u32) -> bool {
        (self.before_large()..self.before_large() + self.extra()).contains(&part)
    }

    /// Items of this part.
    pub fn size(self, part: u32) -> u32 {
        self.base() + u32::from(self.is_large(part))
    }

    /// First item of this part.
    pub fn start(self, part: u32) -> u32 {
        part * self.base() + part.saturating_sub(self.before_large()).min(self.extra())
    }

    /// First item of the part `part(x, y)`, for all parts that are large, or small, as `sample` is.
    pub fn start_at(self, part: Affine, sample: u32) -> Affine {
        if self.is_large(sample) {
            part * i64::from(self.base() + 1) - Affine::from(i64::from(self.before_large()))
        } else if self.large_last {
            part * i64::from(self.base())
        } else {
            part * i64::from(self.base()) + Affine::from(i64::from(self.extra()))
        }
    }
}

/// Neighbouring lines (columns or rows) cut into `count` blocks of `size` lines: the columns of a head, the rows of a
/// sequence. Lines beyond the last block are spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Blocks {
    /// How many blocks.
    pub count: u32,
    /// Lines of a block; at least 1.
    pub size: u32,
}

impl Blocks {
    /// All lines that belong to a block.
    pub fn lines(self) -> u32 {
        self.count * self.size
    }

    /// Whether the line belongs to a block.
    pub fn contains(self, line: u32) -> bool {
        line < self.lines()
    }

    /// Position of the line in its block.
    pub fn local(self, line: u32) -> u32 {
        line % self.size
    }

    /// Which block, along x.
    pub fn block_of_x(self) -> Affine {
        match (self.count, self.size) {
            (_, 1) => Affine::from(Var::X),
            (1, _) => Affine::constant(0),
            (_, size) => Affine::from(Var::XOver(size)),
        }
    }

    /// Position in the block, along x.
    pub fn local_x(self) -> Affine {
        Affine::from(Var::X) - self.block_of_x() * i64::from(self.size)
    }

    /// Which block, along y.
    pub fn block_of_y(self) -> Affine {
        match (self.count, self.size) {
            (_, 1) => Affine::from(Var::Y),
            (1, _) => Affine::constant(0),
            (_, size) => Affine::from(Var::YOver(size)),
        }
    }

    /// Position in the block, along y.
    pub fn local_y(self) -> Affine {
        Affine::from(Var::Y) - self.block_of_y() * i64::from(self.size)
    }
}

/// Sorted positions as arithmetic progressions `(first, count, step)`, taken greedily from the front.
pub fn progressions(positions: &[u32]) -> Vec<(u32, u32, u32)> {
    let mut runs = Vec::new();
    let mut rest = positions;
    while let Some(&first) = rest.first() {
        let step = rest.get(1).map_or(1, |second| second - first);
        let count = rest.iter().zip(0u32..).take_while(|(at, i)| **at == first + i * step).count();
        runs.push((first, count as u32, step));
        rest = &rest[count..];
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_item_once() {
        let sizes = [(10922, 994), (2048, 750), (3, 5), (64, 16), (0, 4)];
        for tiles in sizes.iter().flat_map(|(n, by)| [Tiles::new(*n, *by), Tiles::large_last(*n, *by)]) {
            let Tiles { items, parts, large_last } = tiles;
            let mut next = 0;
            for part in 0..parts {
                assert_eq!(tiles.start(part), next);
                let start = tiles.start_at(Affine::from(Var::X), part);
                assert_eq!(start.eval(|_| i64::from(part)), i64::from(next));
                next += tiles.size(part);
                let rising = part == 0 || tiles.size(part - 1) <= tiles.size(part);
                assert!(if large_last { rising } else { tiles.size(part) <= tiles.size(0) });
            }
            assert_eq!(next, items);
        }
    }

    #[test]
    fn blocks_count_lines_within_a_block() {
        let heads = Blocks { count: 4, size: 3 };
        let at = |x: i64| move |var| if let Var::XOver(n) = var { x / i64::from(n) } else { x };
        assert_eq!(heads.block_of_x().eval(at(7)), 2);
        assert_eq!(heads.local_x().eval(at(7)), 1);
        assert!(heads.contains(11) && !heads.contains(12));
        assert_eq!(Blocks { count: 9, size: 1 }.local_x(), Affine::constant(0));
        assert_eq!(Blocks { count: 1, size: 1 }.local_y(), Affine::constant(0));
    }

    #[test]
    fn progressions_find_strides() {
        assert_eq!(progressions(&[0, 2, 4, 6]), [(0, 4, 2)]);
        assert_eq!(progressions(&[1, 2, 3, 7, 10, 13]), [(1, 3, 1), (7, 3, 3)]);
        assert_eq!(progressions(&[5]), [(5, 1, 1)]);
        assert!(progressions(&[]).is_empty());
    }
}
