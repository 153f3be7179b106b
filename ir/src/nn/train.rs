//! The ops that only training has: one function for those that are made of their operands and the model's op, three for
//! those that name a slot or a weight. Errors as in [`super::build`].

use super::build::{Built, count, mask_attributes, norm_attributes, result, rope_attributes, word};
use super::word::Word;
use super::{MaskParameters, RopeParameters};
use crate::at::{At, New};
use crate::error::IrError;
use crate::raw::Value;
use lapidary_models::TensorType;
use lapidary_models::op::Backward;

/// The op of this name with its attributes; operands in the order of [`Backward`]'s comments.
///
/// # Errors
/// Also [`IrError::Missing`] for the ops with names and layers, which [`save`], [`saved`] and [`gradient`] make.
pub fn backward<'c>(at: At<'c>, op: &Backward, operands: &[Value<'c>]) -> Built<'c> {
    let name = format!("nn.{}", op.name());
    let new = New::inferred(&name).reads(operands);
    let new = match *op {
        Backward::CrossEntropy
        | Backward::CrossEntropyDx
        | Backward::LinearDx
        | Backward::LinearDw
        | Backward::ColumnSum
        | Backward::SoftmaxDx => new,
        Backward::ActivationDx(function) => new.with("fn", word(at, "function", function.word())?),
        Backward::NormDx { kind, eps } | Backward::NormDw { kind, eps } => {
            norm_attributes(at, new, kind, eps)?
        }
        Backward::RopeDx { head_dim, rot_dims, pairing, theta, scaling, offset } => {
            let parameters = RopeParameters { head_dim, rot_dims, pairing, theta, scaling, offset };
            rope_attributes(at, new, &parameters)?
        }
        Backward::MaskDx { causal, window, offset } => {
            mask_attributes(at, new, &MaskParameters { causal, window, alibi: None, heads: None, offset })
        }
        Backward::ValuesDv { heads, kv_heads } => {
            new.with("heads", count(at, heads)).with("kv_heads", count(at, kv_heads))
        }
        Backward::EmbedDw { rows } => new.with("rows", count(at, rows)),
        Backward::PositionDw { offset, rows } => {
            new.with("rows", count(at, rows)).with("offset", count(at, offset))
        }
        Backward::LastTokenDx { seq } => new.with("seq", count(at, seq)),
        Backward::Save { .. } | Backward::Saved { .. } | Backward::Gradient { .. } => {
            return Err(IrError::Missing { op: name, what: "name".into() });
        }
    };
    result(at, &new)
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
