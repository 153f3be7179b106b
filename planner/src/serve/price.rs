//! Seconds and bytes of one replica at one moment: the prompt's pass, and a step that adds a token to every sequence.

use crate::cost::physical::Physical;
use crate::plan::GpuPlan;
use crate::request::Batch;
use crate::step::layer::layer;
use crate::step::memory::driver;
use crate::step::rates::Rates;
use crate::step::{Job, Shape, Work};
use indexmap::IndexMap;
use lapidary_hardware::HardwareSpec;
use lapidary_models::ModelSpec;

/// Bytes of a weight, and of a value in the cache.
const VALUE: f64 = 2.0;
/// Launches of a layer in a step beside its products and attention: norms with their sums, rotation, the cache, the
/// gate (the kernels that this compiler emits for decoding).
const ROW_KERNELS: f64 = 4.0;

/// What a replica takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// Seconds of the prompts of all sequences, up to their first tokens.
    pub first_token_s: f64,
    /// Seconds of a step of decoding by name.
    pub terms_s: IndexMap<String, f64>,
    /// Memory of a device by class.
    pub memory_bytes: IndexMap<String, u64>,
}

impl Moment {
    /// Seconds between two tokens of a sequence.
    pub fn between_tokens_s(&self) -> f64 {
        self.terms_s.values().sum()
    }

    /// The term that takes the most of a step.
    pub fn largest(&self) -> Option<&str> {
        self.terms_s.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(name, _)| name.as_str())
    }
}

/// A replica of `tp` ranks with `batch.global` sequences of `batch.seq_len` tokens as prompts, `context` tokens of each in
/// the cache.
pub fn moment(
    model: &ModelSpec,
    machine: &HardwareSpec,
    physical: &Physical,
    batch: Batch,
    tp: u64,
    work: &Work,
    context: f64,
) -> Moment {
    let Some(gpu) = machine.gpu() else { return Moment::default() };
    let plan = GpuPlan { micro_batch: batch.global, ..GpuPlan::of_degrees(tp, 1, 1, model.n_layers) };
    let mut job = physical.job(model, machine, batch, &plan, work);
    job.layout.sequence_parallel = false;
    let rates = Rates::new(&job, gpu);
    Moment {
        first_token_s: prompt(&job, &rates),
        terms_s: step(&job, &rates, context),
        memory_bytes: memory(&job, context),
    }
}

/// A forward pass over all prompts; the head sees their last tokens.
fn prompt(job: &Job<'_>, rates: &Rates<'_>) -> f64 {
    let layers = job.shape.layers as f64;
    layers * layer(job, rates).forward.device() + head(job, rates)
}

fn head(job: &Job<'_>, rates: &Rates<'_>) -> f64 {
    rates.linears(&job.work.head.0.linears, rows(job))
}

/// Rows of a step's products: a token of each sequence. Tiles are padded to whole rows of the tensor cores' operands, so
/// few sequences cost no more than eight.
fn rows(job: &Job<'_>) -> f64 {
    job.layout.micro_batch.next_multiple_of(8) as f64
}

/// A token more for every sequence.
fn step(job: &Job<'_>, rates: &Rates<'_>, context: f64) -> IndexMap<String, f64> {
    let (layers, sequences, shape) = (job.shape.layers as f64, job.layout.micro_batch as f64, &job.shape);
    let work = &job.work.forward;
    let read = cache_bytes(shape, job.tp()) * context * sequences;
    // The account's row kernels are those of a whole prompt.
    let token =
        (work.stream_bytes + work.split_bytes + work.inner_bytes) / job.batch.seq_len as f64 * sequences;
    let other = rates.stream(token) + ROW_KERNELS * job.physics.gap;
    let meetings = if shape.parallel { 1.0 } else { 2.0 };
    let summed = meetings * rates.tensor_all_reduce(VALUE * sequences * shape.width);
    IndexMap::from([
        ("weights".to_string(), layers * rates.linears(&work.linears, rows(job))),
        ("cache".to_string(), layers * (rates.stream(read) + job.physics.gap)),
        ("rows".to_string(), layers * other),
        ("tp_comm".to_string(), layers * summed),
        ("head".to_string(), head(job, rates)),
    ])
}

/// Bytes of keys and values of a token and layer on one rank; heads that are fewer than ranks are repeated.
fn cache_bytes(shape: &Shape, tp: f64) -> f64 {
    2.0 * VALUE * (shape.key_heads / tp).max(1.0) * shape.head_dim
}

fn memory(job: &Job<'_>, context: f64) -> IndexMap<String, u64> {
    let (shape, sequences) = (&job.shape, job.layout.micro_batch as f64);
    let tables = if shape.tied { 1.0 } else { 2.0 } * shape.table(job.vocab_rows());
    let weights = shape.layers as f64 * (shape.layer_matrices() / job.tp() + shape.small) + tables;
    let cache = shape.layers as f64 * cache_bytes(shape, job.tp()) * context * sequences;
    // Two values of the residual stream and the widest one of a layer, of all prompts at once.
    let wide = 2.0 * shape.width + (shape.ups() * shape.inner / job.tp()).max(3.0 * shape.width / job.tp());
    let bytes = |value: f64| value.ceil() as u64;
    IndexMap::from([
        ("weights".to_string(), bytes(VALUE * weights)),
        ("cache".to_string(), bytes(cache)),
        ("activations".to_string(), bytes(VALUE * job.tokens() * wide)),
        ("context".to_string(), bytes(driver(job))),
    ])
}
