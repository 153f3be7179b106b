//! From a row of the table to what the step-time model needs: model, machine, layout and software.
//!
//! What a publication leaves out is filled in by a rule that is the same for every row, and listed.

use super::campaign::Campaigns;
use super::family::{Positions, traits};
use super::row::{Metric, Row};
use crate::plan::{Recompute, Sharding};
use crate::request::Batch;
use crate::step::{Again, AttentionKernel, Job, Layout, Physics, Schedule, Shape, Stack, Work, estimate};
use lapidary_hardware::{BytesPerSecond, HardwareSpec, LinkTopology, builtin};
use lapidary_models::spec::{Activation, Attention, Bias, Block, Head, Mlp, Multipliers, Norm, NormKind};
use lapidary_models::spec::{Pairing, Position, Residual, Rope, RopeScaling, Tokens, Weights};
use lapidary_models::{ModelSpec, validate};

/// Why a row is not predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Skip(pub String);

/// A row made ready: everything a [`Job`] borrows.
#[derive(Clone, Debug)]
pub struct Case {
    /// The model.
    pub model: ModelSpec,
    /// What one rank does for one sequence.
    pub work: Work,
    /// The machine.
    pub machine: HardwareSpec,
    /// Work of a step.
    pub batch: Batch,
    /// Layout.
    pub layout: Layout,
    /// Attention.
    pub attention: AttentionKernel,
    /// Whether norms are fused.
    pub fused_norm: bool,
    /// Whether the optimizer lives on the host.
    pub offload: bool,
    /// Whether numbers are fp16.
    pub half: bool,
    /// Whether its time is a sum of passes, without what else a step does.
    pub sum: bool,
    /// Software.
    pub stack: &'static Stack,
    /// What was filled in.
    pub assumed: Vec<String>,
    /// Whether the micro-batch and the chunks are still to be chosen.
    open: (bool, bool),
}

impl Case {
    /// Makes a row ready; `campaigns` decide what its columns only infer.
    ///
    /// # Errors
    /// [`Skip`] where a size is missing that no rule fills in.
    pub fn new(row: &Row, campaigns: &Campaigns) -> Result<Case, Skip> {
        let mut case = Case::as_printed(row)?;
        if campaigns.spare(row) && case.layout.recompute != Recompute::None {
            case.layout.recompute = Recompute::None;
            case.assumed.push(
                "nothing recomputed: the column is inferred, and every run of its source fits without".into(),
            );
        }
        if campaigns.sum(row) {
            case.sum = true;
            case.assumed.push("a sum of passes: all times of its source lie on lines".into());
        }
        Ok(case)
    }

