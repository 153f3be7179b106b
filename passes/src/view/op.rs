//! An `nn` operation as an [`Op`].

use lapidary_ir::Op as IrOp;
use lapidary_models::Op;
use lapidary_models::op::{Backward, Cache, ScaleRole, Sharded};
use lapidary_models::spec::{Activation, NormKind, Pairing, RopeScaling};

/// Reads an operation; `params` is the index that a parameter gets.
///
/// # Errors
/// A sentence, when the operation is no part of a model's graph.
pub fn read(op: IrOp<'_>, symbols: &[&str], params: usize) -> Result<Op, String> {
    match op.name() {
        "nn.param" => Ok(Op::Param { param: params }),
        "nn.embed" => Ok(Op::Embed),
        "nn.position" => Ok(Op::Position { offset: length(op, "offset") }),
        "nn.linear" => Ok(Op::Linear),
        "nn.bias" => Ok(Op::Bias),
        "nn.add" => Ok(Op::Add),
        "nn.mul" => Ok(Op::Mul),
        "nn.scale" => Ok(Op::Scale { by: op.f64("by").unwrap_or(1.0), role: role(op)? }),
        "nn.activation" => activation(op).map(Op::Activation),
        "nn.norm" => Ok(Op::Norm { kind: norm(op)?, eps: op.f64("eps").unwrap_or(0.0) }),
        "nn.rope" => rope(op),
        "nn.kv_append" => Ok(Op::KvAppend { cache: cache(op)?, cached: length(op, "cached") }),
        "nn.scores" => Ok(Op::Scores { heads: length(op, "heads"), kv_heads: length(op, "kv_heads") }),
        "nn.mask" => Ok(mask(op)),
        "nn.softmax" => Ok(Op::Softmax),
        "nn.values" => Ok(Op::Values { heads: length(op, "heads"), kv_heads: length(op, "kv_heads") }),
        "nn.last_token" => Ok(Op::LastToken),
        "nn.repeat" => repeat(op, symbols),
        // Slots and gradients are told apart by name; who needs their indices counts them.
        "nn.save" => Ok(Op::Backward(Backward::Save { slot: 0 })),
        "nn.saved" => Ok(Op::Backward(Backward::Saved { slot: 0 })),
        "nn.gradient" => Ok(Op::Backward(Backward::Gradient { param: params })),
        name if name.starts_with("nn.") => match sharded(op) {
            Some(op) => Ok(op.into()),
            None => backward(op).map(Op::Backward),
        },
        other => Err(format!("{other} is no part of a model's graph")),
    }
}

/// The op of a rank's part of a model, if it is one.
fn sharded(op: IrOp<'_>) -> Option<Sharded> {
    let at = |name: &str| length(op, name);
    let found = match op.name() {
        "nn.embed_part" => Sharded::EmbedPart { first: at("first") },
        "nn.all_reduce" => Sharded::AllReduce,
        "nn.all_gather" => Sharded::AllGather { width: at("width") },
        "nn.reduce_scatter" => Sharded::ReduceScatter { ranks: at("ranks") },
        "nn.gather_rows" => Sharded::GatherRows { batch: at("batch"), seq: at("seq") },
        "nn.take_rows" => Sharded::TakeRows { first: at("first"), rows: at("rows") },
        "nn.take" => Sharded::Take { first: at("first"), length: at("length"), held: at("held") },
        "nn.embed_part_dw" => Sharded::EmbedPartDw { first: at("first"), rows: at("rows") },
        "nn.send" => Sharded::Send { stage: at("stage"), lane: at("lane") },
        "nn.receive" => Sharded::Receive { stage: at("stage"), lane: at("lane") },
        _ => return None,
    };
    Some(found)
}

/// A length that the verifier has found to be at least 0; absent means 0.
fn length(op: IrOp<'_>, name: &str) -> u64 {
    op.i64(name).and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}

fn known<T>(op: IrOp<'_>, name: &str, cases: &[(&str, T)]) -> Result<T, String>
where
    T: Copy,
{
    let word = op.text(name).or_else(|| op.word(name)).unwrap_or_default();
    let found = cases.iter().find(|(case, _)| *case == word);
    found.map(|(_, value)| *value).ok_or_else(|| format!("{name} `{word}` is not known"))
}

fn role(op: IrOp<'_>) -> Result<ScaleRole, String> {
    let roles = [
        ScaleRole::MupEmbedding,
        ScaleRole::MupOutput,
        ScaleRole::MupAttention,
        ScaleRole::Attention,
        ScaleRole::Embedding,
        ScaleRole::Output,
        ScaleRole::Residual,
    ];
    known(op, "role", &roles.map(|role| (role.name(), role)))
}

fn activation(op: IrOp<'_>) -> Result<Activation, String> {
    let functions =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];
    known(op, "fn", &functions.map(|function| (function.name(), function)))
}

