//! Why something happened as late as it did: the cycles of the chain of words, room and work that led to it.
//!
//! Every actor carries the causes of its own time. An actor that waits for a word takes over the causes of the word and
//! adds the way; one that waits for room takes over those of whoever made room. What the last actor carries at the end is
//! the critical path; its cycles add up to the time of the run.

use std::collections::BTreeMap;

/// One kind of cycles on the critical path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Cause {
    /// Elements moved or computed.
    Busy,
    /// Starting ops.
    Issue,
    /// Starting tasks.
    TaskActivation,
    /// Ramps and links.
    Wire,
    /// Waiting for a link that other colours use.
    Contention,
    /// Room made in a full queue.
    Queue,
    /// The pace of the host's words into the wafer.
    Ingress,
    /// The way out to the host.
    Egress,
    /// Waiting for words of which it is not known why they came late.
    WaitData,
}

/// Number of causes.
pub const CAUSES: usize = 9;

/// Names of [`Cause`] in order, as reports have them.
const NAMES: [&str; CAUSES] =
    ["busy", "issue", "task_activation", "wire", "contention", "queue", "ingress", "egress", "wait_data"];

/// Cycles by the names of their causes.
pub fn by_name(cycles: &[u64; CAUSES]) -> BTreeMap<String, u64> {
    NAMES.iter().zip(cycles).map(|(name, cycles)| (name.to_string(), *cycles)).collect()
}

/// Cycles by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes([u64; CAUSES]);

impl Causes {
    /// Adds cycles.
    pub fn add(&mut self, cause: Cause, cycles: u64) {
        self.0[cause as usize] += cycles;
    }

    /// These and more.
    pub fn and(mut self, cause: Cause, cycles: u64) -> Self {
        self.add(cause, cycles);
        self
    }

    /// All cycles.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those of a word when it arrives at `time` over a way of `latency` cycles.
    pub fn arrived(self, time: u64, latency: u64) -> Self {
        let gap = time.saturating_sub(self.sum());
        let wire = gap.min(latency);
        self.and(Cause::Wire, wire).and(Cause::Contention, gap - wire)
    }

    /// These, with what is missing to `time` put down to `cause`.
    pub fn until(self, time: u64, cause: Cause) -> Self {
        self.and(cause, time.saturating_sub(self.sum()))
    }

    /// By name, as reports have them.
    pub fn named(&self) -> BTreeMap<String, u64> {
        by_name(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_waits_for_a_link_says_so() {
        let sent = Causes::default().and(Cause::Busy, 10);
        let arrived = sent.arrived(18, 5);
        assert_eq!((arrived.sum(), arrived.named()["wire"], arrived.named()["contention"]), (18, 5, 3));
    }
}
