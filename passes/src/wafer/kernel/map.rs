//! Chains of elementwise steps: residuals, activations, SwiGLU, and the derivatives of activations.
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
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, PI};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, map: &Map) -> Result<Vec<Stmt>, WaferError> {
    let (rows, length) = shape(site, at, map)?;
    let [current, other, third] = ["current", "other", "third"].map(|name| scratch_name(&at.name, name));
    let k = Kernel { current, other, third, length };
    let row = || Affine::term(Var::Loop(0), length);
    let mut body = vec![k.unary(OpKind::Mov, from(slice(&map.input, row())))];
    for step in &map.steps {
        match step {
            Step::Scale(by) => body.push(k.binary(OpKind::Mul, number(*by))),
            Step::Add(value) => body.push(k.binary(OpKind::Add, from(slice(value, row())))),
            Step::Mul(value) => body.push(k.binary(OpKind::Mul, from(slice(value, row())))),
            Step::Activation(function) => body.extend(k.activation(*function)),
            Step::Slope(function) => body.extend(k.slope(*function)),
        }
    }
    body.push(op(OpKind::Mov, to(slice(&map.output, row())), [k.current()], dims([length])));
    Ok(repeat(rows, body))
}

/// Up to three rows.
pub fn scratch(site: &Site, at: &PlacedOp, map: &Map) -> Result<Vec<Scratch>, WaferError> {
    let length = shape(site, at, map)?.1 as u32;
    let any = |of: fn(&Step) -> bool| if map.steps.iter().any(of) { length } else { 0 };
    let other = any(|step| matches!(step, Step::Activation(_) | Step::Slope(_)));
    let third = any(|step| matches!(step, Step::Slope(_)));
    let row = |name, elements| Scratch::new(name, DType::F32, elements);
    Ok(vec![row("current", length), row("other", other), row("third", third)])
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
    third: String,
    length: i64,
}

impl Kernel {
    fn current(&self) -> Operand {
        from(slice(&self.current, 0))
    }

    fn other(&self) -> Operand {
        from(slice(&self.other, 0))
    }

    fn third(&self) -> Operand {
        from(slice(&self.third, 0))
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

    fn beside<const N: usize>(&self, kind: OpKind, sources: [Operand; N]) -> Stmt {
        op(kind, to(slice(&self.third, 0)), sources, dims([self.length]))
    }

    /// `current x a + b`.
    fn fmac(&self, a: Operand, b: Operand) -> Stmt {
        op(OpKind::Fmac, to(slice(&self.current, 0)), [self.current(), a, b], dims([self.length]))
    }

    fn activation(&self, function: Activation) -> Vec<Stmt> {
        match function {
            Activation::Relu => vec![self.binary(OpKind::Max, number(0.0))],
            Activation::Relu2 => {
                vec![self.binary(OpKind::Max, number(0.0)), self.binary(OpKind::Mul, self.current())]
            }
            Activation::Silu => [self.sigmoid(), vec![self.binary(OpKind::Mul, self.other())]].concat(),
            Activation::Gelu => self.gelu(self.erf().to_vec()),
            Activation::GeluTanh => self.gelu(self.tanh_argument()),
        }
    }

    /// `1 / (1 + e^-x)` in `other`.
    fn sigmoid(&self) -> Vec<Stmt> {
        vec![
            self.aside(OpKind::Neg, [self.current()]),
            self.aside(OpKind::Exp, [self.other()]),
            self.aside(OpKind::Add, [self.other(), number(1.0)]),
            self.aside(OpKind::Recip, [self.other()]),
        ]
    }

    /// `erf(x / sqrt 2)` in `other`.
    fn erf(&self) -> [Stmt; 2] {
        [
            self.aside(OpKind::Mul, [self.current(), number(FRAC_1_SQRT_2)]),
            self.aside(OpKind::Erf, [self.other()]),
        ]
    }

    /// The derivative of an activation function; that of a relu at 0 is 0.
    fn slope(&self, function: Activation) -> Vec<Stmt> {
        match function {
            // Whatever is above zero becomes 1.
            Activation::Relu => vec![
                self.binary(OpKind::Mul, number(f64::from(f32::MAX))),
                self.binary(OpKind::Max, number(0.0)),
                self.binary(OpKind::Min, number(1.0)),
            ],
            Activation::Relu2 => {
                vec![self.binary(OpKind::Max, number(0.0)), self.binary(OpKind::Mul, number(2.0))]
            }
            Activation::Silu => self.silu_slope(),
            Activation::Gelu => self.gelu_slope(),
            Activation::GeluTanh => self.gelu_tanh_slope(),
        }
    }

    /// `s (1 + x - x s)` with the sigmoid s.
    fn silu_slope(&self) -> Vec<Stmt> {
        let mut body = self.sigmoid();
        body.push(self.beside(OpKind::Mul, [self.current(), self.other()]));
        body.push(self.binary(OpKind::Sub, self.third()));
        body.push(self.fmac(self.other(), self.other()));
        body
    }

    /// `(1 + erf(x / sqrt 2)) / 2 + x e^(-x^2 / 2) / sqrt(2 pi)`.
    fn gelu_slope(&self) -> Vec<Stmt> {
        let mut body = self.erf().to_vec();
        body.extend([
            self.aside(OpKind::Fmac, [self.other(), number(0.5), number(0.5)]),
            self.beside(OpKind::Mul, [self.current(), self.current()]),
            self.beside(OpKind::Mul, [self.third(), number(-0.5)]),
            self.beside(OpKind::Exp, [self.third()]),
            self.binary(OpKind::Mul, self.third()),
            self.fmac(number(1.0 / (2.0 * PI).sqrt()), self.other()),
        ]);
        body
    }

    /// `(1 + t) / 2 + x u' (1 - t^2) / 2` with `t = tanh(u)`, u the argument and u' its derivative.
    fn gelu_tanh_slope(&self) -> Vec<Stmt> {
        let root = FRAC_2_PI.sqrt();
        let slope = [self.other(), number(3.0 * 0.044715 * root), number(root)];
        let mut body = self.tanh_argument();
        body.insert(1, self.beside(OpKind::Fmac, slope));
        body.extend([
            self.beside(OpKind::Mul, [self.third(), self.current()]),
            self.unary(OpKind::Mov, self.other()),
            self.binary(OpKind::Mul, self.other()),
            self.fmac(number(-0.5), number(0.5)),
            self.binary(OpKind::Mul, self.third()),
            self.aside(OpKind::Fmac, [self.other(), number(0.5), number(0.5)]),
            self.binary(OpKind::Add, self.other()),
        ]);
        body
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
