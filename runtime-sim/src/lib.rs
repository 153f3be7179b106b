//! Wafer programs: their definition, checks and the cycle-approximate simulator.
//!
//! A [`program::WaferProgram`] is plain data: classes of processing elements (PEs), their memory, tasks and routes,
//! and the streams of words that enter and leave at the edges of the wafer. [`check`] proves that it cannot fault the
//! machine; [`event::simulate`] runs it word by word and computes its numbers, with [`event::Options`] for threads, a
//! [`trace::Trace`] and the critical path; [`flow::time`] times it by classes and bursts, [`analytic::time`] in closed form.

pub mod analytic;
mod canonical;
pub mod check;
pub mod collectives;
pub mod event;
pub mod fabric;
pub mod flow;
pub mod heat;
pub mod kernels;
mod lower;
mod network;
pub mod page;
mod parallel;
mod price;
pub mod program;
pub mod report;
pub mod text;
pub mod trace;

pub use check::{CheckError, Checked, check, check_shared, prove};
pub use fabric::FabricSpec;
pub use report::Report;
