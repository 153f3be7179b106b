//! How a command ends: the exit codes of the contract, and the story told on stderr.

use lapidary_ir::Diagnostic as Diagnosis;
use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};
use std::fmt;
use std::io::Write;

/// Why a command did not end well. The numbers are the process exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A fault of Lapidary itself.
    Internal = 1,
    /// The command line does not make sense.
    Usage = 2,
    /// A file does not say what it should.
    InvalidInput = 3,
    /// The model does not fit the machine, or no plan does.
    DoesNotFit = 4,
    /// An op or a target that is not supported.
    Unsupported = 5,
    /// A verification, accuracy or benchmark gate failed.
    GateFailed = 6,
    /// A device or a toolchain is missing.
    Missing = 7,
    /// Ctrl-C; what was found until then is printed.
    Interrupted = 130,
}

/// One fault with its place and what would help.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What was being done and what was found.
    pub message: String,
    /// The text in which it stands, with its display name.
    pub source: Option<(String, String)>,
    /// Byte offset and length in that text.
    pub span: Option<(usize, usize)>,
    /// What would help.
    pub help: Option<String>,
}

impl Fault {
    /// A fault without a place.
    pub fn new(message: impl Into<String>) -> Self {
        Fault { message: message.into(), source: None, span: None, help: None }
    }
}

/// A command's failure: an exit code and at least one fault.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The process exit code.
    pub exit: Exit,
    /// Every fault that was found; none when they are on stderr already.
    pub faults: Vec<Fault>,
}

impl Failure {
    /// A failure with one fault.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, faults: vec![Fault::new(message)] }
    }

    /// MLIR's diagnostics, or else the whole error as one fault.
    pub fn diagnosed(internal: bool, stage: &str, diagnostics: &[Diagnosis], whole: &str) -> Self {
        let exit = if internal { Exit::Internal } else { Exit::Unsupported };
        if diagnostics.is_empty() {
            return Failure::new(exit, format!("{stage}: {whole}"));
        }
        Failure { exit, faults: diagnostics.iter().map(|d| Fault::new(format!("{stage}: {d}"))).collect() }
    }

    /// Adds what would help to the last fault.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(fault) = self.faults.last_mut() {
            fault.help = Some(help.into());
        }
        self
    }

    /// Writes every fault to stderr. Where nobody reads it, the exit code still tells.
    pub fn print(&self) {
        let mut stderr = std::io::stderr().lock();
        for fault in &self.faults {
            let _ = write!(stderr, "{:?}", miette::Report::new(Rendered::from(fault)));
        }
        if self.faults.len() > 1 {
            let _ = writeln!(stderr, "{} faults", self.faults.len());
        }
    }
}

/// A [`Fault`] in the form that miette draws.
#[derive(Debug)]
struct Rendered {
    fault: Fault,
    source: Option<NamedSource<String>>,
}

impl From<&Fault> for Rendered {
    fn from(fault: &Fault) -> Self {
        let source = fault.source.clone().map(|(name, text)| NamedSource::new(name, text));
        Rendered { fault: fault.clone(), source }
    }
}

impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fault.message)
    }
}

impl std::error::Error for Rendered {}

impl Diagnostic for Rendered {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.fault.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (offset, length) = self.fault.span?;
        self.source.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::underline((offset, length)))))
    }
}
