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

mod backward;
pub mod distance;
mod softmax;
mod travel;

pub use backward::{channels as channels_dx, code as code_dx, scratch as scratch_dx};

use super::gather::Gathering;
use super::{Scratch, gather, scratch_name};
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, number, op, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Attention, AttentionDx, Layout, Placed, PlacedOp};
use crate::wafer::site::{HeadSite, Site};
use crate::wafer::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Slice, Stmt, TensorMap, Var};

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
    let mut channels = gather::channels(placed);
    if placed.tokens.rows > 1 {
        channels.extend([Channel::Down(0), Channel::Down(1)]);
    }
    channels
}

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, attention: &Attention) -> Result<Vec<Stmt>, WaferError> {
    check(site, at, attention)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let k = Kernel { site, at, scores: attention.into(), head, pass: Pass::Result };
    let mut body = vec![k.scale_queries()];
    body.extend(k.begin());
    body.extend(k.own_row());
    body.extend(k.rows_above());
    body.extend(k.finish());
    let (here, next, output) = (k.name("block"), k.name("next"), &attention.output);
    body.extend(Gathering { site, head, queries: true, here, next, output }.statements());
    Ok(body)
}

/// Blocks, scores and the state of the softmax.
pub fn scratch(site: &Site, at: &PlacedOp, attention: &Attention) -> Result<Vec<Scratch>, WaferError> {
    let shape = site.placed.heads(&at.name)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let (tokens, largest) = (head.tokens(), largest_block(site.placed));
    let queries = (shape.kv * shape.ways).saturating_mul(tokens);
    let block = largest.saturating_mul((2 * shape.key_features()).max(shape.query_features()));
    let dtype = site.placed.dtype;
    let mut scratch = distance::scratch(site, at, &attention.into(), &head, largest);
    scratch.extend([
        Scratch::new("block", dtype, block),
        Scratch::new("next", dtype, block),
        Scratch::new("scores", DType::F32, queries.saturating_mul(largest)),
        Scratch::new("shares", dtype, queries.saturating_mul(largest)),
        Scratch::new("max", DType::F32, queries),
        Scratch::new("newmax", DType::F32, queries),
        Scratch::new("shrink", DType::F32, queries),
        Scratch::new("sum", DType::F32, queries),
        Scratch::new("result", DType::F32, queries.saturating_mul(shape.dim)),
        mask_table(tokens, largest),
    ]);
    Ok(scratch)
}

/// The causal mask between the own tokens.
fn mask_table(tokens: u32, largest: u32) -> Scratch {
    let index = Affine::term(Var::Dim(0), i64::from(largest)).plus(Var::Dim(1), 1);
    let lengths = vec![i64::from(tokens).into(), i64::from(tokens).into()];
    let load = Some(TensorMap { tensor: MASK.into(), dims: lengths, index });
    Scratch { load, ..Scratch::new("mask", DType::F32, tokens.saturating_mul(tokens)) }
}

fn check(site: &Site, at: &PlacedOp, attention: &Attention) -> Result<(), WaferError> {
    let placed = site.placed;
    let keys = Layout::HeadTokens { queries: false };
    let output = (&attention.output, Layout::HeadColumns { queries: true });
    let queries = (&attention.query, Layout::HeadTokens { queries: true });
    check_layouts(placed, at, &[queries, (&attention.key, keys), (&attention.value, keys), output])
}

fn check_layouts(placed: &Placed, at: &PlacedOp, wanted: &[(&String, Layout)]) -> Result<(), WaferError> {
    placed.heads(&at.name)?;
    for (value, layout) in wanted {
        let found = placed.layout(at, value)?;
        if found != *layout {
            let detail = format!("{value} lies as {found:?}, attention needs {layout:?}");
            return Err(WaferError::Layout { op: at.name.clone(), detail });
        }
    }
    Ok(())
}

/// How scores are made.
#[derive(Clone, Copy)]
pub struct Scores<'a> {
    query: &'a str,
    key: &'a str,
    value: &'a str,
    scale: f64,
    /// ALiBi's slopes of all query heads; empty without.
    pub slopes: &'a [f64],
    window: Option<u32>,
}

impl<'a> From<&'a Attention> for Scores<'a> {
    fn from(a: &'a Attention) -> Self {
        let (query, key, value) = (&a.query, &a.key, &a.value);
        Scores { query, key, value, scale: a.scale, slopes: &a.slopes, window: a.window }
    }
}

impl<'a> From<&'a AttentionDx> for Scores<'a> {
    fn from(a: &'a AttentionDx) -> Self {
        let (query, key, value) = (&a.query, &a.key, &a.value);
        Scores { query, key, value, scale: a.scale, slopes: &a.slopes, window: a.window }
    }
}

/// What is made of the scores while blocks travel past.
#[derive(Clone, Copy)]
enum Pass<'a> {
    /// The result, by an online softmax.
    Result,
    /// Maximum and sum of the softmax, and the sum of its shares times their gradients.
    Statistics { gradient: &'a str },
    /// Gradients of queries, keys and values.
    Gradients { gradient: &'a str },
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    scores: Scores<'a>,
    head: HeadSite,
    pass: Pass<'a>,
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

    fn fill(&self, name: &str, value: f64, count: i64) -> Stmt {
        op(OpKind::Mov, to(self.all(name)), [number(value)], dims([count]))
    }

    fn scale_queries(&self) -> Stmt {
        let query = || slice(self.scores.query, 0);
        let elements = self.query_heads() * self.tokens() * self.dim();
        op(OpKind::Mul, to(query()), [from(query()), number(self.scores.scale)], dims([elements]))
    }

    /// Fills the block with the own keys and values.
    fn own_block(&self) -> [Stmt; 2] {
        let own = self.key_heads() * self.dim() * self.tokens();
        let copy = |first: i64, value: &str| {
            op(OpKind::Mov, to(slice(&self.name("block"), first)), [from(slice(value, 0))], dims([own]))
        };
        [copy(0, self.scores.key), copy(self.values_at(), self.scores.value)]
    }

    /// Clears the state and fills the block.
    fn begin(&self) -> Vec<Stmt> {
        let state = self.query_heads() * self.tokens();
        let mut body = vec![
            self.fill("max", MASKED, state),
            self.fill("sum", 0.0, state),
            self.fill("result", 0.0, state * self.dim()),
        ];
        body.extend(self.own_block());
        body
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
}
