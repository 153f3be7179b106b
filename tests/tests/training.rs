//! Training on the host against the reference interpreter and stored gradients: the same graph through kernels.

use lapidary_ir::{IrContext, import};
use lapidary_models::autodiff::labels::next_tokens;
use lapidary_models::autodiff::{Policy, Recompute, Training, training};
use lapidary_models::optimizer::{AdamW, Decay};
use lapidary_models::testing::specs;
use lapidary_models::{DType, Dims, ModelSpec, Op};
use lapidary_passes::cpu::{HostFunction, TrainModule, lower_train};
use lapidary_passes::fusion::{self, Rules, Step as FusionStep};
use lapidary_passes::lower_to_cpu::emit_cpu_training;
use lapidary_passes::pipeline::pipeline;
use lapidary_passes::{Fusion, Goal, Mup, Watch, run};
use lapidary_runtime_cpu::program::train::{TrainProgram, TrainStep};
use lapidary_runtime_cpu::train::Trainer;
use lapidary_runtime_cpu::{Engine, LoadOptions, TensorView, WeightError, Weights};
use lapidary_tests::checkpoint::{STORED, Stored, random_params};
use lapidary_tests::oracle::{Batch, Oracle, Params};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Parameters of the reference as a source of weights.
struct Given<'a>(&'a Params<f64>);

impl Weights for Given<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let tensor = self.0.get(name).ok_or_else(|| WeightError::Missing { name: name.into() })?;
        let bytes: Vec<u8> = tensor.data.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        let shape = tensor.shape.iter().map(|n| *n as u64).collect();
        Ok(TensorView { dtype: DType::F32, shape, bytes: bytes.into() })
    }
}

fn fused(host: &HostFunction, rules: &Rules) -> HostFunction {
    let plan = fusion::plan(&host.function, rules);
    let kernel = |step: &FusionStep| match *step {
        FusionStep::Region(region) => Some(plan.regions[region].nodes.clone()),
        FusionStep::Keep(n) => (!matches!(host.function.nodes[n].op, Op::Param { .. })).then(|| vec![n]),
    };
    HostFunction { kernels: plan.steps.iter().filter_map(kernel).collect(), ..host.clone() }
}

fn module(spec: &ModelSpec, training: &Training, rules: &Rules) -> TrainModule {
    let plain = TrainModule::unfused(spec, training);
    TrainModule { functions: plain.functions.iter().map(|host| fused(host, rules)).collect(), ..plain }
}

fn program(spec: &ModelSpec, dims: Dims, policy: &Policy, rules: &Rules) -> TrainProgram {
    let training = training(spec, dims, policy).unwrap();
    let program = lower_train(&module(spec, &training, rules)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(TrainProgram::from_json(&program.to_json()).unwrap(), program);
    program
}

fn trainer(program: TrainProgram, params: &Params<f64>, jobs: usize, engine: Engine) -> Trainer {
    let checked = program.check().unwrap_or_else(|faults| panic!("{faults}"));
    Trainer::load(checked, &Given(params), LoadOptions { jobs, engine, ..LoadOptions::default() }).unwrap()
}

/// Largest difference of each gradient over the largest value of the wanted one.
fn worst(trainer: &Trainer, wanted: &Params<f64>) -> BTreeMap<String, f64> {
    let found: BTreeMap<&str, &[f32]> =
        trainer.weights().map(|(name, _, gradient)| (name, gradient)).collect();
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        wanted.keys().map(String::as_str).collect::<Vec<_>>()
    );
    let of = |(name, wanted): (&String, &lapidary_tests::oracle::Tensor<f64>)| {
        let largest = wanted.data.iter().fold(1e-30f64, |max, x| max.max(x.abs()));
        let pairs = found[name.as_str()].iter().zip(&wanted.data);
        let difference = pairs.map(|(a, b)| (f64::from(*a) - b).abs());
        (name.clone(), difference.fold(0.0, |max: f64, x| if x.is_nan() { x } else { max.max(x) }) / largest)
    };
    wanted.iter().map(of).collect()
}

