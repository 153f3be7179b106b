//! `lapidary check`: every fault of a model file at once, and what became of each key of a foreign one.

use super::print_json;
use crate::failure::{Exit, Failure};
use crate::{input, show};
use lapidary_models::{Dims, Graph, Mode};

/// Runs the verb.
pub fn run(name: &str, json: bool) -> Result<(), Failure> {
    let model = input::model(name)?;
    let spec = &model.spec;
    let dims = Dims { batch: 1, seq: spec.max_seq, cached: 0 };
    Graph::build(&spec.dense(), Mode::Forward, dims)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("{name}: {error}")))?;
    if json {
        return print_json(&serde_json::json!({
            "schema": "lapidary/check", "version": 1, "model": spec.name, "ok": true,
            "parameters": spec.parameters(), "import": model.import,
        }));
    }
    if let Some(report) = &model.import {
        println!("{report}");
    }
    println!("{}: ok, {} parameters", spec.name, show::count(spec.parameters()));
    Ok(())
}
