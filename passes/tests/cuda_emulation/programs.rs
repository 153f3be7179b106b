//! Whole programs: every step of a small model's program, on one memory with the plan's arena, against the reference.
use crate::harness::{Image, Random, activation_image, packed_image, round};
use crate::models::{Model, Run};
use crate::reference::{Tensor, evaluate};
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Lowered, ModuleSpec, Node, Options, lower};
use lapidary_runtime_gpu::compile::Source as Text;
use lapidary_runtime_gpu::execute::{Loaded, Places};
use lapidary_runtime_gpu::program::{BufferKind, Dtype, GpuProgram};
use lapidary_tests::emulation::Emulated;
use std::collections::BTreeMap;

/// Weights by canonical name and layer; the same name always gives the same numbers.
pub fn weight(name: &str, ty: &TensorType) -> Tensor {
    let seed = name.bytes().fold(99u64, |seed, byte| seed.wrapping_mul(1099511628211) ^ u64::from(byte));
    let mut random = Random(seed);
    let mut tensor = Tensor::zeros(ty);
    let size = if ty.shape.len() == 1 { 0.3 } else { 1.5 / (ty.cols() as f64).sqrt() };
    let base = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
    tensor.data.iter_mut().for_each(|x| *x = round(ty.dtype, base + size * random.next()));
    tensor
}

/// What a cache held before: layer, name, type and how many rows are known.
fn past(layer: u64, cache: &str, ty: &TensorType, cached: u64) -> Tensor {
    let mut tensor = weight(&format!("{layer}.{cache}.past"), ty);
    let (d, l) = (ty.cols() as usize, ty.shape[1] as usize);
    let blank = |i: usize| i / d % l >= cached as usize;
    tensor.data.iter_mut().enumerate().filter(|(i, _)| blank(*i)).for_each(|(_, x)| *x = f64::NAN);
    tensor
}

/// The module's values by the reference, rounding what goes through memory.
struct Reference<'a> {
    module: &'a ModuleSpec,
    values: BTreeMap<usize, Tensor>,
}

impl Reference<'_> {
    fn nodes(&mut self, nodes: &[Node], layer: u64) {
        for node in nodes {
            match node {
                Node::Kernel { spec, args, results } => self.kernel(spec, args, results, layer),
                Node::Talk { name, .. } => panic!("{name}: a whole model has nobody to talk to"),
                Node::Repeat { times, input, param, body, yielded, result, .. } => {
                    let mut carried = self.values[input].clone();
                    for layer in 0..*times {
                        self.values.insert(*param, carried);
                        self.nodes(body, layer);
                        carried = self.values[yielded].clone();
                    }
                    self.values.insert(*result, carried);
                }
            }
        }
    }

    fn kernel(&mut self, spec: &KernelSpec, args: &[usize], results: &[usize], layer: u64) {
        let mut args = args.iter();
        let inputs: Vec<Tensor> = spec
            .inputs
            .iter()
            .map(|input| match &input.source {
                Source::Activation => self.values[args.next().expect("an argument")].clone(),
                Source::Param { name, .. } => weight(&name.replace('*', &layer.to_string()), &input.ty),
            })
            .collect();
        let caches: Vec<(String, Tensor)> = spec
            .ops
            .iter()
            .filter_map(|op| match &op.op {
                KernelOp::KvAppend { cache, cached } => {
                    Some((cache.clone(), past(layer, cache, &op.ty, *cached)))
                }
                _ => None,
            })
            .collect();
        let values = evaluate(spec, &inputs, &caches);
        for (&result, &output) in results.iter().zip(&spec.outputs) {
            let mut value = values[output].clone();
            value.data.iter_mut().for_each(|x| *x = round(spec.ty(output).dtype, *x));
            self.values.insert(result, value);
        }
        let _ = self.module;
    }
}

/// What a program's buffers outside of the arena hold, before and after a run.
pub struct Memory {
    pub buffers: BTreeMap<String, Vec<u8>>,
}

