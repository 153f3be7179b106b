//! A linear layer with streamed weights.
//!
//! Weights come down the columns, output by output, those of one output in the order of the column's input features.
//! Each weight triggers `sum[tokens] += w * x[feature][tokens]`. Then the partial sums of the output travel eastwards
//! round the ring of the row, from the column after the owner to the owner, and every PE adds its own on the way: one
//! vector op of `tokens` words per output, at every PE alike, so nobody waits for an owner. Each column absorbs the
//! latency of the ring once, when its own turn comes.
//!
//! Columns own the outputs block by block (a block is one column, or the columns of a head group, which share an output
//! by tokens). So a PE meets the outputs in five stretches: of earlier blocks; of the block just before it, whose ring
//! begins here; its own; of later blocks; and, for column 0, of the last block, whose ring begins here.

use super::{Scratch, scratch_name};
use crate::wafer::code::{dims, from, number, op, repeat, scalar, send, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Linear, PlacedOp};
use crate::wafer::site::Site;
use crate::wafer::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Operand, Stmt, Var, Wire};

/// Which outputs a PE meets, in their order.
struct Share {
    /// Outputs of earlier blocks, passed on.
    before: Affine,
    /// Outputs of the block before, begun here.
    begun: i64,
    /// Outputs of later blocks, passed on.
    after: Affine,
    /// Outputs of the last block, begun at column 0.
    begun_last: i64,
    /// First token that a block before leaves for its last column: the ring begins here from this token on.
    left: i64,
}

/// Which tokens of an output of its own block a PE keeps.
struct Kept {
    /// First token of the column before in the block; the end of the tokens that are passed on first.
    previous: Affine,
    /// How many tokens the column before keeps: their ring begins here.
    begun: i64,
    /// First token kept.
    first: Affine,
    /// How many are kept.
    count: i64,
}

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Vec<Stmt>, WaferError> {
    let layout = check(site, at, linear)?;
    let k = Kernel { site, at, linear, layout };
    let share = k.share();
    let mut body = k.prologue();
    body.extend(repeat(share.before, k.output(None, k.pass(0, k.tokens()))));
    body.extend(repeat(share.begun, k.output(None, k.begin(share.left))));
    body.extend(k.own());
    body.extend(repeat(share.after, k.output(None, k.pass(0, k.tokens()))));
    body.extend(repeat(share.begun_last, k.output(None, k.begin(share.left))));
    body.extend(k.epilogue());
    Ok(body)
}

