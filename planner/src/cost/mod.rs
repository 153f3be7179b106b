//! Prices of plans: cost as named terms, and the account that prices them.

pub mod physical;

use indexmap::IndexMap;
use lapidary_hardware::Seconds;
use serde::{Deserialize, Serialize};

/// What a term is about: the answer to what binds a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Memory bandwidth.
    Memory,
    /// Links and network.
    Network,
    /// Idle stages.
    Pipeline,
    /// What enters and leaves a wafer.
    Ingress,
    /// The host: launches, its optimizer, what stands once a step.
    Host,
}

impl Bound {
    /// The word in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Compute => "compute",
            Bound::Memory => "memory",
            Bound::Network => "network",
            Bound::Pipeline => "pipeline",
            Bound::Ingress => "ingress",
            Bound::Host => "host",
        }
    }
}

/// Time of one step as the sum of named terms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Terms in the order of the table; together the time of the step.
    pub terms: IndexMap<&'static str, (Bound, Seconds)>,
}

impl Cost {
    /// Time of the step.
    pub fn time(&self) -> Seconds {
        self.terms.values().map(|(_, seconds)| *seconds).sum()
    }

    /// What takes the most of it; the first of equals.
    pub fn bound(&self) -> Bound {
        let mut sums: IndexMap<Bound, Seconds> = IndexMap::new();
        for (bound, seconds) in self.terms.values() {
            *sums.entry(*bound).or_insert(Seconds::ZERO) += *seconds;
        }
        let start = (Bound::Compute, Seconds::ZERO);
        sums.into_iter().fold(start, |best, sum| if sum.1 > best.1 { sum } else { best }).0
    }
}

/// Share of the step in which a pipeline idles.
pub fn pipeline_share(cost: &Cost) -> f64 {
    let idle = cost.terms.values().filter(|(bound, _)| *bound == Bound::Pipeline).map(|(_, s)| *s);
    idle.sum::<Seconds>() / cost.time()
}
