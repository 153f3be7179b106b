//! `lapidary calibrate`: a site's machine file from a log of nccl-tests.

use crate::args::Calibrate;
use crate::failure::{Exit, Failure};
use crate::{input, output};
use lapidary_hardware::builtin;
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
    let log_name = args.from.display().to_string();
    let log = NcclLog::read(&text, &log_name).map_err(refused)?;
    let file = site_file(&base, &args.machine, &log, &log_name, &args.name).map_err(refused)?;
    output::file(&args.output, &file)
}