/// The same program through the IR: import, passes, emission.
fn compiled(spec: &ModelSpec, dims: Dims, policy: &Policy, fusion: &Fusion) -> TrainProgram {
    let training = training(spec, dims, policy).unwrap();
    let cx = IrContext::new();
    let mut module = import(&cx, &training.graph).unwrap_or_else(|error| panic!("{error}"));
    let passes = pipeline(Goal::Cpu, Mup::Keep, fusion).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{error}"));
    let program = emit_cpu_training(&module, spec).unwrap_or_else(|error| panic!("{error}"));
    program.into_inner()
}

const POLICIES: [Recompute; 3] = Recompute::ALL;

#[test]
fn every_stored_gradient_is_reproduced_on_the_host() {
    for name in STORED {
        let stored = Stored::open(name);
        let params = stored.params::<f64>(&stored.spec);
        let labels: Vec<Vec<i32>> = stored.ids.iter().map(|ids| next_tokens(ids)).collect();
        let ids: Vec<&[u32]> = stored.ids.iter().map(Vec::as_slice).collect();
        let labels: Vec<&[i32]> = labels.iter().map(Vec::as_slice).collect();
        let dims = Dims { batch: ids.len() as u64, seq: ids[0].len() as u64, cached: 0 };
        let (wanted, loss) = (stored.gradients(), stored.json("meta.json")["loss"].as_f64().unwrap());
        for (policy, rules, engine) in [
            (POLICIES[0], Rules::none(), Engine::Interpreted),
            (POLICIES[0], Rules::all(), Engine::Compiled),
            (POLICIES[1], Rules::all(), Engine::Compiled),
            (POLICIES[2], Rules::all(), Engine::Compiled),
            (POLICIES[2], Rules::none(), Engine::Compiled),
        ] {
            let program = program(&stored.spec, dims, &Policy::Uniform(policy), &rules);
            let mut trainer = trainer(program, &params, 2, engine);
            let found = trainer.accumulate(&ids, &labels).unwrap();
            assert!((found - loss).abs() < 1e-4, "{name} {policy:?}: loss {found} for {loss}");
            for (param, error) in worst(&trainer, &wanted) {
                assert!(error <= 1e-4, "{name} {policy:?} {rules:?} {param}: {error:e} of the largest");
            }
        }
    }
}

