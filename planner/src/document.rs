//! The answer as a document: every kept candidate with its terms, its memory and why it was rejected.

use crate::assumption::Assumption;
use crate::plan::Degrees;
use crate::request::{Objective, Pins};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// Schema name of a plan document.
pub const SCHEMA: &str = "lapidary/plan";
/// Schema version of a plan document.
pub const VERSION: u32 = 1;

/// The answer of the planner; serialised, the document `lapidary/plan`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanDocument {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// Name of the cost model.
    pub cost_model: String,
    /// What was asked, with every default filled in.
    pub inputs: Inputs,
    /// Name of the best candidate; absent where none is feasible.
    pub chosen: Option<String>,
    /// How many candidates were looked at, and what became of them.
    pub counts: Counts,
    /// Whether the whole space was searched; otherwise the best so far is chosen.
    #[serde(default = "yes")]
    pub complete: bool,
    /// Degrees that were left out since no plan of theirs is fast enough, fastest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beaten: Vec<Beaten>,
    /// Kept candidates: feasible ones by rank, then baselines and rejected ones.
    pub candidates: Vec<Candidate>,
    /// Where nothing is feasible: what comes nearest, and what would make it fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// What the pins cost over the best plan without them, in percent of its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_loss_pct: Option<f64>,
    /// What to know about the chosen plan.
    pub warnings: Vec<String>,
    /// What the prices take for granted.
    pub assumptions: Vec<Assumption>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Name of the model.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Name of the machine.
    pub machine: String,
    /// Product name of a device.
    pub device: String,
    /// Devices to plan for.
    pub devices: u64,
    /// Devices of a node.
    pub devices_per_node: u64,
    /// Sequences of a step.
    pub global_batch: u64,
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// What plans are ranked by.
    pub objective: Objective,
    /// Decisions that were made already.
    pub pins: Pins,
}

/// How many candidates there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Looked at one by one: a bound of the time, and the memory.
    pub evaluated: u64,
    /// Of these, not rejected; those whose bound is over the plans that are kept count without their memory.
    pub feasible: u64,
    /// Of these, over a device's memory or impossible to build.
    pub rejected: u64,
    /// Of these, priced in full, their pipeline simulated.
    #[serde(default)]
    pub simulated: u64,
    /// Left out unseen, together with others whose least time is over the plans that are kept.
    #[serde(default)]
    pub left_out: u64,
}

/// Degrees all of whose plans take longer than those that are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beaten {
    /// The degrees, as `tp4pp2dp28`.
    pub name: String,
    /// What a step takes at least.
    pub at_least_s: f64,
}

/// What predictions of published runs of a plan's kind were off by, nine of ten of them, groups counting the same; and
/// for software that no run was fitted to, the spread of the others beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBar {
    /// Percent, up and down.
    pub percent: f64,
    /// The kind.
    pub like: String,
    /// Runs of that kind.
    pub runs: u64,
    /// Groups of runs.
    pub groups: u64,
    /// Whether no run was fitted to the software, so that the spread of the others is in it.
    pub unmeasured_software: bool,
}

/// One plan with its price, or the reason against it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Unique name; the bare degrees for the best of its degrees, as `tp4pp2dp28`.
    pub name: String,
    /// The baseline it stands for, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// The decisions.
    pub degrees: Degrees,
    /// Time of a step; absent where it cannot be built.
    pub step_time_s: Option<f64>,
    /// What the time of the step may be off by, from published runs of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_bar: Option<ErrorBar>,
    /// Tokens a second of the whole machine.
    pub tokens_per_s: Option<f64>,
    /// Model FLOPs over peak FLOPs; causal attention counts the visible half, recomputation does not count.
    pub mfu: Option<f64>,
    /// Share of the step in which a wafer computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_share: Option<f64>,
    /// Memory of the fullest device by class.
    pub memory_bytes: IndexMap<String, u64>,
    /// All classes together.
    pub memory_total_bytes: u64,
    /// What a device has.
    pub memory_capacity_bytes: u64,
    /// Parts of the step time.
    pub terms_s: IndexMap<String, f64>,
    /// What takes the most of the step.
    pub bound_by: Option<String>,
    /// Why it cannot be used; absent for feasible plans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_by: Option<String>,
    /// The smallest change that makes it fit, where a plan nearby does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest_change: Option<String>,
}

fn yes() -> bool {
    true
}

impl Candidate {
    /// Whether it can be used.
    pub fn feasible(&self) -> bool {
        self.rejected_by.is_none()
    }
}

/// The nearest thing to a plan where there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nearest {
    /// Name of the candidate that is over by the least; absent where none could be built.
    pub name: Option<String>,
    /// Why it does not fit.
    pub rejected_by: String,
    /// What would make a plan fit.
    pub would_fit: Vec<String>,
}

impl PlanDocument {
    /// The chosen candidate.
    pub fn chosen(&self) -> Option<&Candidate> {
        self.chosen.as_deref().and_then(|name| self.find(name))
    }

    /// A kept candidate by its name, or by the name of the baseline it stands for.
    pub fn find(&self, name: &str) -> Option<&Candidate> {
        let named = self.candidates.iter().find(|candidate| candidate.name == name);
        named.or_else(|| self.candidates.iter().find(|c| c.baseline.as_deref() == Some(name)))
    }

    /// The document as JSON.
    ///
    /// # Errors
    /// When a number is not finite, which prices never are.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Reads a document back.
    ///
    /// # Errors
    /// Where the text is no JSON, misses a key, or is another schema or version.
    pub fn from_json(text: &str) -> Result<PlanDocument, serde_json::Error> {
        let document: PlanDocument = serde_json::from_str(text)?;
        if document.schema != SCHEMA || document.version != VERSION {
            let (schema, version) = (&document.schema, document.version);
            let message = format!("expected {SCHEMA} version {VERSION}, found {schema} version {version}");
            return Err(serde::de::Error::custom(message));
        }
        Ok(document)
    }
}
