//! Lets attention keep the log of each query's sum for its backward pass, which then makes no softmax a second time.
//!
//! ```text
//! attention(q, k, v) -> y                attention(q, k, v) -> y, log_sums
//! ..                                     ..
//! attention.backward(q, k, v, dy)        attention.backward(q, k, v, dy, y, log_sums)
//! ```
//! The two belong together where they read the same queries, keys and values: as values of one function, or as what the layer
//! kept of them. 4 bytes a query and head are kept beside what is kept anyway, and Σ dy y stands for Σ p dp.
use super::{KeptSpec, ModuleSpec, Node, ValueSpec};
use crate::cuda::attention::Attention;
use crate::cuda::backward::Core;
use crate::cuda::spec::{Anchor, Backward, Input, KernelOp, KernelSpec, OpSpec, Source, TensorType, ValueId};
use lapidary_runtime_gpu::program::Dtype;

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
        if let Some(here) = same_body(&module, &path, operands) {
            within(&mut module, &path, &here);
        } else if let Some((y_slot, forwards)) = other_bodies(&module, &path, operands) {
            through_memory(&mut module, &path, y_slot, &forwards);
        }
    }
    module
}

/// The backward pass of an attention that can take sums. All inputs of such a region are activations.
fn backward_core(spec: &KernelSpec) -> Option<Core> {
    let core = (spec.anchor == Anchor::Attention && derives(spec)).then(|| Core::of(spec).ok()).flatten()?;
    let activations = spec.inputs.iter().all(|input| input.source == Source::Activation);
    (activations && core.takes_sums() && !has(spec, &Backward::SoftmaxOf)).then_some(core)
}

fn has(spec: &KernelSpec, wanted: &Backward) -> bool {
    spec.ops.iter().any(|op| matches!(&op.op, KernelOp::Backward(op) if op == wanted))
}

fn derives(spec: &KernelSpec) -> bool {
    has(spec, &Backward::SoftmaxDx)
}

/// Every attention that can keep its sums, with the queries, keys and values that it reads.
fn forwards(module: &ModuleSpec) -> Vec<(Path, [usize; 3])> {
    let mut found = Vec::new();
    for path in kernels(&module.body) {
        let Some((spec, args, _)) = kernel(&module.body, &path) else { continue };
        let attention = match spec.anchor == Anchor::Attention && !derives(spec) {
            true => Attention::of(spec).ok().filter(Attention::many),
            false => None,
        };
        found.extend(attention.map(|it| (path, [it.q, it.k, it.v].map(|value| args[value]))));
    }
    found
}

/// The attention before it in the same body that reads the same operands.
fn same_body(module: &ModuleSpec, backward: &Path, operands: [usize; 3]) -> Option<Path> {
    let body = &backward[..backward.len() - 1];
    let here = |path: &Path| path[..path.len() - 1] == *body && path < backward;
    forwards(module).into_iter().find(|(path, mine)| here(path) && *mine == operands).map(|(path, _)| path)
}

/// The attentions of other bodies whose operands and result layers keep where this one reads its own, and where the result is
/// kept. Several ranges of layers share that memory.
fn other_bodies(module: &ModuleSpec, backward: &Path, operands: [usize; 3]) -> Option<(usize, Vec<Path>)> {
    let slots = &module.training.as_ref()?.slots;
    let kept = |values: [usize; 3]| values.map(|value| slots.get(&value).copied());
    let wanted = kept(operands);
    let body = &backward[..backward.len() - 1];
    let mut found: Option<(usize, Vec<Path>)> = None;
    for (path, mine) in forwards(module) {
        let y = kernel(&module.body, &path).and_then(|(_, _, results)| slots.get(&results[0]).copied());
        let same = kept(mine) == wanted && wanted.iter().all(Option::is_some);
        let Some(y) = y.filter(|_| same && path[..path.len() - 1] != *body) else { continue };
        found.get_or_insert((y, Vec::new())).1.push(path);
    }
    found
}

/// Both in one body: the sums are a value between the two.
fn within(module: &mut ModuleSpec, backward: &Path, forward: &Path) {
    let Some((spec, _, results)) = kernel(&module.body, forward) else { return };
    let (name, y) = (spec.name.clone(), results[0]);
    let log_sums = match results.get(1) {
        Some(known) => *known,
        None => {
            let Some(ty) = sums_of(spec) else { return };
            let value = new_value(module, &format!("{name}.log_sums"), ty);
            leave_sums(module, forward, value);
            value
        }
    };
    take_sums(module, backward, y, log_sums);
}

