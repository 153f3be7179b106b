//! Whole models: a token behind a cache, a prompt, a training step, and small models against the reference interpreter.

use super::Goal;
use super::cases::{Size, products_of_training};
use crate::failure::{Exit, Failure};
use crate::gpu::{part, refused};
use crate::host;
use lapidary_ir::IrContext;
use lapidary_models::autodiff::{Recompute, differentiate};
use lapidary_models::{DType, Dims, Graph, Mode, ModelSpec, builtin};
use lapidary_passes::cuda::{ModuleSpec, Options, lower};
use lapidary_passes::lower_to_cuda::module_spec;
use lapidary_passes::pipeline::{pipeline_text, training_text};
use lapidary_passes::{Fusion, Goal as Target, Mup, Pipeline, Watch};
use lapidary_reference::{Cache, Oracle, Params, Tensor};
use lapidary_runtime_gpu::bench::{Candidate, CheckJob, Job, Seeded, Text};
use lapidary_runtime_gpu::generate::Part;
use lapidary_runtime_gpu::program::{BufferKind, ChosenBy, Dtype, Kernel};
use std::collections::BTreeMap;

/// A model in bf16.
fn short(spec: &ModelSpec, dtype: DType) -> ModelSpec {
    let mut spec = spec.clone();
    (spec.dtype.params, spec.dtype.compute) = (dtype, dtype);
    spec
}

fn graph(spec: &ModelSpec, mode: Mode, dims: Dims) -> Result<Graph, Failure> {
    Graph::build(spec, mode, dims)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", spec.name)))
}

/// A graph through the passes, as regions.
fn fused(graph: &Graph, passes: &str, goal: &Goal) -> Result<ModuleSpec, Failure> {
    let passes = Pipeline::parse(passes).map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    let cx = IrContext::new();
    let mut module = host::imported(&cx, graph)?;
    lapidary_passes::run(&mut module, &passes, Watch::default()).map_err(host::run_failure)?;
    module_spec(&module, &goal.arch)
        .map_err(|error| Failure::diagnosed(false, "cuda", &error.diagnostics(), &error.to_string()))
}

fn options(goal: &Goal) -> Options {
    let measured = goal.measured.clone();
    Options { library: false, processors: goal.processors, int8: goal.int8, measured, ..Options::default() }
}

fn program(module: &ModuleSpec, goal: &Goal) -> Result<Part, Failure> {
    part(lower(module, &options(goal)).map_err(|error| refused(&error))?)
}

/// The whole module with one form for all products that can have it, for GPUs that nothing was measured on yet.
fn variants(module: &ModuleSpec, forms: &[&str], goal: &Goal) -> Result<Vec<Candidate>, Failure> {
    let hopper = goal.arch == "sm_90a";
    let possible = forms.iter().filter(|form| hopper || !form.starts_with("hopper"));
    let mut variants = Vec::new();
    for form in possible.filter(|_| goal.measured.is_empty()) {
        let options = Options { form: Some(form.to_string()), ..options(goal) };
        let made = part(lower(module, &options).map_err(|error| refused(&error))?)?;
        // Where no product can have the form, the program is the rule's.
        let asked =
            |kernel: &Kernel| kernel.choice.as_ref().is_some_and(|choice| choice.by == ChosenBy::Asked);
        if made.program.get().kernels.iter().any(asked) {
            variants.push(Candidate::new(form, made));
        }
    }
    Ok(variants)
}

/// A job of a whole module and its variants, `rule` being the job's own program.
fn whole(
    kernel: &str,
    shape: &[(&str, u64)],
    module: &ModuleSpec,
    forms: &[&str],
    goal: &Goal,
) -> Result<Job, Failure> {
    let made = program(module, goal)?;
    let mut candidates = variants(module, forms, goal)?;
    if !candidates.is_empty() {
        candidates.insert(0, Candidate::new("rule", made.clone()));
    }
    let dtype = if goal.int8 { "int8" } else { "bf16" };
    Ok(Job { candidates, ..Job::new(kernel, shape, dtype, made) })
}

fn inference() -> String {
    pipeline_text(Target::Gpu, Mup::Fold, &Fusion::On)
}

/// The regions of a model at a size.
pub fn module(spec: &ModelSpec, mode: Mode, size: Size, goal: &Goal) -> Result<ModuleSpec, Failure> {
    let spec = short(spec, DType::Bf16);
    let dims = Dims { batch: size.batch, seq: size.tokens(&spec), cached: 0 };
    fused(&graph(&spec, mode, dims)?, &inference(), goal)
}

