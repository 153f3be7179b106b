//! A model spread over ranks gives what the whole model gives, for every form of model and every degree.

use lapidary_models::autodiff::labels::next_tokens;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::shard::schedule::{Form, Turn, schedule};
use lapidary_models::shard::{Degrees, Place, Shard, ShardError, Way, shard};
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_reference::{Batch, Cache, Oracle, Params, Ranks, Tensor};
use proptest::prelude::*;

/// Numbers between -1 and 1 for every parameter.
fn params(spec: &ModelSpec, graph: &Graph, seed: u64) -> Params<f64> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let mut values = Params::new();
    for param in &graph.params {
        for layer in 0..if param.per_layer { spec.n_layers } else { 1 } {
            let shape = param.ty.shape.iter().map(|n| *n as usize).collect();
            values.insert(param.name.replace('*', &layer.to_string()), Tensor::build(shape, &mut next));
        }
    }
    values
}

fn ids(spec: &ModelSpec, seq: usize) -> Vec<Vec<u32>> {
    let id = |b: usize, s: usize| ((7 * b + 5 * s + 3) as u64 % spec.vocab) as u32;
    (0..2).map(|b| (0..seq).map(|s| id(b, s)).collect()).collect()
}

fn all(graph: &Graph, degrees: Degrees, way: Way) -> Result<Vec<Vec<Shard>>, ShardError> {
    let one = |tensor, stage| shard(graph, degrees, way, Place { tensor, stage });
    let group = |stage| (0..degrees.tensor).map(|tensor| one(tensor, stage)).collect();
    (0..degrees.pipeline).map(group).collect()
}

fn caches(degrees: Degrees) -> Vec<Vec<Cache<f64>>> {
    (0..degrees.pipeline).map(|_| (0..degrees.tensor).map(|_| Cache::new()).collect()).collect()
}

