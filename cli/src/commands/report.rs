//! `lapidary report`: the page of a plan that was written before; its time line is drawn by `lapidary plan --report`.

use crate::args::Report;
use crate::failure::{Exit, Failure};
use crate::{input, output};
use lapidary_planner::{PlanDocument, report};

/// Runs the verb.
pub fn run(args: &Report) -> Result<(), Failure> {
    let text = input::read(&args.plan)?;
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", args.plan.display()));
    let document = PlanDocument::from_json(&text).map_err(|error| refused(error.to_string()))?;
    let page = report::page(&document, None).map_err(|error| refused(error.to_string()))?;
    output::file(&args.output, &page)
}
