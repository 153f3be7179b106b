//! What things cost: one small function per rule, each with its source, shared by planner and simulators.

pub mod collective;
pub mod kernel;
pub mod measured;
pub mod wafer;

use serde::Serialize;

/// What a piece of work waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limiter {
    /// Arithmetic.
    Compute,
    /// Memory bandwidth.
    Memory,
    /// The host that launches kernels.
    Launch,
    /// Links or network.
    Network,
    /// What enters and leaves a wafer.
    Ingress,
}

impl Limiter {
    /// The word for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Limiter::Compute => "compute",
            Limiter::Memory => "memory",
            Limiter::Launch => "launch",
            Limiter::Network => "network",
            Limiter::Ingress => "ingress",
        }
    }
}
