//! Automatic differentiation: stored gradients and AdamW steps of a public implementation, differences of random
//! models, and recomputation that changes nothing.

use lapidary_models::autodiff::labels::next_tokens;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::optimizer::{AdamW, Decay};
use lapidary_models::spec::Activation;
use lapidary_models::testing::specs;
use lapidary_models::{Dims, ModelSpec};
use lapidary_tests::checkpoint::{STORED, Stored, random_params};
use lapidary_tests::oracle::{Batch, Optimizer, Oracle, Params, Real, Step, global_norm};
use proptest::prelude::*;

/// A batch whose labels are its own next ids.
struct Tokens {
    ids: Vec<Vec<u32>>,
    labels: Vec<Vec<i32>>,
}

impl Tokens {
    fn of(ids: &[Vec<u32>]) -> Tokens {
        Tokens { ids: ids.to_vec(), labels: ids.iter().map(|ids| next_tokens(ids)).collect() }
    }

    fn dims(&self) -> Dims {
        Dims { batch: self.ids.len() as u64, seq: self.ids[0].len() as u64, cached: 0 }
    }

    fn step<T: Real>(&self, spec: &ModelSpec, params: &Params<T>, policy: &Policy) -> Step<T> {
        let training = training(spec, self.dims(), policy).unwrap();
        let oracle = Oracle { graph: &training.graph, params };
        oracle.step(Batch { ids: &self.ids, labels: &self.labels })
    }
}

const NOTHING_AGAIN: Policy = Policy::Uniform(Recompute::None);

