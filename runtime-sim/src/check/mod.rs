//! Proves that a program cannot fault the machine, or says at which PE and why it could.

mod area;
mod bounds;
mod fault;
mod growth;
mod memory;
mod names;
mod periods;
mod pieces;
mod places;
mod product;
mod rows;
mod sums;
mod switched;
mod tallies;
mod tally;
#[cfg(test)]
pub(crate) mod tests;
mod words;

pub use fault::{CheckError, Fault};

use crate::fabric::FabricSpec;
use crate::flow::{self, FlowError};
use crate::lower::{LoweredClass, lower_with};
use crate::network::{Links, Network, cover};
use crate::program::{Uses, WaferProgram};
use rows::Rows;
use std::sync::Arc;

/// A program that passed the checker, with the fabric it was checked for.
#[derive(Clone, Debug)]
pub struct Checked<T> {
    inner: Arc<T>,
    fabric: FabricSpec,
    classes: Arc<Vec<LoweredClass>>,
}

impl<T: PartialEq> PartialEq for Checked<T> {
    /// Whether they are the same program for the same fabric; what is executed follows from these.
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner && self.fabric == other.fabric
    }
}

impl<T> Checked<T> {
    /// The program.
    pub fn get(&self) -> &T {
        &self.inner
    }

    /// Its classes in the form that is executed.
    pub(crate) fn classes(&self) -> &[LoweredClass] {
        &self.classes
    }

    /// The fabric it was checked for.
    pub fn fabric(&self) -> &FabricSpec {
        &self.fabric
    }
}

/// Largest grid on which cyclic waits are looked for.
const CYCLES_UP_TO: usize = 1024;

/// Checks a program against a fabric; reports as many faults as can be told apart.
///
/// Proven: names and ranges; memory fits, and buffers do not overlap while alive; slices with decidable loops stay in
/// their buffers; every route ends in a reader and has one sender; every word sent is read, except that words through
/// switches which also copy are only followed by the simulator; tasks are triggered as often as they say. On grids of
/// at most 1024 PEs without switches: no cyclic wait, unless a queue fills.
///
/// Rows that look the same are proved once, and PEs that cannot differ are counted once. On larger grids, of rows in a line,
/// which hand words on to rows that look the same, few are traced.
pub fn check(program: &WaferProgram, spec: &FabricSpec) -> Result<Checked<WaferProgram>, Vec<CheckError>> {
    check_shared(&Arc::new(program.clone()), spec)
}

/// Does what [`check`] does without a copy of the program.
pub fn check_shared(
    program: &Arc<WaferProgram>,
    spec: &FabricSpec,
) -> Result<Checked<WaferProgram>, Vec<CheckError>> {
    let classes = Arc::new(proven(program, spec)?);
    Ok(Checked { inner: Arc::clone(program), fabric: spec.clone(), classes })
}

/// Does what [`check`] does for who does not need the program any more.
pub fn prove(program: &WaferProgram, spec: &FabricSpec) -> Result<(), Vec<CheckError>> {
    proven(program, spec).map(|_| ())
}

fn proven(program: &WaferProgram, spec: &FabricSpec) -> Result<Vec<LoweredClass>, Vec<CheckError>> {
    let uses = Uses::of_pieces(program);
    refuse(names::check(program, spec, &uses))?;
    let classes = lower_with(program, spec, &uses);
    refuse(memory::check(program, spec, &classes))?;
    let class_of = cover(program)?;
    let small = class_of.len() <= CYCLES_UP_TO;
    if !small && holds_in_few_rows(program, spec, &class_of, &classes) {
        return Ok(classes);
    }
    let rows = Rows::choose(program, &class_of, &classes);
    let net = Network::of_rows(program, spec, class_of, rows.traced.clone(), Links::Untold)?;
    refuse(words::check(program, &net, &classes, &rows))?;
    if small && let Err(FlowError::Deadlock { chain }) = flow::finishes(program, spec, &net, &classes) {
        return Err(vec![CheckError::new(Fault::Cycle { chain: chain.join("; ") })]);
    }
    Ok(classes)
}

/// Whether routes and words are right, as far as few periods of rows in lines say so.
fn holds_in_few_rows(
    program: &WaferProgram,
    spec: &FabricSpec,
    class_of: &[u16],
    classes: &[LoweredClass],
) -> bool {
    let Some(rows) = Rows::choose_fewer(program, class_of, classes) else { return false };
    let net = Network::of_rows(program, spec, class_of.to_vec(), rows.traced.clone(), Links::Untold);
    net.is_ok_and(|net| words::hold(program, &net, classes, &rows))
}

fn refuse(errors: Vec<CheckError>) -> Result<(), Vec<CheckError>> {
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
