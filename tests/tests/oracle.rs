//! The reference interpreter against stored tensors of a public implementation, and muP's fold against it.
//!
//! The stored directories say what they hold in `meta.json`; every hidden state is computed by a library class in
//! f64 and stored as f32.

use lapidary_models::mup::inference_fold;
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_tests::checkpoint::{STORED, Stored, random_params};
use lapidary_tests::oracle::{
    Cache, Oracle, Params, Real, Run, Tensor, continuation, fold_params, next_token_loss,
};
use lapidary_tests::variants::{WrongReading, wrong_readings};
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
            let found = continuation(&stored.spec, &params, &numbers(&case["prompt"]), wanted.len()).unwrap();
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
            let found = continuation(&stored.spec, &params, &prompt, wanted.len()).unwrap();
            assert_eq!(found, wanted, "{name}");
        }
    }
}

/// How far the logits move when one fact about CrystalCoder is wrong, against the stored figure.
#[test]
fn wrong_readings_of_crystalcoder_move_the_logits_as_far_as_stored() {
    let stored = Stored::open("crystal-tiny");
    let changes = stored.json("meta.json")["logit_change_if_wrong"].clone();
    let readings = wrong_readings(&stored);
    for WrongReading { name, spec, params } in &readings {
        let moved = forward(spec, params, &stored.ids).logits.max_abs_diff(&stored.expected["logits"]);
        let wanted = changes[*name].as_f64().unwrap();
        assert!((moved / wanted - 1.0).abs() < 1e-4, "{name}: {moved}, stored {wanted}");
    }
    let tested: BTreeSet<&str> = readings.iter().map(|reading| reading.name).collect();
    let stored: BTreeSet<&str> = changes.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(tested, stored, "every stored variant");
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