#[test]
fn stored_adamw_steps_are_reproduced_on_the_host() {
    for name in STORED {
        let stored = Stored::open(name);
        let meta = stored.json("meta.json")["adamw"].clone();
        let number = |key: &str| meta["settings"][key].as_f64().unwrap();
        let decay_all = meta["settings"]["decay_all"].as_bool().unwrap();
        let settings = AdamW {
            lr: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            clip: Some(number("clip")),
            decay: if decay_all { Decay::All } else { Decay::Matrices },
        };
        let list = |key: &str| -> Vec<f64> {
            meta[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let ids: Vec<&[u32]> = stored.ids.iter().map(Vec::as_slice).collect();
        let labels: Vec<Vec<i32>> = stored.ids.iter().map(|ids| next_tokens(ids)).collect();
        let labels: Vec<&[i32]> = labels.iter().map(Vec::as_slice).collect();
        let dims = Dims { batch: ids.len() as u64, seq: ids[0].len() as u64, cached: 0 };
        let program = program(&stored.spec, dims, &Policy::Uniform(Recompute::Selective), &Rules::all());
        let mut trainer = trainer(program, &stored.params(&stored.spec), 2, Engine::Compiled);
        let updates = settings.updates(&stored.spec);
        let norms = list("grad_norms");
        for (i, loss) in list("losses").into_iter().enumerate() {
            trainer.clear();
            let found = trainer.accumulate(&ids, &labels).unwrap();
            assert!((found - loss).abs() < 1e-3, "{name} step {i}: {found} for {loss}");
            let Some(norm) = norms.get(i) else { break };
            let found = trainer.update(&settings, &updates).unwrap();
            assert!((found / norm - 1.0).abs() < 1e-3, "{name} step {i}: norm {found} for {norm}");
        }
    }
}

/// Import, passes and emission from the IR give what plain graphs give.
#[test]
fn stored_gradients_come_out_of_the_ir() {
    for name in STORED {
        let stored = Stored::open(name);
        let params = stored.params::<f64>(&stored.spec);
        let labels: Vec<Vec<i32>> = stored.ids.iter().map(|ids| next_tokens(ids)).collect();
        let ids: Vec<&[u32]> = stored.ids.iter().map(Vec::as_slice).collect();
        let labels: Vec<&[i32]> = labels.iter().map(Vec::as_slice).collect();
        let dims = Dims { batch: ids.len() as u64, seq: ids[0].len() as u64, cached: 0 };
        let wanted = stored.gradients();
        for (policy, fusion) in
            [(POLICIES[0], Fusion::Off), (POLICIES[1], Fusion::On), (POLICIES[2], Fusion::On)]
        {
            let made = compiled(&stored.spec, dims, &Policy::Uniform(policy), &fusion);
            let mut trainer = trainer(made, &params, 2, Engine::Compiled);
            trainer.accumulate(&ids, &labels).unwrap();
            for (param, error) in worst(&trainer, &wanted) {
                assert!(error <= 1e-4, "{name} {policy:?} {param}: {error:e} of the largest");
            }
        }
    }
}

/// A model of each family, layers of several policies among them, has a training program with every weight in it.
#[test]
fn a_model_of_each_family_has_a_training_program() {
    let dims = Dims { batch: 1, seq: 16, cached: 0 };
    for name in ["amber", "crystalcoder", "pythia-6.9b", "gpt-j-6b", "jais-13b", "cerebras-gpt-111m"] {
        let spec = lapidary_models::builtin(name).unwrap();
        let mixed = (0..spec.n_layers).map(|layer| POLICIES[usize::from(layer % 2 == 0)]).collect();
        let few = Policy::PerLayer(mixed);
        for policy in [Policy::Uniform(Recompute::Selective), few] {
            let made = compiled(&spec, dims, &policy, &Fusion::On);
            let parameters = made
                .parameters
                .iter()
                .map(|p| p.shape.iter().product::<u64>() * if p.per_layer { made.model.layers } else { 1 });
            assert_eq!(parameters.sum::<u64>(), spec.parameters(), "{name}");
        }
    }
}

/// A fused layer of Amber: no matrix of scores, no gradient that is not added where it belongs.
#[test]
fn a_fused_backward_pass_streams_attention() {
    let spec = lapidary_models::builtin("amber").unwrap();
    let dims = Dims { batch: 1, seq: 64, cached: 0 };
    let made = program(&spec, dims, &Policy::Uniform(Recompute::Selective), &Rules::all());
    assert!(made.buffers.iter().all(|buffer| !buffer.scores));
    let bodies: Vec<&Vec<TrainStep>> = made
        .body
        .iter()
        .filter_map(|step| match step {
            TrainStep::Repeat { body, .. } => Some(body),
            _ => None,
        })
        .collect();
    let [forward, backward] = bodies[..] else { panic!("two passes over the layers") };
    let count =
        |steps: &[TrainStep], wanted: fn(&TrainStep) -> bool| steps.iter().filter(|s| wanted(s)).count();
    assert_eq!(count(forward, |s| matches!(s, TrainStep::Attention { .. })), 1);
    assert_eq!(count(backward, |s| matches!(s, TrainStep::AttentionBackward { .. })), 1);
    assert_eq!(count(backward, |s| matches!(s, TrainStep::WeightGradient { .. })), 7);
    assert_eq!(count(backward, |s| matches!(s, TrainStep::ColumnGradient { .. })), 2);
    // 4 bytes of each value that the f32 host keeps: 8 of the model's width and 4 of the inner one.
    assert_eq!(made.kept_bytes_per_token(), 32 * 4 * (8 * 4096 + 4 * 11008));
}

fn ids(vocab: u64, batch: usize, seq: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab) as u32
    };
    (0..batch).map(|_| (0..seq).map(|_| next()).collect()).collect()
}

