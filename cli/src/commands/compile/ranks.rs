//! Compiling for a plan: the program of every rank of a replica, the kernels that they share, and scripts that start them.
//!
//! ```text
//! launch.json                          the plan, and which program each rank runs
//! launch/{torchrun,mpirun}.sh, slurm.sbatch   of programs that make text
//! ranks/stageS-rankR/program.json      stage S of the pipeline, rank R of its tensor-parallel group; replicas run the same
//! kernels/NAME.cu, .ptx, .cubin        once for each text, whoever launches it
//! ```

use super::front::Outcome;
use super::gpu::{self, account, checked};
use super::report::Report;
use super::{Emitted, Job};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::host;
use crate::progress::Progress;
use lapidary_hardware::HardwareSpec;
use lapidary_ir::IrContext;
use lapidary_models::shard::{Degrees, Place, StateSharding, Way};
use lapidary_passes::cuda::{Lowered, Options};
use lapidary_passes::lower_to_cpu::Together;
use lapidary_passes::lower_to_cuda::{emit_gpu_part, emit_gpu_training_part};
use lapidary_passes::pipeline::{rank_pipeline, rank_training};
use lapidary_passes::report::PipelineReport;
use lapidary_passes::run::Watch;
use lapidary_passes::shard::shard_text;
use lapidary_passes::{Fusion, Goal};
use lapidary_runtime_gpu::collectives::Standing;
use lapidary_runtime_gpu::compile::{Source, apply};
use lapidary_runtime_gpu::program::{GpuProgram, check_together};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// What a plan spreads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Tensor-parallel ranks and stages.
    pub degrees: Degrees,
    /// Replicas.
    pub replicas: u64,
    /// How a training step is spread beyond that; looked at where one is compiled.
    pub way: Way,
    /// Micro-batches of a training step.
    pub micros: u64,
    /// What of the state of a training step a replica holds alone.
    pub sharding: StateSharding,
}

impl Spread {
    /// The plan in a word.
    pub fn plan(&self) -> String {
        format!("tp{}pp{}dp{}", self.degrees.tensor, self.degrees.pipeline, self.replicas)
    }

    fn world(&self) -> u64 {
        self.degrees.tensor * self.degrees.pipeline * self.replicas
    }

    fn places(&self) -> Vec<Place> {
        let Degrees { tensor, pipeline } = self.degrees;
        (0..pipeline).flat_map(|stage| (0..tensor).map(move |tensor| Place { tensor, stage })).collect()
    }
}

/// The document `launch.json`.
#[derive(Debug, Serialize)]
struct Launch {
    schema: &'static str,
    version: u32,
    model: String,
    plan: String,
    world: u64,
    ranks: Vec<Rank>,
}

/// One rank of the job.
#[derive(Debug, Serialize)]
struct Rank {
    rank: u64,
    stage: u64,
    tensor: u64,
    replica: u64,
    program: String,
}

/// Compiles every rank's program into the artifact; the report tells of the fullest one.
///
/// # Errors
/// Exit 5 for a model that cannot be spread so, and as [`gpu::emit`].
pub fn run(
    job: &Job<'_>,
    spread: &Spread,
    artifact: &mut Artifact,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let mut outcome = Outcome { passes: PipelineReport::default(), emitted: None };
    let mut parts = Vec::new();
    for place in spread.places() {
        let what = format!("lowering rank {} of stage {}", place.tensor, place.stage);
        let (passes, lowered) = progress.stage(&what, || part(job, spread, place))?;
        if parts.is_empty() {
            outcome.passes = passes;
        }
        parts.push((place, lowered));
    }
    let programs: Vec<&GpuProgram> = parts.iter().map(|(_, lowered)| &lowered.program).collect();
    check_together(&programs).map_err(|faults| {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, format!("the ranks' programs do not go together: {}", told.join("; ")))
    })?;
    let bytes = |program: &GpuProgram| {
        let mut own = Report::new(job);
        account(program, &mut own);
        own.memory_bytes.values().sum::<u64>()
    };
    if let Some(fullest) = programs.iter().max_by_key(|program| bytes(program)) {
        account(fullest, report);
    }
    if let Some(over) = gpu::over(job, report) {
        outcome.emitted = Some(Emitted { over: Some(over) });
        return Ok(outcome);
    }
    write(job, parts, artifact, report, progress)?;
    launch(job, spread, artifact)?;
    outcome.emitted = Some(Emitted { over: None });
    Ok(outcome)
}

/// One rank's program.
fn part(job: &Job<'_>, spread: &Spread, place: Place) -> Result<(PipelineReport, Lowered), Failure> {
    let trains = super::trains(job.args);
    let way = if trains { spread.way } else { Way::default() };
    let shard = shard_text(spread.degrees, way, place);
    let pipeline = match trains {
        true => rank_training(Goal::Gpu, super::policy(job.args), &Fusion::On, &shard),
        false => rank_pipeline(Goal::Gpu, job.mup, &Fusion::On, &shard),
    };
    let pipeline = pipeline.map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    let cx = IrContext::new();
    let mut module = host::imported(&cx, job.imported())?;
    let start = Instant::now();
    let clock = || start.elapsed();
    let watch = Watch { clock: Some(&clock), snapshots: true };
    let passes = lapidary_passes::run(&mut module, &pipeline, watch).map_err(host::run_failure)?;
    let part = passes.shard.clone().ok_or_else(|| Failure::new(Exit::Internal, "no part was made"))?;
    let gpu = job.machine.as_ref().and_then(HardwareSpec::gpu);
    let processors = gpu.map_or(Options::default().processors, |gpu| gpu.multiprocessor.count);
    let options = Options { processors, ..Options::default() };
    let together = Together { replicas: spread.replicas, sharding: spread.sharding, micros: spread.micros };
    let lowered = match trains {
        true => emit_gpu_training_part(&module, gpu::arch(job), &options, &part, together),
        false => emit_gpu_part(&module, gpu::arch(job), &options, &part, spread.replicas),
    };
    let lowered = lowered
        .map_err(|error| Failure::diagnosed(false, "cuda", &error.diagnostics(), &error.to_string()))?;
    Ok((passes, lowered))
}

