//! A function of one row: straight-line code in single-assignment form over short vectors.

use crate::program::{BufferId, CacheId, ParameterId, RotationId};
use lapidary_models::spec::{Activation, NormKind};
use serde::{Deserialize, Serialize};

/// A function of one row. Value `i` may read values before `i` only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowFn {
    /// Sources and results, in order.
    pub values: Vec<RowValue>,
    /// What leaves the function.
    pub outputs: Vec<RowOutput>,
}

/// One value of a row function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowValue {
    /// Elements.
    pub width: u64,
    /// Where it comes from.
    #[serde(flatten)]
    pub op: RowOp,
}

/// A source or an operation; operands are indices of values of the same width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum RowOp {
    /// The row of a buffer.
    Buffer {
        /// Which.
        buffer: BufferId,
    },
    /// In a function over last rows: the row of a buffer with all tokens.
    LastRow {
        /// Which.
        buffer: BufferId,
    },
    /// A slice of the row of the product, in a linear step.
    Product {
        /// Its first column.
        column: u64,
    },
    /// A vector, the same for every row.
    Vector {
        /// Which.
        parameter: ParameterId,
    },
    /// The row of a table that the token id picks.
    Embedding {
        /// A table, or a matrix whose first segment is the table (a tied head).
        parameter: ParameterId,
        /// The id of its first row, where a rank holds part of the table: the rows of other ids are zero.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<u64>,
    },
    /// The row of a table that the token's position picks.
    Position {
        /// A table.
        parameter: ParameterId,
    },
    /// `a + b`.
    Add {
        /// First term.
        a: usize,
        /// Second term.
        b: usize,
    },
    /// `a b`.
    Mul {
        /// First factor.
        a: usize,
        /// Second factor.
        b: usize,
    },
    /// `by x`.
    Scale {
        /// Operand.
        x: usize,
        /// The factor.
        by: f64,
    },
    /// A pointwise function.
    Activation {
        /// Operand.
        x: usize,
        /// Which.
        function: Activation,
    },
    /// The derivative of a pointwise function.
    Slope {
        /// Operand of the function.
        x: usize,
        /// Which.
        function: Activation,
    },
    /// Derivative of a norm by its operand: with x̂ the normalised row and r one over its deviation,
    /// `r (g - mean(g) - x̂ mean(g x̂))`, without `mean(g)` for a root mean square.
    NormDx {
        /// Operand of the norm.
        x: usize,
        /// Derivative by its result, times its weight.
        g: usize,
        /// Root mean square, or mean and variance.
        kind: NormKind,
        /// Added under the root.
        eps: f64,
    },
    /// Normalised over the row.
    Norm {
        /// Operand.
        x: usize,
        /// Weight.
        weight: usize,
        /// Bias.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bias: Option<usize>,
        /// Root mean square, or mean and variance.
        kind: NormKind,
        /// Added under the root.
        eps: f64,
    },
    /// Rotated by the token's position.
    Rotate {
        /// Operand.
        x: usize,
        /// How.
        rotation: RotationId,
    },
}

/// A value that leaves the function.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowOutput {
    /// Which value.
    pub value: usize,
    /// Where it goes.
    pub to: Target,
}

/// Where a value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The row of a buffer.
    Buffer(BufferId),
    /// The cache's row of the token.
    Cache(CacheId),
}

impl RowOp {
    /// The values this one reads.
    pub fn operands(&self) -> Vec<usize> {
        match *self {
            RowOp::Add { a, b } | RowOp::Mul { a, b } => vec![a, b],
            RowOp::Scale { x, .. }
            | RowOp::Activation { x, .. }
            | RowOp::Slope { x, .. }
            | RowOp::Rotate { x, .. } => vec![x],
            RowOp::NormDx { x, g, .. } => vec![x, g],
            RowOp::Norm { x, weight, bias, .. } => [x, weight].into_iter().chain(bias).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it is read from memory and not computed.
    pub fn is_source(&self) -> bool {
        self.operands().is_empty()
    }
}

impl RowFn {
    /// Appends a value and returns its index.
    pub fn push(&mut self, width: u64, op: RowOp) -> usize {
        self.values.push(RowValue { width, op });
        self.values.len() - 1
    }

    /// Sends a value to a place.
    pub fn send(&mut self, value: usize, to: Target) {
        self.outputs.push(RowOutput { value, to });
    }
}

impl RowFn {
    /// The buffers among its outputs.
    pub fn buffers_written(&self) -> Vec<BufferId> {
        let buffer = |output: &RowOutput| match output.to {
            Target::Buffer(id) => Some(id),
            Target::Cache(_) => None,
        };
        self.outputs.iter().filter_map(buffer).collect()
    }
}
