//! The answer as a document: `lapidary/serve-plan`.

use crate::assumption::Assumption;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Schema name.
pub const SCHEMA: &str = "lapidary/serve-plan";

/// Inference plans, ranked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServeDocument {
    /// [`SCHEMA`].
    pub schema: String,
    /// 1.
    pub version: u32,
    /// What was asked.
    pub inputs: ServeInputs,
    /// The plan with the most tokens a second among those that fit and keep to the latencies; absent where none does.
    pub chosen: Option<String>,
    /// Every plan that was looked at: standing ones by tokens a second, then rejected ones by how few sequences they had.
    pub candidates: Vec<ServeCandidate>,
    /// What the prices take for granted.
    pub assumptions: Vec<Assumption>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServeInputs {
    /// Name of the model.
    pub model: String,
    /// Name of the machine.
    pub machine: String,
    /// Product name of a device.
    pub device: String,
    /// Devices to plan for.
    pub devices: u64,
    /// Tokens of a prompt.
    pub prompt: u64,
    /// Tokens that are generated.
    pub output: u64,
    /// Longest time to the first token.
    pub first_token_s: Option<f64>,
    /// Longest time between tokens.
    pub between_tokens_s: Option<f64>,
}

/// One plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServeCandidate {
    /// Its name, as `tp2x4-batch64`.
    pub name: String,
    /// Ranks of a replica.
    pub tp: u64,
    /// Replicas.
    pub replicas: u64,
    /// Sequences at once on a replica.
    pub batch: u64,
    /// Time of the prompts of all of them.
    pub first_token_s: Option<f64>,
    /// Time between tokens, in the middle of the output.
    pub between_tokens_s: Option<f64>,
    /// Time between the last tokens, when the cache is fullest.
    pub between_last_tokens_s: Option<f64>,
    /// Generated tokens a second of the whole machine, prompts included, batch by batch.
    pub tokens_per_s: Option<f64>,
    /// What takes the most of a step of decoding.
    pub bound_by: Option<String>,
    /// Parts of the time between tokens.
    pub terms_s: IndexMap<String, f64>,
    /// Memory of a device by class, when the cache is fullest.
    pub memory_bytes: IndexMap<String, u64>,
    /// All classes together.
    pub memory_total_bytes: u64,
    /// What a device has.
    pub memory_capacity_bytes: u64,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_by: Option<String>,
}

impl ServeDocument {
    /// The candidate that is over what was asked for by the smallest factor, of memory or a latency.
    pub fn nearest(&self) -> Option<&ServeCandidate> {
        let over = |found: Option<f64>, wanted: Option<f64>| match (found, wanted) {
            (Some(found), Some(wanted)) => found / wanted,
            (None, _) => f64::INFINITY,
            (_, None) => 0.0,
        };
        let far = |one: &ServeCandidate| {
            let asked = &self.inputs;
            let memory = one.memory_total_bytes as f64 / one.memory_capacity_bytes.max(1) as f64;
            memory
                .max(over(one.first_token_s, asked.first_token_s))
                .max(over(one.between_last_tokens_s, asked.between_tokens_s))
        };
        self.candidates.iter().min_by(|a, b| far(a).total_cmp(&far(b)))
    }
}

impl ServeCandidate {
    /// Ranks that cannot be built.
    pub(crate) fn impossible(tp: u64, replicas: u64, reason: String) -> ServeCandidate {
        ServeCandidate {
            name: format!("tp{tp}x{replicas}"),
            tp,
            replicas,
            batch: 0,
            first_token_s: None,
            between_tokens_s: None,
            between_last_tokens_s: None,
            tokens_per_s: None,
            bound_by: None,
            terms_s: IndexMap::new(),
            memory_bytes: IndexMap::new(),
            memory_total_bytes: 0,
            memory_capacity_bytes: 0,
            rejected_by: Some(reason),
        }
    }

    /// Standing plans by tokens a second, then rejected ones.
    pub(crate) fn order(a: &ServeCandidate, b: &ServeCandidate) -> Ordering {
        let rate = |one: &ServeCandidate| one.tokens_per_s.unwrap_or(0.0);
        let refused = |one: &ServeCandidate| one.rejected_by.is_some();
        refused(a)
            .cmp(&refused(b))
            .then_with(|| if refused(a) { a.batch.cmp(&b.batch) } else { rate(b).total_cmp(&rate(a)) })
            .then_with(|| a.name.cmp(&b.name))
    }
}

pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / 1024f64.powi(3))
}
