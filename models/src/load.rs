//! Reads `model.toml`.

use crate::check::{Violation, heads_divide, validate};
use crate::document::{contains, parse_toml};
use crate::fault::{FaultKind, Faults};
use crate::read::{Reader, Section};
use crate::spec::{Activation, NormKind};
use crate::spec::{
    Attention, AttentionScale, Bias, Block, DTypes, Experts, Head, Mlp, ModelSpec, Multipliers, Mup, Norm,
    Pairing, Position, Rope, RopeScaling, Tokens, Weights,
};
use std::collections::BTreeMap;

/// The model that a `model.toml` describes. `source` names the file in messages; nothing is opened.
///
/// # Errors
/// Every fault of the text: syntax, unknown and missing keys, types, ranges, and rules across keys.
///
/// ```
/// let faults = lapidary_models::parse_model("d_model = 'wide'", "m.toml").unwrap_err();
/// assert!(faults.to_string().contains("m.toml:1:11: d_model: expected a whole number, found a string"));
/// ```
pub fn parse_model(text: &str, source: &str) -> Result<ModelSpec, Faults> {
    let document = parse_toml(text);
    let reader = Reader::new(text, &document.root);
    let spec = model(&reader);
    let (written, derived): (Vec<_>, Vec<_>) =
        validate(&spec).into_iter().partition(|violation| contains(&document.root, violation.keys[0]));
    written.into_iter().for_each(|violation| report(&reader, violation));
    if !reader.has_faults() {
        // Only now: a value that was filled in is wrong because of another one, which comes first.
        derived.into_iter().for_each(|violation| report(&reader, violation));
    }
    let mut faults = reader.into_faults();
    if !document.syntax.is_empty() {
        faults.retain(|fault| matches!(fault.kind, FaultKind::WrongType | FaultKind::OutOfRange));
        faults.retain(|fault| fault.line > 0 && !fault.span.is_empty());
        faults.extend(document.syntax);
    }
    if faults.is_empty() { Ok(spec) } else { Err(Faults::new(source, faults)) }
}

/// Shows a broken rule at its first key, unless one of its keys has a fault of its own.
fn report(reader: &Reader<'_>, violation: Violation) {
    if !violation.keys.iter().any(|key| reader.is_spoiled(key)) {
        reader.fault_at(violation.keys[0], violation.kind, violation.message, violation.hint);
    }
}

fn model(reader: &Reader<'_>) -> ModelSpec {
    let root = reader.root();
    let d_model = root.required("d_model", root.count("d_model"), 64);
    let n_heads = root.required("n_heads", root.count("n_heads"), 1);
    let spec = ModelSpec {
        name: root.required("name", root.text("name").map(str::to_string), "unnamed".into()),
        vocab: root.required("vocab", root.count("vocab"), 1),
        vocab_padded_to: root.count("vocab_padded_to"),
        d_model,
        n_layers: root.required("n_layers", root.count("n_layers"), 1),
        n_heads,
        n_kv_heads: root.count("n_kv_heads").unwrap_or(n_heads),
        head_dim: head_dim(reader, &root, d_model, n_heads),
        d_ff: root.required("d_ff", root.count("d_ff"), 1),
        max_seq: root.required("max_seq", root.count("max_seq"), 1),
        norm: norm(root.section("norm")),
        block: block(root.section("block")),
        mlp: mlp(root.section("mlp")),
        bias: bias(root.section("bias")),
        pos: position(root.section("pos")),
        attn: attention(root.section("attn")),
        head: head(root.section("head")),
        multipliers: multipliers(root.section("multipliers")),
        mup: mup(root.section("mup")),
        experts: experts(root.section("experts")),
        tokens: tokens(reader, root.section("tokens")),
        weights: weights(root.section("weights")),
        dtype: dtypes(root.section("dtype")),
    };
    root.finish();
    spec
}

/// The given width of a head, or an equal share of the model's.
fn head_dim(reader: &Reader<'_>, root: &Section<'_>, d_model: u64, n_heads: u64) -> u64 {
    if root.entry("head_dim").is_some() {
        return root.count("head_dim").unwrap_or(1);
    }
    if d_model == 0 || n_heads == 0 || reader.is_spoiled("d_model") || reader.is_spoiled("n_heads") {
        reader.spoil("head_dim");
    } else if let Some(violation) = heads_divide(d_model, n_heads) {
        report(reader, violation);
        reader.spoil("head_dim");
    }
    d_model.checked_div(n_heads).unwrap_or(1).max(1)
}

fn norm(s: Section<'_>) -> Norm {
    let norm = Norm {
        kind: s.required("kind", s.word("kind"), NormKind::Layer),
        eps: s.required("eps", s.float("eps"), 1e-5),
        bias: s.flag("bias").unwrap_or(false),
        final_norm: s.flag("final").unwrap_or(true),
    };
    s.finish();
    norm
}

fn block(s: Section<'_>) -> Block {
    let block = Block {
        residual: s.word("residual").unwrap_or_default(),
        shared_norm: s.flag("shared_norm").unwrap_or(false),
    };
    s.finish();
    block
}

fn mlp(s: Section<'_>) -> Mlp {
    let mlp = Mlp {
        act: s.required("act", s.word("act"), Activation::Silu),
        gated: s.flag("gated").unwrap_or(false),
        gate: s.word("gate").unwrap_or_default(),
    };
    s.finish();
    mlp
}

