//! Training graphs: checked on random specifications, counted against published formulas.

use lapidary_models::autodiff::work::{Phase, training_work};
use lapidary_models::autodiff::{Policy, Recompute, Training, differentiate, fitting, recompute, training};
use lapidary_models::op::Backward;
use lapidary_models::spec::{Activation, GateHalf, Mlp, Norm, NormKind, Position};
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, GraphError, Mode, ModelSpec, Op, ValueId, builtin};
use proptest::prelude::*;

const fn dims(batch: u64, seq: u64) -> Dims {
    Dims { batch, seq, cached: 0 }
}

fn uniform(spec: &ModelSpec, dims: Dims, policy: Recompute) -> Training {
    training(spec, dims, &Policy::Uniform(policy)).unwrap()
}

/// GPT-3 175B: Korthikanti et al., table 3, without dropout.
fn gpt3() -> ModelSpec {
    let mut spec = builtin("cerebras-gpt-111m").unwrap();
    (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.head_dim) = (12288, 96, 96, 96, 128);
    (spec.d_ff, spec.max_seq, spec.vocab) = (4 * 12288, 2048, 51200);
    (spec.mup, spec.multipliers) = (None, Default::default());
    spec
}

/// `s b h (34 + 5 a s / h)` of the paper counts dropout: two masks of one byte (2 s b h) and, on the scores, a mask of
/// one byte and the dropped copy (3 a s² b). Without dropout that is `s b h (32 + 2 a s / h)`.
#[test]
fn a_gpt_layer_keeps_what_the_paper_counts() {
    let (s, b, h, a) = (2048, 2, 12288, 96);
    let plain = uniform(&gpt3(), dims(b, s), Recompute::None).recompute;
    assert_eq!(plain.segments[0].saved_bytes, s * b * h * 32 + 2 * a * s * s * b);
    let selective = uniform(&gpt3(), dims(b, s), Recompute::Selective).recompute;
    assert_eq!(selective.segments[0].saved_bytes, s * b * h * 32);
    assert_eq!(selective.segments[0].spared_bytes, 2 * a * s * s * b);
    let full = uniform(&gpt3(), dims(b, s), Recompute::Full).recompute;
    assert_eq!(full.segments[0].saved_bytes, s * b * h * 2);
}

#[test]
fn selective_recomputation_repeats_the_core_of_attention_only() {
    let report = uniform(&gpt3(), dims(2, 2048), Recompute::Selective).recompute;
    let [segment] = &report.segments[..] else { panic!("one segment") };
    assert_eq!(segment.nodes, ["attn.scores", "attn.scale", "attn.mask", "attn.softmax"]);
    // One of attention's two products: 2 s² b h flops of the 24 s b h² + 4 s² b h of a layer's forward pass.
    assert_eq!(segment.again.matmul_flops, 2 * 2048 * 2048 * 2 * 12288);
    assert_eq!(report.again.matmul_flops, 96 * segment.again.matmul_flops);
    assert!(
        segment.reason.starts_with("scores, mask and softmax run again from queries and keys: 1610.6 MB")
    );
}

/// Full recomputation repeats what is read again: not the last product of the layer, whose result nobody reads.
#[test]
fn full_recomputation_keeps_the_input_and_repeats_all_that_is_read() {
    let training = uniform(&builtin("amber").unwrap(), dims(1, 2048), Recompute::Full);
    let names: Vec<&str> = training.graph.slots.iter().map(|slot| slot.name.as_str()).collect();
    assert_eq!(names, ["input"]);
    let again = &training.recompute.segments[0].nodes;
    assert_eq!(again.first().map(String::as_str), Some("attn_norm"));
    assert!(again.contains(&"attn.values".into()) && again.contains(&"attn.residual".into()));
    assert!(!again.contains(&"mlp.down".into()) && !again.contains(&"mlp.residual".into()));
}

/// A product has two of its size behind it; attention has four for two. Nothing else contracts.
#[test]
fn a_backward_pass_multiplies_twice_as_much_as_its_forward_pass() {
    for name in ["amber", "crystalcoder", "pythia-6.9b", "llama-3-8b"] {
        let spec = builtin(name).unwrap();
        let work = training_work(&spec, dims(8, 1024), &Policy::Uniform(Recompute::None)).unwrap();
        let forward = Graph::build(&spec, Mode::Forward, dims(8, 1024)).unwrap().work();
        assert_eq!(work.of(Phase::Forward), forward, "{name}");
        assert_eq!(work.of(Phase::Backward).matmul_flops, 2 * forward.matmul_flops, "{name}");
        assert_eq!(work.of(Phase::Recompute).flops(), 0, "{name}");
        let ratio = work.of(Phase::Backward).bytes() as f64 / forward.bytes() as f64;
        assert!(ratio > 1.5 && ratio < 4.0, "{name}: unfused traffic is {ratio} times the forward pass's");
    }
}

