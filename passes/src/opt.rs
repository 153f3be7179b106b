//! What `lapidary-opt` does: text in, a pipeline, text out.

use crate::pass::placeless;
use crate::pipeline::Pipeline;
use crate::report::PipelineReport;
use crate::run::{RunError, Watch, run as run_pipeline};
use lapidary_ir::{Diagnostic, IrContext, IrError, Module};

/// The module of a file after a pipeline.
#[derive(Clone, Debug)]
pub struct Output {
    /// The module.
    pub text: String,
    /// What happened.
    pub report: PipelineReport,
}

/// Parses `text` (called `file` in diagnostics), runs `pipeline` and prints the module.
///
/// # Errors
/// Every diagnostic, with file, line and column.
pub fn run(text: &str, file: &str, pipeline: &str) -> Result<String, Vec<Diagnostic>> {
    run_watched(text, file, pipeline, Watch::default()).map(|output| output.text)
}

/// The same with snapshots and times.
///
/// # Errors
/// Every diagnostic, with file, line and column.
pub fn run_watched(
    text: &str,
    file: &str,
    pipeline: &str,
    watch: Watch<'_>,
) -> Result<Output, Vec<Diagnostic>> {
    let pipeline = Pipeline::parse(pipeline).map_err(|error| vec![placeless(error.to_string())])?;
    let cx = IrContext::new();
    let mut module = Module::parse(&cx, text, file).map_err(|error| of_ir(&error))?;
    let report =
        run_pipeline(&mut module, &pipeline, watch).map_err(|error: RunError| error.diagnostics())?;
    Ok(Output { text: module.to_string(), report })
}

fn of_ir(error: &IrError) -> Vec<Diagnostic> {
    match error.diagnostics() {
        [] => vec![placeless(error.to_string())],
        diagnostics => diagnostics.to_vec(),
    }
}