    /// A row with every column as it is printed.
    ///
    /// # Errors
    /// As [`Case::new`].
    pub fn as_printed(row: &Row) -> Result<Case, Skip> {
        let mut assumed = Vec::new();
        let stack = stack(row, &mut assumed);
        let model = model(row, &mut assumed)?;
        let gpus = need(row, "gpus")?;
        let machine = machine(row, gpus, &mut assumed)?;
        let global = match row.number("global_batch") {
            Some(global) => global,
            None if row.metric == Metric::Step => return Err(missing("global_batch")),
            None => gpus as f64,
        };
        let batch = Batch { global: global as u64, seq_len: need(row, "seq_len")? };
        let (tensor, pipeline) = (degree(row, "tp", &mut assumed), degree(row, "pp", &mut assumed));
        if tensor * pipeline > gpus || pipeline > model.n_layers {
            return Err(Skip(format!(
                "tp {tensor} x pp {pipeline} do not fit {gpus} GPUs and {} layers",
                model.n_layers
            )));
        }
        let data = data_ranks(row, gpus, tensor * pipeline, &mut assumed);
        let micro_batch = row.count("micro_batch");
        let interleaved = row.word("notes").contains("interleaved schedule") && pipeline > 1;
        let open = (micro_batch.is_none(), row.count("vpp").is_none() && interleaved);
        let micro_batch = micro_batch.unwrap_or(1);
        let attention = attention(row, stack);
        let layout = Layout {
            tensor,
            pipeline,
            chunks: row.count("vpp").unwrap_or(1),
            data,
            context: 1,
            expert: 1,
            micro_batch,
            accumulation: (global / (data * micro_batch) as f64).max(1.0),
            sharding: sharding(row, data, &mut assumed),
            recompute: recompute(row, &mut assumed),
            again: Again::Share(again_share(row.word("act_recompute"))),
            ends: None,
            sequence_parallel: row.word("seq_parallel").eq_ignore_ascii_case("true"),
            schedule: schedule(row.word("framework")),
        };
        let text = format!("{} {}", row.word("framework"), row.word("notes")).to_lowercase();
        let fused_norm =
            stack.fused_norm || row.word("flash_attention").to_lowercase().contains("fused rmsnorm");
        let offload = text.contains("cpu_offload=true");
        let half = row.word("precision").starts_with("fp16");
        let work = Work::new(&model, tensor, batch.seq_len, stack, attention, fused_norm).map_err(Skip)?;
        Ok(Case {
            model,
            work,
            machine,
            batch,
            layout,
            attention,
            fused_norm,
            offload,
            half,
            sum: false,
            stack,
            assumed,
            open,
        })
    }

    /// The job under some constants.
    pub fn job<'a>(&'a self, physics: &'a Physics, stack: &'a Stack) -> Job<'a> {
        Job {
            shape: Shape::of(&self.model),
            work: &self.work,
            batch: self.batch,
            layout: self.layout,
            attention: self.attention,
            fused_norm: self.fused_norm,
            offload: self.offload,
            half: self.half,
            sum: self.sum,
            stack,
            machine: &self.machine,
            physics,
        }
    }

    /// Fills in a micro-batch and chunks that are not printed with the fastest ones, as their authors would have.
    pub fn close(&mut self, physics: &Physics) {
        let (micro, chunks) = self.open;
        let local = self.batch.global as f64 / self.layout.data as f64;
        let layers = (self.model.n_layers / self.layout.pipeline).max(1);
        let divides = |m: &u64| (local / *m as f64).fract() == 0.0;
        // A pipeline's publication that prints no micro-batch means 1 (arXiv 2104.04473, section 5.1).
        let micro_batches: Vec<u64> = match micro && self.layout.pipeline == 1 {
            true => [1, 2, 4, 8].into_iter().filter(divides).collect(),
            false => vec![self.layout.micro_batch],
        };
        let chunk_counts: Vec<u64> = match chunks {
            true => (1..=layers).filter(|c| layers.is_multiple_of(*c)).collect(),
            false => vec![self.layout.chunks],
        };
        let mut best: Option<(f64, Layout)> = None;
        for micro_batch in micro_batches {
            for chunks in &chunk_counts {
                let accumulation = (local / micro_batch as f64).max(1.0);
                let layout = Layout { micro_batch, chunks: *chunks, accumulation, ..self.layout };
                let tried = Case { layout, ..self.clone() };
                let time =
                    estimate(&tried.job(physics, self.stack)).map_or(f64::INFINITY, |found| found.step_s);
                if best.is_none_or(|(least, _)| time < least) {
                    best = Some((time, layout));
                }
            }
        }
        let Some((_, layout)) = best else { return };
        self.layout = layout;
        if micro {
            self.assumed.push(format!("micro-batch {}, not printed", layout.micro_batch));
        }
        if chunks {
            self.assumed.push(format!("{} chunks a rank, not printed", layout.chunks));
        }
        self.open = (false, false);
    }
}

fn missing(column: &str) -> Skip {
    Skip(format!("{column} is not printed"))
}

