//! What is wrong with a table of measurements, with its place.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
    /// Name of the column of the table, where one is meant.
    pub name: String,
    /// What is wrong.
    pub message: String,
    /// What would help.
    pub hint: String,
}

impl Fault {
    /// A fault.
    pub fn new(line: usize, column: usize, name: &str, message: &str, hint: &str) -> Fault {
        Fault { line, column, name: name.into(), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { line, column, name, message, hint } = self;
        let name = if name.is_empty() { String::new() } else { format!("{name}: ") };
        write!(f, "{line}:{column}: {name}{message}")?;
        if hint.is_empty() { Ok(()) } else { write!(f, " (hint: {hint})") }
    }
}

/// A table that cannot be read: all its faults.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .faults.iter().map(|fault| format!("{file}:{fault}")).collect::<Vec<_>>().join("\n"))]
pub struct TableError {
    /// Name of the table.
    pub file: String,
    /// Its faults, in order of place.
    pub faults: Vec<Fault>,
}
