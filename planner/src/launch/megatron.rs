//! A model and a plan as flags of Megatron-LM.
//!
//! Every flag is an argument of `megatron/training/arguments.py` of NVIDIA/Megatron-LM at [`RELEASE`]; what has no flag
//! there is refused by name. Data, tokenizer, learning rate and length of the run are the user's own arguments.

use super::LaunchError;
use crate::PlanDocument;
use crate::plan::{GpuPlan, Recompute, Sharding};
use crate::step::job::split_layers;
use lapidary_models::spec::{Activation, AttentionScale, NormKind, Pairing, Position, Residual, RopeScaling};
use lapidary_models::{DType, ModelSpec};

/// The release that the flags are taken from.
pub const RELEASE: &str = "core_v0.13.0";

/// Every flag that may be written, sorted; each stands in the release's `arguments.py`.
pub const KNOWN: [&str; 53] = [
    "--add-qkv-bias",
    "--attention-dropout",
    "--bf16",
    "--context-parallel-size",
    "--data-parallel-sharding-strategy",
    "--disable-bias-linear",
    "--expert-model-parallel-size",
    "--ffn-hidden-size",
    "--fp16",
    "--global-batch-size",
    "--group-query-attention",
    "--hidden-dropout",
    "--hidden-size",
    "--kv-channels",
    "--make-vocab-size-divisible-by",
    "--max-position-embeddings",
    "--micro-batch-size",
    "--moe-expert-capacity-factor",
    "--moe-layer-freq",
    "--moe-pad-expert-input-to-capacity",
    "--moe-router-topk",
    "--moe-token-dispatcher-type",
    "--no-bias-gelu-fusion",
    "--no-gradient-accumulation-fusion",
    "--no-rope-fusion",
    "--norm-epsilon",
    "--normalization",
    "--num-attention-heads",
    "--num-distributed-optimizer-instances",
    "--num-experts",
    "--num-layers",
    "--num-query-groups",
    "--num-virtual-stages-per-pipeline-rank",
    "--pipeline-model-parallel-layout",
    "--pipeline-model-parallel-size",
    "--position-embedding-type",
    "--recompute-granularity",
    "--recompute-method",
    "--recompute-modules",
    "--recompute-num-layers",
    "--rotary-base",
    "--rotary-interleaved",
    "--rotary-percent",
    "--seq-length",
    "--sequence-parallel",
    "--squared-relu",
    "--swiglu",
    "--tensor-model-parallel-size",
    "--untie-embeddings-and-output-weights",
    "--use-custom-fsdp",
    "--use-distributed-optimizer",
    "--use-mcore-models",
    "--vocab-size",
];

/// Flags in the order in which they are written.
#[derive(Default)]
struct Flags(Vec<String>);

impl Flags {
    fn yes(&mut self, flag: &str) {
        self.0.push(flag.to_string());
    }

    fn of(&mut self, flag: &str, value: impl std::fmt::Display) {
        self.0.push(format!("{flag} {value}"));
    }
}

fn lacking(what: impl Into<String>) -> LaunchError {
    LaunchError::Flag { release: RELEASE, what: what.into() }
}

/// The array `FLAGS` and what the flags need of the environment.
pub(super) fn flags(
    model: &ModelSpec,
    document: &PlanDocument,
    plan: &GpuPlan,
) -> Result<String, LaunchError> {
    let (mut of_model, mut of_plan) = (Flags::default(), Flags::default());
    sizes(model, document, &mut of_model);
    kinds(model, &mut of_model)?;
    degrees(model, document, plan, &mut of_plan);
    state(document, plan, &mut of_plan)?;
    recomputation(plan, &mut of_plan);
    let lines = |flags: &Flags| flags.0.iter().map(|flag| format!("    {flag}\n")).collect::<String>();
    // Megatron-LM asks for one queue of launches where collectives shall run beside kernels, and for more under FSDP.
    let queue = match (plan.tp * plan.cp > 1, plan.sharding.gathers()) {
        (true, false) => "export CUDA_DEVICE_MAX_CONNECTIONS=1\n",
        _ => "",
    };
    Ok(format!(
        "# Run in a checkout of NVIDIA/Megatron-LM at {RELEASE}; data, tokenizer, learning rate and length of the run are\n# this script's arguments.\n{queue}FLAGS=(\n    # the model\n{}    # the plan\n{})\n\n",
        lines(&of_model),
        lines(&of_plan)
    ))
}

