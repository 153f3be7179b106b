//! Prompts continued on a simulated wafer: where it keeps a cache, token by token; otherwise every new token is a pass over
//! the whole sequence.

use crate::failure::Failure;
use crate::wafer::{Forward, Session, Simulator};
use lapidary_models::ModelSpec;
use lapidary_runtime_cpu::{Finish, Generation, Sampler};

/// New ids of every prompt and why they end, and the cycles of all passes.
pub type Continued = (Vec<(Vec<u32>, Finish)>, u64);

/// Continues every prompt; `on_token` sees the sequence and the token as soon as it is known.
///
/// # Errors
/// Exit 4 when the sequences have no room on the wafer.
pub fn generate(
    simulator: &Simulator,
    spec: &ModelSpec,
    prompts: &[Vec<u32>],
    ask: &Generation,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Continued, Failure> {
    let mut made = Vec::new();
    let mut cycles = 0;
    for (sequence, prompt) in prompts.iter().enumerate() {
        let room = (spec.max_seq as usize).saturating_sub(prompt.len() - 1).min(ask.max_new);
        let mut ids = prompt.clone();
        let mut sampler = Sampler::new(ask.sampling);
        let mut finish = if room < ask.max_new { Finish::Room } else { Finish::Length };
        let mut source = Source::of(simulator, prompt.len() + room.max(1) - 1);
        for _ in 0..room {
            let logits = source.behind(&ids, spec.vocab as usize)?;
            let token = sampler.pick(&logits);
            on_token(sequence, token);
            ids.push(token);
            if ask.stop.contains(&token) {
                finish = Finish::Stop;
                break;
            }
        }
        cycles += source.cycles();
        made.push((ids.split_off(prompt.len()), finish));
    }
    Ok((made, cycles))
}

/// Where the logits behind a sequence come from.
enum Source<'s> {
    /// Passes over the whole sequence, with the cycles so far.
    Passes { simulator: &'s Simulator, length: usize, cycles: u64 },
    /// A cache, once the prompt has passed.
    Cache { simulator: &'s Simulator, length: usize, session: Option<Session<'s>> },
}

impl<'s> Source<'s> {
    /// For a sequence of `length` tokens in the end.
    fn of(simulator: &'s Simulator, length: usize) -> Self {
        match simulator.caches() {
            true => Source::Cache { simulator, length, session: None },
            false => Source::Passes { simulator, length, cycles: 0 },
        }
    }

    /// The logits behind the last id.
    fn behind(&mut self, ids: &[u32], vocab: usize) -> Result<Vec<f32>, Failure> {
        match self {
            Source::Passes { simulator, length, cycles } => {
                let pass = pass(simulator, ids, *length)?;
                *cycles += pass.cycles;
                Ok(pass.logits[(ids.len() - 1) * vocab..][..vocab].to_vec())
            }
            Source::Cache { simulator, length, session } => match session {
                Some(session) => session.next(ids[ids.len() - 1]),
                None => {
                    let (begun, logits) = Session::begin(simulator, ids, *length)?;
                    *session = Some(begun);
                    Ok(logits)
                }
            },
        }
    }

    fn cycles(&self) -> u64 {
        match self {
            Source::Passes { cycles, .. } => *cycles,
            Source::Cache { session, .. } => session.as_ref().map_or(0, |session| session.cycles),
        }
    }
}

/// A pass over a sequence, padded to the length that it will have in the end, so that one program serves all passes:
/// attention is causal, and what follows a token does not change it.
fn pass(simulator: &Simulator, ids: &[u32], length: usize) -> Result<Forward, Failure> {
    let mut padded = ids.to_vec();
    padded.resize(length, 0);
    simulator.forward(&[padded])
}
