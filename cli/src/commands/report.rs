//! `lapidary report`: the page of a plan that was written before (its time line is drawn by `lapidary plan --report`), of a
//! simulation or of wafer programs, or the picture of a bench document.

use super::jobs;
use super::simulate::page;
use crate::args::{Global, Report};
use crate::failure::{Exit, Failure};
use crate::{input, output};
use lapidary_hardware::calibrate::bench::{self, Bench};
use lapidary_planner::{PlanDocument, report};
use lapidary_runtime_gpu::bench::roofline;

/// Runs the verb.
pub fn run(args: &Report, global: &Global) -> Result<(), Failure> {
    let is_program = |name: &str| name == "program.json" || name.ends_with(".wafer");
    let name = args.plan.file_name().and_then(|name| name.to_str());
    if args.plan.is_dir() || name.is_some_and(is_program) {
        return output::file(&args.output, &page::of_artifact(&args.plan, jobs(global))?);
    }
    let text = input::read(&args.plan)?;
    let document = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    if document["schema"] == bench::SCHEMA {
        return measured(args, &text);
    }
    if document["schema"] == page::SCHEMA {
        let file = args.plan.display().to_string();
        return output::file(&args.output, &page::of_document(&text, &file)?);
    }
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", args.plan.display()));
    let document = PlanDocument::from_json(&text).map_err(|error| refused(error.to_string()))?;
    let page = report::page(&document, None).map_err(|error| refused(error.to_string()))?;
    output::file(&args.output, &page)
}

/// The kernels of a bench document under the roof of what the device can do: an SVG, or a page that holds it.
fn measured(args: &Report, text: &str) -> Result<(), Failure> {
    let refused = |what: String| Failure::new(Exit::InvalidInput, what);
    let file = args.plan.display().to_string();
    let bench = Bench::read(text, &file).map_err(|error| refused(error.to_string()))?;
    let none =
        || refused(format!("{file}: no ceilings and kernels with their work: `lapidary bench` writes them"));
    let picture = roofline(&bench).ok_or_else(none)?;
    let page = match args.output.extension().is_some_and(|extension| extension == "svg") {
        true => picture,
        false => format!("<!doctype html>\n<meta charset=\"utf-8\">\n<title>{file}</title>\n{picture}"),
    };
    output::file(&args.output, &page)
}
