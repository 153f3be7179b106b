//! The reference interpreter against stored tensors of a public implementation, and muP's fold against it.
//!
//! The stored directories say what they hold in `meta.json`; every hidden state is computed by a library class in
//! f64 and stored as f32.

use lapidary_models::mup::inference_fold;
use lapidary_models::spec::{AttentionScale, Block, GateHalf, Pairing, Position, Residual, Rope};
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_tests::checkpoint::{STORED, Stored, random_params};
use lapidary_tests::oracle::{
    Cache, Oracle, Params, Real, Run, Tensor, continuation, fold_params, next_token_loss,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn forward<T: Real>(spec: &ModelSpec, params: &Params<T>, ids: &[Vec<u32>]) -> Run<T> {
    let dims = Dims { batch: ids.len() as u64, seq: ids[0].len() as u64, cached: 0 };
    let graph = Graph::build(spec, Mode::Forward, dims).unwrap();
    Oracle { graph: &graph, params }.run(ids, &mut Cache::new())
}

/// Where the trace keeps a stored tensor.
fn traced(stored: &str) -> String {
    match stored {
        "block0.norm1" => "layers.0.attn_norm".into(),
        "block0.norm2" => "layers.0.mlp_norm".into(),
        "block0.attn" => "layers.0.attn.out".into(),
        "block0.mlp" => "layers.0.mlp.down".into(),
        other => other.into(),
    }
}

fn assert_reproduces<T: Real>(stored: &Stored, tolerance: f64) {
    let run = forward(&stored.spec, &stored.params::<T>(&stored.spec), &stored.ids);
    assert!(stored.expected.len() >= 7);
    for (name, expected) in &stored.expected {
        let node = traced(name);
        let found = match name.as_str() {
            "logits" => Some(&run.logits),
            // A projection's result includes its bias.
            _ => run.get(&format!("{node}.bias")).or_else(|| run.get(&node)),
        };
        let difference = found.unwrap_or_else(|| panic!("no tensor {node}")).max_abs_diff(expected);
        assert!(difference <= tolerance, "{} {name}: {difference:e}", stored.name);
    }
    let loss = stored.json("meta.json")["loss"].as_f64().unwrap();
    assert!((next_token_loss(&run.logits, &stored.ids) - loss).abs() < 1e-5, "{}", stored.name);
}

/// The tolerance is that of the stored tensors' own rounding; the library's f32 is up to 8e-5 away.
#[test]
fn every_stored_tensor_is_reproduced_in_f64() {
    for name in STORED {
        assert_reproduces::<f64>(&Stored::open(name), 2e-5);
    }
}

#[test]
fn every_stored_tensor_is_reproduced_in_f32() {
    for name in STORED {
        assert_reproduces::<f32>(&Stored::open(name), 2e-4);
    }
}

fn numbers(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn greedy_continuations_through_the_cache_are_exact() {
    for name in STORED {
        let stored = Stored::open(name);
        let params = stored.params::<f64>(&stored.spec);
        for case in stored.json("greedy.json")["cases"].as_array().unwrap() {
            let wanted = numbers(&case["continuation"]);
            let found =
                continuation(&stored.spec, &params, None, &numbers(&case["prompt"]), wanted.len()).unwrap();
            assert_eq!(found, wanted, "{name}");
        }
    }
}

#[test]
fn memorization_is_exact() {
    for name in STORED {
        let stored = Stored::open(name);
        let params = stored.params::<f32>(&stored.spec);
        for sequence in stored.json("memorization.json")["sequences"].as_array().unwrap() {
            let wanted = numbers(&sequence["generated"]);
            let prompt = numbers(&sequence["prompt"]);
            let found = continuation(&stored.spec, &params, None, &prompt, wanted.len()).unwrap();
            assert_eq!(found, wanted, "{name}");
        }
    }
}

/// How far the logits move when one fact about CrystalCoder is wrong, against the stored figure.
#[test]
fn wrong_readings_of_crystalcoder_move_the_logits_as_far_as_stored() {
    let stored = Stored::open("crystal-tiny");
    let changes = stored.json("meta.json")["logit_change_if_wrong"].clone();
    let right = stored.spec.clone();
    let rope = |change: fn(&mut Rope)| {
        let mut spec = right.clone();
        if let Position::Rope(rope) = &mut spec.pos {
            change(rope);
        }
        spec
    };
    let with = |change: fn(&mut ModelSpec)| {
        let mut spec = right.clone();
        change(&mut spec);
        spec
    };
    let variants = [
        ("1/sqrt(d)", with(|spec| spec.attn.scale = AttentionScale::HeadDimPower(-0.5))),
        ("half-split-rotary", rope(|rope| rope.pairing = Pairing::Half)),
        ("full-rotary", rope(|rope| rope.rot_dims = 32)),
        ("silu-on-c_fc", with(|spec| spec.mlp.gate = GateHalf::First)),
        ("no-embedding-scale", with(|spec| spec.multipliers.embedding = 1.0)),
        ("no-output-scale", with(|spec| spec.multipliers.logits = 1.0)),
        ("alpha-only", with(|spec| spec.multipliers.logits = 2.22)),
        ("eps-1e-6", with(|spec| spec.norm.eps = 1e-6)),
        ("no-qkv-bias", with(|spec| spec.bias.qkv = false)),
        ("no-ln-bias", with(|spec| spec.norm.bias = false)),
        (
            "parallel-residual",
            with(|spec| spec.block = Block { residual: Residual::Parallel, shared_norm: true }),
        ),
    ];
    for (name, spec) in &variants {
        let logits = forward(spec, &stored.params::<f64>(spec), &stored.ids).logits;
        let moved = logits.max_abs_diff(&stored.expected["logits"]);
        let wanted = changes[*name].as_f64().unwrap();
        assert!((moved / wanted - 1.0).abs() < 1e-4, "{name}: {moved}, stored {wanted}");
    }
    let params = stored.params::<f64>(&right);
    let with_params = |change: &dyn Fn(&str, &Tensor<f64>) -> Tensor<f64>| {
        params.iter().map(|(name, tensor)| (name.clone(), change(name, tensor))).collect::<Params<f64>>()
    };
    let other_weights = [
        ("no-proj-bias", with_params(&without_bias_of_projections)),
        ("rotary-last-quarter", with_params(&|name, tensor| last_dimensions_first(&right, name, tensor))),
    ];
    for (name, params) in &other_weights {
        let moved = forward(&right, params, &stored.ids).logits.max_abs_diff(&stored.expected["logits"]);
        let wanted = changes[*name].as_f64().unwrap();
        assert!((moved / wanted - 1.0).abs() < 1e-4, "{name}: {moved}, stored {wanted}");
    }
    let tested =
        variants.map(|(name, _)| name).into_iter().chain(other_weights.iter().map(|(name, _)| *name));
    let stored: BTreeSet<&str> = changes.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(tested.collect::<BTreeSet<_>>(), stored, "every stored variant");
}

fn without_bias_of_projections(name: &str, tensor: &Tensor<f64>) -> Tensor<f64> {
    let projection = name.ends_with("attn.out.bias") || name.ends_with("mlp.down.bias");
    if projection { tensor.map(|_| 0.0) } else { tensor.clone() }
}

/// Queries and keys with the last `rot_dims` dimensions of every head in front: products of queries and keys are the
/// same, but what rotates are the dimensions that stood last.
fn last_dimensions_first(spec: &ModelSpec, name: &str, tensor: &Tensor<f64>) -> Tensor<f64> {
    let Position::Rope(rope) = spec.pos else { return tensor.clone() };
    if !name.contains("attn.q.") && !name.contains("attn.k.") {
        return tensor.clone();
    }
    let row = tensor.data.len() / tensor.shape[0];
    let (head, back) = (spec.head_dim as usize, (spec.head_dim - rope.rot_dims) as usize);
    Tensor::build(tensor.shape.clone(), |i| {
        let (r, column) = (i / row, i % row);
        let from = r / head * head + (r % head + back) % head;
        tensor.data[from * row + column]
    })
}

/// Every directory with muP folded away gives the logits of the stored tensors.
#[test]
fn crystalcoder_folded_gives_the_stored_logits() {
    let stored = Stored::open("crystal-tiny");
    let fold = inference_fold(&stored.spec).unwrap();
    let params = stored.params::<f64>(&stored.spec);
    let dims = Dims { batch: 2, seq: 48, cached: 0 };
    let graph = fold.apply(&Graph::build(&stored.spec, Mode::Forward, dims).unwrap());
    let folded = fold_params(&params, &fold);
    let run = Oracle { graph: &graph, params: &folded }.run(&stored.ids, &mut Cache::new());
    assert!(run.logits.max_abs_diff(&stored.expected["logits"]) < 2e-5);
    let unfolded = forward(&stored.spec, &params, &stored.ids).logits;
    assert!(run.logits.max_abs_diff(&unfolded) < 1e-12);
}

fn largest_abs(tensor: &Tensor<f64>) -> f64 {
    tensor.data.iter().fold(1.0, |max, x| x.abs().max(max))
}

fn ids(spec: &ModelSpec, batch: usize, seq: usize) -> Vec<Vec<u32>> {
    let id = |b: usize, s: usize| ((b * 7 + s * s * 3 + s) as u64 % spec.vocab) as u32;
    (0..batch).map(|b| (0..seq).map(|s| id(b, s)).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn folded_is_unfolded(spec in specs(), seed in 0u64..1000) {
        let params = random_params::<f64>(&spec, seed);
        let ids = ids(&spec, 2, 9);
        let plain = forward(&spec, &params, &ids).logits;
        if let Some(fold) = inference_fold(&spec) {
            let graph = Graph::build(&spec, Mode::Forward, Dims { batch: 2, seq: 9, cached: 0 }).unwrap();
            let (graph, params) = (fold.apply(&graph), fold_params(&params, &fold));
            let folded = Oracle { graph: &graph, params: &params }.run(&ids, &mut Cache::new()).logits;
            prop_assert!(folded.max_abs_diff(&plain) <= 1e-10 * largest_abs(&plain));
        }
    }

    #[test]
    fn decoding_through_the_cache_is_the_full_forward(spec in specs(), seed in 0u64..1000, prompt in 1usize..7) {
        let params = random_params::<f64>(&spec, seed);
        let ids = ids(&spec, 2, 9);
        let full = forward(&spec, &params, &ids).logits;
        let mut cache = Cache::new();
        let mut start = 0;
        for end in std::iter::once(prompt).chain(prompt + 1..=9) {
            let part: Vec<Vec<u32>> = ids.iter().map(|ids| ids[start..end].to_vec()).collect();
            let mode = if start == 0 { Mode::Prefill } else { Mode::Decode };
            let dims = Dims { batch: 2, seq: (end - start) as u64, cached: start as u64 };
            let graph = Graph::build(&spec, mode, dims).unwrap();
            let logits = Oracle { graph: &graph, params: &params }.run(&part, &mut cache).logits;
            let width = full.width();
            for b in 0..2 {
                let at = |s: usize| &full.data[(b * 9 + s) * width..][..width];
                for (found, wanted) in logits.data[b * width..][..width].iter().zip(at(end - 1)) {
                    prop_assert!((found - wanted).abs() <= 1e-10 * largest_abs(&full));
                }
            }
            start = end;
        }
    }

    #[test]
    fn a_batch_is_its_sequences_one_by_one(spec in specs(), seed in 0u64..1000) {
        let params = random_params::<f64>(&spec, seed);
        let ids = ids(&spec, 3, 5);
        let whole = forward(&spec, &params, &ids).logits;
        let each: Vec<f64> = ids.iter().flat_map(|ids| forward(&spec, &params, std::slice::from_ref(ids)).logits.data).collect();
        prop_assert_eq!(whole.data, each);
    }
}
