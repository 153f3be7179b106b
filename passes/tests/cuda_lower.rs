//! Lowering never panics: a random model becomes a checked program or an error with a hint.
#[path = "cuda_emulation/models.rs"]
mod models;
#[path = "cuda_emulation/region.rs"]
mod region;

use lapidary_passes::cuda::spec::{ActivationFn, NormKind, Pairing};
use lapidary_passes::cuda::{CudaError, Options, lower};
use lapidary_runtime_gpu::program::{BufferKind, Dtype, KernelKind, Step};
use models::{Model, Run};
use proptest::prelude::*;

fn model() -> impl Strategy<Value = Model> {
    let sizes = (1u64..200, 1u64..9, 0u32..4, 1u64..40, 1u64..300);
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0u64..4, any::<bool>());
    (sizes, kinds, 1u64..4, 1u64..50).prop_map(
        |((vocab, kv_heads, ratio, head, ff), (bias, plain, alibi, parallel, rope, tied), layers, d)| {
            let head_dim = if rope > 0 { 2 * head } else { head };
            let rot_dims = 2 * (head_dim / 2 / (1 + rope % 2)).max(1);
            let pairing = if rope == 1 { Pairing::Half } else { Pairing::Interleaved };
            Model {
                name: "random",
                vocab,
                d,
                layers,
                heads: kv_heads << ratio,
                kv_heads,
                head_dim,
                ff,
                norm: if bias { NormKind::Layer } else { NormKind::Rms },
                bias,
                plain: plain.then_some(ActivationFn::Relu2),
                rope: (rope > 0).then_some((pairing, rot_dims)),
                alibi,
                learned: rope == 0 && !alibi,
                parallel,
                window: ff % 7,
                tied,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn random_models_lower_to_checked_programs(
        model in model(), batch in 1u64..5, new in 1u64..40, cached in 0u64..30, single in any::<bool>()
    ) {
        let dtype = if single { Dtype::F32 } else { Dtype::Bf16 };
        let lowered = lower(&model.module(Run { batch, new, cached }, dtype), &Options::default());
        match lowered {
            Ok(lowered) => {
                let generated = lowered.program.kernels.iter().filter(|k| k.kind == KernelKind::Generated);
                prop_assert_eq!(generated.count(), lowered.sources.len());
                prop_assert!(lowered.program.arena_bytes <= lowered.program.arena_naive_bytes);
            }
            Err(error) => prop_assert!(matches!(error, CudaError::Unsupported { .. }), "{error}"),
        }
    }

    #[test]
    fn absurd_sizes_are_errors(scale in 30u32..62) {
        let huge = 1u64 << scale;
        for model in [
            Model { d: huge, ..Model::tiny() },
            Model { vocab: huge, ..Model::tiny() },
            Model { ff: huge, ..Model::tiny() },
            Model { layers: huge, ..Model::tiny() },
        ] {
            let _ = lower(&model.module(Run { batch: 1, new: 4, cached: 0 }, Dtype::Bf16), &Options::default());
        }
        let run = Run { batch: huge, new: 4, cached: 0 };
        prop_assert!(lower(&Model::tiny().module(run, Dtype::Bf16), &Options::default()).is_err());
    }
}

/// Amber at batch 8 x 2048: what is generated, what goes to the library, and that the arena is shared.
#[test]
fn amber_becomes_the_program_one_expects() {
    let amber = Model {
        name: "amber",
        vocab: 32000,
        d: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        ff: 11008,
        rope: Some((Pairing::Half, 128)),
        ..Model::tiny()
    };
    let run = Run { batch: 8, new: 2048, cached: 0 };
    let program = lower(&amber.module(run, Dtype::Bf16), &Options::default()).expect("it lowers").program;
    let kinds: Vec<(&str, bool)> =
        program.kernels.iter().map(|k| (k.name.as_str(), k.kind == KernelKind::Library)).collect();
    let expected = [
        ("amber_embed", false),
        ("amber_attn_norm", false),
        ("amber_qkv", false),
        ("amber_attention", false),
        ("amber_attn_out", true),
        ("amber_mlp_norm", false),
        ("amber_mlp", false),
        ("amber_mlp_down", true),
        ("amber_final_norm", false),
        ("amber_head", false),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(
        program.bytes_of(BufferKind::Param),
        2 * 6_738_415_616,
        "weights are stored once, without padding"
    );
    let cache = 2 * 32 * 8 * 2048 * 4096 * 2;
    assert_eq!(program.bytes_of(BufferKind::Cache), cache);
    // Alive at once at most: hidden state, sum after attention, and the widened row (or q with the norm's result).
    assert_eq!(program.arena_bytes, 16384 * (4096 + 4096 + 4096 + 11008) * 2 - 16384 * 4096 * 2);
    assert!(matches!(&program.steps[1], Step::Repeat { times: 32, body, .. } if body.len() == 7));
    let order = program.buffer("cache.k").map(|b| b.column_order.source_row(1));
    assert_eq!(order, Some(64), "keys are cached with their rotary pairs as neighbours");
}

#[test]
fn the_same_module_gives_the_same_bytes() {
    let make = || {
        lower(&Model::tiny().module(Run { batch: 2, new: 9, cached: 0 }, Dtype::Bf16), &Options::default())
    };
    assert_eq!(make(), make());
}

/// A value may leave the module from the place that a repeat keeps it in.
#[test]
fn the_hidden_state_can_be_an_output() {
    let mut module = Model::tiny().module(Run { batch: 1, new: 3, cached: 0 }, Dtype::Bf16);
    let hidden = module.values.iter().position(|value| value.name == "hidden").expect("the repeat's result");
    module.outputs.push(hidden);
    let lowered = lower(&module, &Options::default()).expect("it lowers");
    let place = &lowered.places[hidden];
    assert_eq!(lowered.program.buffer(place).map(|b| b.kind), Some(BufferKind::Output));
}
