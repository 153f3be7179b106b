//! Replicas that share the optimizer's state (ZeRO-1), or weights, gradients and the optimizer's state (FSDP).
use super::*;
use StateSharding::{Full, Optimizer};
use lapidary_runtime_gpu::program::{Group, Said};

/// What the program holds of that kind, in bytes.
fn bytes_of(program: &GpuProgram, kind: BufferKind) -> f64 {
    program.bytes_of(kind) as f64
}

fn words(program: &GpuProgram, said: Said) -> usize {
    let of = |step: &&Step| matches!(step, Step::Meet(meeting) if meeting.said == said && meeting.group == Group::Data);
    program.flat_steps().iter().filter(|step| of(step)).count()
}

/// Replicas that have the optimizer's state for a run each (ZeRO-1), or of everything a run alone (FSDP).
#[test]
fn replicas_that_share_their_state_train_as_the_whole_model() {
    use BufferKind::{State, Weight};
    let amber = small("amber", DType::F32);
    let spread = |sharding| Spread::of([1, 4, 1], 1).sharding(sharding);
    let every = Spread::of([1, 2, 1], 2).sharding(Full);
    let programs = check(&amber, &[spread(Optimizer), spread(Full), every], 2e-4);
    let whole = rank(&amber, &spread(StateSharding::None), Place { tensor: 0, stage: 0 }).program;
    let [one, all, _] = &programs[..] else { panic!("three spreads") };
    // Gradients stay whole, of moments a fourth is there, and a run of the sums: (4 + 1 + 8 / 4) of 12 bytes.
    let saved = bytes_of(&one[0], State) / bytes_of(&whole, State);
    assert!((0.55..0.75).contains(&saved), "{saved}");
    // Rows that fill the tiles of the head are gathered to, not held.
    for kind in [Weight, State] {
        let saved = bytes_of(&all[0], kind) / bytes_of(&whole, kind);
        assert!((0.23..0.36).contains(&saved), "{kind:?}: {saved}");
    }
    // Nine weights of a layer and three others: gathered behind the step, or before each use; table and head are used in
    // the forward pass or the backward pass alone.
    assert_eq!((words(&one[0], Said::SumScatter), words(&one[0], Said::Gather)), (12, 12));
    assert_eq!((words(&all[0], Said::SumScatter), words(&all[0], Said::Gather)), (12, 21));
}

/// Ranks of a tensor-parallel group hold the same key and value head, whose gradients are summed before they are scattered.
#[test]
fn replicas_of_tensor_parallel_ranks_share_their_state() {
    let shared = ModelSpec { n_kv_heads: 1, ..small("llama-3-8b", DType::F32) };
    let spread = |sharding| Spread::of([2, 2, 1], 1).sharding(sharding);
    check(&shared, &[spread(Optimizer), spread(Full).rows()], 2e-4);
}

/// Embedding and head are one weight of the first stage and the last, which tell each other their runs of its gradient.
#[test]
fn replicas_of_stages_share_their_state() {
    let spread = |sharding| Spread::of([1, 2, 2], 2).sharding(sharding);
    check(&small("cerebras-gpt-111m", DType::F32), &[spread(Optimizer), spread(Full)], 2e-4);
}

/// Weights in bf16 have masters in single precision, of which a replica has its run.
#[test]
fn replicas_of_bf16_models_share_their_state() {
    let spread = |degrees, sharding| Spread::of(degrees, 2).sharding(sharding);
    let spreads = [spread([1, 2, 1], Optimizer), spread([1, 2, 1], Full), spread([1, 2, 2], Full)];
    check(&small("amber", DType::Bf16), &spreads, 0.02);
}

/// Programs that share their state in other ways do not go together.
#[test]
fn replicas_have_to_agree_on_what_they_share() {
    let amber = small("amber", DType::F32);
    let stage = |stage, sharding| {
        rank(&amber, &Spread::of([1, 2, 2], 2).sharding(sharding), Place { tensor: 0, stage }).program
    };
    let told = check_together(&[&stage(0, Optimizer), &stage(1, Full)]).unwrap_err();
    let why = "replicas share `optimizer` of their state in one program and `full` in another";
    assert!(told.iter().any(|fault| fault.to_string().contains(why)), "{told:?}");
    let mut alone = stage(0, Full);
    alone.share.as_mut().unwrap().sharding = StateSharding::None;
    let told = alone.check().unwrap_err()[0].to_string();
    assert!(told.ends_with("is a replica's own, but every one of tp1pp2dp2 holds everything"), "{told}");
}
