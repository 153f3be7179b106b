//! Running a model: sequences with their caches, prompts in, logits out.
//!
//! The new tokens of all sequences lie one after another, without padding, so prompts of different lengths and finished
//! sequences cost nothing extra.

use crate::attention::Span;
use crate::cache::{KeyValues, Place};
use crate::model::Model;
use crate::peers::{PeerError, Peers};
use crate::program::{Buffer, BufferId, Rows};
use crate::rotation::RotationTable;
use crate::rows::pitch;
use crate::step::{Company, Memory, Pass};
use thiserror::Error;

/// Why tokens cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RunError {
    /// As many token lists as sequences are needed.
    #[error("{found} token lists for {expected} sequences")]
    Batch {
        /// Lists given.
        found: usize,
        /// Sequences of the session.
        expected: usize,
    },
    /// A token id is outside of the vocabulary.
    #[error("sequence {sequence}: token {token} is not below {vocab}")]
    Token {
        /// Which sequence.
        sequence: usize,
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: u64,
    },
    /// A sequence grows past its room.
    #[error("sequence {sequence}: {length} tokens, the session has room for {room}")]
    Room {
        /// Which sequence.
        sequence: usize,
        /// Tokens it would have.
        length: usize,
        /// Tokens it may have.
        room: usize,
    },
    /// The model was built for fewer positions, or the cache would be too large.
    #[error("{sequences} sequences of {positions} positions: {why}")]
    Session {
        /// Sequences asked for.
        sequences: usize,
        /// Positions asked for.
        positions: usize,
        /// What is in the way.
        why: String,
    },
    /// No sequence has a new token.
    #[error("no tokens to run")]
    Nothing,
    /// The other ranks cannot be met.
    #[error(transparent)]
    Peers(#[from] PeerError),
}

/// Which tokens' logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The last new token of each sequence that has one.
    Last,
    /// Every new token.
    All,
}

/// Logits, one row for each token asked for: sequences in order, tokens in order.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'s> {
    data: &'s [f32],
    pitch: usize,
    width: usize,
}

impl<'s> Logits<'s> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.pitch
    }

    /// One row, of the vocabulary's width.
    pub fn row(&self, row: usize) -> &'s [f32] {
        &self.data[row * self.pitch..][..self.width]
    }
}

/// A value that a step has just written, for comparing with another implementation.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// The layer, inside the layers.
    pub layer: Option<usize>,
    /// Name of the step.
    pub step: &'a str,
    /// Name of the value, as in the graph.
    pub value: &'a str,
    /// Rows written; rows of new tokens lie sequence by sequence.
    pub rows: usize,
    /// Values per row.
    pub width: usize,
    /// Distance of rows.
    pub pitch: usize,
    /// The rows.
    pub data: &'a [f32],
}

/// Called after every step for every value written.
pub type Watch<'w> = &'w mut dyn FnMut(Observation);

/// Sequences in the middle of their generation.
pub struct Session<'m> {
    model: &'m Model,
    lengths: Vec<usize>,
    positions: usize,
    memory: Memory,
    peers: Option<&'m mut dyn Peers>,
    /// Logits that came from the last stage.
    received: Vec<f32>,
}

