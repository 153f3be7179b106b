//! A module: parsed, verified, printed.

use crate::at::{At, New};
use crate::context::IrContext;
use crate::error::{Diagnostic, IrError, Place, Severity};
use crate::raw::{Block, Op, OwnedModule};
use melior::ir::Type;
use std::ffi::CString;
use std::fmt;

/// A `builtin.module` and the context that it lives in.
pub struct Module<'c> {
    pub(crate) raw: OwnedModule,
    cx: &'c IrContext,
}

impl<'c> Module<'c> {
    /// A module without anything in it.
    pub fn new(cx: &'c IrContext) -> Self {
        Module { raw: OwnedModule::empty(cx.unknown()), cx }
    }

    /// Reads a module from its text and verifies it; `file` is the name in diagnostics.
    ///
    /// # Errors
    /// [`IrError::Invalid`] with file, line and column of every fault.
    pub fn parse(cx: &'c IrContext, text: &str, file: &str) -> Result<Self, IrError> {
        let what = || format!("parse {file}");
        let text = CString::new(text).map_err(|nul| IrError::Invalid {
            what: what(),
            diagnostics: vec![nul_byte(text, file, nul.nul_position())],
        })?;
        let raw = cx.checked(what, || OwnedModule::parse(cx, &text, file))?;
        Ok(Module { raw, cx })
    }

    /// The context.
    pub fn context(&self) -> &'c IrContext {
        self.cx
    }

    /// The `builtin.module` operation.
    pub fn op(&self) -> Op<'c> {
        self.raw.op(self.cx)
    }

    /// The block of the module's operations.
    pub fn body(&self) -> Block<'c> {
        self.op().region_block(0).expect("MLIR gives every module a body")
    }

    /// The functions in order.
    pub fn functions(&self) -> Vec<Op<'c>> {
        self.op().functions()
    }

    /// The operation that defines a symbol.
    pub fn lookup(&self, symbol: &str) -> Option<Op<'c>> {
        self.op().lookup(symbol)
    }

    /// Checks every operation.
    ///
    /// # Errors
    /// [`IrError::Invalid`] with every diagnostic.
    pub fn verify(&self) -> Result<(), IrError> {
        self.op().verify()
    }

    /// The text, with `loc(...)` if asked.
    pub fn to_text(&self, locations: bool) -> String {
        self.op().to_text(locations)
    }
}

impl fmt::Display for Module<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.op().fmt(f)
    }
}

/// Puts a function with an entry block here; the body is empty, and `func.return` is the caller's.
///
/// # Errors
/// [`IrError::Invalid`] if the operation cannot be made.
pub fn function<'c>(
    at: At<'c>,
    name: &str,
    inputs: &[Type<'c>],
    results: &[Type<'c>],
) -> Result<(Op<'c>, Block<'c>), IrError> {
    let cx = at.context();
    let new = New::of("func.func", &[])
        .with("sym_name", cx.text(name))
        .with("function_type", cx.type_attribute(cx.function(inputs, results)))
        .regions(1);
    let op = at.create(&new)?;
    let body = op.add_block(0, inputs).ok_or_else(|| crate::handle::missing(op, "body"))?;
    Ok((op, body))
}

/// Puts a `func.return` here.
///
/// # Errors
/// [`IrError::Invalid`] if the values are not what the function returns.
pub fn return_values<'c>(at: At<'c>, values: &[crate::raw::Value<'c>]) -> Result<Op<'c>, IrError> {
    at.create(&New::of("func.return", &[]).reads(values))
}

fn nul_byte(text: &str, file: &str, at: usize) -> Diagnostic {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    Diagnostic {
        severity: Severity::Error,
        place: Place { file: Some((file.to_owned(), line, column)), node: None },
        message: "a NUL byte cannot be part of a module's text".to_owned(),
        notes: Vec::new(),
    }
}