/// Multipliers under which 32 bits still resolve the loss.
fn tame(mut spec: ModelSpec) -> ModelSpec {
    spec.multipliers.embedding = spec.multipliers.embedding.min(2.0);
    spec.multipliers.logits = spec.multipliers.logits.min(0.5);
    spec
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn random_models_train_as_the_reference_does(
        spec in specs(), batch in 1usize..4, seq in 1usize..70, seed: u64, fuse: bool, compiled: bool, policy in 0usize..4
    ) {
        let spec = tame(spec);
        let seq = seq.min(spec.max_seq as usize);
        let dims = Dims { batch: batch as u64, seq: seq as u64, cached: 0 };
        let policy = match POLICIES.get(policy) {
            Some(policy) => Policy::Uniform(*policy),
            None => Policy::PerLayer((0..spec.n_layers).map(|layer| POLICIES[(layer % 3) as usize]).collect()),
        };
        let ids = ids(spec.vocab, batch, seq, seed);
        let labels: Vec<Vec<i32>> = ids.iter().map(|ids| next_tokens(ids)).collect();
        prop_assume!(labels.iter().flatten().any(|label| *label >= 0));
        let params = random_params::<f64>(&spec, seed);
        let plain = training(&spec, dims, &Policy::Uniform(Recompute::None)).unwrap();
        let step = Oracle { graph: &plain.graph, params: &params }.step(Batch { ids: &ids, labels: &labels });
        let rules = if fuse { Rules::all() } else { Rules::none() };
        let engine = if compiled { Engine::Compiled } else { Engine::Interpreted };
        let mut trainer = trainer(program(&spec, dims, &policy, &rules), &params, 2, engine);
        let (ids, labels): (Vec<&[u32]>, Vec<&[i32]>) =
            (ids.iter().map(Vec::as_slice).collect(), labels.iter().map(Vec::as_slice).collect());
        let loss = trainer.accumulate(&ids, &labels).unwrap();
        prop_assert!((loss - step.loss).abs() <= 1e-3 * step.loss.abs().max(1.0), "{} for {}", loss, step.loss);
        let whole = step.gradients.values().flat_map(|t| &t.data).fold(0.0f64, |max, x| max.max(x.abs()));
        let found: BTreeMap<&str, &[f32]> = trainer.weights().map(|(name, _, g)| (name, g)).collect();
        for (name, wanted) in &step.gradients {
            let difference = found[name.as_str()].iter().zip(&wanted.data).map(|(a, b)| (f64::from(*a) - b).abs());
            let difference = difference.fold(0.0, f64::max);
            prop_assert!(difference <= 2e-3 * whole.max(1e-6), "{name}: {difference:e} of {whole:e}");
        }
    }

    /// The number of threads changes no bit.
    #[test]
    fn threads_change_nothing(spec in specs(), seed: u64) {
        let spec = tame(spec);
        let seq = 33.min(spec.max_seq as usize);
        let dims = Dims { batch: 3, seq: seq as u64, cached: 0 };
        let params = random_params::<f64>(&spec, seed);
        let ids = ids(spec.vocab, 3, seq, seed);
        let labels: Vec<Vec<i32>> = ids.iter().map(|ids| next_tokens(ids)).collect();
        let (ids, labels): (Vec<&[u32]>, Vec<&[i32]>) =
            (ids.iter().map(Vec::as_slice).collect(), labels.iter().map(Vec::as_slice).collect());
        let run = |jobs: usize| {
            let program = program(&spec, dims, &Policy::Uniform(Recompute::Selective), &Rules::all());
            let mut trainer = trainer(program, &params, jobs, Engine::Compiled);
            let loss = trainer.accumulate(&ids, &labels).unwrap();
            let gradients: Vec<Vec<u32>> =
                trainer.weights().map(|(_, _, g)| g.iter().map(|x| x.to_bits()).collect()).collect();
            (loss.to_bits(), gradients)
        };
        prop_assert!(run(1) == run(3));
    }
}
