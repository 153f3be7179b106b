//! Level *flow*: the same program and the same prices, with streams as bursts (start, period, length) instead of words
//! and one row of PEs for all rows that do the same.
//!
//! A loop runs in one step for as many iterations as its inputs keep one rhythm: the time of iteration i is the
//! largest of a few lines in i. Words leave when the words that are needed for them have come, also where the iteration
//! waits for others later. Where PEs answer each other in every iteration, a PE that saw two iterations alike does the rest
//! like them and reads on credit, loops within loops alike. In large programs a loop whose last two pieces had one rhythm
//! goes on in it, for as many iterations as are done, before its words are sent; then it waits for them. What was read on
//! credit must have come before a PE ends a phase, and where it came later than it was needed, the report says by how much.
//! Rows in a line, which only hand words on to the south, are foretold from two periods of them.
//!
//! Code is cut into stretches where phases begin that exchange words. PEs that exchange words within a stretch are a group;
//! groups that look the same and begin it alike, but for a delay, are timed once. In long programs a few cycles do not part
//! them, and where these add up to more than a thousandth, the report says so. The rows of a group that hands words on to the
//! south are timed one after the other; a row that begins as one before it did, within a cycle, and is fed like it does what
//! that row did. Rows behind those that a line leaves out run stretch by stretch with those before, which they follow too.
//!
//! The critical path is found from the end backwards, through who waited for whom; for that a PE keeps what held it up.
//!
//! A small program runs with queues as deep as they are, one word after the other, and again with the turns that words took
//! on shared links, until these settle or change less than a thousandth of all cycles; a large one runs once, as if queues
//! never filled, and its report says so. A program that does not come to its end so, or is too large for
//! it, must find room for all its words: that is proven stretch by stretch where rows act in step and what is
//! left has no circles but small ones. Where it is not, it is run without time, and refused as level event refuses it if
//! nobody can go on; if there are too many PEs or turns for that, or PEs choose between tasks, the report says of which
//! phases it is not known. Routers with switch positions and control tasks are left out: programs with them are refused.

mod actor;
mod bursts;
mod chain;
mod critical;
mod ends;
mod engine;
mod exact;
mod follow;
mod groups;
mod held;
mod links;
mod loops;
mod outcome;
mod pace;
mod passes;
mod pe;
mod profile;
mod proof;
mod room;
mod rows;
mod run;
mod skip;
mod spans;
mod standstill;
mod steady;
mod streams;
mod stretches;
#[cfg(test)]
mod tests;
mod timing;
mod trace;
mod words;
mod work;

pub(crate) use bursts::Burst;
pub(crate) use engine::Engine;
pub use engine::FlowError;
pub(crate) use pe::Pe;
pub(crate) use profile::{Access, Profile};
pub(crate) use skip::Skip;
pub use timing::{FOLLOWED, room, time, time_traced};
pub(crate) use timing::{finishes, timed_by};
