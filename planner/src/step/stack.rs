//! Software stacks: what a framework fuses, launches, sends and hides, as data files in `planner/stacks`.
//!
//! A file may name a `base` whose keys it takes over. At most one number of a file is fitted, mostly `pace`: the time
//! of its kernels over the rates of the tables (library generation, clocks and cooling of its site).

use super::job::AttentionKernel;
use super::work::KEYS;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Traffic of an op in bytes an element, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Bytes an element of the forward pass.
    pub forward: f64,
    /// Bytes an element of the backward pass.
    pub backward: f64,
}

/// What dropout adds to row kernels, in bytes an element; nothing where a stack runs none.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dropout {
    /// Over the residual stream, twice a layer.
    pub residual: Traffic,
    /// Over the scores, where they are in memory.
    pub scores: Traffic,
}

/// Launches of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Launches {
    /// Forward, without attention's scores.
    pub forward: f64,
    /// Backward.
    pub backward: f64,
    /// More of them in each pass where attention is not one kernel.
    pub unfused_attention: f64,
    /// Forward and backward outside the layers, of one micro-batch.
    pub micro_batch: f64,
}

/// What selective recomputation runs again where attention is one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selective {
    /// Norms and pointwise ops.
    CheapOps,
    /// All but attention and every second product.
    EverySecondProduct,
}

/// What the stack holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemoryUse {
    /// Bytes of a weight at work.
    pub weights: f64,
    /// Bytes of a weight beside the optimizer's, where weights are sharded and at rest.
    pub sharded_weights: f64,
    /// Bytes of a kept gradient.
    pub gradients: f64,
    /// The same in fp16 runs.
    pub gradients_fp16: f64,
    /// Bytes of the optimizer's state of a parameter.
    pub optimizer: f64,
    /// The same in fp16 runs.
    pub optimizer_fp16: f64,
    /// Elements of the buckets in which sharded optimizers flatten gradients and gather weights; a tensor that is larger
    /// has a bucket of its own.
    pub bucket_elements: f64,
    /// 1 where dropout keeps masks, else 0.
    pub dropout: f64,
    /// Bytes an element of the scores that is kept beside the softmax: what dropout writes and its mask.
    pub scores: f64,
    /// Bytes an element that an unfused norm keeps more than its input.
    pub unfused_norm: f64,
    /// Bytes of a logit and its loss.
    pub logits: f64,
    /// Whether every tensor-parallel rank holds all logits.
    pub gathers_logits: bool,
    /// GiB of driver and libraries.
    pub context_gib: f64,
    /// GiB of a communicator.
    pub communicator_gib: f64,
    /// Part of activations and logits that the allocator cannot use.
    pub fragmentation: f64,
}

/// The one number of a stack that may be fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fitted {
    /// The time of its kernels.
    Pace,
    /// The time of its collectives between nodes.
    Network,
    /// None: it is known by its causes alone.
    Nothing,
}

