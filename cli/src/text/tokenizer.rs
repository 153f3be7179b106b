//! A `tokenizer.json` that belongs to a model.

use crate::failure::{Exit, Failure};
use lapidary_models::ModelSpec;
use std::path::Path;
use tokenizers::Tokenizer;

/// Rows of the embedding that may be without a token: published models pad their tables to a multiple of the devices
/// they were trained on. GPT-NeoX-20B leaves 431 of 50,688 rows unused, DeepSeek-V2 2,398 of 102,400.
const UNUSED_ROWS: u64 = 256;
const UNUSED_SHARE: u64 = 32;

/// A tokenizer whose ids are those of a model.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    name: String,
}

impl TextTokenizer {
    /// Reads a tokenizer and holds its vocabulary against the model's.
    ///
    /// # Errors
    /// Exit 3 for a file that is no tokenizer, and for one that was made for another model.
    pub fn open(path: &Path, spec: &ModelSpec) -> Result<TextTokenizer, Failure> {
        let name = path.display().to_string();
        let text = crate::input::read(path)?;
        Self::parse(&text, &name, spec)
    }

    /// The same from a text and its display name.
    ///
    /// # Errors
    /// As [`TextTokenizer::open`].
    pub fn parse(text: &str, name: &str, spec: &ModelSpec) -> Result<TextTokenizer, Failure> {
        let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{name}: {what}"));
        let tokenizer = Tokenizer::from_bytes(text).map_err(|error| refused(error.to_string()))?;
        let found = TextTokenizer { tokenizer, name: name.into() };
        match found.mismatch(spec) {
            None => Ok(found),
            Some(why) => Err(refused(format!("is not the tokenizer of {}: {why}", spec.name))
                .help("give the model's own with --tokenizer FILE, or token ids with --tokens")),
        }
    }

    fn mismatch(&self, spec: &ModelSpec) -> Option<String> {
        let vocabulary = self.tokenizer.get_vocab(true);
        let ids = vocabulary.values().max().map_or(0, |id| u64::from(*id) + 1);
        if ids > spec.vocab {
            let text =
                vocabulary.iter().filter(|(_, id)| u64::from(**id) + 1 == ids).map(|(text, _)| text).min();
            let text = text.map_or("", String::as_str);
            return Some(format!("its token `{text}` has id {}, the model has {} ids", ids - 1, spec.vocab));
        }
        if spec.vocab - ids > UNUSED_ROWS.max(spec.vocab / UNUSED_SHARE) {
            return Some(format!("it has {ids} ids, the model {}", spec.vocab));
        }
        spec.tokens.extra.iter().find_map(|(name, id)| {
            let found = self.spelled(name)?;
            (u64::from(found) != *id).then(|| format!("its {name} has id {found}, the model's {id}"))
        })
    }

    /// The id of a special token by its plain name: spelled `<|name|>` or `<name>`.
    pub fn spelled(&self, name: &str) -> Option<u32> {
        let spellings = [format!("<|{name}|>"), format!("<{name}>")];
        spellings.iter().find_map(|spelling| self.tokenizer.token_to_id(spelling))
    }

    /// Ids of a text, with what the tokenizer puts around texts when `framed`.
    ///
    /// # Errors
    /// Exit 3 for a text that the tokenizer has no ids for.
    pub fn encode(&self, text: &str, framed: bool) -> Result<Vec<u32>, Failure> {
        let encoding = self.tokenizer.encode_fast(text, framed);
        let encoding =
            encoding.map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", self.name)))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens left out; ids without a token have no text.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }
}
