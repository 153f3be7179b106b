//! Text in, token ids out, and back: `tokenizer.json` files and the special tokens that models are prompted with.

pub mod prompt;
pub mod stream;
pub mod tokenizer;

#[cfg(test)]
mod samples;

pub use prompt::Prompter;
pub use stream::TextStream;
pub use tokenizer::TextTokenizer;
