//! Decides how tokens lie over rows and heads over columns.
//!
//! - **Features over columns, tokens over rows**, for every value: then residuals, norms, activations and linear layers
//!   meet without moving anything (see [`super`]). Columns run along x, so that weights enter through one edge only.
//! - **Heads**: as many blocks of columns as there are key/value heads, if there are that many columns, otherwise as many
//!   as divide them: a block then holds whole heads, and scores never leave it. Columns that are left over stay without
//!   heads; they still hold their features of everything else.
//! - **Sequences**: as many at once as there are, each with as many rows as that leaves it, or with fewer where these take
//!   fewer cycles ([`super::spread`]). A weight costs a PE a fixed number of cycles beside those of its tokens, and the links
//!   the same bytes whatever the number of tokens, so more tokens at once are cheaper per token. If there are more
//!   sequences than rows, each gets one row and the rest waits for the next micro-batch.
//! - **SRAM decides last**: as long as a placement does not fit, sequences get one more row each, and fewer fit at once.

use super::error::WaferError;
use super::placed::{Heads, Placed, Tokens};
use super::{WaferSpec, memory_peak};

/// Heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Features of a head.
    pub dim: u32,
}

/// Blocks of columns for the heads.
pub fn place_heads(width: u32, shape: HeadShape) -> Heads {
    let HeadShape { heads, kv_heads, dim } = shape;
    let kv_heads = kv_heads.max(1);
    let blocks = (1..=kv_heads.min(width)).rev().find(|blocks| kv_heads % blocks == 0).unwrap_or(1);
    let (kv, ways) = (kv_heads / blocks, heads / kv_heads);
    // A column without a feature of its block would have nothing to do in the layers before and after.
    let columns = (width / blocks).clamp(1, (kv * ways).saturating_mul(dim).max(1));
    Heads { blocks, columns, kv, ways, dim }
}

/// Rows for up to `sequences` sequences of `length` tokens, at least `rows` each.
pub fn place_tokens(height: u32, sequences: u32, length: u32, rows: u32) -> Tokens {
    let each = (height / sequences.max(1)).max(rows).clamp(1, length.max(1)).min(height.max(1));
    Tokens { sequences: sequences.min(height / each).max(1), length, rows: each }
}

/// Gives sequences more rows until the memory of every PE suffices.
///
/// # Errors
/// [`WaferError::Memory`] if even one sequence over all rows does not fit; other faults of the placement.
pub fn fit_tokens(placed: Placed, sequences: u32, spec: &WaferSpec) -> Result<Placed, WaferError> {
    let length = placed.tokens.length;
    let mut placed = Placed { tokens: place_tokens(placed.height, sequences, length, 1), ..placed };
    loop {
        let fault = match memory_peak(&placed, spec) {
            Ok(_) => return Ok(placed),
            Err(fault @ WaferError::Memory { .. }) => fault,
            Err(fault) => return Err(fault),
        };
        let tokens = place_tokens(placed.height, sequences, length, placed.tokens.rows + 1);
        if tokens.rows == placed.tokens.rows {
            return Err(fault);
        }
        placed.tokens = tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_has_its_columns() {
        let crystal = HeadShape { heads: 32, kv_heads: 32, dim: 128 };
        assert_eq!(place_heads(994, crystal), Heads { blocks: 32, columns: 31, kv: 1, ways: 1, dim: 128 });
        let grouped = HeadShape { heads: 32, kv_heads: 8, dim: 128 };
        assert_eq!(place_heads(750, grouped), Heads { blocks: 8, columns: 93, kv: 1, ways: 4, dim: 128 });
        assert_eq!(place_heads(6, grouped), Heads { blocks: 4, columns: 1, kv: 2, ways: 4, dim: 128 });
    }

    #[test]
    fn sequences_share_the_rows() {
        assert_eq!(place_tokens(994, 66, 2048, 1), Tokens { sequences: 66, length: 2048, rows: 15 });
        assert_eq!(place_tokens(750, 66, 2048, 1), Tokens { sequences: 66, length: 2048, rows: 11 });
        assert_eq!(place_tokens(750, 1, 2048, 1), Tokens { sequences: 1, length: 2048, rows: 750 });
        assert_eq!(place_tokens(16, 100, 8, 1), Tokens { sequences: 16, length: 8, rows: 1 });
        assert_eq!(place_tokens(16, 2, 4, 1), Tokens { sequences: 2, length: 4, rows: 4 });
    }
}
