//! Derivatives of attention by queries, keys and values, with the softmax computed again: nothing of size tokens x
//! tokens is kept from the forward pass or stored here.
//!
//! With p the shares of the softmax, dy the gradient of the result and dp = dy . v of a query and a key:
//!
//! ```text
//! ds = p (dp - sum over keys of p dp)      dq = scale sum over keys of ds k
//! dv = sum over queries of p dy            dk = scale sum over queries of ds q
//! ```
//! Blocks of keys and values travel as in the forward pass, twice. The first time each query finds the maximum and the sum
//! of its softmax and the sum of p dp; the second time sums for dk and dv in f32 travel with each block, and every PE that
//! sees the block adds its part. Below the last row of a sequence these sums go on to its first row and down to the row
//! that they belong to, so that every row passes on as many blocks as there are rows.

use super::{Kernel, MASKED, Pass, check_layouts, distance, largest_block, mask_table};
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, number, op, repeat, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::kernel::Scratch;
use crate::wafer::kernel::tour::Block;
use crate::wafer::placed::{AttentionDx, Layout, Placed, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, Colour, OpKind, Slice, Stmt, Wire};

/// Channels: those of the forward pass, and from the last row of a sequence to its first.
pub fn channels(placed: &Placed) -> Vec<Channel> {
    let mut channels = super::channels(placed);
    if placed.tokens.rows > 1 {
        channels.push(Channel::RowWrap);
    }
    channels
}

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, attention: &AttentionDx) -> Result<Vec<Stmt>, WaferError> {
    check(site, at, attention)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let gradient = attention.gradient.as_str();
    let pass = |pass| Kernel { site, at, scores: attention.into(), head, pass };
    let first = pass(Pass::Statistics { gradient });
    let mut body = vec![first.scale_queries()];
    body.extend(first.begin_statistics());
    body.extend(first.own_row());
    body.extend(first.rows_above());
    body.extend(first.finish_statistics());
    let second = pass(Pass::Gradients { gradient });
    body.extend(second.begin_gradients());
    body.extend(second.own_row());
    body.extend(second.rows_above());
    body.extend(second.finish_gradients(attention));
    Ok(body)
}

/// Blocks, scores, the state of the softmax, and sums of gradients.
pub fn scratch(site: &Site, at: &PlacedOp, attention: &AttentionDx) -> Result<Vec<Scratch>, WaferError> {
    let shape = site.placed.heads(&at.name)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let (tokens, largest) = (head.tokens(), largest_block(site.placed));
    let queries = (shape.kv * shape.ways).saturating_mul(tokens);
    let (block, scores) = (largest.saturating_mul(2 * shape.key_features()), queries.saturating_mul(largest));
    let dtype = site.placed.dtype;
    let mut scratch = distance::scratch(site, at, &attention.into(), &head, largest);
    let wide = |name, elements| Scratch::new(name, DType::F32, elements);
    scratch.extend([
        Scratch::new("block", dtype, block),
        Scratch::new("next", dtype, block),
        wide("keysums", block),
        wide("nextsums", block),
        wide("scores", scores),
        wide("shares_dx", scores),
        Scratch::new("shares", dtype, scores),
        wide("max", queries),
        wide("newmax", queries),
        wide("shrink", queries),
        wide("sum", queries),
        wide("delta", queries),
        wide("result", queries.saturating_mul(shape.dim)),
        mask_table(tokens, largest),
    ]);
    Ok(scratch)
}

fn check(site: &Site, at: &PlacedOp, a: &AttentionDx) -> Result<(), WaferError> {
    let [queries, keys] = [true, false].map(|queries| Layout::HeadTokens { queries });
    let by_query = [&a.query, &a.gradient, &a.query_dx].map(|value| (value, queries));
    let by_key = [&a.key, &a.value, &a.key_dx, &a.value_dx].map(|value| (value, keys));
    check_layouts(site.placed, at, &[&by_query[..], &by_key[..]].concat())
}

