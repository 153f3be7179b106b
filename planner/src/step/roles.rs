//! What the nodes of a layer are there for, read off how they hang together: which products feed attention's core, which
//! biases end on the residual stream. Nodes of the backward pass have the role of the forward node that they derive.

use super::reading::contracts;
use lapidary_models::op::Op;
use lapidary_models::{Function, Node};
use std::collections::BTreeMap;

/// What a forward node is there for, as far as prices ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A product that feeds attention's core: queries, keys or values.
    IntoCore,
    /// A bias whose result is added to the residual stream.
    OntoStream,
    /// A norm.
    Norm,
    /// Anything else.
    Other,
}

/// Roles of the forward nodes of some functions, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Roles(BTreeMap<String, Role>);

impl Roles {
    /// The roles of a layer and of what stands outside.
    pub fn of(functions: &[&Function]) -> Roles {
        let each = |function: &&Function| {
            let nodes = function.nodes.iter();
            let forward = nodes.filter(|node| !matches!(node.op, Op::Backward(_)));
            forward.map(|node| (node.name.clone(), role(function, node))).collect::<Vec<_>>()
        };
        Roles(functions.iter().flat_map(each).collect())
    }

    /// The role of a node, or of the one that it derives or repeats: derivatives are called like their node, with one
    /// more word.
    pub fn role(&self, node: &Node) -> Role {
        let own = self.0.get(&node.name);
        let derived = || node.name.rsplit_once('.').and_then(|(stem, _)| self.0.get(stem));
        own.or_else(derived).copied().unwrap_or(Role::Other)
    }
}

fn role(function: &Function, node: &Node) -> Role {
    match node.op {
        Op::Linear if reaches(function, node, contracts) => Role::IntoCore,
        Op::Bias if reaches(function, node, |op| *op == Op::Add) => Role::OntoStream,
        Op::Norm { .. } => Role::Norm,
        _ => Role::Other,
    }
}

/// Whether a node's result gets to an op of a kind without passing another product or sum.
fn reaches(function: &Function, node: &Node, wanted: impl Fn(&Op) -> bool + Copy) -> bool {
    let mut readers = function.nodes.iter().filter(|other| other.inputs.contains(&node.output));
    readers.any(|reader| {
        let through = !matches!(reader.op, Op::Linear | Op::Add) && !contracts(&reader.op);
        wanted(&reader.op) || (through && reaches(function, reader, wanted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_models::autodiff::{Policy, Recompute, training};
    use lapidary_models::{Dims, builtin};

    fn of(model: &str, role: Role) -> Vec<String> {
        let spec = builtin(model).unwrap();
        let dims = Dims { batch: 1, seq: 64, cached: 0 };
        let graph = training(&spec, dims, &Policy::Uniform(Recompute::None)).unwrap().graph;
        let roles = Roles::of(&[graph.layer(), graph.main()]);
        let all = graph.functions[..2].iter().flat_map(|function| &function.nodes);
        all.filter(|node| roles.role(node) == role).map(|node| node.name.clone()).collect()
    }

    #[test]
    fn products_into_attention_are_found_with_their_derivatives() {
        for model in ["amber", "gpt3-175b"] {
            let found = of(model, Role::IntoCore);
            for name in ["attn.q", "attn.k", "attn.v", "attn.q.dx", "attn.v.dw"] {
                assert!(found.iter().any(|own| own == name), "{model}: {name} is not in {found:?}");
            }
            let products = found.iter().filter(|name| !name.contains(".save"));
            assert_eq!(products.count(), 9, "{found:?}");
        }
    }

    #[test]
    fn biases_onto_the_stream_are_found() {
        assert!(of("amber", Role::OntoStream).is_empty());
        let found = of("gpt3-175b", Role::OntoStream);
        assert!(found.iter().any(|name| name.starts_with("attn.out")), "{found:?}");
        assert!(found.iter().any(|name| name.starts_with("mlp.down")), "{found:?}");
    }
}
