//! The page of a simulation: of one that has just been done, of a document of `simulate --json`, or of an artifact, whose
//! programs are then timed at level analytic.

use super::{Look, Timed, simulate};
use crate::args::Level;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::wafer_artifact::WaferArtifact;
use lapidary_runtime_sim::Report;
use lapidary_runtime_sim::page::{Stage, page};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Schema name of the document of `simulate --json`.
pub const SCHEMA: &str = "lapidary/simulation";

/// What the page shows of that document.
#[derive(Deserialize)]
struct Document {
    model: String,
    stages: Vec<StageTime>,
}

/// One stage in the document.
#[derive(Deserialize)]
struct StageTime {
    stage: String,
    times: u64,
    report: Report,
}

/// The page of a document of `simulate --json`.
///
/// # Errors
/// Exit 3 when something is missing in it.
pub fn of_document(text: &str, file: &str) -> Result<String, Failure> {
    let document: Document = input::json(text)
        .map_err(|what| Failure::new(Exit::InvalidInput, format!("{file}: no simulation: {what}")))?;
    let stages = document.stages.iter();
    let stages = stages.map(|s| Stage { name: &s.stage, times: s.times, report: &s.report });
    Ok(of_stages(&document.model, &stages.collect::<Vec<_>>(), &[]))
}

/// The page of an artifact, or of a .wafer text: what its programs take in closed form, and their placement.
///
/// # Errors
/// Exit 3 when it cannot be read, or when a program does not pass its check.
pub fn of_artifact(place: &Path, threads: usize) -> Result<String, Failure> {
    let artifact = WaferArtifact::read(place)?;
    let name = place.display().to_string();
    let look = Look { level: Level::Analytic, threads, traced: false, name: &name };
    let timed: Vec<Timed> =
        artifact.stages.iter().map(|stage| simulate(stage, &artifact, &look)).collect::<Result<_, _>>()?;
    let stages = artifact.stages.iter().zip(&timed);
    let stages = stages.map(|(s, timed)| Stage { name: &s.name, times: s.times, report: &timed.report });
    Ok(of_stages(&artifact.model, &stages.collect::<Vec<_>>(), &placement(place)))
}

/// The page of stages that were simulated; `placement` is the text of [`placement`].
pub fn of_stages(model: &str, stages: &[Stage], placement: &[String]) -> String {
    let cycles: u64 = stages.iter().map(|stage| stage.times * stage.report.cycles).sum();
    let clock = stages.first().map_or(1.0, |stage| stage.report.clock_hz);
    let seconds = cycles as f64 / clock;
    let summary = format!("One pass over all stages takes {cycles} cycles = {seconds:.6} s.");
    page(&format!("{model} on a wafer"), &[summary], stages, placement)
}

/// The lines in which an artifact's report tells the placement; none for a .wafer text.
pub fn placement(place: &Path) -> Vec<String> {
    let folder: PathBuf = match place.is_dir() {
        true => place.to_path_buf(),
        false => place.parent().map(Path::to_path_buf).unwrap_or_default(),
    };
    let is_artifact = place.is_dir() || place.extension().is_some_and(|extension| extension == "json");
    let text = is_artifact.then(|| std::fs::read_to_string(folder.join("report.json")).ok()).flatten();
    let report: Option<serde_json::Value> = text.and_then(|text| serde_json::from_str(&text).ok());
    let lines = report.as_ref().and_then(|report| report["placement"]["summary"].as_array());
    lines.into_iter().flatten().filter_map(|line| line.as_str().map(str::to_string)).collect()
}
