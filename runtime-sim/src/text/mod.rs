//! The `.wafer` text form of programs: to read, to write by hand, to keep beside an artifact.
//!
//! ```text
//! wafer 4 x 1                                  # width x height
//! tensor v[32]                                 # f32 values held by the host
//! phase sum
//! piece "sum.0" { phase sum  loop x { add out(0) <- a[0], in(1) len 8 } }
//! memory common { buffer b: f32[4] @32 }       # buffers of several classes
//! class odd at (1, 0) 2 x 1 step 2 x 1 {       # columns 1 and 3 of row 0
//!   memory common
//!   buffer a: f32[8] @0 alive sum..sum load v dims 8 at 8*x + d0
//!   route 0: ramp -> west | east -> west       # two switch positions
//!   route 1: east -> ramp
//!   task main start {
//!     do "sum.0"                               # as if the statements of the piece stood here
//!     control 0 advance
//!   }
//!   task more data(1: f16) times 3 { fmac a[0; 1] <- trigger, a[0; 1], 0.5 len 8 }
//! }
//! host w in north lanes 0 .. 4 step 1 colour 1: f32 tensor v dims 8 at 8*x + d0 interval 2 then advance
//! ```
//! Work beside vector ops is `code n`, `descriptors n`, `transfers n` or `tasks n`.
//! Operands: `buffer[at; strides]`, `in(colour: wire)`, `scalar(colour: wire)`, `trigger`, numbers. Destinations:
//! slices, `out(colour: wire)`, `out(colour: wire, advance)`. A missing wire is `f32`, missing strides mean contiguous.
//! Names that are not plain words are quoted. Pieces and memories are defined before their use; names in a piece are those
//! of the class that it is used in. It can be used outside of loops and of other pieces. What is printed defines a memory
//! where several classes have the same, and a piece once for all tasks that share it.

mod code;
mod lexer;
mod parser;
mod print;

pub use parser::parse;
pub use print::print;

/// Why a text is not a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}: {hint}")]
pub struct ParseError {
    /// Display name of the text.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What was expected or found.
    pub message: String,
    /// What would help.
    pub hint: String,
}
