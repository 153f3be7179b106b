//! Rewrites of the IR and the emission of programs: a pass is a file.
//!
//! [`registry::PASSES`] names every pass, [`pipeline`] lists them in the order of use, [`run`] runs a list on a module
//! and reports, [`opt`] does the same for text. What is fused, and why, is decided by [`fusion`] on plain graphs; where
//! muP's multipliers go, by [`mup`].

pub mod attention_backward;
pub mod cpu;
pub mod cuda;
pub mod dce;
pub mod fuse;
pub mod fusion;
pub mod graph;
pub mod hoist_scales;
pub mod legal;
pub mod lower_to_cpu;
pub mod lower_to_cuda;
pub mod mup;
pub mod mup_fold;
pub mod opt;
pub mod pass;
pub mod pipeline;
pub mod recompute;
pub mod registry;
pub mod report;
pub mod run;
pub mod shard;
pub mod view;
pub mod wafer;

pub use pass::{Changed, Pass, PassCx, PassError};
pub use pipeline::{Fusion, Goal, Mup, Pipeline, PipelineError};
pub use run::{RunError, Watch, run};
