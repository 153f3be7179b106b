//! What a run prints: text as it comes for one prompt, whole texts for several, or one JSON document.

use super::asked::Asked;
use crate::commands::print_json;
use crate::failure::Failure;
use crate::text::TextStream;
use lapidary_models::ModelSpec;
use lapidary_runtime_cpu::Finish;
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, Instant};

/// The document of `run --json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    model: &'a str,
    device: &'static str,
    sequences: Vec<Sequence<'a>>,
}

/// One prompt and what followed.
#[derive(Serialize)]
struct Sequence<'a> {
    prompt: &'a [u32],
    tokens: &'a [u32],
    text: Option<String>,
    finish: &'static str,
}

/// Prints tokens.
pub struct Writer<'a> {
    asked: &'a Asked,
    json: bool,
    streams: Vec<TextStream<'a>>,
    texts: Vec<String>,
    begun: bool,
}

impl<'a> Writer<'a> {
    /// A writer for these prompts.
    pub fn new(asked: &'a Asked, json: bool) -> Writer<'a> {
        let stream = |tokenizer| asked.prompts.iter().map(|ids| TextStream::after(tokenizer, ids)).collect();
        let streams = asked.tokenizer.as_ref().map_or_else(Vec::new, stream);
        Writer { asked, json, streams, texts: vec![String::new(); asked.prompts.len()], begun: false }
    }

    /// Takes a token; the one that ends a sequence has no text.
    pub fn token(&mut self, sequence: usize, token: u32, ends: bool) {
        if self.asked.in_ids && !self.json {
            let comma = if self.texts[sequence].is_empty() { "" } else { "," };
            self.show(sequence, format!("{comma}{token}"));
        } else if let Some(stream) = self.streams.get_mut(sequence).filter(|_| !ends) {
            let text = stream.push(token);
            self.show(sequence, text);
        }
    }

    fn show(&mut self, sequence: usize, text: String) {
        if self.texts.len() == 1 && !self.json && !text.is_empty() {
            print!("{text}");
            // What cannot be written now is told by the next write.
            let _ = std::io::stdout().flush();
            self.begun = true;
        }
        self.texts[sequence].push_str(&text);
    }

    /// Prints what is left.
    ///
    /// # Errors
    /// Exit 1 when the document has no JSON form.
    pub fn finish(
        mut self,
        spec: &ModelSpec,
        device: &'static str,
        made: &[(Vec<u32>, Finish)],
    ) -> Result<(), Failure> {
        for sequence in 0..self.streams.len() {
            let rest = self.streams[sequence].finish();
            let in_text = self.json || !self.asked.in_ids;
            self.show(sequence, if in_text { rest } else { String::new() });
        }
        if self.json {
            return print_json(&self.document(spec, device, made));
        }
        match self.texts.as_slice() {
            [_] => println!(),
            texts => texts.iter().enumerate().for_each(|(i, text)| println!("[{}] {text}", i + 1)),
        }
        Ok(())
    }

    fn document<'d>(
        &'d self,
        spec: &'d ModelSpec,
        device: &'static str,
        made: &'d [(Vec<u32>, Finish)],
    ) -> Document<'d> {
        let with_text = !self.streams.is_empty();
        let sequence = |(i, (tokens, finish)): (usize, &'d (Vec<u32>, Finish))| Sequence {
            prompt: &self.asked.prompts[i],
            tokens,
            text: with_text.then(|| self.texts[i].clone()),
            finish: match finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
                Finish::Room => "room",
            },
        };
        Document {
            schema: "lapidary/run",
            version: 1,
            model: &spec.name,
            device,
            sequences: made.iter().enumerate().map(sequence).collect(),
        }
    }
}

/// Times of loading, prefill and decoding.
pub struct Clock {
    start: Instant,
    load: Duration,
    first: Option<Instant>,
    last: Instant,
    tokens: usize,
}

impl Clock {
    /// Begins with loading.
    pub fn start() -> Clock {
        let now = Instant::now();
        Clock { start: now, load: Duration::ZERO, first: None, last: now, tokens: 0 }
    }

    /// Loading is over.
    pub fn loaded(self) -> Clock {
        Clock { load: self.start.elapsed(), start: Instant::now(), ..self }
    }

    /// A token is known.
    pub fn token(&mut self) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
        self.tokens += 1;
    }

    /// One line on stderr. The prefill ends with the first token of the first sequence; decoding makes the rest.
    pub fn tell(&self, prompt: usize, sequences: usize) {
        let rate = |tokens: usize, time: Duration| {
            let seconds = time.as_secs_f64();
            let rate = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
            format!("{tokens} tokens in {seconds:.3} s ({rate:.1} tokens/s)")
        };
        let mut line = format!("load {:.3} s", self.load.as_secs_f64());
        if let Some(first) = self.first {
            line += &format!(", prefill {}", rate(prompt, first - self.start));
            if self.tokens > sequences {
                line += &format!(", decode {}", rate(self.tokens - sequences, self.last - first));
            }
        }
        eprintln!("{line}");
    }
}
