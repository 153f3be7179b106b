//! One PE of a class, seen from the code that is generated for it: what it holds and whom it talks to.

use super::WaferSpec;
use super::channel::{Channel, Colours};
use super::placed::{Heads, Layout, Placed, RowHeads};
use super::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, Colour, Coord, Var, Wire};

/// A PE. Constants are those of the PE itself, expressions hold for all PEs of its class.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The computation.
    pub placed: &'a Placed,
    /// The wafer.
    pub spec: &'a WaferSpec,
    /// The colours of its channels.
    pub colours: &'a Colours,
    /// Where the PE is.
    pub at: Coord,
    /// Number of the op in hand, which is its phase.
    pub phase: usize,
}

impl<'a> Site<'a> {
    /// Tokens of this row.
    pub fn tokens(&self) -> u32 {
        self.placed.tokens.tiles().size(self.row())
    }

    /// Position of this row among those of its sequence.
    pub fn row(&self) -> u32 {
        self.placed.tokens.blocks().local(self.at.y)
    }

    /// First token of this row within its sequence.
    pub fn first_position(&self) -> Affine {
        if self.placed.resident {
            return Affine::constant(0);
        }
        self.placed.tokens.tiles().start_at(self.placed.tokens.blocks().local_y(), self.row())
    }

    /// First token of this row among all tokens of the micro-batch.
    pub fn first_token(&self) -> Affine {
        let tokens = self.placed.tokens;
        if self.placed.resident {
            return Affine::constant(0);
        }
        tokens.blocks().block_of_y() * i64::from(tokens.length) + self.first_position()
    }

    /// Features of a layout at this PE and the first of them, as the host counts them.
    pub fn features(&self, layout: Layout) -> (u32, Affine) {
        match layout {
            Layout::Columns { features } => {
                let tiles = Tiles::new(features, self.placed.width);
                (tiles.size(self.at.x), tiles.start_at(Affine::from(Var::X), self.at.x))
            }
            Layout::Rows { features } => {
                let tiles = Tiles::new(features, self.placed.rows());
                (tiles.size(self.at.y), tiles.start_at(Affine::from(Var::Y), self.at.y))
            }
            Layout::HeadRows { heads, queries } => {
                self.row_features(heads, queries).unwrap_or((0, Affine::constant(0)))
            }
            Layout::HeadColumns { queries } => {
                self.block_features(queries).unwrap_or((0, Affine::constant(0)))
            }
            Layout::HeadTokens { queries } => match self.head() {
                Some(head) => (head.shape.features(queries), Affine::constant(0)),
                None => (0, Affine::constant(0)),
            },
        }
    }

    /// The row of this PE within its block of head rows, if it is in one.
    pub fn row_of(&self, heads: RowHeads) -> Option<u32> {
        let blocks = heads.blocks();
        blocks.contains(self.at.y).then(|| blocks.local(self.at.y))
    }

    fn row_features(&self, heads: RowHeads, queries: bool) -> Option<(u32, Affine)> {
        let row = self.row_of(heads)?;
        let (count, blocks) = (i64::from(heads.count(queries)), heads.blocks());
        let (pairs, rest) = (heads.pair_tiles(), heads.rest_tiles());
        let of_head = pairs.start_at(blocks.local_y(), row) * 2 + rest.start_at(blocks.local_y(), row);
        let before = blocks.block_of_y() * (count * i64::from(heads.heads.dim));
        Some((heads.own(row) * heads.count(queries), before + of_head * count))
    }

    fn block_features(&self, queries: bool) -> Option<(u32, Affine)> {
        let head = self.head()?;
        let tiles = head.feature_tiles(queries);
        let blocks = head.shape.column_blocks();
        let start = blocks.block_of_x() * i64::from(head.shape.features(queries));
        Some((tiles.size(head.column), start + tiles.start_at(blocks.local_x(), head.column)))
    }

