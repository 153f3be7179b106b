//! Memory of the fullest device by class.

use indexmap::IndexMap;
use lapidary_hardware::Bytes;

/// Bytes by class, in the order of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory(pub IndexMap<&'static str, Bytes>);

impl Memory {
    /// All classes together.
    pub fn total(&self) -> Bytes {
        self.0.values().copied().sum()
    }

    /// The class that takes the most; the first of equals.
    pub fn largest(&self) -> (&'static str, Bytes) {
        let start = ("nothing", Bytes::ZERO);
        self.0.iter().fold(start, |best, (name, bytes)| if *bytes > best.1 { (*name, *bytes) } else { best })
    }
}
