//! A linear layer with streamed weights.
//!
//! Weights come down the columns, output by output, those of one output in the order of the column's input features.
//! Each weight triggers `sum[tokens] += w * x[feature][tokens]`. Then the partial sums of the output travel eastwards
//! round the ring of the row, from the column after the owner to the owner, and every PE adds its own on the way: one
//! vector op of `tokens` words per output, at every PE alike, so nobody waits for an owner. Each column absorbs the
//! latency of the ring once, when its own turn comes.
//!
//! Columns own the outputs block by block (a block is one column, or the columns of a head group, which share an output
//! by tokens, see [`block`]). So a PE meets the outputs in five stretches: of earlier blocks; of the block just before it, whose ring
//! begins here; its own; of later blocks; and, for column 0, of the last block, whose ring begins here.

mod block;
mod share;

use super::{Scratch, scratch_name};
use crate::wafer::code::{dims, from, number, op, repeat, scalar, send, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Linear, PlacedOp};
use crate::wafer::site::Site;
use block::Block;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Operand, Stmt, Var, Wire};
use share::Share;

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Vec<Stmt>, WaferError> {
    let layout = check(site, at, linear)?;
    let k = Kernel { site, at, linear, layout };
    let share = Share::of(&k);
    let mut body = k.prologue();
    body.extend(repeat(share.before, k.passed()));
    body.extend(repeat(share.begun, k.begun(share.left)));
    body.extend(k.own());
    body.extend(repeat(share.after, k.passed()));
    body.extend(repeat(share.begun_last, k.begun(share.left)));
    body.extend(k.epilogue());
    Ok(body)
}

