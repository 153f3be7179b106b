//! Random valid specifications for property tests; behind the feature `strategy`.

use crate::spec::{
    Activation, Attention, AttentionScale, Bias, Block, DTypes, GateHalf, Head, Mlp, ModelSpec, Multipliers,
    Mup, Norm, NormKind, Pairing, Position, Residual, Rope, RopeScaling, Tokens, Weights,
};
use proptest::prelude::*;

/// Small specifications of every form: widths to 96, up to 3 layers, odd sizes included, canonical weights.
pub fn specs() -> impl Strategy<Value = ModelSpec> {
    let forms = (norms(), blocks(), mlps(), any::<[bool; 5]>());
    let attention = (positions(), scales(), proptest::option::of(1u64..12));
    let factors = (multipliers(), proptest::option::of(mups()));
    (sizes(), forms, attention, factors).prop_map(|(sizes, forms, attention, factors)| {
        let (norm, block, mlp, [qkv, attn_out, mlp_bias, head_bias, tied]) = forms;
        let (position, scale, window) = attention;
        let head_dim = sizes.head_dim;
        ModelSpec {
            norm,
            block,
            mlp,
            bias: Bias { qkv, attn_out, mlp: mlp_bias, head: head_bias && !tied },
            pos: fit(position, head_dim),
            attn: Attention { scale, window: window.filter(|window| *window <= sizes.max_seq) },
            head: Head { tied },
            multipliers: factors.0,
            mup: factors.1,
            ..sizes
        }
    })
}

/// A specification with the sizes drawn and the rest plain.
fn sizes() -> impl Strategy<Value = ModelSpec> {
    let heads = (1u64..4, 1u64..4, 1u64..25);
    let widths = (1u64..97, 1u64..130, 1u64..60, 0u64..5);
    (heads, widths, 1u64..4, 12u64..40).prop_map(
        |((kv, group, head_dim), (d, f, v, pad), layers, max_seq)| ModelSpec {
            name: "random".into(),
            vocab: v,
            vocab_padded_to: (pad > 0).then_some(v + pad - 1),
            d_model: d,
            n_layers: layers,
            n_heads: kv * group,
            n_kv_heads: kv,
            head_dim,
            d_ff: f,
            max_seq,
            norm: Norm { kind: NormKind::Layer, eps: 1e-5, bias: true, final_norm: true },
            block: Block::default(),
            mlp: Mlp { act: Activation::Silu, gated: false, gate: GateHalf::First },
            bias: Bias::default(),
            pos: Position::None,
            attn: Attention::default(),
            head: Head::default(),
            multipliers: Multipliers::default(),
            mup: None,
            experts: None,
            tokens: Tokens { eos: Some(v - 1), ..Tokens::default() },
            weights: Weights::default(),
            dtype: DTypes::default(),
        },
    )
}

fn norms() -> impl Strategy<Value = Norm> {
    (any::<[bool; 3]>(), 1e-6f64..1e-3).prop_map(|([rms, bias, final_norm], eps)| Norm {
        kind: if rms { NormKind::Rms } else { NormKind::Layer },
        eps,
        bias: bias && !rms,
        final_norm,
    })
}

fn blocks() -> impl Strategy<Value = Block> {
    any::<[bool; 2]>().prop_map(|[parallel, shared]| Block {
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        shared_norm: parallel && shared,
    })
}

fn mlps() -> impl Strategy<Value = Mlp> {
    use Activation::{Gelu, GeluTanh, Relu, Relu2, Silu};
    let activations = proptest::sample::select(vec![Silu, Gelu, GeluTanh, Relu, Relu2]);
    (activations, any::<[bool; 2]>()).prop_map(|(act, [gated, second])| Mlp {
        act,
        gated,
        gate: if gated && second { GateHalf::Second } else { GateHalf::First },
    })
}

fn positions() -> impl Strategy<Value = Position> {
    let rope =
        (1e2f64..1e6, 1u64..13, any::<bool>(), scalings()).prop_map(|(theta, pairs, half, scaling)| {
            let pairing = if half { Pairing::Half } else { Pairing::Interleaved };
            Position::Rope(Rope { theta, rot_dims: 2 * pairs, pairing, scaling })
        });
    let alibi = (0.1f64..2.0).prop_map(|scaling| Position::Alibi { scaling });
    prop_oneof![Just(Position::None), Just(Position::Learned), alibi, rope.clone(), rope]
}

fn scalings() -> impl Strategy<Value = RopeScaling> + Clone {
    let linear = (1f64..16.0).prop_map(|factor| RopeScaling::Linear { factor });
    let llama3 = (1f64..32.0, 4u64..64).prop_map(|(factor, original_max)| RopeScaling::Llama3 {
        factor,
        low_freq: 1.0,
        high_freq: 4.0,
        original_max,
    });
    prop_oneof![Just(RopeScaling::None), linear, llama3]
}

/// Rotates no more than a head has; a head of one dimension cannot rotate.
fn fit(position: Position, head_dim: u64) -> Position {
    match position {
        Position::Rope(_) if head_dim < 2 => Position::None,
        Position::Rope(rope) => {
            Position::Rope(Rope { rot_dims: rope.rot_dims.min(head_dim - head_dim % 2), ..rope })
        }
        other => other,
    }
}

fn scales() -> impl Strategy<Value = AttentionScale> {
    prop_oneof![
        Just(AttentionScale::HeadDimPower(-0.5)),
        Just(AttentionScale::HeadDimPower(-1.0)),
        (0.01f64..1.0).prop_map(AttentionScale::Value),
    ]
}

fn multipliers() -> impl Strategy<Value = Multipliers> {
    let factor = || prop_oneof![Just(1.0), 0.1f64..15.0];
    (factor(), factor(), factor()).prop_map(|(embedding, logits, residual)| Multipliers {
        embedding,
        logits,
        residual,
    })
}

fn mups() -> impl Strategy<Value = Mup> {
    let base_width = prop_oneof![(1u64..64).prop_map(|width| width as f64), 0.5f64..64.0];
    (base_width, proptest::option::of(1u64..64), 0.001f64..0.1)
        .prop_map(|(base_width, base_ffn, init_std)| Mup { base_width, base_ffn, init_std })
}
