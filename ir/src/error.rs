//! Faults of this crate: MLIR's diagnostics as values, and failures of passes.

use std::error::Error;
use std::fmt;
use thiserror::Error;

/// How serious a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The module is wrong.
    Error,
    /// The module is odd.
    Warning,
    /// Something a pass wants to say.
    Remark,
    /// Part of another diagnostic.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Remark => "remark",
            Severity::Note => "note",
        })
    }
}

/// Where a diagnostic points.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// File, line and column, both from 1; none for operations made by the compiler.
    pub file: Option<(String, usize, usize)>,
    /// Name of the graph node that the operation comes from, such as `layers.*.attn.q`.
    pub node: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, &self.node) {
            (Some((file, line, column)), None) => write!(f, "{file}:{line}:{column}"),
            (Some((file, line, column)), Some(node)) => write!(f, "{file}:{line}:{column} ({node})"),
            (None, Some(node)) => f.write_str(node),
            (None, None) => f.write_str("unknown place"),
        }
    }
}

/// One message of MLIR, with its notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How serious it is.
    pub severity: Severity,
    /// Where it points.
    pub place: Place,
    /// What it says.
    pub message: String,
    /// What belongs to it.
    pub notes: Vec<Diagnostic>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.severity, self.message)?;
        self.notes.iter().try_for_each(|note| write!(f, "\n  {note}"))
    }
}

/// What a pass may fail with: its own error, or a panic that was caught.
#[derive(Debug, Error)]
pub enum PassFailure {
    /// The pass says why.
    #[error(transparent)]
    Refused(#[from] Box<dyn Error + Send + Sync>),
    /// A fault of the pass.
    #[error("internal fault: {0}")]
    Panic(String),
}

impl From<IrError> for PassFailure {
    fn from(error: IrError) -> Self {
        PassFailure::Refused(Box::new(error))
    }
}

/// A fault in a module, a pipeline or a pass.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IrError {
    /// MLIR refuses; the diagnostics say what and where.
    #[error("{what}:{}", listed(.diagnostics))]
    Invalid {
        /// What was being done, such as `parse x.mlir` or `verify after cse`.
        what: String,
        /// At least one.
        diagnostics: Vec<Diagnostic>,
    },
    /// A pass failed.
    #[error("pass {pass}: {failure}")]
    Pass {
        /// Name of the pass.
        pass: String,
        /// What it failed with.
        failure: PassFailure,
        /// What MLIR said meanwhile.
        diagnostics: Vec<Diagnostic>,
    },
    /// A pipeline does not parse.
    #[error("pipeline \"{text}\": {message}")]
    Pipeline {
        /// The text.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// An operation is to be erased while its results are still read.
    #[error("{op} is still read by {reader}")]
    StillRead {
        /// Name of the operation.
        op: String,
        /// Name of one operation that reads it.
        reader: String,
    },
    /// An operation lacks what its kind promises; only possible before verification.
    #[error("{op} has no {what}")]
    Missing {
        /// Name of the operation.
        op: String,
        /// The operand, result, attribute or region.
        what: String,
    },
}

impl IrError {
    /// The diagnostics of MLIR that it carries.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            IrError::Invalid { diagnostics, .. } | IrError::Pass { diagnostics, .. } => diagnostics,
            _ => &[],
        }
    }
}

fn listed(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|diagnostic| format!("\n{diagnostic}")).collect()
}