fn sizes(model: &ModelSpec, document: &PlanDocument, flags: &mut Flags) {
    flags.yes("--use-mcore-models");
    flags.of("--num-layers", model.n_layers);
    flags.of("--hidden-size", model.d_model);
    flags.of("--ffn-hidden-size", model.d_ff);
    flags.of("--num-attention-heads", model.n_heads);
    flags.of("--kv-channels", model.head_dim);
    if model.n_kv_heads != model.n_heads {
        flags.yes("--group-query-attention");
        flags.of("--num-query-groups", model.n_kv_heads);
    }
    flags.of("--vocab-size", model.vocab_padded_to.unwrap_or(model.vocab));
    flags.of("--make-vocab-size-divisible-by", 128);
    flags.of("--seq-length", document.inputs.seq_len);
    flags.of("--max-position-embeddings", model.max_seq);
    flags.of("--attention-dropout", 0);
    flags.of("--hidden-dropout", 0);
}

/// What kind of transformer it is.
fn kinds(model: &ModelSpec, flags: &mut Flags) -> Result<(), LaunchError> {
    positions(model, flags)?;
    let norm = if model.norm.kind == NormKind::Rms { "RMSNorm" } else { "LayerNorm" };
    flags.of("--normalization", norm);
    flags.of("--norm-epsilon", model.norm.eps);
    match (model.mlp.act, model.mlp.gated) {
        (Activation::Silu, true) => flags.yes("--swiglu"),
        (Activation::Relu2, false) => flags.yes("--squared-relu"),
        (Activation::Gelu, false) => flags.yes("--no-bias-gelu-fusion"),
        // The fused kernel's own approximation.
        (Activation::GeluTanh, false) if model.bias.mlp => {}
        (act, gated) => {
            let gate = if gated { "a gated" } else { "an ungated" };
            return Err(lacking(format!("{gate} MLP with {}", act.name())));
        }
    }
    let bias = model.bias;
    match (bias.qkv, bias.attn_out, bias.mlp) {
        (true, true, true) => {}
        (false, false, false) => flags.yes("--disable-bias-linear"),
        (true, false, false) => {
            flags.yes("--disable-bias-linear");
            flags.yes("--add-qkv-bias");
        }
        _ => return Err(lacking("biases of some linears of a block alone")),
    }
    if !model.head.tied {
        flags.yes("--untie-embeddings-and-output-weights");
    }
    match unusual(model) {
        Some(what) => Err(lacking(what)),
        None => Ok(()),
    }
}

/// The first part of a model that no flag names.
fn unusual(model: &ModelSpec) -> Option<&'static str> {
    let one = |factor: f64| factor == 1.0;
    let multipliers = model.multipliers;
    let plain = one(multipliers.embedding) && one(multipliers.logits) && one(multipliers.residual);
    [
        (model.block.residual == Residual::Parallel, "a parallel residual"),
        (model.norm.kind == NormKind::Layer && !model.norm.bias, "a LayerNorm without bias"),
        (!model.norm.final_norm, "a model without a final norm"),
        (model.bias.head, "a bias of the head"),
        (!plain || model.mup.is_some(), "multipliers of muP"),
        (model.attn.scale != AttentionScale::HeadDimPower(-0.5), "another scale of the scores"),
        (model.attn.window.is_some(), "a window of attention"),
    ]
    .into_iter()
    .find_map(|(there, what)| there.then_some(what))
}

fn positions(model: &ModelSpec, flags: &mut Flags) -> Result<(), LaunchError> {
    let kind = match &model.pos {
        Position::None => "none",
        Position::Learned => "learned_absolute",
        Position::Rope(_) => "rope",
        Position::Alibi { .. } => return Err(lacking("ALiBi")),
    };
    flags.of("--position-embedding-type", kind);
    let Position::Rope(rope) = &model.pos else { return Ok(()) };
    if rope.scaling != RopeScaling::None || rope.theta.fract() != 0.0 {
        return Err(lacking("scaled or broken bases of rotation"));
    }
    flags.of("--rotary-base", rope.theta);
    flags.of("--rotary-percent", rope.rot_dims as f64 / model.head_dim as f64);
    if rope.pairing == Pairing::Interleaved {
        flags.yes("--rotary-interleaved");
        flags.yes("--no-rope-fusion");
    }
    Ok(())
}

