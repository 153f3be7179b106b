//! Prompts continued on a device: prefill in pieces, then one graph per token that decodes, picks and feeds back.
//!
//! ```text
//! prompt but its last token --prefill programs, largest piece first--> cache
//! last token --decode--> logits --sampler--> token, its place in the history, the next position --decode--> ..
//! ```
//! The host sees tokens only when it asks: a picked token goes into the decode program's input on the device. All
//! sequences of a session have prompts of one length, because a program has one position for all of them.
use crate::compile::Source;
use crate::device::{Device, DeviceError, GraphId, MarkId};
use crate::execute::{Loaded, Places, capture};
use crate::program::{BufferKind, Checked, GpuProgram};
use std::collections::BTreeMap;

/// Tokens of a prompt that one program takes at once; what is left goes through the decode program.
pub const PIECES: [u64; 3] = [1024, 128, 16];

/// The pieces of a prompt without its last token, which decoding takes, the largest first; the rest goes one by one.
pub fn pieces(prompt: u64) -> Vec<u64> {
    let mut left = prompt.saturating_sub(1);
    let mut pieces = Vec::new();
    for size in PIECES {
        pieces.extend((0..left / size).map(|_| size));
        left %= size;
    }
    pieces
}

/// A program and the texts of its kernels.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Checked.
    pub program: Checked<GpuProgram>,
    /// One per generated kernel.
    pub sources: Vec<Source>,
}

/// What a session runs. All programs are of one model, batch and capacity.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// One new token behind a cache.
    pub decode: Part,
    /// By their number of new tokens.
    pub prefill: BTreeMap<u64, Part>,
    /// Picks tokens from the decode program's logits.
    pub sampler: Part,
    /// Name of the decode program's logits, which the sampler calls `logits`.
    pub logits: String,
    /// Sequences.
    pub batch: usize,
    /// Positions of the cache.
    pub capacity: usize,
}

/// How tokens are picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Picking {
    /// Divides the logits; 0 picks the largest.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Only the likeliest tokens whose probabilities reach this sum; 1 for all.
    pub top_p: f32,
    /// Start of every sequence's random numbers.
    pub seed: u64,
}

/// Tokens that are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Set behind the last of them.
    done: MarkId,
    /// Tokens of each sequence before them.
    first: usize,
    steps: usize,
}

/// Sequences that are being continued.
#[derive(Debug)]
pub struct Session {
    decode: Loaded,
    prefill: BTreeMap<u64, Loaded>,
    sampler: Loaded,
    graph: GraphId,
    batch: usize,
    capacity: usize,
    /// Positions whose keys and values are in the cache.
    cached: usize,
    /// Tokens picked so far.
    made: usize,
}

impl Session {
    /// Loads the programs beside weights that have their places, and gives them one cache.
    ///
    /// # Errors
    /// When it does not fit, or what the device says.
    pub fn new(device: &mut dyn Device, parts: &Parts, weights: &Places) -> Result<Session, DeviceError> {
        let decode = Loaded::new(device, &parts.decode.program, &parts.decode.sources, weights)?;
        let mut shared = weights.clone();
        for buffer in decode.program().buffers.iter().filter(|b| b.kind == BufferKind::Cache) {
            shared.insert(buffer.name.clone(), decode.address(&buffer.name)?);
        }
        let mut prefill = BTreeMap::new();
        for (piece, part) in &parts.prefill {
            prefill.insert(*piece, Loaded::new(device, &part.program, &part.sources, &shared)?);
        }
        let mut fed = Places::from([("logits".to_string(), decode.address(&parts.logits)?)]);
        for name in ["ids", "cached"] {
            if decode.program().buffer(name).is_some() {
                fed.insert(name.into(), decode.address(name)?);
            }
        }
        let sampler = Loaded::new(device, &parts.sampler.program, &parts.sampler.sources, &fed)?;
        let mut step = |device: &mut dyn Device| {
            decode.run(device)?;
            sampler.run(device)
        };
        // Once outside of a graph, on harmless tokens: drivers may put a kernel on the device only when it first runs.
        for (name, at) in fed.iter().filter(|(name, _)| *name != "logits") {
            let bytes = decode.program().buffer(name).map_or(0, |buffer| buffer.bytes);
            device.fill(*at, 0, bytes)?;
        }
        step(device)?;
        let graph = capture(device, &mut step)?;
        let (batch, capacity) = (parts.batch, parts.capacity);
        Ok(Session { decode, prefill, sampler, graph, batch, capacity, cached: 0, made: 0 })
    }

