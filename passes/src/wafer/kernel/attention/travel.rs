//! How blocks travel past a PE.

use super::{Kernel, Pass};
use crate::wafer::channel::Channel;
use crate::wafer::code::repeat;
use crate::wafer::kernel::tour::{Block, Stretch, after, before};
use crate::wafer::tile::Tiles;
use lapidary_runtime_sim::program::{Affine, Stmt};

impl Kernel<'_> {
    /// The blocks of the own row: the own one, those of the columns before, and a way home for the others.
    pub fn own_row(&self) -> Vec<Stmt> {
        let tiles = self.head.token_tiles();
        let mut body = self.start_at_home();
        body.extend(self.attend(self.tokens(), true));
        for stretch in self.before(tiles) {
            body.extend(self.meet(stretch, tiles));
        }
        let local = self.head.shape.column_blocks().local_x();
        let home = if self.columns() > 1 { Affine::constant(self.columns()) - local } else { 0.into() };
        body.extend(repeat(home, self.turn()));
        body
    }

    /// The blocks of the rows above, nearest first, each passed on to the row below.
    pub fn rows_above(&self) -> Vec<Stmt> {
        let (tiles, row) = (self.site.placed.tokens.tiles(), self.site.row());
        let local = self.site.placed.tokens.blocks().local_y();
        // From here to the nearest row of another size, and the rest.
        let (large, first) = (tiles.is_large(row), tiles.before_large());
        let edge = i64::from(if tiles.large_last { first } else { tiles.extra() });
        let rounds = match large == tiles.large_last {
            true => vec![(local - Affine::constant(edge), large), (edge.into(), !large)],
            false => vec![(local, large)],
        };
        let mut body = Vec::new();
        for (count, large) in rounds {
            let tokens = tiles.base() + u32::from(large);
            body.extend(repeat(count, [self.descend(), self.round(tokens)].concat()));
        }
        match self.pass {
            Pass::Gradients { .. } => body.extend(self.sums_home()),
            Pass::Result | Pass::Statistics { .. } if self.is_last_row() => {}
            Pass::Result | Pass::Statistics { .. } => {
                let below = self.site.channel(Channel::Down(self.site.parity()));
                body.push(self.keys_and_values().send(below));
            }
        }
        body
    }

    /// All blocks of another row of `tokens` tokens, from the own column's to the next column's, and home again.
    fn round(&self, tokens: u32) -> Vec<Stmt> {
        let tiles = Tiles::new(tokens, self.head.shape.columns);
        let mut body = self.start_above(tokens);
        body.extend(self.attend(i64::from(tiles.size(self.head.column)), false));
        body.extend(self.before(tiles).into_iter().flat_map(|stretch| self.meet(stretch, tiles)));
        body.extend(self.wrap(tokens));
        body.extend(self.after(tiles).into_iter().flat_map(|stretch| self.meet(stretch, tiles)));
        if self.columns() > 1 {
            body.extend(self.turn());
        }
        body
    }

    /// Takes and attends to each block of a stretch.
    fn meet(&self, stretch: Stretch, tiles: Tiles) -> Vec<Stmt> {
        let keys = stretch.size(tiles);
        repeat(stretch.count, [self.turn(), self.step_back(keys), self.attend(keys, false)].concat())
    }

    /// Blocks from the columns before this one, nearest first.
    fn before(&self, tiles: Tiles) -> Vec<Stretch> {
        before(tiles, self.head.shape.column_blocks().local_x(), self.head.column)
    }

    /// Blocks from the columns after this one, last first.
    fn after(&self, tiles: Tiles) -> Vec<Stretch> {
        after(tiles, self.head.shape.column_blocks().local_x(), self.head.column)
    }

    /// What travels: keys and values, and the sums of their gradients where those are made.
    fn travelling(&self) -> Vec<Block> {
        match self.pass {
            Pass::Gradients { .. } => vec![self.keys_and_values(), self.key_sums()],
            Pass::Result | Pass::Statistics { .. } => vec![self.keys_and_values()],
        }
    }

    /// The block of keys and values.
    pub fn keys_and_values(&self) -> Block {
        let elements = 2 * self.values_at();
        let wire = self.site.packed_wire(elements);
        Block { here: self.name("block"), next: self.name("next"), elements, wire }
    }

    /// Sends the blocks to the next column of the head block and takes those of the column before.
    fn turn(&self) -> Vec<Stmt> {
        let (next, previous) = (self.site.next_of(&self.head), self.site.previous_of(&self.head));
        self.travelling().iter().flat_map(|block| block.exchange(next, previous)).collect()
    }

    /// Sends the blocks to the row below, where there is one, and takes those of the row above.
    fn descend(&self) -> Vec<Stmt> {
        let above = self.site.channel(Channel::Down(self.site.north_parity()));
        let below = self.site.channel(Channel::Down(self.site.parity()));
        let keys = self.keys_and_values();
        let mut body = if self.is_last_row() { vec![keys.take(above)] } else { keys.exchange(below, above) };
        if let Pass::Gradients { .. } = self.pass {
            body.extend(self.key_sums().exchange(self.to_next_row(), above));
        }
        body
    }

    /// Whether no row of the sequence is below.
    pub fn is_last_row(&self) -> bool {
        self.site.row() + 1 == self.site.placed.tokens.rows
    }
}
