//! What a training function's values are to the steps, and what becomes of them.

use super::{Lowered, unsupported};
use crate::attention_backward::{Core, cores};
use crate::cpu::HostFunction;
use crate::cpu::parts::{Chain, Uses};
use lapidary_models::op::{Backward, Sharded};
use lapidary_models::{Node, Op, ValueId};
use lapidary_runtime_cpu::program::{BufferId, Mask};
use std::collections::{BTreeMap, BTreeSet};

/// A function while its steps are emitted.
pub(super) struct Scope<'m> {
    /// The function with its kernels.
    pub host: &'m HostFunction,
    /// Makers and users of its values.
    pub uses: Uses<'m>,
    /// Buffers of the values that are in memory.
    pub held: BTreeMap<ValueId, BufferId>,
    /// The backward passes of attention, each by its first node.
    pub cores: Vec<Core>,
}

impl<'m> Scope<'m> {
    pub fn new(host: &'m HostFunction) -> Scope<'m> {
        let cores = cores(&host.function);
        Scope { host, uses: Uses::new(&host.function), held: BTreeMap::new(), cores }
    }

    pub fn width(&self, value: ValueId) -> u64 {
        self.uses.function.ty(value).shape.last().copied().unwrap_or(1)
    }

    pub fn buffer_of(&self, node: &Node, value: ValueId) -> Lowered<BufferId> {
        match self.held.get(&value) {
            Some(id) => Ok(*id),
            None => unsupported(node, "reads a value that no earlier kernel makes"),
        }
    }

    /// The slot that keeps a value.
    pub fn slot_of(&self, value: ValueId) -> Option<BufferId> {
        self.uses.function.nodes.iter().find_map(|node| match node.op {
            Op::Backward(Backward::Save { slot }) if node.inputs[0] == value => Some(slot),
            _ => None,
        })
    }

    /// The parameters to whose gradients a value is added, if that is all that becomes of it.
    pub fn gradients_of(&self, value: ValueId) -> Vec<usize> {
        let users = self.uses.function.nodes.iter().filter(|node| node.inputs.contains(&value));
        let params = users.map(|node| match node.op {
            Op::Backward(Backward::Gradient { param }) => Some(param),
            _ => None,
        });
        let returned = self.uses.function.results.contains(&value);
        params.collect::<Option<Vec<usize>>>().filter(|_| !returned).unwrap_or_default()
    }

    /// Whether the op behind a gradient adds into it.
    pub fn adds_itself(&self, gradient: &Node) -> bool {
        let maker = self.uses.maker(gradient.inputs[0]).map(|n| &self.uses.node(n).op);
        let adds = |op: &Op| {
            matches!(
                op,
                Op::Backward(
                    Backward::LinearDw
                        | Backward::ColumnSum
                        | Backward::NormDw { .. }
                        | Backward::EmbedDw { .. }
                        | Backward::PositionDw { .. }
                ) | Op::Sharded(Sharded::EmbedPartDw { .. })
            )
        };
        maker.is_some_and(adds) && !self.gradients_of(gradient.inputs[0]).is_empty()
    }

    pub fn is_product(&self, n: usize) -> bool {
        matches!(self.uses.node(n).op, Op::Linear | Op::Backward(Backward::LinearDx))
    }

    /// Whether a node is a function of a row of one token.
    pub fn is_row(&self, n: usize) -> bool {
        let node = self.uses.node(n);
        let keyed = |value: &ValueId| self.uses.is_scores(*value);
        let row = matches!(
            node.op,
            Op::Embed
                | Op::Sharded(Sharded::EmbedPart { .. })
                | Op::Position { .. }
                | Op::Bias
                | Op::Add
                | Op::Mul
                | Op::Scale { .. }
                | Op::Activation(_)
                | Op::Backward(Backward::ActivationDx(_))
                | Op::Norm { .. }
                | Op::Backward(Backward::NormDx { .. })
                | Op::Rope { .. }
                | Op::Backward(Backward::RopeDx { .. })
        );
        row && !keyed(&node.output) && !node.inputs.iter().any(keyed)
    }

    /// Every node of an attention's chain.
    pub fn chained(&self, chain: &Chain) -> BTreeSet<usize> {
        let softmax = self.uses.maker(self.uses.node(chain.values).inputs[0]);
        chain.before.iter().copied().chain([chain.scores, chain.values]).chain(softmax).collect()
    }

    /// What stands between scores and softmax as one factor and one mask.
    pub fn factor_and_mask(&self, between: &[usize]) -> (f64, Mask) {
        let mut scale = 1.0;
        let mut mask = Mask::OPEN;
        for n in between {
            match self.uses.node(*n).op {
                // Behind the mask a factor acts on ALiBi's bias too; what is hidden stays hidden.
                Op::Scale { by, .. } => {
                    scale *= by;
                    mask.alibi = mask.alibi.map(|slope| slope * by);
                }
                Op::Mask { causal, window, alibi, heads, .. } => mask = Mask { causal, window, alibi, heads },
                _ => {}
            }
        }
        (scale, mask)
    }
}
