//! The machines that come with the program.

use crate::fault::MachineError;
use crate::spec::HardwareSpec;

/// Name and text of every built-in machine, in the order in which they are listed.
const MACHINES: [(&str, &str); 10] = [
    ("a100-80gb", include_str!("../a100-80gb.toml")),
    ("a100-40gb", include_str!("../a100-40gb.toml")),
    ("h100", include_str!("../h100.toml")),
    ("h200", include_str!("../h200.toml")),
    ("amber-cluster", include_str!("../amber-cluster.toml")),
    ("dgx-a100", include_str!("../dgx-a100.toml")),
    ("wse2", include_str!("../wse2.toml")),
    ("cs2", include_str!("../cs2.toml")),
    ("cg1", include_str!("../cg1.toml")),
    ("wse3", include_str!("../wse3.toml")),
];

/// Names of the built-in machines.
pub fn names() -> Vec<&'static str> {
    MACHINES.iter().map(|(name, _)| *name).collect()
}

/// The text of a built-in machine file.
pub fn text(name: &str) -> Option<&'static str> {
    MACHINES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The name of a built-in machine's file, for messages.
pub fn file(name: &str) -> String {
    format!("{name}.toml")
}

/// A built-in machine.
///
/// # Errors
/// [`MachineError::Unknown`] where there is none of this name.
pub fn machine(name: &str) -> Result<HardwareSpec, MachineError> {
    match text(name) {
        Some(text) => HardwareSpec::from_toml(text, &file(name)),
        None => Err(MachineError::Unknown { name: name.to_string(), known: names().join(", ") }),
    }
}
