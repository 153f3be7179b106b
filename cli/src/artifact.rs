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
        let staged = Staged::new(place)?;
        self.write_files(staged.path()).map_err(|error| refused(place, &format!("cannot write: {error}")))?;
        staged.put_in_place()
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

/// A folder being written beside its place. What is not put in place is removed.
pub struct Staged {
    place: PathBuf,
    beside: tempfile::TempDir,
    whole: PathBuf,
}

impl Staged {
    /// An empty folder for `place`.
    ///
    /// # Errors
    /// When the place cannot be written, or holds something that is not ours to replace.
    pub fn new(place: &Path) -> Result<Staged, Failure> {
        if place.exists() && !replaceable(place) {
            return Err(refused(place, "exists and is not an artifact").help("choose another folder with -o"));
        }
        let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let staged = tempfile::Builder::new().prefix(".lapidary-").tempdir_in(parent).and_then(|beside| {
            let whole = beside.path().join("whole");
            fs::create_dir(&whole)?;
            Ok(Staged { place: place.to_path_buf(), beside, whole })
        });
        staged.map_err(|error| refused(place, &format!("cannot write: {error}")))
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.whole
    }

    /// Puts the folder in place of what was there before.
    ///
    /// # Errors
    /// When the place cannot be written.
    pub fn put_in_place(self) -> Result<(), Failure> {
        if self.place.exists() {
            fs::rename(&self.place, self.beside.path().join("before"))
                .map_err(|error| refused(&self.place, &format!("cannot replace: {error}")))?;
        }
        fs::rename(&self.whole, &self.place)
            .map_err(|error| refused(&self.place, &format!("cannot write: {error}")))
    }
}

fn refused(place: &Path, what: &str) -> Failure {
    Failure::new(Exit::InvalidInput, format!("{}: {what}", place.display()))
}

/// An empty folder or an artifact written earlier.
fn replaceable(place: &Path) -> bool {
    let empty = || fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none());
    place.is_dir() && (place.join("report.json").is_file() || empty())
}