impl Memory {
    /// Runs the program on an emulated GPU whose memory is NaN where nothing was written.
    pub fn run(&mut self, lowered: &Lowered) {
        let mut device = Emulated::new();
        let program = lowered.program.clone().check().expect("a program that passes its check");
        let texts = lowered.sources.iter().map(|s| Text { name: s.name.clone(), text: s.text.clone() });
        let texts: Vec<Text> = texts.collect();
        let loaded = Loaded::new(&mut device, &program, &texts, &Places::new());
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        for (name, bytes) in &self.buffers {
            loaded.write(&mut device, name, bytes).unwrap_or_else(|error| panic!("{error}"));
        }
        loaded.run(&mut device).unwrap_or_else(|error| panic!("{error}"));
        for (name, bytes) in &mut self.buffers {
            loaded.read(&mut device, name, bytes).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Lowers the model, runs the program on NaN-filled memory and compares the logits.
fn check(model: &Model, run: Run, dtype: Dtype, tolerance: f64) -> GpuProgram {
    let module = model.module(run, dtype);
    let lowered = lower(&module, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let program = &lowered.program;
    let ids = &module.values[module.inputs[0]].ty;
    let mut tokens = Tensor::zeros(ids);
    tokens.data.iter_mut().enumerate().for_each(|(i, x)| *x = ((i * 37 + 11) % model.vocab as usize) as f64);
    let mut reference =
        Reference { module: &module, values: BTreeMap::from([(module.inputs[0], tokens.clone())]) };
    reference.nodes(&module.body, 0);

    let mut memory = Memory { buffers: BTreeMap::new() };
    for buffer in program.buffers.iter().filter(|buffer| buffer.kind != BufferKind::Arena) {
        let bytes = match buffer.kind {
            BufferKind::Param | BufferKind::Cache => {
                let mut bytes = vec![0xff; buffer.bytes as usize];
                let layers = buffer.layers.map_or(1, |layers| layers.count);
                for layer in 0..layers {
                    let image = initial(&module, buffer, layer, run, dtype);
                    let at = (layer * buffer.layers.map_or(0, |layers| layers.stride_bytes)) as usize;
                    bytes[at..at + image.bytes.len()].copy_from_slice(&image.bytes);
                }
                bytes
            }
            BufferKind::Input if buffer.name == "cached" => (run.cached as i32).to_le_bytes().to_vec(),
            BufferKind::Input => activation_image(ids, &tokens).bytes,
            _ => vec![0xff; buffer.bytes as usize],
        };
        memory.buffers.insert(buffer.name.clone(), bytes);
    }
    memory.run(&lowered);

    let logits = module.outputs[0];
    let (ty, wanted) = (&module.values[logits].ty, &reference.values[&logits]);
    let found = Image { dtype: ty.dtype, bytes: memory.buffers[&module.values[logits].name].clone() };
    let size = wanted.data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (i, &right) in wanted.data.iter().enumerate() {
        let cols = ty.cols() as usize;
        let x = found.get(i / cols * ty.pitch() as usize + i % cols);
        assert!(
            (x - right).abs() <= tolerance * size,
            "{}: logit {i} is {x}, not {right} (largest {size})",
            model.name
        );
    }
    lowered.program
}

/// What a parameter or a cache holds before the run.
fn initial(
    module: &ModuleSpec,
    buffer: &lapidary_runtime_gpu::program::Buffer,
    layer: u64,
    run: Run,
    dtype: Dtype,
) -> Image {
    match &buffer.packing {
        Some(packing) => packed_image(packing, dtype, |name| {
            weight(
                &name.replace('*', &layer.to_string()),
                &param_type(&module.body, name).expect("a parameter"),
            )
        }),
        None => {
            let ty = TensorType::new(dtype, &buffer.shape);
            let name = buffer.name.trim_start_matches("cache.");
            let mut canonical = past(layer, name, &ty, run.cached);
            // The cache holds rotated keys in the order of the packed pairs.
            let (natural, cols) = (canonical.data.clone(), ty.cols() as usize);
            for (i, x) in canonical.data.iter_mut().enumerate() {
                *x = natural[i / cols * cols + buffer.column_order.source_row((i % cols) as u64) as usize];
            }
            activation_image(&ty, &canonical)
        }
    }
}

fn param_type(nodes: &[Node], wanted: &str) -> Option<TensorType> {
    nodes.iter().find_map(|node| match node {
        Node::Repeat { body, .. } => param_type(body, wanted),
        Node::Talk { .. } => None,
        Node::Kernel { spec, .. } => spec.inputs.iter().find_map(|input| match &input.source {
            Source::Param { name, .. } if name == wanted => Some(input.ty.clone()),
            _ => None,
        }),
    })
}

const PREFILL: Run = Run { batch: 2, new: 12, cached: 0 };
const DECODE: Run = Run { batch: 2, new: 1, cached: 11 };

#[test]
fn a_llama_prefills_and_decodes() {
    let program = check(&Model::tiny(), PREFILL, Dtype::Bf16, 0.03);
    assert!(program.arena_bytes < program.arena_naive_bytes);
    let copies = program.kernels.iter().filter(|kernel| kernel.name.starts_with("copy"));
    assert_eq!(copies.count(), 0, "the hidden state is carried in place");
    check(&Model::tiny(), DECODE, Dtype::F32, 1e-4);
}

#[test]
fn a_crystal_with_biases_and_interleaved_pairs_decodes() {
    let crystal = Model {
        name: "crystal",
        norm: NormKind::Layer,
        bias: true,
        ff: 43,
        rope: Some((Pairing::Interleaved, 8)),
        tied: true,
        ..Model::tiny()
    };
    check(&crystal, DECODE, Dtype::Bf16, 0.03);
}

#[test]
fn a_pythia_with_parallel_residuals_and_a_gpt_with_learned_positions() {
    let pythia = Model {
        name: "pythia",
        norm: NormKind::Layer,
        bias: true,
        plain: Some(ActivationFn::Gelu),
        parallel: true,
        rope: Some((Pairing::Half, 8)),
        ..Model::tiny()
    };
    check(&pythia, PREFILL, Dtype::F32, 1e-4);
    let gpt = Model { name: "gpt", parallel: false, rope: None, learned: true, alibi: true, ..pythia };
    check(&gpt, Run { batch: 1, new: 3, cached: 5 }, Dtype::F32, 1e-4);
}
