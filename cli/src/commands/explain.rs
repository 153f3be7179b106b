//! `lapidary explain`: two candidates of a plan side by side, term by term.

use crate::args::Explain;
use crate::failure::{Exit, Failure};
use crate::input;
use lapidary_planner::{Candidate, PlanDocument, explain};

/// Runs the verb.
pub fn run(args: &Explain) -> Result<(), Failure> {
    let text = input::read(&args.plan)?;
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", args.plan.display()));
    let document = PlanDocument::from_json(&text).map_err(|error| refused(error.to_string()))?;
    let first = document.chosen().ok_or_else(|| refused("no candidate is chosen".into()))?;
    let other = match &args.vs {
        Some(name) => {
            document.find(name).ok_or_else(|| refused(format!("no candidate is called `{name}`")))?
        }
        None => second(&document, first).ok_or_else(|| refused("there is only one candidate".into()))?,
    };
    print!("{}", explain(first, other));
    Ok(())
}

fn second<'d>(document: &'d PlanDocument, first: &Candidate) -> Option<&'d Candidate> {
    document.candidates.iter().find(|candidate| candidate.name != first.name)
}
