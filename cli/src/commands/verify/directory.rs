//! A directory with a model and what a reference implementation computes with it.
//!
//! `config.json`, `model.safetensors` and `expected.safetensors` have to be there; `greedy.json`, `memorization.json`
//! and `meta.json` are checked where they are, and named as not checked where they are not.

use crate::failure::{Exit, Failure};
use crate::input;
use crate::memory::Needs;
use lapidary_models::ModelSpec;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What was read.
pub struct Directory {
    /// The folder.
    pub folder: PathBuf,
    /// The model, from `config.json`.
    pub spec: ModelSpec,
    /// Token ids of every sequence.
    pub ids: Vec<Vec<u32>>,
    /// What is to be compared, in the order in which a model computes it.
    pub expected: Vec<Expected>,
    /// `greedy.json`.
    pub greedy: Option<Greedy>,
    /// `memorization.json`.
    pub memorization: Option<Memorization>,
    /// `meta.json`.
    pub meta: Meta,
    /// What is there and not compared, or not there.
    pub not_checked: Vec<Skipped>,
}

/// One stored tensor.
pub struct Expected {
    /// Its name, such as `hidden.2`.
    pub name: String,
    /// Length of every axis.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Vec<f64>,
}

/// Something that is not compared, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// File or tensor.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// `greedy.json`: likeliest continuations.
#[derive(Deserialize)]
pub struct Greedy {
    /// The prompts with what follows them.
    pub cases: Vec<Case>,
}

/// One continuation.
#[derive(Deserialize)]
pub struct Case {
    /// Ids given.
    pub prompt: Vec<u32>,
    /// Ids that follow.
    pub continuation: Vec<u32>,
}

/// `memorization.json`: what a model remembers of its training data.
#[derive(Deserialize)]
pub struct Memorization {
    /// The sequences.
    pub sequences: Vec<Remembered>,
    /// Mean score of the sequences.
    pub memorization_score: Option<f64>,
    /// Share of sequences with score 1.
    pub k_extractable: Option<f64>,
}

/// One sequence of training data and what the model makes of its beginning.
#[derive(Deserialize)]
pub struct Remembered {
    /// Ids given.
    pub prompt: Vec<u32>,
    /// Ids that follow in the training data.
    pub continuation: Vec<u32>,
    /// Ids that the model adds.
    pub generated: Vec<u32>,
    /// 1 where both agree.
    #[serde(rename = "match")]
    pub matches: Option<Vec<u8>>,
    /// Share of ids that agree.
    pub score: Option<f64>,
}

/// `meta.json`, as far as it is used.
#[derive(Default, Deserialize)]
pub struct Meta {
    /// Mean cross entropy of every id but the first of each sequence.
    pub loss: Option<f64>,
    /// How far the reference's own lower precisions are off.
    #[serde(default)]
    pub noise: NoiseByType,
}

/// Noise of the reference by element type.
#[derive(Default, Deserialize)]
pub struct NoiseByType {
    /// Of its f32 run against its f64 run.
    #[serde(default)]
    pub float32: Noise,
    /// Of its bf16 run against its f64 run.
    #[serde(default)]
    pub bfloat16: Option<Rounded>,
    /// The largest logit.
    #[serde(default)]
    pub logits_max_abs: Option<f64>,
}

/// What rounding to a short number type does.
#[derive(Clone, Copy, Deserialize)]
pub struct Rounded {
    /// Largest difference of logits.
    pub logits: f64,
    /// Share of tokens whose likeliest id stays the same.
    pub argmax_agreement: f64,
}

/// Largest differences.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Noise {
    /// Of logits.
    pub logits: f64,
    /// Of hidden states.
    pub hidden: f64,
    /// Of the loss.
    pub loss: f64,
}

