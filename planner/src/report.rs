//! One page that opens offline: the ranked table, memory against time, any two plans term by term, the step's time line
//! with its bubbles, memory by stage, assumptions with their sources. Everything it shows is the document inside it.

use crate::document::PlanDocument;
use crate::timeline::Timeline;
use serde_json::json;

const PAGE: &str = include_str!("../report/page.html");
const STYLE: &str = include_str!("../report/page.css");
const SCRIPT: &str = include_str!("../report/page.js");

/// The page of a plan; `timeline` is that of the chosen candidate.
///
/// # Errors
/// When a number is not finite, which prices never are.
pub fn page(document: &PlanDocument, timeline: Option<&Timeline>) -> Result<String, serde_json::Error> {
    let data = serde_json::to_string(&json!({ "plan": document, "timeline": timeline }))?;
    // A script element ends at the first `</`, wherever that stands.
    let data = data.replace("</", "<\\/").replace("<!--", "<\\u0021--");
    let title = escaped(&format!("{} on {}", document.inputs.model, document.inputs.machine));
    let parts =
        [("{{title}}", title.as_str()), ("{{style}}", STYLE), ("{{script}}", SCRIPT), ("{{data}}", &data)];
    let mut page = String::new();
    let mut rest = PAGE;
    while let Some((at, (mark, part))) = next(rest, &parts) {
        page.push_str(&rest[..at]);
        page.push_str(part);
        rest = &rest[at + mark.len()..];
    }
    page.push_str(rest);
    Ok(page)
}

/// The first mark in a text.
fn next<'p>(
    text: &str,
    parts: &'p [(&'static str, &'p str)],
) -> Option<(usize, &'p (&'static str, &'p str))> {
    parts.iter().filter_map(|part| Some((text.find(part.0)?, part))).min_by_key(|(at, _)| *at)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