fn assert_close(found: &[Tensor<f64>], whole: &Tensor<f64>) -> Result<(), TestCaseError> {
    let scale = whole.data.iter().fold(1e-3, |most: f64, x| most.max(x.abs()));
    for rank in found {
        prop_assert_eq!(&rank.shape, &whole.shape);
        let off = rank.max_abs_diff(whole);
        prop_assert!(off <= 1e-9 * scale, "{off:e} of {scale:e}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Every rank of the last stage ends with the logits of the whole model: forward, and prefill with decoding behind it.
    #[test]
    fn the_ranks_together_give_the_whole(spec in specs(), seed in 0u64..1000, tensor in 1u64..6, pipeline in 1u64..4) {
        let degrees = Degrees { tensor, pipeline };
        let dims = Dims { batch: 2, seq: 4, cached: 0 };
        let forward = Graph::build(&spec, Mode::Forward, dims).unwrap();
        let shards = match all(&forward, degrees, Way::default()) {
            Ok(shards) => shards,
            Err(ShardError::Degrees { .. }) => {
                prop_assert!(pipeline > spec.n_layers);
                return Ok(());
            }
            Err(error) => {
                prop_assert!(false, "{error}");
                return Ok(());
            }
        };
        for shard in shards.iter().flatten() {
            prop_assert!(shard.graph.check().is_ok(), "{:?}", shard.graph.check());
        }
        let whole = params(&spec, &forward, seed);
        let prompt = ids(&spec, 4);
        let expected = Oracle { graph: &forward, params: &whole }.run(&prompt, &mut Cache::new()).logits;
        assert_close(&Ranks::new(&shards, &whole).run(&prompt, &mut caches(degrees)), &expected)?;

        let mut kept = (Cache::new(), caches(degrees));
        for (mode, dims, prompt) in [
            (Mode::Prefill, dims, prompt),
            (Mode::Decode, Dims { batch: 2, seq: 1, cached: 4 }, ids(&spec, 1)),
            (Mode::Decode, Dims { batch: 2, seq: 2, cached: 5 }, ids(&spec, 2)),
        ] {
            let graph = Graph::build(&spec, mode, dims).unwrap();
            let expected = Oracle { graph: &graph, params: &whole }.run(&prompt, &mut kept.0).logits;
            let shards = all(&graph, degrees, Way::default()).unwrap();
            assert_close(&Ranks::new(&shards, &whole).run(&prompt, &mut kept.1), &expected)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Loss and gradients of a training step in micro-batches are those of the whole batch on the whole model: for every
    /// number of stages and ranges, with rows shared or not, whatever is computed again.
    #[test]
    fn the_ranks_together_have_the_gradients_of_the_whole(
        spec in specs(), seed in 0u64..1000, tensor in 1u64..5, pipeline in 1u64..4, chunks in 1u64..3,
        rounds in 1u64..3, sequence: bool, policy in 0usize..3,
    ) {
        let (degrees, way) = (Degrees { tensor, pipeline }, Way { chunks, sequence });
        let policy = Policy::Uniform(Recompute::ALL[policy]);
        let micros = pipeline * rounds;
        let dims = Dims { batch: 1, seq: 5, cached: 0 };
        let graph = training(&spec, dims, &policy).unwrap().graph;
        let shards = match all(&graph, degrees, way) {
            Ok(shards) => shards,
            Err(ShardError::Degrees { .. }) => {
                let fits = if chunks > 1 { pipeline * chunks <= spec.n_layers + 1 } else { pipeline <= spec.n_layers };
                prop_assert!(!fits || (chunks > 1 && pipeline == 1) || pipeline > spec.n_layers);
                return Ok(());
            }
            Err(error) => {
                prop_assert!(false, "{error}");
                return Ok(());
            }
        };
        for shard in shards.iter().flatten() {
            prop_assert!(shard.graph.check().is_ok(), "{:?}", shard.graph.check());
        }
        let whole = params(&spec, &graph, seed);
        let (ids, labels) = sequences(&spec, micros as usize, 5);
        let batch = training(&spec, Dims { batch: micros, ..dims }, &policy).unwrap().graph;
        let expected = Oracle { graph: &batch, params: &whole }.step(Batch { ids: &ids, labels: &labels });
        let form = Form { stages: pipeline, chunks, micros };
        let turns: Vec<Vec<Turn>> = (0..pipeline).map(|stage| schedule(form, stage).unwrap().turns).collect();
        let micro = |at: usize| Batch { ids: &ids[at..=at], labels: &labels[at..=at] };
        let micros: Vec<Batch<'_>> = (0..micros as usize).map(micro).collect();
        let (loss, gradients) = Ranks::new(&shards, &whole).step(&turns, &micros);
        prop_assert!((loss - expected.loss).abs() <= 1e-9 * expected.loss.abs().max(1.0), "{loss} {}", expected.loss);
        prop_assert_eq!(
            gradients.keys().collect::<Vec<_>>(),
            expected.gradients.keys().collect::<Vec<_>>()
        );
        let largest = expected.gradients.values().flat_map(|g| &g.data).fold(1e-3f64, |most, x| most.max(x.abs()));
        for (name, gradient) in &gradients {
            let off = gradient.max_abs_diff(&expected.gradients[name]);
            prop_assert!(off <= 1e-8 * largest, "{name}: {off:e} of {largest:e}");
        }
    }
}

/// Sequences and what follows each token; one position of the second sequence counts for nothing.
fn sequences(spec: &ModelSpec, count: usize, seq: usize) -> (Vec<Vec<u32>>, Vec<Vec<i32>>) {
    let id = |b: usize, s: usize| ((7 * b + 5 * s + 3) as u64 % spec.vocab) as u32;
    let ids: Vec<Vec<u32>> = (0..count).map(|b| (0..seq).map(|s| id(b, s)).collect()).collect();
    let mut labels: Vec<Vec<i32>> = ids.iter().map(|ids| next_tokens(ids)).collect();
    if let Some(second) = labels.get_mut(1) {
        second[1] = -1;
    }
    (ids, labels)
}

fn collectives(name: &str) -> (usize, usize) {
    let spec = lapidary_models::builtin(name).unwrap();
    let graph = Graph::build(&spec, Mode::Prefill, Dims { batch: 1, seq: 8, cached: 0 }).unwrap();
    let shard =
        shard(&graph, Degrees { tensor: 2, pipeline: 1 }, Way::default(), Place { tensor: 1, stage: 0 })
            .unwrap();
    let count =
        |f: &lapidary_models::Function| f.nodes.iter().filter(|n| n.op.name() == "all_reduce").count();
    (count(shard.graph.layer()), count(shard.graph.main()))
}

/// Two sums a layer behind one another, and one where both branches read the same stream.
#[test]
fn a_layer_sums_as_often_as_its_branches_follow_one_another() {
    assert_eq!(collectives("amber"), (2, 1));
    assert_eq!(collectives("gpt-j-6b"), (1, 1));
}

/// Together the ranks hold every parameter once, but for padding and what all hold.
#[test]
fn the_ranks_hold_the_parameters_once() {
    let spec = lapidary_models::builtin("amber").unwrap();
    let graph = Graph::build(&spec, Mode::Prefill, Dims { batch: 1, seq: 8, cached: 0 }).unwrap();
    let degrees = Degrees { tensor: 4, pipeline: 2 };
    let held: u64 = all(&graph, degrees, Way::default())
        .unwrap()
        .iter()
        .flatten()
        .map(|shard| shard.graph.parameters())
        .sum();
    let norms = 64 * 4096 * 3 + 4096 * 3;
    assert_eq!(held, graph.parameters() + norms);
}
