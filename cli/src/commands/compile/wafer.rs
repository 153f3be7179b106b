//! The wafer side of a compilation: placement, program and its text.

use super::report::Report;
use super::{Emitted, Job};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use lapidary_ir::Module;

/// Emits the program and its text into the artifact.
pub fn emit(
    _job: &Job<'_>,
    _module: &Module<'_>,
    _artifact: &mut Artifact,
    _report: &mut Report,
    _progress: &mut Progress,
) -> Result<Emitted, Failure> {
    Err(Failure::new(Exit::Unsupported, "wafer"))
}