fn need(row: &Row, column: &'static str) -> Result<u64, Skip> {
    row.count(column).ok_or_else(|| missing(column))
}

fn stack(row: &Row, assumed: &mut Vec<String>) -> &'static Stack {
    let printed = row.word("framework");
    Stack::of_framework(&format!("{printed} {}", row.word("precision"))).unwrap_or_else(|| {
        let name = if row.word("sharding").starts_with("fsdp") { "fsdp-eager" } else { "megatron-2022" };
        assumed.push(format!("software like {name}; `{printed}` is not known"));
        Stack::named(name).unwrap_or(&Stack::builtin()[0])
    })
}

/// Token ids where a publication prints none: GPT-2's vocabulary, padded to 128 as Megatron does.
const DEFAULT_VOCAB: u64 = 50304;

fn model(row: &Row, assumed: &mut Vec<String>) -> Result<ModelSpec, Skip> {
    let (width, layers, heads) = (need(row, "hidden")?, need(row, "layers")?, need(row, "heads")?);
    let vocab = row.count("vocab").unwrap_or_else(|| {
        assumed.push(format!("{DEFAULT_VOCAB} token ids"));
        DEFAULT_VOCAB
    });
    let mlp = row.word("mlp").to_lowercase();
    let gated = mlp.contains("glu");
    let (name, sequence) = (row.word("model"), need(row, "seq_len")?);
    let lower = format!("{name} {}", row.word("framework")).to_lowercase();
    let traits = traits(&lower, vocab);
    let rotary = gated || traits.position == Some(Positions::Rope);
    let alibi = traits.position == Some(Positions::Alibi);
    let head_dim = if width.is_multiple_of(heads) { width / heads } else { width.div_ceil(heads) };
    let spec = ModelSpec {
        name: name.to_string(),
        vocab,
        vocab_padded_to: None,
        d_model: width,
        n_layers: layers,
        n_heads: heads,
        n_kv_heads: row.count("kv_heads").unwrap_or(heads),
        head_dim,
        d_ff: row.count("ffn").unwrap_or(4 * width),
        max_seq: sequence,
        norm: Norm {
            kind: if gated { NormKind::Rms } else { NormKind::Layer },
            eps: 1e-5,
            bias: !gated,
            final_norm: true,
        },
        block: Block {
            residual: if traits.parallel { Residual::Parallel } else { Residual::Sequential },
            shared_norm: false,
        },
        mlp: Mlp {
            act: if gated { Activation::Silu } else { Activation::Gelu },
            gated,
            gate: Default::default(),
        },
        bias: Bias { qkv: !gated, attn_out: !gated, mlp: !gated, head: false },
        pos: position(rotary, alibi, head_dim),
        attn: Attention::default(),
        head: Head { tied: !(gated || rotary) },
        multipliers: Multipliers::default(),
        mup: None,
        experts: None,
        tokens: Tokens::default(),
        weights: Weights::default(),
        dtype: Default::default(),
    };
    match validate(&spec).into_iter().next() {
        None => Ok(spec),
        Some(fault) => Err(Skip(format!("{}: {}", fault.keys.join(", "), fault.message))),
    }
}

fn position(rotary: bool, alibi: bool, head_dim: u64) -> Position {
    match (rotary, alibi) {
        (true, _) => Position::Rope(Rope {
            theta: 10000.0,
            rot_dims: head_dim / 2 * 2,
            pairing: Pairing::Half,
            scaling: RopeScaling::None,
        }),
        (_, true) => Position::Alibi { scaling: 1.0 },
        _ => Position::Learned,
    }
}

fn degree(row: &Row, column: &'static str, assumed: &mut Vec<String>) -> u64 {
    row.count(column).unwrap_or_else(|| {
        assumed.push(format!("{column} 1, not printed"));
        1
    })
}

