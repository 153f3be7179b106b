//! Prompts continued on a simulated wafer: without a cache, every new token is a pass over the whole sequence.

use crate::failure::Failure;
use crate::wafer::{Forward, Simulator};
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
        for _ in 0..room {
            let pass = pass(simulator, &ids, prompt.len() + room - 1)?;
            cycles += pass.cycles;
            let token = sampler.pick(row(&pass, ids.len() - 1, spec.vocab as usize));
            on_token(sequence, token);
            ids.push(token);
            if ask.stop.contains(&token) {
                finish = Finish::Stop;
                break;
            }
        }
        made.push((ids.split_off(prompt.len()), finish));
    }
    Ok((made, cycles))
}

/// A pass over a sequence, padded to the length that it will have in the end, so that one program serves all passes:
/// attention is causal, and what follows a token does not change it.
fn pass(simulator: &Simulator, ids: &[u32], length: usize) -> Result<Forward, Failure> {
    let mut padded = ids.to_vec();
    padded.resize(length, 0);
    simulator.forward(&[padded])
}

fn row(pass: &Forward, token: usize, vocab: usize) -> &[f32] {
    &pass.logits[token * vocab..][..vocab]
}
