//! Text of ids that come one by one: only whole characters leave, and all of them in the end.
//!
//! A token may hold part of a character (bytes of UTF-8), and decoders look at neighbours (a leading space is dropped at
//! the start of a text), so each new id is decoded behind the ids of the last text that was shown, and what is new of
//! the result is shown unless it ends in the middle of a character.

use super::TextTokenizer;

/// Most tokens that one character can be spread over.
const LONGEST: usize = 4;

/// What was shown of a sequence so far.
pub struct TextStream<'t> {
    tokenizer: &'t TextTokenizer,
    ids: Vec<u32>,
    /// Ids from here on are decoded again, for their neighbours' sake.
    context: usize,
    /// Ids before this are shown.
    shown: usize,
}

impl<'t> TextStream<'t> {
    /// The start of a text that follows a prompt.
    pub fn after(tokenizer: &'t TextTokenizer, prompt: &[u32]) -> TextStream<'t> {
        // The first new token is decoded behind the prompt's end, so that its leading space stays.
        let context = prompt.len().saturating_sub(2 * LONGEST);
        TextStream { tokenizer, ids: prompt.to_vec(), context, shown: prompt.len() }
    }

    /// Takes one id and returns the text that can be shown now, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.new_text();
        if text.ends_with('\u{FFFD}') {
            return if self.ids.len() - self.shown > LONGEST { self.give_up_one() } else { String::new() };
        }
        if !text.is_empty() {
            self.context = self.shown;
            self.shown = self.ids.len();
        }
        text
    }

    /// What is left in the end; bytes that are no character come out as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.new_text();
        self.shown = self.ids.len();
        text
    }

    /// The text of the ids that are not shown.
    fn new_text(&self) -> String {
        let before = self.tokenizer.decode(&self.ids[self.context..self.shown]);
        let whole = self.tokenizer.decode(&self.ids[self.context..]);
        match whole.strip_prefix(&before) {
            Some(new) => new.to_string(),
            // Bytes that follow a shown character and are none themselves spoil the whole run.
            None => self.tokenizer.decode(&self.ids[self.shown..]),
        }
    }

    /// The oldest id that is not shown cannot begin a character any more.
    fn give_up_one(&mut self) -> String {
        let next = self.shown + 1;
        let text = self.tokenizer.decode(&self.ids[self.shown..next]);
        self.context = self.shown;
        self.shown = next;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{byte_fallback, byte_level};
    use super::*;

    fn streamed(tokenizer: &TextTokenizer, ids: &[u32]) -> (String, Vec<String>) {
        let mut stream = TextStream::after(tokenizer, &[]);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        pieces.push(stream.finish());
        (pieces.concat(), pieces)
    }

    const TEXTS: [&str; 5] = ["hello world", "naïve 😀 日本語", "  two  spaces ", "😀", "é"];

    #[test]
    fn pieces_are_the_whole_text_in_whole_characters() {
        for tokenizer in [byte_fallback(), byte_level()] {
            for text in TEXTS {
                let ids = tokenizer.encode(text, false).expect("ids");
                let (whole, pieces) = streamed(&tokenizer, &ids);
                assert_eq!(whole, tokenizer.decode(&ids));
                assert_eq!(whole, text);
                assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_continuation_keeps_the_space_it_begins_with() {
        let tokenizer = byte_fallback();
        let prompt = tokenizer.encode("hello", false).expect("ids");
        let ids = tokenizer.encode("hello world", false).expect("ids");
        let mut stream = TextStream::after(&tokenizer, &prompt);
        let text: String = ids[prompt.len()..].iter().map(|id| stream.push(*id)).collect();
        assert_eq!(text, " world");
    }

    #[test]
    fn bytes_that_are_no_character_do_not_hold_back_what_follows() {
        let tokenizer = byte_fallback();
        // Bytes stand behind three special tokens.
        let byte = |b: u8| 3 + u32::from(b);
        let mut ids = vec![byte(0xC3), byte(0xA9)];
        ids.extend([byte(0xFF); 12]);
        ids.extend(tokenizer.encode("hello", false).expect("ids"));
        let (whole, pieces) = streamed(&tokenizer, &ids);
        assert_eq!(pieces[1], "é");
        assert!(pieces[10..14].concat().contains('\u{FFFD}'), "{pieces:?}");
        assert!(whole.ends_with("hello"), "{whole}");
    }

    #[test]
    fn half_a_character_at_the_end_is_told() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a😀", false).expect("ids");
        let (whole, _) = streamed(&tokenizer, &ids[..ids.len() - 1]);
        assert!(whole.starts_with('a') && whole.ends_with('\u{FFFD}'), "{whole}");
    }
}
