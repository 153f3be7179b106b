//! What is asked of the planner, and why it may refuse.

use crate::plan::{Degrees, PARTIAL};
use crate::wafer::release::{OWN, Release};
use lapidary_hardware::{HardwareSpec, MachineError};
use lapidary_models::ModelSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The batch a user gets who names none: 4 Mi tokens, rounded up to a multiple of the devices.
/// Source: the 4M-token batch of Llama 2 (arXiv 2307.09288, section 2.2).
pub const DEFAULT_BATCH_TOKENS: u64 = 4 << 20;

/// The largest global batch, in sequences, and the largest number of tokens that is planned for.
const LARGEST_BATCH: u64 = 1 << 32;

/// What a plan is ranked by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Least time of a training step.
    #[default]
    StepTime,
    /// Least memory on the fullest device.
    Memory,
}

/// What is asked of the planner.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// The model, checked.
    pub model: &'a ModelSpec,
    /// The machine.
    pub machine: &'a HardwareSpec,
    /// Use this many devices of the machine; all of them when absent.
    pub devices: Option<u64>,
    /// Sequences of one optimizer step; [`DEFAULT_BATCH_TOKENS`] when absent.
    pub global_batch: Option<u64>,
    /// Tokens of a sequence; the model's `max_seq` when absent.
    pub seq_len: Option<u64>,
    /// Decisions that are made already.
    pub pins: Pins,
    /// Feasible candidates to keep in the document; all when absent.
    pub top: Option<usize>,
    /// What to rank by.
    pub objective: Objective,
    /// Whose kernels run on wafers.
    pub release: Release,
}

impl<'a> PlanRequest<'a> {
    /// A request with nothing pinned and the defaults of every input.
    pub fn new(model: &'a ModelSpec, machine: &'a HardwareSpec) -> Self {
        PlanRequest {
            model,
            machine,
            devices: None,
            global_batch: None,
            seq_len: None,
            pins: Pins::default(),
            top: Some(10),
            objective: Objective::StepTime,
            release: OWN,
        }
    }

    /// The inputs with every default filled in and the machine cut to size.
    ///
    /// # Errors
    /// When the machine cannot have that many devices or a size is zero or too large.
    pub(crate) fn resolve(&self) -> Result<(HardwareSpec, Batch), PlanError> {
        let machine = match self.devices {
            Some(devices) => self.machine.with_devices(devices)?,
            None => self.machine.clone(),
        };
        let seq_len = self.seq_len.unwrap_or(self.model.max_seq);
        size("seq-len", seq_len, self.model.max_seq)?;
        let default = (DEFAULT_BATCH_TOKENS / seq_len).max(1).next_multiple_of(machine.devices());
        let global = self.global_batch.unwrap_or(default);
        size("global-batch", global, LARGEST_BATCH)?;
        self.pins.check(machine.wafer().is_some())?;
        Ok((machine, Batch { global, seq_len }))
    }
}

fn size(name: &'static str, found: u64, largest: u64) -> Result<(), PlanError> {
    if (1..=largest).contains(&found) { Ok(()) } else { Err(PlanError::Size { name, found, largest }) }
}

/// The work of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Sequences.
    pub global: u64,
    /// Tokens of each.
    pub seq_len: u64,
}

impl Batch {
    /// Tokens of a step.
    pub fn tokens(&self) -> f64 {
        self.global as f64 * self.seq_len as f64
    }
}

/// Decisions that are made already: `tp=8,pp=2,micro-batch=1,sharding=full,recompute=none`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pins(BTreeMap<String, String>);

const GPU_PINS: [&str; 13] = [
    "ep",
    "cp",
    "tp",
    "pp",
    "dp",
    "micro-batch",
    "sharding",
    "recompute",
    "recompute-layers",
    "sequence-parallel",
    "chunks",
    "first-stage",
    "last-stage",
];
const WAFER_PINS: [&str; 8] =
    ["systems", "micro-batch", "accumulation", "mode", "recompute", "checkpoint-every", "kept", "replicas"];
const KEPT_WORDS: [&str; 2] = ["wafer", "outside"];
const SHARDING_WORDS: [&str; 4] = ["none", "optimizer", "full", "hybrid"];
const RECOMPUTE_WORDS: [&str; 4] = ["none", "selective", "full", PARTIAL];
const ROWS_WORDS: [&str; 2] = ["on", "off"];
const MODE_WORDS: [&str; 2] = ["weight-streaming", "layer-pipelined"];

