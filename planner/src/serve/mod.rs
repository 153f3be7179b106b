//! Plans for inference: how many ranks share a replica, how many sequences it holds, and what that means for the time to
//! the first token, the time between tokens and the tokens a second of the whole machine.
//!
//! A step of decoding reads every weight once and the keys and values of all sequences; its products have as many rows as
//! there are sequences. The prompt is a forward pass of the training account. Launches are taken to be queued ahead, as
//! captured graphs do, so the host sets no pace.

pub mod document;
pub mod price;

pub use document::{ServeCandidate, ServeDocument, ServeInputs};
pub use price::{Moment, moment};

use crate::assumption::of_machine;
use crate::cost::physical::Physical;
use crate::request::{Batch, PlanError};
use crate::search::divisors;
use crate::step::Work;
use lapidary_hardware::HardwareSpec;
use lapidary_models::ModelSpec;

/// What is asked of an inference plan.
#[derive(Clone, Debug)]
pub struct ServeRequest<'a> {
    /// The model, checked.
    pub model: &'a ModelSpec,
    /// The machine.
    pub machine: &'a HardwareSpec,
    /// Use this many devices of the machine; all of them when absent.
    pub devices: Option<u64>,
    /// Tokens of a prompt.
    pub prompt: u64,
    /// Tokens that are generated behind it.
    pub output: u64,
    /// Longest time to the first token, seconds.
    pub first_token_s: Option<f64>,
    /// Longest time between two tokens, seconds.
    pub between_tokens_s: Option<f64>,
    /// Tensor-parallel ranks of a replica, where they are decided already.
    pub tp: Option<u64>,
    /// Sequences at once on a replica, where they are decided already.
    pub batch: Option<u64>,
}

/// Sequences at once that a replica is tried with at most.
const MOST_SEQUENCES: u64 = 4096;

/// Plans a request.
///
/// # Errors
/// [`PlanError`] where the machine has no GPUs or not that many, or the sequences are longer than the model's.
pub fn serve(request: &ServeRequest<'_>, physical: &Physical) -> Result<ServeDocument, PlanError> {
    let machine = match request.devices {
        Some(devices) => request.machine.with_devices(devices)?,
        None => request.machine.clone(),
    };
    let longest = request.model.max_seq;
    size("prompt", request.prompt, longest.saturating_sub(1))?;
    size("output", request.output, longest - request.prompt)?;
    if machine.gpu().is_none() {
        let device = machine.device.product().to_string();
        return Err(PlanError::Arithmetic { device, precision: "GPU kernels".to_string() });
    }
    if request.model.experts.is_some() {
        return Err(PlanError::Experts { model: request.model.name.clone(), what: "inference" });
    }
    let mut candidates = Vec::new();
    for tp in divisors(machine.node.devices) {
        if request.tp.is_some_and(|wanted| wanted != tp) {
            continue;
        }
        match physical.account(request.model, tp, request.prompt) {
            Ok(work) => candidates.extend(of_ranks(request, &machine, physical, tp, &work)),
            Err(reason) => candidates.push(ServeCandidate::impossible(tp, machine.devices() / tp, reason)),
        }
    }
    if candidates.is_empty() {
        let pins = format!("tp={}", request.tp.unwrap_or_default());
        let reason = format!("tp divides the {} devices of a node", machine.node.devices);
        return Err(PlanError::Empty { pins, reason, nearest: None });
    }
    candidates.sort_by(ServeCandidate::order);
    let mut assumptions = physical.assumptions(&machine);
    assumptions.extend(of_machine(&machine, "device.peak.bf16"));
    let chosen = candidates.first().filter(|first| first.rejected_by.is_none());
    Ok(ServeDocument {
        schema: document::SCHEMA.to_string(),
        version: 1,
        inputs: ServeInputs {
            model: request.model.name.clone(),
            machine: machine.name.clone(),
            device: machine.device.product().to_string(),
            devices: machine.devices(),
            prompt: request.prompt,
            output: request.output,
            first_token_s: request.first_token_s,
            between_tokens_s: request.between_tokens_s,
        },
        chosen: chosen.map(|first| first.name.clone()),
        candidates,
        assumptions,
    })
}

