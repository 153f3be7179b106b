//! The rules a specification keeps: ranges key by key, then relations between keys.
//!
//! The limits are far above any published model and low enough that no count of parameters, bytes or
//! operations that follows from them leaves 64 bits.

use crate::dtype::DType;
use crate::fault::{FaultKind, suggestion};
use crate::spec::{
    AttentionScale, GateHalf, ModelSpec, NormKind, Position, QkvLayout, Residual, RopeScaling,
};
use crate::weights::{self, WeightsError};

/// Largest accepted sizes, in elements.
pub mod limits {
    /// `vocab` and `vocab_padded_to`: 16 times the largest published vocabulary.
    pub const VOCAB: u64 = 1 << 22;
    /// `d_model`; GPT-3 175B has 12,288.
    pub const WIDTH: u64 = 1 << 20;
    /// `d_ff`.
    pub const FFN: u64 = 1 << 22;
    /// `n_layers`.
    pub const LAYERS: u64 = 1 << 12;
    /// `n_heads`.
    pub const HEADS: u64 = 1 << 12;
    /// `head_dim`.
    pub const HEAD_DIM: u64 = 1 << 14;
    /// `n_heads * head_dim`.
    pub const HEADS_WIDTH: u64 = 1 << 22;
    /// `experts.count`; the largest published layers have a few thousand.
    pub const EXPERTS: u64 = 1 << 16;
    /// `max_seq`.
    pub const SEQUENCE: u64 = 1 << 27;
    /// Characters of `name`.
    pub const NAME: usize = 200;
    /// Factors and bases.
    pub const FACTOR: f64 = 1e12;
}

/// A rule that a specification breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The keys that take part; it is shown at the first.
    pub keys: Vec<&'static str>,
    /// What was expected and what was found.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
    /// Out of range, or a rule across keys.
    pub kind: FaultKind,
}

/// Every rule that `spec` breaks. Rules across keys are left out where one of the keys is out of range.
pub fn validate(spec: &ModelSpec) -> Vec<Violation> {
    let mut violations = counts(spec);
    violations.extend(numbers(spec));
    violations.extend(name(spec));
    let ranged: Vec<&str> = violations.iter().map(|violation| violation.keys[0]).collect();
    let mut rules = [heads(spec), norms(spec), positions(spec), tokens(spec), forms(spec)].concat();
    rules.extend(vocabulary(spec));
    rules.extend(mlp(spec));
    rules.extend(experts(spec));
    rules.retain(|rule| !rule.keys.iter().any(|key| ranged.contains(key)));
    violations.extend(rules);
    if violations.is_empty() {
        violations.extend(names(spec));
    }
    violations
}

/// A naming scheme that has no name for one of the parameters. Asked last: it needs a sound specification.
fn names(spec: &ModelSpec) -> Option<Violation> {
    let WeightsError::NoName { scheme, parameter } =
        weights::sources(&ModelSpec { n_layers: 1, ..spec.clone() }).err()?
    else {
        return None;
    };
    let message = format!("the naming scheme \"{scheme}\" has no name for {parameter}");
    let hint = "use names = \"canonical\", or the form that the scheme publishes".to_string();
    rule(&["weights.names", "weights.qkv"], message, Some(hint))
}

/// The violation of a head count that does not divide the width, where no `head_dim` is given.
pub(crate) fn heads_divide(d_model: u64, n_heads: u64) -> Option<Violation> {
    if n_heads == 0 || d_model == 0 || d_model.is_multiple_of(n_heads) {
        return None;
    }
    let message = format!("a width of {d_model} does not divide into {n_heads} heads");
    let near = near_divisors(d_model, n_heads).map(|n| n.to_string()).collect::<Vec<_>>().join(" or ");
    let hint = format!("use {near} heads, or give head_dim");
    rule(&["n_heads", "d_model"], message, Some(hint))
}

/// The divisors of `n` next below and next above `near`.
fn near_divisors(n: u64, near: u64) -> impl Iterator<Item = u64> {
    let reach = near.min(limits::WIDTH);
    let below = (1..reach).rev().find(|d| n.is_multiple_of(*d));
    let above = (reach + 1..=n.min(limits::WIDTH)).find(|d| n.is_multiple_of(*d));
    below.into_iter().chain(above)
}

