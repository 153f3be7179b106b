//! Reads Hugging Face `config.json` files: one file per family, and a report of what became of every key.

mod config;
mod gpt2;
mod gpt_neox;
mod gptj;
mod llama;
mod report;

pub(crate) use gpt2::base_width;
pub use report::{ImportEntry, ImportReport, ImportStatus};

use crate::document::parse_json;
use crate::fault::{FaultKind, Faults, suggestion};
use crate::spec::ModelSpec;
use config::Config;

/// A model read from a `config.json`, and what became of its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Import {
    /// The model. Its name is the last part of `_name_or_path`, or else the model type.
    pub spec: ModelSpec,
    /// Key by key: mapped, ignored, unknown.
    pub report: ImportReport,
}

type Family = fn(&Config<'_>) -> ModelSpec;

/// `model_type` to reader; a family is a row here and a file beside this one.
const FAMILIES: &[(&str, Family)] = &[
    ("btlm", gpt2::btlm),
    ("crystalcoder", gpt2::crystalcoder),
    ("gpt2", gpt2::gpt2),
    ("gpt_neox", gpt_neox::gpt_neox),
    ("gptj", gptj::gptj),
    ("jais", gpt2::jais),
    ("llama", llama::llama),
    ("mistral", llama::mistral),
];

/// The values of `model_type` that [`import_config`] reads.
pub fn known_families() -> Vec<&'static str> {
    FAMILIES.iter().map(|(name, _)| *name).collect()
}

/// The model that a Hugging Face `config.json` describes. `source` names the file in messages; nothing is opened.
///
/// # Errors
/// Every fault of the text. Values that this crate cannot express, such as YaRN scaling or an unknown
/// `model_type`, have the kind [`FaultKind::Unsupported`].
pub fn import_config(text: &str, source: &str) -> Result<Import, Faults> {
    let document = parse_json(text);
    if !document.syntax.is_empty() {
        return Err(Faults::new(source, document.syntax));
    }
    let config = Config::new(text, &document.root);
    let family = family(&config);
    let spec = family.map(|(name, read)| (name, read(&config)));
    if let Some((_, spec)) = &spec {
        config.check(spec);
    }
    let (entries, faults) = config.finish();
    match spec {
        Some((family, spec)) if faults.is_empty() => {
            Ok(Import { spec, report: ImportReport { family: family.to_string(), entries } })
        }
        _ => Err(Faults::new(source, faults)),
    }
}

fn family(config: &Config<'_>) -> Option<(&'static str, Family)> {
    let Some(name) = config.text("model_type", "weights.names") else {
        config.required("model_type", None, "");
        return None;
    };
    let family = FAMILIES.iter().find(|(known, _)| *known == name);
    if family.is_none() {
        let known = known_families();
        let message = format!("no reader for the model type \"{name}\"; known are {}", known.join(", "));
        let hint = suggestion(name, &known).filter(|hint| hint.starts_with("did"));
        let hint = hint.unwrap_or_else(|| "describe the model in a model.toml instead".to_string());
        config.fault("model_type", FaultKind::Unsupported, message, Some(hint));
    }
    family.copied()
}
