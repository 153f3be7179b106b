//! Comparing what a device computes with what is stored.

use super::device::{Ask, Device};
use super::directory::{Directory, Expected, Skipped};
use super::views::Views;
use crate::commands::memorization::score::{Score, summary};
use crate::failure::Failure;
use serde::Serialize;

/// How far numbers may be off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerances {
    /// Largest difference of logits.
    pub logits: f64,
    /// Largest difference of hidden states and parts of the first block.
    pub hidden: f64,
    /// Difference of the loss.
    pub loss: f64,
}

/// For models of order-one activations: the f32 gaps of the stored implementations stay below 1e-4 and 3e-7.
const LEAST: Tolerances = Tolerances { logits: 2e-4, hidden: 2e-4, loss: 1e-5 };

/// Times the f32 gap that `meta.json` says the stored implementation itself has, where that is more.
const GAPS: f64 = 4.0;

impl Tolerances {
    /// The tolerances for a directory.
    pub fn of(directory: &Directory) -> Tolerances {
        let gap = directory.meta.noise.float32;
        Tolerances {
            logits: LEAST.logits.max(GAPS * gap.logits),
            hidden: LEAST.hidden.max(GAPS * gap.hidden),
            loss: LEAST.loss.max(GAPS * gap.loss),
        }
    }
}

/// The comparison of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorCheck {
    /// Name of the stored tensor.
    pub name: String,
    /// Largest absolute difference; none where the device has values that are no numbers.
    pub max_abs: Option<f64>,
    /// Norm of the difference over the norm of the stored tensor.
    pub rel_l2: Option<f64>,
    /// Where the largest difference is: sequence, token, column.
    pub at: Option<[usize; 3]>,
    /// Whether the largest difference is within the tolerance.
    pub ok: bool,
    /// The node of the graph that makes it, and its op.
    pub node: String,
    /// The node's op.
    pub op: &'static str,
    /// What it was made from, where the device does not have it as it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// The comparison of the loss.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LossCheck {
    /// Stored.
    pub expected: f64,
    /// Computed from the device's logits.
    pub found: f64,
    /// Within the tolerance.
    pub ok: bool,
}

/// The comparison of one continuation.
#[derive(Clone, Debug, Serialize)]
pub struct SequenceCheck {
    /// Index in its file.
    pub index: usize,
    /// Ids compared.
    pub ids: usize,
    /// The first id that differs: its index, what is stored and what was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<(usize, u32, u32)>,
}

/// What one device with one set of switches gives.
#[derive(Clone, Debug, Serialize)]
pub struct Checks {
    /// Every stored tensor that the device has, in the order of computation.
    pub tensors: Vec<TensorCheck>,
    /// Mean cross entropy.
    pub loss: Option<LossCheck>,
    /// Whether every continuation is the stored one; none without `greedy.json`.
    pub greedy_match: Option<bool>,
    /// The continuations.
    pub greedy: Vec<SequenceCheck>,
    /// Whether every remembered sequence is the stored one; none without `memorization.json`.
    pub memorization_match: Option<bool>,
    /// The remembered sequences.
    pub memorization: Vec<SequenceCheck>,
    /// Stored tensors that this device does not have.
    pub not_checked: Vec<Skipped>,
    /// Whether nothing differs.
    pub ok: bool,
}

impl Checks {
    /// The first tensor that differs.
    pub fn first_difference(&self) -> Option<&TensorCheck> {
        self.tensors.iter().find(|tensor| !tensor.ok)
    }
}

/// Compares everything that is stored.
///
/// # Errors
/// When the device cannot run.
pub fn check(directory: &Directory, device: &dyn Device, allowed: Tolerances) -> Result<Checks, Failure> {
    let views = Views::new(&directory.spec, device.module());
    let views: Vec<_> = directory.expected.iter().map(|expected| views.of(&expected.name)).collect();
    let trace = device.trace(&directory.ids, &|name| views.iter().any(|view| view.wants(name)))?;
    let mut tensors = Vec::new();
    let mut not_checked = Vec::new();
    for (expected, view) in directory.expected.iter().zip(&views) {
        let tolerance = if expected.name == "logits" { allowed.logits } else { allowed.hidden };
        match view.find(&trace) {
            Some(found) => {
                let (node, op) = view.node.clone();
                let check = compare(expected, &found.data, directory.spec.vocab as usize, tolerance);
                tensors.push(TensorCheck { node, op, from: found.from, ..check });
            }
            None => not_checked.push(Skipped {
                what: expected.name.clone(),
                why: "this program never writes it to memory".into(),
            }),
        }
    }
    let loss = loss_check(directory, &trace.logits, allowed.loss);
    let greedy = greedy(directory, device)?;
    let memorization = memorization(directory, device)?;
    let all_match = |checks: &Option<(Vec<SequenceCheck>, bool)>| checks.as_ref().map(|(_, ok)| *ok);
    let (greedy_match, memorization_match) = (all_match(&greedy), all_match(&memorization));
    let ok = tensors.iter().all(|tensor| tensor.ok)
        && loss.is_none_or(|loss| loss.ok)
        && greedy_match != Some(false)
        && memorization_match != Some(false);
    let list = |checks: Option<(Vec<SequenceCheck>, bool)>| checks.map_or_else(Vec::new, |(list, _)| list);
    Ok(Checks {
        tensors,
        loss,
        greedy_match,
        greedy: list(greedy),
        memorization_match,
        memorization: list(memorization),
        not_checked,
        ok,
    })
}

