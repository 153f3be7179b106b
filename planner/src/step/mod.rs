//! The physical account of one training step on GPUs: kernels by shape, a software stack, a machine.
//!
//! A [`Job`] says what is trained, how it is spread and by which software; [`estimate`] says how long a step
//! takes, term by term. Constants of physics are data (`planner/physics.toml`), what a framework fuses,
//! launches and hides is data (`planner/stacks`), rates of the machine come from `hardware`.

pub mod data;
pub mod ends;
pub mod estimate;
mod experts;
pub mod job;
mod kept;
pub mod layer;
pub mod memory;
pub mod physics;
pub mod pipeline;
pub mod prices;
pub mod rates;
mod reading;
mod roles;
pub mod shape;
pub mod stack;
pub mod work;

pub use estimate::{Estimate, estimate};
pub use job::{Again, AttentionKernel, Job, Layout, Schedule};
pub use memory::{Occupied, occupied};
pub use physics::Physics;
pub use shape::Shape;
pub use stack::{Stack, StackError};
pub use work::Work;
