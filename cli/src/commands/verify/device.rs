//! What can be verified: something that runs a model and shows its values on the way.

use crate::failure::Failure;
use lapidary_passes::cpu::HostModule;
use std::collections::BTreeMap;

/// A model on a device.
pub trait Device {
    /// The model as the passes left it: what the values are called, and which factors they carry.
    fn module(&self) -> &HostModule;

    /// Runs sequences of one length and returns every value whose name is wanted, and all logits.
    ///
    /// # Errors
    /// When the device has no room.
    fn trace(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Trace, Failure>;

    /// The likeliest ids after each prompt, all prompts as one batch.
    ///
    /// # Errors
    /// When the device has no room.
    fn continuations(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, Failure>;

    /// The same for prompts that are asked each by itself, and for others that are one batch. A device to which a pass is
    /// dear may take all of them at once.
    ///
    /// # Errors
    /// When the device has no room.
    fn answers(&self, alone: &[Ask<'_>], together: &[Ask<'_>]) -> Result<Answers, Failure> {
        let one = |ask: &Ask<'_>| Ok(self.continuations(&[*ask])?.into_iter().next().unwrap_or_default());
        let alone = alone.iter().map(one).collect::<Result<_, Failure>>()?;
        let together = if together.is_empty() { Vec::new() } else { self.continuations(together)? };
        Ok((alone, together))
    }
}

/// The ids behind prompts that were asked alone, and behind those of a batch.
pub type Answers = (Vec<Vec<u32>>, Vec<Vec<u32>>);

/// A prompt that is to be continued.
#[derive(Clone, Copy)]
pub struct Ask<'p> {
    /// At least one id.
    pub prompt: &'p [u32],
    /// Ids wanted.
    pub count: usize,
    /// A guess at the answer: the answer does not depend on it, but the work of a device without a cache does.
    pub draft: &'p [u32],
}

impl Ask<'_> {
    /// Tokens that a pass needs to answer the whole question: the last answer is not fed back.
    pub fn length(&self) -> usize {
        self.prompt.len() + self.count.saturating_sub(1)
    }
}

/// Values of a run by name (`embed`, `layers.0.attn.q`); rows are tokens, sequence by sequence.
#[derive(Default)]
pub struct Trace {
    /// Values that were wanted and are somewhere in memory: inside of a kernel there are none.
    pub values: BTreeMap<String, Vec<f64>>,
    /// Rows of the vocabulary's width.
    pub logits: Vec<f64>,
}

/// Name of a value in a trace.
pub fn traced(layer: Option<usize>, node: &str) -> String {
    layer.map_or_else(|| node.to_string(), |layer| format!("layers.{layer}.{node}"))
}
