//! Arguments of the commands about models and their weights: `inspect`, `models`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

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
