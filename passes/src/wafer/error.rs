//! What can be wrong with a placement.

use thiserror::Error;

/// Why a placed computation cannot become a wafer program.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum WaferError {
    /// The grid is too small, or a size is zero.
    #[error("{what}: {found} does not do; {hint}")]
    Size {
        /// Which size.
        what: String,
        /// What it is.
        found: u64,
        /// What would do.
        hint: String,
    },
    /// An op names a value that does not exist.
    #[error("op {op} uses the value {value}, which is not placed")]
    UnknownValue {
        /// The op.
        op: String,
        /// The value.
        value: String,
    },
    /// Two ops have one name.
    #[error("two ops are called {op}; names of ops are names of phases and must differ")]
    DuplicateOp {
        /// The name.
        op: String,
    },
    /// An op does not take the layouts of its values.
    #[error("op {op}: {detail}")]
    Layout {
        /// The op.
        op: String,
        /// What is wrong and what would do.
        detail: String,
    },
    /// Memory of a PE is too small.
    #[error(
        "phase {phase} needs {needed} bytes in a PE of class {class}, {available} are there ({sram} less {reserved} for code{}): \
         {largest}; {}", hint_kept(*kept), hint_tokens(*tokens, *fitting)
    )]
    Memory {
        /// The class of PEs.
        class: String,
        /// The fullest phase.
        phase: String,
        /// Bytes of all buffers alive in it.
        needed: u64,
        /// Bytes for buffers.
        available: u64,
        /// Bytes of a PE.
        sram: u64,
        /// Bytes kept for code.
        reserved: u64,
        /// Bytes for what other programs keep.
        kept: u64,
        /// The largest buffers with their bytes.
        largest: String,
        /// Tokens of a row now.
        tokens: u32,
        /// Most tokens of a row that fit, 0 if none do.
        fitting: u32,
    },
    /// More colours are needed than there are.
    #[error("{needed} colours are needed, {available} are there; the routes are those of {channels}")]
    Colours {
        /// How many.
        needed: usize,
        /// How many there are.
        available: u32,
        /// What they are for.
        channels: String,
    },
    /// The wafer cannot do this yet.
    #[error("{what} is not supported on the wafer; {hint}")]
    Unsupported {
        /// What.
        what: String,
        /// What to do instead.
        hint: String,
    },
}

fn hint_kept(kept: u64) -> String {
    if kept > 0 { format!(" and {kept} for what other layers keep") } else { String::new() }
}

fn hint_tokens(tokens: u32, fitting: u32) -> String {
    match fitting {
        0 => "not even one token a row fits: use more columns or a narrower type".into(),
        _ => format!(
            "it fits with at most {fitting} tokens a row instead of {tokens}: fewer tokens per micro-batch, or more rows per sequence"
        ),
    }
}
