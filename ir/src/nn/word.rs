//! The words that the dialect writes for the enums of models.

use lapidary_models::op::{Cache, ScaleRole};
use lapidary_models::spec::{Activation, NormKind, Pairing};

/// The op that gives a fused kernel its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anchor {
    /// One or more linears that read the same rows.
    Matmul,
    /// Scores, softmax and values without the S x L tensor in memory.
    Attention,
    /// A reduction along rows: a norm or a softmax.
    Row,
    /// Element by element.
    Elementwise,
    /// Rows of a table.
    Gather,
}

impl Anchor {
    /// Every anchor, in the order of the dialect.
    pub const ALL: [Anchor; 5] =
        [Anchor::Matmul, Anchor::Attention, Anchor::Row, Anchor::Elementwise, Anchor::Gather];

    /// The word in the IR.
    pub const fn name(self) -> &'static str {
        match self {
            Anchor::Matmul => "matmul",
            Anchor::Attention => "attention",
            Anchor::Row => "row",
            Anchor::Elementwise => "elementwise",
            Anchor::Gather => "gather",
        }
    }
}

/// An enum that the dialect writes as a word.
pub(crate) trait Word: Copy + 'static {
    /// Every value.
    const WORDS: &'static [Self];
    /// The word.
    fn word(self) -> &'static str;
    /// The value of a word.
    fn of_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().copied().find(|value| value.word() == word)
    }
}

impl Word for Anchor {
    const WORDS: &'static [Self] = &Anchor::ALL;
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Word for NormKind {
    const WORDS: &'static [Self] = &[NormKind::Rms, NormKind::Layer];
    fn word(self) -> &'static str {
        match self {
            NormKind::Rms => "rms",
            NormKind::Layer => "layer",
        }
    }
}

impl Word for Pairing {
    const WORDS: &'static [Self] = &[Pairing::Half, Pairing::Interleaved];
    fn word(self) -> &'static str {
        match self {
            Pairing::Half => "half",
            Pairing::Interleaved => "interleaved",
        }
    }
}

impl Word for Activation {
    const WORDS: &'static [Self] =
        &[Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Word for Cache {
    const WORDS: &'static [Self] = &[Cache::Key, Cache::Value];
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Word for ScaleRole {
    const WORDS: &'static [Self] = &[
        ScaleRole::MupEmbedding,
        ScaleRole::MupOutput,
        ScaleRole::MupAttention,
        ScaleRole::Attention,
        ScaleRole::Embedding,
        ScaleRole::Output,
        ScaleRole::Residual,
    ];
    fn word(self) -> &'static str {
        self.name()
    }
}