impl Directory {
    /// Reads a folder.
    ///
    /// # Errors
    /// Exit 3 for what is missing or does not fit together, 5 for a model family that is not supported.
    pub fn open(folder: &Path) -> Result<Directory, Failure> {
        if !folder.is_dir() {
            return Err(invalid(folder, "is no folder")
                .help("name a folder with config.json, model.safetensors and expected.safetensors"));
        }
        let spec = input::runnable_model(&folder.join("config.json").display().to_string())?.spec;
        let mut not_checked = Vec::new();
        let (ids, expected) = tensors(&folder.join("expected.safetensors"), &spec, &mut not_checked)?;
        let mut optional = Optional { folder, not_checked: &mut not_checked };
        let greedy: Option<Greedy> = optional.json("greedy.json", "no continuations are stored")?;
        let memorization: Option<Memorization> =
            optional.json("memorization.json", "no training data is stored")?;
        let meta: Option<Meta> = optional.json("meta.json", "no loss is stored")?;
        let directory = Directory {
            folder: folder.to_path_buf(),
            spec,
            ids,
            expected,
            greedy,
            memorization,
            meta: meta.unwrap_or_default(),
            not_checked,
        };
        directory.check_ids()?;
        Ok(directory)
    }

    /// The memory of the largest run that the directory asks for.
    pub fn needs(&self) -> Needs {
        let greedy = self.greedy.iter().flat_map(|greedy| &greedy.cases);
        let known = self.memorization.iter().flat_map(|memorization| &memorization.sequences);
        let lists = [
            self.ids.iter().map(|ids| (ids.len(), ids.len())).collect::<Vec<_>>(),
            greedy.map(|case| (case.prompt.len() + case.continuation.len(), case.prompt.len())).collect(),
            known.map(|one| (one.prompt.len() + one.generated.len(), one.prompt.len())).collect(),
        ];
        let most = |of: fn(&Vec<(usize, usize)>) -> usize| lists.iter().map(of).max().unwrap_or(0) as u64;
        Needs {
            sequences: most(Vec::len),
            positions: most(|list| list.iter().map(|one| one.0).max().unwrap_or(0)),
            tokens: most(|list| list.iter().map(|one| one.1).sum()),
        }
    }

    fn check_ids(&self) -> Result<(), Failure> {
        let expected = self.ids.iter().map(|ids| (ids.len(), ids.as_slice()));
        self.check_list("expected.safetensors: input_ids", expected)?;
        if let Some(greedy) = &self.greedy {
            let lists = greedy.cases.iter();
            self.check_list("greedy.json: cases", lists.map(|c| list(&c.prompt, &c.continuation)))?;
        }
        if let Some(memorization) = &self.memorization {
            let lists = memorization.sequences.iter();
            self.check_list("memorization.json: sequences", lists.map(|s| list(&s.prompt, &s.generated)))?;
        }
        Ok(())
    }

    /// Checks prompts, each with the positions that it and its continuation need.
    fn check_list<'i>(
        &self,
        what: &str,
        lists: impl Iterator<Item = (usize, &'i [u32])>,
    ) -> Result<(), Failure> {
        for (i, (positions, prompt)) in lists.enumerate() {
            let refused = |why: String| Err(invalid(&self.folder, format!("{what}[{i}]: {why}")));
            if prompt.is_empty() {
                return refused("has no ids to begin with".into());
            }
            if let Some(id) = prompt.iter().find(|id| u64::from(**id) >= self.spec.vocab) {
                return refused(format!("id {id} is not below the vocabulary of {}", self.spec.vocab));
            }
            if positions as u64 > self.spec.max_seq {
                let most = self.spec.max_seq;
                return refused(format!("needs {positions} positions, the model was built for {most}"));
            }
        }
        Ok(())
    }
}

/// The last id of a continuation is never fed back, so it needs no position.
fn list<'i>(prompt: &'i [u32], continuation: &[u32]) -> (usize, &'i [u32]) {
    (prompt.len() + continuation.len().saturating_sub(1), prompt)
}

fn invalid(path: &Path, what: impl Into<String>) -> Failure {
    Failure::new(Exit::InvalidInput, format!("{}: {}", path.display(), what.into()))
}

/// Files that need not be there.
struct Optional<'a> {
    folder: &'a Path,
    not_checked: &'a mut Vec<Skipped>,
}

