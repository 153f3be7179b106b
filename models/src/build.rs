//! Builds the graph of a model: which op stands where.

use crate::dtype::DType;
use crate::graph::{Dims, Function, Graph, GraphError, Mode, Node, Param, TensorType, Value, ValueId};
use crate::op::{Cache, Op, ScaleRole};
use crate::spec::{AttentionScale, Mlp, ModelSpec, Position, Residual, Rope};

impl Graph {
    /// The graph of `spec` with its dimensions bound. `dims.cached` must be 0 except in [`Mode::Decode`].
    ///
    /// # Errors
    /// [`GraphError`] when a dimension is out of range, a shape rule fails, or a tensor is too large.
    pub fn build(spec: &ModelSpec, mode: Mode, dims: Dims) -> Result<Graph, GraphError> {
        if spec.experts.is_some() {
            return Err(GraphError::Unsupported { model: spec.name.clone(), what: "experts" });
        }
        check_dims(spec, mode, dims)?;
        let mut params = Vec::new();
        let layer = layer_function(spec, mode, dims, &mut params)?;
        let main = main_function(spec, mode, dims, &mut params)?;
        let functions = vec![layer, main];
        let (name, n_layers, slots) = (spec.name.clone(), spec.n_layers, Vec::new());
        Ok(Graph { name, mode, dims, n_layers, params, slots, functions })
    }
}

fn check_dims(spec: &ModelSpec, mode: Mode, dims: Dims) -> Result<(), GraphError> {
    let fault = |dim, value, what: String| Err(GraphError::Dimension { dim, value, what });
    if dims.batch == 0 {
        return fault("batch", 0, "at least one sequence is needed".into());
    }
    if dims.seq == 0 {
        return fault("seq", 0, "at least one token is needed".into());
    }
    if mode != Mode::Decode && dims.cached != 0 {
        return fault("cached", dims.cached, "only decode starts from a filled cache".into());
    }
    match dims.cached.checked_add(dims.seq) {
        Some(keys) if keys <= spec.max_seq => Ok(()),
        keys => fault(
            "seq",
            keys.unwrap_or(u64::MAX),
            format!("{} was built for {} positions", spec.name, spec.max_seq),
        ),
    }
}

fn layer_function(
    spec: &ModelSpec,
    mode: Mode,
    dims: Dims,
    params: &mut Vec<Param>,
) -> Result<Function, GraphError> {
    let mut f = Builder::new("layer", true, spec.dtype.compute, params);
    let x = f.argument(TensorType::new(spec.dtype.compute, [dims.batch, dims.seq, spec.d_model]));
    let h1 = f.norm(spec, "attn_norm", x)?;
    let attention = attention(&mut f, spec, mode, dims, h1)?;
    let y = match spec.block.residual {
        Residual::Sequential => {
            let x1 = f.add("attn.residual", x, attention)?;
            let h2 = f.norm(spec, "mlp_norm", x1)?;
            let mlp = mlp(&mut f, spec, h2)?;
            f.add("mlp.residual", x1, mlp)?
        }
        Residual::Parallel => {
            let h2 = if spec.block.shared_norm { h1 } else { f.norm(spec, "mlp_norm", x)? };
            let mlp = mlp(&mut f, spec, h2)?;
            let x1 = f.add("attn.residual", x, attention)?;
            f.add("mlp.residual", x1, mlp)?
        }
    };
    Ok(f.finish(vec![y]))
}

