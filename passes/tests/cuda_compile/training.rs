//! Kernels of training steps, of whole models and of the ranks of a spread one: without spills, stack or calls, and against the
//! file of the step's name.
use super::*;
use lapidary_models::autodiff::{Recompute, differentiate};
use lapidary_models::shard::{Degrees, Place, StateSharding, Way};
use lapidary_passes::Pipeline;
use lapidary_passes::lower_to_cpu::Together;
use lapidary_passes::lower_to_cuda::{emit_gpu_part, emit_gpu_training_part};
use lapidary_passes::pipeline::{rank_pipeline, rank_training, training_text};
use lapidary_passes::shard::shard_text;
use std::collections::BTreeSet;

const TRAINED: Dims = Dims { batch: 2, seq: 2048, cached: 0 };

/// A built-in model's step before it is spread or lowered.
fn step(name: &str, dims: Dims) -> Graph {
    differentiate(&Graph::build(&builtin(name).unwrap(), Mode::Forward, dims).unwrap()).unwrap()
}

/// Every kernel in a line, held to the rules; none where NVRTC is not there.
fn held_to_the_rules(name: &str, lowered: &mut Lowered) -> Option<String> {
    let results = compiled(lowered)?;
    let mut found = String::new();
    for ((kernel, result), text) in results.iter().zip(sass("sm_80", &results)) {
        let r = &result.resources;
        found.push_str(&told(kernel, result, &text));
        assert_eq!(r.spill_stores + r.spill_loads + r.stack_bytes, 0, "{name}: {kernel} spills");
        let made = lowered.program.kernel(kernel).expect("a kernel");
        assert!(made.shared_bytes < 20_000 || text.contains("HMMA.16816.F32.BF16"), "{name}: {kernel}");
        // Whole numbers are drawn from a counter; numbers are never added by whoever comes first.
        let mut atomic = text.lines().filter(|line| line.contains("RED.") || line.contains("ATOM"));
        assert!(atomic.all(|line| !line.contains(".F")), "{name}: {kernel} adds through memory");
    }
    Some(found)
}

/// A whole training step of a model at its own size, for the A100.
fn trains(name: &str, policy: Recompute, library: bool) {
    let cx = IrContext::new();
    let mut module = import(&cx, &step(name, TRAINED)).unwrap();
    let passes = Pipeline::parse(&training_text(Goal::Gpu, policy, &Fusion::On)).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{error}"));
    let options = Options { library, ..Options::default() };
    let mut lowered = emit_gpu(&module, "sm_80", &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    let Some(found) = held_to_the_rules(name, &mut lowered) else { return };
    lowered.program.check().expect("the program holds with its registers known");
    golden(&format!("training-{name}"), &found);
}

#[test]
fn training_steps_of_amber_and_crystalcoder() {
    trains("amber", Recompute::Selective, false);
    trains("crystalcoder", Recompute::Full, true);
}

#[test]
fn training_steps_with_scores_in_memory_wide_heads_slopes_and_learned_positions() {
    trains("llama-3-8b", Recompute::None, false);
    trains("gpt-j-6b", Recompute::Selective, false);
    trains("jais-13b", Recompute::Selective, true);
    trains("cerebras-gpt-111m", Recompute::None, true);
}

const DEGREES: Degrees = Degrees { tensor: 4, pipeline: 2 };
const REPLICAS: u64 = 2;

/// What a rank of Amber runs: prefill, or a training step whose replicas share their state so.
fn rank(place: Place, step_of: Option<(&Graph, StateSharding)>) -> Lowered {
    let cx = IrContext::new();
    let dims = Dims { batch: 8, seq: 2048, cached: 0 };
    let way = Way { sequence: step_of.is_some(), ..Way::default() };
    let shard = shard_text(DEGREES, way, place);
    let passes = match step_of {
        Some(_) => rank_training(Goal::Gpu, Recompute::Selective, &Fusion::On, &shard),
        None => rank_pipeline(Goal::Gpu, Mup::Fold, &Fusion::On, &shard),
    };
    let mut module = match step_of {
        Some((graph, _)) => import(&cx, graph),
        None => import(&cx, &Graph::build(&bf16("amber"), Mode::Prefill, dims).unwrap()),
    }
    .unwrap();
    let report = run(&mut module, &passes.unwrap(), Watch::default()).unwrap_or_else(|e| panic!("{e}"));
    let (part, options) = (report.shard.expect("a part"), Options::default());
    let lowered = match step_of {
        Some((_, sharding)) => {
            let together = Together { replicas: REPLICAS, sharding, micros: 4 };
            emit_gpu_training_part(&module, "sm_80", &options, &part, together)
        }
        None => emit_gpu_part(&module, "sm_80", &options, &part, REPLICAS),
    };
    lowered.unwrap_or_else(|error| panic!("{error}"))
}

/// The first rank and the last, which between them have all kinds of kernels; a text that an earlier one has is not told again.
#[test]
fn kernels_of_the_ranks_of_a_spread_model() {
    let graph = step("amber", TRAINED);
    let steps = [StateSharding::Optimizer, StateSharding::Full].map(|sharding| Some((&graph, sharding)));
    let (mut found, mut known) = (String::new(), BTreeSet::new());
    for step_of in [None].into_iter().chain(steps) {
        for place in [Place { tensor: 0, stage: 0 }, Place { tensor: 3, stage: 1 }] {
            let mut lowered = rank(place, step_of);
            lowered.sources.retain(|source| known.insert(source.text.clone()));
            if lowered.sources.is_empty() {
                continue;
            }
            let what = step_of.map_or("prefill", |(_, sharding)| match sharding {
                StateSharding::Optimizer => "training, the optimizer's state shared",
                _ => "training, everything shared",
            });
            let Some(lines) = held_to_the_rules("amber", &mut lowered) else { return };
            found.push_str(&format!("{what}: rank {} of stage {}\n{lines}", place.tensor, place.stage));
        }
    }
    golden("spread-amber-tp4pp2dp2", &found);
}
