//! What a table does not print of a publication's runs, by its source: `planner/sources.toml`.

use super::family::Positions;
use serde::Deserialize;
use std::sync::OnceLock;

/// Runs of one publication.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Words of the column `source` that tell it, all of them, in small letters.
    pub words: Vec<String>,
    /// Adapters of the nodes that the runs were made on, as publications write them.
    #[serde(default)]
    pub network: Option<String>,
    /// How positions entered, where that is not what the make of the models says.
    #[serde(default)]
    pub position: Option<Positions>,
    /// Where that stands.
    pub basis: String,
}

#[derive(Deserialize)]
struct File {
    source: Vec<Source>,
}

const TEXT: &str = include_str!("../../sources.toml");

/// What is known of the runs of a publication by its column `source`.
pub fn known(printed: &str) -> Option<&'static Source> {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    let all = SOURCES.get_or_init(|| toml::from_str::<File>(TEXT).map_or(Vec::new(), |file| file.source));
    let printed = printed.to_lowercase();
    all.iter().find(|source| source.words.iter().all(|word| printed.contains(word.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_read_and_says_where_it_stands() {
        let file: File = toml::from_str(TEXT).unwrap();
        for source in &file.source {
            assert!(!source.words.is_empty() && !source.basis.is_empty(), "{source:?}");
            assert!(source.words.iter().all(|word| *word == word.to_lowercase()), "{source:?}");
        }
        let network = |printed| known(printed).and_then(|source| source.network.as_deref());
        assert_eq!(network("Pythia arXiv:2304.01373 Table 5 + EleutherAI/pythia yml"), Some("4x100Gb/s"));
        assert_eq!(network("a blog about Pythia-70M"), None);
        let position = |printed| known(printed).and_then(|source| source.position);
        let table = "mosaicml/llm-foundry@HEAD scripts/train/benchmarking/README.md";
        assert_eq!(position(table), Some(Positions::Learned));
        assert_eq!(position("MosaicML MPT-7B blog"), None);
    }
}