/// A software stack.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// What it is, and where the numbers come from.
    pub source: String,
    /// Parts of a framework's printed name that mean this stack; the longest match of all stacks wins.
    pub frameworks: Vec<String>,
    /// Which of its numbers is fitted: one at most.
    pub fitted: Fitted,
    /// What it was fitted on.
    pub fitted_on: String,
    /// Time of its kernels over the rates of the tables.
    pub pace: f64,
    /// Whether ZeRO-1 deals whole tensors out to ranks, sums all gradients on every rank, and owners broadcast their
    /// weights one after the other; else equal shards are scattered and gathered.
    pub owners_broadcast: bool,
    /// Attention where a run does not say.
    pub attention: AttentionKernel,
    /// Whether norms are one kernel.
    pub fused_norm: bool,
    /// Whether the vocabulary is padded where one rank holds it whole.
    pub pads_whole_vocab: bool,
    /// Bytes of a gradient as it is kept and summed over data-parallel ranks.
    pub gradient_bytes: f64,
    /// The same in fp16 runs.
    pub gradient_bytes_fp16: f64,
    /// Time of its collectives between nodes over what the machine's rates say.
    pub network: f64,
    /// Bytes of a gathered weight of sharded data parallelism.
    pub gather_bytes: f64,
    /// Bytes of a scattered gradient of sharded data parallelism.
    pub scatter_bytes: f64,
    /// Bytes an optimizer step moves for a parameter it owns.
    pub optimizer_traffic: f64,
    /// The same on the host, where the state lives there.
    pub host_optimizer_traffic: f64,
    /// Bytes that each micro-batch moves for a parameter to add its gradient up.
    pub accumulate_traffic: f64,
    /// Part of the gradient's traffic that hides behind the backward pass.
    pub data_overlap: f64,
    /// Part of gathered weights' traffic that hides behind compute.
    pub gather_overlap: f64,
    /// Part of the backward pass's tensor-parallel collectives that hides behind weight gradients.
    pub tensor_overlap: f64,
    /// Part of the messages between stages that hides behind compute.
    pub pipeline_overlap: f64,
    /// Host time of a launch over that of an eager framework in Python.
    pub host: f64,
    /// Launches.
    pub launches: Launches,
    /// Whether full recomputation runs the whole forward pass of a layer again, as torch.utils.checkpoint does, and
    /// selective recomputation the whole core of attention; otherwise only what the backward pass reads.
    pub repeats_whole_layer: bool,
    /// What selective recomputation runs again where attention is one kernel.
    pub selective: Selective,
    /// Whether tokens are sorted to their experts by products with masks of ones and zeros, over all places of all experts.
    pub one_hot_routing: bool,
    /// Bytes an element that a row kernel moves where that is not what its op reads and writes, by the names of
    /// [`super::work::KEYS`]: less where it is fused with another, more where it runs as single ops.
    pub bytes: BTreeMap<String, f64>,
    /// The same of norms that are not one kernel.
    pub bytes_unfused_norm: BTreeMap<String, f64>,
    /// The same of attention that runs as single ops.
    pub bytes_unfused_attention: BTreeMap<String, f64>,
    /// What dropout adds.
    pub dropout: Dropout,
    /// Splits, transposes and casts around attention, over the width of queries, keys and values.
    pub layout: Traffic,
    /// What it holds in memory.
    pub memory: MemoryUse,
}

/// Why a stack file is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{file}: {message}")]
pub struct StackError {
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub message: String,
}

const FILES: [(&str, &str); 19] = [
    ("deepspeed-pipeline", include_str!("../../stacks/deepspeed-pipeline.toml")),
    ("megatron-2021", include_str!("../../stacks/megatron-2021.toml")),
    ("megatron-2020", include_str!("../../stacks/megatron-2020.toml")),
    ("megatron-2022", include_str!("../../stacks/megatron-2022.toml")),
    ("megatron-like", include_str!("../../stacks/megatron-like.toml")),
    ("megatron-deepspeed", include_str!("../../stacks/megatron-deepspeed.toml")),
    ("deepspeed-zero-3", include_str!("../../stacks/deepspeed-zero-3.toml")),
    ("nemo", include_str!("../../stacks/nemo.toml")),
    ("aleph-scaling", include_str!("../../stacks/aleph-scaling.toml")),
    ("internevo", include_str!("../../stacks/internevo.toml")),
    ("gpt-neox", include_str!("../../stacks/gpt-neox.toml")),
    ("llm-foundry", include_str!("../../stacks/llm-foundry.toml")),
    ("fsdp-eager", include_str!("../../stacks/fsdp-eager.toml")),
    ("lightning-fabric", include_str!("../../stacks/lightning-fabric.toml")),
    ("tinyllama", include_str!("../../stacks/tinyllama.toml")),
    ("torchtitan", include_str!("../../stacks/torchtitan.toml")),
    ("xla", include_str!("../../stacks/xla.toml")),
    ("torch-compile", include_str!("../../stacks/torch-compile.toml")),
    ("lapidary", include_str!("../../stacks/lapidary.toml")),
];

impl Stack {
    /// The number that is fitted.
    pub fn constant(&self) -> f64 {
        match self.fitted {
            Fitted::Pace => self.pace,
            Fitted::Network => self.network,
            Fitted::Nothing => 1.0,
        }
    }

    /// The stack with another value of it.
    pub fn with_constant(&self, value: f64) -> Stack {
        let mut stack = self.clone();
        match self.fitted {
            Fitted::Pace => stack.pace = value,
            Fitted::Network => stack.network = value,
            Fitted::Nothing => {}
        }
        stack
    }

    /// Where a fit may look for it, and the value that means nothing special.
    pub fn constant_range(&self) -> ((f64, f64), f64) {
        match self.fitted {
            Fitted::Pace => ((0.8, 1.4), 1.0),
            Fitted::Network => ((0.5, 16.0), 1.0),
            Fitted::Nothing => ((1.0, 1.0), 1.0),
        }
    }