/// The regions of one token for each of some sequences behind a full cache.
pub fn decode_module(
    spec: &ModelSpec,
    seq: Option<u64>,
    batch: u64,
    goal: &Goal,
) -> Result<ModuleSpec, Failure> {
    let spec = short(spec, DType::Bf16);
    let dims = Dims { batch, seq: 1, cached: capacity(&spec, seq) - 1 };
    fused(&graph(&spec, Mode::Decode, dims)?, &inference(), goal)
}

/// Positions of the cache that is decoded behind.
fn capacity(spec: &ModelSpec, seq: Option<u64>) -> u64 {
    Size { batch: 1, seq }.tokens(spec).max(2)
}

/// One token for each of some sequences behind a full cache. What must move are the weights once, and the cache.
pub fn decode(spec: &ModelSpec, seq: Option<u64>, batches: &[u32], goal: &Goal) -> Result<Vec<Job>, Failure> {
    let capacity = capacity(spec, seq);
    let job = |batch: &u32| -> Result<Job, Failure> {
        let batch = u64::from(*batch);
        let module = decode_module(spec, seq, batch, goal)?;
        let shape = [("batch", batch), ("cached", capacity - 1)];
        let forms =
            ["stream-1", "stream-2", "stream-4", "tiles-16x128", "deep-64x64", "deep-64x32", "library"];
        let mut job = whole("decode", &shape, &module, &forms, goal)?;
        job.shape.extend(model_shape(spec));
        job.below.insert("ids".into(), spec.vocab);
        job.given.insert("cached".into(), vec![(capacity - 1) as f64]);
        let read = [BufferKind::Param, BufferKind::Cache].map(|kind| job.program.bytes_of(kind));
        (job.bytes, job.tokens) = (read.iter().sum(), Some(batch));
        Ok(job)
    };
    batches.iter().map(job).collect()
}

/// Prompts into a cache.
pub fn prefill(spec: &ModelSpec, size: Size, goal: &Goal) -> Result<Vec<Job>, Failure> {
    let module = module(spec, Mode::Prefill, size, goal)?;
    let tokens = size.batch * size.tokens(spec);
    let shape = [("batch", size.batch), ("seq", size.tokens(spec))];
    let forms = ["tiles-128x256", "tiles-128x128", "hopper-128x256", "hopper-128x128", "hopper", "library"];
    let mut job = whole("prefill", &shape, &module, &forms, goal)?;
    job.shape.extend(model_shape(spec));
    job.below.insert("ids".into(), spec.vocab);
    job.tokens = Some(tokens);
    Ok(vec![job])
}

/// The products of its backward pass, and a training step with its optimizer: of the model with as many layers as a billion
/// parameters have.
pub fn train_step(spec: &ModelSpec, size: Size, goal: &Goal) -> Result<Vec<Job>, Failure> {
    let mut spec = short(spec, DType::Bf16);
    spec.dtype.params = DType::F32;
    while spec.n_layers > 1 && spec.parameters() > MOST_TRAINED {
        spec.n_layers -= 1;
    }
    let seq = size.tokens(&spec);
    let forward = graph(&spec, Mode::Forward, Dims { batch: size.batch, seq, cached: 0 })?;
    let training = differentiate(&forward)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", spec.name)))?;
    let passes = training_text(Target::Gpu, Recompute::Selective, &Fusion::On);
    let module = fused(&training, &passes, goal)?;
    let products = products_of_training(&module, goal)?;
    let shape = [("batch", size.batch), ("seq", seq)];
    let forms = ["tiles-128x256", "hopper-128x256", "hopper-128x128", "hopper", "library"];
    let mut job = whole("train-step", &shape, &module, &forms, goal)?;
    job.shape.extend(model_shape(&spec));
    job.below = BTreeMap::from(["ids", "labels"].map(|name| (name.to_string(), spec.vocab)));
    // lr, beta1, beta2, eps, weight decay, clip, 1 - beta1, 1 - beta2.
    let settings = vec![1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.1, 0.05];
    let rates = job.program.buffers.iter().filter(|buffer| buffer.name.starts_with("rates."));
    job.given = rates.map(|buffer| (buffer.name.clone(), vec![1.0, 1.0])).collect();
    job.given.insert("optimizer".into(), settings);
    job.tokens = Some(size.batch * seq);
    Ok([products, vec![job]].concat())
}

/// Parameters of the largest model whose training step is measured on one GPU.
const MOST_TRAINED: u64 = 1_000_000_000;

