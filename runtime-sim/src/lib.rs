//! Wafer programs: their definition, checks and the cycle-approximate simulator.
//!
//! A [`program::WaferProgram`] is plain data: classes of processing elements (PEs), their memory, tasks and routes,
//! and the streams of words that enter and leave at the edges of the wafer.

pub mod program;
