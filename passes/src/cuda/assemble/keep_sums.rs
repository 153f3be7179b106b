//! Lets attention keep the log of each query's sum for its backward pass, which then makes no softmax a second time.
//!
//! ```text
//! attention(q, k, v) -> y                attention(q, k, v) -> y, log_sums
//! ..                                     ..
//! attention.backward(q, k, v, dy)        attention.backward(q, k, v, dy, y, log_sums)
//! ```
//! The two belong together where they read the same queries, keys and values: as values of one function, or as what the layer
//! kept of them. 4 bytes a query and head are kept beside what is kept anyway, and Σ dy y stands for Σ p dp.
use super::{KeptSpec, ModuleSpec, Node, TrainingSpec, ValueSpec};
use crate::cuda::attention::Attention;
use crate::cuda::backward::Core;
use crate::cuda::spec::{Anchor, Backward, Input, KernelOp, KernelSpec, OpSpec, Source, TensorType, ValueId};
use lapidary_runtime_gpu::program::Dtype;

/// What a value is in the memory of a layer: itself, or what is kept under an index.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Value(usize),
    Kept(usize),
}

/// The path to a node: indices into bodies, outermost first.
type Path = Vec<usize>;

/// The module with the log of sums kept where a backward pass takes it; as it is where none does.
pub(super) fn keep_sums(module: &ModuleSpec) -> ModuleSpec {
    let mut module = module.clone();
    if module.training.is_none() {
        return module;
    }
    for path in kernels(&module.body) {
        let Some((spec, args, _)) = kernel(&module.body, &path) else { continue };
        let Some(core) = backward_core(spec) else { continue };
        let operands = [core.attention.q, core.attention.k, core.attention.v].map(|value| args[value]);
        let Some((forward, in_body)) = forward_of(&module, &path, operands) else { continue };
        connect(&mut module, &path, &forward, in_body);
    }
    module
}

/// The backward pass of an attention that can take sums. All inputs of such a region are activations.
fn backward_core(spec: &KernelSpec) -> Option<Core> {
    let softmax_dx = spec.ops.iter().any(|op| op.op == KernelOp::Backward(Backward::SoftmaxDx));
    let attention = spec.anchor == Anchor::Attention && softmax_dx;
    let core = attention.then(|| Core::of(spec).ok()).flatten()?;
    let activations = spec.inputs.iter().all(|input| input.source == Source::Activation);
    (activations
        && core.takes_sums()
        && spec.ops.iter().all(|op| op.op != KernelOp::Backward(Backward::SoftmaxOf)))
    .then_some(core)
}

/// The attention that reads the same operands, and whether it stands in the same body.
fn forward_of(module: &ModuleSpec, backward: &Path, operands: [usize; 3]) -> Option<(Path, bool)> {
    let training = module.training.as_ref()?;
    let body = &backward[..backward.len() - 1];
    let mut found = None;
    for path in kernels(&module.body) {
        let Some((spec, args, results)) = kernel(&module.body, &path) else { continue };
        let softmax_dx = spec.ops.iter().any(|op| op.op == KernelOp::Backward(Backward::SoftmaxDx));
        if spec.anchor != Anchor::Attention || softmax_dx || results.len() != 1 {
            continue;
        }
        let Ok(attention) = Attention::of(spec) else { continue };
        let mine = [attention.q, attention.k, attention.v].map(|value| args[value]);
        let here = path[..path.len() - 1] == *body && path < *backward;
        let same = |a: usize, b: usize| place(training, a) == place(training, b);
        if attention.many() && here && mine == operands {
            return Some((path, true));
        }
        let kept = operands.iter().all(|value| training.slots.contains_key(value))
            && training.slots.contains_key(&results[0]);
        if attention.many() && !here && kept && mine.iter().zip(operands).all(|(a, b)| same(*a, b)) {
            found = Some((path, false));
        }
    }
    found
}

fn place(training: &TrainingSpec, value: usize) -> Place {
    training.slots.get(&value).map_or(Place::Value(value), |slot| Place::Kept(*slot))
}