fn degrees(model: &ModelSpec, document: &PlanDocument, plan: &GpuPlan, flags: &mut Flags) {
    match model.dtype.compute {
        DType::Bf16 => flags.yes("--bf16"),
        DType::F16 => flags.yes("--fp16"),
        DType::F32 | DType::I32 => {}
    }
    flags.of("--tensor-model-parallel-size", plan.tp);
    flags.of("--pipeline-model-parallel-size", plan.pp);
    flags.of("--context-parallel-size", plan.cp);
    if plan.sequence_parallel && plan.tp > 1 {
        flags.yes("--sequence-parallel");
    }
    if plan.chunks > 1 {
        flags.of("--num-virtual-stages-per-pipeline-rank", plan.chunks);
    } else if let Some(layout) = layout(model.n_layers, plan) {
        flags.of("--pipeline-model-parallel-layout", format!("'{layout}'"));
    }
    if let Some(experts) = model.experts {
        flags.of("--num-experts", experts.count);
        flags.of("--moe-router-topk", experts.top_k);
        flags.of("--moe-layer-freq", experts.every);
        flags.of("--expert-model-parallel-size", plan.ep);
        flags.of("--moe-token-dispatcher-type", "alltoall");
        if let Some(capacity) = experts.capacity {
            flags.of("--moe-expert-capacity-factor", capacity);
            flags.yes("--moe-pad-expert-input-to-capacity");
        }
    }
    flags.of("--micro-batch-size", plan.micro_batch);
    flags.of("--global-batch-size", document.inputs.global_batch);
}

/// Layers by stage where stages are not alike: `E` embedding, `t` a layer, `L` loss, `|` between stages.
fn layout(layers: u64, plan: &GpuPlan) -> Option<String> {
    let of = |stage| split_layers(layers, plan.pp, (plan.first_layers, plan.last_layers), stage);
    let stages: Vec<u64> = (0..plan.pp).map(of).collect();
    if stages.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let stages: Vec<String> = stages.into_iter().map(|count| "t".repeat(count as usize)).collect();
    Some(format!("E{}L", stages.join("|")))
}

fn state(document: &PlanDocument, plan: &GpuPlan, flags: &mut Flags) -> Result<(), LaunchError> {
    match plan.sharding {
        Sharding::None => {}
        Sharding::Optimizer => flags.yes("--use-distributed-optimizer"),
        Sharding::OptimizerInNode => {
            flags.yes("--use-distributed-optimizer");
            let inside = (document.inputs.devices_per_node / plan.tp).clamp(1, plan.dp);
            flags.of("--num-distributed-optimizer-instances", plan.dp / inside);
        }
        Sharding::Full => {
            flags.yes("--use-distributed-optimizer");
            flags.yes("--use-custom-fsdp");
            flags.of("--data-parallel-sharding-strategy", "optim_grads_params");
            flags.yes("--no-gradient-accumulation-fusion");
        }
        Sharding::Hybrid => return Err(lacking("weights sharded over a node and repeated across nodes")),
    }
    Ok(())
}

fn recomputation(plan: &GpuPlan, flags: &mut Flags) {
    match plan.recompute {
        Recompute::None => {}
        Recompute::Selective => {
            flags.of("--recompute-granularity", "selective");
            flags.of("--recompute-modules", "core_attn layernorm");
        }
        Recompute::Full => {
            flags.of("--recompute-granularity", "full");
            let (method, layers) = match plan.recompute_layers {
                None => ("uniform", 1),
                // Counted in each chunk of a stage.
                Some(layers) => ("block", layers.div_ceil(plan.chunks)),
            };
            flags.of("--recompute-method", method);
            flags.of("--recompute-num-layers", layers);
        }
    }
}
