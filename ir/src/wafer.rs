//! The `wafer` dialect from Rust: tiles, rectangles, and what every placed op carries.
//!
//! Placed ops have many operands and attributes, so they are made with [`New`] and read with the accessors of
//! [`Op`]; [`placed`] adds what they share. What an op means stands in `ir/docs/wafer.md`.

use crate::at::{At, New};
use crate::context::IrContext;
use crate::error::IrError;
use crate::handle::{dtype, missing};
use crate::raw::{self, Block, Op, Value};
use lapidary_models::DType;
use melior::ir::{Attribute, Type};

/// A rectangle of PEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rect {
    /// Column of the west edge.
    pub x: u64,
    /// Row of the north edge.
    pub y: u64,
    /// Columns.
    pub w: u64,
    /// Rows.
    pub h: u64,
}

impl Rect {
    /// The attribute.
    ///
    /// # Errors
    /// [`IrError::Invalid`] if the rectangle is empty.
    pub fn attribute(self, cx: &IrContext) -> Result<Attribute<'_>, IrError> {
        let Rect { x, y, w, h } = self;
        cx.parse_attribute(&format!("#wafer.rect<{x}, {y}, {w}, {h}>"))
    }

    /// The rectangle of a placed op.
    pub fn of(op: Op<'_>) -> Option<Rect> {
        let [x, y, w, h] = raw::wafer_rect(op.attribute("rect")?)?.map(|value| value as u64);
        Some(Rect { x, y, w, h })
    }
}

/// What lies over the columns of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inner {
    /// The block's features, each column some of them.
    #[default]
    Features,
    /// The row's tokens, each column all of the block's features for some of them.
    Tokens,
}

/// An activation spread over PEs: tokens over rows, features over columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Tokens: sequences times positions.
    pub tokens: u64,
    /// Features.
    pub features: u64,
    /// Element type.
    pub dtype: DType,
    /// Rows of PEs that the tokens are spread over.
    pub rows: u64,
    /// Columns of PEs that the features are spread over.
    pub cols: u64,
    /// Blocks of neighbouring columns, each with the features of whole heads; 1 where heads do not matter.
    pub blocks: u64,
    /// What lies over the columns of a block.
    pub inner: Inner,
}

impl Tile {
    /// Tokens over rows, features over columns, in one block.
    pub fn new(tokens: u64, features: u64, dtype: DType, rows: u64, cols: u64) -> Self {
        Tile { tokens, features, dtype, rows, cols, blocks: 1, inner: Inner::Features }
    }

    /// The type.
    ///
    /// # Errors
    /// [`IrError::Invalid`] if there are fewer tokens than rows, fewer features than columns, or blocks that do not
    /// divide columns and features.
    pub fn ty(self, cx: &IrContext) -> Result<Type<'_>, IrError> {
        let Tile { tokens, features, dtype, rows, cols, blocks, inner } = self;
        let inner = match inner {
            Inner::Features => "features",
            Inner::Tokens => "tokens",
        };
        let layout = format!("<rows = {rows}, cols = {cols}, blocks = {blocks}, inner = {inner}>");
        cx.parse_type(&format!("!wafer.tile<{tokens}x{features}x{dtype}, {layout}>"))
    }

    /// The tile of a type, if it is one of an element type that models know.
    pub fn of(ty: Type<'_>) -> Option<Tile> {
        let (numbers, element) = raw::wafer_tile(ty)?;
        let [tokens, features, rows, cols, blocks, inner] = numbers.map(|value| value as u64);
        let inner = if inner == 1 { Inner::Tokens } else { Inner::Features };
        Some(Tile { tokens, features, dtype: dtype(element)?, rows, cols, blocks, inner })
    }

    /// Bytes of the largest part that one PE holds.
    pub fn block_bytes(self) -> u64 {
        let (tokens, features) = (self.tokens.div_ceil(self.rows), self.features / self.blocks);
        let columns = self.cols / self.blocks;
        let elements = match self.inner {
            Inner::Features => tokens * features.div_ceil(columns),
            Inner::Tokens => tokens.div_ceil(columns) * features,
        };
        elements * self.dtype.bytes()
    }
}

/// Where a weight lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Sent through the wafer when an op needs it.
    Streamed,
    /// Loaded once into the PEs of the op that reads it.
    Resident,
}

impl Source {
    /// The word in the IR.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Streamed => "streamed",
            Source::Resident => "resident",
        }
    }
}

