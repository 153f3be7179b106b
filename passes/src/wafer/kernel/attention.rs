//! Causal attention with an online softmax; nothing of size tokens x tokens is ever stored.
//!
//! A PE holds the queries, keys and values of its own tokens, with all features of its heads. Blocks of keys and values
//! travel: round the columns of the head block, so that every PE of a row sees the block of every other, and, after each
//! round, to the same column of the next row of the sequence. A row therefore meets its own block first and then those
//! of the rows above it, which is all that causality lets it see; within its own row a PE skips the blocks of columns to
//! its right. Per block a PE keeps a running maximum and sum for each of its queries. In the end the results travel once
//! more round the head block, and each column picks its own features for all tokens: the layout that the output
//! projection reads.
//!
//! Blocks travel at the size of the largest one: with uneven tiles the words of up to one token per block are wasted,
//! arithmetic is not.

use super::{Scratch, scratch_name};
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, number, op, repeat, send, slice, strided, to, vector, words};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Attention, Layout, Placed, PlacedOp};
use crate::wafer::site::{HeadSite, Site};
use crate::wafer::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, Colour, OpKind, Operand, Slice, Stmt, TensorMap, Var};

/// Stands for minus infinity in scores: far below any of them, and finite, so that differences are numbers.
const MASKED: f64 = -1e30;

/// Name of the host's table `[n, n]` of zeros on and below the diagonal and [`MASKED`] above, n the tokens of the
/// fullest PE.
pub const MASK: &str = "causal.mask";

/// The mask table for PEs of up to `n` tokens.
pub fn mask(n: u32) -> Vec<f32> {
    let cell = |query: u32, key: u32| if key > query { MASKED as f32 } else { 0.0 };
    (0..n).flat_map(|query| (0..n).map(move |key| cell(query, key))).collect()
}

/// Tokens of the fullest PE of any head block.
pub fn largest_block(placed: &Placed) -> u32 {
    let row = placed.tokens.tiles().largest();
    placed.heads.map_or(0, |heads| Tiles::new(row, heads.columns).largest())
}

/// Channels: round the head blocks, and down the rows of a sequence.
pub fn channels(placed: &Placed) -> Vec<Channel> {
    let mut channels = Vec::new();
    if placed.heads.is_some_and(|heads| heads.columns > 1) {
        channels.extend([Channel::East(0), Channel::East(1), Channel::HeadWrap]);
    }
    if placed.tokens.rows > 1 {
        channels.extend([Channel::Down(0), Channel::Down(1)]);
    }
    channels
}

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, attention: &Attention) -> Result<Vec<Stmt>, WaferError> {
    check(site, at, attention)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let k = Kernel { site, at, attention, head };
    let mut body = k.begin();
    body.extend(k.own_row());
    body.extend(k.rows_above());
    body.extend(k.finish());
    body.extend(k.gather());
    Ok(body)
}

/// Blocks, scores and the state of the softmax.
pub fn scratch(site: &Site, at: &PlacedOp) -> Result<Vec<Scratch>, WaferError> {
    let shape = site.placed.heads(&at.name)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let (tokens, largest) = (head.tokens(), largest_block(site.placed));
    let queries = (shape.kv * shape.ways).saturating_mul(tokens);
    let block = largest.saturating_mul((2 * shape.key_features()).max(shape.query_features()));
    let dtype = site.placed.dtype;
    let index = Affine::term(Var::Dim(0), i64::from(largest)).plus(Var::Dim(1), 1);
    let lengths = vec![i64::from(tokens).into(), i64::from(tokens).into()];
    let load = Some(TensorMap { tensor: MASK.into(), dims: lengths, index });
    Ok(vec![
        Scratch::new("block", dtype, block),
        Scratch::new("next", dtype, block),
        Scratch::new("scores", DType::F32, queries.saturating_mul(largest)),
        Scratch::new("shares", dtype, queries.saturating_mul(largest)),
        Scratch::new("max", DType::F32, queries),
        Scratch::new("newmax", DType::F32, queries),
        Scratch::new("shrink", DType::F32, queries),
        Scratch::new("sum", DType::F32, queries),
        Scratch::new("result", DType::F32, queries.saturating_mul(shape.dim)),
        Scratch { load, ..Scratch::new("mask", DType::F32, tokens.saturating_mul(tokens)) },
    ])
}

