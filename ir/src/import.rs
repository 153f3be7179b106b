//! A graph becomes an `nn` module: one function per graph function, one op per node, named by the node.
//!
//! ```text
//! Graph { layer, main }  ->  func.func @layer(%layer: index, %x) { .. }   func.func @main(%ids) { .. nn.repeat @layer .. }
//! ```
//! The location of each op is the node's name (`layers.*.attn.q` in the layer function), so a diagnostic about an op
//! of an imported module names the part of the model that it comes from.

use crate::at::At;
use crate::context::IrContext;
use crate::error::IrError;
use crate::module::{Module, function, return_values};
use crate::nn::{self, MaskParameters, RopeParameters};
use crate::raw::{Block, Value};
use lapidary_models::op::Backward;
use lapidary_models::{Function, Graph, Node, Op, Slot, ValueId};
use melior::ir::Type;
use std::collections::BTreeMap;

/// Builds and verifies the `nn` module of a graph.
///
/// # Errors
/// [`IrError::Invalid`] if an op refuses its operands; a graph built by `lapidary_models` has none such.
pub fn import<'c>(cx: &'c IrContext, graph: &Graph) -> Result<Module<'c>, IrError> {
    let module = Module::new(cx);
    describe(&module, graph);
    functions(module.body(), graph)?;
    module.verify()?;
    Ok(module)
}

/// Adds the functions of a graph at the end of a module's body.
///
/// # Errors
/// As [`import`]; some functions may have been added then.
pub fn functions(body: Block<'_>, graph: &Graph) -> Result<(), IrError> {
    graph.functions.iter().try_for_each(|function| Importer::new(body, graph, function)?.run())
}

/// Says on the module what was imported.
fn describe(module: &Module<'_>, graph: &Graph) {
    let (op, cx) = (module.op(), module.context());
    op.set_attribute("nn.model", cx.text(&graph.name));
    op.set_attribute("nn.mode", cx.text(graph.mode.name()));
    for (name, value) in
        [("nn.batch", graph.dims.batch), ("nn.seq", graph.dims.seq), ("nn.cached", graph.dims.cached)]
    {
        op.set_attribute(name, cx.i64(i64::try_from(value).unwrap_or(i64::MAX)));
    }
}

/// The import of one function.
struct Importer<'g, 'c> {
    graph: &'g Graph,
    body: &'g Function,
    at: At<'c>,
    layer: Option<Value<'c>>,
    values: BTreeMap<ValueId, Value<'c>>,
}

impl<'g, 'c> Importer<'g, 'c> {
    fn new(module: Block<'c>, graph: &'g Graph, body: &'g Function) -> Result<Self, IrError> {
        let cx = module.context();
        let types = |ids: &[ValueId]| ids.iter().map(|id| cx.tensor(body.ty(*id))).collect::<Vec<Type<'c>>>();
        let layer = body.per_layer.then(|| cx.index());
        let inputs: Vec<_> = layer.into_iter().chain(types(&body.arguments)).collect();
        let at = At::end_of(module).named(&body.name);
        let (_, block) = function(at, &body.name, &inputs, &types(&body.results))?;
        let mut arguments = block.arguments().into_iter();
        let layer = layer.and_then(|_| arguments.next());
        let values = body.arguments.iter().copied().zip(arguments).collect();
        Ok(Importer { graph, body, at: At::end_of(block), layer, values })
    }

    fn run(mut self) -> Result<(), IrError> {
        for node in &self.body.nodes {
            let inputs: Vec<_> = node.inputs.iter().map(|id| self.value(*id)).collect::<Result<_, _>>()?;
            let result = self.node(node, &inputs)?;
            self.values.insert(node.output, result);
        }
        let results: Vec<_> = self.body.results.iter().map(|id| self.value(*id)).collect::<Result<_, _>>()?;
        return_values(self.at.named(&self.body.name), &results).map(|_| ())
    }

