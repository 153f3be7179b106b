//! Places `nn` ops on a wafer, one by one: `nn` functions become a `wafer.program`.
//!
//! before: %0 = nn.linear %x, %w; %1 = nn.bias %0, %b; %2 = nn.add %x, %1
//! after:  %2 = wafer.linear %x, %w bias %b plus %x acc f32 at <0, 0, 750, 990>
//!
//! A bias and a residual that only a linear layer feeds start its accumulators; scores, scale, mask, softmax and values
//! become one `wafer.attention`; kernels of `fuse` are dissolved first, because the layout that all placed ops share
//! makes their borders meaningless. Where values lie is decided by [`super::layout`].

use super::layout::{HeadShape, place_heads, place_tokens};
use super::placed::{Heads, Tokens};
use crate::pass::{Changed, Pass, PassCx, PassError, diagnostic};
use crate::view::read_op;
use lapidary_ir::wafer::{self, Inner, Placement, Rect, Tile};
use lapidary_ir::{At, Attribute, IrContext, New, Op, Type, Value, View, nn};

/// The pass.
pub struct LowerToWafer {
    /// Columns of PEs that the program may use.
    pub width: u32,
    /// Rows of PEs that the program may use.
    pub height: u32,
}

impl LowerToWafer {
    /// Reads `width=750 height=994`; what is not given is the usable rectangle of the WSE-2.
    ///
    /// # Errors
    /// A sentence about the option that is none.
    pub fn of(options: &[(String, String)]) -> Result<Self, String> {
        let usable = lapidary_hardware::builtin::machine("wse2").ok();
        let usable = usable.as_ref().and_then(|machine| machine.wafer()).map(|wafer| wafer.fabric.usable);
        let (width, height) = usable.map_or((1, 1), |usable| (usable.width as u32, usable.height as u32));
        let mut pass = LowerToWafer { width, height };
        for (key, value) in options {
            let number = value.parse::<u32>().ok().filter(|n| (2..=4096).contains(n));
            let number =
                number.ok_or_else(|| format!("{key}={value}: a number of PEs from 2 to 4096 is needed"));
            match key.as_str() {
                "width" => pass.width = number?,
                "height" => pass.height = number?,
                _ => {
                    return Err(format!("lower-to-wafer takes no option `{key}`, only `width` and `height`"));
                }
            }
        }
        Ok(pass)
    }
}

impl Pass for LowerToWafer {
    fn name(&self) -> &'static str {
        "lower-to-wafer"
    }

    fn summary(&self) -> &'static str {
        "place the ops of a model on a rectangle of processing elements"
    }

    fn run(&self, module: Op<'_>, _: &PassCx) -> Result<Changed, PassError> {
        let trains = |op: &Op<'_>| read_op(*op).is_ok_and(|op| op.is_training());
        if let Some(op) = module.walk().into_iter().find(trains) {
            let what = format!("{} has no place on a wafer yet: only forward passes are placed", op.name());
            return Err(PassError::at(op, what));
        }
        let Some(main) = module.lookup("main").filter(|op| op.is("func.func")) else {
            return Ok(Changed::No);
        };
        dissolve_kernels(module)?;
        let mut lowering = Lowering::new(self, module, main)?;
        lowering.program(main)?;
        main.erase()?;
        for function in module.functions() {
            function.erase()?;
        }
        Ok(Changed::Yes)
    }
}

/// Puts the ops of every `nn.fused` in its place.
fn dissolve_kernels(module: Op<'_>) -> Result<(), PassError> {
    for fused in module.find::<nn::Fused>() {
        let mut known =
            Known { pairs: fused.inputs().into_iter().map(|(outer, inner)| (inner, outer)).collect() };
        for op in fused.ops() {
            let copy =
                At::before(fused.op()).located(op.location()).copy(op, &known.all(op, &op.operands())?);
            known.pairs.extend(op.results().into_iter().zip(copy.results()));
        }
        let results = known.all(fused.op(), &fused.yielded())?;
        fused.op().replace_with(&results)?;
    }
    Ok(())
}

