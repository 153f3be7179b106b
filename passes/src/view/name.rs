//! Names of nodes: from the location, from the parameters that a node reads, from what it works on.

use crate::view::FunctionView;
use lapidary_ir::Op as IrOp;
use lapidary_models::{Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Gives every node of a function a name of its own; parameters keep theirs.
#[derive(Default)]
pub struct Namer {
    used: BTreeSet<String>,
    /// The linear that a value stems from, by value.
    stems: BTreeMap<ValueId, String>,
}

impl Namer {
    /// The name of the next node; its inputs have been read.
    pub fn name(&mut self, op: IrOp<'_>, kind: &Op, inputs: &[ValueId], view: &FunctionView<'_>) -> String {
        let stem = self.stem(kind, inputs, view);
        let output = ValueId(view.values.len());
        if let (Some(stem), false) = (&stem, matches!(kind, Op::Add | Op::Scores { .. } | Op::Values { .. }))
        {
            self.stems.insert(output, stem.clone());
        }
        if let Op::Param { .. } = kind {
            return op.text("name").unwrap_or_default().to_string();
        }
        let located = op.place().node.filter(|node| !node.is_empty());
        let wanted = located.unwrap_or_else(|| by_role(kind, stem));
        self.unique(wanted.strip_prefix("layers.*.").unwrap_or(&wanted).to_string())
    }

    /// The word for the matrix that a value stems from, such as `attn.q`.
    fn stem(&self, kind: &Op, inputs: &[ValueId], view: &FunctionView<'_>) -> Option<String> {
        let table = match kind {
            Op::Linear | Op::Embed | Op::Norm { .. } | Op::Position { .. } => inputs.get(1),
            _ => None,
        };
        let param = table.and_then(|value| view.param_of(*value));
        match (kind, param) {
            (Op::Linear, Some(param)) if param.name == "embed.weight" => Some("head".into()),
            (_, Some(param)) => Some(param.name.trim_end_matches(".weight").into()),
            _ => inputs.iter().find_map(|value| self.stems.get(value)).cloned(),
        }
    }

    fn unique(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut n = 1;
        while !self.used.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}.{n}");
        }
        name
    }
}

fn by_role(kind: &Op, stem: Option<String>) -> String {
    let word = kind.name();
    match (kind, stem) {
        (Op::Linear | Op::Embed | Op::Norm { .. } | Op::Position { .. }, Some(stem)) => stem,
        (Op::KvAppend { .. }, Some(stem)) => format!("{stem}.cache"),
        (Op::Bias | Op::Rope { .. } | Op::Activation(_) | Op::Scale { .. }, Some(stem)) => {
            format!("{stem}.{word}")
        }
        _ => word.to_string(),
    }
}
