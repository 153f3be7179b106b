//! Small tokenizers for tests, and models that they belong to.

use super::TextTokenizer;
use lapidary_models::ModelSpec;
pub use lapidary_tests::tokenizers::{byte_fallback_json, byte_level_json};

/// A specification with this many ids.
pub fn spec(vocab: u64) -> ModelSpec {
    let mut spec = lapidary_models::builtin("crystalcoder").expect("a built-in model");
    spec.vocab = vocab;
    spec.tokens.extra.clear();
    spec
}

/// [`byte_fallback_json`] without special tokens, read.
pub fn byte_fallback() -> TextTokenizer {
    TextTokenizer::parse(&byte_fallback_json(&[]), "tokenizer.json", &spec(288)).expect("a tokenizer")
}

/// [`byte_level_json`], read.
pub fn byte_level() -> TextTokenizer {
    TextTokenizer::parse(&byte_level_json(), "tokenizer.json", &spec(256)).expect("a tokenizer")
}
