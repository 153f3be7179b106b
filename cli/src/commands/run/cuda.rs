//! Prompts continued on a GPU.

use super::asked::Asked;
use super::output::{Clock, Writer};
use super::packed;
use crate::args::Run;
use crate::failure::Failure;
use crate::gpu::ranks::replicas_part;
use crate::gpu::{Ask, Gpu};
use crate::host::Switches;
use crate::weights::{self, Opened};
use lapidary_models::{DType, ModelSpec};
use lapidary_runtime_cpu::Generation;
use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_gpu::device::Device;
use std::path::Path;

/// What is asked for.
pub struct Asking<'a> {
    /// The arguments.
    pub args: &'a Run,
    /// The prompts.
    pub asked: &'a Asked,
    /// How they are continued.
    pub generation: &'a Generation,
    /// Whether times are left unsaid.
    pub quiet: bool,
}

/// Runs on a device.
///
/// # Errors
/// Exit 3 for weights that are not the model's, 4 when the device's memory does not suffice, 7 for what else it says.
pub fn run(
    device: Box<dyn Device>,
    spec: &ModelSpec,
    folder: &Path,
    asking: &Asking<'_>,
) -> Result<(), Failure> {
    let Asking { args, asked, generation, .. } = asking;
    let clock = Clock::start();
    weights::with(folder, spec, |weights: &Opened<'_>| {
        let dtype = match packed(args.dtype, weights) {
            _ if args.int8 => DType::Bf16,
            WeightType::Bf16 => DType::Bf16,
            _ => DType::F32,
        };
        let gpu = Gpu::new(device, spec, Switches::default(), dtype, weights).int8(args.int8).measured();
        // Programs and weights come with the first prompt of each length, so loading is part of its prefill.
        let mut clock = clock.loaded();
        let standing = gpu.standing();
        let own = replicas_part(asked.prompts.len(), standing);
        let mut writer =
            standing.is_none_or(|standing| standing.first()).then(|| Writer::new(asked, args.json));
        let ask = Ask { prompts: &asked.prompts[own.clone()], generation };
        let made = gpu.generate(&ask, &mut |sequence, token| {
            clock.token();
            if let Some(writer) = &mut writer {
                writer.token(own.start + sequence, token, generation.stop.contains(&token));
            }
        })?;
        let made = gpu.of_all_replicas(made, asked.prompts.len(), generation.max_new)?;
        let Some(mut writer) = writer else { return Ok(()) };
        // What the first replica made has been told as it came.
        for (sequence, (tokens, _)) in made.iter().enumerate().filter(|(at, _)| !own.contains(at)) {
            tokens.iter().for_each(|token| writer.token(sequence, *token, generation.stop.contains(token)));
        }
        writer.finish(spec, args.device.name(), &made)?;
        if !asking.quiet {
            clock.tell(asked.prompts.iter().map(Vec::len).sum(), asked.prompts.len());
        }
        Ok(())
    })
}
