//! CPU programs: their definition and execution on the host.
//!
//! ```text
//! CpuProgram -- check --> Checked -- Model::load(weights) --> Model -- session --> Session -- prefill, decode --> logits
//! ```
//! [`program`] is plain data; everything else runs it: [`store`] finds the weights, in the mapped file where it has
//! them as they are computed with and they are many, [`rows`] compiles row functions, [`matmul`] and [`attention`] run on the kernels of
//! [`simd`], [`session`] walks over the steps, [`sample`] and [`generate`] turn logits into tokens. [`train`] runs whole
//! training steps with the same kernels. A program may be one rank's part of a model: it reads its part of the weights, and
//! its sessions meet the others through [`peers`].

pub mod attention;
pub mod cache;
pub mod generate;
pub mod matmul;
mod meeting;
pub mod model;
mod parts;
pub mod peers;
pub mod program;
pub mod rotation;
pub mod rows;
pub mod sample;
pub mod scores;
pub mod session;
pub mod simd;
mod step;
pub mod store;
pub mod train;
pub mod weights;

pub use generate::{Finish, Generation, generate};
pub use model::{Engine, LoadError, LoadOptions, Model, Prepared};
pub use peers::{Group, PeerError, Peers};
pub use program::{Checked, CpuProgram};
pub use sample::{Sampler, Sampling};
pub use session::{Logits, Observation, RunError, Session, Which};
pub use weights::{TensorView, WeightError, Weights};