    /// Elements of a value at this PE.
    pub fn elements(&self, layout: Layout) -> u32 {
        let (features, _) = self.features(layout);
        match layout {
            Layout::HeadTokens { .. } => features.saturating_mul(self.head().map_or(0, |head| head.tokens())),
            _ => features.saturating_mul(self.tokens()),
        }
    }

    /// The head block this PE is in, if any.
    pub fn head(&self) -> Option<HeadSite> {
        let shape = self.placed.heads?;
        let blocks = shape.column_blocks();
        let column = blocks.local(self.at.x);
        blocks.contains(self.at.x).then(|| HeadSite { shape, column, row_tokens: self.tokens() })
    }

    /// Where the weights arrive.
    pub fn weights(&self) -> Colour {
        self.colours.get(self.phase, Channel::Weights)
    }

    /// To the next column of the ring of the row.
    pub fn next_column(&self) -> Colour {
        self.channel(if self.is_last() { Channel::Wrap } else { self.east() })
    }

    /// From the previous column of the ring of the row.
    pub fn previous_column(&self) -> Colour {
        self.channel(if self.at.x == 0 { Channel::Wrap } else { self.west() })
    }

    /// To the next column of the ring of the head block.
    pub fn next_of(&self, head: &HeadSite) -> Colour {
        self.channel(if head.column + 1 == head.shape.columns { Channel::HeadWrap } else { self.east() })
    }

    /// From the previous column of the ring of the head block.
    pub fn previous_of(&self, head: &HeadSite) -> Colour {
        self.channel(if head.column == 0 { Channel::HeadWrap } else { self.west() })
    }

    /// Parity of the rows that send to this one, 1 - that of this row.
    pub fn north_parity(&self) -> u8 {
        ((self.at.y + 1) % 2) as u8
    }

    /// Parity of this row.
    pub fn parity(&self) -> u8 {
        (self.at.y % 2) as u8
    }

    /// Colour of a channel of this phase.
    pub fn channel(&self, channel: Channel) -> Colour {
        self.colours.get(self.phase, channel)
    }

    /// Whether this is the last column.
    pub fn is_last(&self) -> bool {
        self.at.x + 1 == self.placed.width
    }

    /// How one value travels as one word.
    pub fn wire(&self) -> Wire {
        match self.placed.dtype {
            DType::F16 => Wire::F16,
            DType::Bf16 => Wire::Bf16,
            DType::F32 | DType::I32 => Wire::F32,
        }
    }

    /// How `elements` values travel, two to a word where they are narrow and their number is even.
    pub fn packed_wire(&self, elements: i64) -> Wire {
        match self.placed.dtype {
            DType::F16 if elements % 2 == 0 => Wire::F16x2,
            DType::Bf16 if elements % 2 == 0 => Wire::Bf16x2,
            _ => self.wire(),
        }
    }

    fn east(&self) -> Channel {
        Channel::East((self.at.x % 2) as u8)
    }

    fn west(&self) -> Channel {
        Channel::East(((self.at.x + 1) % 2) as u8)
    }
}

/// A PE within its head block.
#[derive(Clone, Copy, Debug)]
pub struct HeadSite {
    /// The heads.
    pub shape: Heads,
    /// Column within the block.
    pub column: u32,
    /// Tokens of the row.
    pub row_tokens: u32,
}

impl HeadSite {
    /// Tokens of the row over the columns of the block.
    pub fn token_tiles(&self) -> Tiles {
        Tiles::new(self.row_tokens, self.shape.columns)
    }

    /// Query (or key) features of the block over its columns.
    pub fn feature_tiles(&self, queries: bool) -> Tiles {
        Tiles::new(self.shape.features(queries), self.shape.columns)
    }

    /// Tokens of this PE.
    pub fn tokens(&self) -> u32 {
        self.token_tiles().size(self.column)
    }

    /// First token of this PE within the row.
    pub fn first_token(&self) -> Affine {
        self.token_tiles().start_at(self.shape.column_blocks().local_x(), self.column)
    }
}