fn check(site: &Site, at: &PlacedOp, attention: &Attention) -> Result<(), WaferError> {
    let placed = site.placed;
    placed.heads(&at.name)?;
    let wanted = [
        (&attention.query, Layout::HeadTokens { queries: true }),
        (&attention.key, Layout::HeadTokens { queries: false }),
        (&attention.value, Layout::HeadTokens { queries: false }),
        (&attention.output, Layout::HeadColumns),
    ];
    for (value, layout) in wanted {
        let found = placed.layout(at, value)?;
        if found != layout {
            let detail = format!("{value} lies as {found:?}, attention needs {layout:?}");
            return Err(WaferError::Layout { op: at.name.clone(), detail });
        }
    }
    Ok(())
}

/// A stretch of blocks of one size on their way past a PE.
struct Stretch {
    count: Affine,
    /// Column that the first of them comes from; the next ones come from the columns before it.
    from_column: Affine,
    large: bool,
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    attention: &'a Attention,
    head: HeadSite,
}

impl Kernel<'_> {
    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    fn all(&self, scratch: &str) -> Slice {
        slice(&self.name(scratch), 0)
    }

    fn dim(&self) -> i64 {
        i64::from(self.head.shape.dim)
    }

    fn key_heads(&self) -> i64 {
        i64::from(self.head.shape.kv)
    }

    fn query_heads(&self) -> i64 {
        self.key_heads() * i64::from(self.head.shape.ways)
    }

    fn tokens(&self) -> i64 {
        i64::from(self.head.tokens())
    }

    /// Queries of one key/value head at this PE.
    fn queries(&self) -> i64 {
        i64::from(self.head.shape.ways) * self.tokens()
    }

    fn columns(&self) -> i64 {
        i64::from(self.head.shape.columns)
    }

    /// Tokens of the largest block anywhere.
    fn largest(&self) -> i64 {
        i64::from(largest_block(self.site.placed))
    }

    /// First element of the values in a block.
    fn values_at(&self) -> i64 {
        self.key_heads() * self.dim() * self.largest()
    }

    /// Scales the queries, clears the state and fills the block with the own keys and values.
    fn begin(&self) -> Vec<Stmt> {
        let state = self.key_heads() * self.queries();
        let own = self.key_heads() * self.dim() * self.tokens();
        let fill = |name: &str, value: f64, count: i64| {
            op(OpKind::Mov, to(self.all(name)), [number(value)], dims([count]))
        };
        let query = || slice(&self.attention.query, 0);
        let copy = |first: i64, value: &str| {
            op(OpKind::Mov, to(slice(&self.name("block"), first)), [from(slice(value, 0))], dims([own]))
        };
        vec![
            op(
                OpKind::Mul,
                to(query()),
                [from(query()), number(self.attention.scale)],
                dims([state * self.dim()]),
            ),
            fill("max", MASKED, state),
            fill("sum", 0.0, state),
            fill("result", 0.0, state * self.dim()),
            copy(0, &self.attention.key),
            copy(self.values_at(), &self.attention.value),
        ]
    }

    /// The blocks of the own row: the own one, those of the columns before, and a way home for the others.
    fn own_row(&self) -> Vec<Stmt> {
        let tiles = self.head.token_tiles();
        let mut body = self.attend(self.tokens(), true);
        for stretch in self.before(tiles) {
            body.extend(repeat(
                stretch.count,
                [self.turn(self.key_words()), self.attend(size(tiles, stretch.large), false)].concat(),
            ));
        }
        let local = self.head.shape.column_blocks().local_x();
        let home = if self.columns() > 1 { Affine::constant(self.columns()) - local } else { 0.into() };
        body.extend(repeat(home, self.turn(self.key_words())));
        body
    }

    /// The blocks of the rows above, nearest first, each passed on to the row below.
    fn rows_above(&self) -> Vec<Stmt> {
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
        let mut body = self.attend(i64::from(tiles.size(self.head.column)), false);
        for stretch in self.before(tiles).into_iter().chain(self.after(tiles)) {
            body.extend(repeat(
                stretch.count,
                [self.turn(self.key_words()), self.attend(size(tiles, stretch.large), false)].concat(),
            ));
        }
        if self.columns() > 1 {
            body.extend(self.turn(self.key_words()));
        }
        body
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

    fn block_south(&self) -> lapidary_runtime_sim::program::VectorOp {
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

    /// Scores of all own queries against the `keys` keys of the block, and their share in the result.
    fn attend(&self, keys: i64, diagonal: bool) -> Vec<Stmt> {
        if keys == 0 || self.tokens() == 0 {
            return vec![];
        }
        let mut body = self.score(keys);
        if diagonal && keys > 1 {
            let lengths = dims([self.query_heads(), self.tokens(), keys]);
            let mask = from(strided(&self.name("mask"), 0, &[0, self.tokens(), 1]));
            body.push(op(OpKind::Add, to(self.all("scores")), [from(self.all("scores")), mask], lengths));
        }
        body.extend(self.soften(keys));
        body.extend(self.weigh(keys));
        body
    }

    fn score(&self, keys: i64) -> Vec<Stmt> {
        let (dim, queries) = (self.dim(), self.queries());
        let scores = || strided(&self.name("scores"), 0, &[queries * keys, keys, 1, 0]);
        let query = from(strided(&self.attention.query, 0, &[queries * dim, dim, 0, 1]));
        let key = from(strided(&self.name("block"), 0, &[keys * dim, 0, dim, 1]));
        let count = self.key_heads() * queries * keys;
        let lengths = dims([self.key_heads(), queries, keys, dim]);
        vec![
            op(OpKind::Mov, to(self.all("scores")), [number(0.0)], dims([count])),
            op(OpKind::Fmac, to(scores()), [query, key, from(scores())], lengths),
        ]
    }

    /// The online softmax: moves the running maximum and turns scores into shares of it.
    fn soften(&self, keys: i64) -> Vec<Stmt> {
        let state = self.key_heads() * self.queries();
        let (each, both) = (|| dims([state]), || dims([state, keys]));
        let of_query = |name: &str| strided(&self.name(name), 0, &[1, 0]);
        let scores = || from(self.all("scores"));
        let get = |name: &str| from(self.all(name));
        let put = |name: &str| to(self.all(name));
        vec![
            op(OpKind::Mov, put("newmax"), [get("max")], each()),
            op(OpKind::Max, to(of_query("newmax")), [from(of_query("newmax")), scores()], both()),
            op(OpKind::Sub, put("shrink"), [get("max"), get("newmax")], each()),
            op(OpKind::Exp, put("shrink"), [get("shrink")], each()),
            op(OpKind::Sub, put("scores"), [scores(), from(of_query("newmax"))], both()),
            op(OpKind::Exp, put("shares"), [scores()], both()),
            op(OpKind::Mul, put("sum"), [get("sum"), get("shrink")], each()),
            op(OpKind::Add, to(of_query("sum")), [from(of_query("sum")), get("shares")], both()),
            op(OpKind::Mov, put("max"), [get("newmax")], each()),
        ]
    }

    /// Shrinks the result to the new maximum and adds the values by their shares.
    fn weigh(&self, keys: i64) -> Vec<Stmt> {
        let (dim, queries) = (self.dim(), self.queries());
        let state = self.key_heads() * queries;
        let shrink: Operand = from(strided(&self.name("shrink"), 0, &[1, 0]));
        let result = || strided(&self.name("result"), 0, &[queries * dim, dim, 0, 1]);
        let share = from(strided(&self.name("shares"), 0, &[queries * keys, keys, 1, 0]));
        let value = from(strided(&self.name("block"), self.values_at(), &[keys * dim, 0, dim, 1]));
        let lengths = dims([self.key_heads(), queries, keys, dim]);
        vec![
            op(OpKind::Mul, to(self.all("result")), [from(self.all("result")), shrink], dims([state, dim])),
            op(OpKind::Fmac, to(result()), [share, value, from(result())], lengths),
        ]
    }

    /// Divides by the sums; the block becomes `[feature][token]`.
    fn finish(&self) -> Vec<Stmt> {
        let (dim, tokens) = (self.dim(), self.tokens());
        let state = self.query_heads() * tokens;
        let block = strided(&self.name("block"), 0, &[dim * tokens, 1, tokens]);
        let sum = from(strided(&self.name("sum"), 0, &[tokens, 1, 0]));
        let lengths = dims([self.query_heads(), tokens, dim]);
        vec![
            op(OpKind::Recip, to(self.all("sum")), [from(self.all("sum"))], dims([state])),
            op(OpKind::Mul, to(block), [from(self.all("result")), sum], lengths),
        ]
    }

    /// Takes the own features of every column's tokens.
    fn gather(&self) -> Vec<Stmt> {
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
