//! Drops ops whose results nobody reads and that do nothing else.
//!
//! before: %0 = nn.linear %x, %w; %1 = nn.linear %x, %v; return %1        after: %1 = nn.linear %x, %v; return %1
//!
//! What else an op does is said by its definition: `nn.kv_append` writes a cache and stays. Functions that nobody calls
//! are left to `symbol-dce`.

use crate::pass::{Changed, Pass, PassCx, PassError};
use lapidary_ir::Op;

/// The pass.
pub struct Dce;

impl Pass for Dce {
    fn name(&self) -> &'static str {
        "dce"
    }

    fn summary(&self) -> &'static str {
        "drop ops whose results nobody reads"
    }

    fn run(&self, module: Op<'_>, _: &PassCx) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        // Readers come after what they read, so one way back finds whole chains.
        for op in module.walk().into_iter().rev() {
            if op != module && op.is_dead() {
                op.erase()?;
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }
}
