//! What a price takes for granted, with a source each; listed in every document.

use lapidary_hardware::{Fact, HardwareSpec};
use serde::{Deserialize, Serialize};

/// One assumption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assumption {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Unit of the value.
    pub unit: String,
    /// Where it comes from.
    pub source: String,
}

impl Assumption {
    /// An assumption.
    pub fn new(name: &str, value: f64, unit: &str, source: &str) -> Assumption {
        Assumption { name: name.into(), value, unit: unit.into(), source: source.into() }
    }
}

/// The numbers of a machine that prices of GPU plans are taken from.
const GPU_FACTS: [&str; 7] = [
    "device.sustained.",
    "device.memory.",
    "device.launch-latency",
    "node.links.",
    "node.host.",
    "network.",
    "node.devices",
];
/// The numbers of a machine that prices of wafer plans are taken from.
const WAFER_FACTS: [&str; 8] = [
    "device.fabric.usable-width",
    "device.fabric.usable-height",
    "device.pe.sram",
    "device.pe.call-overhead",
    "device.pe.fmac.",
    "device.clocks.",
    "ingress.",
    "weight-server.",
];

/// The numbers of a machine that its plans' prices are taken from, under their key paths.
pub fn of_machine(machine: &HardwareSpec, peak: &str) -> Vec<Assumption> {
    let prefixes: &[&str] = if machine.wafer().is_some() { &WAFER_FACTS } else { &GPU_FACTS };
    let used = |fact: &&Fact| prefixes.iter().any(|p| fact.key.starts_with(p)) || fact.key == peak;
    machine.facts.iter().filter(used).filter_map(from_fact).collect()
}

fn from_fact(fact: &Fact) -> Option<Assumption> {
    let [value] = fact.value[..] else { return None };
    Some(Assumption::new(&fact.key, value, &fact.unit, &fact.source))
}