/// Adds the second result to the forward kernel, and both to what the backward kernel reads.
fn connect(module: &mut ModuleSpec, backward: &Path, forward: &Path, in_body: bool) {
    let Some((spec, _, results)) = kernel(&module.body, forward) else { return };
    let (name, y) = (spec.name.clone(), results[0]);
    let scores = spec.results().find(|id| spec.op(*id).is_some_and(|op| op.op == KernelOp::Softmax));
    let Some(masked) = scores.and_then(|id| spec.op(id)).map(|op| op.operands[0]) else { return };
    let shape = &spec.ty(masked).shape;
    let ty = TensorType::new(Dtype::F32, &shape[..shape.len() - 1]);
    let log_sums = new_value(module, format!("{name}.log_sums"), &ty);
    let (mut read_y, mut read_sums) = (y, log_sums);
    if !in_body {
        let Some((first, times)) = rounds(&module.body, forward) else { return };
        let y_ty = module.values[y].ty.clone();
        let read = new_value(module, format!("saved.{name}.log_sums"), &ty);
        let saved_y = new_value(module, format!("saved.{name}.y"), &y_ty);
        let Some(training) = &mut module.training else { return };
        let Some(y_slot) = training.slots.get(&y).copied() else { return };
        training.kept.push(KeptSpec { name: format!("{name}.log_sums"), ty: ty.clone(), first, times });
        let slot = training.kept.len() - 1;
        training.slots.extend([(log_sums, slot), (read, slot), (saved_y, y_slot)]);
        (read_y, read_sums) = (saved_y, read);
    }
    if let Some(Node::Kernel { spec, results, .. }) = node(&mut module.body, forward) {
        let id = spec.results().end;
        let op = KernelOp::Backward(Backward::LogSum);
        spec.ops.push(OpSpec { op, operands: vec![masked], ty: ty.clone() });
        spec.outputs.push(id);
        results.push(log_sums);
    }
    if let Some(Node::Kernel { spec, args, .. }) = node(&mut module.body, backward) {
        take_sums(spec, &ty);
        args.extend([read_y, read_sums]);
    }
}

/// Rewrites the backward region: two more inputs, Σ dy y as its first operation, softmax from the sums.
fn take_sums(spec: &mut KernelSpec, ty: &TensorType) {
    let Ok(core) = Core::of(spec) else { return };
    let inputs = spec.inputs.len();
    let (y, log_sums, products) = (inputs, inputs + 1, inputs + 2);
    let moved = |value: ValueId| if value < inputs { value } else { value + 3 };
    let input = |ty: &TensorType| Input { ty: ty.clone(), source: Source::Activation };
    let y_ty = spec.ty(core.dy).clone();
    spec.inputs.extend([input(&y_ty), input(ty)]);
    for op in &mut spec.ops {
        op.operands.iter_mut().for_each(|value| *value = moved(*value));
        match op.op {
            KernelOp::Softmax => {
                op.op = KernelOp::Backward(Backward::SoftmaxOf);
                op.operands.push(log_sums);
            }
            KernelOp::Backward(Backward::SoftmaxDx) => op.operands.push(products),
            _ => {}
        }
    }
    let op = KernelOp::Backward(Backward::RowProducts { heads: core.attention.heads });
    spec.ops.insert(0, OpSpec { op, operands: vec![core.dy, y], ty: ty.clone() });
    spec.outputs.iter_mut().for_each(|value| *value = moved(*value));
}

fn new_value(module: &mut ModuleSpec, wanted: String, ty: &TensorType) -> usize {
    let mut name = wanted;
    while module.values.iter().any(|value| value.name == name) {
        name.push('\'');
    }
    module.values.push(ValueSpec { name, ty: ty.clone() });
    module.values.len() - 1
}

/// Paths of all kernels, in order.
fn kernels(body: &[Node]) -> Vec<Path> {
    let mut paths = Vec::new();
    for (i, node) in body.iter().enumerate() {
        match node {
            Node::Kernel { .. } => paths.push(vec![i]),
            Node::Repeat { body, .. } => {
                paths.extend(kernels(body).into_iter().map(|inner| [&[i][..], &inner].concat()));
            }
        }
    }
    paths
}

fn kernel<'m>(body: &'m [Node], path: &[usize]) -> Option<(&'m KernelSpec, &'m [usize], &'m [usize])> {
    match (body.get(*path.first()?)?, &path[1..]) {
        (Node::Kernel { spec, args, results }, []) => Some((spec, args, results)),
        (Node::Repeat { body, .. }, inner) => kernel(body, inner),
        _ => None,
    }
}

fn node<'m>(body: &'m mut [Node], path: &[usize]) -> Option<&'m mut Node> {
    match (body.get_mut(*path.first()?)?, &path[1..]) {
        (found, []) => Some(found),
        (Node::Repeat { body, .. }, inner) => node(body, inner),
        _ => None,
    }
}

/// The first layer and the number of layers that a kernel runs for.
fn rounds(body: &[Node], path: &[usize]) -> Option<(u64, u64)> {
    match body.get(*path.first()?)? {
        Node::Repeat { times, first, body, .. } => rounds(body, &path[1..]).or(Some((*first, *times))),
        Node::Kernel { .. } => None,
    }
}
