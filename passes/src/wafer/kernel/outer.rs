//! Derivative of a linear layer by its weight: the outer product of the layer's input and the gradient of its output,
//! summed over all tokens.
//!
//! Tokens lie over rows, so a row makes the products of its own tokens and the rows add up. Within a row one of the two
//! values stays, and the columns of the other travel eastwards round the row, block by block. Each PE multiplies the
//! visiting features with its own and sums over its tokens: one vector op per block. The products of the block then run
//! down the column, every PE adding its own, and out at the south edge: one word in f32 for each weight of the own
//! features and the block. The next block is under way when these have left, so rows are behind one another by a hop.
//!
//! Which value travels is for the one who places the op to say: the narrower one makes fewer words. A value that lies over
//! the columns of heads stays.

use super::tour::{Block, after, before};
use super::{Scratch, scratch_name, stream};
use crate::wafer::code::{dims, from, number, op, repeat, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Outer, Placed, PlacedOp};
use crate::wafer::site::Site;
use crate::wafer::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, Var};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, outer: &Outer) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, outer)?;
    let mut body = vec![k.own_block()];
    body.extend(k.meet(i64::from(k.tiles.size(site.at.x))));
    let x = || Affine::from(Var::X);
    for stretch in before(k.tiles, x(), site.at.x).into_iter().chain(after(k.tiles, x(), site.at.x)) {
        let met = k.meet(stretch.size(k.tiles));
        body.extend(repeat(stretch.count, [k.turn(), met].concat()));
    }
    Ok(body)
}

/// Two blocks of the value that travels, and the products of a block.
pub fn scratch(site: &Site, at: &PlacedOp, outer: &Outer) -> Result<Vec<Scratch>, WaferError> {
    let k = Kernel::new(site, at, outer)?;
    let block = k.tiles.largest().saturating_mul(site.tokens());
    let products = k.tiles.largest().saturating_mul(k.own as u32);
    Ok(vec![
        Scratch::new("block", site.placed.dtype, block),
        Scratch::new("next", site.placed.dtype, block),
        Scratch::new("products", DType::F32, products),
    ])
}

/// The features that travel, over the columns.
pub fn tiles(placed: &Placed, at: &PlacedOp, outer: &Outer) -> Result<Tiles, WaferError> {
    let fault = |detail: String| WaferError::Layout { op: at.name.clone(), detail };
    if matches!(placed.layout(at, &outer.resident)?, Layout::HeadTokens { .. }) {
        return Err(fault(format!("{} must lie with features over columns", outer.resident)));
    }
    match placed.layout(at, &outer.travelling)? {
        Layout::Columns { features } => Ok(Tiles::new(features, placed.width)),
        _ => Err(fault(format!("{} travels and must lie over all columns", outer.travelling))),
    }
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    outer: &'a Outer,
    tiles: Tiles,
    /// Features that stay here.
    own: i64,
    tokens: i64,
}

impl<'a> Kernel<'a> {
    fn new(site: &'a Site<'a>, at: &'a PlacedOp, outer: &'a Outer) -> Result<Self, WaferError> {
        let tiles = tiles(site.placed, at, outer)?;
        let own = i64::from(site.features(site.placed.layout(at, &outer.resident)?).0);
        Ok(Kernel { site, at, outer, tiles, own, tokens: i64::from(site.tokens()) })
    }

    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    fn own_block(&self) -> Stmt {
        let own = i64::from(self.tiles.size(self.site.at.x)) * self.tokens;
        let value = from(slice(&self.outer.travelling, 0));
        op(OpKind::Mov, to(slice(&self.name("block"), 0)), [value], dims([own]))
    }

    /// Sends the block to the next column and takes that of the column before.
    fn turn(&self) -> Vec<Stmt> {
        let elements = i64::from(self.tiles.largest()) * self.tokens;
        let wire = self.site.packed_wire(elements);
        let block = Block { here: self.name("block"), next: self.name("next"), elements, wire };
        block.exchange(self.site.next_column(), self.site.previous_column())
    }

    /// The products of the own features with `size` features of the block, summed over the tokens and over the rows.
    fn meet(&self, size: i64) -> Vec<Stmt> {
        if self.own == 0 || size == 0 {
            return vec![];
        }
        let (own, tokens, count) = (self.own, self.tokens, self.own * size);
        let products = self.name("products");
        let sums = || strided(&products, 0, &[size, 1, 0]);
        let resident = from(strided(&self.outer.resident, 0, &[tokens, 0, 1]));
        let visiting = from(strided(&self.name("block"), 0, &[0, tokens, 1]));
        let mut body = vec![
            op(OpKind::Mov, to(slice(&products, 0)), [number(0.0)], dims([count])),
            op(OpKind::Fmac, to(sums()), [resident, visiting, from(sums())], dims([own, size, tokens])),
        ];
        body.extend(stream::sums(self.site, slice(&products, 0), count));
        body
    }
}
