//! Which files of a folder are the checkpoint.

/// What a folder offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One file with all tensors.
    Single(&'static str),
    /// An index that names the shards.
    Sharded(&'static str),
}

/// The published names, best first: the order in which published programs look.
const NAMES: &[Choice] = &[
    Choice::Single("model.safetensors"),
    Choice::Sharded("model.safetensors.index.json"),
    Choice::Single("pytorch_model.bin"),
    Choice::Sharded("pytorch_model.bin.index.json"),
];

/// The checkpoint among the names in a folder; none where there is none.
pub fn choose<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<Choice> {
    let names: Vec<&str> = names.into_iter().collect();
    NAMES.iter().find(|choice| names.contains(&choice.file())).cloned()
}

/// The names that [`choose`] looks for, best first.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(Choice::file)
}

impl Choice {
    /// The file to open first.
    pub fn file(&self) -> &'static str {
        match self {
            Choice::Single(file) | Choice::Sharded(file) => file,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_come_before_pickles_and_whole_files_before_shards() {
        let both = ["pytorch_model.bin", "model.safetensors.index.json", "config.json"];
        assert_eq!(choose(both), Some(Choice::Sharded("model.safetensors.index.json")));
        assert_eq!(choose(["config.json", "pytorch_model.bin"]), Some(Choice::Single("pytorch_model.bin")));
        assert_eq!(choose(["config.json"]), None);
    }
}