fn assert_stored_gradients<T: Real>(name: &'static str, tolerance: f64) {
    let stored = Stored::open(name);
    let step = Tokens::of(&stored.ids).step(&stored.spec, &stored.params::<T>(&stored.spec), &NOTHING_AGAIN);
    let loss = stored.json("meta.json")["loss"].as_f64().unwrap();
    assert!((step.loss - loss).abs() < 1e-5, "{name}: loss {} for {loss}", step.loss);
    let wanted = stored.gradients();
    assert_eq!(step.gradients.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{name}");
    for (param, wanted) in &wanted {
        let largest = wanted.data.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        let difference = step.gradients[param].max_abs_diff(wanted);
        assert!(difference <= tolerance * largest, "{name} {param}: {difference:e} of {largest:e}");
    }
}

#[test]
fn every_stored_gradient_is_reproduced_in_f64() {
    STORED.iter().for_each(|name| assert_stored_gradients::<f64>(name, 1e-5));
}

#[test]
fn every_stored_gradient_is_reproduced_in_f32() {
    STORED.iter().for_each(|name| assert_stored_gradients::<f32>(name, 1e-4));
}

/// The optimizer of a stored directory's `meta.json`.
fn settings(meta: &serde_json::Value) -> AdamW {
    let settings = &meta["adamw"]["settings"];
    let number = |key: &str| settings[key].as_f64().unwrap();
    AdamW {
        lr: number("lr"),
        beta1: number("beta1"),
        beta2: number("beta2"),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        clip: Some(number("clip")),
        decay: if settings["decay_all"].as_bool().unwrap() { Decay::All } else { Decay::Matrices },
    }
}

fn assert_stored_steps<T: Real>(name: &'static str, tolerance: f64) {
    let stored = Stored::open(name);
    let meta = stored.json("meta.json");
    let settings = settings(&meta);
    let list = |key: &str| -> Vec<f64> {
        meta["adamw"][key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let (losses, norms) = (list("losses"), list("grad_norms"));
    let tokens = Tokens::of(&stored.ids);
    let mut params = stored.params::<T>(&stored.spec);
    let mut optimizer = Optimizer::new(settings, settings.updates(&stored.spec));
    for (i, loss) in losses.iter().enumerate() {
        let step = tokens.step(&stored.spec, &params, &NOTHING_AGAIN);
        assert!((step.loss - loss).abs() < tolerance, "{name} step {i}: {} for {loss}", step.loss);
        let Some(norm) = norms.get(i) else { break };
        let found = optimizer.step(&mut params, &step.gradients);
        assert!((found / norm - 1.0).abs() < tolerance, "{name} step {i}: norm {found} for {norm}");
    }
}

#[test]
fn stored_adamw_steps_are_reproduced_in_f64() {
    STORED.iter().for_each(|name| assert_stored_steps::<f64>(name, 1e-4));
}

#[test]
fn stored_adamw_steps_are_reproduced_in_f32() {
    STORED.iter().for_each(|name| assert_stored_steps::<f32>(name, 1e-3));
}

/// Random ids below the vocabulary; every third label does not count.
fn tokens(spec: &ModelSpec, batch: usize, seq: usize, seed: u64) -> Tokens {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % spec.vocab
    };
    let ids: Vec<Vec<u32>> = (0..batch).map(|_| (0..seq).map(|_| next() as u32).collect()).collect();
    let label = |i: usize, id: u64| if i % 3 == 2 { -1 } else { id as i32 };
    let labels = (0..batch).map(|_| (0..seq).map(|i| label(i, next())).collect()).collect();
    Tokens { ids, labels }
}

fn moved(params: &Params<f64>, name: &str, direction: &[f64], by: f64) -> Params<f64> {
    let mut params = params.clone();
    let tensor = params.get_mut(name).unwrap();
    tensor.data.iter_mut().zip(direction).for_each(|(w, d)| *w += by * d);
    params
}

/// The specification with multipliers that keep the loss from saturating, where no gradient is left to test.
fn tame(mut spec: ModelSpec) -> ModelSpec {
    spec.multipliers.embedding = spec.multipliers.embedding.min(2.0);
    spec.multipliers.logits = spec.multipliers.logits.min(0.5);
    spec
}

/// Along each parameter's gradient and a random direction, the loss changes as the gradient says.
fn assert_differences(spec: &ModelSpec, tokens: &Tokens, seed: u64) {
    let params = random_params::<f64>(spec, seed);
    let noise = random_params::<f64>(spec, seed ^ 0x5eed);
    let step = tokens.step(spec, &params, &NOTHING_AGAIN);
    assert_eq!(step.gradients.keys().collect::<Vec<_>>(), params.keys().collect::<Vec<_>>());
    let whole = global_norm(&step.gradients);
    let tolerance = if spec.mlp.act == Activation::Relu { 1e-2 } else { 1e-4 };
    for (name, gradient) in &step.gradients {
        let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (own, other) = (length(&gradient.data), length(&noise[name].data));
        let unit = |x: f64, length: f64| if length > 0.0 { x / length } else { 0.0 };
        let pairs = gradient.data.iter().zip(&noise[name].data);
        let direction: Vec<f64> = pairs.map(|(g, r)| unit(*g, own) + unit(*r, other)).collect();
        let h = 1e-6;
        let loss = |by: f64| tokens.step(spec, &moved(&params, name, &direction, by), &NOTHING_AGAIN).loss;
        let difference = (loss(h) - loss(-h)) / (2.0 * h);
        let told: f64 = gradient.data.iter().zip(&direction).map(|(g, d)| g * d).sum();
        // Logits of some hundred leave 1e-13 of rounding in each loss, and twice h is 2e-6.
        let allowed = tolerance * (own + told.abs()) + 1e-6 * (1.0 + whole + step.loss);
        assert!(
            (difference - told).abs() <= allowed,
            "{name}: {difference:e} for {told:e} of {own:e}\n{spec:?}"
        );
    }
}

/// A policy for every layer, drawn from the seed.
fn mixed(layers: u64, seed: u64) -> Policy {
    Policy::PerLayer((0..layers).map(|layer| Recompute::ALL[((seed >> (2 * layer)) % 3) as usize]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_the_differences_of_the_loss(spec in specs(), batch in 1usize..3, seq in 1usize..8, seed: u64) {
        let tokens = tokens(&spec, batch, seq.min(spec.max_seq as usize), seed);
        assert_differences(&tame(spec), &tokens, seed);
    }

    /// Not a bit changes, in f32 as in f64, and no layer keeps more.
    #[test]
    fn recomputation_changes_no_gradient(spec in specs(), seq in 1usize..12, seed: u64) {
        let tokens = tokens(&spec, 2, seq.min(spec.max_seq as usize), seed);
        let params = random_params::<f32>(&spec, seed);
        let plain = tokens.step(&spec, &params, &NOTHING_AGAIN);
        let selective = Policy::Uniform(Recompute::Selective);
        let full = Policy::Uniform(Recompute::Full);
        let mut kept = plain.kept;
        for policy in [selective, full, mixed(spec.n_layers, seed)] {
            let step = tokens.step(&spec, &params, &policy);
            prop_assert_eq!(step.loss, plain.loss);
            prop_assert!(step.gradients == plain.gradients, "{:?}", policy);
            match policy {
                Policy::Uniform(_) => prop_assert!(step.kept < kept, "{:?} keeps {} of {}", policy, step.kept, kept),
                Policy::PerLayer(_) => prop_assert!(step.kept <= plain.kept),
            }
            kept = kept.min(step.kept);
        }
    }
}