impl Kernel<'_> {
    fn state(&self) -> i64 {
        self.query_heads() * self.tokens()
    }

    /// Clears the state and fills the block.
    fn begin_statistics(&self) -> Vec<Stmt> {
        let state = self.state();
        let cleared =
            [self.fill("max", MASKED, state), self.fill("sum", 0.0, state), self.fill("delta", 0.0, state)];
        cleared.into_iter().chain(self.own_block()).collect()
    }

    /// The gradients of the shares: how the result of each query would change with the share of each key.
    pub fn shares_dx(&self, gradient: &str, keys: i64) -> Vec<Stmt> {
        let (dim, queries) = (self.dim(), self.queries());
        let products = || strided(&self.name("shares_dx"), 0, &[queries * keys, keys, 1, 0]);
        let dy = from(strided(gradient, 0, &[queries * dim, dim, 0, 1]));
        let value = from(strided(&self.name("block"), self.values_at(), &[keys * dim, 0, dim, 1]));
        let lengths = dims([self.key_heads(), queries, keys, dim]);
        vec![
            self.fill("shares_dx", 0.0, self.state() * keys),
            op(OpKind::Fmac, to(products()), [dy, value, from(products())], lengths),
        ]
    }

    /// Adds shares times their gradients to the sum of each query, shrunk to the new maximum.
    pub fn weigh_shares_dx(&self, keys: i64) -> Vec<Stmt> {
        let state = self.state();
        let all = |name: &str| from(self.all(name));
        let sum = || strided(&self.name("delta"), 0, &[1, 0]);
        let both = [all("shares"), all("shares_dx"), from(sum())];
        vec![
            op(OpKind::Mul, to(self.all("delta")), [all("delta"), all("shrink")], dims([state])),
            op(OpKind::Fmac, to(sum()), both, dims([state, keys])),
        ]
    }

    /// Divides by the sums; the maximum becomes the logarithm of all exponentials.
    fn finish_statistics(&self) -> Vec<Stmt> {
        let each = || dims([self.state()]);
        let (all, put) = (|name: &str| from(self.all(name)), |name: &str| to(self.all(name)));
        vec![
            op(OpKind::Recip, put("shrink"), [all("sum")], each()),
            op(OpKind::Mul, put("delta"), [all("delta"), all("shrink")], each()),
            op(OpKind::Log, put("sum"), [all("sum")], each()),
            op(OpKind::Add, put("max"), [all("max"), all("sum")], each()),
        ]
    }

    fn begin_gradients(&self) -> Vec<Stmt> {
        let cleared = [
            self.fill("result", 0.0, self.state() * self.dim()),
            self.fill("keysums", 0.0, 2 * self.values_at()),
        ];
        cleared.into_iter().chain(self.own_block()).collect()
    }

    /// What a block adds to the gradients of the own queries, and the own queries to those of the block.
    pub fn gradients(&self, gradient: &str, keys: i64) -> Vec<Stmt> {
        let (dim, queries) = (self.dim(), self.queries());
        let of_query = |name: &str| from(strided(&self.name(name), 0, &[1, 0]));
        let both = || dims([self.state(), keys]);
        let (all, put) = (|name: &str| from(self.all(name)), |name: &str| to(self.all(name)));
        let lengths = || dims([self.key_heads(), queries, keys, dim]);
        let share = || from(strided(&self.name("shares"), 0, &[queries * keys, keys, 1, 0]));
        let own = |value: &str| from(strided(value, 0, &[queries * dim, dim, 0, 1]));
        let of_block = |name: &str, first: i64| strided(&self.name(name), first, &[keys * dim, 0, dim, 1]);
        let values = |first: i64| -> Slice { of_block("keysums", first) };
        let result = || strided(&self.name("result"), 0, &[queries * dim, dim, 0, 1]);
        let mut body = vec![
            op(OpKind::Sub, put("scores"), [all("scores"), of_query("max")], both()),
            op(OpKind::Exp, put("shares"), [all("scores")], both()),
        ];
        let at = self.values_at();
        body.push(op(OpKind::Fmac, to(values(at)), [share(), own(gradient), from(values(at))], lengths()));
        body.extend(self.shares_dx(gradient, keys));
        body.extend([
            op(OpKind::Sub, put("shares_dx"), [all("shares_dx"), of_query("delta")], both()),
            op(OpKind::Mul, put("shares"), [all("shares"), all("shares_dx")], both()),
            op(OpKind::Fmac, to(result()), [share(), from(of_block("block", 0)), from(result())], lengths()),
            op(OpKind::Fmac, to(values(0)), [share(), own(self.scores.query), from(values(0))], lengths()),
        ]);
        body
    }

    /// The sums of the gradients of the block's keys and values.
    pub fn key_sums(&self) -> Block {
        let elements = 2 * self.values_at();
        Block { here: self.name("keysums"), next: self.name("nextsums"), elements, wire: Wire::F32 }
    }

    /// To the row below, from the last row of a sequence to its first.
    pub fn to_next_row(&self) -> Colour {
        match self.is_last_row() {
            true => self.site.channel(Channel::RowWrap),
            false => self.site.channel(Channel::Down(self.site.parity())),
        }
    }

    /// After the blocks of all rows above: the last of them goes on whole, and the sums of the rows below pass until
    /// the own ones have come home.
    pub fn sums_home(&self) -> Vec<Stmt> {
        let rows = self.site.placed.tokens.rows;
        if rows == 1 {
            return vec![];
        }
        let below = self.site.channel(Channel::Down(self.site.parity()));
        let come = match self.site.row() {
            0 => self.site.channel(Channel::RowWrap),
            _ => self.site.channel(Channel::Down(self.site.north_parity())),
        };
        let mut body = Vec::new();
        if !self.is_last_row() {
            body.push(self.keys_and_values().send(below));
        }
        let step = self.key_sums().exchange(self.to_next_row(), come);
        let more = Affine::constant(i64::from(rows - 1)) - self.site.placed.tokens.blocks().local_y();
        body.extend(step.clone());
        if !self.is_last_row() {
            body.extend(repeat(more, step));
        }
        body
    }

    /// Scales the gradients of the queries, and keeps those of the own keys and values.
    fn finish_gradients(&self, attention: &AttentionDx) -> Vec<Stmt> {
        let (queries, keys) = (self.state() * self.dim(), self.key_heads() * self.tokens() * self.dim());
        let keep = |value: &str, first: i64| {
            let sums = from(slice(&self.name("keysums"), first));
            op(OpKind::Mov, to(slice(value, 0)), [sums], dims([keys]))
        };
        let scaled = [from(self.all("result")), number(self.scores.scale)];
        vec![
            op(OpKind::Mul, to(slice(&attention.query_dx, 0)), scaled, dims([queries])),
            keep(&attention.key_dx, 0),
            keep(&attention.value_dx, self.values_at()),
        ]
    }
}
