//! Why one plan and not the other: the two prices side by side, term by term.

use crate::document::Candidate;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Two plans side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Name of the first.
    pub first: String,
    /// Name of the other.
    pub other: String,
    /// Why the other cannot be used, if it cannot.
    pub rejected_by: Option<String>,
    /// Terms of the step, the largest difference first.
    pub terms_s: Vec<Difference>,
    /// Classes of memory in bytes, the largest difference first.
    pub memory_bytes: Vec<Difference>,
    /// The whole step; absent where the other cannot be built.
    pub step_time_s: Option<Difference>,
}

/// One quantity of both plans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What it is.
    pub name: String,
    /// Of the first plan.
    pub first: f64,
    /// Of the other plan.
    pub other: f64,
}

impl Difference {
    /// How much more the other has.
    pub fn more(&self) -> f64 {
        self.other - self.first
    }
}

/// Sets two candidates side by side.
pub fn explain(first: &Candidate, other: &Candidate) -> Explanation {
    let terms = |candidate: &Candidate| -> Vec<(String, f64)> {
        candidate.terms_s.iter().map(|(name, seconds)| (name.clone(), *seconds)).collect()
    };
    let memory = |candidate: &Candidate| -> Vec<(String, f64)> {
        candidate.memory_bytes.iter().map(|(name, bytes)| (name.clone(), *bytes as f64)).collect()
    };
    let whole = first.step_time_s.zip(other.step_time_s);
    Explanation {
        first: first.name.clone(),
        other: other.name.clone(),
        rejected_by: other.rejected_by.clone(),
        terms_s: differences(&terms(first), &terms(other)),
        memory_bytes: differences(&memory(first), &memory(other)),
        step_time_s: whole.map(|(a, b)| Difference { name: "step_time_s".into(), first: a, other: b }),
    }
}

fn differences(first: &[(String, f64)], other: &[(String, f64)]) -> Vec<Difference> {
    let value = |list: &[(String, f64)], name: &str| {
        list.iter().find(|(own, _)| own == name).map_or(0.0, |(_, value)| *value)
    };
    let only_other = other.iter().filter(|(name, _)| first.iter().all(|(own, _)| own != name));
    let names = first.iter().chain(only_other).map(|(name, _)| name.clone());
    let mut list: Vec<Difference> = names
        .map(|name| Difference { first: value(first, &name), other: value(other, &name), name })
        .filter(|difference| difference.first != 0.0 || difference.other != 0.0)
        .collect();
    list.sort_by(|a, b| b.more().abs().total_cmp(&a.more().abs()).then_with(|| a.name.cmp(&b.name)));
    list
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, other) = (&self.first, &self.other);
        match (&self.step_time_s, &self.rejected_by) {
            (Some(step), Some(reason)) => {
                writeln!(
                    f,
                    "{other} would take {:.3} s against {:.3} s of {first}, but {reason}",
                    step.other, step.first
                )?;
            }
            (Some(step), None) => {
                let percent = step.more() / step.first * 100.0;
                writeln!(
                    f,
                    "{first} takes {:.3} s, {other} {:.3} s ({percent:+.1} %)",
                    step.first, step.other
                )?;
            }
            (None, reason) => {
                writeln!(f, "{other} cannot be built: {}", reason.as_deref().unwrap_or("no reason is kept"))?;
            }
        }
        for term in &self.terms_s {
            let (name, more) = (&term.name, term.more());
            writeln!(f, "  {name:<14} {:>10.4} s  {:>10.4} s  {more:>+10.4} s", term.first, term.other)?;
        }
        for class in &self.memory_bytes {
            let gib = 1024f64.powi(3);
            let (a, b, more) = (class.first / gib, class.other / gib, class.more() / gib);
            writeln!(f, "  {:<14} {a:>8.2} GiB  {b:>8.2} GiB  {more:>+8.2} GiB", class.name)?;
        }
        Ok(())
    }
}
