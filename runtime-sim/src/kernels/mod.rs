//! Kernels that others wrote by hand and timed in the SDK's simulator, as programs: what their sources say, statement by
//! statement. The simulator's machine ([`FabricSpec::by_statement`]) says how long it takes; nothing in here does.
//!
//! Scalar instructions between vector ops (`code`) are counted from the public sources by one rule: an instruction each
//! for an addition, a comparison, a branch, a load or store of 32 bits and the base address of a descriptor; two for the
//! additions and comparisons of 32-bit integers.

mod mesh_gemm;
mod product;
mod stencil;
mod value;
mod vector;

pub use mesh_gemm::{EXCHANGE, MESH_ALIGN, MESH_COLUMN, MESH_ENTRY, MESH_STEP, MeshGemm};
pub use product::{Dense, SPARSE_CALL, SPARSE_ROW, Sparse};
pub use stencil::Stencil;
pub use value::ValueStencil;
pub use vector::{DESCRIPTORS, Multiply, Operands};

use crate::program::{
    Affine, Buffer, Class, Colour, Dest, OpKind, Operand, Port, Region, Route, Serial, Slice, Stmt,
    TensorMap, Var, VectorOp, WaferProgram, Wire,
};
use crate::{FabricSpec, check, event};
use lapidary_models::dtype::DType;
use std::collections::BTreeMap;

/// A kernel that a published table times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// A product of two vectors on one PE.
    Multiply(Multiply),
    /// A dense product on one PE.
    Dense(Dense),
    /// A product with a sparse matrix on one PE.
    Sparse(Sparse),
    /// A star stencil on tiles.
    Stencil(Stencil),
    /// A star stencil of radius 1 with a value in each PE.
    Value(ValueStencil),
    /// A product on a square of PEs whose tiles travel in rings.
    MeshGemm(MeshGemm),
}

impl Kernel {
    /// Cycles of one run at level event, or of one iteration where the kernel iterates.
    ///
    /// # Errors
    /// A sentence: the program does not pass the checker, or does not end.
    pub fn cycles(&self, fabric: &FabricSpec) -> Result<f64, String> {
        match self {
            Kernel::Multiply(kernel) => run(&kernel.program(), fabric),
            Kernel::Dense(kernel) => run(&kernel.program(), fabric),
            Kernel::Sparse(kernel) => run(&kernel.program(), fabric),
            Kernel::MeshGemm(kernel) => run(&kernel.program(), fabric),
            // As their authors did: the difference of two runs.
            Kernel::Stencil(kernel) => between(2, 4, |n| run(&kernel.program(n), fabric)),
            Kernel::Value(kernel) => between(16, 48, |n| run(&kernel.program(n), fabric)),
        }
    }
}

/// Cycles of an iteration, from runs of `few` and of `many`.
fn between(few: u32, many: u32, run: impl Fn(u32) -> Result<f64, String>) -> Result<f64, String> {
    Ok((run(many)? - run(few)?) / f64::from(many - few))
}

fn run(program: &WaferProgram, fabric: &FabricSpec) -> Result<f64, String> {
    let checked = check(program, fabric)
        .map_err(|errors| errors.first().map_or_else(String::new, ToString::to_string))?;
    let run = event::simulate(&checked, BTreeMap::new()).map_err(|error| error.to_string())?;
    Ok(run.report.cycles as f64)
}

fn serial(what: Serial, times: u32) -> Stmt {
    Stmt::Serial { what, times: Affine::constant(i64::from(times)) }
}

fn code(instructions: u32) -> Stmt {
    serial(Serial::Code, instructions)
}

fn repeat(count: u32, body: Vec<Stmt>) -> Stmt {
    Stmt::Loop { count: Affine::constant(i64::from(count)), body }
}

/// A vector op over some lengths, outermost first.
fn op(kind: OpKind, dst: Dest, src: Vec<Operand>, dims: &[u32]) -> VectorOp {
    VectorOp { kind, dst, src, dims: dims.iter().map(|n| Affine::constant(i64::from(*n))).collect() }
}

fn slice(buffer: &str, at: impl Into<Affine>, strides: &[i64]) -> Slice {
    Slice { buffer: buffer.into(), at: at.into(), strides: strides.to_vec() }
}

fn class_at(x: u32, y: u32) -> Class {
    Class::new(format!("pe_{x}_{y}"), Region::pe(x, y))
}

fn buffer(class: &mut Class, name: &str, dtype: DType, elements: u32, offset: u32) {
    class.buffers.insert(name.into(), Buffer::new(dtype, elements, offset));
}

/// The port opposite to one of the four sides.
fn opposite(port: Port) -> Port {
    match port {
        Port::North => Port::South,
        Port::South => Port::North,
        Port::East => Port::West,
        Port::West => Port::East,
        Port::Ramp => Port::Ramp,
    }
}

/// The neighbour behind a side, if the grid of `width` x `height` has one.
fn neighbour(x: u32, y: u32, side: Port, width: u32, height: u32) -> Option<(u32, u32)> {
    let at = match side {
        Port::North => (x, y.checked_sub(1)?),
        Port::South => (x, y + 1),
        Port::West => (x.checked_sub(1)?, y),
        Port::East => (x + 1, y),
        Port::Ramp => return None,
    };
    (at.0 < width && at.1 < height).then_some(at)
}