impl<'m> Session<'m> {
    pub(crate) fn new(
        model: &'m Model,
        sequences: usize,
        positions: usize,
        peers: Option<&'m mut dyn Peers>,
    ) -> Result<Session<'m>, RunError> {
        let program = model.program();
        let fail = |why: String| Err(RunError::Session { sequences, positions, why });
        if program.share.is_some() && peers.is_none() {
            return fail(format!(
                "the program is one rank's part of {}, and it is alone",
                program.model.name
            ));
        }
        if positions as u64 > program.model.max_seq {
            return fail(format!("{} was built for {}", program.model.name, program.model.max_seq));
        }
        if sequences == 0 || positions == 0 {
            return fail("at least one of each is needed".into());
        }
        let tokens = (sequences as u64).saturating_mul(positions as u64 + 32);
        let bytes = program.cache_bytes_per_token().saturating_mul(tokens);
        if bytes > 1 << 46 {
            return fail(format!("the cache would take {bytes} bytes"));
        }
        let layers = program.model.layers as usize;
        let cache = |c| KeyValues::new(c, layers, sequences, positions);
        let caches = match program.caches.iter().map(cache).collect::<Result<Vec<_>, _>>() {
            Ok(caches) => caches,
            Err(error) => return fail(error.to_string()),
        };
        let memory = Memory::new(
            caches,
            program.rotations.iter().map(|r| RotationTable::new(r, positions)).collect(),
            program.buffers.iter().map(|b| b.slot + 1).max().unwrap_or(0),
        );
        Ok(Session { model, lengths: vec![0; sequences], positions, memory, peers, received: Vec::new() })
    }

    /// Tokens of every sequence so far.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Most tokens of a sequence.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Forgets the tokens of a sequence from `length` on.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        if let Some(found) = self.lengths.get_mut(sequence) {
            *found = length.min(*found);
        }
    }

    /// Runs new tokens of every sequence (none for a sequence that waits) and returns logits.
    ///
    /// # Errors
    /// [`RunError`] when the tokens do not fit the session; nothing is changed then.
    pub fn extend(&mut self, tokens: &[&[u32]], which: Which) -> Result<Logits<'_>, RunError> {
        self.run(tokens, which, None)
    }

    /// Runs prompts; logits of each prompt's last token, empty prompts left out.
    ///
    /// # Errors
    /// As [`Session::extend`].
    pub fn prefill(&mut self, prompts: &[&[u32]]) -> Result<Logits<'_>, RunError> {
        self.run(prompts, Which::Last, None)
    }

    /// Runs one token of every sequence; logits of what follows.
    ///
    /// # Errors
    /// As [`Session::extend`].
    pub fn decode(&mut self, tokens: &[u32]) -> Result<Logits<'_>, RunError> {
        let lists: Vec<&[u32]> = tokens.iter().map(std::slice::from_ref).collect();
        self.run(&lists, Which::Last, None)
    }

    /// As [`Session::extend`], showing every value on the way.
    ///
    /// # Errors
    /// As [`Session::extend`].
    pub fn watch(&mut self, tokens: &[&[u32]], which: Which, watch: Watch) -> Result<Logits<'_>, RunError> {
        self.run(tokens, which, Some(watch))
    }

    fn run(&mut self, tokens: &[&[u32]], which: Which, watch: Option<Watch>) -> Result<Logits<'_>, RunError> {
        self.check(tokens)?;
        let mut pass = self.pass(tokens, which);
        self.reserve(&pass);
        let model = self.model;
        let memory = &mut self.memory;
        memory.prepare(&pass);
        // Watchers and peers stay on the caller's thread; only the work inside of steps is shared out.
        let peers = self.peers.as_mut().map(|peers| &mut **peers as &mut dyn Peers);
        match (watch, peers) {
            (None, None) => model.pool.install(|| pass.run(model, memory, &mut Company::default()))?,
            (watch, peers) => pass.run(model, memory, &mut Company { watch, peers })?,
        }
        self.lengths.iter_mut().zip(tokens).for_each(|(length, new)| *length += new.len());
        self.logits(&pass)
    }

    /// The logits of a pass, which every stage of a pipeline gets from the last.
    fn logits(&mut self, pass: &Pass) -> Result<Logits<'_>, RunError> {
        let program = &self.model.program;
        let last = program.share.as_ref().is_none_or(|share| share.stage.is_last());
        let buffer = &program.buffers[program.logits];
        let vocab = program.model.vocab;
        let (rows, width) = match last {
            true => (pass.rows(buffer.rows), buffer.width.min(vocab)),
            false => (pass.rows(Rows::Last), vocab),
        };
        let step = if last { pitch(buffer.width) } else { pitch(vocab) };
        let piped = program.share.as_ref().is_some_and(|share| share.stage.of > 1);
        let Some(peers) = self.peers.as_mut().filter(|_| piped) else {
            let data = &self.memory.slots[buffer.slot][..rows * step];
            return Ok(Logits { data, pitch: step, width: width as usize });
        };
        // The head may be padded to more columns than there are ids; what travels is not.
        let width = vocab as usize;
        self.received.clear();
        self.received.resize(rows * width, 0.0);
        if last {
            let made = self.memory.slots[buffer.slot].chunks(step);
            let into = self.received.chunks_mut(width);
            made.zip(into).for_each(|(row, into)| into.copy_from_slice(&row[..width]));
        }
        peers.broadcast_last_stage("logits", &mut self.received)?;
        Ok(Logits { data: &self.received, pitch: width, width })
    }

    fn check(&self, tokens: &[&[u32]]) -> Result<(), RunError> {
        if tokens.len() != self.lengths.len() {
            return Err(RunError::Batch { found: tokens.len(), expected: self.lengths.len() });
        }
        let vocab = self.model.program.model.vocab;
        for (sequence, (new, old)) in tokens.iter().zip(&self.lengths).enumerate() {
            let length = old + new.len();
            if length > self.positions {
                return Err(RunError::Room { sequence, length, room: self.positions });
            }
            if let Some(token) = new.iter().find(|t| u64::from(**t) >= vocab) {
                return Err(RunError::Token { sequence, token: *token, vocab });
            }
        }
        if tokens.iter().all(|new| new.is_empty()) { Err(RunError::Nothing) } else { Ok(()) }
    }

    fn pass(&self, tokens: &[&[u32]], which: Which) -> Pass {
        let mut spans = Vec::new();
        let mut places = Vec::new();
        for (sequence, (new, cached)) in
            tokens.iter().zip(&self.lengths).enumerate().filter(|(_, (n, _))| !n.is_empty())
        {
            spans.push(Span { sequence, first_row: places.len(), tokens: new.len(), cached: *cached });
            places.extend((0..new.len()).map(|i| Place { sequence, position: cached + i }));
        }
        let last = match which {
            Which::Last => spans.iter().map(|s| s.first_row + s.tokens - 1).collect(),
            Which::All => (0..places.len()).collect(),
        };
        let keys = spans.iter().map(|s| s.cached + s.tokens).max().unwrap_or(0);
        Pass { tokens: tokens.concat(), spans, places, last, keys, layer: None }
    }

    /// Makes every slot large enough.
    fn reserve(&mut self, pass: &Pass) {
        for buffer in &self.model.program.buffers {
            let slot = &mut self.memory.slots[buffer.slot];
            let size = pass.size(buffer);
            if slot.len() < size {
                slot.resize(size, 0.0);
            }
        }
        let carried = |a: BufferId, b: BufferId| {
            (self.model.program.buffers[a].slot, self.model.program.buffers[b].slot)
        };
        for (a, b) in self.model.program.carried().into_iter().map(|(a, b)| carried(a, b)) {
            let size = self.memory.slots[a].len().max(self.memory.slots[b].len());
            self.memory.slots[a].resize(size, 0.0);
            self.memory.slots[b].resize(size, 0.0);
        }
    }
}

impl Pass {
    /// Number of rows.
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.places.len(),
            Rows::Last => self.last.len(),
        }
    }

    /// Elements from one row of a buffer to the next.
    pub fn pitch(&self, buffer: &Buffer) -> usize {
        if buffer.per_key { buffer.width as usize * self.keys } else { pitch(buffer.width) }
    }

    /// Elements of a buffer.
    pub fn size(&self, buffer: &Buffer) -> usize {
        self.rows(buffer.rows) * self.pitch(buffer)
    }
}
