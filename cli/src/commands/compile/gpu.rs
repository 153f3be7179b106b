//! The GPU side of a compilation: program, CUDA C++, PTX and cubin.

use super::report::{Measured, Report};
use super::{Emitted, Job};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{show, toolchain};
use lapidary_hardware::HardwareSpec;
use lapidary_ir::Module;
use lapidary_passes::cuda::{Lowered, Options};
use lapidary_passes::lower_to_cuda::emit_gpu;
use lapidary_passes::report::PipelineReport;
use lapidary_runtime_gpu::bench::Tunings;
use lapidary_runtime_gpu::compile::{
    CompileError, CompileOptions, Compiled, Nvrtc, Source, apply, compile_all,
};
use lapidary_runtime_gpu::program::{BufferKind, ChosenBy, GpuProgram, Kernel};

/// Classes of device memory that a program uses. Weights and optimizer state are the same for every batch.
const CLASSES: [(&str, BufferKind); 8] = [
    ("weights", BufferKind::Param),
    ("weights", BufferKind::Weight),
    ("optimizer_state", BufferKind::State),
    ("kept_activations", BufferKind::Kept),
    ("kv_cache", BufferKind::Cache),
    ("activations", BufferKind::Arena),
    ("inputs", BufferKind::Input),
    ("outputs", BufferKind::Output),
];

/// Emits the program and its kernels into the artifact.
pub fn emit(
    job: &Job<'_>,
    (module, passes): (&Module<'_>, &PipelineReport),
    artifact: &mut Artifact,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<Emitted, Failure> {
    let lowered = match super::trains(job.args) {
        true => progress.stage("lowering to CUDA", || train(job, module))?,
        false => passes.gpu.clone().ok_or_else(|| {
            Failure::new(Exit::Usage, "--passes: the pipeline makes no GPU program")
                .help("end it with lower-to-cuda")
        })?,
    };
    let Lowered { mut program, sources, .. } = lowered;
    account(&program, report);
    note_tunings(job, &program, report);
    if let Some(failure) = over(job, report) {
        return Ok(Emitted { over: Some(failure) });
    }
    for source in sources.iter().filter(|_| job.emit.wants("cuda")) {
        artifact.add(&source.file, source.text.clone());
    }
    let sources: Vec<Source> =
        sources.iter().map(|s| Source { name: s.name.clone(), text: s.text.clone() }).collect();
    let compiled = progress.stage("compiling kernels", || machine_code(job, &sources, report))?;
    for (source, compiled) in sources.iter().zip(compiled) {
        apply(&mut program, &source.name, &compiled.resources);
        add(job, artifact, &source.name, compiled);
    }
    checked(&program)?;
    report.kernels = Some(kernels(&program)?);
    artifact.add_json("program.json", &program)?;
    Ok(Emitted { over: None })
}

/// The program of a training step. It leaves the module as it was fused: the IR has no words for what a step keeps from
/// run to run.
fn train(job: &Job<'_>, module: &Module<'_>) -> Result<Lowered, Failure> {
    let gpu = job.machine.as_ref().and_then(HardwareSpec::gpu);
    let processors = gpu.map_or(Options::default().processors, |gpu| gpu.multiprocessor.count);
    let measured = job.tunings.as_ref().map(Tunings::fastest).unwrap_or_default();
    let options = Options { processors, measured, ..Options::default() };
    emit_gpu(module, arch(job), &options)
        .map_err(|error| Failure::diagnosed(false, "cuda", &error.diagnostics(), &error.to_string()))
}

/// Machine code, as far as it was asked for.
pub fn add(job: &Job<'_>, artifact: &mut Artifact, name: &str, compiled: Compiled) {
    if job.emit.wants("ptx") {
        artifact.add(format!("kernels/{name}.ptx"), compiled.ptx);
    }
    if job.emit.wants("cubin") {
        artifact.add(format!("kernels/{name}.cubin"), compiled.cubin);
    }
}

/// A program that fails its own check is a fault of the compiler.
pub fn checked(program: &GpuProgram) -> Result<(), Failure> {
    program.clone().check().map(drop).map_err(|faults| {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, format!("the program does not pass its check: {}", told.join("; ")))
    })
}

/// Architecture of the machine's GPUs.
pub fn arch<'j>(job: &'j Job<'_>) -> &'j str {
    job.machine.as_ref().and_then(HardwareSpec::gpu).map_or("sm_80", |gpu| &gpu.architecture)
}

/// PTX and cubin of every source; nothing, with a warning, where NVRTC is missing and nobody insisted.
pub fn machine_code(
    job: &Job<'_>,
    sources: &[Source],
    report: &mut Report,
) -> Result<Vec<Compiled>, Failure> {
    let wanted = ["ptx", "cubin"].iter().any(|word| job.emit.wants(word));
    if !wanted {
        return Ok(Vec::new());
    }
    let insisted = ["ptx", "cubin"].iter().any(|word| job.emit.insists(word));
    let nvrtc = match toolchain::nvrtc() {
        Ok(nvrtc) => nvrtc,
        Err(error) if insisted => return Err(Failure::new(Exit::Missing, error.to_string())),
        Err(error) => {
            report.warnings.push(format!("PTX, cubin and resources are left out: {error}"));
            return Ok(Vec::new());
        }
    };
    compile(job, &nvrtc, sources)
}

fn compile(job: &Job<'_>, nvrtc: &Nvrtc, sources: &[Source]) -> Result<Vec<Compiled>, Failure> {
    let options =
        CompileOptions { cache: toolchain::kernel_cache(), jobs: job.jobs, ..CompileOptions::new(arch(job)) };
    compile_all(nvrtc, sources, &options).into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| {
        let exit = match error {
            CompileError::Missing { .. } => Exit::Missing,
            CompileError::Cache { .. } => Exit::InvalidInput,
            _ => Exit::Internal,
        };
        Failure::new(exit, error.to_string())
    })
}

