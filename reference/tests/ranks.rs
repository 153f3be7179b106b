//! A model spread over ranks gives what the whole model gives, for every form of model and every degree.

use lapidary_models::shard::{Degrees, Place, Shard, ShardError, shard};
use lapidary_models::spec::Position;
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_reference::{Cache, Oracle, Params, Ranks, Tensor};
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

fn all(graph: &Graph, degrees: Degrees) -> Result<Vec<Vec<Shard>>, ShardError> {
    let group =
        |stage| (0..degrees.tensor).map(|tensor| shard(graph, degrees, Place { tensor, stage })).collect();
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
        let shards = match all(&forward, degrees) {
            Ok(shards) => shards,
            Err(ShardError::Degrees { .. }) => {
                prop_assert!(pipeline > spec.n_layers);
                return Ok(());
            }
            Err(error) => {
                prop_assert!(matches!(spec.pos, Position::Alibi { .. }) && tensor > 1, "{error}");
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
            let shards = all(&graph, degrees).unwrap();
            assert_close(&Ranks::new(&shards, &whole).run(&prompt, &mut kept.1), &expected)?;
        }
    }
}

fn collectives(name: &str) -> (usize, usize) {
    let spec = lapidary_models::builtin(name).unwrap();
    let graph = Graph::build(&spec, Mode::Prefill, Dims { batch: 1, seq: 8, cached: 0 }).unwrap();
    let shard = shard(&graph, Degrees { tensor: 2, pipeline: 1 }, Place { tensor: 1, stage: 0 }).unwrap();
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
    let held: u64 =
        all(&graph, degrees).unwrap().iter().flatten().map(|shard| shard.graph.parameters()).sum();
    let norms = 64 * 4096 * 3 + 4096 * 3;
    assert_eq!(held, graph.parameters() + norms);
}