/// New values for old ones; the latest counts.
struct Known<'c> {
    pairs: Vec<(Value<'c>, Value<'c>)>,
}

impl<'c> Known<'c> {
    fn get(&self, value: Value<'c>) -> Option<Value<'c>> {
        self.pairs.iter().rev().find(|(old, _)| *old == value).map(|(_, new)| *new)
    }

    fn one(&self, op: Op<'c>, value: Value<'c>) -> Result<Value<'c>, PassError> {
        self.get(value).ok_or_else(|| {
            PassError::at(op, format!("{} reads a value that has no place on a wafer", op.name()))
        })
    }

    fn all(&self, op: Op<'c>, values: &[Value<'c>]) -> Result<Vec<Value<'c>>, PassError> {
        values.iter().map(|value| self.one(op, *value)).collect()
    }
}

/// The scores of an attention, from queries and keys to the values that they weigh.
struct Attention<'c> {
    query: Value<'c>,
    key: Value<'c>,
    value: Value<'c>,
    scale: f64,
    mask: Option<nn::MaskParameters>,
    heads: u64,
    kv_heads: u64,
}

impl<'c> Attention<'c> {
    fn of(values: nn::Values<'c>) -> Option<Self> {
        let softmax = values.p().defined_by::<nn::Softmax>()?;
        let (mut at, mut scale, mut mask) = (softmax.x(), 1.0, None);
        loop {
            if let Some(by) = at.defined_by::<nn::Scale>() {
                (at, scale) = (by.x(), scale * by.by());
            } else if let Some(hidden) = at.defined_by::<nn::Mask>().filter(|_| mask.is_none()) {
                (at, mask) = (hidden.x(), Some(hidden.parameters()));
            } else {
                break;
            }
        }
        let scores = at.defined_by::<nn::Scores>()?;
        let (query, key, value) = (scores.q(), scores.k(), values.v());
        Some(Attention { query, key, value, scale, mask, heads: scores.heads(), kv_heads: scores.kv_heads() })
    }
}

struct Lowering<'c> {
    cx: &'c IrContext,
    module: Op<'c>,
    width: u32,
    height: u32,
    tokens: Tokens,
    heads: Option<Heads>,
    /// Values whose tokens lie over the columns of their heads.
    by_tokens: Vec<Value<'c>>,
    /// Values whose features lie over the columns of their heads.
    by_heads: Vec<Value<'c>>,
    known: Known<'c>,
    /// Ops that are part of another one.
    taken: Vec<Op<'c>>,
}

impl<'c> Lowering<'c> {
    fn new(pass: &LowerToWafer, module: Op<'c>, main: Op<'c>) -> Result<Self, PassError> {
        let ids =
            main.region_block(0).and_then(|block| block.argument(0)).map(Value::shape).unwrap_or_default();
        let [batch, seq] = ids[..] else {
            return Err(PassError::at(main, "a wafer program begins with token ids [B, S]"));
        };
        let small = |n: u64| u32::try_from(n).ok().filter(|n| (1..=1 << 24).contains(n));
        let (Some(sequences), Some(length)) = (small(batch), small(seq)) else {
            return Err(PassError::at(
                main,
                format!("{batch} sequences of {seq} tokens are more than a wafer counts"),
            ));
        };
        let tokens = place_tokens(pass.height, sequences, length, 1);
        if tokens.sequences < sequences {
            let over = sequences - tokens.sequences;
            let fault = format!(
                "{sequences} sequences need a row of PEs each; there are {} rows, {over} sequences too many",
                pass.height
            );
            return Err(PassError::TooLarge {
                diagnostic: Box::new(diagnostic(main, fault)),
                change: format!("{} sequences at a time or fewer", tokens.sequences),
            });
        }
        let mut lowering = Lowering {
            cx: module.context(),
            module,
            width: pass.width,
            height: pass.height,
            tokens,
            heads: None,
            by_tokens: vec![],
            by_heads: vec![],
            known: Known { pairs: vec![] },
            taken: vec![],
        };
        lowering.find_heads()?;
        Ok(lowering)
    }

