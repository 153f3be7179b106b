//! From a function of fused regions to a whole program: buffers, memory plan, parameters, steps.
//!
//! Decides where every value lives. The value that a repeat carries from round to round lives in one place: a round's last
//! kernel writes over its input where that is safe, else a copy does. Caches are written in place. What is left shares the
//! arena as the memory plan says.
use super::spec::{Anchor, Input, KernelOp, KernelSpec, OpSpec, Source, TensorType, ValueId};
use super::validate::fits;
use super::{CudaError, Options};
use lapidary_runtime_gpu::program::{Buffer, BufferKind, GpuProgram, Kernel, RowOrder, Step};
use std::collections::BTreeMap;

mod buffers;
mod steps;

/// A function made of fused regions and repeats.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleSpec {
    /// What is computed, for people.
    pub name: String,
    /// Real architecture, such as `sm_80`.
    pub arch: String,
    /// Every value that lives in memory between kernels.
    pub values: Vec<ValueSpec>,
    /// Values that the caller provides (token ids).
    pub inputs: Vec<usize>,
    /// Values that the caller reads.
    pub outputs: Vec<usize>,
    /// What is done, in order.
    pub body: Vec<Node>,
}

/// A value in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueSpec {
    /// Name, unique in the module; the buffer is called so.
    pub name: String,
    /// Type.
    pub ty: TensorType,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A region. `args` are the values of its activation inputs in order, `results` those of its outputs.
    Kernel {
        /// The region.
        spec: KernelSpec,
        /// One value per activation input.
        args: Vec<usize>,
        /// One value per output.
        results: Vec<usize>,
    },
    /// The same body several times, each round with the next layer's parameters and caches.
    Repeat {
        /// Number of rounds.
        times: u64,
        /// The value that enters the first round.
        input: usize,
        /// Its name within the body.
        param: usize,
        /// One round.
        body: Vec<Node>,
        /// What a round hands to the next one.
        yielded: usize,
        /// What the last round leaves.
        result: usize,
    },
}

/// A program and the texts of its generated kernels.
#[derive(Debug, Clone, PartialEq)]
pub struct Lowered {
    /// Checked.
    pub program: GpuProgram,
    /// In the order of their first launch.
    pub sources: Vec<KernelSource>,
    /// Name of the buffer that holds each value of the module.
    pub places: Vec<String>,
}

/// The text of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSource {
    /// Name and entry point.
    pub name: String,
    /// Place within the artifact.
    pub file: String,
    /// CUDA C++.
    pub text: String,
}

/// Lowers a module to a program that passes its check.
pub fn lower(module: &ModuleSpec, options: &Options) -> Result<Lowered, CudaError> {
    let mut assembler = Assembler::new(module, options)?;
    let steps = assembler.nodes(&module.body, None)?;
    let places = (0..module.values.len()).map(|value| assembler.place(value).to_string()).collect();
    let program = assembler.program(steps)?;
    let sources = assembler.sources;
    match program.check() {
        Ok(checked) => Ok(Lowered { program: checked.into_inner(), sources, places }),
        Err(faults) => Err(CudaError::Unchecked { faults: faults.iter().map(ToString::to_string).collect() }),
    }
}

struct Assembler<'a> {
    module: &'a ModuleSpec,
    options: &'a Options,
    /// The value whose buffer holds a value.
    home: Vec<usize>,
    /// Buffers of values that live in caches.
    caches: BTreeMap<usize, String>,
    orders: Vec<RowOrder>,
    buffers: Vec<Buffer>,
    kernels: Vec<Kernel>,
    sources: Vec<KernelSource>,
}

