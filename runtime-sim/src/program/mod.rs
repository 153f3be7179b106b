//! What a wafer runs, as plain data: a [`WaferProgram`] can be printed, saved, compared and written by hand.
//!
//! A program covers a grid of PEs. Each PE belongs to at most one [`Class`]; a class gives all its PEs the same
//! buffers, tasks and routes. What differs between PEs of a class is written with [`Affine`] expressions of the
//! PE's coordinates, so that a program for 750 x 994 PEs stays a few hundred lines.

mod affine;
mod code;
mod host;
mod layout;
mod shared;
mod uses;

pub use affine::{Affine, Var};
pub use code::{Command, Dest, OpKind, Operand, Piece, Serial, Slice, Stmt, Task, Trigger, VectorOp, Wire};
pub use host::{Direction, HostStream, TensorDecl, TensorMap};
pub use layout::{Buffer, Class, Coord, Lifetime, Port, Position, Region, Route};
pub use shared::Shared;
pub(crate) use uses::Uses;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A routable colour: a virtual channel of the fabric with its own route at every PE. The WSE-2 has 24 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Colour(pub u8);

/// A whole program for a rectangle of PEs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaferProgram {
    /// Width of the rectangle in PEs; x grows to the east.
    pub width: u32,
    /// Height of the rectangle in PEs; y grows to the south.
    pub height: u32,
    /// Tensors that host streams and preloaded buffers read and write, by name.
    pub tensors: BTreeMap<String, TensorDecl>,
    /// Phases in the order of time; they name buffer lifetimes and split the report.
    pub phases: Vec<String>,
    /// Classes of PEs, disjoint.
    pub classes: Vec<Class>,
    /// Streams that enter or leave at the edges. Streams on the same lane and colour run one after the other, in this
    /// order; all others run side by side.
    pub host: Vec<HostStream>,
}

impl WaferProgram {
    /// An empty program on a grid of `width` x `height` PEs.
    pub fn new(width: u32, height: u32) -> Self {
        WaferProgram { width, height, ..WaferProgram::default() }
    }

    /// Declares a tensor of `elements` f32 values that the host holds.
    pub fn tensor(&mut self, name: impl Into<String>, elements: u64) -> &mut Self {
        self.tensors.insert(name.into(), TensorDecl { elements });
        self
    }
}