/// The accumulator and the bias.
pub fn scratch(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Vec<Scratch>, WaferError> {
    let layout = check(site, at, linear)?;
    let k = Kernel { site, at, linear, layout };
    let biases = linear.outputs.iter().filter(|s| s.bias.is_some()).map(|s| k.own_features(&s.value)).sum();
    Ok(vec![Scratch::new("sum", DType::F32, site.tokens()), Scratch::new("bias", DType::F32, biases)])
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

    fn bias(&self) -> String {
        scratch_name(&self.at.name, "bias")
    }

    fn inputs(&self) -> i64 {
        let layout = self.site.placed.values.get(&self.linear.input);
        layout.map_or(0, |layout| i64::from(self.site.features(*layout).0))
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
            body.push(op(OpKind::Mov, to(slice(&self.sum(), 0)), [number(0.0)], dims([self.tokens()])));
        }
        body
    }

    /// One output: an AXPY for each weight, starting from `start` or zero, then what becomes of the sums.
    fn output(&self, start: Option<Operand>, then: Vec<Stmt>) -> Vec<Stmt> {
        self.output_in_loops(1, start, then)
    }

    fn output_in_loops(&self, depth: u8, start: Option<Operand>, then: Vec<Stmt>) -> Vec<Stmt> {
        let (tokens, inputs) = (self.tokens(), self.inputs());
        let mut body = Vec::new();
        if inputs > 0 {
            let weight = scalar(self.site.weights(), self.site.wire());
            let first = from(slice(&self.linear.input, 0));
            let sum = || to(slice(&self.sum(), 0));
            body.push(match start {
                Some(start) => op(OpKind::Fmac, sum(), [weight, first, start], dims([tokens])),
                None => op(OpKind::Mul, sum(), [weight, first], dims([tokens])),
            });
            let next = Affine::constant(tokens).plus(Var::Loop(depth), tokens);
            let operands =
                [weight_again(self.site), from(slice(&self.linear.input, next)), from(slice(&self.sum(), 0))];
            body.extend(repeat(inputs - 1, vec![op(OpKind::Fmac, sum(), operands, dims([tokens]))]));
        }
        body.extend(then);
        body
    }

    /// Adds the own sums to those that come, and sends them on.
    fn pass(&self, first: impl Into<Affine>, count: impl Into<Affine>) -> Vec<Stmt> {
        let come = words(self.site.from_previous(), Wire::F32);
        let own = from(slice(&self.sum(), first));
        vec![op(OpKind::Add, send(self.site.to_next(), Wire::F32), [own, come], vec![count.into()])]
    }

    /// Passes on the tokens before `left` and begins the ring of the others.
    fn begin(&self, left: i64) -> Vec<Stmt> {
        [self.pass(0, left), self.begin_from(left)].concat()
    }

    fn begin_from(&self, left: i64) -> Vec<Stmt> {
        let own = from(slice(&self.sum(), left));
        vec![op(OpKind::Mov, send(self.site.to_next(), Wire::F32), [own], dims([self.tokens() - left]))]
    }

    /// The outputs of the own block, segment by segment.
    fn own(&self) -> Vec<Stmt> {
        self.linear.outputs.iter().flat_map(|segment| self.own_segment(&segment.value)).collect()
    }

    fn own_segment(&self, value: &str) -> Vec<Stmt> {
        let features = i64::from(self.own_features(value));
        match self.site.head() {
            Some(head) if matches!(self.layout, Layout::HeadTokens { .. }) => {
                let (dim, tokens) = (i64::from(head.shape.dim), i64::from(head.tokens()));
                let feature = Affine::term(Var::Loop(0), tokens * dim).plus(Var::Loop(1), 1);
                let then = self.keep(&self.kept(), to(strided(value, feature, &[dim])));
                repeat(features / dim.max(1), repeat(dim, self.output_in_loops(2, None, then)))
            }
            _ => {
                let row = Affine::term(Var::Loop(0), self.tokens());
                let start = self.linear.accumulate.then(|| from(slice(value, row.clone())));
                let then = self.keep_all(value, row);
                repeat(features, self.output(start, then))
            }
        }
    }

    /// The own block is one column: all tokens end here.
    fn keep_all(&self, value: &str, row: Affine) -> Vec<Stmt> {
        let come = words(self.site.from_previous(), Wire::F32);
        let unread = self.inputs() == 0 && self.linear.accumulate;
        let own = if unread { slice(value, row.clone()) } else { slice(&self.sum(), 0) };
        vec![op(OpKind::Add, to(slice(value, row)), [from(own), come], dims([self.tokens()]))]
    }

    /// The own block shares the tokens: pass on, begin, keep, pass on.
    fn keep(&self, kept: &Kept, dst: lapidary_runtime_sim::program::Dest) -> Vec<Stmt> {
        let mut body = self.pass(0, kept.previous.clone());
        let begun = from(slice(&self.sum(), kept.previous.clone()));
        body.push(op(OpKind::Mov, send(self.site.to_next(), Wire::F32), [begun], dims([kept.begun])));
        let own = from(slice(&self.sum(), kept.first.clone()));
        let come = words(self.site.from_previous(), Wire::F32);
        body.push(op(OpKind::Add, dst, [own, come], dims([kept.count])));
        let end = kept.first.clone() + Affine::constant(kept.count);
        let beyond = |limit: i64| Affine::constant(limit) - end.clone();
        match self.closing() {
            Some(left) => {
                body.extend(self.pass(end.clone(), beyond(left)));
                body.extend(self.begin_from(left));
            }
            None => body.extend(self.pass(end.clone(), beyond(self.tokens()))),
        }
        body
    }

    /// At column 0, if one block covers the whole row: the first of the tokens kept by its last column, whose ring
    /// begins here.
    fn closing(&self) -> Option<i64> {
        let head = self.site.head()?;
        let whole =
            head.shape.blocks == 1 && head.shape.columns == self.site.placed.width && head.column == 0;
        whole.then(|| i64::from(head.token_tiles().start(head.shape.columns - 1)))
    }

    /// Which tokens this column of a head block keeps.
    fn kept(&self) -> Kept {
        let nothing = Kept { previous: 0.into(), begun: 0, first: 0.into(), count: 0 };
        self.site.head().map_or(nothing, |head| {
            let (tiles, column) = (head.token_tiles(), head.column);
            let begun = column.checked_sub(1).map_or(0, |before| i64::from(tiles.size(before)));
            let first = head.first_token();
            let previous = first.clone() - Affine::constant(begun);
            Kept { previous, begun, first, count: i64::from(tiles.size(column)) }
        })
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

    fn share(&self) -> Share {
        match self.layout {
            Layout::Columns { features } => self.column_share(features),
            _ => self.head_share(),
        }
    }

    fn column_share(&self, features: u32) -> Share {
        let (placed, x) = (self.site.placed, self.site.at.x);
        let tiles = Tiles::new(features, placed.width);
        let each = self.linear.outputs.len() as i64;
        let (own, start) = self.site.features(self.layout);
        let own = i64::from(own) * each;
        let start = start * each;
        let total = Affine::constant(i64::from(features) * each);
        let before_me = x.checked_sub(1).map_or(0, |column| i64::from(tiles.size(column)) * each);
        let at_last = i64::from(tiles.size(placed.width - 1)) * each;
        let begun_last = if x == 0 { at_last } else { 0 };
        let after = total - start.clone() - Affine::constant(own + begun_last);
        Share { before: start - Affine::constant(before_me), begun: before_me, after, begun_last, left: 0 }
    }

    fn head_share(&self) -> Share {
        let Some(shape) = self.site.placed.heads else {
            return Share { before: 0.into(), begun: 0, after: 0.into(), begun_last: 0, left: 0 };
        };
        let (blocks, x) = (shape.column_blocks(), self.site.at.x);
        let each: i64 = self.linear.outputs.iter().map(|s| self.block_outputs(&s.value)).sum();
        let tiles = Tiles::new(self.site.tokens(), shape.columns);
        let left = i64::from(tiles.start(shape.columns - 1));
        let all = i64::from(shape.blocks) * each;
        if !blocks.contains(x) {
            let begun = if x == blocks.lines() { each } else { 0 };
            return Share { before: (all - begun).into(), begun, after: 0.into(), begun_last: 0, left };
        }
        let earlier = blocks.block_of_x() * each;
        let begun = if blocks.local(x) == 0 && x > 0 { each } else { 0 };
        let begun_last = if x == 0 && blocks.lines() == self.site.placed.width { each } else { 0 };
        // With one block the last block is the own one: its ring begins within `keep`.
        let begun_last = if shape.blocks == 1 { 0 } else { begun_last };
        let after = Affine::constant(all - each - begun_last) - earlier.clone();
        Share { before: earlier - Affine::constant(begun), begun, after, begun_last, left }
    }

    fn block_outputs(&self, value: &str) -> i64 {
        let layout = self.site.placed.values.get(value);
        let features = layout.map_or(0, |layout| self.site.placed.features(*layout));
        i64::from(features / self.site.placed.heads.map_or(1, |heads| heads.blocks))
    }
}

/// The next weight.
fn weight_again(site: &Site) -> Operand {
    scalar(site.weights(), site.wire())
}
