//! What is wrong with a checkpoint: every fault, each with its file, its tensor and what would help.

use serde::Serialize;
use std::fmt;
use thiserror::Error;

/// Which rule a fault breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The file is not what its form says: truncated, overlapping, a bad header, a bad checksum.
    Container,
    /// A pickle that asks for something that a tensor does not need.
    Pickle,
    /// An index that does not match its shards, or points elsewhere.
    Index,
    /// A tensor that the model needs and no file has.
    Missing,
    /// A tensor that the model has no place for.
    Extra,
    /// A tensor of another shape.
    Shape,
    /// A tensor of another element type.
    Element,
    /// A tensor with infinite values or values that are no numbers.
    NotFinite,
    /// A repeated tensor that differs from the one it repeats, or a name that stands twice.
    Duplicate,
    /// The model itself has no published form.
    Model,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Name of the file as the user knows it; empty where it is about the checkpoint as a whole.
    pub file: String,
    /// The tensor that it is about.
    pub tensor: Option<String>,
    /// Byte in the file, or in the pickle of a PyTorch file.
    pub at: Option<u64>,
    /// Which rule it breaks.
    pub kind: FaultKind,
    /// What was expected and what was found.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
}

impl Fault {
    /// A fault of a file.
    pub fn new(kind: FaultKind, file: &str, message: impl Into<String>) -> Self {
        Fault { file: file.into(), tensor: None, at: None, kind, message: message.into(), hint: None }
    }

    /// The same, about a tensor.
    pub fn tensor(self, name: &str) -> Self {
        Fault { tensor: Some(name.into()), ..self }
    }

    /// The same, at a byte.
    pub fn at(self, byte: u64) -> Self {
        Fault { at: Some(byte), ..self }
    }

    /// The same with what would help.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Fault { hint: Some(hint.into()), ..self }
    }

    /// The fault without its hint, on one line.
    pub fn line(&self) -> String {
        let mut parts = Vec::new();
        if !self.file.is_empty() {
            parts.push(self.file.clone());
        }
        parts.extend(self.tensor.iter().map(|name| format!("tensor `{}`", printable(name))));
        parts.extend(self.at.iter().map(|byte| format!("byte {byte}")));
        parts.push(self.message.clone());
        parts.join(": ")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Every fault of a checkpoint: at least one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Faults {
    /// In the order of files and of the model.
    pub faults: Vec<Fault>,
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Faults { faults: vec![fault] }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            write!(f, "{newline}{fault}")?;
        }
        Ok(())
    }
}

/// A name from a file as it may be shown: control characters escaped, cut off where it is very long.
pub(crate) fn printable(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
