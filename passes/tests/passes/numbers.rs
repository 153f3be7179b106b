//! What passes may not change: the numbers.

use crate::interpreter;
use lapidary_ir::{IrContext, import::import};
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, builtin};
use lapidary_passes::pipeline::Pipeline;
use lapidary_passes::{Watch, run};
use proptest::prelude::*;

/// A built-in model with its form kept and its sizes cut.
fn small(name: &str) -> ModelSpec {
    let spec = builtin(name).unwrap();
    let mut small =
        ModelSpec { vocab: 11, d_model: 12, n_layers: 2, n_heads: 3, n_kv_heads: 3, head_dim: 4, ..spec };
    small.n_kv_heads = 3;
    (small.d_ff, small.max_seq, small.vocab_padded_to) = (10, 16, None);
    if let lapidary_models::spec::Position::Rope(rope) = &mut small.pos {
        rope.rot_dims = rope.rot_dims.min(4);
    }
    small
}

/// The largest difference between the logits of the imported module and those after the passes.
fn difference(spec: &ModelSpec, mode: Mode, dims: Dims, passes: &str) -> f64 {
    let graph = Graph::build(spec, mode, dims).unwrap();
    let cx = IrContext::new();
    let before = interpreter::run(&import(&cx, &graph).unwrap());
    let mut module = import(&cx, &graph).unwrap();
    run(&mut module, &Pipeline::parse(passes).unwrap(), Watch::default()).unwrap();
    let after = interpreter::run(&module);
    assert_eq!(before.len(), after.len());
    let pairs = before.iter().flatten().zip(after.iter().flatten());
    let (most, difference) =
        pairs.fold((0.0f64, 0.0f64), |(m, d), (a, b)| (m.max(a.abs()), d.max((a - b).abs())));
    assert!(most.is_finite() && difference.is_finite());
    difference / most.max(1e-3)
}

const PROMPT: Dims = Dims { batch: 2, seq: 5, cached: 0 };
const TOKEN: Dims = Dims { batch: 2, seq: 1, cached: 4 };
const ALL: &str = "canonicalize,cse,mup-fold,hoist-scales,canonicalize,cse,dce,symbol-dce,fuse";

#[test]
fn the_fold_keeps_the_logits_of_every_mup_family() {
    for name in ["crystalcoder", "jais-13b", "btlm-3b-8k", "cerebras-gpt-111m"] {
        // The published Cerebras-GPT sizes with learned positions have no muP; this one gets it.
        let mut tied = small(name);
        tied.mup = builtin("crystalcoder").unwrap().mup;
        (tied.multipliers.embedding, tied.multipliers.logits) = (14.6, 0.14);
        let mut untied = tied.clone();
        untied.head.tied = false;
        for spec in [tied, untied] {
            assert!(difference(&spec, Mode::Forward, PROMPT, "mup-fold") < 1e-12, "{name}");
            assert!(difference(&spec, Mode::Decode, TOKEN, "mup-fold") < 1e-12, "{name}");
        }
    }
}

#[test]
fn the_eps_rule_is_not_idle() {
    let spec = small("crystalcoder");
    let graph = Graph::build(&spec, Mode::Forward, PROMPT).unwrap();
    let cx = IrContext::new();
    let mut module = import(&cx, &graph).unwrap();
    let right = interpreter::run(&module);
    run(&mut module, &Pipeline::parse("mup-fold").unwrap(), Watch::default()).unwrap();
    module
        .op()
        .walk()
        .into_iter()
        .filter(|op| op.is("nn.norm"))
        .for_each(|op| op.set_attribute("eps", cx.f64(1e-5)));
    let wrong = interpreter::run(&module);
    let gap = right[0].iter().zip(&wrong[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(gap > 1e-4, "forgetting the rule moves the logits by {gap} only");
}

#[test]
fn every_family_keeps_its_numbers_through_the_whole_pipeline() {
    for name in
        ["amber", "crystalcoder", "pythia-6.9b", "gpt-j-6b", "mistral-7b", "btlm-3b-8k", "cerebras-gpt-111m"]
    {
        for passes in [ALL, "hoist-scales,fuse{off}", "fuse{only=attention}", "fuse{without=siblings,cache}"]
        {
            assert!(difference(&small(name), Mode::Prefill, PROMPT, passes) < 1e-12, "{name}: {passes}");
            assert!(difference(&small(name), Mode::Decode, TOKEN, passes) < 1e-12, "{name}: {passes}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn random_models_keep_their_numbers(spec in specs(), seq in 1u64..6, cached in 0u64..6) {
        let prompt = difference(&spec, Mode::Forward, Dims { batch: 1, seq, cached: 0 }, ALL);
        let token = difference(&spec, Mode::Decode, Dims { batch: 1, seq, cached }, ALL);
        prop_assert!(prompt < 1e-9 && token < 1e-9, "forward {prompt}, decode {token}");
    }
}
