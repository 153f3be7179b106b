//! `verify --grads`: gradients and optimizer steps of a device against the stored ones.
//!
//! `grads.safetensors` holds the derivative of the loss by every parameter in the checkpoint's own names and layouts;
//! `meta.json` the losses and gradient norms of some steps of AdamW, with its settings.

use super::check::LossCheck;
use super::directory::Directory;
use crate::args::Device;
use crate::failure::{Exit, Failure};
use crate::host::{self, Switches};
use crate::weights::{self, Opened};
use crate::{input, memory, show};
use lapidary_models::autodiff::labels::next_tokens;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::optimizer::{AdamW, Decay, ParamUpdate};
use lapidary_models::{Dims, Graph, Slot};
use lapidary_reference::{Batch, Optimizer, Oracle, Params, Tensor};
use lapidary_runtime_cpu::train::Trainer;
use lapidary_runtime_cpu::{Engine, LoadOptions};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Largest difference of a gradient over its largest value; the stored implementations' f32 gap stays below 5e-6.
pub const TOLERANCE: f64 = 1e-4;
/// A gradient that is zero but for rounding, as that of a key's bias without positions (softmax does not see what all keys
/// share), has no largest value to be measured by. Up to this share of the largest gradient of all a stored gradient
/// counts as such, and may be off by as much: sixteen units of f32's rounding.
pub const ROUNDING: f64 = 1e-6;
/// Difference of losses and relative difference of norms along the steps.
pub const STEP_TOLERANCE: f64 = 1e-3;

/// What helps where gradients do not fit.
const SMALLER: &str = "verify a smaller model, or without --grads";

/// The comparison of one gradient.
#[derive(Clone, Debug, Serialize)]
pub struct GradientCheck {
    /// Canonical name of the parameter.
    pub name: String,
    /// Largest absolute difference; none where the device has values that are no numbers.
    pub max_abs: Option<f64>,
    /// That over the largest stored value.
    pub of_largest: Option<f64>,
    /// Whether it is within the tolerance.
    pub ok: bool,
}

/// The comparison of one optimizer step.
#[derive(Clone, Debug, Serialize)]
pub struct StepCheck {
    /// Steps taken before.
    pub step: usize,
    /// Loss.
    pub loss: f64,
    /// Stored loss.
    pub stored_loss: f64,
    /// Norm of all gradients; none for the last loss.
    pub norm: Option<f64>,
    /// Stored norm.
    pub stored_norm: Option<f64>,
    /// Whether both are within the tolerance.
    pub ok: bool,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct GradientChecks {
    /// What the backward pass computed again: `none`, `selective`, `full`.
    pub recompute: &'static str,
    /// The loss that was differentiated.
    pub loss: Option<LossCheck>,
    /// Every gradient, by name.
    pub tensors: Vec<GradientCheck>,
    /// Every stored step of AdamW; empty where none is stored.
    pub steps: Vec<StepCheck>,
    /// Whether nothing differs.
    pub ok: bool,
}

/// How the device is made.
pub struct Making<'a> {
    /// Reference or host.
    pub device: Device,
    /// What the compiler may do; muP's multipliers always stay ops.
    pub switches: &'a Switches,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Threads.
    pub jobs: usize,
}

/// `meta.json`, as far as training is concerned.
#[derive(Default, Deserialize)]
struct Meta {
    adamw: Option<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    settings: Settings,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip: Option<f64>,
    #[serde(default)]
    decay_all: bool,
}

impl Settings {
    fn adamw(&self) -> AdamW {
        let Settings { lr, beta1, beta2, eps, weight_decay, clip, decay_all } = *self;
        let decay = if decay_all { Decay::All } else { Decay::Matrices };
        AdamW { lr, beta1, beta2, eps, weight_decay, clip, decay }
    }
}

/// Something that computes losses and gradients of the stored batch and can step.
pub trait Learner {
    /// The loss, and the gradient of every parameter.
    ///
    /// # Errors
    /// What the device says.
    fn gradients(&mut self) -> Result<(f64, Params<f64>), Failure>;
    /// Steps by the gradients computed last; returns their norm.
    ///
    /// # Errors
    /// What the device says.
    fn step(&mut self, settings: &AdamW, updates: &[ParamUpdate]) -> Result<f64, Failure>;
}

/// Compares the gradients of a directory, and its optimizer steps.
///
/// # Errors
/// Exit 3 for files that are not of the form, 5 for what the device does not train.
pub fn check(
    directory: &Directory,
    weights: &Opened<'_>,
    making: &Making<'_>,
) -> Result<GradientChecks, Failure> {
    there(directory)?;
    let mut learner = learner(directory, weights, making)?;
    compare_all(directory, making.recompute, learner.as_mut())
}

fn there(directory: &Directory) -> Result<PathBuf, Failure> {
    let path = directory.folder.join("grads.safetensors");
    if !path.is_file() {
        let what = format!("{}: not there, so there are no gradients to compare", path.display());
        return Err(Failure::new(Exit::InvalidInput, what));
    }
    Ok(path)
}

