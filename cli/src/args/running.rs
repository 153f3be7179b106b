//! Arguments of the commands that run models: `run`, `memorization`, `verify`.

use crate::wafer::{Grid, Mode};
use clap::{Args, ValueEnum};
use lapidary_models::autodiff::Recompute;
use lapidary_passes::fusion::Rule;
use lapidary_passes::{Fusion, Mup};
use lapidary_runtime_cpu::program::StateSharding;
use lapidary_runtime_mpi::Degrees;
use std::path::PathBuf;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The host, with the program that `compile --target cpu` makes.
    Cpu,
    /// A GPU.
    Cuda,
    /// The simulator of the wafer.
    WaferSim,
    /// The reference interpreter: slow and obvious.
    Reference,
}

impl Device {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
            Device::WaferSim => "wafer-sim",
            Device::Reference => "reference",
        }
    }
}

/// Number type of the reference interpreter and of words on the wafer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16; sums in f32.
    F16,
    /// bfloat16; sums in f32.
    Bf16,
}

impl Precision {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        }
    }
}

/// What becomes of muP's multipliers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MupSwitch {
    /// Folded into the weights.
    #[value(alias = "on")]
    Fold,
    /// Left in the program as ops.
    #[value(alias = "off")]
    Keep,
}

impl From<MupSwitch> for Mup {
    fn from(switch: MupSwitch) -> Mup {
        match switch {
            MupSwitch::Fold => Mup::Fold,
            MupSwitch::Keep => Mup::Keep,
        }
    }
}

/// Reads `all`, `off`, `RULE,..` or `without=RULE,..`.
fn fusion(text: &str) -> Result<Fusion, String> {
    let rules = |list: &str| list.split(',').map(Rule::parse).collect::<Result<Vec<_>, _>>();
    match text {
        "all" | "on" => Ok(Fusion::On),
        "off" | "none" => Ok(Fusion::Off),
        _ => match text.strip_prefix("without=") {
            Some(list) => rules(list).map(|_| Fusion::Options(text.to_string())),
            None => rules(text).map(|_| Fusion::Options(format!("only={text}"))),
        },
    }
}

/// Element type that weights are packed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Packing {
    /// As the checkpoint stores them: bf16 stays bf16, everything else becomes f32, so no weight is rounded.
    Stored,
    /// bfloat16: half the memory and twice the speed; the key-value cache and the other operand of each product are
    /// bfloat16 then too, sums are f32.
    Bf16,
    /// IEEE 754 binary32, the cache too.
    F32,
}

impl Packing {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Packing::Stored => "stored",
            Packing::Bf16 => "bf16",
            Packing::F32 => "f32",
        }
    }
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("asked").required(true).multiple(true).args(["prompt", "tokens", "prompt_file", "fim_prefix"]))]
pub struct Run {
    /// A model.toml, a Hugging Face folder or config.json, a built-in name, or - for stdin.
    pub model: String,
    /// Folder of the checkpoint and tokenizer.json; MODEL itself when it is a folder.
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Text to continue; several are continued as one batch.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Token ids to continue, such as 1,2,3; answered in ids.
    #[arg(long, value_name = "IDS")]
    pub tokens: Vec<String>,
    /// A file with text to continue, taken as it is, or - for stdin.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Vec<PathBuf>,
    /// Fill a gap: the text before it.
    #[arg(long, value_name = "TEXT")]
    pub fim_prefix: Option<String>,
    /// Fill a gap: the text behind it.
    #[arg(long, value_name = "TEXT", requires = "fim_prefix")]
    pub fim_suffix: Option<String>,
    /// Take each prompt as what a user says to a chat model; the answer ends where the next turn begins.
    #[arg(long, conflicts_with_all = ["tokens", "fim_prefix"])]
    pub chat: bool,
    /// What the system says first in a chat.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Most tokens to add to each prompt.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    pub max_new: u32,
    /// Where the model runs.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Device,
    /// PEs of the simulated wafer.
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value_t = Grid::DEFAULT, value_parser = Grid::parse)]
    pub grid: Grid,
    /// Where the weights are on the simulated wafer.
    #[arg(long, value_enum, default_value = "weight-streaming")]
    pub mode: Mode,
    /// Spread the model over the processes of an MPI job: a plan's name, such as tp2pp2, started as `mpirun -n 4 lapidary run ..`.
    #[arg(long, value_name = "PLAN", value_parser = crate::ranks::degrees)]
    pub plan: Option<Degrees>,
    /// Seconds that a rank waits for the others before the job ends.
    #[arg(long, value_name = "SECONDS", default_value = "60", requires = "plan")]
    pub patience: u64,
    /// Divides the logits before sampling; 0 takes the likeliest token. 0 when absent, 1 with --top-p or --top-k.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Sample among the likeliest tokens whose probabilities reach this sum.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Sample among this many of the likeliest tokens.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: Option<u32>,
    /// Start of the random sequence; the same for each prompt.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// A further token id that ends a sequence.
    #[arg(long, value_name = "ID")]
    pub stop: Vec<u32>,
    /// Go on behind the end of the text.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Element type that weights are packed to.
    #[arg(long, value_enum, default_value = "stored")]
    pub dtype: Packing,
    /// Keep the layers' weights as 8-bit whole numbers with a scale for each row: half the memory of bf16, each value off by at
    /// most 1/254 of the largest of its row. Only with --device cuda; everything else is bf16 then.
    #[arg(long, conflicts_with = "dtype")]
    pub int8: bool,
    /// The tokenizer; tokenizer.json beside the weights or the model when absent.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Print ids and text as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `memorization`.
