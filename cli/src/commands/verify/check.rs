//! Comparing what a device computes with what is stored.

use super::device::{Ask, Device};
use super::directory::{Directory, Expected, Greedy, Memorization, Skipped};
use super::views::Views;
use crate::commands::memorization::score::{Score, summary};
use crate::failure::{Exit, Failure};
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
    /// Share of a tensor's largest value that short numbers may lose on top.
    pub rounding: f64,
    /// Share of tokens whose likeliest id has to be the stored one; none where continuations have to be exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argmax: Option<f64>,
}

/// For models of order-one activations: the f32 gaps of the stored implementations stay below 1e-4 and 3e-7.
const LEAST: Tolerances = Tolerances { logits: 2e-4, hidden: 2e-4, loss: 1e-5, rounding: 0.0, argmax: None };

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
            ..LEAST
        }
    }

    /// The tolerances where activations and weights are short numbers of `bits` significant bits and sums are not.
    ///
    /// The stored implementation says how far its own bf16 logits are off and how many of its likeliest ids change. Who
    /// rounds at other places may be off by twice as much, and by one id more. What bf16 loses with its 8 bits, a type of
    /// more bits loses as many halvings less.
    ///
    /// # Errors
    /// Exit 3 when `meta.json` does not say it.
    pub fn rounded(directory: &Directory, bits: i32) -> Result<Tolerances, Failure> {
        let noise = &directory.meta.noise;
        let (Some(rounded), Some(largest)) = (noise.bfloat16, noise.logits_max_abs.filter(|max| *max > 0.0))
        else {
            let file = directory.folder.join("meta.json");
            let what = "key noise: bfloat16 and logits_max_abs are needed to judge short numbers";
            return Err(Failure::new(Exit::InvalidInput, format!("{}: {what}", file.display())));
        };
        let rounding = 2.0 * rounded.logits / largest * 2f64.powi(8 - bits);
        let tokens: usize = directory.ids.iter().map(Vec::len).sum();
        let argmax = 1.0 - 2.0 * (1.0 - rounded.argmax_agreement) - 1.0 / tokens.max(1) as f64;
        Ok(Tolerances { rounding, argmax: Some(argmax), ..Tolerances::of(directory) })
    }

    fn of_tensor(&self, expected: &Expected) -> f64 {
        let least = if expected.name == "logits" { self.logits } else { self.hidden };
        let largest = expected.data.iter().fold(0f64, |most, x| most.max(x.abs()));
        least + self.rounding * largest
    }

    /// The loss moves by no more than twice what the logits move by.
    fn of_loss(&self, logits: f64) -> f64 {
        if self.rounding > 0.0 { 2.0 * logits } else { self.loss }
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
    /// How large it may be.
    pub tolerance: f64,
    /// Whether it is within the tolerance.
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
    /// Allowed between the two.
    pub tolerance: f64,
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
    /// Share of tokens whose likeliest id is the stored one, where that is what counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argmax_agreement: Option<f64>,
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
        let tolerance = allowed.of_tensor(expected);
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
    let stored_logits = directory.expected.iter().find(|expected| expected.name == "logits");
    let logits_tolerance = stored_logits.map_or(allowed.logits, |logits| allowed.of_tensor(logits));
    let loss = loss_check(directory, &trace.logits, allowed.of_loss(logits_tolerance));
    let vocab = directory.spec.vocab as usize;
    let argmax_agreement =
        allowed.argmax.and(stored_logits).map(|stored| agreement(stored, &trace.logits, vocab));
    let (greedy, memorization) = match allowed.argmax {
        None => continued(directory, device)?,
        Some(_) => {
            let what = "continuations".to_string();
            not_checked.push(Skipped { what, why: "only exact where numbers are not rounded short".into() });
            (None, None)
        }
    };
    let all_match = |checks: &Option<(Vec<SequenceCheck>, bool)>| checks.as_ref().map(|(_, ok)| *ok);
    let (greedy_match, memorization_match) = (all_match(&greedy), all_match(&memorization));
    let ok = tensors.iter().all(|tensor| tensor.ok)
        && loss.is_none_or(|loss| loss.ok)
        && argmax_agreement.zip(allowed.argmax).is_none_or(|(found, least)| found >= least)
        && greedy_match != Some(false)
        && memorization_match != Some(false);
    let list = |checks: Option<(Vec<SequenceCheck>, bool)>| checks.map_or_else(Vec::new, |(list, _)| list);
    Ok(Checks {
        tensors,
        loss,
        argmax_agreement,
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
        tolerance,
        ok: worst <= tolerance,
        node: String::new(),
        op: "",
        from: None,
    }
}

fn loss_check(directory: &Directory, logits: &[f64], tolerance: f64) -> Option<LossCheck> {
    let expected = directory.meta.loss?;
    let found = loss(&directory.ids, logits, directory.spec.vocab as usize)?;
    Some(LossCheck { expected, found, tolerance, ok: (found - expected).abs() <= tolerance })
}

/// Share of rows whose largest value is in the column where the stored row has it.
fn agreement(stored: &Expected, found: &[f64], vocab: usize) -> f64 {
    let width = stored.shape[2];
    let largest = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let pairs = stored.data.chunks_exact(width).zip(found.chunks_exact(vocab));
    let alike = pairs.filter(|(stored, found)| largest(&stored[..vocab]) == largest(found)).count();
    alike as f64 / (stored.data.len() / width).max(1) as f64
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

/// The greedy continuations and the remembered sequences, these as one batch.
fn continued(directory: &Directory, device: &dyn Device) -> Result<(Continuations, Continuations), Failure> {
    let cases = directory.greedy.iter().flat_map(|greedy| &greedy.cases);
    let alone: Vec<Ask<'_>> = cases
        .map(|case| Ask { prompt: &case.prompt, count: case.continuation.len(), draft: &case.continuation })
        .collect();
    let sequences = directory.memorization.iter().flat_map(|stored| &stored.sequences);
    let together: Vec<Ask<'_>> =
        sequences.map(|s| Ask { prompt: &s.prompt, count: s.generated.len(), draft: &s.generated }).collect();
    let (alone, together) = device.answers(&alone, &together)?;
    let greedy = directory.greedy.as_ref().map(|stored| greedy(stored, &alone));
    Ok((greedy, directory.memorization.as_ref().map(|stored| memorization(stored, &together))))
}

fn greedy(stored: &Greedy, found: &[Vec<u32>]) -> (Vec<SequenceCheck>, bool) {
    let cases = stored.cases.iter().zip(found).enumerate();
    let checks: Vec<_> =
        cases.map(|(index, (case, found))| sequence(index, &case.continuation, found)).collect();
    let ok = checks.iter().all(|check| check.differs.is_none());
    (checks, ok)
}

/// The sequences with their scores and the summary.
fn memorization(stored: &Memorization, found: &[Vec<u32>]) -> (Vec<SequenceCheck>, bool) {
    let mut ok = true;
    let mut checks = Vec::new();
    let mut scores = Vec::new();
    for (index, (wanted, found)) in stored.sequences.iter().zip(found).enumerate() {
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
    (checks, ok)
}

fn sequence(index: usize, wanted: &[u32], found: &[u32]) -> SequenceCheck {
    let differs = wanted.iter().zip(found).position(|(a, b)| a != b);
    SequenceCheck { index, ids: wanted.len(), differs: differs.map(|at| (at, wanted[at], found[at])) }
}
