//! A `config.json` being read: remembers which key set what.

use super::report::{ImportEntry, ImportStatus};
use crate::check::{heads_divide, validate};
use crate::document::{Data, Entry, Table};
use crate::dtype::DType;
use crate::fault::{Fault, FaultKind, place};
use crate::read::{Reader, Section};
use crate::spec::{Activation, DTypes, ModelSpec, Tokens};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Keys of every family that change nothing here; `*` stands for any characters.
const IGNORED: &[(&str, &str)] = &[
    ("architectures", "the model type decides"),
    ("auto_map", "names a program"),
    ("transformers_version", "names a program"),
    ("tokenizer_class", "names a program"),
    ("_attn_implementation*", "names a program"),
    ("use_cache", "the graph decides"),
    ("output_*", "the graph decides"),
    ("return_dict", "the graph decides"),
    ("*pdrop", "dropout is for training"),
    ("*dropout", "dropout is for training"),
    ("gradient_checkpointing", "a plan decides"),
    ("initializer_range", "for training from scratch"),
    ("pretraining_tp", "a plan decides"),
    ("reorder_and_upcast_attn", "scores are kept in f32 anyway"),
    ("summary_*", "for classification heads"),
    ("task_specific_params", "for text generation"),
    ("do_sample", "for text generation"),
    ("max_length", "for text generation"),
    ("min_length", "for text generation"),
    ("temperature", "for text generation"),
    ("top_*", "for text generation"),
    ("id2label", "for classification heads"),
    ("label2id", "for classification heads"),
    ("problem_type", "for classification heads"),
    ("n_ctx", "repeats n_positions"),
    ("line_by_line", "for training"),
    ("is_decoder", "every model here is one"),
];

/// Wraps a [`Reader`] and keeps the report.
pub(super) struct Config<'t> {
    reader: Reader<'t>,
    source: &'t str,
    root: &'t Table,
    fates: RefCell<BTreeMap<String, ImportStatus>>,
    origins: RefCell<BTreeMap<&'static str, String>>,
}

impl<'t> Config<'t> {
    pub fn new(text: &'t str, root: &'t Table) -> Self {
        let reader = Reader::new(text, root);
        Config { reader, source: text, root, fates: RefCell::default(), origins: RefCell::default() }
    }

    /// A count that sets the key `to`, if present.
    pub fn count(&self, key: &'static str, to: &'static str) -> Option<u64> {
        self.mapped(key, to, self.reader.root().count(key))
    }

    /// A number that sets the key `to`, if present.
    pub fn float(&self, key: &'static str, to: &'static str) -> Option<f64> {
        self.mapped(key, to, self.reader.root().float(key))
    }

    /// A truth value that sets the key `to`, if present.
    pub fn flag(&self, key: &'static str, to: &'static str) -> Option<bool> {
        self.mapped(key, to, self.reader.root().flag(key))
    }

    /// A string that sets the key `to`, if present.
    pub fn text(&self, key: &'static str, to: &'static str) -> Option<&str> {
        self.mapped(key, to, self.reader.root().text(key))
    }

