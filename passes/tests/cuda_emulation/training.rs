//! Whole training steps: forward, loss, backward, clipping and AdamW of small models, from the IR down to the kernels'
//! texts, on one memory, against the same step in f64.
use crate::harness::{Image, activation_image, packed_image};
use crate::programs::{Memory, weight};
use crate::reference::{Tensor, evaluate};
use lapidary_ir::{IrContext, import::import};
use lapidary_models::autodiff::{Recompute, differentiate};
use lapidary_models::spec::{DTypes, Position};
use lapidary_models::{DType, Dims, Graph, Mode, ModelSpec, builtin};
use lapidary_passes::cuda::assemble::TrainingSpec;
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Lowered, ModuleSpec, Node, Options, lower};
use lapidary_passes::lower_to_cuda::module_spec;
use lapidary_passes::pipeline::{Fusion, Goal, training_text};
use lapidary_passes::{Pipeline, Watch, run};
use lapidary_runtime_gpu::program::{BufferKind, Dtype, GpuProgram};
use std::collections::BTreeMap;

const DIMS: Dims = Dims { batch: 2, seq: 11, cached: 0 };
/// lr, beta1, beta2, eps, weight decay, clip, and the corrections of the first step. A large eps, so that a step shows the
/// size of the gradient and not only its sign.
const SETTINGS: [f64; 8] = [0.5, 0.9, 0.95, 0.01, 0.1, 0.5, 0.1, 0.05];
/// Factors of rate and decay of every parameter.
const RATES: [f64; 2] = [0.5, 2.0];

/// A built-in model with small sizes.
fn small(name: &str, compute: DType) -> ModelSpec {
    let spec = builtin(name).unwrap();
    let kv = if spec.n_kv_heads < spec.n_heads { 2 } else { 4 };
    let mut spec = ModelSpec {
        vocab: 53,
        vocab_padded_to: None,
        d_model: 32,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: kv,
        head_dim: 8,
        d_ff: 40,
        max_seq: 16,
        dtype: DTypes { compute, ..spec.dtype },
        ..spec
    };
    if let Position::Rope(rope) = &mut spec.pos {
        rope.rot_dims = rope.rot_dims.min(8);
    }
    spec.attn.window = spec.attn.window.map(|_| 5);
    spec
}

fn module(spec: &ModelSpec, policy: Recompute, fusion: &Fusion) -> ModuleSpec {
    let graph = differentiate(&Graph::build(spec, Mode::Forward, DIMS).unwrap()).unwrap();
    let cx = IrContext::new();
    let mut module = import(&cx, &graph).unwrap();
    let passes = Pipeline::parse(&training_text(Goal::Gpu, policy, fusion)).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{error}"));
    module_spec(&module, "sm_80").unwrap_or_else(|error| panic!("{error}"))
}

/// The step by the reference, with nothing rounded.
struct Reference<'a> {
    training: &'a TrainingSpec,
    values: BTreeMap<usize, Tensor>,
    kept: BTreeMap<(usize, u64), Tensor>,
    gradients: BTreeMap<String, Tensor>,
}

impl Reference<'_> {
    fn nodes(&mut self, nodes: &[Node], layer: u64) {
        for node in nodes {
            match node {
                Node::Kernel { spec, args, results } => self.kernel(spec, args, results, layer),
                Node::Talk { name, .. } => panic!("{name}: a whole model has nobody to talk to"),
                Node::Repeat { times, first, reverse, input, param, body, yielded, result } => {
                    let mut carried = self.values[input].clone();
                    for round in 0..*times {
                        let round = if *reverse { times - 1 - round } else { round };
                        self.values.insert(*param, carried);
                        self.nodes(body, first + round);
                        carried = self.values[yielded].clone();
                    }
                    self.values.insert(*result, carried);
                }
            }
        }
    }

    fn kernel(&mut self, spec: &KernelSpec, args: &[usize], results: &[usize], layer: u64) {
        let mut args = args.iter();
        let mut inputs = Vec::new();
        for input in &spec.inputs {
            inputs.push(match &input.source {
                Source::Activation => self.value(*args.next().expect("an argument"), layer),
                Source::Param { name, .. } => weight(&name.replace('*', &layer.to_string()), &input.ty),
            });
        }
        let values = evaluate(spec, &inputs, &[]);
        for (&result, &output) in results.iter().zip(&spec.outputs) {
            let value = values[output].clone();
            if let Some(param) = spec.gradient(output) {
                let name = param.replace('*', &layer.to_string());
                match self.gradients.get_mut(&name) {
                    Some(sum) => sum.data.iter_mut().zip(&value.data).for_each(|(sum, x)| *sum += x),
                    None => drop(self.gradients.insert(name, value)),
                }
                continue;
            }
            if let Some(slot) = self.training.slots.get(&result) {
                self.kept.insert((*slot, layer), value.clone());
            }
            self.values.insert(result, value);
        }
    }

    fn value(&self, value: usize, layer: u64) -> Tensor {
        match self.training.slots.get(&value) {
            Some(slot) => self.kept[&(*slot, layer)].clone(),
            None => self.values[&value].clone(),
        }
    }
}

