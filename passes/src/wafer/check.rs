//! Sizes and names that are looked at once, so that no kernel has to.

use super::error::WaferError;
use super::placed::{Layout, OpKind, Path, Placed};
use std::collections::BTreeSet;

/// Sizes and names that no kernel has to look at again.
pub fn check(placed: &Placed) -> Result<(), WaferError> {
    let size = |what: &str, found: u64, hint: String| WaferError::Size { what: what.into(), found, hint };
    if placed.width < 2 {
        return Err(size(
            "width of the grid",
            placed.width.into(),
            "sums travel round a row of at least 2 columns".into(),
        ));
    }
    let tokens = placed.tokens;
    if tokens.rows == 0 || tokens.length < tokens.rows || tokens.sequences == 0 {
        let hint = format!(
            "{} sequences of {} tokens need 1 to {} rows each",
            tokens.sequences, tokens.length, tokens.length
        );
        return Err(size("rows per sequence", tokens.rows.into(), hint));
    }
    let rows = u64::from(tokens.sequences) * u64::from(tokens.rows);
    if rows > placed.height.into() {
        return Err(size("rows in use", rows, format!("the grid has {}", placed.height)));
    }
    if let Some(heads) = placed.heads {
        let columns = u64::from(heads.blocks) * u64::from(heads.columns);
        if columns == 0 || columns > placed.width.into() || heads.dim == 0 || heads.kv == 0 || heads.ways == 0
        {
            return Err(size(
                "columns of heads",
                columns,
                format!("it must be 1 to {}, of heads that are not empty", placed.width),
            ));
        }
    }
    check_micro_batches(placed)?;
    check_sizes(placed)?;
    let mut names = BTreeSet::new();
    match placed.ops.iter().find(|op| !names.insert(&op.name)) {
        Some(op) => Err(WaferError::DuplicateOp { op: op.name.clone() }),
        None => Ok(()),
    }
}

/// What lies in memory before the run is there for one micro-batch only.
fn check_micro_batches(placed: &Placed) -> Result<(), WaferError> {
    let resident = |kind: &OpKind| {
        matches!(
            kind,
            OpKind::Input { path: Path::Resident, .. } | OpKind::Output { path: Path::Resident, .. }
        )
    };
    let found = u64::from(placed.micro_batches);
    match placed.ops.iter().find(|op| resident(&op.kind)) {
        Some(op) if found > 1 => {
            let hint = format!("{} is in memory, for one", op.name);
            Err(WaferError::Size { what: "number of micro-batches".into(), found, hint })
        }
        _ if found == 0 => {
            let hint = "one at least".into();
            Err(WaferError::Size { what: "number of micro-batches".into(), found, hint })
        }
        _ => Ok(()),
    }
}

/// Most features of a value and most tokens of a sequence: addresses within tensors stay far inside 64 bits.
const MOST: u64 = 1 << 24;

/// Sizes beyond which counts would not fit their types.
fn check_sizes(placed: &Placed) -> Result<(), WaferError> {
    let too_many = |what: String, found: u64| {
        Err(WaferError::Size { what, found, hint: format!("a wafer program counts to {MOST}") })
    };
    if u64::from(placed.tokens.length) > MOST {
        return too_many("tokens of a sequence".into(), placed.tokens.length.into());
    }
    let of_head = placed.heads.map_or(0, |heads| {
        [heads.blocks, heads.kv, heads.ways, heads.dim]
            .iter()
            .fold(1u64, |n, by| n.saturating_mul((*by).into()))
    });
    for (value, layout) in &placed.values {
        let features = match layout {
            Layout::Columns { features } | Layout::Rows { features } => u64::from(*features),
            Layout::HeadColumns { .. } | Layout::HeadTokens { .. } => of_head,
            Layout::HeadRows { heads, .. } => {
                let heads = heads.heads;
                let all = [heads.blocks, heads.kv, heads.ways, heads.dim];
                all.iter().fold(1u64, |n, by| n.saturating_mul((*by).into()))
            }
        };
        if features > MOST {
            return too_many(format!("features of {value}"), features);
        }
    }
    Ok(())
}
