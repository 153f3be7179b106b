//! What one tensor-parallel rank does for one sequence, read off its differentiated graph and a software stack:
//! products with the shapes of both derivatives, attention's contractions, bytes of row kernels, kept values.
//!
//! Everything is of one sequence; a micro-batch of `m` does `m` times the bytes and contractions, and its products
//! have `m` times the rows. Row kernels move what the op reads and writes unless the stack says otherwise
//! ([`Stack::bytes`]): fused ops move nothing of their own, single ops in 32 bits more.

use super::job::AttentionKernel;
use super::rates::Product;
use super::reading::Reading;
use super::roles::Roles;
use super::stack::Stack;
use crate::rank::rank_spec;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::{Dims, ModelSpec};

/// Which product of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `x wᵀ`.
    Forward,
    /// `dy w`.
    Input,
    /// `dyᵀ x`.
    Weight,
}

/// A product of a linear layer on this rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Which one.
    pub side: Side,
    /// Width that it reads.
    pub inputs: f64,
    /// Width that it writes.
    pub outputs: f64,
    /// Whether it belongs to the MLP, which experts stand in for.
    pub mlp: bool,
}

impl Linear {
    /// Its shape over `tokens` rows.
    pub fn product(&self, tokens: f64) -> Product {
        let (inputs, outputs) = (self.inputs, self.outputs);
        match self.side {
            Side::Forward => Product { m: tokens, n: outputs, k: inputs },
            Side::Input => Product { m: tokens, n: inputs, k: outputs },
            Side::Weight => Product { m: outputs, n: inputs, k: tokens },
        }
    }
}

/// A batched product of attention, of one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contraction {
    /// Operations, hidden keys counted.
    pub flops: f64,
    /// Bytes of operands and result.
    pub bytes: f64,
    /// Whether it contracts over a head's width; over the keys otherwise.
    pub over_head: bool,
}

/// The work of a pass over one layer, or over what stands outside the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PassWork {
    /// Products of linear layers.
    pub linears: Vec<Linear>,
    /// Contractions of attention's core.
    pub core: Vec<Contraction>,
    /// Bytes of row kernels over attention's scores.
    pub score_bytes: f64,
    /// Bytes of row kernels over the residual stream, which sequence parallelism splits.
    pub stream_bytes: f64,
    /// Bytes of row kernels over what tensor parallelism splits, but for the inside of the MLP.
    pub split_bytes: f64,
    /// Bytes of row kernels over the inner width of the MLP.
    pub inner_bytes: f64,
}

/// Bytes that a layer keeps of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kept {
    /// Of the residual stream.
    pub stream: f64,
    /// Of what tensor parallelism splits, but for the inside of the MLP.
    pub split: f64,
    /// Of the inner width of the MLP.
    pub inner: f64,
}

impl std::ops::Add for Kept {
    type Output = Kept;

    fn add(self, other: Kept) -> Kept {
        Kept {
            stream: self.stream + other.stream,
            split: self.split + other.split,
            inner: self.inner + other.inner,
        }
    }
}

/// The work of a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// One layer, forward.
    pub forward: PassWork,
    /// One layer, backward; where attention is one kernel, with the scores that it computes again.
    pub backward: PassWork,
    /// What selective recomputation runs again: attention's core, or norms and pointwise ops where that is one kernel.
    pub selective: PassWork,
    /// What full recomputation runs again.
    pub full: PassWork,
    /// What a layer keeps without recomputation, with selective and with full.
    pub kept: [Kept; 3],
    /// Embedding, forward and backward.
    pub embedding: (PassWork, PassWork),
    /// Final norm, head and loss, forward and backward.
    pub head: (PassWork, PassWork),
}

/// Rows of the vocabulary on one rank, padded as a stack does.
pub fn vocabulary_rows(whole: u64, tensor: u64, stack: &Stack) -> u64 {
    match tensor == 1 && !stack.pads_whole_vocab {
        true => whole,
        false => whole.next_multiple_of(128 * tensor) / tensor,
    }
}

/// Names of row kernels in stack files.
pub const KEYS: [&str; 28] = [
    "norm",
    "norm-dx",
    "norm-dw",
    "add",
    "add-sum",
    "bias",
    "column-sum",
    "gate",
    "gate-dx",
    "activation",
    "activation-dx",
    "mul",
    "mul-dx",
    "rope",
    "rope-dx",
    "multiplier",
    "scale",
    "scale-dx",
    "mask",
    "mask-dx",
    "softmax",
    "softmax-dx",
    "embed",
    "embed-dw",
    "position",
    "position-dw",
    "cross-entropy",
    "cross-entropy-dx",
];

impl Work {
    /// The work of a rank among `tensor` ranks that train `spec` at `seq_len` tokens.
    ///
    /// # Errors
    /// What does not divide, or the dimension that a graph refuses, as a sentence.
    pub fn new(
        spec: &ModelSpec,
        tensor: u64,
        seq_len: u64,
        stack: &Stack,
        attention: AttentionKernel,
        fused_norm: bool,
    ) -> Result<Work, String> {
        let mut rank = rank_spec(&spec.dense(), tensor)?;
        rank.vocab = vocabulary_rows(spec.vocab_padded_to.unwrap_or(spec.vocab), tensor, stack);
        let dims = Dims { batch: 1, seq: seq_len, cached: 0 };
        let of = |policy| training(&rank, dims, &Policy::Uniform(policy)).map_err(|error| error.to_string());
        let (core, full) = (of(Recompute::Selective)?, of(Recompute::Full)?);
        let roles = Roles::of(&[core.graph.layer(), core.graph.main()]);
        let reading =
            Reading { stack, attention, fused_norm, gated: spec.mlp.gated, width: rank.d_model, roles };
        let whole = of(Recompute::None)?;
        Ok(reading.work(&whole, &core, &full))
    }
}