/// Runs the program on NaN-filled memory and compares the loss, the norm and every updated weight.
fn check(
    spec: &ModelSpec,
    policy: Recompute,
    fusion: &Fusion,
    options: &Options,
    tolerance: f64,
) -> GpuProgram {
    let module = module(spec, policy, fusion);
    let lowered = lower(&module, options).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
    let tokens = DIMS.batch * DIMS.seq;
    let ids: Vec<f64> = (0..tokens).map(|i| ((i * 37 + 11) % spec.vocab) as f64).collect();
    let labels: Vec<f64> =
        (0..tokens).map(|i| if i % 11 == 10 { -1.0 } else { ids[(i + 1) as usize] }).collect();
    let tensor =
        |data: &[f64]| Tensor { shape: vec![DIMS.batch as usize, DIMS.seq as usize], data: data.to_vec() };
    let given = [tensor(&ids), tensor(&labels)];
    let values = module.inputs.iter().copied().zip(given.clone()).collect();
    let training = module.training.as_ref().expect("a training step");
    let mut reference = Reference { training, values, kept: BTreeMap::new(), gradients: BTreeMap::new() };
    reference.nodes(&module.body, 0);

    let mut memory = memory(&module, &lowered, &given);
    memory.run(&lowered);

    let single =
        |name: &str, memory: &Memory| Image { dtype: Dtype::F32, bytes: memory.buffers[name].clone() }.get(0);
    let loss = reference.values[&module.outputs[0]].data[0];
    let found = single(&module.values[module.outputs[0]].name, &memory);
    assert!((found - loss).abs() <= tolerance * loss, "{}: loss {found}, not {loss}", spec.name);
    let norm = reference.gradients.values().flat_map(|g| &g.data).map(|g| g * g).sum::<f64>().sqrt();
    let found = single("gradient_norm", &memory);
    assert!((found - norm).abs() <= tolerance * norm, "{}: norm {found}, not {norm}", spec.name);
    updates(&lowered.program, &memory, &reference.gradients, norm, tolerance);
    lowered.program
}

/// Every gradient, by the moments of this first step; every weight after it; every gradient is zero again.
fn updates(
    program: &GpuProgram,
    memory: &Memory,
    gradients: &BTreeMap<String, Tensor>,
    norm: f64,
    tolerance: f64,
) {
    let [lr, beta1, beta2, eps, decay, clip, ..] = SETTINGS;
    let scale = (clip / (norm + 1e-6)).min(1.0);
    let mut compared = 0;
    for (name, gradient) in gradients {
        let held = Held::of(program, memory, name);
        let before = weight(name, &TensorType::new(compute(program), &held.ty.shape));
        // The derivative by a key's bias is zero but for rounding: what it may be off by is a share of all gradients.
        let largest = gradient.data.iter().fold(1e-3 * norm, |most, g| most.max(g.abs())) * scale;
        for (i, (right, w)) in gradient.data.iter().zip(&before.data).enumerate() {
            let g = held.at("mean", i) / (1.0 - beta1);
            assert!(
                (g - right * scale).abs() <= tolerance * largest,
                "{name} [{i}]: gradient {g}, not {} of {largest}",
                right * scale
            );
            let square = held.at("square", i) / (1.0 - beta2);
            assert!((square - g * g).abs() <= 1e-5 * g * g + 1e-18, "{name} [{i}]: square {square} of {g}");
            let right = w - lr * RATES[0] * (g / (g.abs() + eps) + decay * RATES[1] * w);
            let found = held.weight(i);
            assert!((found - right).abs() <= 1e-6, "{name} [{i}] is {found}, not {right}");
            assert_eq!(held.at("gradient", i), 0.0, "{name}: the gradient is left over");
            compared += 1;
        }
    }
    assert!(compared > 10_000);
}

/// What a program holds of one parameter of one layer.
struct Held<'a> {
    program: &'a GpuProgram,
    memory: &'a Memory,
    /// Its name, with `*` for the layer.
    canonical: String,
    layer: u64,
    ty: TensorType,
}

impl<'a> Held<'a> {
    fn of(program: &'a GpuProgram, memory: &'a Memory, name: &str) -> Self {
        let layer: Option<u64> =
            name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let canonical = match layer {
            Some(layer) => name.replacen(&format!(".{layer}."), ".*.", 1),
            None => name.to_string(),
        };
        let gradient = program.buffer(&format!("gradient.{canonical}")).expect("a gradient");
        let ty = TensorType::new(Dtype::F32, &gradient.shape);
        Held { program, memory, canonical, layer: layer.unwrap_or(0), ty }
    }

