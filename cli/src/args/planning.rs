//! Arguments of the commands that plan and price: `plan`, `explain`, `calibrate`, `report`, `accuracy`, `machines`.

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// A model.toml, a Hugging Face folder or config.json, a built-in name, or - for stdin.
    pub model: String,
    /// A machine file or a built-in name.
    #[arg(long, value_name = "FILE|NAME")]
    pub machine: String,
    /// Use only this many devices.
    #[arg(long, value_name = "N")]
    pub devices: Option<u64>,
    /// Sequences of an optimizer step.
    #[arg(long, value_name = "N")]
    pub global_batch: Option<u64>,
    /// Tokens of a sequence; the model's longest when absent.
    #[arg(long, value_name = "N")]
    pub seq_len: Option<u64>,
    /// Fix some degrees, such as tp=8,pp=2.
    #[arg(long, value_name = "tp=8,pp=2", value_delimiter = ',')]
    pub pin: Vec<String>,
    /// Software stack whose kernels and habits are priced: lapidary, megatron-2022, fsdp-eager, torch-compile, ...
    #[arg(long, value_name = "NAME", default_value = "lapidary")]
    pub software: String,
    /// Price weights and optimizer that live on the host, as FSDP's cpu_offload does.
    #[arg(long)]
    pub cpu_offload: bool,
    /// The slowest device is this much slower than it should be, and everybody waits for it.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = super::percent)]
    pub straggler: f64,
    /// Rows of the table.
    #[arg(long, value_name = "N", default_value = "10", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub top: usize,
    /// What to rank by.
    #[arg(long, value_enum, default_value = "step-time")]
    pub objective: Objective,
    /// Stop after this many seconds with the best plan so far.
    #[arg(long, value_name = "SECONDS", value_parser = super::positive)]
    pub budget: Option<f64>,
    /// Say why the first beats the second, and what was rejected.
    #[arg(long)]
    pub explain: bool,
    /// Plan inference instead of training: ranks of a replica and sequences at once.
    #[arg(long)]
    pub serve: bool,
    /// With --serve: tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 512, requires = "serve")]
    pub prompt_tokens: u64,
    /// With --serve: tokens that are generated behind it.
    #[arg(long, value_name = "N", default_value_t = 512, requires = "serve")]
    pub output_tokens: u64,
    /// With --serve: longest time to the first token.
    #[arg(long, value_name = "MS", requires = "serve", value_parser = super::positive)]
    pub first_token_ms: Option<f64>,
    /// With --serve: longest time between two tokens.
    #[arg(long, value_name = "MS", requires = "serve", value_parser = super::positive)]
    pub between_tokens_ms: Option<f64>,
    /// Write scripts that start the chosen plan, beside the file of -o or here: torchrun.sh, slurm.sbatch, megatron.sh.
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub emit: Vec<Launcher>,
    /// Write a page here that opens offline: table, charts, the step's time line, assumptions.
    #[arg(long, value_name = "F.html")]
    pub report: Option<PathBuf>,
    /// Write the chosen plan's step here in the trace format of Chrome and Perfetto.
    #[arg(long, value_name = "F.json")]
    pub trace: Option<PathBuf>,
    /// Write the plan here as JSON.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print the plan as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What starts a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Launcher {
    /// PyTorch's launcher, for a training script of one's own.
    Torchrun,
    /// A Slurm job that runs a command on each node.
    Slurm,
    /// Megatron-LM with its flags.
    Megatron,
}

/// What to rank plans by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Objective {
    /// Shortest optimizer step.
    StepTime,
    /// Least memory on the fullest device.
    Memory,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// A plan written by `lapidary plan --json`.
    pub plan: PathBuf,
    /// The candidate to compare with; the second-best when absent.
    #[arg(long, value_name = "NAME")]
    pub vs: Option<String>,
}

/// Arguments of `calibrate`.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// The output of all_reduce_perf with its lines `# Rank ...`, or measured kernels as `lapidary bench --json` has them.
    #[arg(long, value_name = "nccl.log|bench.json")]
    pub from: PathBuf,
    /// The machine that it ran on: a machine file or a built-in name.
    #[arg(long, value_name = "FILE|NAME")]
    pub machine: String,
    /// Name of the site in the new file.
    #[arg(long, value_name = "NAME", default_value = "site")]
    pub name: String,
    /// Write the machine file here.
    #[arg(short, long, value_name = "FILE.toml")]
    pub output: PathBuf,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct Report {
    /// A plan of `lapidary plan --json`, a simulation of `lapidary simulate --json`, an artifact of `compile --target
    /// cg1-sim`, or a document of `lapidary bench`.
    pub plan: PathBuf,
    /// Write the page here.
    #[arg(short, long, value_name = "F.html")]
    pub output: PathBuf,
}

/// Tables of published measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccuracyTable {
    /// Training steps and memory on A100 clusters.
    A100Training,
    /// Cycles of collectives and of kernels in the SDK's simulator.
    WaferMicrobench,
    /// Throughput of training on CS-2 systems.
    WaferTraining,
    /// Prefill and decode on a wafer.
    WaferInference,
}

/// Arguments of `accuracy`.
#[derive(Debug, Args)]
pub struct Accuracy {
    /// What is measured.
    #[arg(value_enum)]
    pub table: AccuracyTable,
    /// The measurements, comma-separated with a header line.
    #[arg(long, value_name = "FILE.csv")]
    pub data: PathBuf,
    /// Print every row beside the groups.
    #[arg(long, conflicts_with = "json")]
    pub rows: bool,
    /// Fit the constants again without each group, and print that group's error beside (takes minutes).
    #[arg(long)]
    pub leave_one_out: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `machines`.
#[derive(Debug, Subcommand)]
pub enum Machines {
    /// Name and summary of each.
    List {
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// One machine with every number's unit and source.
    Show {
        /// A machine file or a built-in name.
        name: String,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
}
