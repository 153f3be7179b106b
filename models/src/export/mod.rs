//! Writes Hugging Face `config.json` texts: the inverse of `import`, one function per family.
//!
//! A text is only given out when [`import_config`] reads the same model from it, so a family never says less than
//! the model needs. What no `config.json` carries is left to the tokenizer (further token ids) or to the training run.

mod families;

use crate::import::import_config;
use crate::spec::{ModelSpec, Tokens};
use serde_json::{Map, Value};

/// A model in a published form.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The `model_type` of its `config.json`.
    pub family: String,
    /// The text of `config.json`.
    pub config: String,
    /// The model as the text reads: with the family's names and layouts of weights, and without what no
    /// `config.json` carries.
    pub spec: ModelSpec,
}

type Object = Map<String, Value>;

/// A family's configuration of a model, as far as the family can say it.
type Writer = fn(&ModelSpec) -> Object;

/// Naming scheme and writer, tried in this order for a model that names no scheme of its own.
const WRITERS: &[(&str, Writer)] = &[
    ("llama", families::llama),
    ("gpt_neox", families::gpt_neox),
    ("gptj", families::gptj),
    ("crystalcoder", families::gpt2),
    ("gpt2", families::gpt2),
];

/// The model as a published family; none where no family can say all of it. A model whose weights are named by a
/// scheme is written as that family, one with canonical names as the first that fits.
pub fn export_config(spec: &ModelSpec) -> Option<Published> {
    let canonical = spec.weights.names == "canonical";
    let writers = WRITERS.iter().filter(|(scheme, _)| canonical || *scheme == spec.weights.names);
    writers.filter_map(|(_, write)| read_back(spec, write(spec))).next()
}

fn read_back(spec: &ModelSpec, config: Object) -> Option<Published> {
    let text = format!("{:#}\n", Value::Object(config));
    let import = import_config(&text, "config.json").ok()?;
    let read = ModelSpec { name: spec.name.clone(), ..import.spec };
    (comparable(spec, &read) == comparable(&read, &read)).then_some(Published {
        family: import.report.family,
        config: text,
        spec: read,
    })
}

/// A model without what a `config.json` cannot or need not say. Canonical weights take the names of `read`.
fn comparable(spec: &ModelSpec, read: &ModelSpec) -> ModelSpec {
    let mut spec = spec.clone();
    spec.vocab = spec.vocab_rows();
    spec.vocab_padded_to = None;
    spec.tokens = Tokens { add_bos: false, extra: Default::default(), ..spec.tokens };
    spec.dtype.params = read.dtype.params;
    spec.dtype.reduce = read.dtype.reduce;
    if spec.weights.names == "canonical" {
        spec.weights = read.weights.clone();
        spec.mlp.gate = read.mlp.gate;
    }
    spec.weights.ignore.clear();
    spec.weights.duplicates.clear();
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::{builtin, builtin_names};

    /// Every built-in model has a published family, but for GPT-3, which was never published.
    #[test]
    fn every_published_model_comes_back_from_its_config() {
        for name in builtin_names() {
            let spec = builtin(name).unwrap();
            let published = export_config(&spec);
            if name.starts_with("gpt3") {
                assert!(spec.weights.names == "canonical", "{name}");
                continue;
            }
            let published = published.unwrap_or_else(|| panic!("{name} has no config.json"));
            assert_eq!(comparable(&spec, &published.spec), comparable(&published.spec, &published.spec));
            assert_eq!(published.spec.parameters(), spec.parameters(), "{name}");
            assert_eq!(published.spec.weights.names, spec.weights.names, "{name}");
        }
    }

    #[test]
    fn families_are_told_apart() {
        let family = |name: &str| export_config(&builtin(name).unwrap()).map(|published| published.family);
        assert_eq!(family("amber").as_deref(), Some("llama"));
        assert_eq!(family("mistral-7b").as_deref(), Some("mistral"));
        assert_eq!(family("crystalcoder").as_deref(), Some("crystalcoder"));
        assert_eq!(family("jais-13b").as_deref(), Some("jais"));
        // Without a scaling of its ALiBi it says the same as a Jais.
        assert_eq!(family("btlm-3b-8k").as_deref(), Some("jais"));
        assert_eq!(family("cerebras-gpt-111m").as_deref(), Some("gpt2"));
        assert_eq!(family("pythia-6.9b").as_deref(), Some("gpt_neox"));
        assert_eq!(family("gpt-j-6b").as_deref(), Some("gptj"));
    }

    #[test]
    fn what_no_family_can_say_has_no_config() {
        let mut spec = builtin("amber").unwrap();
        spec.multipliers.residual = 0.5;
        assert_eq!(export_config(&spec), None);
        let mut spec = builtin("amber").unwrap();
        spec.pos = crate::spec::Position::Alibi { scaling: 1.0 };
        assert_eq!(export_config(&spec), None);
    }
}
