//! `lapidary targets`: what can be compiled for, and what each target emits.

use crate::failure::Failure;
use crate::show;

/// Name, machine, what is emitted.
const TARGETS: [[&str; 3]; 3] = [
    ["a100", "a100-80gb", "program.json, kernels/*.cu, *.ptx, *.cubin (sm_80), ir/*.mlir, report.json"],
    ["cg1-sim", "cg1", "program.json, *.wafer (a text for each stage), ir/*.mlir, report.json"],
    ["cpu", "host", "program.json, ir/*.mlir, report.json"],
];

/// Runs the verb.
pub fn run() -> Result<(), Failure> {
    let rows = TARGETS.iter().map(|row| row.iter().map(ToString::to_string).collect());
    println!("{}", show::table(&["target", "machine", "emits"], &[], rows));
    Ok(())
}
