//! Columns that a table's own figures rule out, and how they are read instead: data, with evidence.

use super::row::Row;
use serde::Deserialize;

/// One erratum.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Erratum {
    /// Group of the rows.
    pub group: String,
    /// Their column.
    pub column: String,
    /// What is printed there.
    pub printed: String,
    /// How it is read.
    pub read_as: String,
    /// Why.
    pub evidence: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    erratum: Vec<Erratum>,
}

/// The errata that come with the program.
pub const TEXT: &str = include_str!("../../errata.toml");

/// Every erratum.
pub fn errata() -> Vec<Erratum> {
    toml::from_str::<File>(TEXT).map(|file| file.erratum).unwrap_or_default()
}

/// The row as it is read, and what was read differently.
pub fn corrected(row: &Row, errata: &[Erratum]) -> (Row, Vec<String>) {
    let (mut row, mut changes) = (row.clone(), Vec::new());
    for erratum in errata {
        if row.word("group") == erratum.group && row.word(&erratum.column) == erratum.printed {
            row.reword(&erratum.column, &erratum.read_as);
            changes.push(format!("{} read as `{}` (erratum)", erratum.column, erratum.read_as));
        }
    }
    (row, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_erratum_is_read_and_has_evidence() {
        let found: File = toml::from_str(TEXT).unwrap();
        assert!(found.erratum.iter().all(|erratum| erratum.evidence.len() > 40));
        assert_eq!(errata().len(), found.erratum.len());
    }
}
