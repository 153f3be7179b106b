//! Training data as it is published: a JSON object per line.
//!
//! `{"source", "prompt": [..], "continuation": [..]}` holds a sequence in two parts, `{"source", "token_ids": [..]}` a whole
//! one. Either way the first `k` ids are the prompt and the next `l` what the model should add. A document with
//! `sequences` of such objects, as `memorization.json` beside stored tensors, is read too.

use crate::failure::{Exit, Failure, Fault};
use crate::input;
use serde::Deserialize;

/// A sequence of training data, cut at `k`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Where the data come from.
    pub source: String,
    /// The first `k` ids.
    pub prompt: Vec<u32>,
    /// The next `l` ids.
    pub continuation: Vec<u32>,
}

/// How sequences are cut, and what ids there are.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Ids given.
    pub k: usize,
    /// Ids asked for.
    pub l: usize,
    /// Ids are below this.
    pub vocab: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    source: String,
    prompt: Option<Vec<u32>>,
    continuation: Option<Vec<u32>>,
    token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Document {
    sequences: Vec<Line>,
}

/// Reads every sequence.
///
/// # Errors
/// Exit 3 with every line that cannot be used (the first twenty are told).
pub fn read(text: &str, name: &str, cut: Cut) -> Result<Vec<Sample>, Failure> {
    let mut samples = Vec::new();
    let mut faults = Vec::new();
    if is_document(text) {
        let document: Document =
            input::json(text).map_err(|what| Failure::new(Exit::InvalidInput, format!("{name}: {what}")))?;
        for (i, line) in document.sequences.into_iter().enumerate() {
            keep(line.sample(cut), format!("{name}: sequences[{i}]"), &mut samples, &mut faults);
        }
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (i, line) in lines {
            let read = input::json::<Line>(line);
            let sample = read.and_then(|line| line.sample(cut));
            keep(sample, format!("{name}:{}", i + 1), &mut samples, &mut faults);
        }
    }
    if samples.is_empty() && faults.is_empty() {
        faults.push(Fault::new(format!("{name}: holds no sequences")));
    }
    if faults.is_empty() {
        return Ok(samples);
    }
    const TOLD: usize = 20;
    let more = faults.len().saturating_sub(TOLD);
    faults.truncate(TOLD);
    if more > 0 {
        faults.push(Fault::new(format!("{name}: and {more} more lines like these")));
    }
    Err(Failure { exit: Exit::InvalidInput, faults })
}

/// Whether it is one document, and not a line per sequence.
fn is_document(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| value.get("sequences").is_some())
}

fn keep(sample: Result<Sample, String>, at: String, samples: &mut Vec<Sample>, faults: &mut Vec<Fault>) {
    match sample {
        Ok(sample) => samples.push(sample),
        Err(what) => faults.push(Fault::new(format!("{at}: {what}"))),
    }
}

impl Line {
    fn sample(self, cut: Cut) -> Result<Sample, String> {
        let ids = match (self.token_ids, self.prompt, self.continuation) {
            (Some(ids), None, None) => ids,
            (None, Some(prompt), Some(continuation)) => [prompt, continuation].concat(),
            _ => return Err("expected either token_ids, or prompt and continuation".into()),
        };
        let wanted = cut.k + cut.l;
        if ids.len() < wanted {
            return Err(format!("has {} ids, k + l = {wanted} are needed", ids.len()));
        }
        if let Some(id) = ids[..wanted].iter().find(|id| u64::from(**id) >= cut.vocab) {
            return Err(format!("id {id} is not below the model's vocabulary of {}", cut.vocab));
        }
        let (prompt, continuation) = (ids[..cut.k].to_vec(), ids[cut.k..wanted].to_vec());
        Ok(Sample { source: self.source, prompt, continuation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { k: 2, l: 1, vocab: 10 };

    #[test]
    fn both_published_forms_are_cut_alike() {
        let lines = "{\"source\":\"a\",\"prompt\":[1,2],\"continuation\":[3]}\n\n{\"token_ids\":[1,2,3,4],\"source\":\"a\"}\n";
        let samples = read(lines, "d.jsonl", CUT).expect("sequences");
        assert_eq!(samples.len(), 2);
        assert_eq!(samples[0], samples[1]);
        let document = "{\"k\": 2, \"sequences\": [{\"prompt\": [1, 2, 3], \"continuation\": [4]}]}";
        assert_eq!(read(document, "m.json", CUT).expect("a sequence")[0].continuation, [3]);
    }

    #[test]
    fn every_bad_line_is_told_with_its_number() {
        let lines = "{\"token_ids\":[1,2]}\n{\"token_ids\":[1,2,3]}\nnot json\n{\"prompt\":[1]}\n{\"token_ids\":[1,2,77]}\n";
        let failure = read(lines, "d.jsonl", CUT).expect_err("bad lines");
        let told: Vec<&str> = failure.faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        for (told, wanted) in
            told.iter().zip(["d.jsonl:1: has 2 ids", "d.jsonl:3", "d.jsonl:4", "d.jsonl:5: id 77"])
        {
            assert!(told.starts_with(wanted), "{told}");
        }
        assert!(read("", "d.jsonl", CUT).is_err());
    }
}