    /// An inner object that sets the key `to`; absent and null read as empty.
    pub fn section(&self, key: &'static str, to: &'static str) -> Section<'_> {
        let section = self.reader.root().section(key);
        self.mapped(key, to, section.is_present().then_some(()));
        section
    }

    /// Says that a key of an inner object sets the key `to`.
    pub fn note(&self, path: &str, to: &'static str) {
        self.fates.borrow_mut().insert(path.to_string(), ImportStatus::Mapped { to: to.to_string() });
        self.origins.borrow_mut().insert(to, path.to_string());
    }

    /// A count that has to be there.
    pub fn need(&self, key: &'static str, to: &'static str) -> u64 {
        let value = self.count(key, to);
        self.required(key, value, 1)
    }

    pub fn required<T>(&self, key: &str, value: Option<T>, placeholder: T) -> T {
        self.reader.root().required(key, value, placeholder)
    }

    /// Whether the file has the key, null included.
    pub fn has(&self, key: &str) -> bool {
        self.root.contains_key(key)
    }

    /// Says why a key changes nothing.
    pub fn ignore(&self, key: &str, why: &str) {
        self.fates.borrow_mut().insert(key.to_string(), ImportStatus::Ignored { why: why.to_string() });
    }

    pub fn fault(&self, key: &str, kind: FaultKind, message: String, hint: Option<String>) {
        self.reader.fault_at(key, kind, message, hint);
    }

    /// A value that exists elsewhere but not here.
    pub fn unsupported(&self, key: &str, message: &str, hint: &str) {
        self.fault(key, FaultKind::Unsupported, message.to_string(), Some(hint.to_string()));
    }

    /// A flag of which only one value can be expressed.
    pub fn only(&self, key: &'static str, wanted: bool, message: &str) {
        match self.reader.root().flag(key) {
            Some(found) if found != wanted => {
                self.unsupported(key, message, "no model of the published families does this");
            }
            _ => self.ignore(key, "as every supported model"),
        }
    }

    fn mapped<T>(&self, key: &'static str, to: &'static str, value: Option<T>) -> Option<T> {
        if value.is_some() {
            self.note(key, to);
        } else if self.has(key) {
            self.ignore(key, "null: the default applies");
        }
        value
    }

    /// The model's name, as far as the file knows one.
    pub fn name(&self) -> String {
        let path = self.text("_name_or_path", "name").unwrap_or_default();
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let family = || self.reader.root().text("model_type").unwrap_or("model").to_string();
        if last.is_empty() || last.len() > crate::check::limits::NAME { family() } else { last.to_string() }
    }

    /// `head_dim`, or an equal share of the width.
    pub fn head_dim(&self, d_model: u64, n_heads: u64) -> u64 {
        if let Some(given) = self.count("head_dim", "head_dim") {
            return given;
        }
        let spoiled = |to| self.origins.borrow().get(to).is_none_or(|key| self.reader.is_spoiled(key));
        if d_model == 0 || n_heads == 0 || spoiled("d_model") || spoiled("n_heads") {
            self.reader.spoil("head_dim");
        } else if let Some(violation) = heads_divide(d_model, n_heads) {
            self.report(violation);
            self.reader.spoil("head_dim");
        }
        d_model.checked_div(n_heads).unwrap_or(1).max(1)
    }

    /// An activation by its published name.
    pub fn activation(&self, key: &'static str, default: &str) -> Activation {
        match self.text(key, "mlp.act").unwrap_or(default) {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "relu2" | "relu_squared" => Activation::Relu2,
            other => {
                let message = format!("the activation \"{other}\" is not known");
                self.unsupported(key, &message, "known are silu, gelu, gelu_new, relu, relu2");
                Activation::Silu
            }
        }
    }

    /// Special tokens; ids outside the vocabulary are as good as absent.
    pub fn tokens(&self, vocab: u64) -> Tokens {
        Tokens {
            bos: self.token("bos_token_id", "tokens.bos", vocab),
            eos: self.token("eos_token_id", "tokens.eos", vocab),
            pad: self.token("pad_token_id", "tokens.pad", vocab),
            unk: self.token("unk_token_id", "tokens.unk", vocab),
            ..Tokens::default()
        }
    }

    fn token(&self, key: &'static str, to: &'static str, vocab: u64) -> Option<u64> {
        let entry = self.reader.root().entry(key)?;
        let id = match &entry.value.data {
            Data::List(items) => items.first().map(|item| &item.data),
            data => Some(data),
        };
        match id {
            Some(Data::Integer(id)) if (0..i128::from(vocab)).contains(id) => {
                self.note(key, to);
                Some(*id as u64)
            }
            Some(Data::Integer(_)) => {
                self.ignore(key, "outside the vocabulary");
                None
            }
            _ => {
                let message = format!("expected a token id, found {}", entry.value.data.type_name());
                self.fault(key, FaultKind::WrongType, message, None);
                None
            }
        }
    }

    /// Element types: the published type is what matmuls read.
    pub fn dtypes(&self) -> DTypes {
        let default = DTypes::default();
        let key = if self.has("torch_dtype") { "torch_dtype" } else { "dtype" };
        let compute = match self.text(key, "dtype.compute") {
            None => default.compute,
            Some("bfloat16") => DType::Bf16,
            Some("float16") => DType::F16,
            Some("float32") => DType::F32,
            Some(other) => {
                let message = format!("the element type \"{other}\" is not known");
                self.unsupported(key, &message, "known are float32, bfloat16, float16");
                default.compute
            }
        };
        DTypes { compute, ..default }
    }

    /// Checks the rules, shown at the keys that set the values, and what no family can have.
    pub fn check(&self, spec: &ModelSpec) {
        if self.root.get("quantization_config").is_some_and(|entry| entry.value.data != Data::Null) {
            let hint = "use the checkpoint that it was made from";
            self.unsupported("quantization_config", "quantised weights are not read", hint);
        }
        for key in ["is_encoder_decoder", "add_cross_attention"] {
            self.only(key, false, "cross attention is not supported");
        }
        let (written, derived): (Vec<_>, Vec<_>) = validate(spec)
            .into_iter()
            .partition(|violation| violation.keys.iter().any(|key| self.origins.borrow().contains_key(key)));
        written.into_iter().for_each(|violation| self.report(violation));
        if !self.reader.has_faults() {
            // Only now: a value that was filled in is wrong because of another one, which comes first.
            derived.into_iter().for_each(|violation| self.report(violation));
        }
    }

    fn report(&self, violation: crate::check::Violation) {
        let origins = self.origins.borrow();
        let keys = || violation.keys.iter().map(|key| origins.get(key).map_or(*key, String::as_str));
        if keys().any(|key| self.reader.is_spoiled(key)) {
            return;
        }
        let shown = violation.keys.iter().find_map(|key| origins.get(key)).cloned();
        let shown = shown.unwrap_or_else(|| violation.keys[0].to_string());
        drop(origins);
        self.fault(&shown, violation.kind, violation.message, violation.hint);
    }

    /// What became of every key, and the faults.
    pub fn finish(self) -> (Vec<ImportEntry>, Vec<Fault>) {
        let fates = self.fates.into_inner();
        let mut entries = Vec::new();
        collect(self.source, self.root, "", &fates, &mut entries);
        (entries, self.reader.into_faults())
    }
}

fn collect(
    text: &str,
    table: &Table,
    prefix: &str,
    fates: &BTreeMap<String, ImportStatus>,
    entries: &mut Vec<ImportEntry>,
) {
    for (key, entry) in table {
        let path = format!("{prefix}{key}");
        let inner = format!("{path}.");
        match &entry.value.data {
            Data::Table(table) if fates.keys().any(|fate| fate.starts_with(&inner)) => {
                collect(text, table, &inner, fates, entries);
            }
            _ => entries.push(fate(text, path, entry, fates)),
        }
    }
}

fn fate(text: &str, key: String, entry: &Entry, fates: &BTreeMap<String, ImportStatus>) -> ImportEntry {
    let ignored = || IGNORED.iter().find(|(pattern, _)| crate::weights::matches_wildcard(pattern, &key));
    let status = match (fates.get(&key), ignored()) {
        (Some(status), _) => status.clone(),
        (None, Some((_, why))) => ImportStatus::Ignored { why: why.to_string() },
        (None, None) => ImportStatus::Unknown,
    };
    let line = place(text, entry.key_span.start).0;
    ImportEntry { key, line, status }
}