fn model_shape(spec: &ModelSpec) -> [(String, u64); 4] {
    let sizes =
        [("layers", spec.n_layers), ("width", spec.d_model), ("ff", spec.d_ff), ("vocab", spec.vocab)];
    sizes.map(|(name, size)| (name.into(), size))
}

/// Small models of every kind with odd sizes: sequences of 1, 17 and 2047 tokens, widths of 10922 and 32032.
const CHECKED: [(&str, [u64; 4]); 6] = [
    ("crystalcoder", [2, 17, 10922, 515]),
    ("crystalcoder", [3, 1, 10922, 515]),
    ("amber", [1, 2047, 86, 61]),
    ("amber", [1, 1, 86, 32032]),
    ("llama-3-8b", [2, 33, 344, 300]),
    ("pythia-6.9b", [2, 17, 170, 259]),
];

/// Every model of the list in bf16 and f32, with what the reference interpreter computes in f64.
pub fn checks(goal: &Goal) -> Result<Vec<CheckJob>, Failure> {
    let each = CHECKED.iter().flat_map(|one| [(one, DType::Bf16), (one, DType::F32)]);
    each.map(|((name, sizes), dtype)| check(name, *sizes, dtype, goal)).collect()
}

/// One check: the logits of every position.
pub fn check(
    name: &str,
    [batch, seq, d_ff, vocab]: [u64; 4],
    dtype: DType,
    goal: &Goal,
) -> Result<CheckJob, Failure> {
    let known = builtin(name).map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    let spec = short(&shrunk(known, d_ff, vocab), dtype);
    let graph = graph(&spec, Mode::Forward, Dims { batch, seq, cached: 0 })?;
    let made = program(&fused(&graph, &pipeline_text(Target::Gpu, Mup::Keep, &Fusion::On), goal)?, goal)?;
    let shapes: BTreeMap<String, Vec<u64>> = tensors(&graph, spec.n_layers);
    let (element, tolerance) = match dtype {
        DType::Bf16 => (Dtype::Bf16, 0.03),
        _ => (Dtype::F32, 1e-4),
    };
    let ids: Vec<Vec<u32>> = (0..batch)
        .map(|b| (0..seq).map(|s| ((b * 31 + s * 37 + 11) % spec.vocab) as u32).collect())
        .collect();
    let expected = expected(&graph, &Seeded { shapes: &shapes, dtype: element }, &ids);
    let program = made.program.into_inner();
    let output = program.buffers.iter().find(|buffer| buffer.kind == BufferKind::Output);
    let output = output.map_or_else(String::new, |buffer| buffer.name.clone());
    let sources = made.sources.into_iter().map(|s| Text { name: s.name, text: s.text }).collect();
    Ok(CheckJob {
        name: format!("{name} {} batch {batch} seq {seq} d_ff {d_ff} vocab {vocab}", dtype.name()),
        program,
        sources,
        shapes,
        dtype: element,
        ids: ids.concat(),
        output,
        width: spec.vocab,
        expected,
        tolerance,
    })
}

/// A built-in model with few and narrow layers.
fn shrunk(spec: ModelSpec, d_ff: u64, vocab: u64) -> ModelSpec {
    let kv = if spec.n_kv_heads < spec.n_heads { 2 } else { 4 };
    let mut spec = ModelSpec {
        vocab,
        vocab_padded_to: None,
        d_model: 64,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: kv,
        head_dim: 16,
        d_ff,
        max_seq: 2048,
        ..spec
    };
    if let lapidary_models::spec::Position::Rope(rope) = &mut spec.pos {
        rope.rot_dims = rope.rot_dims.min(16);
    }
    spec
}

/// Dimensions of every tensor of a graph, layers filled in.
fn tensors(graph: &Graph, layers: u64) -> BTreeMap<String, Vec<u64>> {
    let mut shapes = BTreeMap::new();
    for param in &graph.params {
        for layer in 0..if param.name.contains('*') { layers } else { 1 } {
            shapes.insert(param.name.replacen('*', &layer.to_string(), 1), param.ty.shape.clone());
        }
    }
    shapes
}

fn expected(graph: &Graph, weights: &Seeded<'_>, ids: &[Vec<u32>]) -> Vec<f32> {
    let params: Params<f64> = weights
        .shapes
        .iter()
        .map(|(name, shape)| {
            let count: u64 = shape.iter().product();
            let values = (0..count).map(|i| f64::from(weights.value(name, shape, i))).collect();
            (name.clone(), Tensor::new(shape.iter().map(|n| *n as usize).collect(), values))
        })
        .collect();
    let run = Oracle { graph, params: &params }.run(ids, &mut Cache::default());
    run.logits.data.iter().map(|x| *x as f32).collect()
}
