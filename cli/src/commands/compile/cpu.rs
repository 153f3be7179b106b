//! The host side of a compilation: one program for every batch, prompt and cached length.

use super::report::Report;
use super::{Emitted, Job};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use lapidary_ir::Module;
use lapidary_models::DType;
use lapidary_passes::cpu::Options;
use lapidary_passes::lower_to_cpu::{emit_cpu, emit_cpu_training};
use lapidary_runtime_cpu::program::WeightType;

/// Emits the program into the artifact. Matrices and the cache are in the model's compute type.
pub fn emit(
    job: &Job<'_>,
    module: &Module<'_>,
    artifact: &mut Artifact,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<Emitted, Failure> {
    if super::trains(job.args) {
        return train(job, module, artifact, report, progress);
    }
    let weights = match job.spec.dtype.compute {
        DType::Bf16 => WeightType::Bf16,
        _ => WeightType::F32,
    };
    let program = progress
        .stage("lowering to the host", || emit_cpu(module, &job.spec, &Options::all(weights)))
        .map_err(|error| Failure::diagnosed(false, "host", &error.diagnostics(), &error.to_string()))?;
    let dims = job.graph.dims;
    let sizes = [
        ("weights", program.weight_bytes()),
        ("kv_cache", program.cache_bytes_per_token() * dims.batch * dims.keys()),
        ("activations", program.activation_bytes_per_token() * dims.tokens()),
    ];
    report.memory_bytes.extend(sizes.map(|(class, bytes)| (class.to_string(), bytes)));
    program.clone().check().map(drop).map_err(|faults| {
        Failure::new(Exit::Internal, format!("the program does not pass its check: {faults}"))
    })?;
    artifact.add_json("program.json", &program)?;
    Ok(Emitted { over: None })
}

/// Emits a training step: weights, gradients and moments in f32.
fn train(
    job: &Job<'_>,
    module: &Module<'_>,
    artifact: &mut Artifact,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<Emitted, Failure> {
    let program = progress
        .stage("lowering to the host", || emit_cpu_training(module, &job.spec))
        .map_err(|error| Failure::diagnosed(false, "host", &error.diagnostics(), &error.to_string()))?;
    let weights = job.graph.parameters().saturating_mul(4);
    let kept = program.kept_bytes_per_token().saturating_mul(job.graph.dims.tokens());
    let sizes = [
        ("weights", weights),
        ("gradients", weights),
        ("optimizer_state", weights.saturating_mul(2)),
        ("kept_activations", kept),
    ];
    report.memory_bytes.extend(sizes.map(|(class, bytes)| (class.to_string(), bytes)));
    artifact.add_json("program.json", &*program)?;
    Ok(Emitted { over: None })
}
