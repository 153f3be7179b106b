//! What a wafer is to compute and where: values with layouts, and the ops between them, as plain data.
//!
//! Every value is a matrix of tokens by features. Tokens always lie over the rows of PEs; what differs is how the
//! tokens of one row and their features lie over the columns (see [`Layout`]).

mod backward;
mod forward;
mod op;
mod resident;

pub use backward::{AttentionDx, ColumnSum, Gather, Gradient, Loss, LossDx, NormDw, NormDx, Outer, TableDw};
pub use forward::{
    Activation, Attention, Linear, Map, Norm, NormKind, Pairing, Parameter, Path, Rope, Segment, Source, Step,
};
pub use op::{OpKind, PlacedOp};
pub use resident::{CachedAttention, RowHeads, Turn};

use super::error::WaferError;
use super::tile::{Blocks, Tiles};
use lapidary_models::dtype::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A computation placed on a rectangle of PEs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// How tokens lie over the rows.
    pub tokens: Tokens,
    /// How often the program runs over as many tokens, one micro-batch after the other; more than once only where inputs
    /// and outputs stream.
    pub micro_batches: u32,
    /// Whether parameters lie in the memory of the PEs that use them, and all rows of PEs have the same one token; otherwise
    /// parameters stream in, and tokens lie over the rows.
    pub resident: bool,
    /// How attention heads lie over the columns, where there are any.
    pub heads: Option<Heads>,
    /// Element type of all values, and of weights on the fabric.
    pub dtype: DType,
    /// Layout by value name.
    pub values: BTreeMap<String, Layout>,
    /// In the order of execution.
    pub ops: Vec<PlacedOp>,
}

/// Rows of fewer tokens take a few percent longer for one more.
const THIN: u32 = 20;

/// `sequences` x `length` tokens; every sequence has `rows` rows of PEs for itself, one sequence below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// How many sequences are on the wafer at once.
    pub sequences: u32,
    /// Tokens of a sequence.
    pub length: u32,
    /// Rows of PEs that share a sequence.
    pub rows: u32,
}

impl Tokens {
    /// Tokens of a sequence over its rows. Rows that share a weight go at the pace of the slowest. Level flow lets them go
    /// on, so where a token more tells, the last rows have it: they see most keys and end last.
    pub fn tiles(self) -> Tiles {
        let few = self.length / self.rows.max(1) < THIN;
        if few { Tiles::large_last(self.length, self.rows) } else { Tiles::new(self.length, self.rows) }
    }

    /// Rows of PEs over sequences.
    pub fn blocks(self) -> Blocks {
        Blocks { count: self.sequences, size: self.rows.max(1) }
    }

    /// Tokens of one micro-batch.
    pub fn total(self) -> u64 {
        u64::from(self.sequences) * u64::from(self.length)
    }
}

/// Attention heads over blocks of neighbouring columns. A block holds whole key/value heads with their query heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// How many blocks of columns.
    pub blocks: u32,
    /// Columns of a block.
    pub columns: u32,
    /// Key/value heads of a block.
    pub kv: u32,
    /// Query heads that share a key/value head.
    pub ways: u32,
    /// Features of a head.
    pub dim: u32,
}

impl Heads {
    /// Columns over blocks.
    pub fn column_blocks(self) -> Blocks {
        Blocks { count: self.blocks, size: self.columns.max(1) }
    }

    /// Query features of a block.
    pub fn query_features(self) -> u32 {
        self.kv * self.ways * self.dim
    }

    /// Key (or value) features of a block.
    pub fn key_features(self) -> u32 {
        self.kv * self.dim
    }

    /// Features of the query heads of a block, or of its key/value heads.
    pub fn features(self, queries: bool) -> u32 {
        if queries { self.query_features() } else { self.key_features() }
    }
}

/// How a value lies over the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Features over all columns; a PE holds `[its features][the tokens of its row]`.
    Columns {
        /// Features of the value.
        features: u32,
    },
    /// Features of a head block over the columns of that block; a PE holds `[its features][the tokens of its row]`.
    HeadColumns {
        /// Query heads, not key/value heads.
        queries: bool,
    },
    /// Tokens of a row over the columns of each head block; a PE holds `[head][its tokens][features of a head]` of its
    /// block, so that everything within a head is local. `queries`: all query heads, otherwise key/value heads.
    HeadTokens {
        /// Query heads, not key/value heads.
        queries: bool,
    },
    /// Features over all rows, the same in every column; of one token.
    Rows {
        /// Features of the value.
        features: u32,
    },
    /// Features of a head block over the rows of that block, the same in every column; of one token.
    HeadRows {
        /// How heads lie over rows.
        heads: RowHeads,
        /// Query heads, not key/value heads.
        queries: bool,
    },
}

impl Layout {
    /// Whether features lie over rows of PEs.
    pub fn is_over_rows(self) -> bool {
        matches!(self, Layout::Rows { .. } | Layout::HeadRows { .. })
    }
}

impl Placed {
    /// Rows of PEs in use.
    pub fn rows(&self) -> u32 {
        if self.resident { self.height } else { self.tokens.blocks().lines() }
    }

    /// Features of a layout in the fullest line of PEs that they lie over.
    pub fn fullest(&self, layout: Layout) -> u64 {
        let tile = |features: u32, lines: u32| u64::from(Tiles::new(features, lines).largest());
        match (layout, self.heads) {
            (Layout::Columns { features }, _) => tile(features, self.width),
            (Layout::Rows { features }, _) => tile(features, self.rows()),
            (Layout::HeadRows { heads, queries }, _) => u64::from(heads.own(0) * heads.count(queries)),
            (Layout::HeadColumns { queries }, Some(heads)) => tile(heads.features(queries), heads.columns),
            (Layout::HeadTokens { queries }, Some(heads)) => u64::from(heads.features(queries)),
            (Layout::HeadColumns { .. } | Layout::HeadTokens { .. }, None) => 0,
        }
    }

    /// Layout of a value, or the fault that there is none.
    pub fn layout(&self, op: &PlacedOp, value: &str) -> Result<Layout, WaferError> {
        self.values
            .get(value)
            .copied()
            .ok_or_else(|| WaferError::UnknownValue { op: op.name.clone(), value: value.into() })
    }

    /// The heads, or the fault that there are none.
    pub fn heads(&self, op: &str) -> Result<Heads, WaferError> {
        self.heads.ok_or_else(|| WaferError::Layout { op: op.into(), detail: "no heads are placed".into() })
    }

    /// Features of a layout over the whole row.
    pub fn features(&self, layout: Layout) -> u32 {
        match layout {
            Layout::Columns { features } | Layout::Rows { features } => features,
            Layout::HeadRows { heads, queries } => {
                heads.heads.blocks * heads.count(queries) * heads.heads.dim
            }
            Layout::HeadColumns { queries } | Layout::HeadTokens { queries } => {
                self.heads.map_or(0, |heads| heads.blocks * heads.features(queries))
            }
        }
    }
}
