//! Ranks plans: search space, memory, price, explanation.
//!
//! [`plan()`] looks for the best way to train a model on a machine: [`Physical`] says what each way takes in time and
//! memory, branch and bound leaves out what cannot win, and a [`PlanDocument`] holds the best, the baselines a user
//! knows, and every rejected kind of plan with its reason. [`explain()`] sets two side by side.

pub mod accuracy;
pub mod answer;
pub mod assumption;
mod baseline;
pub mod cost;
pub mod document;
pub mod explain;
pub mod kernels;
pub mod launch;
pub mod memory;
pub mod plan;
pub mod rank;
mod ranking;
pub mod recipe;
pub mod report;
pub mod request;
mod search;
pub mod sensitivity;
pub mod serve;
pub mod step;
pub mod timeline;
pub mod wafer;
mod warnings;

pub use answer::{plan, plan_until};
pub use assumption::Assumption;
pub use cost::physical::Physical;
pub use cost::{Bound, Cost};
pub use document::{Beaten, Candidate, Counts, ErrorBar, Inputs, Nearest, PlanDocument};
pub use explain::{Difference, Explanation, explain};
pub use plan::{Degrees, GpuPlan, Recompute, Sharding, WaferMode, WaferPlan};
pub use recipe::Recipe;
pub use request::{Objective, Pins, PlanError, PlanRequest};
pub use timeline::{StageUse, Timeline, timeline};
pub use wafer::release::{RELEASES, Release};