/// Amber's step at the paper's micro-batch: 6 flops a matrix parameter and token, and attention.
#[test]
fn the_step_of_amber_is_six_flops_a_parameter_and_token() {
    let spec = builtin("amber").unwrap();
    let work = training_work(&spec, dims(10, 2048), &Policy::Uniform(Recompute::Full)).unwrap();
    let tokens = 10 * 2048;
    let matrices = spec.parameters() - 32000 * 4096 - 65 * 4096;
    let attention = 32 * 4 * tokens * 2048 * 4096;
    let model = 6 * matrices * tokens + 3 * attention;
    let again = work.of(Phase::Recompute).matmul_flops;
    assert_eq!(work.total().matmul_flops, model + again);
    let down = 2 * tokens * 11008 * 4096 * 32;
    // The scores run twice more: for the values that run again, and for attention's own backward pass.
    assert_eq!(again, 2 * (matrices - 32000 * 4096) * tokens + attention + attention / 2 - down);
}

#[test]
fn layers_with_other_policies_are_functions_of_their_own() {
    let spec = builtin("crystalcoder").unwrap();
    let mut policies = vec![Recompute::Full; 3];
    policies.resize(spec.n_layers as usize, Recompute::Selective);
    let mixed = training(&spec, dims(1, 64), &Policy::PerLayer(policies)).unwrap();
    let functions: Vec<&str> = mixed.graph.functions.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(functions, ["layer", "layer_backward", "layer_2", "layer_backward_2", "main"]);
    assert_eq!(mixed.graph.check(), Ok(()));
    let nodes = mixed.graph.main().nodes.iter();
    let repeats: Vec<(usize, u64, u64, bool)> = nodes
        .filter_map(|node| match node.op {
            Op::Repeat { function, first, times, reverse } => Some((function, first, times, reverse)),
            _ => None,
        })
        .collect();
    let rest = spec.n_layers - 3;
    assert_eq!(repeats, [(0, 0, 3, false), (2, 3, rest, false), (3, 3, rest, true), (1, 0, 3, true)]);
    let short = training(&spec, dims(1, 64), &Policy::PerLayer(vec![Recompute::Full]));
    assert!(short.unwrap_err().to_string().starts_with("recompute = 1: a policy for each of"));
}

/// A budget between the policies is met exactly where it can be, with the cheapest mix, and never exceeded.
#[test]
fn layers_fit_a_budget_with_the_least_work_again() {
    let spec = gpt3();
    let plain = differentiate(&Graph::build(&spec, Mode::Forward, dims(1, 2048)).unwrap()).unwrap();
    let bytes = |policy| uniform(&spec, dims(1, 2048), policy).recompute.saved_bytes;
    let counts = |budget: u64| {
        let Some(Policy::PerLayer(policies)) = fitting(&plain, budget).unwrap() else { return [0; 3] };
        let (_, report) = recompute(&plain, &Policy::PerLayer(policies.clone())).unwrap();
        assert!(report.saved_bytes <= budget && policies.len() == 96);
        Recompute::ALL.map(|wanted| policies.iter().filter(|policy| **policy == wanted).count())
    };
    assert_eq!(counts(u64::MAX), [96, 0, 0]);
    assert_eq!(counts(bytes(Recompute::None)), [96, 0, 0]);
    assert_eq!(counts(bytes(Recompute::Selective)), [0, 96, 0]);
    assert_eq!(counts(bytes(Recompute::Full)), [0, 0, 96]);
    assert_eq!(counts(bytes(Recompute::Full) - 1), [0, 0, 0]);
    // Selective spares most bytes for an operation, so it is used up before any layer runs again as a whole.
    let between = (bytes(Recompute::None) + bytes(Recompute::Selective)) / 2;
    assert_eq!(counts(between), [48, 48, 0]);
    let [none, selective, full] = counts((bytes(Recompute::Selective) + bytes(Recompute::Full)) / 2);
    assert!(none == 0 && selective == 48 && full == 48);
}

#[test]
fn what_has_no_derivative_is_said() {
    let spec = builtin("amber").unwrap();
    let prefill = Graph::build(&spec, Mode::Prefill, dims(1, 8)).unwrap();
    let error = differentiate(&prefill).unwrap_err().to_string();
    assert_eq!(
        error,
        "attn.v.cache: kv_append has no derivative: a cache is for inference: differentiate a forward graph"
    );
    let twice = differentiate(&uniform(&spec, dims(1, 8), Recompute::None).graph);
    assert!(matches!(twice, Err(GraphError::NoDerivative { .. })));
    let policy = Policy::Uniform(Recompute::Full);
    let again = recompute(&training(&spec, dims(1, 8), &mixed(32)).unwrap().graph, &policy);
    assert!(matches!(again, Err(GraphError::NoDerivative { .. })));
}