fn attention(
    f: &mut Builder,
    spec: &ModelSpec,
    mode: Mode,
    dims: Dims,
    h: ValueId,
) -> Result<ValueId, GraphError> {
    let (heads, kv_heads) = (spec.n_heads, spec.n_kv_heads);
    let mut q = f.linear("attn.q", h, spec.d_model, spec.q_width(), spec.bias.qkv)?;
    let mut k = f.linear("attn.k", h, spec.d_model, spec.kv_width(), spec.bias.qkv)?;
    let mut v = f.linear("attn.v", h, spec.d_model, spec.kv_width(), spec.bias.qkv)?;
    if let Position::Rope(rope) = spec.pos {
        q = f.node("attn.q.rope", rope_op(spec, rope, dims), &[q])?;
        k = f.node("attn.k.rope", rope_op(spec, rope, dims), &[k])?;
    }
    if mode != Mode::Forward {
        let cached = dims.cached;
        k = f.node("attn.k.cache", Op::KvAppend { cache: Cache::Key, cached }, &[k])?;
        v = f.node("attn.v.cache", Op::KvAppend { cache: Cache::Value, cached }, &[v])?;
    }
    let s = f.node("attn.scores", Op::Scores { heads, kv_heads }, &[q, k])?;
    let s =
        f.node("attn.scale", Op::Scale { by: spec.attention_scale(), role: attention_role(spec) }, &[s])?;
    let s = f.node("attn.mask", mask_op(spec, dims), &[s])?;
    let p = f.node("attn.softmax", Op::Softmax, &[s])?;
    let o = f.node("attn.values", Op::Values { heads, kv_heads }, &[p, v])?;
    let out = f.linear("attn.out", o, spec.q_width(), spec.d_model, spec.bias.attn_out)?;
    f.scale("attn.multiplier", out, spec.multipliers.residual, ScaleRole::Residual)
}

fn rope_op(spec: &ModelSpec, rope: Rope, dims: Dims) -> Op {
    Op::Rope {
        head_dim: spec.head_dim,
        rot_dims: rope.rot_dims,
        pairing: rope.pairing,
        theta: rope.theta,
        scaling: rope.scaling,
        offset: dims.cached,
    }
}

fn attention_role(spec: &ModelSpec) -> ScaleRole {
    let mup_power = matches!(spec.attn.scale, AttentionScale::HeadDimPower(power) if power == -1.0);
    if spec.mup.is_some() && mup_power { ScaleRole::MupAttention } else { ScaleRole::Attention }
}

fn mask_op(spec: &ModelSpec, dims: Dims) -> Op {
    let alibi = match spec.pos {
        Position::Alibi { scaling } => Some(scaling),
        _ => None,
    };
    Op::Mask { causal: true, window: spec.attn.window.unwrap_or(0), alibi, heads: None, offset: dims.cached }
}

fn mlp(f: &mut Builder, spec: &ModelSpec, h: ValueId) -> Result<ValueId, GraphError> {
    let Mlp { act, gated, .. } = spec.mlp;
    let inner = if gated {
        let gate = f.linear("mlp.gate", h, spec.d_model, spec.d_ff, spec.bias.mlp)?;
        let up = f.linear("mlp.up", h, spec.d_model, spec.d_ff, spec.bias.mlp)?;
        let gate = f.node("mlp.act", Op::Activation(act), &[gate])?;
        f.node("mlp.glu", Op::Mul, &[gate, up])?
    } else {
        let up = f.linear("mlp.up", h, spec.d_model, spec.d_ff, spec.bias.mlp)?;
        f.node("mlp.act", Op::Activation(act), &[up])?
    };
    let out = f.linear("mlp.down", inner, spec.d_ff, spec.d_model, spec.bias.mlp)?;
    f.scale("mlp.multiplier", out, spec.multipliers.residual, ScaleRole::Residual)
}

fn main_function(
    spec: &ModelSpec,
    mode: Mode,
    dims: Dims,
    params: &mut Vec<Param>,
) -> Result<Function, GraphError> {
    let mut f = Builder::new("main", false, spec.dtype.compute, params);
    let ids = f.argument(TensorType::new(DType::I32, [dims.batch, dims.seq]));
    let table = f.param("embed.weight", &[spec.vocab_rows(), spec.d_model])?;
    let mut x = f.node("embed", Op::Embed, &[ids, table])?;
    if spec.pos == Position::Learned {
        let positions = f.param("position.weight", &[spec.max_seq, spec.d_model])?;
        x = f.node("position", Op::Position { offset: dims.cached }, &[x, positions])?;
    }
    let (embedding, output) = match spec.mup {
        Some(_) => (ScaleRole::MupEmbedding, ScaleRole::MupOutput),
        None => (ScaleRole::Embedding, ScaleRole::Output),
    };
    x = f.scale("embed.multiplier", x, spec.multipliers.embedding, embedding)?;
    x = f.node("layers", Op::Repeat { function: 0, first: 0, times: spec.n_layers, reverse: false }, &[x])?;
    if mode != Mode::Forward {
        x = f.node("last_token", Op::LastToken, &[x])?;
    }
    if spec.norm.final_norm {
        x = f.norm(spec, "final_norm", x)?;
    }
    let logits = match spec.head.tied {
        true => f.node("head", Op::Linear, &[x, table])?,
        false => f.linear_named("head", "head", x, [spec.vocab_rows(), spec.d_model], spec.bias.head)?,
    };
    let logits = f.scale("head.multiplier", logits, spec.multipliers.logits, output)?;
    Ok(f.finish(vec![logits]))
}

