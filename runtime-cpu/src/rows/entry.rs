//! Where compiled code is entered.

use crate::program::RowFn;
use crate::rows::{Sink, Source, Turn};

/// Compiles row functions.
pub struct Jit;

impl Jit {
    /// A compiler.
    pub fn new() -> Option<Jit> {
        None
    }
}

impl Jit {
    /// Compiles a function; none where it cannot.
    pub fn compile(&mut self, _function: &RowFn, _turns: &[Turn]) -> Option<Code> {
        None
    }
}

/// Compiled code.
pub struct Code;

impl Code {
    /// Runs it.
    pub fn run(&self, _rows: usize, _sources: &[Source], _sinks: &mut [Sink], _scratch: &mut Vec<f32>) {}
}
