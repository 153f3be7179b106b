//! Chains of elementwise steps: residuals, activations, SwiGLU.
//!
//! All operands lie alike, so nothing travels. A chain runs over one row of a tile at a time in f32 and is rounded once,
//! when the row is stored.

use super::{Scratch, scratch_name};
use crate::wafer::code::{dims, from, number, op, repeat, slice, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Activation, Layout, Map, PlacedOp, Step};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Operand, Stmt, Var};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, map: &Map) -> Result<Vec<Stmt>, WaferError> {
    let (rows, length) = shape(site, at, map)?;
    let k =
        Kernel { current: scratch_name(&at.name, "current"), other: scratch_name(&at.name, "other"), length };
    let row = || Affine::term(Var::Loop(0), length);
    let mut body = vec![k.unary(OpKind::Mov, from(slice(&map.input, row())))];
    for step in &map.steps {
        match step {
            Step::Scale(by) => body.push(k.binary(OpKind::Mul, number(*by))),
            Step::Add(value) => body.push(k.binary(OpKind::Add, from(slice(value, row())))),
            Step::Mul(value) => body.push(k.binary(OpKind::Mul, from(slice(value, row())))),
            Step::Activation(function) => body.extend(k.activation(*function)),
        }
    }
    body.push(op(OpKind::Mov, to(slice(&map.output, row())), [k.current()], dims([length])));
    Ok(repeat(rows, body))
}

/// Two rows.
pub fn scratch(site: &Site, at: &PlacedOp, map: &Map) -> Result<Vec<Scratch>, WaferError> {
    let length = shape(site, at, map)?.1 as u32;
    let two = map.steps.iter().any(|step| matches!(step, Step::Activation(_)));
    let other = if two { length } else { 0 };
    Ok(vec![Scratch::new("current", DType::F32, length), Scratch::new("other", DType::F32, other)])
}

/// Rows of a tile and their length.
fn shape(site: &Site, at: &PlacedOp, map: &Map) -> Result<(i64, i64), WaferError> {
    let layout = site.placed.layout(at, &map.input)?;
    let values = map.steps.iter().filter_map(Step::operand).chain([map.output.as_str()]);
    for value in values {
        if site.placed.layout(at, value)? != layout {
            let detail =
                format!("{} and {value} lie differently; elementwise steps need one layout", map.input);
            return Err(WaferError::Layout { op: at.name.clone(), detail });
        }
    }
    let elements = i64::from(site.elements(layout));
    let rows = match layout {
        Layout::HeadTokens { .. } => site.head().map_or(0, |head| elements / i64::from(head.shape.dim)),
        _ => i64::from(site.features(layout).0),
    };
    Ok((rows, if rows == 0 { 0 } else { elements / rows }))
}

struct Kernel {
    current: String,
    other: String,
    length: i64,
}

impl Kernel {
    fn current(&self) -> Operand {
        from(slice(&self.current, 0))
    }

    fn other(&self) -> Operand {
        from(slice(&self.other, 0))
    }

    fn unary(&self, kind: OpKind, source: Operand) -> Stmt {
        op(kind, to(slice(&self.current, 0)), [source], dims([self.length]))
    }

    fn binary(&self, kind: OpKind, right: Operand) -> Stmt {
        op(kind, to(slice(&self.current, 0)), [self.current(), right], dims([self.length]))
    }

    fn aside<const N: usize>(&self, kind: OpKind, sources: [Operand; N]) -> Stmt {
        op(kind, to(slice(&self.other, 0)), sources, dims([self.length]))
    }

    fn activation(&self, function: Activation) -> Vec<Stmt> {
        match function {
            Activation::Relu => vec![self.binary(OpKind::Max, number(0.0))],
            Activation::Relu2 => {
                vec![self.binary(OpKind::Max, number(0.0)), self.binary(OpKind::Mul, self.current())]
            }
            Activation::Silu => vec![
                self.aside(OpKind::Neg, [self.current()]),
                self.aside(OpKind::Exp, [self.other()]),
                self.aside(OpKind::Add, [self.other(), number(1.0)]),
                self.aside(OpKind::Recip, [self.other()]),
                self.binary(OpKind::Mul, self.other()),
            ],
            Activation::Gelu => self.gelu(vec![
                self.aside(OpKind::Mul, [self.current(), number(FRAC_1_SQRT_2)]),
                self.aside(OpKind::Erf, [self.other()]),
            ]),
            Activation::GeluTanh => self.gelu(self.tanh_argument()),
        }
    }

    /// `x (1 + f) / 2`, where `other` holds f after the given statements.
    fn gelu(&self, mut body: Vec<Stmt>) -> Vec<Stmt> {
        body.push(self.aside(OpKind::Fmac, [self.other(), number(0.5), number(0.5)]));
        body.push(self.binary(OpKind::Mul, self.other()));
        body
    }

    /// `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`.
    fn tanh_argument(&self) -> Vec<Stmt> {
        let root = FRAC_2_PI.sqrt();
        vec![
            self.aside(OpKind::Mul, [self.current(), self.current()]),
            self.aside(OpKind::Fmac, [self.other(), number(0.044715 * root), number(root)]),
            self.aside(OpKind::Mul, [self.other(), self.current()]),
            self.aside(OpKind::Tanh, [self.other()]),
        ]
    }
}
