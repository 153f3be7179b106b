//! Kernels: the statements of one PE for one placed op, the scratch memory they need and the channels they use.

pub mod attention;
pub mod cached;
mod column_sum;
mod gather;
pub mod gemv;
mod keep;
mod linear;
pub mod loss;
mod map;
mod norm;
pub mod outer;
mod rope;
pub mod stream;
pub mod sums;
pub mod tour;

use super::WaferSpec;
use super::channel::Channel;
use super::error::WaferError;
use super::placed::{OpKind, Path, Placed, PlacedOp};
use super::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Stmt, TensorMap};

/// A buffer that an op needs beside its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Scratch {
    /// Name within the op.
    pub name: &'static str,
    /// Element type.
    pub dtype: DType,
    /// Number of elements; nothing is made of none.
    pub elements: u32,
    /// A constant table that is there from the beginning.
    pub load: Option<TensorMap>,
    /// What the host reads after the run.
    pub store: Option<TensorMap>,
    /// Whether it stays from run to run: nothing else may use its place.
    pub stays: bool,
}

impl Scratch {
    fn new(name: &'static str, dtype: DType, elements: u32) -> Self {
        Scratch { name, dtype, elements, load: None, store: None, stays: false }
    }

    /// A table that stays.
    fn resident(name: &'static str, dtype: DType, elements: u32, load: TensorMap) -> Self {
        Scratch { load: Some(load), stays: true, ..Scratch::new(name, dtype, elements) }
    }
}

/// Name of a scratch buffer of an op in the program.
pub fn scratch_name(op: &str, name: &str) -> String {
    format!("{op}.{name}")
}

/// Statements of the PE for the op.
pub fn code(site: &Site, op: &PlacedOp) -> Result<Vec<Stmt>, WaferError> {
    match &op.kind {
        OpKind::Linear(linear) => linear::code(site, op, linear),
        OpKind::Gemv(linear) => gemv::code(site, op, linear),
        OpKind::Turn(turn) => cached::turn(site, op, turn),
        OpKind::CachedAttention(attention) => cached::code(site, op, attention),
        OpKind::Norm(norm) => norm::code(site, op, norm),
        OpKind::Map(map) => map::code(site, op, map),
        OpKind::Rope(rope) => rope::code(site, op, rope),
        OpKind::Attention(attention) => attention::code(site, op, attention),
        OpKind::Input { value, path: Path::Stream, .. } => stream::enter(site, op, value),
        OpKind::Output { value, path: Path::Stream, .. } => stream::leave(site, op, value),
        OpKind::Input { value, path: Path::Shared, .. } => stream::enter_shared(site, op, value),
        OpKind::Output { value, path: Path::Shared, .. } => stream::leave_shared(site, op, value),
        OpKind::Input { .. } | OpKind::Output { .. } => Ok(vec![]),
        OpKind::Keep { value, .. } => keep::code(site, op, value),
        OpKind::Outer(outer) => outer::code(site, op, outer),
        OpKind::ColumnSum(sum) => column_sum::code(site, op, sum),
        OpKind::NormDx(norm) => norm::code_dx(site, op, norm),
        OpKind::NormDw(norm) => norm::code_dw(site, op, norm),
        OpKind::Gather(gather) => gather::code(site, op, gather),
        OpKind::AttentionDx(attention) => attention::code_dx(site, op, attention),
        OpKind::Loss(loss) => loss::code(site, op, loss),
        OpKind::LossDx(loss) => loss::code_dx(site, op, loss),
        OpKind::TableDw(table) => stream::leave(site, op, &table.value),
    }
}

/// Scratch buffers of the PE for the op.
pub fn scratch(site: &Site, op: &PlacedOp) -> Result<Vec<Scratch>, WaferError> {
    match &op.kind {
        OpKind::Linear(linear) => linear::scratch(site, op, linear),
        OpKind::Gemv(linear) => gemv::scratch(site, op, linear),
        OpKind::Turn(turn) => cached::turn_scratch(site, op, turn),
        OpKind::CachedAttention(attention) => cached::scratch(site, op, attention),
        OpKind::Norm(norm) => norm::scratch(site, op, norm),
        OpKind::Map(map) => map::scratch(site, op, map),
        OpKind::Rope(rope) => rope::scratch(site, op, rope),
        OpKind::Attention(attention) => attention::scratch(site, op, attention),
        OpKind::Outer(outer) => outer::scratch(site, op, outer),
        OpKind::ColumnSum(sum) => column_sum::scratch(site, op, sum),
        OpKind::NormDx(norm) => norm::scratch_dx(site, op, norm),
        OpKind::NormDw(norm) => norm::scratch_dw(site, op, norm),
        OpKind::Gather(gather) => gather::scratch(site, op, gather),
        OpKind::AttentionDx(attention) => attention::scratch_dx(site, op, attention),
        OpKind::Loss(loss) => loss::scratch(site, op, loss),
        OpKind::LossDx(loss) => loss::scratch_dx(site, op, loss),
        OpKind::Keep { value, tensor } => keep::scratch(site, op, value, tensor),
        OpKind::Input { .. } | OpKind::Output { .. } | OpKind::TableDw(_) => Ok(vec![]),
    }
}

/// Channels that the op uses.
pub fn channels(placed: &Placed, op: &PlacedOp, spec: &WaferSpec) -> Vec<Channel> {
    let row_ring = [Channel::East(0), Channel::East(1), Channel::Wrap];
    let leave = vec![Channel::Leave(0), Channel::Leave(1)];
    let sums = sums::channels(placed, op, spec);
    match &op.kind {
        OpKind::Linear(_) => [vec![Channel::Weights], row_ring.to_vec()].concat(),
        OpKind::Norm(_) if placed.resident => sums,
        OpKind::Norm(_) | OpKind::NormDx(_) | OpKind::CachedAttention(_) => {
            [vec![Channel::Weights], sums].concat()
        }
        OpKind::NormDw(_) | OpKind::Loss(_) => [sums, leave].concat(),
        OpKind::LossDx(_) | OpKind::Gemv(_) => sums,
        OpKind::Turn(_) => vec![Channel::Along],
        OpKind::Outer(_) => [row_ring.to_vec(), leave].concat(),
        OpKind::ColumnSum(_) | OpKind::TableDw(_) => leave,
        OpKind::Gather(_) => gather::channels(placed),
        OpKind::AttentionDx(_) => attention::channels_dx(placed),
        OpKind::Attention(_) => attention::channels(placed),
        OpKind::Input { path: Path::Stream, .. } => vec![Channel::Enter(0), Channel::Enter(1)],
        OpKind::Output { path: Path::Stream, .. } => leave,
        OpKind::Input { path: Path::Shared, .. } => vec![Channel::Weights],
        OpKind::Output { value, path: Path::Shared, .. } => vec![stream::aside(placed, value)],
        OpKind::Input { .. }
        | OpKind::Output { .. }
        | OpKind::Keep { .. }
        | OpKind::Map(_)
        | OpKind::Rope(_) => vec![],
    }
}
