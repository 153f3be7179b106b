//! Continues prompts: prefill, then one token of every unfinished sequence at a time.

use crate::sample::{Sampler, Sampling};
use crate::session::{RunError, Session};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Most new tokens of each sequence.
    pub max_new: usize,
    /// Tokens that end a sequence; they are part of the result.
    pub stop: Vec<u32>,
    /// How tokens are picked; every sequence has its own random sequence from the same seed, so a batch gives what
    /// its prompts give one by one.
    pub sampling: Sampling,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// One of the stop tokens.
    Stop,
    /// As many tokens as asked for.
    Length,
    /// The session has no more room.
    Room,
}

/// Continues every prompt in a fresh session; `on_token` sees the sequence and the token as soon as it is known.
///
/// # Errors
/// [`RunError`] when the prompts do not fit the session or one of them is empty.
pub fn generate(
    session: &mut Session,
    prompts: &[&[u32]],
    ask: &Generation,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Vec<(Vec<u32>, Finish)>, RunError> {
    if prompts.iter().any(|p| p.is_empty()) {
        return Err(RunError::Nothing);
    }
    let mut made: Vec<(Vec<u32>, Option<Finish>)> = prompts.iter().map(|_| (Vec::new(), None)).collect();
    let mut samplers = vec![Sampler::new(ask.sampling); prompts.len()];
    let mut logits = session.prefill(prompts)?;
    if ask.max_new == 0 {
        return Ok(made.into_iter().map(|(tokens, _)| (tokens, Finish::Length)).collect());
    }
    loop {
        let running: Vec<usize> = (0..made.len()).filter(|s| made[*s].1.is_none()).collect();
        let picked: Vec<u32> =
            running.iter().enumerate().map(|(row, s)| samplers[*s].pick(logits.row(row))).collect();
        for (sequence, token) in running.iter().zip(&picked) {
            on_token(*sequence, *token);
            let (tokens, finish) = &mut made[*sequence];
            tokens.push(*token);
            *finish = match () {
                () if ask.stop.contains(token) => Some(Finish::Stop),
                () if tokens.len() >= ask.max_new => Some(Finish::Length),
                () if session.lengths()[*sequence] >= session.positions() => Some(Finish::Room),
                () => None,
            };
        }
        if made.iter().all(|(_, finish)| finish.is_some()) {
            return Ok(made
                .into_iter()
                .map(|(tokens, finish)| (tokens, finish.unwrap_or(Finish::Length)))
                .collect());
        }
        let next: Vec<&[u32]> = made
            .iter()
            .map(|(tokens, finish)| if finish.is_none() { &tokens[tokens.len() - 1..] } else { &[] })
            .collect();
        logits = session.prefill(&next)?;
    }
}