/// Compares what a learner computes with the gradients of a directory, and its optimizer steps.
///
/// # Errors
/// As [`check`].
pub fn compare_all(
    directory: &Directory,
    recompute: Recompute,
    learner: &mut dyn Learner,
) -> Result<GradientChecks, Failure> {
    let path = there(directory)?;
    let stored: Params<f64> = weights::with(&path, &directory.spec, |opened| opened.params())?;
    let meta = directory.folder.join("meta.json");
    let meta: Meta = match meta.is_file() {
        true => input::json(&input::read(&meta)?)
            .map_err(|what| Failure::new(Exit::InvalidInput, format!("{}: {what}", meta.display())))?,
        false => Meta::default(),
    };
    let (found, gradients) = learner.gradients()?;
    let rounding = ROUNDING * stored.values().map(largest).fold(0.0, f64::max);
    let tensors: Vec<GradientCheck> =
        stored.iter().map(|(name, stored)| compare(name, stored, gradients.get(name), rounding)).collect();
    let loss = directory.meta.loss.map(|expected| {
        let tolerance = STEP_TOLERANCE.min(TOLERANCE * expected.abs().max(1.0));
        LossCheck { expected, found, tolerance, ok: (found - expected).abs() <= tolerance }
    });
    let steps = match &meta.adamw {
        Some(stored) => steps(directory, learner, stored)?,
        None => Vec::new(),
    };
    let ok = tensors.iter().all(|tensor| tensor.ok)
        && loss.is_none_or(|loss| loss.ok)
        && steps.iter().all(|step| step.ok);
    Ok(GradientChecks { recompute: recompute.name(), loss, tensors, steps, ok })
}

fn largest(stored: &Tensor<f64>) -> f64 {
    stored.data.iter().fold(f64::MIN_POSITIVE, |max, x| max.max(x.abs()))
}

/// Holds a gradient against the stored one; `rounding` is what one that is zero may be.
fn compare(name: &str, stored: &Tensor<f64>, found: Option<&Tensor<f64>>, rounding: f64) -> GradientCheck {
    let largest = largest(stored);
    let worst = found
        .filter(|found| found.shape == stored.shape)
        .map_or(f64::NAN, |found| found.max_abs_diff(stored));
    let finite = |x: f64| x.is_finite().then_some(x);
    GradientCheck {
        name: name.into(),
        max_abs: finite(worst),
        of_largest: finite(worst / largest),
        ok: worst <= if largest <= rounding { rounding } else { TOLERANCE * largest },
    }
}

fn steps(
    directory: &Directory,
    learner: &mut dyn Learner,
    stored: &Stored,
) -> Result<Vec<StepCheck>, Failure> {
    let settings = stored.settings.adamw();
    let updates = settings.updates(&directory.spec);
    let mut checks = Vec::new();
    for (step, stored_loss) in stored.losses.iter().copied().enumerate() {
        let (loss, _) = learner.gradients()?;
        let stored_norm = stored.grad_norms.get(step).copied();
        let norm = stored_norm.map(|_| learner.step(&settings, &updates)).transpose()?;
        let near = |found: f64, stored: f64| (found - stored).abs() <= STEP_TOLERANCE * stored.abs();
        let norms = norm.zip(stored_norm).is_none_or(|(found, stored)| near(found, stored));
        let ok = (loss - stored_loss).abs() <= STEP_TOLERANCE && norms;
        checks.push(StepCheck { step, loss, stored_loss, norm, stored_norm, ok });
    }
    Ok(checks)
}

fn learner<'a>(
    directory: &'a Directory,
    weights: &Opened<'_>,
    making: &Making<'_>,
) -> Result<Box<dyn Learner + 'a>, Failure> {
    let ids = &directory.ids;
    let labels: Vec<Vec<i32>> = ids.iter().map(|ids| next_tokens(ids)).collect();
    let dims = Dims { batch: ids.len() as u64, seq: ids[0].len() as u64, cached: 0 };
    let graph = training(&directory.spec, dims, &Policy::Uniform(making.recompute))
        .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?
        .graph;
    if making.device != Device::Cpu {
        // Weights, gradients and two moments of eight bytes each, and what the layers keep.
        let bytes = |slot: &Slot| slot.ty.elements().saturating_mul(8 * slot.times);
        let kept = graph.slots.iter().map(bytes).fold(0, u64::saturating_add);
        let classes =
            [("weights and optimizer", graph.parameters().saturating_mul(32)), ("kept_activations", kept)];
        memory::check(&format!("the reference of {}", directory.spec.name), &classes, SMALLER)?;
        let (params, gradients) = (weights.params::<f64>()?, Params::new());
        return Ok(Box::new(Interpreted { ids, labels, graph, params, gradients, optimizer: None }));
    }
    let program = host::lower_training(&directory.spec, &graph, &making.switches.fusion)?;
    let kept = program.kept_bytes_per_token().saturating_mul(dims.tokens());
    let classes =
        [("weights and optimizer", graph.parameters().saturating_mul(16)), ("kept_activations", kept)];
    memory::check(&format!("training {}", directory.spec.name), &classes, SMALLER)?;
    let options = LoadOptions { jobs: making.jobs, engine: Engine::Compiled, ..LoadOptions::default() };
    let trainer = Trainer::load(program, weights, options)
        .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?;
    let shapes = weights.params::<f32>()?.into_iter().map(|(name, tensor)| (name, tensor.shape)).collect();
    Ok(Box::new(Host { ids, labels, trainer, shapes }))
}