#[derive(Debug, Args)]
pub struct Memorization {
    /// A model.toml, a Hugging Face folder or config.json, or a built-in name.
    pub model: String,
    /// Folder of the checkpoint; MODEL itself when it is a folder.
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Training data: a line per sequence, {"source", "prompt", "continuation"} or {"source", "token_ids"}; - for stdin.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Ids given.
    #[arg(short, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub k: u32,
    /// Ids asked for.
    #[arg(short, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub l: u32,
    /// Sequences at once.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub batch: u32,
    /// Write a line per sequence here, FILE.part while it is not finished; what was asked goes to FILE.run.
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Go on with what an earlier run left in --out.
    #[arg(long, requires = "out")]
    pub resume: bool,
    /// Where the model runs.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Device,
    /// Element type that weights are packed to.
    #[arg(long, value_enum, default_value = "stored")]
    pub dtype: Packing,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// A folder with config.json, model.safetensors and expected.safetensors, and perhaps greedy.json,
    /// memorization.json and meta.json.
    pub dir: PathBuf,
    /// Where the model runs.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Device,
    /// Fold muP's multipliers into the weights, or keep them as ops.
    #[arg(long, value_enum, default_value = "fold")]
    pub mup: MupSwitch,
    /// Fusion rules: all, off, RULE,.. for these and no other, or without=RULE,..
    #[arg(long, value_name = "RULES", default_value = "all", value_parser = fusion)]
    pub fuse: Fusion,
    /// Number type: f64 or f32 of the reference (f64 when absent), f32 or bf16 of the host's weights, f32, f16 or bf16 of
    /// activations and weights on the simulated wafer (f32 when absent).
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// PEs of the simulated wafer.
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value_t = Grid::DEFAULT, value_parser = Grid::parse)]
    pub grid: Grid,
    /// Where the weights are on the simulated wafer.
    #[arg(long, value_enum, default_value = "weight-streaming")]
    pub mode: Mode,
    /// Compare gradients and AdamW steps with grads.safetensors and meta.json too.
    #[arg(long)]
    pub grads: bool,
    /// What the backward pass computes again.
    #[arg(long, value_enum, default_value = "selective", requires = "grads")]
    pub recompute: RecomputeSwitch,
    /// Spread the model over the processes of an MPI job: a plan's name, such as tp2pp2dp2 for tensor-parallel groups of 2,
    /// 2 pipeline stages and 2 replicas, started as `mpirun -n 8 lapidary verify ..`.
    #[arg(long, value_name = "PLAN", value_parser = crate::ranks::degrees, conflicts_with_all = ["all_switches", "bisect"])]
    pub plan: Option<Degrees>,
    /// Seconds that a rank waits for the others before the job ends.
    #[arg(long, value_name = "SECONDS", default_value = "60", requires = "plan")]
    pub patience: u64,
    /// How the training step of --grads is spread.
    #[command(flatten)]
    pub step: SpreadStep,
    /// Verify with every switch of the device, not with one setting.
    #[arg(long, conflicts_with_all = ["mup", "fuse", "precision", "grid", "mode"])]
    pub all_switches: bool,
    /// Run the reference beside the device and name the first pass, step and op that differs.
    #[arg(long)]
    pub bisect: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How ranks work together in a training step.
#[derive(Clone, Copy, Debug, Args)]
pub struct SpreadStep {
    /// Micro-batches of a step on each replica; as many as there are pipeline stages when absent. The stored sequences are
    /// repeated until every micro-batch has the same number of them.
    #[arg(long, value_name = "N", requires = "plan", requires = "grads", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    pub micro_batches: Option<u64>,
    /// Ranges of layers of each pipeline stage: more than 1 for an interleaved schedule.
    #[arg(long, value_name = "N", requires = "plan", requires = "grads", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    pub chunks: u64,
    /// Split norms and residual sums over the ranks of a tensor-parallel group, row by row.
    #[arg(long, requires = "plan", requires = "grads")]
    pub sequence_parallel: bool,
    /// What replicas share of the weights' state: nothing, the optimizer's (ZeRO-1), or weights, gradients and optimizer's
    /// (FSDP).
    #[arg(long, value_enum, requires = "plan", requires = "grads", default_value = "none")]
    pub sharding: ShardingSwitch,
}

/// What replicas share of the weights' state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShardingSwitch {
    /// Nothing: each has everything.
    None,
    /// The optimizer's state.
    Optimizer,
    /// Weights, gradients and the optimizer's state.
    Full,
}

impl From<ShardingSwitch> for StateSharding {
    fn from(switch: ShardingSwitch) -> StateSharding {
        match switch {
            ShardingSwitch::None => StateSharding::None,
            ShardingSwitch::Optimizer => StateSharding::Optimizer,
            ShardingSwitch::Full => StateSharding::Full,
        }
    }
}

/// What a backward pass computes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecomputeSwitch {
    /// Nothing.
    None,
    /// Scores, mask and softmax.
    Selective,
    /// Everything from the layer's input.
    Full,
}

impl From<RecomputeSwitch> for Recompute {
    fn from(switch: RecomputeSwitch) -> Recompute {
        match switch {
            RecomputeSwitch::None => Recompute::None,
            RecomputeSwitch::Selective => Recompute::Selective,
            RecomputeSwitch::Full => Recompute::Full,
        }
    }
}
