//! A function per op that makes it at a place and returns its result. Result types are inferred by the dialect.
//!
//! Errors: [`IrError::Invalid`] with the dialect's message when shapes or attributes do not fit; nothing is inserted
//! then.

use super::word::Word;
use super::{Fused, FusedParameters, MaskParameters, RopeParameters};
use crate::at::{At, New};
use crate::error::IrError;
use crate::handle::{View, missing};
use crate::raw::{Block, Op, Value};
use lapidary_models::TensorType;
use lapidary_models::op::{Cache, HeadRun, ScaleRole};
use lapidary_models::spec::{Activation, NormKind, RopeScaling};
use melior::ir::{Attribute, Type};

pub(super) type Built<'c> = Result<Value<'c>, IrError>;

pub(super) fn result<'c>(at: At<'c>, new: &New<'_, 'c>) -> Built<'c> {
    let op = at.create(new)?;
    op.result(0).ok_or_else(|| missing(op, "result"))
}

/// An i64 attribute; sizes beyond i64 become i64::MAX, which no verifier accepts as a size.
pub(super) fn count(at: At<'_>, value: u64) -> Attribute<'_> {
    at.context().i64(i64::try_from(value).unwrap_or(i64::MAX))
}

pub(super) fn word<'c>(at: At<'c>, kind: &str, word: &str) -> Result<Attribute<'c>, IrError> {
    at.context().parse_attribute(&format!("#nn<{kind} {word}>"))
}

/// `nn.param`: the weight of this canonical name; `layer` for names with `*`; `scale` is applied at load time.
pub fn param<'c>(at: At<'c>, name: &str, layer: Option<Value<'c>>, scale: f64, ty: &TensorType) -> Built<'c> {
    let cx = at.context();
    let new = New::of("nn.param", &[cx.tensor(ty)])
        .reads(layer.as_slice())
        .with("name", cx.text(name))
        .with("scale", cx.f64(scale));
    result(at, &new)
}

/// `nn.embed`: rows of `table` `[V, D]` by `ids` `[B, S]`.
pub fn embed<'c>(at: At<'c>, ids: Value<'c>, table: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.embed").reads(&[ids, table]))
}

/// `nn.position`: `x + table[offset + s]`.
pub fn position<'c>(at: At<'c>, x: Value<'c>, table: Value<'c>, offset: u64) -> Built<'c> {
    result(at, &New::inferred("nn.position").reads(&[x, table]).with("offset", count(at, offset)))
}

/// `nn.last_token`: `[B, S, D]` to `[B, 1, D]`.
pub fn last_token<'c>(at: At<'c>, x: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.last_token").reads(&[x]))
}

/// `nn.linear`: `x` `[.., K]` times the transpose of `weight` `[N, K]`.
pub fn linear<'c>(at: At<'c>, x: Value<'c>, weight: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.linear").reads(&[x, weight]))
}

/// `nn.bias`: `bias` `[N]` added to every row of `x` `[.., N]`.
pub fn bias<'c>(at: At<'c>, x: Value<'c>, bias: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.bias").reads(&[x, bias]))
}

/// `nn.add`: `a + b`, one shape.
pub fn add<'c>(at: At<'c>, a: Value<'c>, b: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.add").reads(&[a, b]))
}

/// `nn.mul`: `a * b`, one shape.
pub fn mul<'c>(at: At<'c>, a: Value<'c>, b: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.mul").reads(&[a, b]))
}

/// `nn.scale`: `by * x`.
pub fn scale<'c>(at: At<'c>, x: Value<'c>, by: f64, role: ScaleRole) -> Built<'c> {
    let cx = at.context();
    let new = New::inferred("nn.scale").reads(&[x]).with("by", cx.f64(by)).with("role", cx.text(role.name()));
    result(at, &new)
}

