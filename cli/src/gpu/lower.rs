//! Programs of a model: from its graph through the passes to kernels, without a library.

use super::Gpu;
use crate::failure::{Exit, Failure};
use crate::host::{self, Switches};
use lapidary_ir::IrContext;
use lapidary_models::shard::{Degrees, Place, Way};
use lapidary_models::{Dims, Graph, Mode};
use lapidary_passes::cuda::{self, CudaError, Lowered, Node, Options, Sampler};
use lapidary_passes::lower_to_cuda::{module_spec, part_spec};
use lapidary_passes::pipeline::{pipeline, rank_pipeline};
use lapidary_passes::shard::shard_text;
use lapidary_passes::{Goal, Watch};
use lapidary_runtime_gpu::collectives::Standing;
use lapidary_runtime_gpu::compile::Source;
use lapidary_runtime_gpu::execute::decode;
use lapidary_runtime_gpu::generate::Part;
use lapidary_runtime_gpu::program::{Buffer, BufferKind};

/// A program with the names of what is looked at.
pub struct Made {
    /// The program and its kernels.
    pub part: Part,
    /// Buffer of the residual stream between layers.
    pub stream: String,
    /// Buffer of the logits.
    pub logits: Buffer,
}

impl Gpu<'_> {
    /// The program for some dimensions.
    ///
    /// # Errors
    /// Exit 3 where the model has no such dimensions, 5 for what has no kernel, 1 where a pass is at fault.
    pub(super) fn lower(&self, mode: Mode, dims: Dims) -> Result<Made, Failure> {
        let graph = Graph::build(&self.spec, mode, dims)
            .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", self.spec.name)))?;
        let Switches { mup, fusion } = &self.switches;
        let standing = self.standing().filter(|standing| standing.world() > 1);
        let passes = match standing {
            Some(Standing { tensor, stage, .. }) => {
                let degrees = Degrees { tensor: tensor.of, pipeline: stage.of };
                let place = Place { tensor: tensor.index, stage: stage.index };
                rank_pipeline(Goal::Gpu, *mup, fusion, &shard_text(degrees, Way::default(), place))
            }
            None => pipeline(Goal::Gpu, *mup, fusion),
        };
        let passes = passes.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let cx = IrContext::new();
        let mut module = host::imported(&cx, &graph)?;
        let report =
            lapidary_passes::run(&mut module, &passes, Watch::default()).map_err(host::run_failure)?;
        let (arch, processors) = self.target();
        let spec = match (standing, &report.shard) {
            (Some(standing), Some(part)) => part_spec(&module, &arch, part, standing.replica.of),
            _ => module_spec(&module, &arch),
        };
        let spec = spec
            .map_err(|error| Failure::diagnosed(false, "cuda", &error.diagnostics(), &error.to_string()))?;
        let (int8, measured) = (self.int8, self.measured.clone());
        let options = Options { library: false, processors, int8, measured, ..Options::default() };
        let lowered = cuda::lower(&spec, &options).map_err(|error| refused(&error))?;
        let carried = spec.body.iter().find_map(|node| match node {
            Node::Repeat { param, .. } => Some(*param),
            Node::Kernel { .. } | Node::Talk { .. } => None,
        });
        let stream = carried.map_or_else(String::new, |value| lowered.places[value].clone());
        let last = spec.outputs.first().map_or_else(String::new, |value| lowered.places[*value].clone());
        let logits =
            lowered.program.buffer(&last).filter(|buffer| buffer.kind == BufferKind::Output).cloned();
        let none =
            || Failure::new(Exit::Internal, format!("{}: the program leaves no logits", self.spec.name));
        Ok(Made { stream, logits: logits.ok_or_else(none)?, part: part(lowered)? })
    }

    /// The program that picks tokens from the logits of a decode program.
    pub(super) fn sampler(&self, logits: &Buffer, steps: u64) -> Result<Part, Failure> {
        let width = logits.shape.last().copied().unwrap_or(0);
        let batch = logits.shape.first().copied().unwrap_or(0);
        let sampler = Sampler { batch, vocab: self.spec.vocab.min(width), width, dtype: logits.dtype, steps };
        part(sampler.lower(&self.target().0).map_err(|error| refused(&error))?)
    }

    /// Architecture and processors that kernels are made for.
    fn target(&self) -> (String, u64) {
        let device = self.device.borrow();
        (device.about().arch.clone(), device.about().processors.into())
    }
}

/// A lowered program as a device takes it.
pub fn part(lowered: Lowered) -> Result<Part, Failure> {
    let program = lowered.program.check().map_err(|faults| {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, format!("the program does not pass its check: {}", told.join("; ")))
    })?;
    let sources = lowered.sources.into_iter().map(|source| Source { name: source.name, text: source.text });
    Ok(Part { program, sources: sources.collect() })
}

/// Exit 5 for what has no kernel, 1 for programs that contradict themselves.
pub fn refused(error: &CudaError) -> Failure {
    let exit =
        if matches!(error, CudaError::Unsupported { .. }) { Exit::Unsupported } else { Exit::Internal };
    Failure::new(exit, error.to_string())
}

/// Rows of a buffer as numbers, without padding and without columns from `width` on.
pub fn rows(buffer: &Buffer, bytes: &[u8], width: u64) -> Vec<f32> {
    let pitch = (buffer.pitch * buffer.dtype.bytes()) as usize;
    let used = (width.min(buffer.pitch) * buffer.dtype.bytes()) as usize;
    bytes.chunks_exact(pitch.max(1)).flat_map(|row| decode(buffer.dtype, &row[..used])).collect()
}