fn size(name: &'static str, found: u64, largest: u64) -> Result<(), PlanError> {
    if (1..=largest).contains(&found) { Ok(()) } else { Err(PlanError::Size { name, found, largest }) }
}

/// Replicas of `tp` ranks with one, two, four and more sequences at once, up to the first that does not fit, and with as
/// many as fit and keep to the latencies.
fn of_ranks(
    request: &ServeRequest<'_>,
    machine: &HardwareSpec,
    physical: &Physical,
    tp: u64,
    work: &Work,
) -> Vec<ServeCandidate> {
    let at = |sequences: u64| of_batch(request, machine, physical, tp, sequences, work);
    if let Some(sequences) = request.batch {
        return vec![at(sequences.clamp(1, MOST_SEQUENCES))];
    }
    let powers = std::iter::successors(Some(1u64), |sequences| Some(sequences * 2));
    let mut found = Vec::new();
    let (mut kept, mut lost) = (0, MOST_SEQUENCES);
    for sequences in powers.take_while(|sequences| *sequences <= MOST_SEQUENCES) {
        let candidate = at(sequences);
        let stands = candidate.rejected_by.is_none();
        found.push(candidate);
        if !stands {
            lost = sequences;
            break;
        }
        kept = sequences;
    }
    // More sequences take more memory and more time, so the most that stand are found by halving.
    let from = kept;
    while kept > 0 && lost - kept > 1 {
        let middle = kept + (lost - kept) / 2;
        if at(middle).rejected_by.is_none() { kept = middle } else { lost = middle }
    }
    if kept > from {
        found.push(at(kept));
    }
    found
}

fn of_batch(
    request: &ServeRequest<'_>,
    machine: &HardwareSpec,
    physical: &Physical,
    tp: u64,
    sequences: u64,
    work: &Work,
) -> ServeCandidate {
    let batch = Batch { global: sequences, seq_len: request.prompt };
    let middle = request.prompt as f64 + request.output as f64 / 2.0;
    let found = moment(request.model, machine, physical, batch, tp, work, middle);
    let last =
        moment(request.model, machine, physical, batch, tp, work, (request.prompt + request.output) as f64);
    let whole = found.first_token_s + request.output as f64 * found.between_tokens_s();
    let replicas = machine.devices() / tp;
    let capacity = machine.device.memory().0.ceil() as u64;
    let bytes: u64 = last.memory_bytes.values().sum();
    let late = |name: &str, found: f64, wanted: Option<f64>| {
        let wanted = wanted.filter(|wanted| found > *wanted)?;
        Some(format!("{name}: {:.1} ms is over the {:.1} ms asked for", found * 1e3, wanted * 1e3))
    };
    let over = bytes.checked_sub(capacity).filter(|over| *over > 0).map(|over| {
        let (bytes, over) = (document::gib(bytes), document::gib(over));
        let (class, largest) = last
            .memory_bytes
            .iter()
            .max_by_key(|(_, bytes)| **bytes)
            .map_or(("", 0), |(n, b)| (n.as_str(), *b));
        format!(
            "memory: {bytes} is {over} over a device; {class} is the largest part with {}",
            document::gib(largest)
        )
    });
    let rejected_by = over
        .or_else(|| late("first token", found.first_token_s, request.first_token_s))
        .or_else(|| late("between tokens", last.between_tokens_s(), request.between_tokens_s));
    ServeCandidate {
        name: format!("tp{tp}x{replicas}-batch{sequences}"),
        tp,
        replicas,
        batch: sequences,
        first_token_s: Some(found.first_token_s),
        between_tokens_s: Some(found.between_tokens_s()),
        between_last_tokens_s: Some(last.between_tokens_s()),
        tokens_per_s: Some((sequences * request.output * replicas) as f64 / whole),
        bound_by: found.largest().map(str::to_string),
        terms_s: found.terms_s,
        memory_bytes: last.memory_bytes,
        memory_total_bytes: bytes,
        memory_capacity_bytes: capacity,
        rejected_by,
    }
}
