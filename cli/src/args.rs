//! The command line, as the contract states it.

use crate::commands::What;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

mod running;

pub use running::{Device, Memorization, Packing, Precision, RecomputeSwitch, Run, Verify};

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

/// Kinds of machine that programs are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// CUDA kernels and a launch program for NVIDIA GPUs, sm_80 first.
    A100,
    /// A dataflow program for the simulator of the CS-2 and Condor Galaxy 1.
    Cg1Sim,
    /// A program for the host.
    Cpu,
}

/// What the compiled graph computes, or where a wafer's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompileMode {
    /// Logits of every position, no key-value cache.
    Forward,
    /// Fill the cache from a prompt.
    Prefill,
    /// One new token against a cache of seq-len - 1.
    Decode,
    /// Wafers: weights stream in, layer after layer has all PEs.
    WeightStreaming,
    /// Wafers: weights stay, every layer has rows of its own and --batch sequences stream through; a decoded token has all
    /// PEs at every layer.
    LayerPipelined,
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it.
    On,
    /// Leave it.
    Off,
}

/// Arguments of `compile`.
#[derive(Debug, Args)]
pub struct Compile {
    /// A model.toml, a Hugging Face folder or config.json, a built-in name, or - for stdin.
    pub model: String,
    /// What to compile for.
    #[arg(long, value_enum)]
    pub target: Target,
    /// The artifact's folder; written whole or not at all.
    #[arg(short, long, value_name = "DIR", default_value = "out.lpd")]
    pub output: PathBuf,
    /// A machine file or a built-in name; the target's own machine when absent.
    #[arg(long, value_name = "FILE|NAME")]
    pub machine: Option<String>,
    /// A plan to compile for.
    #[arg(long, value_name = "PLAN.json")]
    pub plan: Option<PathBuf>,
    /// Sequences in a batch.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: u64,
    /// Tokens of a sequence; the model's longest when absent.
    #[arg(long, value_name = "N")]
    pub seq_len: Option<u64>,
    /// Compile a training step: forward pass, loss, backward pass, clipping and AdamW. muP's multipliers stay, and its table
    /// is written. On wafers the report says what training takes: plan, rate, days, and what binds.
    #[arg(long)]
    pub train: bool,
    /// What a training step computes again instead of keeping it for the backward pass; selective on GPU and host when
    /// absent, what the plan says on wafers.
    #[arg(long, value_enum, requires = "train")]
    pub recompute: Option<RecomputeSwitch>,
    /// Training on wafers: systems; those of the published run, or all, when absent.
    #[arg(long, value_name = "N", requires = "train")]
    pub systems: Option<u64>,
    /// Training on wafers: sequences of an optimizer step; those of the published run when absent.
    #[arg(long, value_name = "N", requires = "train")]
    pub global_batch: Option<u64>,
    /// Training on wafers: tokens of each phase, as 345e9,927e9; those of the published run when absent.
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "train")]
    pub tokens: Vec<f64>,
    /// Training on wafers: the software release whose kernels run, such as R1.9, or none for this compiler's own; that of
    /// the published run when absent.
    #[arg(long, value_name = "NAME", requires = "train")]
    pub release: Option<String>,
    /// Training on wafers: decisions that are made already, as `micro-batch=66,recompute=full`.
    #[arg(long, value_name = "KEY=VALUE,..", requires = "train")]
    pub pin: Vec<String>,
    /// What the graph computes (prefill on GPUs and forward on wafers when absent), and on wafers where the weights are
    /// (weight-streaming when absent): one of each, as decode,layer-pipelined.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub mode: Vec<CompileMode>,
    /// What to write: ir, cuda, ptx, cubin; program and report are always written.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub emit: Vec<String>,
    /// Write the module after every stage into this folder.
    #[arg(long, value_name = "DIR")]
    pub dump_ir: Option<PathBuf>,
    /// Stop after this stage and print the module.
    #[arg(long, value_name = "STAGE")]
    pub stop_after: Option<String>,
    /// Run this pipeline in place of the target's own.
    #[arg(long, value_name = "PIPELINE")]
    pub passes: Option<String>,
    /// Print the module to stderr after this pass.
    #[arg(long, value_name = "PASS")]
    pub print_ir_after: Option<String>,
    /// Print the time of every stage and pass, and what was fused.
    #[arg(long)]
    pub timing: bool,
    /// Fold muP's multipliers into the weights, or keep them as ops.
    #[arg(long, value_enum)]
    pub mup: Option<Switch>,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

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
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    pub straggler: f64,
    /// Rows of the table.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// What to rank by.
    #[arg(long, value_enum, default_value = "step-time")]
    pub objective: Objective,
    /// Stop after this many seconds with the best plan so far.
    #[arg(long, value_name = "SECONDS")]
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
    #[arg(long, value_name = "MS", requires = "serve")]
    pub first_token_ms: Option<f64>,
    /// With --serve: longest time between two tokens.
    #[arg(long, value_name = "MS", requires = "serve")]
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

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to measure; everything, and small models against the reference, when absent.
    #[arg(value_enum)]
    pub what: Vec<What>,
    /// What kernels are made for; only GPUs are measured.
    #[arg(long, value_enum, default_value = "a100")]
    pub target: Target,
    /// Models whose sizes are measured; weights are random.
    #[arg(long, value_name = "MODEL", default_values = ["amber", "crystalcoder"])]
    pub model: Vec<String>,
    /// Sequences of kernels, prompts and training steps.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// Sequences of decoding, one measurement for each.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub decode_batch: Vec<u32>,
    /// Tokens of a sequence; as many as the model goes when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seq_len: Option<u64>,
    /// Timed runs of each kernel.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub samples: u32,
    /// Rows, columns and depth of the products whose best is the ceiling.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(16..=32768))]
    pub ceiling: u32,
    /// An earlier document: exit 6 where something became slower.
    #[arg(long, value_name = "F.json")]
    pub baseline: Option<PathBuf>,
    /// Percent by which a kernel may be slower than the baseline, beyond the spread of its runs.
    #[arg(long, value_name = "PCT", default_value_t = 5.0, requires = "baseline")]
    pub tolerance: f64,
    /// Measure nothing: write jobs and machine code into a folder, for benches/gpu.sh on a machine with a GPU.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["baseline", "json"])]
    pub bundle: Option<PathBuf>,
    /// Architectures of the bundle.
    #[arg(long, value_name = "ARCH,..", value_delimiter = ',', default_values = ["sm_80", "sm_90"], value_parser = ["sm_80", "sm_90"])]
    pub arch: Vec<String>,
    /// Print the document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct Report {
    /// A plan written by `lapidary plan --json`.
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

