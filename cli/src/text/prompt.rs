//! Prompts as models were trained on them: plain text, fill-in-the-middle, and chat.
//!
//! ```text
//! text    what the tokenizer makes of it, begun with bos where the model's tokenizer does so
//! fill    fim_prefix PREFIX fim_suffix SUFFIX fim_middle                      the middle follows
//! chat    bos sys_start SYSTEM sys_end im_start USER im_end                   the answer follows, up to im_start or eos
//! ```
//! The forms are those of CrystalCoder's and CrystalChat's published data preparation; other models that have tokens of
//! these names can be prompted in the same way.

use super::TextTokenizer;
use crate::failure::{Exit, Failure};
use lapidary_models::ModelSpec;

/// Makes prompts for one model.
pub struct Prompter<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
}

impl Prompter<'_> {
    /// A text to go on with.
    ///
    /// # Errors
    /// Exit 3 when there is nothing to begin with.
    pub fn text(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let mut ids = self.tokenizer.encode(text, true)?;
        let bos = id(self.spec.tokens.bos);
        if let Some(bos) = bos.filter(|bos| self.spec.tokens.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.is_empty() {
            ids.extend(bos);
        }
        Ok(ids)
    }

    /// A gap between two texts.
    ///
    /// # Errors
    /// Exit 3 when the model has no tokens for it.
    pub fn fill(&self, prefix: &str, suffix: &str) -> Result<Vec<u32>, Failure> {
        let mut ids = vec![self.special("fim_prefix")?];
        ids.extend(self.tokenizer.encode(prefix, false)?);
        ids.push(self.special("fim_suffix")?);
        ids.extend(self.tokenizer.encode(suffix, false)?);
        ids.push(self.special("fim_middle")?);
        Ok(ids)
    }

    /// One turn of a conversation, behind what the system says first, if anything.
    ///
    /// # Errors
    /// Exit 3 when the model has no tokens for it.
    pub fn chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>, Failure> {
        let mut ids: Vec<u32> = id(self.spec.tokens.bos).into_iter().collect();
        if let Some(system) = system {
            ids.push(self.special("sys_start")?);
            ids.extend(self.tokenizer.encode(system, false)?);
            ids.push(self.special("sys_end")?);
        }
        ids.push(self.special("im_start")?);
        ids.extend(self.tokenizer.encode(user, false)?);
        ids.push(self.special("im_end")?);
        Ok(ids)
    }

    /// What ends an answer, beside the end of the text: the next turn.
    ///
    /// # Errors
    /// Exit 3 when the model has no tokens for it.
    pub fn next_turn(&self) -> Result<u32, Failure> {
        self.special("im_start")
    }

    fn special(&self, name: &str) -> Result<u32, Failure> {
        let own = id(self.spec.tokens.extra.get(name).copied());
        own.or_else(|| self.tokenizer.spelled(name)).ok_or_else(|| {
            Failure::new(
                Exit::InvalidInput,
                format!(
                    "{} has no token {name}: neither the model names it nor its tokenizer",
                    self.spec.name
                ),
            )
        })
    }
}

/// The id of a token that the specification names.
pub fn id(token: Option<u64>) -> Option<u32> {
    token.and_then(|token| u32::try_from(token).ok())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{byte_fallback_json, byte_level_json, spec};
    use super::*;

    const SPECIAL: [&str; 7] = [
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|sys_start|>",
        "<|sys_end|>",
    ];

    fn crystal() -> (ModelSpec, TextTokenizer) {
        let spec = spec(288);
        let tokenizer = TextTokenizer::parse(&byte_fallback_json(&SPECIAL), "t.json", &spec);
        (spec, tokenizer.expect("a tokenizer"))
    }

    #[test]
    fn prompts_take_the_published_forms() {
        let (spec, tokenizer) = crystal();
        let prompter = Prompter { spec: &spec, tokenizer: &tokenizer };
        let hello = tokenizer.encode("hello", false).expect("ids");
        let [prefix, middle, suffix, im_start, im_end, sys_start, sys_end] =
            SPECIAL.map(|token| tokenizer.encode(token, false).expect("ids")[0]);
        let around = |before: &[u32], after: &[u32]| [before, &hello, after].concat();
        assert_eq!(
            prompter.fill("hello", "hello").expect("ids"),
            [around(&[prefix], &[suffix]), around(&[], &[middle])].concat()
        );
        assert_eq!(
            prompter.chat(Some("hello"), "hello").expect("ids"),
            [around(&[1, sys_start], &[sys_end]), around(&[im_start], &[im_end])].concat()
        );
        assert_eq!(prompter.chat(None, "hello").expect("ids"), around(&[1, im_start], &[im_end]));
        assert_eq!(prompter.text("hello").expect("ids"), hello, "CrystalCoder's tokenizer adds no bos");
    }

    #[test]
    fn bos_begins_a_text_where_the_model_says_so() {
        let (mut spec, tokenizer) = crystal();
        spec.tokens.add_bos = true;
        let prompter = Prompter { spec: &spec, tokenizer: &tokenizer };
        let hello = tokenizer.encode("hello", false).expect("ids");
        assert_eq!(prompter.text("hello").expect("ids"), [&[1], hello.as_slice()].concat());
        assert_eq!(prompter.text("").expect("ids"), [1]);
    }

    #[test]
    fn a_model_without_such_tokens_says_so() {
        let spec = spec(256);
        let tokenizer = TextTokenizer::parse(&byte_level_json(), "t.json", &spec).expect("a tokenizer");
        let failure =
            Prompter { spec: &spec, tokenizer: &tokenizer }.fill("a", "b").expect_err("no such token");
        assert!(failure.faults[0].message.contains("fim_prefix"), "{failure:?}");
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let refused = |vocab: u64, extra: Option<(&str, u64)>| {
            let mut spec = spec(vocab);
            spec.tokens.extra.extend(extra.map(|(name, id)| (name.to_string(), id)));
            let failure = TextTokenizer::parse(&byte_fallback_json(&SPECIAL), "t.json", &spec).err();
            failure.map_or_else(String::new, |failure| failure.faults[0].message.clone())
        };
        assert!(refused(200, None).contains("the model has 200 ids"), "{}", refused(200, None));
        assert!(refused(32000, None).contains("the model 32000"), "{}", refused(32000, None));
        assert!(
            refused(288, Some(("im_end", 5))).contains("im_end"),
            "{}",
            refused(288, Some(("im_end", 5)))
        );
        assert_eq!(refused(288, None), "", "a few unused rows are usual");
    }
}
