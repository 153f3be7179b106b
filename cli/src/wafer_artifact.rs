//! What `compile --target cg1-sim` writes and `simulate` reads back: program.json names the stages, each of which
//! is a .wafer text beside it.

use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::training_step::TrainingStep;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{FabricSpec, text};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Schema name of program.json.
const SCHEMA: &str = "lapidary/wafer-program";

/// The programs of a model with the wafer they were made for.
#[derive(Debug)]
pub struct WaferArtifact {
    /// Name of the model; the file's name for a text written by hand.
    pub model: String,
    /// Tokens on the wafer at once; absent for a text written by hand.
    pub tokens: Option<u64>,
    /// How the programs make a training step; absent where nothing is trained.
    pub step: Option<TrainingStep>,
    /// The wafer.
    pub fabric: FabricSpec,
    /// The programs in the order of execution.
    pub stages: Vec<Stage>,
}

/// One program of an artifact.
#[derive(Debug)]
pub struct Stage {
    /// What it computes: `before`, `layer`, `after`, or `program` for a text written by hand.
    pub name: String,
    /// How often it runs in one pass over the model.
    pub times: u64,
    /// The program.
    pub program: Arc<WaferProgram>,
}

/// program.json.
#[derive(Serialize, Deserialize)]
struct Manifest {
    schema: String,
    version: u32,
    model: String,
    tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<TrainingStep>,
    fabric: FabricSpec,
    stages: Vec<StageFile>,
}

/// A stage in program.json.
#[derive(Serialize, Deserialize)]
struct StageFile {
    name: String,
    times: u64,
    file: String,
}

impl WaferArtifact {
    /// Puts program.json and the text of every stage into an artifact.
    ///
    /// # Errors
    /// When the manifest has no JSON form, which is an internal fault.
    pub fn add_to(&self, artifact: &mut Artifact) -> Result<(), Failure> {
        let mut stages = Vec::new();
        for stage in &self.stages {
            let file = format!("{}.wafer", stage.name);
            artifact.add(&file, text::print(&stage.program));
            stages.push(StageFile { name: stage.name.clone(), times: stage.times, file });
        }
        let manifest = Manifest {
            schema: SCHEMA.into(),
            version: 1,
            model: self.model.clone(),
            tokens: self.tokens,
            step: self.step,
            fabric: self.fabric.clone(),
            stages,
        };
        artifact.add_json("program.json", &manifest)
    }

    /// Reads an artifact's folder, its program.json, or a .wafer text, which is taken to be for a WSE-2.
    ///
    /// # Errors
    /// Exit 3 when it cannot be read or is something else.
    pub fn read(place: &Path) -> Result<WaferArtifact, Failure> {
        let file = if place.is_dir() { place.join("program.json") } else { place.to_path_buf() };
        if file.extension().is_some_and(|extension| extension == "json") {
            return saved(&file);
        }
        let stages = vec![Stage { name: "program".into(), times: 1, program: program(&file)?.into() }];
        let model = file.display().to_string();
        Ok(WaferArtifact { model, tokens: None, step: None, fabric: FabricSpec::wse2(), stages })
    }
}

fn saved(file: &Path) -> Result<WaferArtifact, Failure> {
    let refused = |what: String| {
        Failure::new(Exit::InvalidInput, format!("{}: {what}", file.display()))
            .help("name a folder written by `lapidary compile --target cg1-sim`, or a .wafer file")
    };
    let text = input::text(file)?;
    let value: serde_json::Value = input::json(&text).map_err(refused)?;
    let schema = value["schema"].as_str().unwrap_or("no schema").to_string();
    if schema != SCHEMA {
        return Err(refused(format!("expected {SCHEMA}, found {schema}")));
    }
    let mut manifest: Manifest = input::json(&text).map_err(refused)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let stage = |stage: &StageFile| -> Result<Stage, Failure> {
        // Only a plain name is followed, so that a manifest cannot point outside its folder.
        match Path::new(&stage.file).file_name() == Some(stage.file.as_ref()) {
            true => Ok(Stage {
                name: stage.name.clone(),
                times: stage.times,
                program: program(&folder.join(&stage.file))?.into(),
            }),
            false => Err(refused(format!("stage {}: `{}` is not a file name", stage.name, stage.file))),
        }
    };
    let stages = side_by_side(&std::mem::take(&mut manifest.stages), stage)?;
    let Manifest { model, tokens, step, fabric, .. } = manifest;
    Ok(WaferArtifact { model, tokens, step, fabric, stages })
}

/// Reads all stages at once, each on a thread of its own; the first fault in their order is the one that is told.
fn side_by_side(
    files: &[StageFile],
    read: impl Fn(&StageFile) -> Result<Stage, Failure> + Sync,
) -> Result<Vec<Stage>, Failure> {
    let read = &read;
    std::thread::scope(|scope| {
        let readers: Vec<_> = files.iter().map(|file| scope.spawn(move || read(file))).collect();
        let stage = |reader: std::thread::ScopedJoinHandle<Result<Stage, Failure>>| match reader.join() {
            Ok(stage) => stage,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        readers.into_iter().map(stage).collect()
    })
}

fn program(file: &Path) -> Result<WaferProgram, Failure> {
    text::parse(&input::text(file)?, &file.display().to_string())
        .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))
}