impl<'a> Assembler<'a> {
    fn new(module: &'a ModuleSpec, options: &'a Options) -> Result<Assembler<'a>, CudaError> {
        let n = module.values.len();
        let mut assembler = Assembler {
            module,
            options,
            home: (0..n).collect(),
            caches: BTreeMap::new(),
            orders: vec![RowOrder::Natural; n],
            buffers: Vec::new(),
            kernels: Vec::new(),
            sources: Vec::new(),
        };
        assembler.values_exist(&module.body)?;
        if let Some(value) = module.values.iter().find(|value| !fits(&value.ty)) {
            return Err(assembler.malformed(format!("value `{}` of shape {:?} is empty or too large", value.name, value.ty.shape)));
        }
        for &value in module.inputs.iter().chain(&module.outputs) {
            assembler.exists(value)?;
        }
        for &value in &module.inputs {
            assembler.value_buffer(value, BufferKind::Input);
        }
        Ok(assembler)
    }

    /// The name of the buffer that holds a value.
    fn place(&self, value: usize) -> &str {
        self.caches.get(&value).unwrap_or(&self.module.values[self.home[value]].name)
    }

    fn malformed(&self, what: impl Into<String>) -> CudaError {
        CudaError::Malformed { kernel: self.module.name.clone(), what: what.into() }
    }

    fn exists(&self, value: usize) -> Result<(), CudaError> {
        let known = value < self.module.values.len();
        if known { Ok(()) } else { Err(self.malformed(format!("there is no value {value}"))) }
    }

    fn values_exist(&self, nodes: &[Node]) -> Result<(), CudaError> {
        for node in nodes {
            match node {
                Node::Kernel { args, results, .. } => {
                    args.iter().chain(results).try_for_each(|&value| self.exists(value))?
                }
                Node::Repeat { input, param, body, yielded, result, .. } => {
                    [input, param, yielded, result].into_iter().try_for_each(|&value| self.exists(value))?;
                    self.values_exist(body)?;
                }
            }
        }
        Ok(())
    }

    /// Steps of a list of nodes; `rounds` is set inside a repeat.
    fn nodes(&mut self, nodes: &[Node], rounds: Option<u64>) -> Result<Vec<Step>, CudaError> {
        let mut steps = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            match node {
                Node::Kernel { spec, args, results } => steps.extend(self.kernel(spec, args, results, rounds)?),
                Node::Repeat { times, input, param, body, yielded, result } => {
                    let used_later = nodes[i + 1..].iter().any(|node| reads(node, *input));
                    let kept = used_later || self.module.outputs.contains(input) || rounds.is_some();
                    let entering = kept || self.module.inputs.contains(input);
                    self.home[*result] = if entering { *result } else { self.home[*input] };
                    self.home[*param] = self.home[*result];
                    if entering {
                        steps.extend(self.copy(*input, *result)?);
                    }
                    let in_place = writes_over(body, *param, *yielded);
                    if in_place {
                        self.home[*yielded] = self.home[*param];
                    }
                    let mut round = self.nodes(body, Some(*times))?;
                    if !in_place && self.home[*yielded] != self.home[*param] {
                        round.extend(self.copy(*yielded, *param)?);
                    }
                    steps.push(Step::Repeat { times: *times, body: round });
                }
            }
        }
        Ok(steps)
    }

    /// An element-wise copy of one value to another's place.
    fn copy(&mut self, from: usize, to: usize) -> Result<Vec<Step>, CudaError> {
        let ty = self.module.values[from].ty.clone();
        let name = format!("copy_{}", self.kernels.len());
        let spec = KernelSpec {
            name,
            anchor: Anchor::Elementwise,
            inputs: vec![Input { ty: ty.clone(), source: Source::Activation }],
            ops: vec![OpSpec { op: KernelOp::Scale { by: 1.0 }, operands: vec![0], ty }],
            outputs: vec![1],
            reason: "A repeat keeps its value in one place.".into(),
        };
        self.kernel(&spec, &[from], &[to], None)
    }
}

/// Whether a node reads a value.
fn reads(node: &Node, value: usize) -> bool {
    match node {
        Node::Kernel { args, .. } => args.contains(&value),
        Node::Repeat { input, body, .. } => *input == value || body.iter().any(|node| reads(node, value)),
    }
}

/// Whether the kernel that makes `yielded` may write it over `param`: nothing later reads `param`, and the kernel itself
/// reads it, if at all, only element by element at the place it writes.
fn writes_over(body: &[Node], param: usize, yielded: usize) -> bool {
    let maker = body.iter().position(|node| matches!(node, Node::Kernel { results, .. } if results.contains(&yielded)));
    let Some(at) = maker else { return false };
    if body[at + 1..].iter().any(|node| reads(node, param)) {
        return false;
    }
    let Node::Kernel { spec, args, .. } = &body[at] else { return false };
    let inputs = (0..spec.inputs.len()).filter(|&i| spec.inputs[i].source == Source::Activation);
    inputs.zip(args).filter(|(_, value)| **value == param).all(|(input, _)| only_in_place(spec, input))
}

/// Whether a region reads an input only where it writes: through element-wise operations of the same rows.
fn only_in_place(spec: &KernelSpec, input: ValueId) -> bool {
    // Outside of products, a half-split rotation computes its operand a second time at other columns.
    let looks_aside = spec.anchor != Anchor::Matmul && spec.ops.iter().any(|op| matches!(op.op, KernelOp::Rope(_)));
    !looks_aside && spec.users(input).iter().all(|&user| {
        spec.op(user).is_some_and(|op| match op.op {
            KernelOp::Add | KernelOp::Mul | KernelOp::Scale { .. } | KernelOp::Activation(_) => true,
            KernelOp::Bias | KernelOp::Position { .. } | KernelOp::Norm { .. } => true,
            _ => false,
        })
    })
}
