//! What became of every key of a `config.json`.

use serde::Serialize;
use std::fmt;

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ImportStatus {
    /// It set a key of the specification.
    Mapped {
        /// That key.
        to: String,
    },
    /// It changes nothing that this crate computes.
    Ignored {
        /// Why.
        why: String,
    },
    /// No reader asked for it.
    Unknown,
}

/// One key of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportEntry {
    /// Path of the key, such as `rope_scaling.factor`.
    pub key: String,
    /// Its line, from 1.
    pub line: usize,
    /// What became of it.
    #[serde(flatten)]
    pub status: ImportStatus,
}

/// What became of every key, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// The model type that was read.
    pub family: String,
    /// Key by key.
    pub entries: Vec<ImportEntry>,
}

impl ImportReport {
    /// The keys that no reader asked for.
    pub fn unknown(&self) -> impl Iterator<Item = &ImportEntry> {
        self.entries.iter().filter(|entry| entry.status == ImportStatus::Unknown)
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "config.json of the {} family", self.family)?;
        for entry in &self.entries {
            match &entry.status {
                ImportStatus::Mapped { to } => writeln!(f, "  {:<32} -> {to}", entry.key)?,
                ImportStatus::Ignored { why } => writeln!(f, "  {:<32} ignored: {why}", entry.key)?,
                ImportStatus::Unknown => writeln!(f, "  {:<32} unknown", entry.key)?,
            }
        }
        Ok(())
    }
}
