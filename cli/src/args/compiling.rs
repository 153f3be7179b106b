//! Arguments of the commands that compile, simulate and measure: `compile`, `simulate`, `bench`.

use super::{RecomputeSwitch, ShardingSwitch};
use crate::commands::What;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

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
    /// A plan to compile for: a document of `lapidary plan`, or a name such as tp4pp2dp1. Every rank gets its program.
    #[arg(long, value_name = "PLAN.json|NAME")]
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
    /// Micro-batches of a training step that a plan spreads; what the plan says, or one for each stage, when absent. --batch
    /// are the sequences of each.
    #[arg(long, value_name = "N", requires = "train", requires = "plan", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    pub micro_batches: Option<u64>,
    /// What replicas share of the state of a training step that a plan spreads: nothing, the optimizer's (ZeRO-1), or weights,
    /// gradients and optimizer's (FSDP); what the plan says, or nothing, when absent.
    #[arg(long, value_enum, requires = "train", requires = "plan")]
    pub sharding: Option<ShardingSwitch>,
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
    /// GPUs: which forms of products and attention were measured to be the fastest, as `bench` and benches/gpu.sh leave them
    /// (tunings.json); those kept on this machine for the target's kind of GPU when absent, none with `off`.
    #[arg(long, value_name = "FILE|off")]
    pub tunings: Option<String>,
    /// Fold muP's multipliers into the weights, or keep them as ops.
    #[arg(long, value_enum)]
    pub mup: Option<Switch>,
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
    /// Write a page with maps of busy PEs, memory and links.
    #[arg(long, value_name = "F.html")]
    pub report: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
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
    #[arg(long, value_name = "PCT", default_value_t = 5.0, requires = "baseline", value_parser = super::percent)]
    pub tolerance: f64,
    /// Measure nothing: write jobs and machine code into a folder, for benches/gpu.sh on a machine with a GPU.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["baseline", "json"])]
    pub bundle: Option<PathBuf>,
    /// Architectures of the bundle.
    #[arg(long, value_name = "ARCH,..", value_delimiter = ',', default_values = ["sm_80", "sm_90a"], value_parser = ["sm_80", "sm_90a"])]
    pub arch: Vec<String>,
    /// Print the document.
    #[arg(long)]
    pub json: bool,
}
