//! Level *event*: every word travels its real route, through real queues, and every number is computed.
//!
//! PEs run as far ahead as their words allow, in batches of words and in any order; only what depends on the order of
//! time (which task is ready first, who gets a shared link) waits until its time has come. Strips of rows run on
//! threads. Times are integers, and the same program gives the same cycles on any number of threads.

mod arbiter;
mod cause;
mod compute;
mod deadlock;
mod decisions;
#[cfg(feature = "compiled")]
mod emit;
mod engine;
mod flow;
mod host;
mod images;
#[cfg(feature = "compiled")]
mod jit;
#[cfg(not(feature = "compiled"))]
mod jit {
    /// No compiled ops.
    pub enum Compiled {}
}
mod links;
mod ops;
mod outcome;
mod pe;
mod plan;
mod ports;
mod room;
mod rounds;
mod steps;
mod strip;
mod switch;
mod tasks;
#[cfg(test)]
mod tests;
mod trace;
mod values;
mod walk;
mod words;
mod worklist;

pub(crate) use cause::{CAUSES, Cause, by_name};
pub use engine::{Options, Run, SimError, simulate, simulate_with};
pub(crate) use outcome::memory_peak;