/// The reference interpreter.
struct Interpreted<'a> {
    ids: &'a [Vec<u32>],
    labels: Vec<Vec<i32>>,
    graph: Graph,
    params: Params<f64>,
    gradients: Params<f64>,
    optimizer: Option<Optimizer<f64>>,
}

impl Learner for Interpreted<'_> {
    fn gradients(&mut self) -> Result<(f64, Params<f64>), Failure> {
        let oracle = Oracle { graph: &self.graph, params: &self.params };
        let step = oracle.step(Batch { ids: self.ids, labels: &self.labels });
        self.gradients.clone_from(&step.gradients);
        Ok((step.loss, step.gradients))
    }

    fn step(&mut self, settings: &AdamW, updates: &[ParamUpdate]) -> Result<f64, Failure> {
        let optimizer = self.optimizer.get_or_insert_with(|| Optimizer::new(*settings, updates.to_vec()));
        Ok(optimizer.step(&mut self.params, &self.gradients))
    }
}

/// The host's program.
struct Host<'a> {
    ids: &'a [Vec<u32>],
    labels: Vec<Vec<i32>>,
    trainer: Trainer,
    shapes: std::collections::BTreeMap<String, Vec<usize>>,
}

impl Learner for Host<'_> {
    fn gradients(&mut self) -> Result<(f64, Params<f64>), Failure> {
        let ids: Vec<&[u32]> = self.ids.iter().map(Vec::as_slice).collect();
        let labels: Vec<&[i32]> = self.labels.iter().map(Vec::as_slice).collect();
        self.trainer.clear();
        let loss = self
            .trainer
            .accumulate(&ids, &labels)
            .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?;
        let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let tensor = |(name, _, gradient): (&str, &[f32], &[f32])| {
            let shape = self.shapes.get(name).cloned().unwrap_or_else(|| vec![gradient.len()]);
            (name.to_string(), Tensor::new(shape, wide(gradient)))
        };
        Ok((loss, self.trainer.weights().map(tensor).collect()))
    }

    fn step(&mut self, settings: &AdamW, updates: &[ParamUpdate]) -> Result<f64, Failure> {
        self.trainer
            .update(settings, updates)
            .map_err(|error| Failure::new(Exit::Internal, error.to_string()))
    }
}

impl GradientChecks {
    /// The first gradient that differs.
    pub fn first_difference(&self) -> Option<&GradientCheck> {
        self.tensors.iter().find(|tensor| !tensor.ok)
    }

    /// The same for people.
    pub fn print(&self) {
        let number = |x: Option<f64>| x.map_or_else(|| "not finite".into(), |x| format!("{x:.2e}"));
        let word = |ok: bool| if ok { "ok" } else { "DIFFERS" }.to_string();
        let rows = self.tensors.iter().map(|t| {
            vec![
                t.name.clone(),
                number(t.max_abs),
                number(t.of_largest),
                format!("{TOLERANCE:.0e}"),
                word(t.ok),
            ]
        });
        let header = ["gradient", "max |difference|", "of the largest", "tolerance", ""];
        println!("recomputation {}\n{}", self.recompute, show::table(&header, &[1, 2, 3], rows));
        let figure = |x: Option<f64>| x.map_or_else(String::new, |x| format!("{x:.6}"));
        let rows = self.steps.iter().map(|s| {
            vec![
                s.step.to_string(),
                format!("{:.6}", s.loss),
                format!("{:.6}", s.stored_loss),
                figure(s.norm),
                figure(s.stored_norm),
                word(s.ok),
            ]
        });
        if !self.steps.is_empty() {
            let header = ["AdamW steps", "loss", "stored", "gradient norm", "stored", ""];
            println!("{}", show::table(&header, &[0, 1, 2, 3, 4], rows));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(data: &[f64]) -> Tensor<f64> {
        Tensor { shape: vec![data.len()], data: data.to_vec() }
    }

    #[test]
    fn what_is_zero_but_for_rounding_is_held_to_rounding() {
        let ok = |stored: &[f64], found: &[f64]| compare("g", &tensor(stored), Some(&tensor(found)), 1e-6).ok;
        assert!(ok(&[2e-17, -1e-17], &[3e-8, -9e-7]));
        assert!(!ok(&[2e-17, -1e-17], &[3e-8, -2e-6]));
        assert!(ok(&[0.01, 0.5], &[0.01, 0.50004]));
        assert!(!ok(&[0.01, 0.5], &[0.01, 0.50006]));
        assert!(!ok(&[2e-5, 1e-5], &[2e-5, 1.1e-5]), "small is not zero");
        assert!(!compare("g", &tensor(&[1.0]), None, 1e-6).ok);
    }
}