fn norm(op: IrOp<'_>) -> Result<NormKind, String> {
    known(op, "kind", &[("rms", NormKind::Rms), ("layer", NormKind::Layer)])
}

fn cache(op: IrOp<'_>) -> Result<Cache, String> {
    known(op, "cache", &[("k", Cache::Key), ("v", Cache::Value)])
}

fn rope(op: IrOp<'_>) -> Result<Op, String> {
    let real = |name: &str| op.f64(name).unwrap_or(1.0);
    let scaling = match op.word("scaling").unwrap_or("none") {
        "linear" => RopeScaling::Linear { factor: real("factor") },
        "llama3" => RopeScaling::Llama3 {
            factor: real("factor"),
            low_freq: real("low_freq"),
            high_freq: real("high_freq"),
            original_max: length(op, "original_max"),
        },
        _ => RopeScaling::None,
    };
    Ok(Op::Rope {
        head_dim: length(op, "head_dim"),
        rot_dims: length(op, "rot_dims"),
        pairing: known(op, "pairing", &[("half", Pairing::Half), ("interleaved", Pairing::Interleaved)])?,
        theta: real("theta"),
        scaling,
        offset: length(op, "offset"),
    })
}

/// An op that only training has.
fn backward(op: IrOp<'_>) -> Result<Backward, String> {
    match op.name() {
        "nn.cross_entropy" => Ok(Backward::CrossEntropy),
        "nn.cross_entropy_dx" => Ok(Backward::CrossEntropyDx),
        "nn.linear_dx" => Ok(Backward::LinearDx),
        "nn.linear_dw" => Ok(Backward::LinearDw),
        "nn.column_sum" => Ok(Backward::ColumnSum),
        "nn.activation_dx" => activation(op).map(Backward::ActivationDx),
        "nn.norm_dx" => Ok(Backward::NormDx { kind: norm(op)?, eps: op.f64("eps").unwrap_or(0.0) }),
        "nn.norm_dw" => Ok(Backward::NormDw { kind: norm(op)?, eps: op.f64("eps").unwrap_or(0.0) }),
        "nn.rope_dx" => match rope(op)? {
            Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset } => {
                Ok(Backward::RopeDx { head_dim, rot_dims, pairing, theta, scaling, offset })
            }
            other => Err(format!("{} is no rotation", other.name())),
        },
        "nn.mask_dx" => Ok(Backward::MaskDx {
            causal: op.flag("causal"),
            window: length(op, "window"),
            offset: length(op, "offset"),
        }),
        "nn.softmax_dx" => Ok(Backward::SoftmaxDx),
        "nn.values_dv" => {
            Ok(Backward::ValuesDv { heads: length(op, "heads"), kv_heads: length(op, "kv_heads") })
        }
        "nn.embed_dw" => Ok(Backward::EmbedDw { rows: length(op, "rows") }),
        "nn.position_dw" => {
            Ok(Backward::PositionDw { offset: length(op, "offset"), rows: length(op, "rows") })
        }
        "nn.last_token_dx" => Ok(Backward::LastTokenDx { seq: length(op, "seq") }),
        other => Err(format!("{other} is no part of a model's graph")),
    }
}

fn mask(op: IrOp<'_>) -> Op {
    Op::Mask {
        causal: op.flag("causal"),
        window: length(op, "window"),
        alibi: op.flag("alibi").then(|| op.f64("alibi_scaling").unwrap_or(1.0)),
        heads: lapidary_ir::nn::head_run(op),
        offset: length(op, "offset"),
    }
}

fn repeat(op: IrOp<'_>, symbols: &[&str]) -> Result<Op, String> {
    let body = op.symbol("body").unwrap_or_default();
    let function = symbols
        .iter()
        .position(|name| *name == body)
        .ok_or_else(|| format!("there is no function @{body}"))?;
    if op.operand_count() != 1 {
        return Err(format!("a repeat of {} values; passes know repeats of one", op.operand_count()));
    }
    let (first, times, reverse) = (length(op, "first"), length(op, "times"), op.flag("reverse"));
    Ok(Op::Repeat { function, first, times, reverse })
}
