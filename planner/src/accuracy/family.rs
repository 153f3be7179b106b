//! What a table does not print of a model, by its name: `planner/families.toml`.

use serde::Deserialize;
use std::sync::OnceLock;

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Rotation of queries and keys.
    Rope,
    /// A slope over the scores.
    Alibi,
    /// A learned table.
    Learned,
}

/// Models of one make.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Words of a name or framework that tell it.
    pub words: Vec<String>,
    /// A number of token ids that tells it.
    #[serde(default)]
    pub vocab: Option<u64>,
    /// How positions enter, where that is not a learned table.
    #[serde(default)]
    pub position: Option<Positions>,
    /// Whether attention and MLP read the same value.
    #[serde(default)]
    pub parallel: bool,
    /// Where that stands.
    pub source: String,
}

#[derive(Deserialize)]
struct File {
    family: Vec<Family>,
}

const TEXT: &str = include_str!("../../families.toml");

/// What all families together say of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// How positions enter, where a family says.
    pub position: Option<Positions>,
    /// Whether attention and MLP read the same value.
    pub parallel: bool,
}

/// The traits of a model whose name and framework are `name`, in small letters.
pub fn traits(name: &str, vocab: u64) -> Traits {
    static FAMILIES: OnceLock<Vec<Family>> = OnceLock::new();
    let all = FAMILIES.get_or_init(|| toml::from_str::<File>(TEXT).map_or(Vec::new(), |file| file.family));
    let told = |family: &&Family| {
        family.words.iter().any(|word| name.contains(word.as_str())) || family.vocab == Some(vocab)
    };
    all.iter().filter(told).fold(Traits::default(), |found, family| Traits {
        position: found.position.or(family.position),
        parallel: found.parallel || family.parallel,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_read_and_has_a_source() {
        let file: File = toml::from_str(TEXT).unwrap();
        assert!(file.family.iter().all(|family| !family.source.is_empty() && !family.words.is_empty()));
        assert_eq!(traits("pythia-70m", 50304).position, Some(Positions::Rope));
        assert_eq!(traits("13b", 250880).position, Some(Positions::Alibi));
        assert_eq!(traits("gpt-3 175b", 50304), Traits::default());
        assert!(traits("175b with parallel block", 64000).parallel);
    }
}