/// Two layers of each policy in turn.
fn mixed(layers: u64) -> Policy {
    Policy::PerLayer((0..layers).map(|layer| Recompute::ALL[(layer / 2 % 3) as usize]).collect())
}

/// Breaks a sound graph in a few ways; each must be found.
#[test]
fn the_checker_finds_what_is_broken() {
    let spec = builtin("amber").unwrap();
    let sound = uniform(&spec, dims(1, 8), Recompute::None).graph;
    let faults = |change: fn(&mut Graph)| {
        let mut graph = sound.clone();
        change(&mut graph);
        let faults = graph.check().unwrap_err();
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(sound.check(), Ok(()));
    let unread = faults(|graph| {
        graph.functions[0].nodes.retain(|node| !matches!(node.op, Op::Backward(Backward::Save { slot: 0 })))
    });
    assert!(unread.contains("is filled by []"), "{unread}");
    let early = faults(|graph| graph.functions[1].nodes.reverse());
    assert!(early.contains("before it is made"), "{early}");
    let lost = faults(|graph| {
        graph.functions[1].nodes.retain(|node| node.name != "mlp.down.weight.gradient");
    });
    assert_eq!(lost, "layers.*.mlp.down.weight: 0 of 32 layers give it a gradient");
    let twice = faults(|graph| graph.functions[2].nodes.iter_mut().for_each(|node| node.output = ValueId(0)));
    assert!(twice.contains("which is there already"), "{twice}");
    let forward = faults(|graph| {
        for node in &mut graph.functions[2].nodes {
            if let Op::Repeat { reverse, .. } = &mut node.op {
                *reverse = false;
            }
        }
    });
    assert_eq!(forward, "main: layers do not run once forwards and then once backwards");
    let wrong = faults(|graph| graph.mode = Mode::Forward);
    assert!(wrong.contains("save stands in a graph that does not train"), "{wrong}");
}

proptest! {
    #[test]
    fn every_training_graph_is_sound(spec in specs(), batch in 1u64..4, seq in 1u64..12) {
        let dims = dims(batch, seq.min(spec.max_seq));
        prop_assert_eq!(Graph::build(&spec, Mode::Forward, dims).unwrap().check(), Ok(()));
        let policies = [Recompute::None, Recompute::Selective, Recompute::Full].map(Policy::Uniform);
        let mut saved = u64::MAX;
        for policy in policies {
            let made = training(&spec, dims, &policy).unwrap();
            prop_assert_eq!(made.graph.check(), Ok(()));
            prop_assert!(made.recompute.saved_bytes <= saved);
            prop_assert_eq!(made.graph.parameters(), spec.parameters());
            saved = made.recompute.saved_bytes;
        }
        prop_assert_eq!(training(&spec, dims, &mixed(spec.n_layers)).unwrap().graph.check(), Ok(()));
    }

    /// Flops of a step are those of its phases, and more is never less.
    #[test]
    fn work_adds_up(spec in specs(), batch in 1u64..4, seq in 1u64..10) {
        let dims = dims(batch, seq.min(spec.max_seq));
        let forward = Graph::build(&spec, Mode::Forward, dims).unwrap().work();
        let mut before = 0;
        for policy in Recompute::ALL {
            let work = training_work(&spec, dims, &Policy::Uniform(policy)).unwrap();
            let phases = [Phase::Forward, Phase::Recompute, Phase::Loss, Phase::Backward];
            prop_assert_eq!(phases.iter().map(|phase| work.of(*phase).flops()).sum::<u64>(), work.total().flops());
            prop_assert_eq!(work.of(Phase::Forward), forward);
            prop_assert_eq!(work.of(Phase::Recompute), work.recompute.again);
            prop_assert_eq!(work.of(Phase::Backward).matmul_flops, 2 * forward.matmul_flops);
            prop_assert!(work.total().flops() >= before);
            before = work.total().flops();
        }
    }
}

/// A gated layer keeps gate, activation, up and their product: 8 bytes a token and inner feature in bf16.
#[test]
fn a_llama_layer_keeps_four_inner_tensors() {
    let mut spec = builtin("amber").unwrap();
    spec.mlp = Mlp { act: Activation::Silu, gated: true, gate: GateHalf::First };
    spec.norm = Norm { kind: NormKind::Rms, eps: 1e-5, bias: false, final_norm: true };
    assert!(matches!(spec.pos, Position::Rope(_)));
    let report = uniform(&spec, dims(1, 2048), Recompute::Selective).recompute;
    // x, norm, q and k after rotation, v, values, residual, norm: 8 tensors of width d.
    let wanted = 2 * 2048 * (8 * 4096 + 4 * 11008);
    assert_eq!(report.segments[0].saved_bytes, wanted);
    assert_eq!(report.saved_bytes, 32 * wanted);
}