/// `nn.activation`: a function of every element.
pub fn activation<'c>(at: At<'c>, x: Value<'c>, function: Activation) -> Built<'c> {
    let function = word(at, "function", function.word())?;
    result(at, &New::inferred("nn.activation").reads(&[x]).with("fn", function))
}

/// `nn.norm`: `weight` and `bias` are `[D]` for `x` `[.., D]`.
pub fn norm<'c>(
    at: At<'c>,
    x: Value<'c>,
    weight: Value<'c>,
    bias: Option<Value<'c>>,
    kind: NormKind,
    eps: f64,
) -> Built<'c> {
    let new = New::inferred("nn.norm").reads(&[x, weight]).reads(bias.as_slice());
    result(at, &norm_attributes(at, new, kind, eps)?)
}

pub(super) fn norm_attributes<'a, 'c>(
    at: At<'c>,
    new: New<'a, 'c>,
    kind: NormKind,
    eps: f64,
) -> Result<New<'a, 'c>, IrError> {
    Ok(new.with("kind", word(at, "norm_kind", kind.word())?).with("eps", at.context().f64(eps)))
}

/// `nn.softmax` over the last axis.
pub fn softmax<'c>(at: At<'c>, x: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.softmax").reads(&[x]))
}

/// `nn.rope` on `x` `[B, S, heads*head_dim]`.
pub fn rope<'c>(at: At<'c>, x: Value<'c>, parameters: &RopeParameters) -> Built<'c> {
    result(at, &rope_attributes(at, New::inferred("nn.rope").reads(&[x]), parameters)?)
}

pub(super) fn rope_attributes<'a, 'c>(
    at: At<'c>,
    new: New<'a, 'c>,
    parameters: &RopeParameters,
) -> Result<New<'a, 'c>, IrError> {
    let new = new
        .with("pairing", word(at, "pairing", parameters.pairing.word())?)
        .with("head_dim", count(at, parameters.head_dim))
        .with("rot_dims", count(at, parameters.rot_dims))
        .with("theta", at.context().f64(parameters.theta))
        .with("offset", count(at, parameters.offset));
    with_scaling(at, new, parameters.scaling)
}

fn with_scaling<'a, 'c>(at: At<'c>, new: New<'a, 'c>, scaling: RopeScaling) -> Result<New<'a, 'c>, IrError> {
    let cx = at.context();
    Ok(match scaling {
        RopeScaling::None => new,
        RopeScaling::Linear { factor } => {
            new.with("scaling", word(at, "rope_scaling", "linear")?).with("factor", cx.f64(factor))
        }
        RopeScaling::Llama3 { factor, low_freq, high_freq, original_max } => new
            .with("scaling", word(at, "rope_scaling", "llama3")?)
            .with("factor", cx.f64(factor))
            .with("low_freq", cx.f64(low_freq))
            .with("high_freq", cx.f64(high_freq))
            .with("original_max", count(at, original_max)),
    })
}

/// `nn.kv_append`: writes `x` `[B, S, K*d]` behind `cached` rows of this layer's cache and returns `[B, cached+S, K*d]`.
pub fn kv_append<'c>(at: At<'c>, x: Value<'c>, layer: Value<'c>, cache: Cache, cached: u64) -> Built<'c> {
    let new = New::inferred("nn.kv_append")
        .reads(&[x, layer])
        .with("cache", word(at, "cache", cache.word())?)
        .with("cached", count(at, cached));
    result(at, &new)
}

/// `nn.scores`: `q` `[B, S, heads*d]` and `k` `[B, L, kv_heads*d]` to `[B, heads, S, L]`.
pub fn scores<'c>(at: At<'c>, q: Value<'c>, k: Value<'c>, heads: u64, kv_heads: u64) -> Built<'c> {
    let new = New::inferred("nn.scores")
        .reads(&[q, k])
        .with("heads", count(at, heads))
        .with("kv_heads", count(at, kv_heads));
    result(at, &new)
}