impl Pins {
    /// Reads `key=value` pairs joined by commas. `mb` stands for `micro-batch`; ZeRO stages and
    /// `fsdp` are other words for a sharding.
    ///
    /// # Errors
    /// A pair that is not one, an unknown key, or a value that the key cannot have.
    pub fn parse(text: &str) -> Result<Pins, PlanError> {
        let mut pins = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| PlanError::Pin {
                pin: pair.trim().to_string(),
                reason: "is not of the form key=value".into(),
            })?;
            let (key, value) = (canonical_key(key.trim()), canonical_value(value.trim()));
            check_pin(key, value)?;
            if pins.insert(key.to_string(), value.to_string()).is_some() {
                return Err(PlanError::Pin {
                    pin: pair.trim().to_string(),
                    reason: "is pinned twice".into(),
                });
            }
        }
        Ok(Pins(pins))
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The decisions and their values, by name.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The pins but for one.
    pub fn without(&self, key: &str) -> Pins {
        Pins(self.0.iter().filter(|(own, _)| *own != key).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    /// What a decision is pinned to.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether a plan keeps to every pin.
    pub fn allow(&self, degrees: &Degrees) -> bool {
        let settings = degrees.settings();
        self.0.iter().all(|(key, value)| settings.iter().any(|(name, found)| name == key && found == value))
    }

    /// Whether the degrees alone keep to the pins, for plans that fail before anything else is decided.
    pub fn allow_degrees(&self, degrees: &Degrees) -> bool {
        let settings = degrees.settings();
        let decided = |key: &str| matches!(key, "tp" | "pp" | "dp" | "cp" | "systems" | "mode");
        let mut pinned = self.0.iter().filter(|(key, _)| decided(key));
        pinned.all(|(key, value)| settings.iter().any(|(name, found)| name == key && found == value))
    }

    fn check(&self, wafer: bool) -> Result<(), PlanError> {
        let known: &[&str] = if wafer { &WAFER_PINS } else { &GPU_PINS };
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(PlanError::Pin {
                pin: key.clone(),
                reason: format!("is not decided on this machine; {} are", known.join(", ")),
            }),
        }
    }
}

fn canonical_key(key: &str) -> &str {
    match key {
        "mb" | "micro_batch" => "micro-batch",
        "zero" => "sharding",
        "acc" => "accumulation",
        "checkpoint_every" => "checkpoint-every",
        "vpp" | "interleave" => "chunks",
        "sp" | "sequence_parallel" => "sequence-parallel",
        "recompute_layers" => "recompute-layers",
        other => other,
    }
}

fn canonical_value(value: &str) -> &str {
    match value {
        "zero-0" | "zero0" => "none",
        "zero-1" | "zero1" => "optimizer",
        "zero-3" | "zero3" | "fsdp" => "full",
        other => other,
    }
}

fn check_pin(key: &str, value: &str) -> Result<(), PlanError> {
    let wrong = |reason: String| Err(PlanError::Pin { pin: format!("{key}={value}"), reason });
    let words: &[&str] = match key {
        "sharding" => &SHARDING_WORDS,
        "recompute" => &RECOMPUTE_WORDS,
        "mode" => &MODE_WORDS,
        "kept" => &KEPT_WORDS,
        "sequence-parallel" => &ROWS_WORDS,
        _ if GPU_PINS.contains(&key) || WAFER_PINS.contains(&key) => {
            return match value.parse::<u64>() {
                Ok(1..) => Ok(()),
                _ => wrong("needs a whole number of at least 1".into()),
            };
        }
        _ => {
            let mut known: Vec<_> = GPU_PINS.into_iter().chain(WAFER_PINS).collect();
            known.sort_unstable();
            known.dedup();
            return wrong(format!("is not a decision; {} are", known.join(", ")));
        }
    };
    if words.contains(&value) { Ok(()) } else { wrong(format!("needs one of {}", words.join(", "))) }
}

/// Why there is no answer at all. A model that does not fit is an answer: see `PlanDocument::nearest`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The machine cannot be used as asked.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// An input is zero or too large.
    #[error("{name} is {found}, but must be from 1 to {largest}")]
    Size {
        /// The input, as its flag is called.
        name: &'static str,
        /// What was asked for.
        found: u64,
        /// What would do.
        largest: u64,
    },
    /// A pin cannot be kept.
    #[error("pin `{pin}` {reason}")]
    Pin {
        /// The pin.
        pin: String,
        /// What is wrong with it, and what would do.
        reason: String,
    },
    /// No candidate has the pinned decisions.
    #[error("no plan has {pins}: {reason}")]
    Empty {
        /// The pins.
        pins: String,
        /// Why not.
        reason: String,
        /// The nearest plan that fits, and which pins it gives up.
        nearest: Option<String>,
    },
    /// State shall live on a host that the machine file does not state.
    #[error(
        "{machine} states no host for weights and optimizer to live on; add [node.host] with bandwidth and memory-bandwidth to its machine file"
    )]
    Host {
        /// The machine.
        machine: String,
    },
    /// A model with experts where they are not planned for.
    #[error("{model} has experts, and these are planned for training on GPUs only, not for {what}")]
    Experts {
        /// The model.
        model: String,
        /// What was asked for.
        what: &'static str,
    },
    /// The device lacks the arithmetic of the model.
    #[error("{device} states no rate for {precision}; add it under [device] in its machine file")]
    Arithmetic {
        /// The device.
        device: String,
        /// The arithmetic that is asked for.
        precision: String,
    },
}

impl std::fmt::Display for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(&pairs.join(","))
    }
}