/// What every placed op carries besides its own: where it runs; SRAM bytes of a PE and colours once they are planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The PEs it runs on.
    pub rect: Rect,
    /// Bytes of a PE's memory; 0 while not planned.
    pub sram_bytes: u64,
    /// Colours of its routes; empty while not routed.
    pub colours: Vec<u8>,
}

impl Placement {
    /// On this rectangle, nothing planned yet.
    pub fn at(rect: Rect) -> Self {
        Placement { rect, sram_bytes: 0, colours: Vec::new() }
    }

    /// The placement of an op; none for ops that are not placed.
    pub fn of(op: Op<'_>) -> Option<Placement> {
        let colours = op.i64s("colours").unwrap_or_default();
        Some(Placement {
            rect: Rect::of(op)?,
            sram_bytes: op.i64("sram_bytes").map_or(0, |bytes| bytes as u64),
            colours: colours.into_iter().filter_map(|colour| u8::try_from(colour).ok()).collect(),
        })
    }

    /// Writes SRAM bytes and colours back to the op.
    pub fn store(&self, op: Op<'_>) {
        let cx = op.context();
        op.set_attribute("sram_bytes", bytes(cx, self.sram_bytes));
        op.set_attribute("colours", self.colour_attribute(cx));
    }

    fn colour_attribute<'c>(&self, cx: &'c IrContext) -> Attribute<'c> {
        cx.i64s(&self.colours.iter().map(|colour| i64::from(*colour)).collect::<Vec<_>>())
    }
}

fn bytes(cx: &IrContext, bytes: u64) -> Attribute<'_> {
    cx.i64(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// Adds the placement to a placed op under construction.
///
/// # Errors
/// [`IrError::Invalid`] if the rectangle is empty.
pub fn placed<'a, 'c>(
    cx: &'c IrContext,
    new: New<'a, 'c>,
    placement: &Placement,
) -> Result<New<'a, 'c>, IrError> {
    Ok(new
        .with("rect", placement.rect.attribute(cx)?)
        .with("sram_bytes", bytes(cx, placement.sram_bytes))
        .with("colours", placement.colour_attribute(cx)))
}

/// `wafer.program` with a body that takes these types from the host; end the body with `wafer.return`.
///
/// # Errors
/// [`IrError::Invalid`] if the op cannot be made.
pub fn program<'c>(
    at: At<'c>,
    name: &str,
    grid: (u64, u64),
    inputs: &[Type<'c>],
) -> Result<(Op<'c>, Block<'c>), IrError> {
    let cx = at.context();
    let new = New::of("wafer.program", &[])
        .with("sym_name", cx.text(name))
        .with("grid", cx.i64s(&[grid.0 as i64, grid.1 as i64]))
        .regions(1);
    with_body(at.create(&new)?, inputs)
}

/// `wafer.repeat` with a body that takes the inputs' types; end the body with `wafer.yield`.
///
/// # Errors
/// [`IrError::Invalid`] if the op cannot be made.
pub fn repeat<'c>(at: At<'c>, times: u64, inputs: &[Value<'c>]) -> Result<(Op<'c>, Block<'c>), IrError> {
    let types: Vec<_> = inputs.iter().map(|value| value.ty()).collect();
    let new =
        New::of("wafer.repeat", &types).reads(inputs).with("times", bytes(at.context(), times)).regions(1);
    with_body(at.create(&new)?, &types)
}

/// `wafer.weight`: a parameter as a tensor of this type.
///
/// # Errors
/// [`IrError::Invalid`] if the name is empty, or has `*` outside a repeat.
pub fn weight<'c>(
    at: At<'c>,
    name: &str,
    source: Source,
    scale: f64,
    ty: Type<'c>,
) -> Result<Value<'c>, IrError> {
    let cx = at.context();
    let new = New::of("wafer.weight", &[ty])
        .with("name", cx.text(name))
        .with("source", cx.parse_attribute(&format!("#wafer<source {}>", source.name()))?)
        .with("scale", cx.f64(scale));
    let op = at.create(&new)?;
    op.result(0).ok_or_else(|| missing(op, "result"))
}

fn with_body<'c>(op: Op<'c>, inputs: &[Type<'c>]) -> Result<(Op<'c>, Block<'c>), IrError> {
    let body = op.add_block(0, inputs).ok_or_else(|| missing(op, "body"))?;
    Ok((op, body))
}
