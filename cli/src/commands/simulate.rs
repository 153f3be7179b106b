//! `lapidary simulate`: a wafer program through the simulator, and where the cycles go.

use super::print_json;
use crate::args::{Level, Simulate};
use crate::failure::{Exit, Failure, Fault};
use crate::{input, show};
use lapidary_runtime_sim::{FabricSpec, Report, check, event, text};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Runs the verb.
pub fn run(args: &Simulate) -> Result<(), Failure> {
    let place = program_file(args)?;
    let name = place.display().to_string();
    let source = input::read(&place)?;
    let program =
        text::parse(&source, &name).map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?;
    let fabric = FabricSpec::wse2();
    let checked = check(&program, &fabric).map_err(|errors| Failure {
        exit: Exit::InvalidInput,
        faults: errors.iter().map(|error| Fault::new(format!("{name}: {error}"))).collect(),
    })?;
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{name}: {what}"));
    let report = match args.level {
        Level::Event => {
            event::simulate(&checked, BTreeMap::new()).map_err(|e| refused(e.to_string()))?.report
        }
        Level::Flow => return Err(refused("level flow".into())),
    };
    if args.json { print_json(&report) } else { print(&report) }
}

/// The artifact's program text, or the file itself.
fn program_file(args: &Simulate) -> Result<PathBuf, Failure> {
    let place = &args.artifact;
    match place.is_dir() {
        false => Ok(place.clone()),
        true if place.join("program.wafer").is_file() => Ok(place.join("program.wafer")),
        true => Err(Failure::new(Exit::InvalidInput, format!("{}: has no program.wafer", place.display()))
            .help("compile with --target cg1-sim, or name a .wafer file")),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    println!("{report:#?}");
    let _ = show::count(0);
    Ok(())
}