/// In two bodies: a layer keeps the sums beside the result.
fn through_memory(module: &mut ModuleSpec, backward: &Path, y_slot: usize, forwards: &[Path]) {
    let Some(training) = &module.training else { return };
    let y = training.kept[y_slot].clone();
    let name = format!("{}.log_sums", y.name);
    let first = forwards.first().and_then(|path| kernel(&module.body, path));
    let Some(ty) = first.and_then(|(spec, _, _)| sums_of(spec)) else { return };
    let slot = match training.kept.iter().position(|kept| kept.name == name) {
        Some(known) => known,
        None => training.kept.len(),
    };
    if let Some(training) = module.training.as_mut().filter(|training| slot == training.kept.len()) {
        training.kept.push(KeptSpec { name: name.clone(), ty: ty.clone(), ..y.clone() });
    }
    for path in forwards {
        let done = kernel(&module.body, path).is_none_or(|(_, _, results)| results.len() > 1);
        if !done {
            let value = new_value(module, &format!("{name}.kept"), ty.clone());
            keep(module, value, slot);
            leave_sums(module, path, value);
        }
    }
    let (read_y, read_sums) = (
        new_value(module, &format!("saved.{}.y", y.name), y.ty),
        new_value(module, &format!("saved.{name}"), ty),
    );
    keep(module, read_y, y_slot);
    keep(module, read_sums, slot);
    take_sums(module, backward, read_y, read_sums);
}

fn keep(module: &mut ModuleSpec, value: usize, slot: usize) {
    if let Some(training) = &mut module.training {
        training.slots.insert(value, slot);
    }
}

/// What the softmax of an attention is of.
fn masked(spec: &KernelSpec) -> Option<ValueId> {
    let softmax = spec.ops.iter().find(|op| op.op == KernelOp::Softmax)?;
    softmax.operands.first().copied()
}

/// One number for each query and head.
fn sums_of(spec: &KernelSpec) -> Option<TensorType> {
    let shape = &spec.ty(masked(spec)?).shape;
    Some(TensorType::new(Dtype::F32, &shape[..shape.len().checked_sub(1)?]))
}

/// Adds the log of sums to what an attention leaves.
fn leave_sums(module: &mut ModuleSpec, forward: &Path, value: usize) {
    let Some(Node::Kernel { spec, results, .. }) = node(&mut module.body, forward) else { return };
    let (Some(masked), Some(ty)) = (masked(spec), sums_of(spec)) else { return };
    spec.outputs.push(spec.results().end);
    let op = KernelOp::Backward(Backward::LogSum);
    spec.ops.push(OpSpec { op, operands: vec![masked], ty });
    results.push(value);
}

/// Rewrites the backward region: two more inputs, Σ dy y as its first operation, softmax from the sums.
fn take_sums(module: &mut ModuleSpec, backward: &Path, y: usize, log_sums: usize) {
    let Some(Node::Kernel { spec, args, .. }) = node(&mut module.body, backward) else { return };
    let Ok(core) = Core::of(spec) else { return };
    args.extend([y, log_sums]);
    let inputs = spec.inputs.len();
    let (y, log_sums, products) = (inputs, inputs + 1, inputs + 2);
    let moved = |value: ValueId| if value < inputs { value } else { value + 3 };
    let input = |ty: TensorType| Input { ty, source: Source::Activation };
    let sums = core.attention.sums();
    spec.inputs.extend([input(spec.ty(core.dy).clone()), input(sums.clone())]);
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
    spec.ops.insert(0, OpSpec { op, operands: vec![core.dy, y], ty: sums });
    spec.outputs.iter_mut().for_each(|value| *value = moved(*value));
}

fn new_value(module: &mut ModuleSpec, wanted: &str, ty: TensorType) -> usize {
    let mut name = wanted.to_string();
    while module.values.iter().any(|value| value.name == name) {
        name.push('\'');
    }
    module.values.push(ValueSpec { name, ty });
    module.values.len() - 1
}

/// Paths of all kernels, in order.
fn kernels(body: &[Node]) -> Vec<Path> {
    let mut paths = Vec::new();
    for (i, node) in body.iter().enumerate() {
        match node {
            Node::Kernel { .. } => paths.push(vec![i]),
            Node::Talk { .. } => {}
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
