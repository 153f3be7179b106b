//! Regions for benches, built without counting indices by hand, and programs of one region.

use super::Goal;
use crate::failure::Failure;
use crate::gpu::{part, refused};
use lapidary_passes::cuda::assemble::TrainingSpec;
use lapidary_passes::cuda::spec::{
    Anchor, Backward, Input, KernelOp, KernelSpec, OpSpec, Source, TensorType, ValueId,
};
use lapidary_passes::cuda::{ModuleSpec, Node, Options, ValueSpec, lower};
use lapidary_runtime_gpu::generate::Part;
use lapidary_runtime_gpu::program::Dtype;

/// A region under construction, in bf16.
pub struct Sketch {
    spec: KernelSpec,
}

impl Sketch {
    /// An empty region. Its kernel's name has a prefix: `norm` alone is a function of CUDA's own.
    pub fn new(name: &str, anchor: Anchor) -> Sketch {
        let (inputs, ops, outputs) = (Vec::new(), Vec::new(), Vec::new());
        let reason = "Measured alone.".to_string();
        let name = format!("bench_{name}");
        Sketch { spec: KernelSpec { name, anchor, inputs, ops, outputs, reason } }
    }

    fn typed(&mut self, dtype: Dtype, shape: &[u64], source: Source) -> ValueId {
        self.spec.inputs.push(Input { ty: TensorType::new(dtype, shape), source });
        self.spec.inputs.len() - 1
    }

    /// An activation; all inputs come before operations.
    pub fn input(&mut self, shape: &[u64]) -> ValueId {
        self.typed(Dtype::Bf16, shape, Source::Activation)
    }

    /// Labels.
    pub fn labels(&mut self, shape: &[u64]) -> ValueId {
        self.typed(Dtype::I32, shape, Source::Activation)
    }

    /// A weight.
    pub fn param(&mut self, name: &str, shape: &[u64]) -> ValueId {
        self.typed(Dtype::Bf16, shape, Source::Param { name: name.into(), scale: 1.0 })
    }

    /// An operation with a result of this shape; losses are f32.
    pub fn op(&mut self, op: KernelOp, operands: &[ValueId], shape: &[u64]) -> ValueId {
        let single = matches!(op, KernelOp::Backward(Backward::CrossEntropy));
        let dtype = if single { Dtype::F32 } else { Dtype::Bf16 };
        self.spec.ops.push(OpSpec { op, operands: operands.to_vec(), ty: TensorType::new(dtype, shape) });
        self.spec.inputs.len() + self.spec.ops.len() - 1
    }

    /// The region.
    pub fn finish(mut self, outputs: &[ValueId]) -> KernelSpec {
        self.spec.outputs = outputs.to_vec();
        self.spec
    }
}

/// A program that does nothing but one region. Weights of layers, and gradients, become those of layer 0.
pub fn alone(mut spec: KernelSpec, goal: &Goal, options: Options) -> Result<Part, Failure> {
    for op in &mut spec.ops {
        if let KernelOp::Backward(Backward::Gradient { param }) = &mut op.op {
            *param = param.replacen('*', "0", 1);
        }
    }
    for input in &mut spec.inputs {
        if let Source::Param { name, .. } = &mut input.source {
            *name = name.replacen('*', "0", 1);
        }
    }
    let mut values = Vec::new();
    let mut value = |name: String, ty: &TensorType| {
        values.push(ValueSpec { name, ty: ty.clone() });
        values.len() - 1
    };
    let given = spec.inputs.iter().filter(|input| input.source == Source::Activation);
    let args: Vec<usize> = given.enumerate().map(|(i, input)| value(format!("in{i}"), &input.ty)).collect();
    let results = spec.outputs.iter().enumerate().map(|(i, &out)| value(format!("out{i}"), spec.ty(out)));
    let results: Vec<usize> = results.collect();
    // Gradients have their memory and nothing that uses them up.
    let gradient = spec.outputs.iter().any(|&out| spec.gradient(out).is_some());
    let training = gradient.then(|| TrainingSpec { layers: 1, ..TrainingSpec::default() });
    let module = ModuleSpec {
        name: spec.name.clone(),
        arch: goal.arch.clone(),
        values,
        inputs: args.clone(),
        outputs: results.clone(),
        body: vec![Node::Kernel { spec, args, results }],
        training,
        share: None,
    };
    let options = Options { library: false, processors: goal.processors, int8: goal.int8, ..options };
    part(lower(&module, &options).map_err(|error| refused(&error))?)
}