    fn value(&self, id: ValueId) -> Result<Value<'c>, IrError> {
        let missing = || IrError::Missing { op: self.body.name.clone(), what: format!("value {}", id.0) };
        self.values.get(&id).copied().ok_or_else(missing)
    }

    /// The operand at `index`, for a node of a graph that was not built by `lapidary_models`.
    fn operand(node: &Node, inputs: &[Value<'c>], index: usize) -> Result<Value<'c>, IrError> {
        let missing = || IrError::Missing { op: node.name.clone(), what: format!("operand {index}") };
        inputs.get(index).copied().ok_or_else(missing)
    }

    fn node(&self, node: &Node, inputs: &[Value<'c>]) -> Result<Value<'c>, IrError> {
        let prefix = if self.body.per_layer { "layers.*." } else { "" };
        let at = self.at.named(&format!("{prefix}{}", node.name));
        let x = |index| Self::operand(node, inputs, index);
        match &node.op {
            Op::Param { param } => self.param(at, node, *param),
            Op::Embed => nn::embed(at, x(0)?, x(1)?),
            Op::Position { offset } => nn::position(at, x(0)?, x(1)?, *offset),
            Op::Linear => nn::linear(at, x(0)?, x(1)?),
            Op::Bias => nn::bias(at, x(0)?, x(1)?),
            Op::Add => nn::add(at, x(0)?, x(1)?),
            Op::Mul => nn::mul(at, x(0)?, x(1)?),
            Op::Scale { by, role } => nn::scale(at, x(0)?, *by, *role),
            Op::Activation(fun) => nn::activation(at, x(0)?, *fun),
            Op::Norm { kind, eps } => nn::norm(at, x(0)?, x(1)?, inputs.get(2).copied(), *kind, *eps),
            Op::Softmax => nn::softmax(at, x(0)?),
            Op::LastToken => nn::last_token(at, x(0)?),
            Op::Repeat { function, first, times, reverse } => {
                self.repeat(at, node, *function, (*first, *times, *reverse), inputs)
            }
            Op::Backward(op) => self.backward(at, node, op, inputs),
            Op::Sharded(op) => nn::sharded(at, op, inputs, self.body.ty(node.output)),
            _ => self.attention(at, node, inputs),
        }
    }

    /// The ops with parameters that only attention has.
    fn attention(&self, at: At<'c>, node: &Node, inputs: &[Value<'c>]) -> Result<Value<'c>, IrError> {
        let x = |index| Self::operand(node, inputs, index);
        match node.op {
            Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset } => {
                nn::rope(at, x(0)?, &RopeParameters { head_dim, rot_dims, pairing, theta, scaling, offset })
            }
            Op::KvAppend { cache, cached } => nn::kv_append(at, x(0)?, self.layer(node)?, cache, cached),
            Op::Scores { heads, kv_heads } => nn::scores(at, x(0)?, x(1)?, heads, kv_heads),
            Op::Values { heads, kv_heads } => nn::values(at, x(0)?, x(1)?, heads, kv_heads),
            Op::Mask { causal, window, alibi, heads, offset } => {
                nn::mask(at, x(0)?, &MaskParameters { causal, window, alibi, heads, offset })
            }
            _ => Err(IrError::Missing { op: node.op.name().into(), what: "import".into() }),
        }
    }

    /// The ops that only training has.
    fn backward(
        &self,
        at: At<'c>,
        node: &Node,
        op: &Backward,
        inputs: &[Value<'c>],
    ) -> Result<Value<'c>, IrError> {
        let x = |index| Self::operand(node, inputs, index);
        match *op {
            Backward::Save { slot } => nn::save(at, &self.slot(node, slot)?.name, self.layer(node)?, x(0)?),
            Backward::Saved { slot } => {
                let slot = self.slot(node, slot)?;
                nn::saved(at, &slot.name, self.layer(node)?, &slot.ty)
            }
            Backward::Gradient { param } => self.gradient(at, node, param, x(0)?),
            _ => nn::backward(at, op, inputs),
        }
    }

    fn slot(&self, node: &Node, slot: usize) -> Result<&'g Slot, IrError> {
        let missing = || IrError::Missing { op: node.name.clone(), what: format!("slot {slot}") };
        self.graph.slots.get(slot).ok_or_else(missing)
    }

    fn gradient(&self, at: At<'c>, node: &Node, param: usize, dw: Value<'c>) -> Result<Value<'c>, IrError> {
        let missing = || IrError::Missing { op: node.name.clone(), what: format!("parameter {param}") };
        let param = self.graph.params.get(param).ok_or_else(missing)?;
        let layer = param.per_layer.then(|| self.layer(node)).transpose()?;
        nn::gradient(at, &param.name, layer, dw)
    }

    fn layer(&self, node: &Node) -> Result<Value<'c>, IrError> {
        self.layer.ok_or_else(|| IrError::Missing { op: node.name.clone(), what: "layer index".into() })
    }

    fn param(&self, at: At<'c>, node: &Node, index: usize) -> Result<Value<'c>, IrError> {
        let missing = || IrError::Missing { op: node.name.clone(), what: format!("parameter {index}") };
        let param = self.graph.params.get(index).ok_or_else(missing)?;
        let layer = param.per_layer.then(|| self.layer(node)).transpose()?;
        nn::param(at, &param.name, layer, 1.0, &param.ty)
    }

    fn repeat(
        &self,
        at: At<'c>,
        node: &Node,
        body: usize,
        layers: (u64, u64, bool),
        inputs: &[Value<'c>],
    ) -> Result<Value<'c>, IrError> {
        let missing = |what: &str| IrError::Missing { op: node.name.clone(), what: what.into() };
        let body = self.graph.functions.get(body).ok_or_else(|| missing("body"))?;
        let results = nn::repeat_layers(at, &body.name, layers, inputs)?;
        results.first().copied().ok_or_else(|| missing("result"))
    }
}
