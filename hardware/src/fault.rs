//! What is wrong with a machine file: every fault at once, each with its place and a hint.

use std::fmt;
use std::ops::Range;

/// One fault in a machine file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Key path, as `device.memory.capacity`; empty for the file as a whole.
    pub key: String,
    /// Bytes of the text that are at fault; `None` for something that is missing altogether.
    pub span: Option<Range<usize>>,
    /// Line of the span, from 1.
    pub line: usize,
    /// Column of the span in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.span.is_some() {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}

/// Why a machine cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MachineError {
    /// The file has faults; all of them are listed.
    #[error("{}", faults_of(.file, .faults))]
    Invalid {
        /// Name of the file, for display.
        file: String,
        /// Its text, so that spans can be rendered.
        text: String,
        /// At least one fault, in the order of the text.
        faults: Vec<Fault>,
    },
    /// No built-in machine has this name.
    #[error("no machine is called `{name}`; built in are {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names there are, joined by commas.
        known: String,
    },
    /// The machine cannot be cut or grown to this many devices.
    #[error("{machine} cannot have {devices} devices: {reason}")]
    Devices {
        /// Name of the machine.
        machine: String,
        /// Devices that were asked for.
        devices: u64,
        /// Why not, and what would do.
        reason: String,
    },
}

impl MachineError {
    /// The faults of an invalid file; empty for other errors.
    pub fn faults(&self) -> &[Fault] {
        match self {
            MachineError::Invalid { faults, .. } => faults,
            _ => &[],
        }
    }
}

fn faults_of(file: &str, faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{file}:{fault}")).collect::<Vec<_>>().join("\n")
}