    fn at(&self, kind: &str, i: usize) -> f64 {
        self.read(&format!("{kind}.{}", self.canonical), i)
    }

    /// The master of a weight in bf16, which the weight must be the nearest to; the weight itself in f32.
    fn weight(&self, i: usize) -> f64 {
        let weight = self.read(&self.canonical, i);
        if self.program.buffer(&format!("master.{}", self.canonical)).is_none() {
            return weight;
        }
        let master = self.at("master", i);
        assert!((weight - master).abs() <= master.abs() / 256.0, "{}: {weight} of {master}", self.canonical);
        master
    }

    fn read(&self, name: &str, i: usize) -> f64 {
        let buffer = self.program.buffer(name).expect("a buffer");
        let start = self.layer * buffer.layers.map_or(0, |layers| layers.stride_bytes);
        let (cols, pitch) = (self.ty.cols() as usize, buffer.pitch as usize);
        let (at, size) = (i / cols * pitch + i % cols, buffer.dtype.bytes() as usize);
        let from = start as usize + at * size;
        Image { dtype: buffer.dtype, bytes: self.memory.buffers[name][from..from + size].to_vec() }.get(0)
    }
}

fn memory(module: &ModuleSpec, lowered: &Lowered, given: &[Tensor; 2]) -> Memory {
    let program = &lowered.program;
    let mut memory = Memory { buffers: BTreeMap::new() };
    for buffer in program.buffers.iter().filter(|buffer| buffer.kind != BufferKind::Arena) {
        let mut bytes = vec![0xff; buffer.bytes as usize];
        match buffer.kind {
            BufferKind::Weight => {
                for layer in 0..buffer.layers.map_or(1, |layers| layers.count) {
                    let packing = buffer.packing.as_ref().expect("a weight");
                    let shape =
                        |name: &str| program.buffer(&format!("gradient.{name}")).map(|b| b.shape.clone());
                    let image = packed_image(packing, buffer.dtype, |name| {
                        let ty = TensorType::new(compute(program), &shape(name).expect("a gradient"));
                        weight(&name.replace('*', &layer.to_string()), &ty)
                    });
                    let at = (layer * buffer.layers.map_or(0, |layers| layers.stride_bytes)) as usize;
                    bytes[at..at + image.bytes.len()].copy_from_slice(&image.bytes);
                }
            }
            BufferKind::State => bytes.fill(0),
            BufferKind::Input if buffer.name == "optimizer" => bytes = floats(&SETTINGS),
            BufferKind::Input if buffer.name.starts_with("rates.") => {
                bytes[..8].copy_from_slice(&floats(&RATES))
            }
            BufferKind::Input => {
                let at = module.inputs.iter().position(|input| module.values[*input].name == buffer.name);
                let at = at.unwrap_or_else(|| panic!("who gives {}?", buffer.name));
                bytes = activation_image(&module.values[module.inputs[at]].ty, &given[at]).bytes;
            }
            _ => {}
        }
        memory.buffers.insert(buffer.name.clone(), bytes);
    }
    memory
}

/// The type that weights are computed with: masters hold the same values in f32.
fn compute(program: &GpuProgram) -> Dtype {
    let masters = program.buffers.iter().any(|buffer| buffer.name.starts_with("master."));
    if masters { Dtype::Bf16 } else { Dtype::F32 }
}

fn floats(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect()
}

fn generated() -> Options {
    Options { library: false, ..Options::default() }
}

#[test]
fn a_step_in_single_precision_is_exact_under_every_policy() {
    for (name, policy, options) in [
        ("llama-3-8b", Recompute::Selective, Options::default()),
        ("crystalcoder", Recompute::Full, Options::default()),
        ("cerebras-gpt-111m", Recompute::None, generated()),
        ("pythia-6.9b", Recompute::None, Options::default()),
    ] {
        let spec = small(name, DType::F32);
        let program = check(&spec, policy, &Fusion::On, &options, 1e-5);
        let kept = program.bytes_of(BufferKind::Kept);
        assert!(kept > 0 && program.arena_bytes < program.arena_naive_bytes, "{name}");
    }
}

#[test]
fn a_step_in_bf16_is_near() {
    for (name, policy, options, kept) in [
        ("amber", Recompute::Selective, Options::default(), true),
        ("jais-13b", Recompute::Full, generated(), false),
    ] {
        let program = check(&small(name, DType::Bf16), policy, &Fusion::On, &options, 0.03);
        // Attention's sums go from its forward to its backward pass, in the layer's memory or within one function.
        assert!(program.kernels.iter().any(|kernel| kernel.name.ends_with("_products")), "{name}");
        assert_eq!(
            program
                .buffers
                .iter()
                .any(|buffer| buffer.name.ends_with("log_sums") && buffer.kind == BufferKind::Kept),
            kept,
            "{name}"
        );
    }
}
