//! What `--emit` asks for: which files of an artifact are written.

use crate::args::Target;
use crate::failure::{Exit, Failure};

/// Every word of `--emit`, and the target it belongs to.
const WORDS: [(&str, Option<Target>); 6] = [
    ("ir", None),
    ("program", None),
    ("report", None),
    ("cuda", Some(Target::A100)),
    ("ptx", Some(Target::A100)),
    ("cubin", Some(Target::A100)),
];

/// The words that were asked for; none means everything that can be made.
#[derive(Clone, Debug)]
pub struct Emit {
    words: Vec<&'static str>,
}

impl Emit {
    /// Reads the list.
    ///
    /// # Errors
    /// A usage error for a word that does not exist or belongs to another target.
    pub fn parse(list: &[String], target: Target) -> Result<Emit, Failure> {
        let words = list.iter().map(|word| known(word, target)).collect::<Result<Vec<_>, _>>()?;
        Ok(Emit { words })
    }

    /// Whether a kind of file is written. The report and the program always are.
    pub fn wants(&self, word: &str) -> bool {
        self.words.is_empty() || matches!(word, "report" | "program") || self.words.contains(&word)
    }

    /// Whether a kind of file was asked for by name, so that its absence is a failure.
    pub fn insists(&self, word: &str) -> bool {
        self.words.contains(&word)
    }
}

fn known(word: &str, target: Target) -> Result<&'static str, Failure> {
    let fits = |owner: &Option<Target>| owner.is_none_or(|owner| owner == target);
    let found = WORDS.iter().find(|(name, owner)| *name == word && fits(owner)).map(|(name, _)| *name);
    found.ok_or_else(|| {
        let names: Vec<&str> = WORDS.iter().filter(|(_, owner)| fits(owner)).map(|(name, _)| *name).collect();
        Failure::new(Exit::Usage, format!("--emit {word}: this target emits no `{word}`"))
            .help(format!("there are {}", names.join(", ")))
    })
}
