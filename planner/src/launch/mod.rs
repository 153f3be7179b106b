//! A plan as scripts that start it: `torchrun` on every node, a Slurm job over the nodes, Megatron-LM with its flags.
//!
//! The Slurm job runs whatever command stands behind it once on each node, so
//! `sbatch slurm.sbatch ./megatron.sh --data-path ...` starts a plan as it stands.

mod megatron;

pub use megatron::{KNOWN, RELEASE};

use crate::plan::{Degrees, GpuPlan};
use crate::{Candidate, PlanDocument};
use lapidary_models::ModelSpec;

/// What starts a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// PyTorch's launcher, with the plan's degrees in its environment.
    Torchrun,
    /// A Slurm job that runs one command on each node.
    Slurm,
    /// Megatron-LM under `torchrun`, with the flags that mean the plan.
    Megatron,
}

/// A script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Name of its file.
    pub file: &'static str,
    /// Its text, for bash.
    pub text: String,
}

/// Why a plan cannot be started so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// No plan fits, so none is chosen.
    #[error("no plan is chosen, so there is nothing to start")]
    Nothing,
    /// The plan is for wafers.
    #[error("{name} is a plan for wafers; torchrun, Slurm and Megatron-LM start plans for GPUs")]
    Wafer {
        /// The plan.
        name: String,
    },
    /// Megatron-LM has no flags for a part of the model or of the plan.
    #[error("Megatron-LM ({release}) has no flag for {what}")]
    Flag {
        /// Its release.
        release: &'static str,
        /// What it lacks.
        what: String,
    },
}

/// The script that starts the chosen plan of a document.
///
/// # Errors
/// [`LaunchError`] where nothing is chosen, the plan is for wafers, or Megatron-LM lacks a flag.
pub fn launch(document: &PlanDocument, model: &ModelSpec, launcher: Launcher) -> Result<Script, LaunchError> {
    let chosen = document.chosen().ok_or(LaunchError::Nothing)?;
    let Degrees::Gpu(plan) = chosen.degrees else {
        return Err(LaunchError::Wafer { name: chosen.name.clone() });
    };
    let head = head(document, chosen);
    Ok(match launcher {
        Launcher::Torchrun => Script {
            file: "torchrun.sh",
            text: format!("{head}{}{}", environment(&plan), started(document, "\"$@\"")),
        },
        Launcher::Slurm => Script { file: "slurm.sbatch", text: slurm(document, chosen) },
        Launcher::Megatron => {
            let flags = megatron::flags(model, document, &plan)?;
            let call = started(document, "pretrain_gpt.py \"${FLAGS[@]}\" \"$@\"");
            Script { file: "megatron.sh", text: format!("{head}{flags}{call}") }
        }
    })
}

/// Interpreter, what it is, and strictness.
fn head(document: &PlanDocument, chosen: &Candidate) -> String {
    format!("#!/usr/bin/env bash\n{}set -euo pipefail\n\n", about(document, chosen))
}

/// What a script starts, as comments.
fn about(document: &PlanDocument, chosen: &Candidate) -> String {
    let inputs = &document.inputs;
    let step = chosen.step_time_s.map_or(String::new(), |time| format!("; {time:.3} s a step are expected"));
    format!(
        "# {} on {} x {} ({}): plan {}{step}\n",
        word(&inputs.model),
        inputs.devices,
        word(&inputs.device),
        word(&inputs.machine),
        chosen.name,
    )
}

/// A text that stays on its line.
fn word(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// The plan's degrees for a training script of one's own.
fn environment(plan: &GpuPlan) -> String {
    let pairs = [
        ("TENSOR_PARALLEL", plan.tp),
        ("CONTEXT_PARALLEL", plan.cp),
        ("PIPELINE_PARALLEL", plan.pp),
        ("DATA_PARALLEL", plan.dp),
        ("MICRO_BATCH", plan.micro_batch),
        ("ACCUMULATION", plan.accumulation),
        ("CHUNKS", plan.chunks),
        ("FIRST_STAGE_LAYERS", plan.first_layers),
        ("LAST_STAGE_LAYERS", plan.last_layers),
    ];
    let numbers = pairs.map(|(name, value)| format!("export LAPIDARY_{name}={value}\n")).concat();
    let rows = if plan.sequence_parallel { "on" } else { "off" };
    let (sharding, recompute) = (plan.sharding.name(), plan.recompute_word());
    let layers =
        plan.recompute_layers.map_or(String::new(), |n| format!("export LAPIDARY_RECOMPUTE_LAYERS={n}\n"));
    format!(
        "# Ranks are numbered tensor innermost, then context, data and pipeline.\n{numbers}export LAPIDARY_SEQUENCE_PARALLEL={rows}\nexport LAPIDARY_SHARDING={sharding}\nexport LAPIDARY_RECOMPUTE={recompute}\n{layers}\n"
    )
}

/// Nodes of a plan, and processes of each.
fn nodes(document: &PlanDocument) -> (u64, u64) {
    let (devices, per_node) = (document.inputs.devices, document.inputs.devices_per_node.max(1));
    (devices.div_ceil(per_node), per_node.min(devices))
}

/// `torchrun` with a process for each device; several nodes meet at `MASTER_ADDR`.
fn started(document: &PlanDocument, what: &str) -> String {
    let (nodes, processes) = nodes(document);
    let (meet, rendezvous) = match nodes {
        1 => (String::new(), "--standalone".to_string()),
        _ => (
            ": \"${MASTER_ADDR:?the host of the first node}\"\n".to_string(),
            "--rdzv-backend c10d --rdzv-endpoint \"$MASTER_ADDR:${MASTER_PORT:-29500}\" --rdzv-id \"${SLURM_JOB_ID:-lapidary}\"".to_string(),
        ),
    };
    format!("{meet}exec torchrun --nnodes {nodes} --nproc-per-node {processes} {rendezvous} \\\n    {what}\n")
}

/// A job of whole nodes; its arguments are the command that runs on each.
fn slurm(document: &PlanDocument, chosen: &Candidate) -> String {
    let (nodes, processes) = nodes(document);
    let about = about(document, chosen);
    format!(
        "#!/usr/bin/env bash\n#SBATCH --job-name=lapidary\n#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node={processes}\n#SBATCH --exclusive\n{about}# sbatch slurm.sbatch ./megatron.sh ...\nset -euo pipefail\n\nif [ \"$#\" -eq 0 ]; then\n    echo \"usage: sbatch slurm.sbatch COMMAND...\" >&2\n    exit 2\nfi\nhosts=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\")\nexport MASTER_ADDR=${{hosts%%$'\\n'*}}\nsrun \"$@\"\n"
    )
}
