//! How blocks travel past a PE.

use super::Kernel;
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, op, repeat, send, slice, strided, to, vector, words};
use crate::wafer::tile::Tiles;
use lapidary_runtime_sim::program::{Affine, Colour, OpKind, Stmt, Var, VectorOp};

/// A stretch of blocks of one size on their way past a PE.
struct Stretch {
    count: Affine,
    /// Column that the first of them comes from; the next ones come from the columns before it.
    from_column: Affine,
    large: bool,
}

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
        body.extend(repeat(home, self.turn(self.key_words())));
        body
    }

    /// The blocks of the rows above, nearest first, each passed on to the row below.
    pub fn rows_above(&self) -> Vec<Stmt> {
        let (tiles, row) = (self.site.placed.tokens.tiles(), self.site.row());
        let local = self.site.placed.tokens.blocks().local_y();
        let extra = i64::from(tiles.extra());
        let rounds = if tiles.is_large(row) {
            vec![(local, true)]
        } else {
            vec![(local - Affine::constant(extra), false), (extra.into(), true)]
        };
        let mut body = Vec::new();
        for (count, large) in rounds {
            let tokens = tiles.base() + u32::from(large);
            body.extend(repeat(count, [self.descend(), self.round(tokens)].concat()));
        }
        if row + 1 < self.site.placed.tokens.rows {
            body.push(Stmt::Op(self.block_south()));
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
            body.extend(self.turn(self.key_words()));
        }
        body
    }

    /// Takes and attends to each block of a stretch.
    fn meet(&self, stretch: Stretch, tiles: Tiles) -> Vec<Stmt> {
        let keys = size(tiles, stretch.large);
        repeat(
            stretch.count,
            [self.turn(self.key_words()), self.step_back(keys), self.attend(keys, false)].concat(),
        )
    }

    /// Blocks from the columns before this one, nearest first.
    fn before(&self, tiles: Tiles) -> Vec<Stretch> {
        let (local, extra) = (self.head.shape.column_blocks().local_x(), i64::from(tiles.extra()));
        let nearest = local.clone() - Affine::constant(1);
        if tiles.is_large(self.head.column) {
            return vec![Stretch { count: local, from_column: nearest, large: true }];
        }
        vec![
            Stretch { count: local - Affine::constant(extra), from_column: nearest, large: false },
            Stretch { count: extra.into(), from_column: (extra - 1).into(), large: true },
        ]
    }

    /// Blocks from the columns after this one, last first.
    fn after(&self, tiles: Tiles) -> Vec<Stretch> {
        let (local, extra) = (self.head.shape.column_blocks().local_x(), i64::from(tiles.extra()));
        let last = Affine::constant(self.columns() - 1);
        if !tiles.is_large(self.head.column) {
            return vec![Stretch { count: last.clone() - local, from_column: last, large: false }];
        }
        vec![
            Stretch { count: (self.columns() - extra).into(), from_column: last, large: false },
            Stretch {
                count: Affine::constant(extra - 1) - local,
                from_column: (extra - 1).into(),
                large: true,
            },
        ]
    }

    /// Elements of a block of keys and values on its way.
    fn key_words(&self) -> i64 {
        2 * self.values_at()
    }

    /// Sends the block to the next column of the head block and takes that of the column before.
    fn turn(&self, elements: i64) -> Vec<Stmt> {
        self.exchange(self.site.next_of(&self.head), self.site.previous_of(&self.head), elements)
    }

    /// Sends the block to the row below, where there is one, and takes that of the row above.
    fn descend(&self) -> Vec<Stmt> {
        let above = self.site.channel(Channel::Down(self.site.north_parity()));
        if self.site.row() + 1 < self.site.placed.tokens.rows {
            return self.exchange(
                self.site.channel(Channel::Down(self.site.parity())),
                above,
                self.key_words(),
            );
        }
        let wire = self.site.packed_wire(self.key_words());
        vec![op(OpKind::Mov, to(self.all("block")), [words(above, wire)], dims([self.key_words()]))]
    }

    fn block_south(&self) -> VectorOp {
        let wire = self.site.packed_wire(self.key_words());
        let down = send(self.site.channel(Channel::Down(self.site.parity())), wire);
        vector(OpKind::Mov, down, [from(self.all("block"))], dims([self.key_words()]))
    }

    fn exchange(&self, out: Colour, come: Colour, elements: i64) -> Vec<Stmt> {
        let wire = self.site.packed_wire(elements);
        let all = || dims([elements]);
        vec![
            Stmt::Par(vec![
                vector(OpKind::Mov, send(out, wire), [from(self.all("block"))], all()),
                vector(OpKind::Mov, to(self.all("next")), [words(come, wire)], all()),
            ]),
            op(OpKind::Mov, to(self.all("block")), [from(self.all("next"))], all()),
        ]
    }

    /// Takes the own features of every column's tokens.
    pub fn gather(&self) -> Vec<Stmt> {
        let tiles = self.head.token_tiles();
        let elements = self.query_heads() * self.dim() * self.largest();
        let mut body = self.pick(self.head.first_token(), self.tokens());
        for stretch in self.before(tiles).into_iter().chain(self.after(tiles)) {
            let column = stretch.from_column.plus(Var::Loop(0), -1);
            let first = tiles.start_at(column, if stretch.large { 0 } else { tiles.extra() });
            body.extend(repeat(
                stretch.count,
                [self.turn(elements), self.pick(first, size(tiles, stretch.large))].concat(),
            ));
        }
        if self.columns() > 1 {
            body.extend(self.turn(elements));
        }
        body
    }

    fn pick(&self, first_token: Affine, tokens: i64) -> Vec<Stmt> {
        let features = self.head.feature_tiles();
        let own = i64::from(features.size(self.head.column));
        let first = features.start_at(self.head.shape.column_blocks().local_x(), self.head.column);
        let source = from(slice(&self.name("block"), first * tokens));
        let output = strided(&self.attention.output, first_token, &[i64::from(self.site.tokens()), 1]);
        vec![op(OpKind::Mov, to(output), [source], dims([own, tokens]))]
    }
}

/// Tokens of a large or small block.
fn size(tiles: Tiles, large: bool) -> i64 {
    i64::from(tiles.base() + u32::from(large))
}
