//! `lapidary inspect`: what a file holds; for weights, which stored tensor holds which parameter of the model.

use super::print_json;
use crate::args::{Global, Inspect};
use crate::failure::{Exit, Failure};
use crate::inspection::{FateRow, Inspection, Part, TensorRow};
use crate::weights::{self, Files};
use crate::{input, show};
use lapidary_checkpoint::{Checkpoint, Faults, Map, Values};
use lapidary_models::ModelSpec;
use std::path::Path;

/// Runs the verb. What does not fit the model ends with exit 3, after the map.
pub fn run(args: &Inspect, global: &Global) -> Result<(), Failure> {
    if is_document(&args.place) {
        return document(&args.place, args.json);
    }
    let program = args.place.join("program.json");
    if program.is_file() {
        return document(&program, args.json);
    }
    let files = Files::open(&args.place)?;
    let checkpoint = files.checkpoint()?;
    let inspection = match model(&args.place)? {
        Some(spec) => mapped(args, &files, &checkpoint, &spec, global)?,
        None => Inspection::of_tensors(&files, &checkpoint),
    };
    match args.json {
        true => print_json(&inspection)?,
        false => print(&inspection, global.verbose > 0),
    }
    match inspection.faults.is_empty() {
        true => Ok(()),
        false => Err(weights::failure(Faults { faults: inspection.faults })),
    }
}

fn is_document(place: &Path) -> bool {
    let name = place.to_string_lossy();
    place.is_file() && name.ends_with(".json") && !name.ends_with(".index.json")
}

/// The model of a folder that describes one; none for a lone file or a folder without one.
fn model(place: &Path) -> Result<Option<ModelSpec>, Failure> {
    let described = ["config.json", "model.toml"].iter().any(|name| place.join(name).exists());
    match place.is_dir() && described {
        true => input::model(&place.to_string_lossy()).map(|model| Some(model.spec)),
        false => Ok(None),
    }
}

fn mapped(
    args: &Inspect,
    files: &Files,
    checkpoint: &Checkpoint<'_>,
    spec: &ModelSpec,
    global: &Global,
) -> Result<Inspection, Failure> {
    let map = Map::new(spec, checkpoint).map_err(weights::failure)?;
    let values = if args.no_values { Values::Trust } else { Values::Check };
    let faults = input::pool(global)?.install(|| map.all_faults(values));
    Ok(Inspection::of_map(files, checkpoint, &spec.name, &map, faults))
}

fn print(inspection: &Inspection, every_layer: bool) {
    for file in &inspection.files {
        println!("{}: {}, {}, {} tensors", file.name, file.format, show::bytes(file.bytes), file.tensors);
    }
    if let Some(prefix) = &inspection.without_prefix {
        println!("the names lack the family's prefix `{prefix}`");
    }
    let rows = match every_layer {
        true => inspection.tensors.iter().map(|row| (row.clone(), 1)).collect(),
        false => inspection.folded(),
    };
    let rows = rows.iter().map(|(row, times)| cells(row, *times));
    println!("\n{}\n", show::table(&["tensor", "times", "type", "shape", "holds"], &[1], rows));
    let totals = &inspection.totals;
    println!("{} tensors, {}", totals.tensors, show::bytes(totals.tensor_bytes));
    if let Some(model) = &inspection.model {
        println!(
            "{model}: {} parameters in {}; {} passed over",
            show::count(totals.parameters),
            show::bytes(totals.parameter_bytes),
            show::bytes(totals.passed_over_bytes)
        );
    }
    if let Some(bytes) = totals.index_bytes.filter(|bytes| *bytes != totals.tensor_bytes) {
        println!("the index says {} instead", show::bytes(bytes));
    }
}

fn cells(row: &TensorRow, times: usize) -> Vec<String> {
    let shape: Vec<String> = row.shape.iter().map(u64::to_string).collect();
    let holds = match &row.fate {
        Some(FateRow::Parameter { holds }) => holds.iter().map(held).collect::<Vec<_>>().join("\n"),
        Some(FateRow::Duplicate { of }) => format!("repeats {of}"),
        Some(FateRow::Ignored { because }) => format!("ignored: a buffer ({because})"),
        Some(FateRow::Extra) => "no place in the model".into(),
        None => String::new(),
    };
    vec![row.name.clone(), times.to_string(), row.dtype.into(), format!("[{}]", shape.join(", ")), holds]
}

fn held(part: &Part) -> String {
    let rows = part.rows.as_ref().map_or(String::new(), |rows| format!(" = rows {rows}"));
    let turned = if part.transposed { ", turned" } else { "" };
    format!("{}{rows}{turned}", part.parameter)
}

/// A JSON document of ours: its schema and the size of its parts.
fn document(file: &Path, json: bool) -> Result<(), Failure> {
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", file.display()));
    let value: serde_json::Value = input::json(&input::read(file)?).map_err(refused)?;
    let object = value.as_object().ok_or_else(|| refused("expected an object".into()))?;
    let schema = object.get("schema").and_then(|schema| schema.as_str()).unwrap_or("no schema");
    let part = |(key, value): (&String, &serde_json::Value)| (key.clone(), size(value));
    let parts: Vec<(String, String)> =
        object.iter().filter(|(key, _)| !matches!(key.as_str(), "schema" | "version")).map(part).collect();
    if json {
        let parts: Vec<_> = parts.iter().map(|(key, is)| serde_json::json!({"key": key, "is": is})).collect();
        return print_json(&serde_json::json!({
            "schema": "lapidary/inspect", "version": 1, "document": schema, "parts": parts,
        }));
    }
    println!("{}: {schema}", file.display());
    println!("{}", show::table(&["key", "is"], &[], parts.into_iter().map(|(key, is)| vec![key, is])));
    Ok(())
}

fn size(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Array(items) => format!("{} items", items.len()),
        serde_json::Value::Object(rows) => format!("{} keys", rows.len()),
        other => other.to_string(),
    }
}
