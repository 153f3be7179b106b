//! RMSNorm and LayerNorm over the features of each token.
//!
//! Each PE sums its own features (and their squares) per token; the sums run to the end of the row (see
//! [`super::sums`]); the last column turns them into mean and inverse deviation and sends these back over the row at once. That
//! is one word per token for RMSNorm and two for LayerNorm, whatever the number of features.

mod dw;
mod dx;
mod statistics;

pub use dw::{code as code_dw, scratch as scratch_dw};
pub use dx::{code as code_dx, scratch as scratch_dx};

use super::{Scratch, scratch_name};
use crate::wafer::code::{dims, from, op, repeat, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Norm, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, TensorMap, Var, Wire};
use statistics::Statistics;

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, norm: &Norm) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, norm)?;
    let mut body = if site.placed.resident { vec![] } else { k.receive_weights() };
    body.extend(k.statistics.statements());
    body.extend(k.apply());
    Ok(body)
}

/// Sums, one row of features, weight and bias.
pub fn scratch(site: &Site, at: &PlacedOp, norm: &Norm) -> Result<Vec<Scratch>, WaferError> {
    let k = Kernel::new(site, at, norm)?;
    let features = k.statistics.features as u32;
    let biases = if norm.bias.is_some() { features } else { 0 };
    let mut scratch = k.statistics.scratch();
    let vector = |name, elements| match site.placed.resident {
        true => Scratch::resident(name, DType::F32, elements, k.resident(name)),
        false => Scratch::new(name, DType::F32, elements),
    };
    scratch.extend([vector("weight", features), vector("bias", biases)]);
    Ok(scratch)
}

/// Features over all columns that the values of a norm share, its input first.
fn width(site: &Site, at: &PlacedOp, values: &[&String]) -> Result<u32, WaferError> {
    let fault = |detail: String| WaferError::Layout { op: at.name.clone(), detail };
    let mut found = None;
    for value in values {
        let layout = site.placed.layout(at, value)?;
        let Layout::Columns { features } = layout else {
            return Err(fault("a norm needs features over all columns".into()));
        };
        if *found.get_or_insert(features) != features {
            return Err(fault(format!("{} and {value} lie differently", values[0])));
        }
    }
    Ok(found.unwrap_or(0))
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    norm: &'a Norm,
    statistics: Statistics<'a>,
}

impl<'a> Kernel<'a> {
    fn new(site: &'a Site<'a>, at: &'a PlacedOp, norm: &'a Norm) -> Result<Self, WaferError> {
        let width = width(site, at, &[&norm.input, &norm.output])?;
        let statistics = Statistics::new(site, at, &norm.input, norm.kind, norm.eps, width);
        Ok(Kernel { site, at, norm, statistics })
    }

    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    /// The own part of weight or bias, where it stays.
    fn resident(&self, name: &str) -> TensorMap {
        let layout = self.site.placed.values.get(&self.norm.input);
        let first = layout.map_or(Affine::constant(0), |layout| self.site.features(*layout).1);
        let dims = vec![self.statistics.features.into()];
        TensorMap { tensor: self.name(name), dims, index: first.plus(Var::Dim(0), 1) }
    }

    fn receive_weights(&self) -> Vec<Stmt> {
        let arrive = |name: &str| {
            let word = words(self.site.weights(), Wire::F32);
            op(OpKind::Mov, to(slice(&self.name(name), 0)), [word], dims([self.statistics.features]))
        };
        let bias = self.norm.bias.iter().map(|_| arrive("bias"));
        std::iter::once(arrive("weight")).chain(bias).collect()
    }

    /// `(x - mean) * inverse * weight + bias`, feature by feature, rounded once.
    fn apply(&self) -> Vec<Stmt> {
        let tokens = self.statistics.tokens;
        let feature = Affine::term(Var::Loop(0), tokens);
        let one = |buffer: &str| from(strided(buffer, Affine::from(Var::Loop(0)), &[0]));
        let result = to(slice(&self.norm.output, feature));
        let mut body = self.statistics.normalised();
        let (current, weight) = (from(slice(&self.name("row"), 0)), one(&self.name("weight")));
        body.push(match self.norm.bias {
            Some(_) => op(OpKind::Fmac, result, [current, weight, one(&self.name("bias"))], dims([tokens])),
            None => op(OpKind::Mul, result, [current, weight], dims([tokens])),
        });
        repeat(self.statistics.features, body)
    }
}
