//! What a pipeline shows of itself beside its result: copies of values that the host reads after the run.

use super::Region;
use crate::wafer::placed::{OpKind, PlacedOp};
use serde::Serialize;

/// What is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// The residual stream before the first layer and behind every layer.
    pub stream: bool,
    /// Keys and values of every layer, as attention reads them.
    pub cache: bool,
}

/// The tensors with the copies, `[micro-batch, token, feature]` each.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Copies {
    /// The residual stream before the first layer and behind every layer.
    pub stream: Vec<String>,
    /// Keys and values of every layer.
    pub cache: Vec<[String; 2]>,
}

/// Lets layers copy what is to be shown.
pub fn show(regions: &mut [Region], shown: Shown) -> Copies {
    let mut copies = Copies::default();
    let layers = regions.iter_mut().filter(|region| region.is_layer);
    for (number, region) in layers.enumerate() {
        let name = region.name.clone();
        let tensor = |value: &str| format!("{name}.{value}");
        let ops = &mut region.placed.ops;
        if shown.cache
            && let Some(at) = ops.iter().position(|op| matches!(op.kind, OpKind::Attention(_)))
            && let OpKind::Attention(attention) = &ops[at].kind
        {
            let kept = [("keys", attention.key.clone()), ("values", attention.value.clone())];
            copies.cache.push(kept.each_ref().map(|(name, _)| tensor(name)));
            ops.splice(at..at, kept.map(|(name, value)| keep(name, value)));
        }
        if shown.stream {
            let entering = ops.iter().find_map(|op| match &op.kind {
                OpKind::Input { value, .. } => Some(value.clone()),
                _ => None,
            });
            if let Some(value) = entering.filter(|_| number == 0) {
                ops.insert(1, keep("entering", value));
                copies.stream.push(tensor("entering"));
            }
            let last = ops.len().saturating_sub(1);
            if let Some(OpKind::Output { value, .. }) = ops.get(last).map(|op| &op.kind) {
                let copy = keep("leaving", value.clone());
                ops.insert(last, copy);
                copies.stream.push(tensor("leaving"));
            }
        }
    }
    copies
}

fn keep(name: &str, value: String) -> PlacedOp {
    PlacedOp { name: format!("keep.{name}"), kind: OpKind::Keep { value, tensor: name.into() } }
}