/// Programs, and every text once: the same kernel of several ranks is the same file.
fn write(
    job: &Job<'_>,
    mut parts: Vec<(Place, Lowered)>,
    artifact: &mut Artifact,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut files: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let mut unique: Vec<(String, Source)> = Vec::new();
    for (_, lowered) in &mut parts {
        for source in &lowered.sources {
            let key = (source.name.clone(), source.text.clone());
            let stem = files.entry(key).or_insert_with(|| {
                let count = taken.entry(source.name.clone()).or_default();
                *count += 1;
                let stem = if *count == 1 { source.name.clone() } else { format!("{}.{count}", source.name) };
                unique.push((stem.clone(), Source { name: source.name.clone(), text: source.text.clone() }));
                stem
            });
            let named = lowered.program.kernels.iter_mut().filter(|kernel| kernel.name == source.name);
            named.for_each(|kernel| kernel.file = Some(format!("kernels/{stem}.cu")));
        }
    }
    for (stem, source) in unique.iter().filter(|_| job.emit.wants("cuda")) {
        artifact.add(format!("kernels/{stem}.cu"), source.text.clone());
    }
    let sources: Vec<Source> = unique.iter().map(|(_, source)| source.clone()).collect();
    let compiled = progress.stage("compiling kernels", || gpu::machine_code(job, &sources, report))?;
    let mut resources = BTreeMap::new();
    for ((stem, _), compiled) in unique.iter().zip(compiled) {
        resources.insert(format!("kernels/{stem}.cu"), compiled.resources);
        gpu::add(job, artifact, stem, compiled);
    }
    for (index, (place, lowered)) in parts.iter_mut().enumerate() {
        for kernel in lowered.program.kernels.clone() {
            if let Some(found) = kernel.file.as_ref().and_then(|file| resources.get(file)) {
                apply(&mut lowered.program, &kernel.name, found);
            }
        }
        checked(&lowered.program)?;
        if index == 0 {
            report.kernels = Some(gpu::kernels(&lowered.program)?);
        }
        artifact.add_json(&program_file(*place), &lowered.program)?;
    }
    Ok(())
}

fn program_file(place: Place) -> String {
    format!("ranks/stage{}-rank{}/program.json", place.stage, place.tensor)
}

/// Which rank runs which program, and what starts them.
fn launch(job: &Job<'_>, spread: &Spread, artifact: &mut Artifact) -> Result<(), Failure> {
    let Degrees { tensor, pipeline } = spread.degrees;
    let rank = |rank: u64| {
        let Standing { tensor, stage, replica } = Standing::of(rank, [tensor, spread.replicas, pipeline]);
        let program = program_file(Place { tensor: tensor.index, stage: stage.index });
        Rank { rank, stage: stage.index, tensor: tensor.index, replica: replica.index, program }
    };
    let (plan, world, trains) = (spread.plan(), spread.world(), super::trains(job.args));
    let (model, ranks) = (job.spec.name.clone(), (0..world).map(rank).collect());
    artifact.add_json(
        "launch.json",
        &Launch {
            schema: "lapidary/launch",
            version: 1,
            model: model.clone(),
            plan: plan.clone(),
            world,
            ranks,
        },
    )?;
    if trains {
        // There is no command yet that runs steps of a plan's programs.
        return Ok(());
    }
    let head = |comment: &str| {
        format!(
            "#!/usr/bin/env bash\n{comment}# {model} over {world} GPUs: plan {plan}. Arguments are those of `lapidary run`.\nset -euo pipefail\n"
        )
    };
    let command = format!("lapidary run \"$@\" --device cuda --plan {plan}");
    let torchrun = format!(
        "{}exec torchrun --nnodes \"${{NODES:-1}}\" --nproc-per-node \"${{GPUS_PER_NODE:-{world}}}\" --node-rank \
         \"${{NODE_RANK:-0}}\" \\\n    --master-addr \"${{MASTER_ADDR:-127.0.0.1}}\" --master-port \"${{MASTER_PORT:-29500}}\" \
         --no-python {command}\n",
        head("")
    );
    let mpirun = format!("{}exec mpirun -n {world} {command}\n", head(""));
    let slurm = format!(
        "{}exec srun --ntasks {world} --gpus-per-task 1 {command}\n",
        head(&format!("#SBATCH --ntasks={world}\n#SBATCH --gpus-per-task=1\n"))
    );
    artifact.add("launch/torchrun.sh", torchrun);
    artifact.add("launch/mpirun.sh", mpirun);
    artifact.add("launch/slurm.sbatch", slurm);
    Ok(())
}
