//! What a pass is: a name, a sentence, and a rewrite of the module.

use crate::cuda::Lowered;
use crate::report::{FoldReport, FusionReport};
use crate::shard::ShardReport;
use lapidary_ir::{Diagnostic, IrError, Op, Place, Severity};
use lapidary_models::autodiff::RecomputeReport;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// Whether a pass did anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The module is another one now.
    Yes,
    /// Nothing was touched.
    No,
}

impl Changed {
    /// `Yes` when the condition holds.
    pub const fn when(condition: bool) -> Changed {
        if condition { Changed::Yes } else { Changed::No }
    }
}

/// A rewrite of the whole module. Each pass is a file of this crate and a row of [`crate::registry::PASSES`].
pub trait Pass: Send + Sync {
    /// The name in pipelines, in kebab-case.
    fn name(&self) -> &'static str;
    /// What it does, in one sentence without a full stop.
    fn summary(&self) -> &'static str;
    /// Rewrites the `builtin.module`; it verifies before and must verify afterwards.
    ///
    /// # Errors
    /// [`PassError`] when the module is not of the form that the pass needs; the module is unchanged then.
    fn run(&self, module: Op<'_>, cx: &PassCx) -> Result<Changed, PassError>;
    /// The same pass, knowing which forms of kernels were measured to be the fastest on the target; none for passes to which
    /// that says nothing.
    fn measured(&self, _forms: &BTreeMap<String, String>) -> Option<Arc<dyn Pass>> {
        None
    }
}

/// What passes leave behind beside the module.
#[derive(Debug, Default)]
pub struct PassCx {
    notes: Mutex<Notes>,
}

/// Findings of one pass.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// What the pass said of itself; none for MLIR's own.
    pub changed: Option<Changed>,
    /// Sentences for people.
    pub lines: Vec<String>,
    /// What was fused.
    pub fusion: Option<FusionReport>,
    /// What was folded.
    pub fold: Option<FoldReport>,
    /// The GPU program that was made.
    pub gpu: Option<Lowered>,
    /// What is computed again.
    pub recompute: Option<RecomputeReport>,
    /// What one rank has.
    pub shard: Option<ShardReport>,
}

impl PassCx {
    /// Writes down a sentence.
    pub fn note(&self, line: impl Into<String>) {
        self.with(|notes| notes.lines.push(line.into()));
    }

    /// Changes the notes.
    pub fn with(&self, change: impl FnOnce(&mut Notes)) {
        change(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes everything written so far.
    pub fn take(&self) -> Notes {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why a pass refuses a module.
#[derive(Debug, Error)]
pub enum PassError {
    /// The module is not of the form that the pass needs: each diagnostic says where and why.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Diagnostic>),
    /// The module is of the right form and too large for the machine.
    #[error("{diagnostic}; it fits with {change}")]
    TooLarge {
        /// What is over, by how much, and where.
        diagnostic: Box<Diagnostic>,
        /// The smallest change that fits.
        change: String,
    },
    /// The IR refused a rewrite.
    #[error(transparent)]
    Ir(#[from] IrError),
}

impl PassError {
    /// A refusal at one operation.
    pub fn at(op: Op<'_>, message: impl Into<String>) -> PassError {
        PassError::Refused(vec![diagnostic(op, message)])
    }

    /// The diagnostics inside, or one without a place.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        match self {
            PassError::Refused(diagnostics) => diagnostics.clone(),
            PassError::TooLarge { diagnostic, .. } => vec![diagnostic.as_ref().clone()],
            PassError::Ir(error) if !error.diagnostics().is_empty() => error.diagnostics().to_vec(),
            PassError::Ir(error) => vec![placeless(error.to_string())],
        }
    }
}

/// An error at an operation.
pub fn diagnostic(op: Op<'_>, message: impl Into<String>) -> Diagnostic {
    Diagnostic { severity: Severity::Error, place: op.place(), message: message.into(), notes: Vec::new() }
}

/// An error that belongs to no operation.
pub fn placeless(message: impl Into<String>) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        place: Place::default(),
        message: message.into(),
        notes: Vec::new(),
    }
}
