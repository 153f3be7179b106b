//! The names that published checkpoints give to parameters, family by family.

/// A tensor of a published checkpoint, without `.weight` or `.bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Embed,
    Position,
    AttnNorm,
    Query,
    Key,
    Value,
    Qkv,
    AttnOut,
    MlpNorm,
    MlpFirst,
    MlpSecond,
    MlpDown,
    FinalNorm,
    Head,
}

/// One family's names; `*` stands for the layer.
pub(super) struct Scheme {
    pub name: &'static str,
    names: &'static [(Slot, &'static str)],
}

impl Scheme {
    pub fn pattern(&self, slot: Slot) -> Option<&'static str> {
        self.names.iter().find(|(of, _)| *of == slot).map(|(_, name)| *name)
    }
}

/// Every scheme; a family is a row here and a table below.
pub(super) const SCHEMES: &[Scheme] = &[
    Scheme { name: "llama", names: LLAMA },
    Scheme { name: "gpt_neox", names: GPT_NEOX },
    Scheme { name: "gpt2", names: GPT2 },
    Scheme { name: "gptj", names: GPTJ },
    Scheme { name: "crystalcoder", names: GPT2 },
];

const LLAMA: &[(Slot, &str)] = &[
    (Slot::Embed, "model.embed_tokens"),
    (Slot::AttnNorm, "model.layers.*.input_layernorm"),
    (Slot::Query, "model.layers.*.self_attn.q_proj"),
    (Slot::Key, "model.layers.*.self_attn.k_proj"),
    (Slot::Value, "model.layers.*.self_attn.v_proj"),
    (Slot::AttnOut, "model.layers.*.self_attn.o_proj"),
    (Slot::MlpNorm, "model.layers.*.post_attention_layernorm"),
    (Slot::MlpFirst, "model.layers.*.mlp.gate_proj"),
    (Slot::MlpSecond, "model.layers.*.mlp.up_proj"),
    (Slot::MlpDown, "model.layers.*.mlp.down_proj"),
    (Slot::FinalNorm, "model.norm"),
    (Slot::Head, "lm_head"),
];

const GPT_NEOX: &[(Slot, &str)] = &[
    (Slot::Embed, "gpt_neox.embed_in"),
    (Slot::AttnNorm, "gpt_neox.layers.*.input_layernorm"),
    (Slot::Qkv, "gpt_neox.layers.*.attention.query_key_value"),
    (Slot::AttnOut, "gpt_neox.layers.*.attention.dense"),
    (Slot::MlpNorm, "gpt_neox.layers.*.post_attention_layernorm"),
    (Slot::MlpFirst, "gpt_neox.layers.*.mlp.dense_h_to_4h"),
    (Slot::MlpDown, "gpt_neox.layers.*.mlp.dense_4h_to_h"),
    (Slot::FinalNorm, "gpt_neox.final_layer_norm"),
    (Slot::Head, "embed_out"),
];

/// GPT-2, Cerebras-GPT, BTLM, Jais and CrystalCoder; `c_fc2` only where the MLP is gated.
const GPT2: &[(Slot, &str)] = &[
    (Slot::Embed, "transformer.wte"),
    (Slot::Position, "transformer.wpe"),
    (Slot::AttnNorm, "transformer.h.*.ln_1"),
    (Slot::Qkv, "transformer.h.*.attn.c_attn"),
    (Slot::AttnOut, "transformer.h.*.attn.c_proj"),
    (Slot::MlpNorm, "transformer.h.*.ln_2"),
    (Slot::MlpFirst, "transformer.h.*.mlp.c_fc"),
    (Slot::MlpSecond, "transformer.h.*.mlp.c_fc2"),
    (Slot::MlpDown, "transformer.h.*.mlp.c_proj"),
    (Slot::FinalNorm, "transformer.ln_f"),
    (Slot::Head, "lm_head"),
];

const GPTJ: &[(Slot, &str)] = &[
    (Slot::Embed, "transformer.wte"),
    (Slot::AttnNorm, "transformer.h.*.ln_1"),
    (Slot::Query, "transformer.h.*.attn.q_proj"),
    (Slot::Key, "transformer.h.*.attn.k_proj"),
    (Slot::Value, "transformer.h.*.attn.v_proj"),
    (Slot::AttnOut, "transformer.h.*.attn.out_proj"),
    (Slot::MlpFirst, "transformer.h.*.mlp.fc_in"),
    (Slot::MlpDown, "transformer.h.*.mlp.fc_out"),
    (Slot::FinalNorm, "transformer.ln_f"),
    (Slot::Head, "lm_head"),
];