    /// Feeds prompts of one length and sets how tokens are picked behind them. Whatever was there is forgotten.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] for prompts that are empty, of different lengths or longer than the cache.
    pub fn begin(
        &mut self,
        device: &mut dyn Device,
        prompts: &[&[u32]],
        picking: Picking,
    ) -> Result<(), DeviceError> {
        let length = prompts.first().map_or(0, |prompt| prompt.len());
        let alike = prompts.len() == self.batch && prompts.iter().all(|prompt| prompt.len() == length);
        if !alike || length == 0 || length > self.capacity {
            let what = format!("{} prompts for {} sequences of {}", prompts.len(), self.batch, self.capacity);
            return Err(DeviceError::Mismatch(what));
        }
        self.set(device, picking)?;
        self.cached = 0;
        for piece in pieces(length as u64) {
            let missing = || DeviceError::Mismatch(format!("no program takes {piece} tokens"));
            let program = self.prefill.get(&piece).ok_or_else(missing)?;
            feed(device, program, prompts, self.cached, piece as usize)?;
            program.run(device)?;
            self.cached += piece as usize;
        }
        while self.cached + 1 < length {
            feed(device, &self.decode, prompts, self.cached, 1)?;
            self.decode.run(device)?;
            self.cached += 1;
        }
        feed(device, &self.decode, prompts, self.cached, 1)
    }

    fn set(&mut self, device: &mut dyn Device, picking: Picking) -> Result<(), DeviceError> {
        let settings = [picking.temperature, picking.top_p, picking.top_k as f32, 0.0];
        let settings: Vec<u8> = settings.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.sampler.write(device, "settings", &settings)?;
        // Two words of each sequence: the halves of its seed.
        let random: Vec<u8> = (0..self.batch).flat_map(|_| picking.seed.to_le_bytes()).collect();
        self.sampler.write(device, "random", &random)?;
        self.sampler.write(device, "made", &vec![0; 4 * self.batch])?;
        self.made = 0;
        Ok(())
    }

    /// Positions that are left: as many tokens can still be picked.
    pub fn room(&self) -> usize {
        let fed = self.capacity - self.cached;
        fed.min(self.longest() - self.made)
    }

    /// Tokens that the history holds.
    fn longest(&self) -> usize {
        let history = self.sampler.program().buffer("history");
        history.and_then(|buffer| buffer.shape.last()).map_or(0, |steps| *steps as usize)
    }

    /// Puts `steps` more tokens of each sequence into the device's stream, and does not wait for them.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] beyond [`Session::room`], and what the device says.
    pub fn start(&mut self, device: &mut dyn Device, steps: usize) -> Result<Started, DeviceError> {
        if steps > self.room() {
            return Err(DeviceError::Mismatch(format!("{steps} tokens where {} fit", self.room())));
        }
        (0..steps).try_for_each(|_| device.replay(self.graph))?;
        let started = Started { done: device.mark()?, first: self.made, steps };
        (self.made, self.cached) = (self.made + steps, self.cached + steps);
        Ok(started)
    }

    /// The tokens of a start, once they are made; what was started since goes on meanwhile. A list per step with one token
    /// per sequence.
    ///
    /// # Errors
    /// What the device says.
    pub fn take(&self, device: &mut dyn Device, started: &Started) -> Result<Vec<Vec<u32>>, DeviceError> {
        let pitch = self.sampler.program().buffer("history").map_or(0, |buffer| buffer.pitch as usize);
        let mut bytes = vec![0; self.batch * pitch * 4];
        device.read_behind(started.done, self.sampler.address("history")?, &mut bytes)?;
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let at = |step: usize, sequence: usize| words[sequence * pitch + started.first + step];
        let made =
            (0..started.steps).map(|step| (0..self.batch).map(|sequence| at(step, sequence)).collect());
        Ok(made.collect())
    }

    /// Gives the session's memory back; weights stay.
    ///
    /// # Errors
    /// What the device says.
    pub fn release(self, device: &mut dyn Device) -> Result<(), DeviceError> {
        let programs = self.prefill.into_values().chain([self.sampler, self.decode]);
        programs.into_iter().try_for_each(|program| program.release(device))
    }
}

/// Sets a program's tokens, `count` of every sequence from `first` on, and their position.
fn feed(
    device: &mut dyn Device,
    program: &Loaded,
    prompts: &[&[u32]],
    first: usize,
    count: usize,
) -> Result<(), DeviceError> {
    let pitch = program.program().buffer("ids").map_or(count, |ids| ids.pitch as usize);
    let mut bytes = vec![0u8; prompts.len() * pitch * 4];
    for (row, prompt) in bytes.chunks_exact_mut(pitch * 4).zip(prompts) {
        let words = row.chunks_exact_mut(4).zip(&prompt[first..first + count]);
        words.for_each(|(to, id)| to.copy_from_slice(&id.to_le_bytes()));
    }
    // Later stages of a pipeline hear of tokens from the one before.
    if program.program().buffer("ids").is_some() {
        program.write(device, "ids", &bytes)?;
    }
    match program.program().buffer("cached") {
        Some(_) => program.write(device, "cached", &(first as u32).to_le_bytes()),
        None if first == 0 => Ok(()),
        None => Err(DeviceError::Mismatch("a program without a cache behind a cache".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_the_last_token_and_less_than_the_smallest_piece() {
        assert!(pieces(1).is_empty());
        assert!(pieces(16).is_empty());
        assert_eq!(pieces(17), [16]);
        assert_eq!(pieces(2047), [1024, 128, 128, 128, 128, 128, 128, 128, 16, 16, 16, 16, 16, 16, 16]);
        for prompt in 1..5000 {
            let taken: u64 = pieces(prompt).iter().sum();
            assert!(taken < prompt && prompt - taken <= 16, "{prompt}");
        }
    }
}
