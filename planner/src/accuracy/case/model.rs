//! The model of a row: its printed sizes, and what its make says of the rest.

use super::super::family::{Positions, traits};
use super::super::row::Row;
use super::super::source::known;
use super::{Skip, need};
use lapidary_models::spec::{Activation, Attention, Bias, Block, Head, Mlp, Multipliers, Norm, NormKind};
use lapidary_models::spec::{Pairing, Position, Residual, Rope, RopeScaling, Tokens, Weights};
use lapidary_models::{ModelSpec, validate};

/// Token ids where a publication prints none: GPT-2's vocabulary, padded to 128 as Megatron does.
const DEFAULT_VOCAB: u64 = 50304;

pub(super) fn model(row: &Row, assumed: &mut Vec<String>) -> Result<ModelSpec, Skip> {
    let (width, layers, heads) = (need(row, "hidden")?, need(row, "layers")?, need(row, "heads")?);
    let vocab = row.count("vocab").unwrap_or_else(|| {
        assumed.push(format!("{DEFAULT_VOCAB} token ids"));
        DEFAULT_VOCAB
    });
    let mlp = row.word("mlp").to_lowercase();
    let gated = mlp.contains("glu");
    let (name, sequence) = (row.word("model"), need(row, "seq_len")?);
    let lower = format!("{name} {}", row.word("framework")).to_lowercase();
    let traits = traits(&lower, vocab);
    let position = known(row.word("source")).and_then(|source| source.position).or(traits.position);
    let rotary = gated || position == Some(Positions::Rope);
    let alibi = position == Some(Positions::Alibi);
    let head_dim = if width.is_multiple_of(heads) { width / heads } else { width.div_ceil(heads) };
    let spec = ModelSpec {
        name: name.to_string(),
        vocab,
        vocab_padded_to: None,
        d_model: width,
        n_layers: layers,
        n_heads: heads,
        n_kv_heads: row.count("kv_heads").unwrap_or(heads),
        head_dim,
        d_ff: row.count("ffn").unwrap_or(4 * width),
        max_seq: sequence,
        norm: Norm {
            kind: if gated { NormKind::Rms } else { NormKind::Layer },
            eps: 1e-5,
            bias: !gated,
            final_norm: true,
        },
        block: Block {
            residual: if traits.parallel { Residual::Parallel } else { Residual::Sequential },
            shared_norm: false,
        },
        mlp: Mlp {
            act: if gated { Activation::Silu } else { Activation::Gelu },
            gated,
            gate: Default::default(),
        },
        bias: Bias { qkv: !gated, attn_out: !gated, mlp: !gated, head: false },
        pos: positions(rotary, alibi, head_dim),
        attn: Attention::default(),
        head: Head { tied: !(gated || rotary) },
        multipliers: Multipliers::default(),
        mup: None,
        experts: None,
        tokens: Tokens::default(),
        weights: Weights::default(),
        dtype: Default::default(),
    };
    match validate(&spec).into_iter().next() {
        None => Ok(spec),
        Some(fault) => Err(Skip(format!("{}: {}", fault.keys.join(", "), fault.message))),
    }
}

fn positions(rotary: bool, alibi: bool, head_dim: u64) -> Position {
    match (rotary, alibi) {
        (true, _) => Position::Rope(Rope {
            theta: 10000.0,
            rot_dims: head_dim / 2 * 2,
            pairing: Pairing::Half,
            scaling: RopeScaling::None,
        }),
        (_, true) => Position::Alibi { scaling: 1.0 },
        _ => Position::Learned,
    }
}