fn rule(keys: &[&'static str], message: String, hint: Option<String>) -> Option<Violation> {
    Some(Violation { keys: keys.to_vec(), message, hint, kind: FaultKind::Rule })
}

type Count = (&'static str, Option<u64>, u64);

fn counts(spec: &ModelSpec) -> Vec<Violation> {
    let rope = match spec.pos {
        Position::Rope(rope) => Some(rope),
        _ => None,
    };
    let original_max = match rope.map(|rope| rope.scaling) {
        Some(RopeScaling::Llama3 { original_max, .. }) => Some(original_max),
        _ => None,
    };
    let table: [Count; 15] = [
        ("vocab", Some(spec.vocab), limits::VOCAB),
        ("vocab_padded_to", spec.vocab_padded_to, limits::VOCAB),
        ("d_model", Some(spec.d_model), limits::WIDTH),
        ("n_layers", Some(spec.n_layers), limits::LAYERS),
        ("n_heads", Some(spec.n_heads), limits::HEADS),
        ("n_kv_heads", Some(spec.n_kv_heads), limits::HEADS),
        ("head_dim", Some(spec.head_dim), limits::HEAD_DIM),
        ("d_ff", Some(spec.d_ff), limits::FFN),
        ("max_seq", Some(spec.max_seq), limits::SEQUENCE),
        ("pos.rot_dims", rope.map(|rope| rope.rot_dims), limits::HEAD_DIM),
        ("pos.scaling.original_max", original_max, limits::SEQUENCE),
        ("attn.window", spec.attn.window, limits::SEQUENCE),
        ("mup.base_ffn", spec.mup.and_then(|mup| mup.base_ffn), limits::FFN),
        ("experts.top_k", spec.experts.map(|experts| experts.top_k), limits::EXPERTS),
        ("experts.every", spec.experts.map(|experts| experts.every), limits::LAYERS),
    ];
    table.into_iter().filter_map(count).collect()
}

fn count((key, value, max): Count) -> Option<Violation> {
    let value = value?;
    if (1..=max).contains(&value) {
        return None;
    }
    let hint = match value {
        0 if matches!(key, "attn.window" | "vocab_padded_to" | "mup.base_ffn") => {
            format!("leave {key} out for none")
        }
        0 => "sizes count from 1".to_string(),
        _ => "no machine holds such a model".to_string(),
    };
    let message = format!("expected 1 to {max}, found {value}");
    Some(Violation { keys: vec![key], message, hint: Some(hint), kind: FaultKind::OutOfRange })
}

fn numbers(spec: &ModelSpec) -> Vec<Violation> {
    let mut table = vec![
        ("norm.eps", spec.norm.eps, 1.0),
        ("multipliers.embedding", spec.multipliers.embedding, limits::FACTOR),
        ("multipliers.logits", spec.multipliers.logits, limits::FACTOR),
        ("multipliers.residual", spec.multipliers.residual, limits::FACTOR),
    ];
    table.extend(position_numbers(spec.pos));
    let capacity = spec.experts.and_then(|experts| experts.capacity);
    table.extend(capacity.map(|capacity| ("experts.capacity", capacity, limits::FACTOR)));
    table.extend(spec.mup.map(|mup| ("mup.base_width", mup.base_width, limits::WIDTH as f64)));
    table.extend(spec.mup.map(|mup| ("mup.init_std", mup.init_std, limits::FACTOR)));
    table.extend(match spec.attn.scale {
        AttentionScale::Value(value) => Some(("attn.scale.value", value, limits::FACTOR)),
        AttentionScale::HeadDimPower(_) => None,
    });
    let mut violations: Vec<Violation> = table.into_iter().filter_map(positive).collect();
    if let AttentionScale::HeadDimPower(power) = spec.attn.scale
        && !(-4.0..=4.0).contains(&power)
    {
        let message = format!("expected a power from -4 to 4, found {power}");
        let hint = Some("-0.5 is usual, -1 for muP".to_string());
        let keys = vec!["attn.scale.head_dim_power"];
        violations.push(Violation { keys, message, hint, kind: FaultKind::OutOfRange });
    }
    violations
}

fn position_numbers(pos: Position) -> Vec<(&'static str, f64, f64)> {
    match pos {
        Position::None | Position::Learned => Vec::new(),
        Position::Alibi { scaling } => vec![("pos.scaling", scaling, limits::FACTOR)],
        Position::Rope(rope) => {
            let mut numbers = vec![("pos.theta", rope.theta, limits::FACTOR)];
            match rope.scaling {
                RopeScaling::None => {}
                RopeScaling::Linear { factor } => {
                    numbers.push(("pos.scaling.factor", factor, limits::FACTOR))
                }
                RopeScaling::Llama3 { factor, low_freq, high_freq, .. } => numbers.extend([
                    ("pos.scaling.factor", factor, limits::FACTOR),
                    ("pos.scaling.low_freq", low_freq, limits::FACTOR),
                    ("pos.scaling.high_freq", high_freq, limits::FACTOR),
                ]),
            }
            numbers
        }
    }
}

fn positive((key, value, max): (&'static str, f64, f64)) -> Option<Violation> {
    if value > 0.0 && value <= max {
        return None;
    }
    let message = format!("expected a number above 0 and at most {max:e}, found {value}");
    Some(Violation { keys: vec![key], message, hint: None, kind: FaultKind::OutOfRange })
}

fn name(spec: &ModelSpec) -> Option<Violation> {
    let length = spec.name.chars().count();
    if (1..=limits::NAME).contains(&length) && !spec.name.chars().any(char::is_control) {
        return None;
    }
    let message = format!("expected 1 to {} printable characters, found {length}", limits::NAME);
    Some(Violation { keys: vec!["name"], message, hint: None, kind: FaultKind::OutOfRange })
}

fn heads(spec: &ModelSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let (heads, kv_heads) = (spec.n_heads, spec.n_kv_heads);
    if kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
        let near: Vec<String> = near_divisors(heads, kv_heads).map(|n| n.to_string()).collect();
        let message = format!("{heads} heads do not share {kv_heads} key and value heads evenly");
        found.extend(rule(&["n_kv_heads", "n_heads"], message, Some(format!("use {}", near.join(" or ")))));
    }
    let width = heads.saturating_mul(spec.head_dim);
    if width > limits::HEADS_WIDTH {
        let message = format!("{heads} heads of {} make {width} columns", spec.head_dim);
        let hint = format!("n_heads * head_dim may be at most {}", limits::HEADS_WIDTH);
        found.extend(rule(&["head_dim", "n_heads"], message, Some(hint)));
    }
    if let Some(window) = spec.attn.window.filter(|window| *window > spec.max_seq) {
        let message = format!("a window of {window} hides nothing: the longest sequence is {}", spec.max_seq);
        found.extend(rule(&["attn.window", "max_seq"], message, Some("leave attn.window out".to_string())));
    }
    found
}

fn vocabulary(spec: &ModelSpec) -> Option<Violation> {
    let padded = spec.vocab_padded_to.filter(|padded| *padded < spec.vocab)?;
    let message = format!("a table of {padded} rows does not hold {} ids", spec.vocab);
    rule(&["vocab_padded_to", "vocab"], message, Some(format!("use {} or more", spec.vocab)))
}

fn norms(spec: &ModelSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    if spec.norm.kind == NormKind::Rms && spec.norm.bias {
        let message = "RMSNorm has no bias".to_string();
        let hint = Some("leave norm.bias out, or use kind = \"layer\"".to_string());
        found.extend(rule(&["norm.bias", "norm.kind"], message, hint));
    }
    if spec.block.shared_norm && spec.block.residual == Residual::Sequential {
        let message = "a sequential block has two norms".to_string();
        let hint = Some("use residual = \"parallel\", or leave shared_norm out".to_string());
        found.extend(rule(&["block.shared_norm", "block.residual"], message, hint));
    }
    if spec.head.tied && spec.bias.head {
        let message = "a tied head has no bias".to_string();
        found.extend(rule(&["bias.head", "head.tied"], message, Some("leave bias.head out".to_string())));
    }
    found
}

fn experts(spec: &ModelSpec) -> Vec<Violation> {
    let Some(experts) = spec.experts else { return Vec::new() };
    let mut found = Vec::new();
    if !(2..=limits::EXPERTS).contains(&experts.count) {
        let message = format!("expected 2 to {} experts, found {}", limits::EXPERTS, experts.count);
        found.extend(rule(&["experts.count"], message, Some("leave experts out for one MLP".to_string())));
    } else if experts.top_k > experts.count {
        let message = format!("a token cannot go to {} of {} experts", experts.top_k, experts.count);
        found.extend(rule(&["experts.top_k", "experts.count"], message, None));
    }
    if experts.every > 0 && !spec.n_layers.is_multiple_of(experts.every) {
        let message = format!("{} layers are no multiple of {}", spec.n_layers, experts.every);
        found.extend(rule(&["experts.every", "n_layers"], message, None));
    }
    found
}

fn mlp(spec: &ModelSpec) -> Option<Violation> {
    if spec.mlp.gated || spec.mlp.gate == GateHalf::First {
        return None;
    }
    let message = "a plain MLP has no gate".to_string();
    rule(&["mlp.gate", "mlp.gated"], message, Some("use gated = true, or leave gate out".to_string()))
}

fn positions(spec: &ModelSpec) -> Vec<Violation> {
    let Position::Rope(rope) = spec.pos else { return Vec::new() };
    let mut found = Vec::new();
    let even_at_most = (spec.head_dim - spec.head_dim % 2).min(rope.rot_dims - rope.rot_dims % 2);
    let hint = (even_at_most > 0).then(|| format!("use {even_at_most}"));
    if !rope.rot_dims.is_multiple_of(2) {
        let message = format!("dimensions rotate in pairs, and {} is odd", rope.rot_dims);
        found.extend(rule(&["pos.rot_dims", "head_dim"], message, hint));
    } else if rope.rot_dims > spec.head_dim {
        let message = format!("{} dimensions cannot rotate in a head of {}", rope.rot_dims, spec.head_dim);
        found.extend(rule(&["pos.rot_dims", "head_dim"], message, hint));
    }
    if let RopeScaling::Llama3 { low_freq, high_freq, .. } = rope.scaling
        && low_freq >= high_freq
    {
        let message = format!("low_freq {low_freq} must be below high_freq {high_freq}");
        let keys = ["pos.scaling.low_freq", "pos.scaling.high_freq"];
        found.extend(rule(&keys, message, Some("Llama 3.1 uses 1 and 4".to_string())));
    }
    found
}

fn tokens(spec: &ModelSpec) -> Vec<Violation> {
    let tokens = &spec.tokens;
    let named = [("tokens.bos", tokens.bos), ("tokens.eos", tokens.eos), ("tokens.pad", tokens.pad)];
    let named = named.into_iter().chain([("tokens.unk", tokens.unk)]);
    let named = named.filter_map(|(key, id)| Some((key, key.to_string(), id?)));
    let extra = tokens.extra.iter().map(|(name, id)| ("tokens.extra", format!("tokens.extra.{name}"), *id));
    let mut found: Vec<Violation> = named
        .chain(extra)
        .filter(|(_, _, id)| *id >= spec.vocab)
        .filter_map(|(key, name, id)| {
            let message = format!("{name} = {id}, but the vocabulary has {} ids", spec.vocab);
            rule(&[key, "vocab"], message, Some("ids count from 0".to_string()))
        })
        .collect();
    if tokens.add_bos && tokens.bos.is_none() {
        let message = "no text can start with a token that is not named".to_string();
        found.extend(rule(&["tokens.add_bos", "tokens.bos"], message, Some("give tokens.bos".to_string())));
    }
    found
}

fn forms(spec: &ModelSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    if spec.weights.qkv == QkvLayout::PerHead && spec.n_kv_heads != spec.n_heads {
        let message =
            "query, key and value of each head stand together only where every head has its own".to_string();
        let hint = Some("use qkv = \"split\" or \"concat\"".to_string());
        found.extend(rule(&["weights.qkv", "n_kv_heads", "n_heads"], message, hint));
    }
    let names = weights::scheme_names();
    if !names.contains(&spec.weights.names.as_str()) {
        let message = format!("no naming scheme is called \"{}\"", spec.weights.names);
        found.extend(rule(&["weights.names"], message, suggestion(&spec.weights.names, &names)));
    }
    let types = [
        ("dtype.params", spec.dtype.params),
        ("dtype.compute", spec.dtype.compute),
        ("dtype.reduce", spec.dtype.reduce),
    ];
    for (key, _) in types.into_iter().filter(|(_, dtype)| *dtype == DType::I32) {
        let message = "i32 is for token ids".to_string();
        found.extend(rule(&[key], message, Some("use f32, bf16 or f16".to_string())));
    }
    found
}