/// `nn.mask` on `x` `[B, H, S, L]`.
pub fn mask<'c>(at: At<'c>, x: Value<'c>, parameters: &MaskParameters) -> Built<'c> {
    let cx = at.context();
    let new = mask_attributes(at, New::inferred("nn.mask").reads(&[x]), parameters);
    let new = new.with_some("alibi", parameters.alibi.map(|_| cx.unit()));
    let new = match parameters.heads {
        Some(HeadRun { first, of }) => {
            new.with("alibi_first", count(at, first)).with("alibi_heads", count(at, of))
        }
        None => new,
    };
    result(at, &new.with("alibi_scaling", cx.f64(parameters.alibi.unwrap_or(1.0))))
}

/// Which keys are hidden.
pub(super) fn mask_attributes<'a, 'c>(
    at: At<'c>,
    new: New<'a, 'c>,
    parameters: &MaskParameters,
) -> New<'a, 'c> {
    new.with_some("causal", parameters.causal.then(|| at.context().unit()))
        .with("window", count(at, parameters.window))
        .with("offset", count(at, parameters.offset))
}

/// `nn.values`: `p` `[B, heads, S, L]` and `v` `[B, L, kv_heads*d]` to `[B, S, heads*d]`.
pub fn values<'c>(at: At<'c>, p: Value<'c>, v: Value<'c>, heads: u64, kv_heads: u64) -> Built<'c> {
    let new = New::inferred("nn.values")
        .reads(&[p, v])
        .with("heads", count(at, heads))
        .with("kv_heads", count(at, kv_heads));
    result(at, &new)
}

/// `nn.repeat`: calls `@body` with 0, 1, .. `times - 1` and the values.
pub fn repeat<'c>(
    at: At<'c>,
    body: &str,
    times: u64,
    inputs: &[Value<'c>],
) -> Result<Vec<Value<'c>>, IrError> {
    repeat_layers(at, body, (0, times, false), inputs)
}

/// `nn.repeat`: calls `@body` with `first`, .. `first + times - 1`, the last one first if it is reversed.
pub fn repeat_layers<'c>(
    at: At<'c>,
    body: &str,
    (first, times, reverse): (u64, u64, bool),
    inputs: &[Value<'c>],
) -> Result<Vec<Value<'c>>, IrError> {
    let types: Vec<Type<'c>> = inputs.iter().map(|value| value.ty()).collect();
    let cx = at.context();
    let new = New::of("nn.repeat", &types)
        .reads(inputs)
        .with("body", cx.symbol(body))
        .with("times", count(at, times))
        .with("first", count(at, first))
        .with_some("reverse", reverse.then(|| cx.unit()));
    Ok(at.create(&new)?.results())
}

/// `nn.fused` with an empty body whose arguments are the inputs; fill it, end it with [`yield_values`], and verify.
pub fn fused<'c>(
    at: At<'c>,
    parameters: &FusedParameters,
    inputs: &[Value<'c>],
    results: &[Type<'c>],
) -> Result<(Fused<'c>, Block<'c>), IrError> {
    let cx = at.context();
    let new = New::of("nn.fused", results)
        .reads(inputs)
        .with("name", cx.text(&parameters.name))
        .with("anchor", word(at, "anchor", parameters.anchor.name())?)
        .with("saved_bytes", count(at, parameters.saved_bytes))
        .with("reason", cx.text(&parameters.reason))
        .regions(1);
    let op = at.create(&new)?;
    let types: Vec<Type<'c>> = inputs.iter().map(|value| value.ty()).collect();
    let body = op.add_block(0, &types).ok_or_else(|| missing(op, "body"))?;
    Ok((Fused::of(op).ok_or_else(|| missing(op, "view"))?, body))
}

/// `nn.yield`: the results of a fused body.
pub fn yield_values<'c>(at: At<'c>, values: &[Value<'c>]) -> Result<Op<'c>, IrError> {
    at.create(&New::of("nn.yield", &[]).reads(values))
}
