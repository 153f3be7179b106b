//! From a forward graph to a training graph that keeps everything its backward pass reads.

use super::draft::Draft;
use super::rules;
use super::tape::Tape;
use crate::dtype::DType;
use crate::graph::{Function, Graph, GraphError, Mode, Node, Slot, TensorType, Value, ValueId};
use crate::op::{Backward, Op};

/// Index of the layer function and of its backward function in a graph that comes from [`differentiate`].
pub(super) const LAYER: usize = 0;
pub(super) const BACKWARD: usize = 1;

/// The training graph of a forward graph: `main(ids, labels)` returns the mean cross entropy of the logits and adds
/// its derivative to the gradient of every parameter.
///
/// # Errors
/// [`GraphError::NoDerivative`] when the graph is not a forward graph; [`GraphError::TooLarge`].
pub fn differentiate(forward: &Graph) -> Result<Graph, GraphError> {
    if forward.mode == Mode::Train {
        let why = "the graph is differentiated already";
        return Err(GraphError::NoDerivative { node: forward.name.clone(), op: "gradient", why });
    }
    let layer = forward.layer();
    let (backward, kept) = layer_backward(forward, layer)?;
    let slots: Vec<Slot> = kept.iter().map(|value| slot(layer, *value, (0, forward.n_layers))).collect();
    let functions = vec![saving(layer, &kept, 0), backward, main(forward)?];
    Ok(Graph { mode: Mode::Train, slots, functions, ..forward.clone() })
}

/// The slot of a value of a layer function that layers `first .. first + times` keep.
pub(super) fn slot(layer: &Function, value: ValueId, (first, times): (u64, u64)) -> Slot {
    let producer = layer.nodes.iter().find(|node| node.output == value);
    let name = producer.map_or("input", |node| &node.name).to_string();
    Slot { name, ty: layer.ty(value).clone(), first, times }
}

fn layer_backward(forward: &Graph, layer: &Function) -> Result<(Function, Vec<ValueId>), GraphError> {
    let (argument, result) = (layer.arguments[0], layer.results[0]);
    let draft = Draft::with_argument("layer_backward", true, layer.ty(result).clone());
    let dy = draft.function().arguments[0];
    let mut tape = Tape::apart(layer, &forward.params, draft, 0);
    tape.add(result, dy)?;
    walk(&mut tape, &layer.nodes)?;
    let dx = tape.derivative(argument).unwrap_or(dy);
    Ok(tape.finish(vec![dx]))
}

fn walk(tape: &mut Tape, nodes: &[Node]) -> Result<(), GraphError> {
    for node in nodes.iter().rev() {
        if let Some(dy) = tape.derivative(node.output) {
            rules::apply(tape, node, dy)?;
        }
    }
    Ok(())
}

/// The layer function with a `save` behind every kept value; slots are numbered from `first`.
pub(super) fn saving(layer: &Function, kept: &[ValueId], first: usize) -> Function {
    let mut function = Function { nodes: Vec::new(), ..layer.clone() };
    let keep = |function: &mut Function, value: ValueId| {
        let Some(at) = kept.iter().position(|kept| *kept == value) else { return };
        let output = ValueId(function.values.len());
        function.values.push(Value { ty: layer.ty(value).clone() });
        let name = format!("{}.save", slot(layer, value, (0, 0)).name);
        function.nodes.push(Node {
            name,
            op: Op::Backward(Backward::Save { slot: first + at }),
            inputs: vec![value],
            output,
        });
    };
    layer.arguments.iter().for_each(|argument| keep(&mut function, *argument));
    for node in &layer.nodes {
        function.nodes.push(node.clone());
        keep(&mut function, node.output);
    }
    function
}

fn main(forward: &Graph) -> Result<Function, GraphError> {
    let main = forward.main();
    let logits = main.results[0];
    let mut draft = Draft::continuing(main.clone());
    let labels = draft.argument(TensorType::new(DType::I32, [forward.dims.batch, forward.dims.seq]));
    let loss = draft.node("loss", Op::Backward(Backward::CrossEntropy), &[logits, labels])?;
    let dlogits = draft.node("loss.dx", Op::Backward(Backward::CrossEntropyDx), &[logits, labels])?;
    let mut tape = Tape::here(main, &forward.params, draft);
    tape.add(logits, dlogits)?;
    for node in main.nodes.iter().rev() {
        let Some(dy) = tape.derivative(node.output) else { continue };
        match node.op {
            Op::Repeat { first, times, .. } => {
                let op = Op::Repeat { function: BACKWARD, first, times, reverse: true };
                let dx = tape.draft.node(&format!("{}.dx", node.name), op, &[dy])?;
                tape.add(node.inputs[0], dx)?;
            }
            _ => rules::apply(&mut tape, node, dy)?,
        }
    }
    Ok(tape.finish(vec![loss]).0)
}
