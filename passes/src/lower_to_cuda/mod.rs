//! Turns a fused module into a GPU program: every `nn.fused` a kernel or a library call, every value a buffer.
//!
//! before: %y = nn.fused "attn.out" matmul(%x, %w, %r) {..}
//! after:  cuda.program @amber arch = "sm_80" arena_bytes = .. { cuda.kernel ..; cuda.buffer ..; cuda.launch .. }
//!
//! What a kernel looks like, where buffers lie and how parameters are packed is decided by [`crate::cuda`] on plain
//! data; this folder reads regions from the IR and writes the program into it. The program itself and the texts of its
//! kernels leave through the notes.

mod kernel;
mod module;
mod words;
mod write;

use crate::cuda::assemble::RanksSpec;
use crate::cuda::{CudaError, Lowered, ModuleSpec, Node, Options, Talk, ValueSpec, lower};
use crate::lower_to_cpu::Together;
use crate::pass::{Changed, Pass, PassCx, PassError, diagnostic};
use crate::shard::ShardReport;
use lapidary_ir::{Module, Op as IrOp};
use lapidary_models::shard::StateSharding;
use lapidary_models::shard::schedule::{Form, schedule};
use lapidary_runtime_gpu::program::{Member, Share};
use module::FusedModule;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

/// The pass. Options: `arch=sm_80`, `library=on|off`, `processors=N`.
pub struct LowerToCuda {
    /// Architecture, such as `sm_80`.
    pub arch: String,
    /// What the emitters may choose.
    pub options: Options,
}

impl Default for LowerToCuda {
    fn default() -> Self {
        LowerToCuda { arch: "sm_80".into(), options: Options::default() }
    }
}

impl LowerToCuda {
    /// The pass with options as a pipeline gives them.
    ///
    /// # Errors
    /// A sentence about an option or a value that does not exist.
    pub fn with(options: &[(String, String)]) -> Result<LowerToCuda, String> {
        options.iter().try_fold(LowerToCuda::default(), |pass, (key, value)| pass.option(key, value))
    }

    fn option(mut self, key: &str, value: &str) -> Result<LowerToCuda, String> {
        let takes = "lower-to-cuda takes arch=sm_NN, library=on|off, processors=N";
        let wrong = || format!("{takes}, not `{key}={value}`");
        match (key, value) {
            ("arch", arch) if arch.starts_with("sm_") => self.arch = arch.into(),
            ("library", "on" | "off") => self.options.library = value == "on",
            ("processors", n) => {
                self.options.processors = n.parse::<NonZeroU32>().map_err(|_| wrong())?.get().into();
            }
            _ => return Err(wrong()),
        }
        Ok(self)
    }
}

impl Pass for LowerToCuda {
    fn name(&self) -> &'static str {
        "lower-to-cuda"
    }

    fn summary(&self) -> &'static str {
        "turn kernels into launches, and values into buffers with places in memory"
    }

    fn run(&self, module: IrOp<'_>, cx: &PassCx) -> Result<Changed, PassError> {
        if module.walk().iter().any(|op| op.is("cuda.program")) {
            return Ok(Changed::No);
        }
        let fused = module::read(module, &self.arch)?;
        let lowered = lower(&fused.spec, &self.options).map_err(|error| at_kernel(module, &fused, &error))?;
        write::program(module, &fused, &lowered)?;
        cx.with(|notes| notes.gpu = Some(lowered));
        Ok(Changed::Yes)
    }

    fn measured(&self, forms: &BTreeMap<String, String>) -> Option<Arc<dyn Pass>> {
        let options = Options { measured: forms.clone(), ..self.options.clone() };
        Some(Arc::new(LowerToCuda { arch: self.arch.clone(), options }))
    }
}

/// A program and the texts of its kernels; the module stays as it is.
///
/// # Errors
/// [`PassError::Refused`] at the kernel that has no CUDA form, or where the module is not fused.
pub fn emit_gpu(module: &Module<'_>, arch: &str, options: &Options) -> Result<Lowered, PassError> {
    let fused = module::read(module.op(), arch)?;
    lower(&fused.spec, options).map_err(|error| at_kernel(module.op(), &fused, &error))
}

