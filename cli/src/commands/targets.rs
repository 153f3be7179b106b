//! `lapidary targets`: what can be compiled for, and what each target emits.

use crate::failure::Failure;
use crate::show;

/// Name, machine, what is emitted.
const TARGETS: [[&str; 3]; 2] = [
    ["a100", "a100-80gb", "program.json, kernels/*.cu, *.ptx, *.cubin (sm_80), ir/*.mlir, report.json"],
    ["cg1-sim", "cg1", "program.json, program.wafer, ir/*.mlir, report.json"],
];

/// Runs the verb.
pub fn run() -> Result<(), Failure> {
    let rows = TARGETS.iter().map(|row| row.iter().map(ToString::to_string).collect());
    println!("{}", show::table(&["target", "machine", "emits"], &[], rows));
    Ok(())
}