/// The accumulator and the bias.
pub fn scratch(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Vec<Scratch>, WaferError> {
    let layout = check(site, at, linear)?;
    let k = Kernel { site, at, linear, layout };
    let biases = linear.outputs.iter().filter(|s| s.bias.is_some()).map(|s| k.own_features(&s.value)).sum();
    let sums = site.tokens().saturating_mul(k.sums() as u32);
    Ok(vec![Scratch::new("sum", DType::F32, sums), Scratch::new("bias", DType::F32, biases)])
}

/// The layout of the outputs, after a look at all of them.
fn check(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Layout, WaferError> {
    let fault = |detail: String| WaferError::Layout { op: at.name.clone(), detail };
    let first = linear.outputs.first().ok_or_else(|| fault("it has no outputs".into()))?;
    let layout = site.placed.layout(at, &first.value)?;
    for segment in &linear.outputs {
        let fits = match (site.placed.layout(at, &segment.value)?, layout) {
            (Layout::Columns { features: a }, Layout::Columns { features: b }) => a == b,
            (Layout::HeadTokens { .. }, Layout::HeadTokens { .. }) => true,
            _ => false,
        };
        if !fits {
            return Err(fault(
                "its outputs must all lie over columns in one width, or all over the tokens of heads".into(),
            ));
        }
    }
    if matches!(site.placed.layout(at, &linear.input)?, Layout::HeadTokens { .. }) {
        return Err(fault(format!(
            "its input {} lies over tokens; a linear layer reads features over columns",
            linear.input
        )));
    }
    if linear.accumulate && (linear.outputs.len() > 1 || !matches!(layout, Layout::Columns { .. })) {
        return Err(fault("only one output over columns can be a residual".into()));
    }
    Ok(layout)
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    linear: &'a Linear,
    layout: Layout,
}

impl Kernel<'_> {
    fn tokens(&self) -> i64 {
        i64::from(self.site.tokens())
    }

    fn sum(&self) -> String {
        scratch_name(&self.at.name, "sum")
    }

    /// Outputs whose sums are held at once.
    fn sums(&self) -> i64 {
        match self.site.head() {
            Some(head) if matches!(self.layout, Layout::HeadTokens { .. }) => Block::new(self, head).delay(),
            _ => 1,
        }
    }

    fn bias(&self) -> String {
        scratch_name(&self.at.name, "bias")
    }

    fn inputs(&self) -> i64 {
        let layout = self.site.placed.values.get(&self.linear.input);
        layout.map_or(0, |layout| i64::from(self.site.features(*layout).0))
    }

    /// Input features of the column with the most.
    fn most_inputs(&self) -> u32 {
        match (self.site.placed.values.get(&self.linear.input), self.site.placed.heads) {
            (Some(Layout::Columns { features }), _) => features.div_ceil(self.site.placed.width),
            (Some(Layout::HeadColumns { queries }), Some(heads)) => {
                heads.features(*queries).div_ceil(heads.columns.max(1))
            }
            _ => 0,
        }
    }

    fn own_features(&self, value: &str) -> u32 {
        self.site.placed.values.get(value).map_or(0, |layout| self.site.features(*layout).0)
    }

    /// Receives the bias; clears the accumulator for good where no weights come.
    fn prologue(&self) -> Vec<Stmt> {
        let biased = self.linear.outputs.iter().filter(|s| s.bias.is_some());
        let biases: i64 = biased.map(|s| i64::from(self.own_features(&s.value))).sum();
        let arriving = words(self.site.weights(), Wire::F32);
        let mut body = vec![op(OpKind::Mov, to(slice(&self.bias(), 0)), [arriving], dims([biases]))];
        if self.inputs() == 0 {
            let sums = self.sums() * self.tokens();
            body.push(op(OpKind::Mov, to(slice(&self.sum(), 0)), [number(0.0)], dims([sums])));
        }
        body
    }

    /// One output: an AXPY for each weight, starting from `start` or zero, into the sums from `first` on; then what
    /// becomes of them. `depth` loops are around it.
    fn output(
        &self,
        depth: u8,
        first: impl Into<Affine>,
        start: Option<Operand>,
        then: Vec<Stmt>,
    ) -> Vec<Stmt> {
        let (tokens, inputs, first) = (self.tokens(), self.inputs(), first.into());
        let mut body = Vec::new();
        if inputs > 0 {
            let weight = || scalar(self.site.weights(), self.site.wire());
            let x = from(slice(&self.linear.input, 0));
            let sum = || slice(&self.sum(), first.clone());
            body.push(match start {
                Some(start) => op(OpKind::Fmac, to(sum()), [weight(), x, start], dims([tokens])),
                None => op(OpKind::Mul, to(sum()), [weight(), x], dims([tokens])),
            });
            let next = Affine::constant(tokens).plus(Var::Loop(depth), tokens);
            let operands = [weight(), from(slice(&self.linear.input, next)), from(sum())];
            body.extend(repeat(inputs - 1, vec![op(OpKind::Fmac, to(sum()), operands, dims([tokens]))]));
        }
        body.extend(then);
        body
    }

    /// Adds the own sums to those that come, and sends them on.
    fn pass(&self, first: impl Into<Affine>, count: impl Into<Affine>) -> Stmt {
        let come = words(self.site.previous_column(), Wire::F32);
        let own = from(slice(&self.sum(), first));
        op(OpKind::Add, send(self.site.next_column(), Wire::F32), [own, come], vec![count.into()])
    }

    /// Begins the ring of sums.
    fn begin(&self, first: impl Into<Affine>, count: impl Into<Affine>) -> Stmt {
        let own = from(slice(&self.sum(), first));
        op(OpKind::Mov, send(self.site.next_column(), Wire::F32), [own], vec![count.into()])
    }

    /// An output of another block, passed on whole.
    fn passed(&self) -> Vec<Stmt> {
        self.output(1, 0, None, vec![self.pass(0, self.tokens())])
    }

    /// An output of the block before: its last column keeps the tokens from `left` on, whose ring begins here.
    fn begun(&self, left: i64) -> Vec<Stmt> {
        self.output(1, 0, None, vec![self.pass(0, left), self.begin(left, self.tokens() - left)])
    }

    /// The outputs of the own block.
    fn own(&self) -> Vec<Stmt> {
        match self.site.head() {
            Some(head) if matches!(self.layout, Layout::HeadTokens { .. }) => {
                Block::new(self, head).outputs()
            }
            _ => self.linear.outputs.iter().flat_map(|segment| self.own_column(&segment.value)).collect(),
        }
    }

    /// The own block is this column: all tokens end here.
    fn own_column(&self, value: &str) -> Vec<Stmt> {
        let row = Affine::term(Var::Loop(0), self.tokens());
        let start = self.linear.accumulate.then(|| from(slice(value, row.clone())));
        let come = words(self.site.previous_column(), Wire::F32);
        let unread = self.inputs() == 0 && self.linear.accumulate;
        let own = if unread { slice(value, row.clone()) } else { slice(&self.sum(), 0) };
        let keep = op(OpKind::Add, to(slice(value, row)), [from(own), come], dims([self.tokens()]));
        repeat(i64::from(self.own_features(value)), self.output(1, 0, start, vec![keep]))
    }

    /// Adds the bias to the whole tile.
    fn epilogue(&self) -> Vec<Stmt> {
        let mut at = 0;
        let mut body = Vec::new();
        for segment in self.linear.outputs.iter().filter(|s| s.bias.is_some()) {
            let features = i64::from(self.own_features(&segment.value));
            let (lengths, whole, bias) = match self.site.head() {
                Some(head) if matches!(self.layout, Layout::HeadTokens { .. }) => {
                    let (dim, tokens) = (i64::from(head.shape.dim), i64::from(head.tokens()));
                    (
                        dims([features / dim.max(1), tokens, dim]),
                        [tokens * dim, dim, 1].to_vec(),
                        [dim, 0, 1].to_vec(),
                    )
                }
                _ => (dims([features, self.tokens()]), [self.tokens(), 1].to_vec(), [1, 0].to_vec()),
            };
            let whole = strided(&segment.value, 0, &whole);
            let bias = from(strided(&self.bias(), at, &bias));
            body.push(op(OpKind::Add, to(whole.clone()), [from(whole), bias], lengths));
            at += features;
        }
        body
    }
}
