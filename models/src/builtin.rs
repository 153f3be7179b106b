//! The models that come with the program: one TOML file each, with its sources, embedded.

use crate::fault::{Faults, nearest};
use crate::load::parse_model;
use crate::spec::ModelSpec;
use thiserror::Error;

/// Name and text of every built-in model; a model is a row here and a file beside `Cargo.toml`.
const MODELS: &[(&str, &str)] = &[
    ("amber", include_str!("../amber.toml")),
    ("crystalcoder", include_str!("../crystalcoder.toml")),
    ("k2-65b", include_str!("../k2-65b.toml")),
    ("llama-2-7b", include_str!("../llama-2-7b.toml")),
    ("llama-3-8b", include_str!("../llama-3-8b.toml")),
    ("mistral-7b", include_str!("../mistral-7b.toml")),
    ("pythia-6.9b", include_str!("../pythia-6.9b.toml")),
    ("gpt-j-6b", include_str!("../gpt-j-6b.toml")),
    ("jais-13b", include_str!("../jais-13b.toml")),
    ("btlm-3b-8k", include_str!("../btlm-3b-8k.toml")),
    ("cerebras-gpt-111m", include_str!("../cerebras-gpt-111m.toml")),
    ("cerebras-gpt-256m", include_str!("../cerebras-gpt-256m.toml")),
    ("cerebras-gpt-590m", include_str!("../cerebras-gpt-590m.toml")),
    ("cerebras-gpt-1.3b", include_str!("../cerebras-gpt-1.3b.toml")),
    ("cerebras-gpt-2.7b", include_str!("../cerebras-gpt-2.7b.toml")),
    ("cerebras-gpt-6.7b", include_str!("../cerebras-gpt-6.7b.toml")),
    ("cerebras-gpt-13b", include_str!("../cerebras-gpt-13b.toml")),
    ("gpt3-125m", include_str!("../gpt3-125m.toml")),
    ("gpt3-350m", include_str!("../gpt3-350m.toml")),
    ("gpt3-760m", include_str!("../gpt3-760m.toml")),
    ("gpt3-1.3b", include_str!("../gpt3-1.3b.toml")),
    ("gpt3-2.7b", include_str!("../gpt3-2.7b.toml")),
    ("gpt3-6.7b", include_str!("../gpt3-6.7b.toml")),
    ("gpt3-13b", include_str!("../gpt3-13b.toml")),
    ("gpt3-175b", include_str!("../gpt3-175b.toml")),
];

/// Why there is no such built-in model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BuiltinError {
    /// No model has this name.
    #[error("no built-in model is called \"{name}\"{}", .near.map(|near| format!(" (hint: did you mean \"{near}\"?)")).unwrap_or_default())]
    Unknown {
        /// What was asked for.
        name: String,
        /// A name like it.
        near: Option<&'static str>,
    },
    /// The embedded file has faults; a test holds that none has.
    #[error(transparent)]
    Faults(#[from] Faults),
}

/// The built-in model of this name.
///
/// # Errors
/// [`BuiltinError::Unknown`] with the nearest name.
///
/// ```
/// let amber = lapidary_models::builtin("amber").unwrap();
/// assert_eq!(amber.parameters(), 6_738_415_616);
/// ```
pub fn builtin(name: &str) -> Result<ModelSpec, BuiltinError> {
    match builtin_text(name) {
        Some(text) => Ok(parse_model(text, &format!("{name}.toml"))?),
        None => Err(BuiltinError::Unknown { name: name.to_string(), near: nearest(name, builtin_names()) }),
    }
}

/// The names of the built-in models: LLM360's first, then by family and size.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

/// The TOML text of a built-in model, with its sources in the comment at the top.
pub fn builtin_text(name: &str) -> Option<&'static str> {
    MODELS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
