//! What `compile --target cg1-sim` writes as program.json and `simulate` reads back.

use crate::failure::{Exit, Failure};
use crate::input;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{FabricSpec, text};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Schema name of the document.
pub const SCHEMA: &str = "lapidary/wafer-program";

/// A program with the wafer it was made for.
#[derive(Debug, Serialize, Deserialize)]
pub struct WaferArtifact {
    /// [`SCHEMA`].
    pub schema: String,
    /// 1.
    pub version: u32,
    /// Name of the model; the file's name for a text written by hand.
    pub model: String,
    /// How often the program runs in one pass over the model: it holds one of these layers.
    pub layers: u64,
    /// Tokens on the wafer at once; absent for a text written by hand.
    pub tokens: Option<u64>,
    /// The wafer.
    pub fabric: FabricSpec,
    /// The program.
    pub program: WaferProgram,
}

impl WaferArtifact {
    /// Reads an artifact's folder, its program.json, or a .wafer text, which is taken to be for a WSE-2.
    ///
    /// # Errors
    /// Exit 3 when it cannot be read or is something else.
    pub fn read(place: &Path) -> Result<WaferArtifact, Failure> {
        let file = if place.is_dir() { place.join("program.json") } else { place.to_path_buf() };
        let source = input::text(&file)?;
        let name = file.display().to_string();
        match file.extension().is_some_and(|extension| extension == "json") {
            true => saved(&source, &name),
            false => by_hand(&source, &name),
        }
    }
}

fn saved(source: &str, name: &str) -> Result<WaferArtifact, Failure> {
    let refused = |what: String| {
        Failure::new(Exit::InvalidInput, format!("{name}: {what}"))
            .help("name a folder written by `lapidary compile --target cg1-sim`, or a .wafer file")
    };
    let value: serde_json::Value =
        serde_json::from_str(source).map_err(|error| refused(error.to_string()))?;
    match value["schema"].as_str() {
        Some(SCHEMA) => serde_json::from_value(value).map_err(|error| refused(error.to_string())),
        found => Err(refused(format!("expected {SCHEMA}, found {}", found.unwrap_or("no schema")))),
    }
}

fn by_hand(source: &str, name: &str) -> Result<WaferArtifact, Failure> {
    let program =
        text::parse(source, name).map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?;
    Ok(WaferArtifact {
        schema: SCHEMA.into(),
        version: 1,
        model: name.into(),
        layers: 1,
        tokens: None,
        fabric: FabricSpec::wse2(),
        program,
    })
}