    /// Heads over columns, and the values that lie as they do.
    fn find_heads(&mut self) -> Result<(), PassError> {
        for values in self.module.find::<nn::Values>() {
            let attention = Attention::of(values).ok_or_else(|| {
                PassError::at(values.op(), "the values of something that is no softmax of scores")
            })?;
            let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let dim = number(attention.query.width() / attention.heads.max(1));
            let shape =
                HeadShape { heads: number(attention.heads), kv_heads: number(attention.kv_heads), dim };
            let features = u64::from(shape.heads) * u64::from(shape.dim);
            if features > 1 << 24 || shape.kv_heads == 0 {
                let fault = format!("{features} features of queries are more than a wafer program counts");
                return Err(PassError::at(values.op(), fault));
            }
            let heads = place_heads(self.width, shape);
            if self.heads.is_some_and(|other| other != heads) {
                return Err(PassError::at(
                    values.op(),
                    "two kinds of heads in one module have no common placement",
                ));
            }
            self.heads = Some(heads);
            self.by_heads.push(values.result());
            for value in [attention.query, attention.key, attention.value] {
                self.by_tokens.extend(up_to_linear(value));
            }
        }
        Ok(())
    }

    fn program(&mut self, main: Op<'c>) -> Result<(), PassError> {
        let block = main.region_block(0).ok_or_else(|| PassError::at(main, "@main has no body"))?;
        let inputs: Vec<Type<'c>> = block.arguments().into_iter().map(Value::ty).collect();
        let at = At::before(main);
        let name = self.module.text("nn.model").unwrap_or("model").to_owned();
        let grid = (u64::from(self.width), u64::from(self.height));
        let (_, body) = wafer::program(at, &name, grid, &inputs)?;
        self.known.pairs.extend(block.arguments().into_iter().zip(body.arguments()));
        let results = self.function(main, At::end_of(body))?;
        At::end_of(body).create(&New::of("wafer.return", &[]).reads(&results))?;
        Ok(())
    }

