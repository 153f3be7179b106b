//! Derivative of a norm by its input.
//!
//! With g = weight x gradient, r one over the deviation and D features, it is `r g - b (x - mean) - r mean(g)` where
//! `b = r^2 mean(g h)` and `mean(g h) = r (mean(g x) - mean(g) mean(x))`: all sums over the row are sums of what each PE
//! has before it knows the statistics, so one exchange does. Two sums per token run along the row for RMSNorm and four for
//! LayerNorm; two numbers come back, or three.

use super::width;
use crate::wafer::code::{dims, from, number, op, repeat, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::kernel::sums::{self, LineSums};
use crate::wafer::kernel::{Scratch, scratch_name};
use crate::wafer::placed::{Layout, NormDx, NormKind, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Operand, Slice, Stmt, Var, Wire};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, norm: &NormDx) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, norm)?;
    let weight = words(site.weights(), Wire::F32);
    let mut body = vec![op(OpKind::Mov, to(slice(&k.name("weight"), 0)), [weight], dims([k.features]))];
    body.extend(k.own_sums());
    let (buffer, count) = (k.name("sums"), k.sums() * k.tokens);
    let sum = sums::row(site.placed, k.sums());
    let row = LineSums { site, sum, buffer: &buffer, kind: OpKind::Add, count };
    body.extend(row.share(k.finish(), k.factors() * k.tokens));
    body.extend(k.apply());
    Ok(body)
}

/// Sums, one row of features, and the weight.
pub fn scratch(site: &Site, at: &PlacedOp, norm: &NormDx) -> Result<Vec<Scratch>, WaferError> {
    let k = Kernel::new(site, at, norm)?;
    let tokens = k.tokens as u32;
    Ok(vec![
        Scratch::new("sums", DType::F32, tokens.saturating_mul(k.sums() as u32)),
        Scratch::new("row", DType::F32, tokens),
        Scratch::new("weight", DType::F32, k.features as u32),
        Scratch::new("added", DType::F32, if k.means() { tokens } else { 0 }),
    ])
}

/// Places of the sums, in units of the tokens: of squares, of g x, of x and of g.
const SQUARES: i64 = 0;
const PRODUCTS: i64 = 1;
const VALUES: i64 = 2;
const GRADIENTS: i64 = 3;

struct Kernel<'a> {
    at: &'a PlacedOp,
    norm: &'a NormDx,
    features: i64,
    tokens: i64,
    width: f64,
}

impl<'a> Kernel<'a> {
    fn new(site: &'a Site<'a>, at: &'a PlacedOp, norm: &'a NormDx) -> Result<Self, WaferError> {
        let width = width(site, at, &[&norm.input, &norm.gradient, &norm.output])?;
        let features = i64::from(site.features(Layout::Columns { features: width }).0);
        Ok(Kernel { at, norm, features, tokens: i64::from(site.tokens()), width: f64::from(width) })
    }

    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    fn means(&self) -> bool {
        self.norm.kind == NormKind::Layer
    }

    /// Sums per token.
    fn sums(&self) -> i64 {
        if self.means() { 4 } else { 2 }
    }

    /// Numbers per token that come back: of g, of x, and one that is added.
    fn factors(&self) -> i64 {
        if self.means() { 3 } else { 2 }
    }

    fn sum(&self, place: i64) -> Slice {
        slice(&self.name("sums"), place * self.tokens)
    }

    fn row(&self) -> Slice {
        slice(&self.name("row"), 0)
    }

    /// `weight x gradient` of the feature of the loop around, into the row.
    fn weigh(&self) -> Stmt {
        let gradient = from(slice(&self.norm.gradient, Affine::term(Var::Loop(0), self.tokens)));
        let weight = from(strided(&self.name("weight"), Affine::from(Var::Loop(0)), &[0]));
        op(OpKind::Mul, to(self.row()), [gradient, weight], dims([self.tokens]))
    }