fn bias(s: Section<'_>) -> Bias {
    let flag = |key| s.flag(key).unwrap_or(false);
    let bias = Bias { qkv: flag("qkv"), attn_out: flag("attn_out"), mlp: flag("mlp"), head: flag("head") };
    s.finish();
    bias
}

fn position(s: Section<'_>) -> Position {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        None,
        Learned,
        Rope,
        Alibi,
    }
    let position = match s.required("kind", s.word("kind").map(Some), None) {
        // With the kind unknown no other key can be judged.
        None => return Position::None,
        Some(Kind::None) => Position::None,
        Some(Kind::Learned) => Position::Learned,
        Some(Kind::Alibi) => Position::Alibi { scaling: s.float("scaling").unwrap_or(1.0) },
        Some(Kind::Rope) => Position::Rope(Rope {
            theta: s.required("theta", s.float("theta"), 1e4),
            rot_dims: s.required("rot_dims", s.count("rot_dims"), 2),
            pairing: s.required("pairing", s.word("pairing"), Pairing::Half),
            scaling: rope_scaling(s.section("scaling")),
        }),
    };
    s.finish();
    position
}

fn rope_scaling(s: Section<'_>) -> RopeScaling {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        None,
        Linear,
        Llama3,
    }
    if !s.is_present() {
        return RopeScaling::None;
    }
    let number = |key| s.required(key, s.float(key), if key == "high_freq" { 2.0 } else { 1.0 });
    let scaling = match s.required("kind", s.word("kind").map(Some), None) {
        None => return RopeScaling::None,
        Some(Kind::None) => RopeScaling::None,
        Some(Kind::Linear) => RopeScaling::Linear { factor: number("factor") },
        Some(Kind::Llama3) => RopeScaling::Llama3 {
            factor: number("factor"),
            low_freq: number("low_freq"),
            high_freq: number("high_freq"),
            original_max: s.required("original_max", s.count("original_max"), 1),
        },
    };
    s.finish();
    scaling
}

fn attention(s: Section<'_>) -> Attention {
    let default = Attention::default();
    let attention = Attention {
        scale: attention_scale(s.section("scale")).unwrap_or(default.scale),
        window: s.count("window"),
    };
    s.finish();
    attention
}

fn attention_scale(s: Section<'_>) -> Option<AttentionScale> {
    let power = s.float("head_dim_power").map(AttentionScale::HeadDimPower);
    let value = s.float("value").map(AttentionScale::Value);
    if power.is_some() && value.is_some() {
        s.conflict("value", "head_dim_power");
    }
    s.finish();
    power.or(value)
}

fn head(s: Section<'_>) -> Head {
    let head = Head { tied: s.flag("tied").unwrap_or(false) };
    s.finish();
    head
}

fn multipliers(s: Section<'_>) -> Multipliers {
    let factor = |key| s.float(key).unwrap_or(1.0);
    let multipliers = Multipliers {
        embedding: factor("embedding"),
        logits: factor("logits"),
        residual: factor("residual"),
    };
    s.finish();
    multipliers
}

fn mup(s: Section<'_>) -> Option<Mup> {
    if !s.is_present() {
        return None;
    }
    let mup = Mup {
        base_width: s.required("base_width", s.float("base_width"), 1.0),
        base_ffn: s.count("base_ffn"),
        init_std: s.required("init_std", s.float("init_std"), 1.0),
    };
    s.finish();
    Some(mup)
}

fn experts(s: Section<'_>) -> Option<Experts> {
    if !s.is_present() {
        return None;
    }
    let experts = Experts {
        count: s.required("count", s.count("count"), 2),
        top_k: s.required("top_k", s.count("top_k"), 1),
        capacity: s.float("capacity"),
        every: s.count("every").unwrap_or(1),
    };
    s.finish();
    Some(experts)
}

fn tokens(reader: &Reader<'_>, s: Section<'_>) -> Tokens {
    let tokens = Tokens {
        bos: s.count("bos"),
        eos: s.count("eos"),
        pad: s.count("pad"),
        unk: s.count("unk"),
        add_bos: s.flag("add_bos").unwrap_or(false),
        extra: extra_tokens(reader, s.section("extra")),
    };
    s.finish();
    tokens
}

fn extra_tokens(reader: &Reader<'_>, s: Section<'_>) -> BTreeMap<String, u64> {
    let mut tokens = BTreeMap::new();
    for (name, entry) in s.entries() {
        match &entry.value.data {
            crate::document::Data::Integer(id) if u64::try_from(*id).is_ok() => {
                tokens.insert(name.to_string(), *id as u64);
            }
            other => {
                let message = format!("expected a token id, found {}", other.type_name());
                let span = entry.value.span.clone();
                reader.fault(&s.path(name), span, FaultKind::WrongType, message, None);
            }
        }
    }
    tokens
}

fn weights(s: Section<'_>) -> Weights {
    let default = Weights::default();
    let weights = Weights {
        names: s.text("names").map_or(default.names, str::to_string),
        layout: s.word("layout").unwrap_or_default(),
        qkv: s.word("qkv").unwrap_or_default(),
        ignore: s.texts("ignore").unwrap_or_default(),
        duplicates: s.texts("duplicates").unwrap_or_default(),
    };
    s.finish();
    weights
}

fn dtypes(s: Section<'_>) -> DTypes {
    let default = DTypes::default();
    let dtypes = DTypes {
        params: s.word("params").unwrap_or(default.params),
        compute: s.word("compute").unwrap_or(default.compute),
        reduce: s.word("reduce").unwrap_or(default.reduce),
    };
    s.finish();
    dtypes
}
