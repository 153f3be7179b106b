//! A function per op that only training has. Result types are inferred by the dialect; errors as in [`super::build`].

use super::build::{Built, count, result, with_scaling, word};
use super::word::Word;
use super::{MaskParameters, RopeParameters};
use crate::at::{At, New};
use crate::raw::Value;
use lapidary_models::TensorType;
use lapidary_models::spec::{Activation, NormKind};

/// `nn.cross_entropy`: `logits` `[B, S, V]` against `labels` `[B, S]`, a tensor of one f32.
pub fn cross_entropy<'c>(at: At<'c>, logits: Value<'c>, labels: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.cross_entropy").reads(&[logits, labels]))
}

/// `nn.cross_entropy_dx`: its derivative by the logits.
pub fn cross_entropy_dx<'c>(at: At<'c>, logits: Value<'c>, labels: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.cross_entropy_dx").reads(&[logits, labels]))
}

/// `nn.linear_dx`: `dy` `[.., N]` times `weight` `[N, K]`.
pub fn linear_dx<'c>(at: At<'c>, dy: Value<'c>, weight: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.linear_dx").reads(&[dy, weight]))
}

/// `nn.linear_dw`: the transpose of `dy` `[.., N]` times `x` `[.., K]`.
pub fn linear_dw<'c>(at: At<'c>, dy: Value<'c>, x: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.linear_dw").reads(&[dy, x]))
}

/// `nn.column_sum`: the sum of all rows of `x`.
pub fn column_sum<'c>(at: At<'c>, x: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.column_sum").reads(&[x]))
}

/// `nn.activation_dx`: the slope at `x` times `dy`.
pub fn activation_dx<'c>(at: At<'c>, x: Value<'c>, dy: Value<'c>, function: Activation) -> Built<'c> {
    let function = word(at, "function", function.word())?;
    result(at, &New::inferred("nn.activation_dx").reads(&[x, dy]).with("fn", function))
}

/// `nn.norm_dx`: `operands` are x `[.., D]`, weight `[D]` and dy `[.., D]`.
pub fn norm_dx<'c>(at: At<'c>, operands: [Value<'c>; 3], kind: NormKind, eps: f64) -> Built<'c> {
    let kind = word(at, "norm_kind", kind.word())?;
    let new = New::inferred("nn.norm_dx").reads(&operands).with("kind", kind);
    result(at, &new.with("eps", at.context().f64(eps)))
}

/// `nn.norm_dw`: x and dy `[.., D]` to `[D]`.
pub fn norm_dw<'c>(at: At<'c>, x: Value<'c>, dy: Value<'c>, kind: NormKind, eps: f64) -> Built<'c> {
    let kind = word(at, "norm_kind", kind.word())?;
    let new = New::inferred("nn.norm_dw").reads(&[x, dy]).with("kind", kind);
    result(at, &new.with("eps", at.context().f64(eps)))
}

/// `nn.softmax_dx`: `p` is the softmax's result.
pub fn softmax_dx<'c>(at: At<'c>, p: Value<'c>, dp: Value<'c>) -> Built<'c> {
    result(at, &New::inferred("nn.softmax_dx").reads(&[p, dp]))
}

/// `nn.rope_dx`: the rotation back.
pub fn rope_dx<'c>(at: At<'c>, dy: Value<'c>, parameters: &RopeParameters) -> Built<'c> {
    let cx = at.context();
    let new = New::inferred("nn.rope_dx")
        .reads(&[dy])
        .with("pairing", word(at, "pairing", parameters.pairing.word())?)
        .with("head_dim", count(at, parameters.head_dim))
        .with("rot_dims", count(at, parameters.rot_dims))
        .with("theta", cx.f64(parameters.theta))
        .with("offset", count(at, parameters.offset));
    result(at, &with_scaling(at, new, parameters.scaling)?)
}

/// `nn.mask_dx`: zero at hidden keys; `alibi` does not matter.
pub fn mask_dx<'c>(at: At<'c>, ds: Value<'c>, parameters: &MaskParameters) -> Built<'c> {
    let cx = at.context();
    let new = New::inferred("nn.mask_dx")
        .reads(&[ds])
        .with_some("causal", parameters.causal.then(|| cx.unit()))
        .with("window", count(at, parameters.window))
        .with("offset", count(at, parameters.offset));
    result(at, &new)
}

/// `nn.values_dv`: `p` `[B, heads, S, L]` and `y` `[B, S, heads*d]` to `[B, L, kv_heads*d]`.
pub fn values_dv<'c>(at: At<'c>, p: Value<'c>, y: Value<'c>, heads: u64, kv_heads: u64) -> Built<'c> {
    let new = New::inferred("nn.values_dv")
        .reads(&[p, y])
        .with("heads", count(at, heads))
        .with("kv_heads", count(at, kv_heads));
    result(at, &new)
}

/// `nn.embed_dw`: each row of `dy` added to the row of its id, of `rows` rows.
pub fn embed_dw<'c>(at: At<'c>, ids: Value<'c>, dy: Value<'c>, rows: u64) -> Built<'c> {
    result(at, &New::inferred("nn.embed_dw").reads(&[ids, dy]).with("rows", count(at, rows)))
}

/// `nn.position_dw`: the sum over the batch, at rows `offset ..` of `rows`.
pub fn position_dw<'c>(at: At<'c>, dy: Value<'c>, offset: u64, rows: u64) -> Built<'c> {
    let new = New::inferred("nn.position_dw").reads(&[dy]).with("rows", count(at, rows));
    result(at, &new.with("offset", count(at, offset)))
}

/// `nn.last_token_dx`: zero but for the last of `seq` positions.
pub fn last_token_dx<'c>(at: At<'c>, dy: Value<'c>, seq: u64) -> Built<'c> {
    result(at, &New::inferred("nn.last_token_dx").reads(&[dy]).with("seq", count(at, seq)))
}

/// `nn.save`: keeps `x` in this layer's slot and returns it.
pub fn save<'c>(at: At<'c>, name: &str, layer: Value<'c>, x: Value<'c>) -> Built<'c> {
    let name = at.context().text(name);
    result(at, &New::inferred("nn.save").reads(&[x, layer]).with("name", name))
}

/// `nn.saved`: what this layer kept.
pub fn saved<'c>(at: At<'c>, name: &str, layer: Value<'c>, ty: &TensorType) -> Built<'c> {
    let cx = at.context();
    result(at, &New::of("nn.saved", &[cx.tensor(ty)]).reads(&[layer]).with("name", cx.text(name)))
}

/// `nn.gradient`: adds `dw` to the gradient of a weight and returns it; `layer` for names with `*`.
pub fn gradient<'c>(at: At<'c>, name: &str, layer: Option<Value<'c>>, dw: Value<'c>) -> Built<'c> {
    let name = at.context().text(name);
    result(at, &New::inferred("nn.gradient").reads(&[dw]).reads(layer.as_slice()).with("name", name))
}