fn data_ranks(row: &Row, gpus: u64, model_ranks: u64, assumed: &mut Vec<String>) -> u64 {
    let fitting = (gpus / model_ranks).max(1);
    match row.count("dp") {
        Some(ranks) if ranks * model_ranks == gpus => ranks,
        Some(ranks) => {
            assumed.push(format!("dp {fitting} in place of {ranks}, which does not fit {gpus} GPUs"));
            fitting
        }
        None => fitting,
    }
}

/// The machine: a built-in one with the node and the adapters that the row prints.
fn machine(row: &Row, gpus: u64, assumed: &mut Vec<String>) -> Result<HardwareSpec, Skip> {
    let gpu = row.word("gpu").to_uppercase();
    let get = |name: &str| builtin::machine(name).map_err(|error| Skip(error.to_string()));
    let device = match () {
        _ if gpu.starts_with("H200") => get("h200")?.device,
        _ if gpu.starts_with("H100") || gpu.starts_with("H800") => get("h100")?.device,
        _ if gpu.contains("40-SXM") || gpu.contains("40GB") => get("a100-40gb")?.device,
        _ if gpu.starts_with("A100") || gpu.starts_with("A800") || gpu.starts_with("AMPERE") => {
            get("a100-80gb")?.device
        }
        _ => return Err(Skip(format!("no machine file for `{}`", row.word("gpu")))),
    };
    let mut machine = get("dgx-a100")?;
    machine.device = device;
    let per_node = row.count("gpus_per_node").unwrap_or(8);
    machine.node.devices = per_node.min(gpus);
    machine.nodes = gpus.div_ceil(per_node);
    let interconnect = row.word("interconnect");
    if let Some(links) = machine.node.links.as_mut() {
        // A board of four has no switch: four links between each pair.
        if per_node <= 4 {
            links.topology = LinkTopology::Pairs;
            links.bandwidth = BytesPerSecond(100e9);
        }
        if gpu.starts_with("A800") {
            links.bandwidth = BytesPerSecond(links.bandwidth.0 * 2.0 / 3.0);
        }
    }
    if let Some(network) = machine.network.as_mut() {
        match adapters(interconnect) {
            Some((count, gigabits)) => {
                network.adapters = count;
                network.adapter_bandwidth = BytesPerSecond(gigabits * 1e9 / 8.0);
            }
            None if machine.nodes > 1 => {
                network.adapters = per_node;
                assumed.push(format!("{per_node} x 200 Gb/s a node; the network's rate is not printed"));
            }
            None => {}
        }
    }
    Ok(machine)
}

/// Adapters of a node and the rate of one, Gb/s: `8x200Gb/s`, `4xHDR`, `1600Gb/s per node` (as eight).
fn adapters(text: &str) -> Option<(u64, f64)> {
    let lower = text.to_lowercase();
    if let Some(at) = lower.find("xhdr") {
        return Some((trailing_number(&lower[..at])? as u64, 200.0));
    }
    let at = lower.find("gb/s")?;
    let head = lower[..at].trim_end();
    let rate = trailing_number(head)?;
    let before = head.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').trim_end();
    match before.strip_suffix('x').and_then(|rest| trailing_number(rest.trim_end())) {
        Some(count) => Some((count as u64, rate)),
        None if rate >= 400.0 => Some((8, rate / 8.0)),
        None => Some((8, rate)),
    }
}

fn trailing_number(text: &str) -> Option<f64> {
    let start = text.rfind(|c: char| !(c.is_ascii_digit() || c == '.')).map_or(0, |at| at + 1);
    text[start..].parse().ok().filter(|number: &f64| *number > 0.0)
}

