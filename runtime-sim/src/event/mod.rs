//! Level *event*: every word travels its real route, through real queues, and every number is computed.
//!
//! PEs run as far ahead as their words allow; a calendar decides only what depends on the order of time (which task is
//! ready first, who gets a shared link). Times are integers and the same program gives the same cycles.

mod deadlock;
mod engine;
mod host;
mod links;
mod ops;
mod outcome;
mod pe;
mod switch;
mod values;

pub use engine::{Run, SimError, simulate};
pub(crate) use outcome::memory_peak;
