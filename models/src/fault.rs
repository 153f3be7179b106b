//! What is wrong with a file: every fault, each with its place and a hint.

use serde::Serialize;
use std::fmt;
use std::ops::Range;
use thiserror::Error;

/// Which rule a fault breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The text is not TOML or JSON.
    Syntax,
    /// A key that means nothing here.
    UnknownKey,
    /// A key that has to be there.
    MissingKey,
    /// A value of another type.
    WrongType,
    /// A value that no model has.
    OutOfRange,
    /// Values that contradict each other.
    Rule,
    /// A published model that cannot be expressed.
    Unsupported,
}

/// One fault at one place of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Path of the key, such as `attn.window`; empty for the text as a whole.
    pub key: String,
    /// Bytes of the text that it is about.
    pub span: Range<usize>,
    /// Line of the span's start, from 1.
    pub line: usize,
    /// Column of the span's start in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
    /// Which rule it breaks.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault at a span of `text`.
    pub fn at(text: &str, span: Range<usize>, kind: FaultKind, key: &str, message: String) -> Self {
        let (line, column) = place(text, span.start);
        Fault { key: key.to_string(), span, line, column, message, hint: None, kind }
    }

    /// The same fault with a hint.
    pub fn with_hint(self, hint: Option<String>) -> Self {
        Fault { hint, ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Every fault of a file, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Faults {
    /// Name of the file as the user knows it.
    pub source_name: String,
    /// At least one fault.
    pub faults: Vec<Fault>,
}

impl Faults {
    /// The faults of a file, sorted by place.
    pub fn new(source_name: &str, mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| (a.span.start, &a.key).cmp(&(b.span.start, &b.key)));
        Faults { source_name: source_name.to_string(), faults }
    }

    /// Whether the file is valid but asks for something that cannot be expressed.
    pub fn only_unsupported(&self) -> bool {
        self.faults.iter().all(|fault| fault.kind == FaultKind::Unsupported)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            write!(f, "{newline}{}:{fault}", self.source_name)?;
        }
        Ok(())
    }
}

/// Line and column, both from 1, of a byte offset; the column counts characters.
pub fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// The candidate that a misspelt word probably means.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |candidate: &str| strsim::jaro_winkler(&word.to_lowercase(), candidate);
    let best = candidates.into_iter().map(|c| (similarity(c), c)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.8).then_some(best.1)
}

/// `did you mean "x"?`, where something is near, else the list of what is known.
pub fn suggestion(word: &str, candidates: &[&str]) -> Option<String> {
    match nearest(word, candidates.iter().copied()) {
        Some(near) => Some(format!("did you mean \"{near}\"?")),
        None if candidates.is_empty() => None,
        None => Some(format!("known here: {}", candidates.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "a = 1\nβé = 2\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, text.find('=').unwrap()), (1, 3));
        assert_eq!(place(text, text.rfind('=').unwrap()), (2, 4));
        assert_eq!(place(text, 10_000), (3, 1));
    }

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        assert_eq!(nearest("n_head", ["n_heads", "d_model"]), Some("n_heads"));
        assert_eq!(nearest("zzz", ["n_heads", "d_model"]), None);
    }
}
