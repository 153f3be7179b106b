//! Results line by line, so that a run that was cut goes on where it was.
//!
//! While a run goes on, they lie in `FILE.part`, a line per sequence, a whole batch at a time; the last batch makes `FILE`
//! of it. What was asked stands beside it in `FILE.run`. A run that goes on throws away what a cut left half-written
//! and begins at a whole batch, so the file in the end is the same, byte by byte, wherever the cut was.

use super::data::Sample;
use super::score::Score;
use crate::failure::{Exit, Failure};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What was asked; a run goes on only with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    schema: String,
    version: u32,
    model: String,
    k: usize,
    l: usize,
    batch: usize,
    weights: String,
    sequences: usize,
    data_blake3: String,
}

/// Settings of a header.
pub struct Asked<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// Ids given and ids asked for.
    pub k: usize,
    /// Ids asked for.
    pub l: usize,
    /// Sequences of a batch.
    pub batch: usize,
    /// How weights are packed.
    pub weights: &'a str,
    /// The data's text.
    pub data: &'a str,
    /// Sequences in it.
    pub sequences: usize,
}

impl Header {
    /// The header of a run.
    pub fn new(asked: &Asked<'_>) -> Header {
        Header {
            schema: "lapidary/memorization-run".into(),
            version: 1,
            model: asked.model.into(),
            k: asked.k,
            l: asked.l,
            batch: asked.batch,
            weights: asked.weights.into(),
            sequences: asked.sequences,
            data_blake3: blake3::hash(asked.data.as_bytes()).to_hex().to_string(),
        }
    }
}

/// One sequence's result, in the form of the stored ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Where the data come from.
    pub source: String,
    /// Ids given.
    pub prompt: Vec<u32>,
    /// Ids of the data.
    pub continuation: Vec<u32>,
    /// Ids of the model.
    pub generated: Vec<u32>,
    /// 1 where both agree.
    #[serde(rename = "match")]
    pub matches: Vec<u8>,
    /// Share of ids that agree.
    pub score: f64,
    /// Whether all do.
    pub extractable: bool,
}

impl Entry {
    /// The result of a sequence.
    pub fn new(sample: &Sample, generated: Vec<u32>) -> Entry {
        let score = Score::of(&generated, &sample.continuation);
        Entry {
            source: sample.source.clone(),
            prompt: sample.prompt.clone(),
            continuation: sample.continuation.clone(),
            generated,
            score: score.score(),
            extractable: score.is_full(),
            matches: score.matches,
        }
    }
}

/// The file of a run.
pub struct Journal {
    place: PathBuf,
    part: PathBuf,
    file: File,
}

/// What an earlier run left.
#[derive(Default)]
pub struct Earlier {
    /// Its whole batches, as text.
    text: String,
    /// The same, read.
    pub entries: Vec<Entry>,
}

impl Earlier {
    /// Looks for a run to go on with. Writes nothing.
    ///
    /// # Errors
    /// Exit 3 when the file is there and was not asked for, or belongs to another run.
    pub fn find(place: &Path, header: &Header, resume: bool) -> Result<Earlier, Failure> {
        let part = beside(place, ".part");
        let found = [place, &part].into_iter().find(|file| file.exists());
        match (found, resume) {
            (None, _) => Ok(Earlier::default()),
            (Some(file), false) => {
                Err(refused(file, "is there already").help("go on with --resume, or name another --out"))
            }
            (Some(file), true) => {
                same_run(&beside(place, ".run"), header)?;
                earlier(file, header)
            }
        }
    }
}

impl Journal {
    /// Begins a file with what an earlier run left.
    ///
    /// # Errors
    /// Exit 3 when it cannot be written.
    pub fn begin(place: &Path, header: &Header, earlier: &Earlier) -> Result<Journal, Failure> {
        let part = beside(place, ".part");
        crate::output::file(&beside(place, ".run"), &line(header)?)?;
        crate::output::file(&part, &earlier.text)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&part)
            .map_err(|error| refused(&part, format!("cannot write: {error}")))?;
        Ok(Journal { place: place.to_path_buf(), part, file })
    }

    /// Adds the results of one batch.
    ///
    /// # Errors
    /// Exit 3 when the file cannot be written.
    pub fn add(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        let text = entries.iter().map(line).collect::<Result<String, _>>()?;
        self.file
            .write_all(text.as_bytes())
            .map_err(|error| refused(&self.part, format!("cannot write: {error}")))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// Exit 3 when it cannot be renamed.
    pub fn finish(self) -> Result<(), Failure> {
        std::fs::rename(&self.part, &self.place)
            .map_err(|error| refused(&self.place, format!("cannot write: {error}")))
    }
}

fn refused(file: &Path, what: impl Into<String>) -> Failure {
    Failure::new(Exit::InvalidInput, format!("{}: {}", file.display(), what.into()))
}

fn line(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::new(Exit::Internal, format!("no JSON form: {error}")))?;
    Ok(text + "\n")
}

/// The file's name with something behind it.
fn beside(place: &Path, suffix: &str) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether `FILE.run` says that an earlier run was asked the same.
fn same_run(run: &Path, header: &Header) -> Result<(), Failure> {
    let found: Header = crate::input::json(&crate::input::read(run)?)
        .map_err(|error| refused(run, format!("does not say what a run was asked: {error}")))?;
    match found == *header {
        true => Ok(()),
        false => Err(refused(run, "belongs to a run with other data or settings")
            .help("give the same model, data, -k, -l, --batch and --dtype, or name another --out")),
    }
}

/// The whole batches of an earlier run.
fn earlier(file: &Path, header: &Header) -> Result<Earlier, Failure> {
    let text = crate::input::read(file)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let entry = |(i, text): (usize, &str)| {
        crate::input::json(text).map_err(|what| refused(file, format!("line {}: {what}", i + 1)))
    };
    let mut entries = whole.lines().enumerate().map(entry).collect::<Result<Vec<Entry>, _>>()?;
    let done = entries.len() >= header.sequences;
    let kept = if done { header.sequences } else { entries.len() / header.batch * header.batch };
    entries.truncate(kept);
    Ok(Earlier { text: whole.split_inclusive('\n').take(kept).collect(), entries })
}
