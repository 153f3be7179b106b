//! `lapidary-opt`: reads MLIR, runs a pipeline, prints MLIR, for FileCheck tests.

use crate::failure::{Exit, Failure};
use crate::input;
use clap::Parser;
use std::path::PathBuf;

/// Reads MLIR, runs a pipeline of passes, prints MLIR.
#[derive(Debug, Parser)]
#[command(name = "lapidary-opt", version)]
pub struct Opt {
    /// The MLIR text; - for stdin.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// The passes to run, such as `canonicalize,mup-fold,fuse`.
    #[arg(long, value_name = "PIPELINE", default_value = "")]
    pass_pipeline: String,
    /// List the passes and what they do.
    #[arg(long)]
    list_passes: bool,
}

/// Runs the tool.
///
/// # Errors
/// Exit 3 with MLIR's diagnostics, in the form `file:line:column: error: ...`.
pub fn run(args: &Opt) -> Result<(), Failure> {
    if args.list_passes {
        for row in lapidary_passes::registry::PASSES {
            println!("{:<16} {}", row.name, row.summary);
        }
        return Ok(());
    }
    let text = input::text(&args.file)?;
    let name = args.file.display().to_string();
    let output = lapidary_passes::opt::run(&text, &name, &args.pass_pipeline).map_err(|diagnostics| {
        // MLIR's own form, one line each, so that FileCheck can match them.
        diagnostics.iter().for_each(|diagnostic| eprintln!("{diagnostic}"));
        Failure { exit: Exit::InvalidInput, faults: Vec::new() }
    })?;
    print!("{output}");
    Ok(())
}
