//! Cross entropy over a vocabulary that is spread over the columns, and its derivative by the logits.
//!
//! Each PE finds the maximum of its own logits of each token, then the sum of their exponentials; both become those of
//! the whole row by one exchange each. A PE knows the labels of its tokens as numbers: the distance of a label from a row
//! of the vocabulary, cut to one below zero, is 1 at the label and 0 elsewhere. A token counts with its weight, which is
//! one over the number of labels, or zero where there is none.

use super::sums::{self, LineSums};
use super::{Scratch, scratch_name, stream};
use crate::wafer::code::{dims, from, number, op, repeat, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Loss, LossDx, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Operand, Slice, Stmt, TensorMap, Var};

/// Name of the tensor of the labels, as numbers.
pub const LABELS: &str = "labels";

/// Name of the tensor of the weights of the tokens.
pub const SHARES: &str = "label.shares";

/// Name of the tensor of the numbers of the rows of the vocabulary.
pub const ROWS: &str = "vocabulary.rows";

/// Below any logit.
const LOWEST: f64 = -1e30;

/// Statements of one PE for the loss.
pub fn code(site: &Site, at: &PlacedOp, loss: &Loss) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, &loss.logits)?;
    let mut body = k.maxima();
    let mut feature = k.exponential();
    feature.push(k.each(OpKind::Add, k.at("sums", 0), [k.get("sums"), k.get("row")]));
    feature.extend(k.hit());
    let (sum, hits) = (|| k.at("sums", 1), from(k.at("sums", 1)));
    feature.push(k.each(OpKind::Fmac, sum(), [k.get("row"), k.logit(), hits]));
    feature.push(k.next_row());
    body.extend(k.begin(2));
    body.extend(repeat(k.features, feature));
    body.extend(k.sums(2).collect(k.losses()));
    if site.is_last() {
        body.extend(stream::sums(site, k.at("sums", 0), 1));
    }
    Ok(body)
}

/// Statements of one PE for the derivative.
pub fn code_dx(site: &Site, at: &PlacedOp, loss: &LossDx) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, &loss.logits)?;
    if site.placed.layout(at, &loss.output)? != site.placed.layout(at, &loss.logits)? {
        let detail = format!("{} and {} lie differently", loss.logits, loss.output);
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    }
    let mut body = k.maxima();
    body.extend(k.begin(1));
    let mut feature = k.exponential();
    feature.push(k.each(OpKind::Add, k.at("sums", 0), [k.get("sums"), k.get("row")]));
    body.extend(repeat(k.features, feature));
    let inverse = k.each(OpKind::Recip, k.at("sums", 0), [k.get("sums")]);
    body.extend(k.sums(1).share(vec![inverse], k.tokens));
    let mut feature = k.exponential();
    feature.push(k.each(OpKind::Mul, k.at("other", 0), [k.get("row"), k.get("sums")]));
    feature.extend(k.hit());
    feature.push(k.each(OpKind::Sub, k.at("other", 0), [k.get("other"), k.get("row")]));
    let result = slice(&loss.output, Affine::term(Var::Loop(0), k.tokens));
    feature.push(k.each(OpKind::Mul, result, [k.get("other"), k.get("share")]));
    feature.push(k.next_row());
    body.extend(repeat(k.features, feature));
    Ok(body)
}

/// Sums, labels and weights, and rows of tokens.
pub fn scratch(site: &Site, at: &PlacedOp, loss: &Loss) -> Result<Vec<Scratch>, WaferError> {
    Ok(Kernel::new(site, at, &loss.logits)?.scratch(2))
}