/// Whose measurements chose forms, how many, and a warning where the GPU is of another kind.
fn note_tunings(job: &Job<'_>, program: &GpuProgram, report: &mut Report) {
    let Some(tunings) = &job.tunings else { return };
    let measured = |kernel: &&Kernel| kernel.choice.as_ref().is_some_and(|c| c.by == ChosenBy::Measured);
    let used = program.kernels.iter().filter(measured).count();
    report.tunings =
        Some(Measured { device: tunings.device.clone(), driver: tunings.driver.clone(), kernels: used });
    let product = job.machine.as_ref().map(|machine| machine.device.product()).unwrap_or_default();
    if toolchain::kind(&tunings.device) != toolchain::kind(product) {
        report.warnings.push(format!("forms were measured on {}, the machine has {product}", tunings.device));
    }
}

/// Memory of a device by class.
pub fn account(program: &GpuProgram, report: &mut Report) {
    for (class, kind) in CLASSES {
        *report.memory_bytes.entry(class.to_string()).or_default() += program.bytes_of(kind);
    }
    let workspace = program.library_bytes();
    if workspace > 0 {
        report.memory_bytes.insert("library_workspace".into(), workspace);
    }
    tracing::info!(
        "arena {} of {} without reuse, machine {}",
        show::bytes(program.arena_bytes),
        show::bytes(program.arena_naive_bytes),
        report.machine
    );
}

/// Whether the program exceeds a device, with the smallest change that fits.
pub fn over(job: &Job<'_>, report: &Report) -> Option<Failure> {
    let (total, machine) = (report.memory_bytes.values().sum::<u64>(), job.machine.as_ref()?);
    let capacity = report.memory_capacity_bytes.filter(|capacity| total > *capacity)?;
    let (class, bytes) = report.memory_bytes.iter().max_by_key(|(_, bytes)| **bytes)?;
    let reason = format!(
        "{} needs {} on each {}, {} more than its {}; {class} is the largest part with {}",
        job.spec.name,
        show::bytes(total),
        machine.device.product(),
        show::bytes(total - capacity),
        show::bytes(capacity),
        show::bytes(*bytes),
    );
    Some(Failure::new(Exit::DoesNotFit, reason).help(smallest_change(job, report, capacity)))
}

/// Weights stay whatever the batch; the rest shrinks with it.
fn smallest_change(job: &Job<'_>, report: &Report, capacity: u64) -> String {
    let of = |class: &str| report.memory_bytes.get(class).copied().unwrap_or(0);
    let weights = of("weights") + of("optimizer_state");
    let rest = report.memory_bytes.values().sum::<u64>() - weights;
    let batch = job.graph.dims.batch;
    let room = capacity.saturating_sub(weights);
    let fitting = (u128::from(batch) * u128::from(room) / u128::from(rest.max(1))) as u64;
    if weights < capacity && fitting > 0 && fitting < batch {
        return format!("--batch {fitting} would fit");
    }
    let devices = (weights + rest / batch).div_ceil(capacity).next_power_of_two();
    format!("spread over {devices} devices it would fit: see `lapidary plan`")
}

/// The kernels as the report has them.
pub fn kernels(program: &GpuProgram) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(&program.kernels)
        .map_err(|error| Failure::new(Exit::Internal, format!("report: kernels: {error}")))
}
