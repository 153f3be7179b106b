//! Row functions made ready to run: compiled where the processor allows it, interpreted elsewhere.
//!
//! A function reads and writes *strided rows*: its sources (one for every value that is a source, then one for every
//! rotation it applies) and its outputs, in the order of the program. Every row can be read and written up to the next
//! multiple of 16 elements; what stands behind a row's width never reaches a result.

mod emit;
mod entry;
mod interpret;
mod math;

pub use entry::Jit;

use crate::program::{RotationId, RowFn, RowOp};

/// Rows are read and written in chunks of this many elements.
pub const CHUNK: usize = 16;

/// Elements that a row of `width` takes in memory.
pub fn pitch(width: u64) -> usize {
    (width as usize).next_multiple_of(CHUNK)
}

/// Rows to read. A pitch of 0 repeats one row.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The first row begins at 0.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub pitch: usize,
}

/// Rows to write.
#[derive(Debug)]
pub struct Sink<'a> {
    /// The first row begins at 0.
    pub data: &'a mut [f32],
    /// Elements from one row to the next.
    pub pitch: usize,
}

/// How a rotation acts on a row: heads side by side, and per head the pairs that rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Width of a head.
    pub head_dim: usize,
    /// Dimensions that rotate.
    pub rot_dims: usize,
    /// Whether pairs are neighbours; else half of `rot_dims` apart.
    pub interleaved: bool,
}

impl Turn {
    /// The dimension that rotates together with dimension `at < rot_dims` of a head.
    pub fn partner(&self, at: usize) -> usize {
        match (self.interleaved, at < self.rot_dims / 2) {
            (true, _) => at ^ 1,
            (false, true) => at + self.rot_dims / 2,
            (false, false) => at - self.rot_dims / 2,
        }
    }
}

/// A row function ready to run.
pub struct Kernel {
    function: RowFn,
    turns: Vec<Turn>,
    /// Widths of sources and outputs, in order.
    widths: (Vec<u64>, Vec<u64>),
    code: Option<entry::Code>,
}

impl Kernel {
    /// Prepares a function; `turns` are the program's rotations. Without `jit` it is interpreted.
    pub fn new(function: &RowFn, turns: &[Turn], jit: Option<&mut Jit>) -> Kernel {
        let sources = function.values.iter().filter(|v| v.op.is_source()).map(|v| v.width);
        let rotations = rotations(function).into_iter().map(|r| 2 * turns[r].rot_dims as u64);
        let outputs = function.outputs.iter().map(|o| function.values[o.value].width);
        let widths = (sources.chain(rotations).collect(), outputs.collect());
        let code = jit.and_then(|jit| jit.compile(function, turns));
        Kernel { function: function.clone(), turns: turns.to_vec(), widths, code }
    }

    /// Whether the function was compiled.
    pub fn is_compiled(&self) -> bool {
        self.code.is_some()
    }

    /// Runs the function over `rows` rows.
    ///
    /// # Panics
    /// When sources or sinks are not those of the function, or are too short for their rows.
    pub fn run(&self, rows: usize, sources: &[Source], sinks: &mut [Sink], scratch: &mut Vec<f32>) {
        assert!(sources.len() == self.widths.0.len() && sinks.len() == self.widths.1.len());
        if rows == 0 {
            return;
        }
        for (source, width) in sources.iter().zip(&self.widths.0) {
            assert!(source.data.len() >= (rows - 1) * source.pitch + pitch(*width));
        }
        for (sink, width) in sinks.iter().zip(&self.widths.1) {
            assert!(sink.data.len() >= (rows - 1) * sink.pitch + pitch(*width));
        }
        match &self.code {
            Some(code) => code.run(rows, sources, sinks, scratch),
            None => interpret::run(&self.function, &self.turns, rows, sources, sinks),
        }
    }
}

/// The rotations that a function applies, each once, in order of first use.
pub fn rotations(function: &RowFn) -> Vec<RotationId> {
    let mut found = Vec::new();
    for value in &function.values {
        if let RowOp::Rotate { rotation, .. } = value.op
            && !found.contains(&rotation)
        {
            found.push(rotation);
        }
    }
    found
}

#[cfg(test)]
mod tests;