/// Level of the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Pieces of code in closed form.
    Analytic,
    /// Streams as flows with rate and latency, PEs by class.
    Flow,
    /// Every word through its route; numbers are computed.
    Event,
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// An artifact of `compile --target cg1-sim`, or a .wafer text.
    pub artifact: PathBuf,
    /// How closely to look.
    #[arg(long, value_enum, default_value = "flow")]
    pub level: Level,
    /// Write what happened when, for Perfetto or Chrome's trace viewer.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A Hugging Face folder, one .safetensors or .bin file, an index of shards, or an artifact of `compile`.
    pub place: PathBuf,
    /// Look at names, shapes and types only, and leave the values unread.
    #[arg(long)]
    pub no_values: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `models`.
#[derive(Debug, Subcommand)]
pub enum Models {
    /// Name, parameters and shape of each.
    List {
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// One model.
    Show {
        /// A model.toml, a Hugging Face folder or config.json, or a built-in name.
        name: String,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write random weights in the published form, to try everything without a download.
    Init(Init),
}

/// Arguments of `models init`.
#[derive(Debug, Args)]
pub struct Init {
    /// A model.toml, a Hugging Face folder or config.json, or a built-in name.
    pub name: String,
    /// Seed of the weights: the same bytes for the same seed.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// The folder; written whole or not at all.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Element type of the weights; the model's own when absent.
    #[arg(long, value_enum)]
    pub dtype: Option<WeightType>,
    /// Largest file; more are cut into shards with an index.
    #[arg(long, value_name = "BYTES", default_value_t = lapidary_checkpoint::SHARD_BYTES)]
    pub shard_bytes: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Element types of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl From<WeightType> for lapidary_models::DType {
    fn from(dtype: WeightType) -> Self {
        match dtype {
            WeightType::F32 => lapidary_models::DType::F32,
            WeightType::Bf16 => lapidary_models::DType::Bf16,
            WeightType::F16 => lapidary_models::DType::F16,
        }
    }
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
