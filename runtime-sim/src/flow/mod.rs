//! Level *flow*: the same program and the same prices, with streams as bursts (start, period, length) instead of words
//! and one row of PEs for all rows that do the same.
//!
//! A loop runs in one step for as many iterations as its inputs keep one rhythm: the time of iteration i is the
//! largest of a few lines in i. Where PEs answer each other in every iteration, a PE that saw two iterations alike does
//! the rest like them and reads on credit; what it read must have come before it ends. Left out: full queues (a sender never waits for room), contention on shared links,
//! routers with switch positions and control tasks; programs with the latter two kinds are refused.

mod actor;
mod bursts;
mod engine;
mod leaders;
mod outcome;
mod pace;
mod pe;
mod profile;
mod rows;
mod streams;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use bursts::Burst;
pub(crate) use engine::{Engine, finishes, timed_by};
pub use engine::{FlowError, time, time_traced};
pub(crate) use pe::Pe;
pub(crate) use profile::{Access, Profile};
