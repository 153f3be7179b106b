//! Writing an artifact whole or not at all: into a folder beside its place, then one rename.

use crate::failure::{Exit, Failure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of an artifact by relative path, in order.
#[derive(Clone, Debug, Default)]
pub struct Artifact {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Artifact {
    /// Adds a file.
    pub fn add(&mut self, path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), bytes.into());
    }

    /// Adds a document as indented JSON with a line end.
    ///
    /// # Errors
    /// When the document has no JSON form, which is an internal fault.
    pub fn add_json(&mut self, path: &str, document: &impl serde::Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(document)
            .map_err(|error| Failure::new(Exit::Internal, format!("{path}: {error}")))?;
        text.push('\n');
        self.add(path, text);
        Ok(())
    }

    /// Puts the folder in place of whatever artifact was there before.
    ///
    /// # Errors
    /// When the place cannot be written, or holds something that is not an artifact of ours.
    pub fn write(&self, place: &Path) -> Result<(), Failure> {
        let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", place.display()));
        if place.exists() && !replaceable(place) {
            return Err(refused("exists and is not an artifact".into()).help("choose another folder with -o"));
        }
        let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let staged = tempfile::Builder::new()
            .prefix(".lapidary-")
            .tempdir_in(parent)
            .map_err(|error| refused(format!("cannot write: {error}")))?;
        let whole = staged.path().join("whole");
        self.write_files(&whole).map_err(|error| refused(format!("cannot write: {error}")))?;
        if place.exists() {
            fs::rename(place, staged.path().join("before"))
                .map_err(|error| refused(format!("cannot replace: {error}")))?;
        }
        fs::rename(&whole, place).map_err(|error| refused(format!("cannot write: {error}")))
    }

    /// Adds the files to a folder that may hold others.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_into(&self, place: &Path) -> Result<(), Failure> {
        self.write_files(place).map_err(|error| {
            Failure::new(Exit::InvalidInput, format!("{}: cannot write: {error}", place.display()))
        })
    }

    fn write_files(&self, root: &Path) -> std::io::Result<()> {
        fs::create_dir_all(root)?;
        for (path, bytes) in &self.files {
            let path = root.join(path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(path, bytes)?;
        }
        Ok(())
    }
}

/// An empty folder or an artifact written earlier.
fn replaceable(place: &Path) -> bool {
    let empty = || fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none());
    place.is_dir() && (place.join("report.json").is_file() || empty())
}
