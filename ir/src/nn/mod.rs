//! The `nn` dialect from Rust: a view per op to read it, a function per op to make it.
//!
//! The parameters of ops are the types that `lapidary_models` uses for the same things, so a norm is rms or layer in
//! one enum everywhere. What an op means, shape by shape, stands in `ir/docs/nn.md`.

mod build;
mod shard;
mod train;
mod view;
mod word;

pub use build::*;
pub use shard::*;
pub use train::*;
pub use view::*;
pub use word::Anchor;

use lapidary_models::op::HeadRun;
use lapidary_models::spec::{Pairing, RopeScaling};

/// What `nn.rope` does with positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParameters {
    /// Width of a head.
    pub head_dim: u64,
    /// Leading features of each head that rotate; even, at most `head_dim`.
    pub rot_dims: u64,
    /// Which features form a pair.
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
    /// Position of the first token: the number of cached tokens.
    pub offset: u64,
}

/// What `nn.mask` hides and adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskParameters {
    /// Whether keys after the query are hidden.
    pub causal: bool,
    /// Keys further back than this are hidden; 0 for none.
    pub window: u64,
    /// ALiBi's factor on the distances; none without ALiBi.
    pub alibi: Option<f64>,
    /// Which heads of the model they are, for ALiBi's slopes; all of them where nothing is said.
    pub heads: Option<HeadRun>,
    /// Position of the first query: the number of cached tokens.
    pub offset: u64,
}

/// What `nn.fused` says about its kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedParameters {
    /// Name of the kernel, such as `attn.qkv`.
    pub name: String,
    /// The op that gives the kernel its loop.
    pub anchor: Anchor,
    /// Memory traffic that the fusion removes, in bytes.
    pub saved_bytes: u64,
    /// Why it is legal and worth it, as a sentence.
    pub reason: String,
}
