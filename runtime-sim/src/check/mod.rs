//! Proves that a program cannot fault the machine, or says at which PE and why it could.

mod fault;

pub use fault::{CheckError, Fault};

use crate::fabric::FabricSpec;
use crate::network::Network;
use crate::program::WaferProgram;

/// A program that passed the checker, with the fabric it was checked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<T> {
    inner: T,
    fabric: FabricSpec,
}

impl<T> Checked<T> {
    /// The program.
    pub fn get(&self) -> &T {
        &self.inner
    }

    /// The fabric it was checked for.
    pub fn fabric(&self) -> &FabricSpec {
        &self.fabric
    }
}

/// Checks a program against a fabric; reports all faults that can be told apart.
pub fn check(program: &WaferProgram, spec: &FabricSpec) -> Result<Checked<WaferProgram>, Vec<CheckError>> {
    Network::build(program, spec, &|_| true)?;
    Ok(Checked { inner: program.clone(), fabric: spec.clone() })
}