    fn own_sums(&self) -> Vec<Stmt> {
        let per_token = |place: i64| strided(&self.name("sums"), place * self.tokens, &[0, 1]);
        let tile = || from(slice(&self.norm.input, 0));
        let lengths = || dims([self.features, self.tokens]);
        let (squares, values) = (|| per_token(SQUARES), || per_token(VALUES));
        let clear = dims([self.sums() * self.tokens]);
        let mut body = vec![
            op(OpKind::Mov, to(self.sum(0)), [number(0.0)], clear),
            op(OpKind::Fmac, to(squares()), [tile(), tile(), from(squares())], lengths()),
        ];
        if self.means() {
            body.push(op(OpKind::Add, to(values()), [from(values()), tile()], lengths()));
        }
        let x = from(slice(&self.norm.input, Affine::term(Var::Loop(0), self.tokens)));
        let products = || self.sum(PRODUCTS);
        let mut feature = vec![self.weigh()];
        feature.push(self.each(OpKind::Fmac, products(), [from(self.row()), x, from(products())]));
        if self.means() {
            let gradients = || self.sum(GRADIENTS);
            feature.push(self.each(OpKind::Add, gradients(), [from(gradients()), from(self.row())]));
        }
        body.extend(repeat(self.features, feature));
        body
    }

    /// One vector op over the tokens.
    fn each<const N: usize>(&self, kind: OpKind, dst: Slice, src: [Operand; N]) -> Stmt {
        op(kind, to(dst), src, dims([self.tokens]))
    }

    /// Sums of the whole row to the factors, in the last column: of g in the place of the squares, of x in that of the
    /// products, and what is added in that of the values.
    fn finish(&self) -> Vec<Stmt> {
        let sum = |place: i64| from(self.sum(place));
        let row = || from(self.row());
        let all = dims([self.sums() * self.tokens]);
        let mut body = vec![op(OpKind::Mul, to(self.sum(0)), [sum(0), number(1.0 / self.width)], all)];
        if self.means() {
            body.extend([
                self.each(OpKind::Mul, self.row(), [sum(VALUES), sum(VALUES)]),
                self.each(OpKind::Sub, self.sum(SQUARES), [sum(SQUARES), row()]),
                self.each(OpKind::Max, self.sum(SQUARES), [sum(SQUARES), number(0.0)]),
                self.each(OpKind::Mul, self.row(), [sum(GRADIENTS), sum(VALUES)]),
                self.each(OpKind::Sub, self.sum(PRODUCTS), [sum(PRODUCTS), row()]),
            ]);
        }
        body.extend([
            self.each(OpKind::Add, self.sum(SQUARES), [sum(SQUARES), number(self.norm.eps)]),
            self.each(OpKind::Rsqrt, self.sum(SQUARES), [sum(SQUARES)]),
            self.each(OpKind::Mul, self.row(), [sum(SQUARES), sum(SQUARES)]),
            self.each(OpKind::Mul, self.row(), [row(), sum(SQUARES)]),
            self.each(OpKind::Mul, self.sum(PRODUCTS), [sum(PRODUCTS), row()]),
        ]);
        if self.means() {
            body.extend([
                self.each(OpKind::Mul, self.sum(VALUES), [sum(VALUES), sum(PRODUCTS)]),
                self.each(OpKind::Mul, self.sum(GRADIENTS), [sum(GRADIENTS), sum(SQUARES)]),
                self.each(OpKind::Sub, self.sum(VALUES), [sum(VALUES), sum(GRADIENTS)]),
            ]);
        }
        body.push(self.each(OpKind::Neg, self.sum(PRODUCTS), [sum(PRODUCTS)]));
        body
    }

    fn apply(&self) -> Vec<Stmt> {
        let feature = || Affine::term(Var::Loop(0), self.tokens);
        let (x, result) = (from(slice(&self.norm.input, feature())), slice(&self.norm.output, feature()));
        let (row, sum) = (|| from(self.row()), |place: i64| from(self.sum(place)));
        let rest = self.each(OpKind::Fmac, result, [x, sum(PRODUCTS), row()]);
        if !self.means() {
            let scaled = self.each(OpKind::Mul, self.row(), [row(), sum(SQUARES)]);
            return repeat(self.features, vec![self.weigh(), scaled, rest]);
        }
        // In a buffer of its own, so that no op of the loop reads two slices of one bank.
        let added = || slice(&self.name("added"), 0);
        let mut body = vec![self.each(OpKind::Mov, added(), [sum(VALUES)])];
        let scaled = self.each(OpKind::Fmac, self.row(), [row(), sum(SQUARES), from(added())]);
        body.extend(repeat(self.features, vec![self.weigh(), scaled, rest]));
        body
    }
}
