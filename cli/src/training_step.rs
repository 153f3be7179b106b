//! A whole training step from the times of its programs: all micro-batches of all systems, with what the weight server
//! (MemoryX) and the broadcast and reduce tree (SwarmX) take over the links of a system.
//!
//! While a program runs, its weights enter and its gradients leave: it takes as long as the wafer or as the busier
//! direction of the links, whichever is longer. Every system does the same at the same time.

use crate::show;
use lapidary_runtime_sim::{FabricSpec, Report};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many times the programs of a micro-batch run in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingStep {
    /// Systems, data-parallel.
    pub systems: u64,
    /// Micro-batches of a step on each system.
    pub accumulation: u64,
}

/// Bytes of a word on the links.
const WORD_BYTES: f64 = 4.0;

/// What is taken for granted beside the programs; no figure is printed for any of it.
const ASSUMED: [&str; 3] = [
    "SwarmX broadcasts weights and sums gradients at the rate of one system's links",
    "MemoryX updates a weight at the rate at which its gradient arrives",
    "this compiler's kernels: no factor of a software release",
];

/// A step and its parts, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Systems, data-parallel.
    pub systems: u64,
    /// Micro-batches of a step on each system.
    pub accumulation: u64,
    /// Tokens of a step.
    pub tokens: u64,
    /// The whole step.
    pub step_time_s: f64,
    /// Tokens a second of all systems.
    pub tokens_per_s: f64,
    /// `wafer`: its programs; `link_wait`: what they wait for weights to enter or gradients to leave. They add up to the step.
    pub terms_s: BTreeMap<&'static str, f64>,
    /// Within these: `memoryx_weights`, time of everything that enters on the links; `swarmx_gradients`, of all that leaves.
    pub links_s: BTreeMap<&'static str, f64>,
    /// The longer of both terms.
    pub bound_by: &'static str,
    /// What is taken for granted.
    pub assumptions: [&'static str; 3],
}

impl TrainingStep {
    /// The step, from its programs with how often each runs in a micro-batch of `tokens` tokens.
    pub fn time(&self, programs: &[(u64, &Report)], tokens: u64, fabric: &FabricSpec) -> StepTime {
        let each = self.accumulation as f64;
        let sum = |of: &dyn Fn(&Report) -> f64| {
            each * programs.iter().map(|(times, report)| *times as f64 * of(report)).sum::<f64>()
        };
        let waits = |report: &Report| report.host_cycles.saturating_sub(report.cycles) as f64;
        let wafer = sum(&|report| report.cycles as f64) / fabric.clock_hz;
        let link_wait = sum(&waits) / fabric.clock_hz;
        let links =
            |words: f64| fabric.host_words_per_cycle.map_or(0.0, |rate| words / rate / fabric.clock_hz);
        let step_time_s = wafer + link_wait;
        let tokens = self.systems * self.accumulation * tokens;
        StepTime {
            systems: self.systems,
            accumulation: self.accumulation,
            tokens,
            step_time_s,
            tokens_per_s: tokens as f64 / step_time_s,
            terms_s: BTreeMap::from([("wafer", wafer), ("link_wait", link_wait)]),
            links_s: BTreeMap::from([
                ("memoryx_weights", links(sum(&|report| report.host_in_words as f64))),
                ("swarmx_gradients", links(sum(&|report| report.host_out_words as f64))),
            ]),
            bound_by: if link_wait > wafer { "link_wait" } else { "wafer" },
            assumptions: ASSUMED,
        }
    }
}

impl StepTime {
    /// Bytes that pass the links of a system one way in `seconds` of them.
    pub fn bytes(seconds: f64, fabric: &FabricSpec) -> u64 {
        let rate = fabric.host_words_per_cycle.unwrap_or(0.0) * fabric.clock_hz * WORD_BYTES;
        (seconds * rate).round() as u64
    }

    /// Prints it.
    pub fn print(&self, fabric: &FabricSpec) {
        println!(
            "a training step on {} systems, {} micro-batches each: {}, {} tokens/s of {} tokens; bound by {}",
            self.systems,
            self.accumulation,
            show::seconds(self.step_time_s),
            show::count(self.tokens_per_s.round() as u64),
            show::count(self.tokens),
            self.bound_by,
        );
        let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / self.step_time_s);
        let row = |name: &str, seconds: f64, what: String| {
            vec![name.to_string(), show::seconds(seconds), share(seconds), what]
        };
        let terms =
            self.terms_s.iter().rev().map(|(name, seconds)| row(name, *seconds, "of the step".into()));
        let links = self.links_s.iter().map(|(name, seconds)| {
            let bytes = show::bytes(Self::bytes(*seconds, fabric));
            row(name, *seconds, format!("{bytes} on the links of a system, while it computes"))
        });
        println!("\n{}", show::table(&["part", "time", "share", ""], &[1, 2], terms.chain(links)));
        self.assumptions.iter().for_each(|assumed| println!("assumed: {assumed}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_the_longer_of_wafer_and_links_program_by_program() {
        let fabric = FabricSpec { clock_hz: 1e9, host_words_per_cycle: Some(2.0), ..FabricSpec::wse2() };
        let report = |cycles, words: (u64, u64)| Report {
            cycles,
            host_in_words: words.0,
            host_out_words: words.1,
            host_cycles: fabric.host_cycles(words.0, words.1),
            ..Report::default()
        };
        let (forward, backward) = (report(1_000, (3_000, 0)), report(5_000, (1_000, 4_000)));
        let step = TrainingStep { systems: 4, accumulation: 2 };
        let time = step.time(&[(3, &forward), (3, &backward)], 10, &fabric);
        assert_eq!(time.tokens, 80);
        assert!((time.terms_s["wafer"] - 2.0 * 3.0 * 6_000e-9).abs() < 1e-15);
        assert!(
            (time.terms_s["link_wait"] - 2.0 * 3.0 * 500e-9).abs() < 1e-15,
            "only the forward pass waits"
        );
        assert!((time.links_s["memoryx_weights"] - 2.0 * 3.0 * 2_000e-9).abs() < 1e-15);
        assert!((time.links_s["swarmx_gradients"] - 2.0 * 3.0 * 2_000e-9).abs() < 1e-15);
        assert!((time.step_time_s - 39e-6).abs() < 1e-15 && time.bound_by == "wafer");
        assert_eq!(StepTime::bytes(time.links_s["memoryx_weights"], &fabric), 2 * 3 * 4_000 * 4);
    }
}