/// Compares a stored tensor with rows of the device; of stored logits, only the vocabulary counts.
fn compare(expected: &Expected, found: &[f64], vocab: usize, tolerance: f64) -> TensorCheck {
    let (seq, stored) = (expected.shape[1], expected.shape[2]);
    let width = if expected.name == "logits" { vocab } else { stored };
    let pairs = expected.data.chunks_exact(stored).zip(found.chunks_exact(width)).enumerate();
    let (mut worst, mut at, mut square, mut whole) = (0.0f64, None, 0.0f64, 0.0f64);
    for (row, (expected, found)) in pairs {
        for (column, (e, f)) in expected.iter().zip(found).enumerate() {
            let difference = (e - f).abs();
            if difference > worst || (difference.is_nan() && !worst.is_nan()) {
                (worst, at) = (difference, Some([row / seq, row % seq, column]));
            }
            square += difference * difference;
            whole += e * e;
        }
    }
    let finite = |x: f64| x.is_finite().then_some(x);
    TensorCheck {
        name: expected.name.clone(),
        max_abs: finite(worst),
        rel_l2: finite((square / whole.max(f64::MIN_POSITIVE)).sqrt()),
        at,
        ok: worst <= tolerance,
        node: String::new(),
        op: "",
        from: None,
    }
}

fn loss_check(directory: &Directory, logits: &[f64], tolerance: f64) -> Option<LossCheck> {
    let expected = directory.meta.loss?;
    let found = loss(&directory.ids, logits, directory.spec.vocab as usize)?;
    Some(LossCheck { expected, found, ok: (found - expected).abs() <= tolerance })
}

/// Mean over all tokens but the first of a sequence of `ln(sum(exp(logits))) - logit of the token`; none for
/// sequences of one token.
fn loss(ids: &[Vec<u32>], logits: &[f64], vocab: usize) -> Option<f64> {
    let mut rows = logits.chunks_exact(vocab);
    let (mut sum, mut count) = (0.0, 0);
    for sequence in ids {
        for next in 1..=sequence.len() {
            let row = rows.next()?;
            let Some(id) = sequence.get(next) else { continue };
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
            sum += log_sum - row[*id as usize];
            count += 1;
        }
    }
    (count > 0).then(|| sum / f64::from(count))
}

type Continuations = Option<(Vec<SequenceCheck>, bool)>;

fn greedy(directory: &Directory, device: &dyn Device) -> Result<Continuations, Failure> {
    let Some(greedy) = &directory.greedy else { return Ok(None) };
    let mut checks = Vec::new();
    for (index, case) in greedy.cases.iter().enumerate() {
        let ask = Ask { prompt: &case.prompt, count: case.continuation.len() };
        let found = device.continuations(&[ask])?;
        checks.push(sequence(index, &case.continuation, &found[0]));
    }
    let ok = checks.iter().all(|check| check.differs.is_none());
    Ok(Some((checks, ok)))
}

/// All sequences as one batch, with their scores and the summary.
fn memorization(directory: &Directory, device: &dyn Device) -> Result<Continuations, Failure> {
    let Some(stored) = &directory.memorization else { return Ok(None) };
    let asked: Vec<Ask<'_>> =
        stored.sequences.iter().map(|s| Ask { prompt: &s.prompt, count: s.generated.len() }).collect();
    let found = if asked.is_empty() { Vec::new() } else { device.continuations(&asked)? };
    let mut ok = true;
    let mut checks = Vec::new();
    let mut scores = Vec::new();
    for (index, (wanted, found)) in stored.sequences.iter().zip(&found).enumerate() {
        let check = sequence(index, &wanted.generated, found);
        let score = Score::of(found, &wanted.continuation);
        ok &= check.differs.is_none()
            && wanted.matches.as_ref().is_none_or(|matches| *matches == score.matches)
            && wanted.score.is_none_or(|wanted| wanted == score.score());
        checks.push(check);
        scores.push(score);
    }
    let summary = summary(&scores);
    let same = |wanted: Option<f64>, found: f64| wanted.is_none_or(|wanted| (wanted - found).abs() < 1e-12);
    ok &= same(stored.memorization_score, summary.token_match);
    ok &= same(stored.k_extractable, summary.full_match);
    Ok(Some((checks, ok)))
}

fn sequence(index: usize, wanted: &[u32], found: &[u32]) -> SequenceCheck {
    let differs = wanted.iter().zip(found).position(|(a, b)| a != b);
    SequenceCheck { index, ids: wanted.len(), differs: differs.map(|at| (at, wanted[at], found[at])) }
}