/// Adds nodes to a function and declares parameters on the way.
struct Builder<'p> {
    function: Function,
    dtype: DType,
    params: &'p mut Vec<Param>,
}

impl<'p> Builder<'p> {
    fn new(name: &str, per_layer: bool, dtype: DType, params: &'p mut Vec<Param>) -> Self {
        let function = Function {
            name: name.into(),
            per_layer,
            arguments: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            results: Vec::new(),
        };
        Builder { function, dtype, params }
    }

    fn finish(mut self, results: Vec<ValueId>) -> Function {
        self.function.results = results;
        self.function
    }

    fn value(&mut self, ty: TensorType) -> ValueId {
        self.function.values.push(Value { ty });
        ValueId(self.function.values.len() - 1)
    }

    fn argument(&mut self, ty: TensorType) -> ValueId {
        let id = self.value(ty);
        self.function.arguments.push(id);
        id
    }

    fn push(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[ValueId],
        ty: TensorType,
    ) -> Result<ValueId, GraphError> {
        fits(name, &ty)?;
        let output = self.value(ty);
        self.function.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let operands: Vec<&TensorType> = inputs.iter().map(|id| self.function.ty(*id)).collect();
        let ty = op.result(&operands).map_err(|what| GraphError::Shape { node: name.into(), what })?;
        self.push(name, op, inputs, ty)
    }

    fn param(&mut self, name: &str, shape: &[u64]) -> Result<ValueId, GraphError> {
        let per_layer = self.function.per_layer;
        let name = if per_layer { format!("layers.*.{name}") } else { name.to_string() };
        let ty = TensorType::new(self.dtype, shape);
        self.params.push(Param { name: name.clone(), ty: ty.clone(), per_layer });
        let param = self.params.len() - 1;
        self.push(&name, Op::Param { param }, &[], ty)
    }

    fn linear(&mut self, name: &str, x: ValueId, k: u64, n: u64, bias: bool) -> Result<ValueId, GraphError> {
        self.linear_named(name, name, x, [n, k], bias)
    }

    fn linear_named(
        &mut self,
        name: &str,
        param: &str,
        x: ValueId,
        shape: [u64; 2],
        bias: bool,
    ) -> Result<ValueId, GraphError> {
        let weight = self.param(&format!("{param}.weight"), &shape)?;
        let y = self.node(name, Op::Linear, &[x, weight])?;
        if !bias {
            return Ok(y);
        }
        let bias = self.param(&format!("{param}.bias"), &shape[..1])?;
        self.node(&format!("{name}.bias"), Op::Bias, &[y, bias])
    }

    fn norm(&mut self, spec: &ModelSpec, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        let mut inputs = vec![x, self.param(&format!("{name}.weight"), &[spec.d_model])?];
        if spec.norm.bias {
            inputs.push(self.param(&format!("{name}.bias"), &[spec.d_model])?);
        }
        self.node(name, Op::Norm { kind: spec.norm.kind, eps: spec.norm.eps }, &inputs)
    }

    fn add(&mut self, name: &str, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.node(name, Op::Add, &[a, b])
    }

    /// A factor of exactly 1 leaves no op behind.
    fn scale(&mut self, name: &str, x: ValueId, by: f64, role: ScaleRole) -> Result<ValueId, GraphError> {
        if by == 1.0 { Ok(x) } else { self.node(name, Op::Scale { by, role }, &[x]) }
    }
}

fn fits(node: &str, ty: &TensorType) -> Result<(), GraphError> {
    match ty.bytes() <= TensorType::MAX_BYTES {
        true => Ok(()),
        false => Err(GraphError::TooLarge { node: node.into(), ty: ty.clone() }),
    }
}
