//! From tokens over the columns of a head block to features over them.
//!
//! What each column has of all features goes once round the head block, and each column picks its own features of all
//! tokens: the layout that linear layers and their derivatives read.

use super::attention::largest_block;
use super::tour::{Block, after, before};
use super::{Scratch, scratch_name};
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, op, repeat, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Gather, Layout, Placed, PlacedOp};
use crate::wafer::site::{HeadSite, Site};
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, Var};

/// Channels: round the head blocks.
pub fn channels(placed: &Placed) -> Vec<Channel> {
    let several = placed.heads.is_some_and(|heads| heads.columns > 1);
    if several { vec![Channel::East(0), Channel::East(1), Channel::HeadWrap] } else { vec![] }
}

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, gather: &Gather) -> Result<Vec<Stmt>, WaferError> {
    let queries = check(site, at, gather)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let (here, next) = (scratch_name(&at.name, "block"), scratch_name(&at.name, "next"));
    let (tokens, dim) = (i64::from(head.tokens()), i64::from(head.shape.dim));
    let heads = i64::from(head.shape.features(queries)) / dim;
    let by_feature = strided(&here, 0, &[dim * tokens, 1, tokens]);
    let lengths = dims([heads, tokens, dim]);
    let mut body = vec![op(OpKind::Mov, to(by_feature), [from(slice(&gather.input, 0))], lengths)];
    body.extend(Gathering { site, head, queries, here, next, output: &gather.output }.statements());
    Ok(body)
}

/// Two blocks.
pub fn scratch(site: &Site, at: &PlacedOp, gather: &Gather) -> Result<Vec<Scratch>, WaferError> {
    let queries = check(site, at, gather)?;
    let Some(head) = site.head() else { return Ok(vec![]) };
    let elements = largest_block(site.placed).saturating_mul(head.shape.features(queries));
    let block = |name| Scratch::new(name, site.placed.dtype, elements);
    Ok(vec![block("block"), block("next")])
}

/// Whether these are query heads.
fn check(site: &Site, at: &PlacedOp, gather: &Gather) -> Result<bool, WaferError> {
    site.placed.heads(&at.name)?;
    let (input, output) = (site.placed.layout(at, &gather.input)?, site.placed.layout(at, &gather.output)?);
    match (input, output) {
        (Layout::HeadTokens { queries: a }, Layout::HeadColumns { queries: b }) if a == b => Ok(a),
        _ => {
            let detail = format!("{} lies as {input:?}, {} as {output:?}", gather.input, gather.output);
            Err(WaferError::Layout { op: at.name.clone(), detail })
        }
    }
}

/// A gathering of what lies in a block as `[feature][token]`.
pub struct Gathering<'a> {
    /// The PE.
    pub site: &'a Site<'a>,
    /// Its head block.
    pub head: HeadSite,
    /// Whether these are the query heads.
    pub queries: bool,
    /// The buffer with the own block.
    pub here: String,
    /// A buffer of its size.
    pub next: String,
    /// The value that takes the own features.
    pub output: &'a str,
}

impl Gathering<'_> {
    /// Takes the own features of every column's tokens.
    pub fn statements(&self) -> Vec<Stmt> {
        let tiles = self.head.token_tiles();
        let (column, local) = (self.head.column, self.head.shape.column_blocks().local_x());
        let mut body = self.pick(self.head.first_token(), i64::from(self.head.tokens()));
        for stretch in before(tiles, local.clone(), column).into_iter().chain(after(tiles, local, column)) {
            let first = stretch.start(tiles, Var::Loop(0));
            let picked = self.pick(first, stretch.size(tiles));
            body.extend(repeat(stretch.count, [self.turn(), picked].concat()));
        }
        if self.head.shape.columns > 1 {
            body.extend(self.turn());
        }
        body
    }

    fn turn(&self) -> Vec<Stmt> {
        let features = i64::from(self.head.shape.features(self.queries));
        let elements = features * i64::from(largest_block(self.site.placed));
        let wire = self.site.packed_wire(elements);
        let block = Block { here: self.here.clone(), next: self.next.clone(), elements, wire };
        block.exchange(self.site.next_of(&self.head), self.site.previous_of(&self.head))
    }

    fn pick(&self, first_token: Affine, tokens: i64) -> Vec<Stmt> {
        let features = self.head.feature_tiles(self.queries);
        let own = i64::from(features.size(self.head.column));
        let first = features.start_at(self.head.shape.column_blocks().local_x(), self.head.column);
        let source = from(slice(&self.here, first * tokens));
        let output = strided(self.output, first_token, &[i64::from(self.site.tokens()), 1]);
        vec![op(OpKind::Mov, to(output), [source], dims([own, tokens]))]
    }
}