fn sharding(row: &Row, data: u64, assumed: &mut Vec<String>) -> Sharding {
    let word = row.word("sharding").to_lowercase();
    let found = match word.as_str() {
        _ if word.starts_with("zero1-in-node") => Sharding::OptimizerInNode,
        _ if word.contains("hsdp") || word.contains("hybrid") => Sharding::Hybrid,
        _ if word.starts_with("fsdp") || word.starts_with("zero3") || word.starts_with("zero-3") => {
            Sharding::Full
        }
        _ if word.starts_with("zero") || word.contains("distributed") => Sharding::Optimizer,
        _ if word.starts_with("ddp") || word == "none" => Sharding::None,
        _ => {
            assumed.push("state not sharded".to_string());
            Sharding::None
        }
    };
    if data == 1 { Sharding::None } else { found }
}

fn recompute(row: &Row, assumed: &mut Vec<String>) -> Recompute {
    let word = row.word("act_recompute").to_lowercase();
    match word.as_str() {
        _ if word.starts_with("full") || word == "true" || word == "yes" => Recompute::Full,
        _ if again_share(&word) < 1.0 => Recompute::Full,
        _ if word.starts_with("selective") => Recompute::Selective,
        _ if word.starts_with("none") || word == "false" || word == "no" => Recompute::None,
        _ => {
            assumed.push("nothing recomputed".to_string());
            Recompute::None
        }
    }
}

/// Part of the layers that are recomputed: `selective 1/2`, `every 2nd layer`.
fn again_share(word: &str) -> f64 {
    let lower = word.to_lowercase();
    if let Some((head, tail)) = lower.split_once('/') {
        let below: String = tail.chars().take_while(char::is_ascii_digit).collect();
        if let (Some(above), Ok(below)) = (trailing_number(head), below.parse::<f64>()) {
            return (above / below).clamp(0.0, 1.0);
        }
    }
    if let Some(at) = lower.find("every ") {
        let digits: String = lower[at + 6..].chars().take_while(char::is_ascii_digit).collect();
        return digits.parse::<f64>().map_or(1.0, |n| 1.0 / n.max(1.0));
    }
    1.0
}

fn schedule(framework: &str) -> Schedule {
    match () {
        _ if framework.contains("ZB-2p") => Schedule::ZeroBubble2,
        _ if framework.contains("ZB-1p") => Schedule::ZeroBubble1,
        _ => Schedule::OneForwardOneBackward,
    }
}

fn attention(row: &Row, stack: &Stack) -> AttentionKernel {
    let word = row.word("flash_attention").to_lowercase();
    let flash = if stack.attention.flash() { stack.attention } else { AttentionKernel::Flash1 };
    match word.as_str() {
        "" => stack.attention,
        _ if word.contains("unfused") => AttentionKernel::Unfused,
        _ if word.contains("triton") => AttentionKernel::Flash1Triton,
        _ if word.contains("fa2") || word.contains("flash_attn>=2") || word.contains("sdpa") => {
            AttentionKernel::Flash2
        }
        _ if word.contains("fa1") || word.contains("xformers") => AttentionKernel::Flash1,
        _ if word.starts_with("no") && stack.attention.flash() => AttentionKernel::Unfused,
        _ if word.starts_with("no") => stack.attention,
        _ => flash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_they_are_printed() {
        let read = |text| adapters(text);
        assert_eq!(read("8x200Gb/s HDR IB per node"), Some((8, 200.0)));
        assert_eq!(read("4x100Gb/s Omni-Path per node; NVLink4"), Some((4, 100.0)));
        assert_eq!(read("1600Gb/s RoCE per node"), Some((8, 200.0)));
        assert_eq!(read("NVLink3/NVSwitch; HDR IB (paper: 200Gb/s)"), Some((8, 200.0)));
        assert_eq!(read("4xHDR? (paper: ConnectX-6 HDR switches)"), Some((4, 200.0)));
        assert_eq!(read("single node, NVSwitch"), None);
    }

    #[test]
    fn parts_of_layers_are_read() {
        assert_eq!(again_share("selective 1/2"), 0.5);
        assert_eq!(again_share("selective (every 2nd layer)"), 0.5);
        assert_eq!(again_share("full"), 1.0);
    }
}
