//! Weights as the user names them: a folder with a checkpoint, or one file of it.
//!
//! ```text
//! let files = weights::Files::open(path)?;            // maps them
//! let checkpoint = files.checkpoint()?;               // every fault of form: exit 3
//! let binding = weights::bind(&spec, &checkpoint)?;   // every fault of names, shapes, types, values: exit 3
//! Model::load(program, &weights::Loaded(&binding), ..)
//! ```

use crate::failure::{Exit, Failure, Fault};
use crate::input;
use crate::map::Mapped;
use lapidary_checkpoint::folder::{self, Choice};
use lapidary_checkpoint::{Binding, Checkpoint, Faults, File, Index, Map, Values};
use lapidary_models::ModelSpec;
use lapidary_runtime_cpu::{TensorView, WeightError, Weights};
use std::path::Path;

/// The mapped files of a checkpoint.
pub struct Files {
    files: Vec<Mapped>,
    index: Option<Index>,
}

impl Files {
    /// Maps the checkpoint of a folder, with all its shards; the shards of an index; or one file.
    ///
    /// # Errors
    /// Exit 3 when there is none, an index points elsewhere, or a file cannot be read.
    pub fn open(path: &Path) -> Result<Files, Failure> {
        if path.is_dir() {
            return match folder::choose(names(path)?.iter().map(String::as_str)) {
                Some(Choice::Single(file)) => Files::single(&path.join(file)),
                Some(Choice::Sharded(file)) => Files::sharded(&path.join(file)),
                None => Err(no_checkpoint(path)),
            };
        }
        match path.to_string_lossy().ends_with(".index.json") {
            true => Files::sharded(path),
            false => Files::single(path),
        }
    }

    fn single(path: &Path) -> Result<Files, Failure> {
        Ok(Files { files: vec![Mapped::open(path)?], index: None })
    }

    fn sharded(path: &Path) -> Result<Files, Failure> {
        let index = Index::parse(&input::read(path)?, &path.display().to_string()).map_err(failure)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        // A plain name cannot leave the folder; a link inside it may, as the caches of hubs have them.
        let files = index.shards().into_iter().map(|shard| Mapped::open(&folder.join(shard)));
        let files = together(files)?;
        Ok(Files { files, index: Some(index) })
    }

    /// Reads what the files hold.
    ///
    /// # Errors
    /// Exit 3 with every fault of every file.
    pub fn checkpoint(&self) -> Result<Checkpoint<'_>, Failure> {
        let file = |mapped: &'_ Mapped| mapped.name.clone();
        let files: Vec<File<'_>> =
            self.files.iter().map(|mapped| File { name: file(mapped), bytes: mapped.bytes() }).collect();
        Checkpoint::open(&files, self.index.as_ref()).map_err(failure)
    }

    /// The index, where the checkpoint has one.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }
}

/// All results, or all faults.
fn together<T>(results: impl Iterator<Item = Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(failure) => faults.extend(failure.faults),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(Failure { exit: Exit::InvalidInput, faults }) }
}

fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let refused = |error: std::io::Error| {
        Failure::new(Exit::InvalidInput, format!("{}: cannot read: {error}", folder.display()))
    };
    let entries = std::fs::read_dir(folder).map_err(refused)?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect::<Result<_, _>>().map_err(refused)
}

fn no_checkpoint(folder: &Path) -> Failure {
    let names: Vec<&str> = folder::names().collect();
    Failure::new(Exit::InvalidInput, format!("{}: no checkpoint in this folder", folder.display()))
        .help(format!("expected one of {}", names.join(", ")))
}

/// Finds every parameter of a model and checks the values, on all threads of the current pool.
///
/// # Errors
/// Exit 3 with everything that is missing, extra, mis-shaped, of another type, not finite or repeated wrongly.
#[allow(dead_code)] // `run` and `verify` load through it
pub fn bind<'c, 'a>(spec: &ModelSpec, checkpoint: &'c Checkpoint<'a>) -> Result<Binding<'c, 'a>, Failure> {
    Map::new(spec, checkpoint).and_then(|map| map.bind(Values::Check)).map_err(failure)
}

/// The faults of a checkpoint as a failure with exit code 3.
pub fn failure(found: Faults) -> Failure {
    let fault =
        |fault: lapidary_checkpoint::Fault| Fault { help: fault.hint.clone(), ..Fault::new(fault.line()) };
    Failure { exit: Exit::InvalidInput, faults: found.faults.into_iter().map(fault).collect() }
}

/// A bound checkpoint as the host's runtime asks for weights.
#[allow(dead_code)] // `run` and `verify` load through it
pub struct Loaded<'b, 'c, 'a>(pub &'b Binding<'c, 'a>);

impl Weights for Loaded<'_, '_, '_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let missing = || WeightError::Missing { name: name.into() };
        let tensor = self.0.tensor(name).ok_or_else(missing)?;
        Ok(TensorView { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes })
    }
}
