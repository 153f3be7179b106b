//! `lapidary calibrate`: a site's machine file from a log of nccl-tests or from measured kernels.

use crate::args::Calibrate;
use crate::failure::{Exit, Failure};
use crate::{input, output};
use lapidary_hardware::builtin;
use lapidary_hardware::calibrate::bench::{self, Bench};
use lapidary_hardware::calibrate::{CalibrationError, NcclLog, site_file};
use std::path::Path;

/// Runs the verb.
pub fn run(args: &Calibrate) -> Result<(), Failure> {
    // Told with its place where it is no machine.
    input::machine(&args.machine)?;
    let base = match builtin::text(&args.machine) {
        Some(text) => text.to_string(),
        None => input::read(Path::new(&args.machine))?,
    };
    let text = input::read(&args.from)?;
    let refused = |error: CalibrationError| Failure::new(Exit::InvalidInput, error.to_string());
    let from = args.from.display().to_string();
    // A log of nccl-tests is text; measured kernels are a JSON document.
    let file = match text.trim_start().starts_with('{') {
        true => {
            let bench = Bench::read(&text, &from).map_err(refused)?;
            bench::site_file(&base, &args.machine, &bench, &from, &args.name)
        }
        false => {
            let log = NcclLog::read(&text, &from).map_err(refused)?;
            site_file(&base, &args.machine, &log, &from, &args.name)
        }
    };
    output::file(&args.output, &file.map_err(refused)?)
}
