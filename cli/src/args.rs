//! The command line, as the contract states it.

use clap::{Args, Parser, Subcommand, ValueEnum};

mod compiling;
mod models;
mod planning;
mod running;

pub use compiling::{Bench, Compile, CompileMode, Level, Simulate, Switch, Target};
pub use models::{Init, Inspect, Models};
pub use planning::{
    Accuracy, AccuracyTable, Calibrate, Explain, Launcher, Machines, Objective, Plan, Report,
};
pub use running::{Device, Memorization, Packing, Precision, RecomputeSwitch, Run, ShardingSwitch, Verify};

/// Compiles transformer models to A100 clusters and to Cerebras wafers, and plans how to spread them.
#[derive(Debug, Parser)]
#[command(name = "lapidary", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Say more on stderr; twice for still more.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Say only errors on stderr.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// When to colour stderr and tables.
    #[arg(long, value_enum, default_value = "auto", global = true)]
    pub color: Color,
    /// Threads to use; all cores when absent.
    #[arg(long, value_name = "N", global = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lower a model to programs for a machine.
    Compile(Compile),
    /// Rank the ways to spread a model over a machine.
    Plan(Plan),
    /// Say why a plan was chosen and what another one costs, term by term.
    Explain(Explain),
    /// Write a plan's page: one file that opens offline.
    Report(Report),
    /// Write a machine file with a site's own link rates, from a log of nccl-tests.
    Calibrate(Calibrate),
    /// Hold predictions against published measurements; exit 6 where the gate fails.
    Accuracy(Accuracy),
    /// Run a compiled wafer program, or a .wafer text, through the simulator.
    Simulate(Simulate),
    /// Continue prompts.
    Run(Run),
    /// Measure how much of its training data a model gives back.
    Memorization(Memorization),
    /// Measure kernels and whole models on a GPU.
    Bench(Bench),
    /// Hold a model on a device against stored tensors of a reference implementation.
    Verify(Verify),
    /// The built-in models.
    #[command(subcommand)]
    Models(Models),
    /// The built-in machines.
    #[command(subcommand)]
    Machines(Machines),
    /// Show every fault of a model file at once.
    Check {
        /// A model.toml, a Hugging Face folder or config.json, a built-in name, or - for stdin.
        model: String,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a file holds; for weights, which tensor holds which parameter.
    Inspect(Inspect),
    /// List the targets and what each emits.
    Targets,
    /// Say which parts of the toolchain are here and how to get the rest.
    Doctor,
    /// Print the JSON schema of a document.
    Schema {
        /// Name of the document.
        name: String,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A share in percent, from 0 to 1000.
fn percent(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=1000.0).contains(&value), "from 0 to 1000")
}

/// A quantity that must be there to mean anything: seconds, milliseconds.
fn positive(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0 && value.is_finite(), "above 0")
}

/// Reads a number; infinities and NaN pass no condition that is a range.
fn number(text: &str, holds: impl Fn(f64) -> bool, range: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if holds(value) => Ok(value),
        Ok(_) => Err(format!("must be {range}")),
        Err(_) => Err(format!("must be a number {range}")),
    }
}