    /// Lowers the ops of a function to a place and gives what it returns.
    fn function(&mut self, function: Op<'c>, at: At<'c>) -> Result<Vec<Value<'c>>, PassError> {
        for op in function.region_block(0).map_or_else(Vec::new, |block| block.ops()) {
            if op.is("func.return") {
                return self.known.all(op, &op.operands());
            }
            if !self.taken.contains(&op) {
                self.op(op, at.located(op.location()))?;
            }
        }
        Err(PassError::at(function, "the function does not return"))
    }

    fn op(&mut self, op: Op<'c>, at: At<'c>) -> Result<(), PassError> {
        let Some(any) = nn::Any::of(op) else {
            return Err(PassError::at(op, format!("{} has no place on a wafer", op.name())));
        };
        let result = match any {
            // These live on inside `wafer.attention`.
            nn::Any::Scores(_) | nn::Any::Mask(_) | nn::Any::Softmax(_) => return Ok(()),
            nn::Any::Scale(scale) if scale.result().shape().len() == 4 => return Ok(()),
            nn::Any::Param(param) => return self.weight(at, op, param.result()).map(|_| ()),
            nn::Any::Linear(linear) => return self.linear(at, linear),
            nn::Any::Values(values) => self.attention(at, values)?,
            nn::Any::Repeat(repeat) => self.repeat(at, repeat)?,
            nn::Any::Embed(_) => self.simple(at, op, "wafer.embed", 2, &[])?,
            nn::Any::Position(p) => {
                let more = [("sequences", self.sequences()), ("offset", self.count(p.offset()))];
                self.simple(at, op, "wafer.position", 2, &more)?
            }
            nn::Any::Norm(_) => {
                let more = [copied(op, "kind"), copied(op, "eps")];
                self.simple(at, op, "wafer.norm", 3, &more.into_iter().flatten().collect::<Vec<_>>())?
            }
            nn::Any::Rope(_) => self.rope(at, op)?,
            nn::Any::KvAppend(append) => {
                let cached = [("sequences", self.sequences()), ("cached", self.count(append.cached()))];
                let more: Vec<_> = copied(op, "cache").into_iter().chain(cached).collect();
                self.simple(at, op, "wafer.kv_append", 1, &more)?
            }
            nn::Any::LastToken(_) => {
                self.simple(at, op, "wafer.last_token", 1, &[("sequences", self.sequences())])?
            }
            nn::Any::Add(_) => self.map(at, op, "add", None)?,
            nn::Any::Mul(_) => self.map(at, op, "mul", None)?,
            nn::Any::Scale(scale) => self.map(at, op, "scale", Some(scale.by()))?,
            nn::Any::Activate(activate) => self.map(at, op, activate.function().name(), None)?,
            nn::Any::Bias(_) => return Err(PassError::at(op, "a bias on something that is no linear layer")),
            nn::Any::CrossEntropy(_)
            | nn::Any::CrossEntropyDx(_)
            | nn::Any::LinearDx(_)
            | nn::Any::LinearDw(_)
            | nn::Any::ColumnSum(_)
            | nn::Any::ActivationDx(_)
            | nn::Any::NormDx(_)
            | nn::Any::NormDw(_)
            | nn::Any::RopeDx(_)
            | nn::Any::MaskDx(_)
            | nn::Any::SoftmaxDx(_)
            | nn::Any::ValuesDv(_)
            | nn::Any::EmbedDw(_)
            | nn::Any::PositionDw(_)
            | nn::Any::LastTokenDx(_)
            | nn::Any::Save(_)
            | nn::Any::Saved(_)
            | nn::Any::Gradient(_)
            | nn::Any::EmbedPart(_)
            | nn::Any::AllReduce(_)
            | nn::Any::AllGather(_)
            | nn::Any::ReduceScatter(_)
            | nn::Any::GatherRows(_)
            | nn::Any::TakeRows(_)
            | nn::Any::Take(_)
            | nn::Any::EmbedPartDw(_)
            | nn::Any::Send(_)
            | nn::Any::Receive(_) => {
                return Err(PassError::at(op, format!("{} has no place on a wafer yet", op.name())));
            }
            nn::Any::Fused(_) => return Err(PassError::at(op, "a kernel within a kernel")),
        };
        self.known.pairs.extend(op.results().into_iter().map(|old| (old, result)));
        Ok(())
    }

    /// The weight that a parameter becomes, made here if it is not there yet: a bias may come after the layer that now
    /// takes it in.
    fn weight(&mut self, at: At<'c>, op: Op<'c>, value: Value<'c>) -> Result<Value<'c>, PassError> {
        let known = self.known.get(value);
        let Some(param) = value.defined_by::<nn::Param>().filter(|_| known.is_none()) else {
            return self.known.one(op, value);
        };
        let at = at.located(param.op().location());
        let weight = wafer::weight(at, param.name(), wafer::Source::Streamed, param.scale(), value.ty())?;
        self.known.pairs.push((value, weight));
        Ok(weight)
    }

    fn sequences(&self) -> Attribute<'c> {
        self.cx.i64(i64::from(self.tokens.sequences))
    }

    fn count(&self, n: u64) -> Attribute<'c> {
        self.cx.i64(i64::try_from(n).unwrap_or(i64::MAX))
    }

    /// The type that a value has on the wafer.
    fn tile(&self, op: Op<'c>, value: Value<'c>) -> Result<Type<'c>, PassError> {
        let tensor = value.tensor().filter(|tensor| tensor.shape.len() == 3);
        let tensor = tensor.ok_or_else(|| PassError::at(op, "only [B, S, D] lies over PEs"))?;
        let (tokens, features) = (tensor.shape[0] * tensor.shape[1], tensor.shape[2]);
        let all_rows = u64::from(self.tokens.blocks().lines());
        let rows = all_rows.min(tokens);
        let plain = Tile::new(tokens, features, tensor.dtype, rows, u64::from(self.width).min(features));
        let tile = match self.heads {
            Some(heads) if self.by_tokens.contains(&value) || self.by_heads.contains(&value) => {
                let inner = if self.by_heads.contains(&value) { Inner::Features } else { Inner::Tokens };
                let blocks = u64::from(heads.blocks);
                Tile { cols: blocks * u64::from(heads.columns), blocks, inner, ..plain }
            }
            _ => plain,
        };
        Ok(tile.ty(self.cx)?)
    }

    /// A placed op for `old`, whose result it stands for.
    fn placed(
        &self,
        at: At<'c>,
        old: Value<'c>,
        op: Op<'c>,
        new: New<'_, 'c>,
    ) -> Result<Value<'c>, PassError> {
        let height = u64::from(self.tokens.blocks().lines());
        let rect = Rect { x: 0, y: 0, w: u64::from(self.width), h: height };
        let new = wafer::placed(self.cx, new, &Placement::at(rect))?;
        let made = at.create(&new)?;
        made.result(0)
            .ok_or_else(|| PassError::at(op, format!("{} of {} has no result", made.name(), old.ty())))
    }

    /// An op that reads up to `most` of the same operands.
    fn simple(
        &self,
        at: At<'c>,
        op: Op<'c>,
        name: &str,
        most: usize,
        attributes: &[(&str, Attribute<'c>)],
    ) -> Result<Value<'c>, PassError> {
        let old = op.result(0).ok_or_else(|| PassError::at(op, "it has no result"))?;
        let operands: Vec<_> = op.operands().into_iter().take(most).collect();
        let mut new = New::of(name, &[self.tile(op, old)?]).reads(&self.known.all(op, &operands)?);
        for (key, value) in attributes {
            new = new.with(key, *value);
        }
        self.placed(at, old, op, new)
    }

    fn map(&self, at: At<'c>, op: Op<'c>, function: &str, by: Option<f64>) -> Result<Value<'c>, PassError> {
        let function = self.cx.parse_attribute(&format!("#wafer<map_fn {function}>"))?;
        let by = by.map(|by| ("by", self.cx.f64(by)));
        let attributes: Vec<_> = [("fn", function)].into_iter().chain(by).collect();
        self.simple(at, op, "wafer.map", 2, &attributes)
    }

    fn rope(&self, at: At<'c>, op: Op<'c>) -> Result<Value<'c>, PassError> {
        let names = [
            "pairing",
            "head_dim",
            "rot_dims",
            "theta",
            "offset",
            "scaling",
            "factor",
            "low_freq",
            "high_freq",
            "original_max",
        ];
        let same = names.into_iter().filter_map(|name| copied(op, name));
        let attributes: Vec<_> = same.chain([("sequences", self.sequences())]).collect();
        self.simple(at, op, "wafer.rope", 1, &attributes)
    }

    /// A linear layer with the bias and the residual that follow it.
    fn linear(&mut self, at: At<'c>, linear: nn::Linear<'c>) -> Result<(), PassError> {
        let op = linear.op();
        let mut last = linear.result();
        let bias = last.only_user().and_then(Op::cast::<nn::Bias>).filter(|bias| bias.x() == last);
        if let Some(bias) = bias {
            self.taken.push(bias.op());
            last = bias.result();
        }
        let add = last.only_user().and_then(Op::cast::<nn::Add>);
        let residual = add.and_then(|add| self.known.get(if add.a() == last { add.b() } else { add.a() }));
        if let Some(add) = add.filter(|_| residual.is_some()) {
            self.taken.push(add.op());
            last = add.result();
        }
        let bias = bias.map(|bias| self.weight(at, op, bias.bias())).transpose()?;
        let given = |value: Option<Value<'c>>| i32::from(value.is_some());
        let segments = format!("array<i32: 1, 1, {}, {}>", given(bias), given(residual));
        let new = New::of("wafer.linear", &[self.tile(op, last)?])
            .reads(&self.known.all(op, &[linear.x(), linear.weight()])?)
            .reads(bias.as_slice())
            .reads(residual.as_slice())
            .with("acc", self.cx.type_attribute(self.cx.parse_type("f32")?))
            .with("operandSegmentSizes", self.cx.parse_attribute(&segments)?);
        let result = self.placed(at, last, op, new)?;
        self.known.pairs.push((last, result));
        Ok(())
    }

    fn attention(&self, at: At<'c>, values: nn::Values<'c>) -> Result<Value<'c>, PassError> {
        let op = values.op();
        let a = Attention::of(values)
            .ok_or_else(|| PassError::at(op, "no softmax of scores weighs these values"))?;
        let operands = self.known.all(op, &[a.query, a.key, a.value])?;
        let mut new = New::of("wafer.attention", &[self.tile(op, values.result())?])
            .reads(&operands)
            .with("sequences", self.sequences())
            .with("heads", self.count(a.heads))
            .with("kv_heads", self.count(a.kv_heads))
            .with("scale", self.cx.f64(a.scale));
        if let Some(mask) = a.mask {
            new = new
                .with_some("causal", mask.causal.then(|| self.cx.unit()))
                .with_some("alibi", mask.alibi.map(|_| self.cx.unit()))
                .with_some("alibi_scaling", mask.alibi.map(|scaling| self.cx.f64(scaling)))
                .with("window", self.count(mask.window))
                .with("offset", self.count(mask.offset));
        }
        self.placed(at, values.result(), op, new)
    }

    fn repeat(&mut self, at: At<'c>, repeat: nn::Repeat<'c>) -> Result<Value<'c>, PassError> {
        let op = repeat.op();
        let function = self.module.lookup(repeat.body());
        let function = function.ok_or_else(|| PassError::at(op, "the repeated function is not there"))?;
        let inputs = self.known.all(op, &op.operands())?;
        let (new, body) = wafer::repeat(at, repeat.times(), &inputs)?;
        let arguments = function.region_block(0).map_or_else(Vec::new, |block| block.arguments());
        // The first argument is the number of the layer; weights say `*` instead.
        let carried = arguments.into_iter().filter(|argument| argument.tensor().is_some());
        self.known.pairs.extend(carried.zip(body.arguments()));
        let yielded = self.function(function, At::end_of(body))?;
        At::end_of(body).create(&New::of("wafer.yield", &[]).reads(&yielded))?;
        new.verify()?;
        new.result(0).ok_or_else(|| PassError::at(op, "a repeat carries one value"))
    }
}

/// An attribute of the old op, under its name.
fn copied<'c>(op: Op<'c>, name: &'static str) -> Option<(&'static str, Attribute<'c>)> {
    op.attribute(name).map(|attribute| (name, attribute))
}

/// The value and those that it is made of, up to the linear layer that they come from.
fn up_to_linear(value: Value<'_>) -> Vec<Value<'_>> {
    let mut chain = vec![value];
    let mut at = value;
    while let Some(maker) = at
        .defining_op()
        .filter(|op| op.is("nn.rope") || op.is("nn.kv_append") || op.is("nn.bias") || op.is("nn.scale"))
    {
        let Some(before) = maker.operand(0) else { break };
        chain.push(before);
        at = before;
    }
    chain
}