/// The program of one rank's part of a model, as the pass `shard` left it, and the texts of its kernels; the module stays
/// as it is.
///
/// # Errors
/// As [`emit_gpu`].
pub fn emit_gpu_part(
    module: &Module<'_>,
    arch: &str,
    options: &Options,
    part: &ShardReport,
    replicas: u64,
) -> Result<Lowered, PassError> {
    let fused = part_of(module, arch, part, replicas)?;
    lower(&fused.spec, options).map_err(|error| at_kernel(module.op(), &fused, &error))
}

/// The same of a training step: what a rank does for every micro-batch, and behind all of them.
///
/// # Errors
/// As [`emit_gpu`], and for a number of micro-batches that has no schedule.
pub fn emit_gpu_training_part(
    module: &Module<'_>,
    arch: &str,
    options: &Options,
    part: &ShardReport,
    together: Together,
) -> Result<Lowered, PassError> {
    let at = |what: String| PassError::at(module.op(), what);
    let mut fused = part_of(module, arch, part, together.replicas)?;
    let form = Form { stages: part.degrees.pipeline, chunks: part.way.chunks, micros: together.micros };
    let schedule = schedule(form, part.place.stage).map_err(|error| at(error.to_string()))?;
    if let Some(share) = &mut fused.spec.share {
        // A replica that is alone has everything.
        share.sharding = if share.replicas > 1 { together.sharding } else { StateSharding::None };
    }
    let Some(training) = &mut fused.spec.training else { return Err(at("the module trains nothing".into())) };
    training.layers = part.layers.len() as u64;
    training.ranks = RanksSpec {
        summed: part.summed.clone(),
        tied: part.tied.clone(),
        elsewhere: part.elsewhere.clone(),
        schedule: Some(schedule),
    };
    lower(&fused.spec, options).map_err(|error| at_kernel(module.op(), &fused, &error))
}

/// A rank's part of a fused module as the plain data that [`lower`] takes.
///
/// # Errors
/// As [`module_spec`].
pub fn part_spec(
    module: &Module<'_>,
    arch: &str,
    part: &ShardReport,
    replicas: u64,
) -> Result<ModuleSpec, PassError> {
    part_of(module, arch, part, replicas).map(|fused| fused.spec)
}

/// The same with its regions: every stage ends with what the last one makes.
fn part_of<'c>(
    module: &'c Module<'_>,
    arch: &str,
    part: &ShardReport,
    replicas: u64,
) -> Result<FusedModule<'c>, PassError> {
    let mut fused = module::read(module.op(), arch)?;
    let member = |index: u64, of: u64| Member { index, of };
    fused.spec.share = Some(Share {
        tensor: member(part.place.tensor, part.degrees.tensor),
        stage: member(part.place.stage, part.degrees.pipeline),
        replicas,
        layers: part.layers.clone(),
        parts: part.parts.clone(),
        sharding: StateSharding::None,
        micros: None,
    });
    if part.degrees.pipeline > 1 && fused.spec.training.is_none() {
        let last = part.place.stage + 1 == part.degrees.pipeline;
        let arg = fused.spec.outputs.first().copied().filter(|_| last);
        let ty = kernel::memory_type(&part.result).ok_or_else(|| {
            PassError::at(module.op(), format!("GPU kernels hold bf16 and f32, found {}", part.result))
        })?;
        fused.spec.values.push(ValueSpec { name: "logits.told".into(), ty });
        let result = fused.spec.values.len() - 1;
        let name = "logits_told".to_string();
        fused.spec.body.push(Node::Talk { name, talk: Talk::FromLastStage, arg, result });
        fused.spec.outputs = vec![result];
    }
    Ok(fused)
}

/// A fused module as the plain data that [`lower`] takes.
///
/// # Errors
/// [`PassError::Refused`] where the module is not fused.
pub fn module_spec(module: &Module<'_>, arch: &str) -> Result<ModuleSpec, PassError> {
    module::read(module.op(), arch).map(|fused| fused.spec)
}

/// The error at the region that it names.
fn at_kernel(module: IrOp<'_>, fused: &FusedModule<'_>, error: &CudaError) -> PassError {
    let name = match error {
        CudaError::Unsupported { kernel, .. } | CudaError::Malformed { kernel, .. } => Some(kernel),
        CudaError::Unchecked { .. } => None,
    };
    let region = fused.regions.iter().find(|region| Some(&region.spec.name) == name);
    PassError::Refused(vec![diagnostic(region.map_or(module, |region| region.op), error.to_string())])
}