impl Optional<'_> {
    fn json<T: DeserializeOwned>(&mut self, file: &str, without: &str) -> Result<Option<T>, Failure> {
        let path = self.folder.join(file);
        if !path.is_file() {
            self.not_checked.push(Skipped { what: file.into(), why: format!("not there: {without}") });
            return Ok(None);
        }
        let text = input::read(&path)?;
        input::json(&text).map(Some).map_err(|what| invalid(&path, what))
    }
}

type Stored = (Vec<Vec<u32>>, Vec<Expected>);

fn tensors(path: &Path, spec: &ModelSpec, not_checked: &mut Vec<Skipped>) -> Result<Stored, Failure> {
    let bytes = std::fs::read(path).map_err(|error| invalid(path, format!("cannot read: {error}")))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| invalid(path, error.to_string()))?;
    let ids = file.tensor("input_ids").map_err(|_| invalid(path, "has no tensor `input_ids`"))?;
    let ids = ids_of(&ids).map_err(|what| invalid(path, format!("input_ids: {what}")))?;
    let mut expected = Vec::new();
    for (name, view) in file.iter().filter(|(name, _)| *name != "input_ids") {
        let mut skip = |why: String| not_checked.push(Skipped { what: name.into(), why });
        match (order(name, spec.n_layers), floats(&view)) {
            (None, _) => skip("its name is not known".into()),
            (_, None) => skip(format!("its elements are {:?}", view.dtype())),
            (Some(_), Some(data)) => {
                let wanted = shape(name, spec, &ids, view.shape());
                wanted.map_err(|what| invalid(path, format!("{name}: {what}")))?;
                expected.push(Expected { name: name.into(), shape: view.shape().to_vec(), data });
            }
        }
    }
    if expected.is_empty() {
        return Err(invalid(path, "holds no hidden state and no logits"));
    }
    expected.sort_by_key(|tensor| order(&tensor.name, spec.n_layers));
    Ok((ids, expected))
}

/// Where a stored tensor stands in the computation; none for unknown names.
fn order(name: &str, layers: u64) -> Option<(u64, u64)> {
    if let Some(at) = name.strip_prefix("hidden.") {
        let at: u64 = at.parse().ok()?;
        return (at <= layers).then_some((at, 0));
    }
    match name {
        "block0.norm1" => Some((0, 1)),
        "block0.attn" => Some((0, 2)),
        "block0.norm2" => Some((0, 3)),
        "block0.mlp" => Some((0, 4)),
        "final_norm" => Some((layers, 1)),
        "logits" => Some((layers, 2)),
        _ => None,
    }
}

fn shape(name: &str, spec: &ModelSpec, ids: &[Vec<u32>], found: &[usize]) -> Result<(), String> {
    let (batch, seq) = (ids.len(), ids[0].len());
    let widths = match name {
        "logits" => vec![spec.vocab as usize, spec.vocab_rows() as usize],
        _ => vec![spec.d_model as usize],
    };
    match widths.iter().any(|width| found == [batch, seq, *width]) {
        true => Ok(()),
        false => Err(format!("has shape {found:?}, expected {:?}", [batch, seq, widths[0]])),
    }
}

fn ids_of(view: &TensorView<'_>) -> Result<Vec<Vec<u32>>, String> {
    let [batch, seq] = view.shape() else {
        return Err(format!("has shape {:?}, expected [sequences, ids]", view.shape()));
    };
    if *batch == 0 || *seq == 0 {
        return Err("holds no ids".into());
    }
    let ids: Vec<i64> = match view.dtype() {
        Dtype::I64 => view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => {
            view.data().as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()
        }
        other => return Err(format!("has elements of type {other:?}, expected I64 or I32")),
    };
    let id = |id: &i64| u32::try_from(*id).map_err(|_| format!("{id} is no token id"));
    let ids = ids.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
    Ok(ids.chunks_exact(*seq).map(<[u32]>::to_vec).collect())
}

fn floats(view: &TensorView<'_>) -> Option<Vec<f64>> {
    let data = view.data();
    let halves = || data.as_chunks::<2>().0.iter();
    Some(match view.dtype() {
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f64()).collect(),
        Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f64()).collect(),
        _ => return None,
    })
}