    /// Every stack that comes with the program.
    pub fn builtin() -> &'static [Stack] {
        static STACKS: OnceLock<Vec<Stack>> = OnceLock::new();
        STACKS.get_or_init(|| {
            FILES.iter().filter_map(|(name, text)| Stack::from_toml(text, name).ok()).collect()
        })
    }

    /// A built-in stack by name.
    pub fn named(name: &str) -> Option<&'static Stack> {
        Stack::builtin().iter().find(|stack| stack.name == name)
    }

    /// The stack of a framework as a publication prints it.
    pub fn of_framework(printed: &str) -> Option<&'static Stack> {
        let printed = printed.to_lowercase();
        let matches = |stack: &'static Stack| {
            let found = stack.frameworks.iter().filter(|part| printed.contains(&part.to_lowercase()));
            Some((found.map(String::len).max()?, stack))
        };
        let best = Stack::builtin().iter().filter_map(matches);
        best.fold(None, |best: Option<(usize, &Stack)>, next| match best {
            Some(old) if old.0 >= next.0 => Some(old),
            _ => Some(next),
        })
        .map(|(_, stack)| stack)
    }

    /// Reads a stack file; `base` names a built-in one.
    ///
    /// # Errors
    /// [`StackError`] with the first fault.
    pub fn from_toml(text: &str, file: &str) -> Result<Stack, StackError> {
        let refused = |message: String| StackError { file: file.to_string(), message };
        let table = merged(text, 4).map_err(&refused)?;
        let stack: Stack =
            table.try_into().map_err(|error: toml::de::Error| refused(error.message().to_string()))?;
        let kernels = [&stack.bytes, &stack.bytes_unfused_norm, &stack.bytes_unfused_attention];
        let unknown = kernels.into_iter().flat_map(BTreeMap::keys).find(|key| !KEYS.contains(&key.as_str()));
        match unknown {
            None => Ok(stack),
            Some(key) => Err(refused(format!(
                "bytes.{key}: no row kernel is called so; there are: {}",
                KEYS.join(", ")
            ))),
        }
    }
}

fn merged(text: &str, depth: usize) -> Result<toml::Table, String> {
    let mut own: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let Some(base) = own.remove("base") else { return Ok(own) };
    let name = base.as_str().unwrap_or_default();
    let file = FILES.iter().find(|(known, _)| *known == name && depth > 0);
    let (_, base) = file.ok_or_else(|| format!("base: no built-in stack is called `{name}`"))?;
    Ok(over(merged(base, depth - 1)?, own))
}

fn over(mut base: toml::Table, own: toml::Table) -> toml::Table {
    for (key, value) in own {
        match (base.remove(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => {
                base.insert(key, toml::Value::Table(over(old, new)));
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stack_file_is_read() {
        for (name, text) in FILES {
            let stack = Stack::from_toml(text, name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(stack.name, name);
            assert!(!stack.source.is_empty() && !stack.fitted_on.is_empty());
            assert!((0.5..2.0).contains(&stack.pace), "{name}");
        }
        assert_eq!(Stack::builtin().len(), FILES.len());
    }

    #[test]
    fn the_longest_match_decides() {
        let name = |printed: &str| Stack::of_framework(printed).map(|stack| stack.name.as_str());
        assert_eq!(name("Megatron-LM 2021"), Some("megatron-2021"));
        assert_eq!(name("DeepSpeed ZeRO-3 in Megatron-LM 2021"), Some("deepspeed-zero-3"));
        assert_eq!(name("Megatron-DeepSpeed 2022"), Some("deepspeed-pipeline"));
        assert_eq!(name("NeMo-Megatron 2022-03-08"), Some("nemo"));
        assert_eq!(name("Lightning Fabric FSDP (lit-llama), HF-style LLaMA"), Some("lightning-fabric"));
        assert_eq!(name("an abacus"), None);
    }

    #[test]
    fn a_wrong_key_is_named() {
        let error = Stack::from_toml("base = \"nemo\"\ncolour = 3", "mine.toml").unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
        let error = Stack::from_toml("base = \"none\"", "mine.toml").unwrap_err();
        assert!(error.to_string().contains("no built-in stack"), "{error}");
    }
}