/// As [`scratch`].
pub fn scratch_dx(site: &Site, at: &PlacedOp, loss: &LossDx) -> Result<Vec<Scratch>, WaferError> {
    let k = Kernel::new(site, at, &loss.logits)?;
    let mut scratch = k.scratch(1);
    scratch.push(Scratch::new("other", DType::F32, k.tokens as u32));
    Ok(scratch)
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    logits: &'a str,
    layout: Layout,
    names: [(&'static str, String); 6],
    max: String,
    sums: String,
    features: i64,
    tokens: i64,
}

impl<'a> Kernel<'a> {
    fn new(site: &'a Site<'a>, at: &PlacedOp, logits: &'a str) -> Result<Self, WaferError> {
        let layout = site.placed.layout(at, logits)?;
        if !matches!(layout, Layout::Columns { .. }) {
            let detail = format!("{logits} must lie with features over all columns");
            return Err(WaferError::Layout { op: at.name.clone(), detail });
        }
        let name = |name: &'static str| (name, scratch_name(&at.name, name));
        Ok(Kernel {
            site,
            logits,
            layout,
            names: ["label", "share", "row", "other", "first", "place"].map(name),
            max: scratch_name(&at.name, "max"),
            sums: scratch_name(&at.name, "sums"),
            features: i64::from(site.features(layout).0),
            tokens: i64::from(site.tokens()),
        })
    }

    fn scratch(&self, sums: u32) -> Vec<Scratch> {
        let tokens = self.tokens as u32;
        let row = |name| Scratch::new(name, DType::F32, tokens);
        let of_tokens = |tensor: &str| {
            let index = self.site.first_token().plus(Var::Dim(0), 1);
            Some(TensorMap { tensor: tensor.into(), dims: vec![self.tokens.into()], index })
        };
        let first = self.site.features(self.layout).1;
        let first =
            TensorMap { tensor: ROWS.into(), dims: vec![1.into()], index: first.plus(Var::Dim(0), 1) };
        vec![
            Scratch::new("sums", DType::F32, tokens.saturating_mul(sums)),
            row("max"),
            row("row"),
            row("place"),
            Scratch { load: of_tokens(LABELS), ..row("label") },
            Scratch { load: of_tokens(SHARES), ..row("share") },
            Scratch { load: Some(first), ..Scratch::new("first", DType::F32, u32::from(self.features > 0)) },
        ]
    }

    fn name(&self, scratch: &str) -> &str {
        match scratch {
            "max" => &self.max,
            "sums" => &self.sums,
            _ => self.names.iter().find(|(name, _)| *name == scratch).map_or("", |(_, full)| full),
        }
    }

    /// Row number `row` of a scratch buffer.
    fn at(&self, scratch: &str, row: i64) -> Slice {
        slice(self.name(scratch), row * self.tokens)
    }

    fn get(&self, scratch: &str) -> Operand {
        from(self.at(scratch, 0))
    }

    /// The logits of the feature of the loop around.
    fn logit(&self) -> Operand {
        from(slice(self.logits, Affine::term(Var::Loop(0), self.tokens)))
    }

    /// One vector op over the tokens.
    fn each<const N: usize>(&self, kind: OpKind, dst: Slice, src: [Operand; N]) -> Stmt {
        op(kind, to(dst), src, dims([self.tokens]))
    }

    fn sums(&self, count: i64) -> LineSums<'_> {
        let sum = sums::row(self.site.placed, count);
        LineSums { site: self.site, sum, buffer: &self.sums, kind: OpKind::Add, count: count * self.tokens }
    }

    /// Maximum of every token over the row.
    fn maxima(&self) -> Vec<Stmt> {
        let max = || strided(&self.max, 0, &[0, 1]);
        let own = [from(max()), from(slice(self.logits, 0))];
        let mut body = vec![
            self.each(OpKind::Mov, self.at("max", 0), [number(LOWEST)]),
            op(OpKind::Max, to(max()), own, dims([self.features, self.tokens])),
        ];
        let sum = sums::row(self.site.placed, 1);
        let row = LineSums { site: self.site, sum, buffer: &self.max, kind: OpKind::Max, count: self.tokens };
        body.extend(row.share(vec![], self.tokens));
        body
    }

    /// Clears sums; the place of a label is its distance from the first own row.
    fn begin(&self, sums: i64) -> Vec<Stmt> {
        let first = from(strided(self.name("first"), 0, &[0]));
        let mut body =
            vec![op(OpKind::Mov, to(self.at("sums", 0)), [number(0.0)], dims([sums * self.tokens]))];
        if self.features > 0 {
            body.push(self.each(OpKind::Sub, self.at("place", 0), [self.get("label"), first]));
        }
        body
    }

    /// The exponential of a feature, in the row.
    fn exponential(&self) -> Vec<Stmt> {
        vec![
            self.each(OpKind::Sub, self.at("row", 0), [self.logit(), self.get("max")]),
            self.each(OpKind::Exp, self.at("row", 0), [self.get("row")]),
        ]
    }

    /// 1 in the row where the label is this feature, 0 elsewhere.
    fn hit(&self) -> Vec<Stmt> {
        let row = || self.at("row", 0);
        vec![
            self.each(OpKind::Abs, row(), [self.get("place")]),
            self.each(OpKind::Fmac, row(), [self.get("row"), number(-1.0), number(1.0)]),
            self.each(OpKind::Max, row(), [self.get("row"), number(0.0)]),
        ]
    }

    fn next_row(&self) -> Stmt {
        self.each(OpKind::Sub, self.at("place", 0), [self.get("place"), number(1.0)])
    }

    /// Sums of exponentials and logits of labels to the weighed loss of the row, in the last column.
    fn losses(&self) -> Vec<Stmt> {
        let (sums, hits) = (|| self.at("sums", 0), from(self.at("sums", 1)));
        let row = || self.at("row", 0);
        let loss = || strided(&self.sums, 0, &[0]);
        vec![
            self.each(OpKind::Log, row(), [from(sums())]),
            self.each(OpKind::Add, row(), [from(row()), self.get("max")]),
            self.each(OpKind::Sub, row(), [from(row()), hits]),
            op(OpKind::Mov, to(sums()), [number(0.0)], dims([1])),
            self.each(OpKind::Fmac, loss(), [from(row()), self.get("share"), from(loss())]),
        ]
    }
}
