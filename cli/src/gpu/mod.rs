//! Models on a GPU: programs for the lengths that are asked for, weights that they share, and what runs them.
//!
//! ```text
//! prompts --group by length--> Session: prefill programs, one decode program, the sampler --graph--> tokens
//! ids     --forward program--> residual stream after every layer, logits of every position
//! ```
//! A program fixes batch, new tokens and the cache's capacity; capacities are rounded up, so that few programs serve many
//! lengths. Whatever stands behind the device trait will do: the CUDA driver, or in tests an emulation.

mod forward;
mod lower;
mod prompts;
pub mod ranks;

pub use lower::{part, refused};
pub use prompts::{Ask, Continued};

use crate::failure::{Exit, Failure};
use crate::host::Switches;
use crate::toolchain;
use lapidary_models::shard::stage_layers;
use lapidary_models::{DType, ModelSpec};
use lapidary_runtime_gpu::collectives::Standing;
use lapidary_runtime_gpu::compile::{Absent, Compiler, Online};
use lapidary_runtime_gpu::device::cuda::Cuda;
use lapidary_runtime_gpu::device::{Address, Device, DeviceError};
use lapidary_runtime_gpu::execute::{Parts, Places, Tensors, WeightFault, load_weights};
use lapidary_runtime_gpu::program::{Buffer, BufferKind, GpuProgram, Member};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The first GPU, with the kernels' compiler where it is here.
///
/// # Errors
/// Exit 7 where there is no driver, it is too old, or there is no GPU that kernels are made for.
pub fn open(jobs: usize) -> Result<Box<dyn Device>, Failure> {
    let gpu = Cuda::open(0, compiler(jobs)).map_err(|error| failure(&error))?;
    Ok(Box::new(gpu))
}

/// The kernels' compiler, or what to say where one is needed and it is not here.
fn compiler(jobs: usize) -> Box<dyn Compiler> {
    match toolchain::nvrtc() {
        Ok(nvrtc) => Box::new(Online { nvrtc, cache: toolchain::kernel_cache(), jobs }),
        Err(error) => Box::new(Absent(error)),
    }
}

/// Exit 4 for memory, 1 for programs that do not go together, 7 for everything else that a device says.
pub fn failure(error: &DeviceError) -> Failure {
    let exit = match error {
        DeviceError::Memory { .. } | DeviceError::World { .. } => Exit::DoesNotFit,
        DeviceError::Mismatch(_) => Exit::Internal,
        _ => Exit::Missing,
    };
    let failure = Failure::new(exit, format!("--device cuda: {error}"));
    match error.help() {
        Some(help) => failure.help(help),
        None => failure,
    }
}

/// A model on a device.
pub struct Gpu<'w> {
    device: RefCell<Box<dyn Device>>,
    spec: ModelSpec,
    switches: Switches,
    tensors: &'w dyn Tensors,
    /// Weights that are on the device.
    held: RefCell<Vec<(Buffer, Address)>>,
    /// Whether the layers' weights are whole numbers.
    int8: bool,
    /// The fastest forms of products that were measured on this device.
    measured: BTreeMap<String, String>,
}

impl<'w> Gpu<'w> {
    /// A model whose weights and activations are of `dtype` on the device. Nothing is copied before it is needed.
    pub fn new(
        device: Box<dyn Device>,
        spec: &ModelSpec,
        switches: Switches,
        dtype: DType,
        tensors: &'w dyn Tensors,
    ) -> Gpu<'w> {
        let mut spec = spec.clone();
        (spec.dtype.params, spec.dtype.compute) = (dtype, dtype);
        let (device, held) = (RefCell::new(device), RefCell::default());
        Gpu { device, spec, switches, tensors, held, int8: false, measured: BTreeMap::new() }
    }

    /// Where the device's rank stands among those of a job; none for a device that is alone.
    pub fn standing(&self) -> Option<Standing> {
        self.device.borrow().standing()
    }

    /// The first layer of the whole model that this rank has.
    pub fn first_layer(&self) -> usize {
        let first = |stage: Member| stage_layers(self.spec.n_layers, stage.of, stage.index).start;
        self.standing().map_or(0, |standing| first(standing.stage) as usize)
    }

    /// The same with the layers' weights as 8-bit whole numbers, each row with a scale.
    pub fn int8(self, int8: bool) -> Gpu<'w> {
        Gpu { int8, ..self }
    }

    /// The same with the forms of products that `bench` found to be the fastest on this GPU and driver.
    pub fn measured(self) -> Gpu<'w> {
        let about = self.device.borrow().about().clone();
        Gpu { measured: toolchain::tunings(&about.product, &about.driver).fastest(), ..self }
    }

    /// Places of a program's weights. One that another program has in the same form is not copied again.
    fn weights(&self, program: &GpuProgram) -> Result<Places, Failure> {
        let mut held = self.held.borrow_mut();
        let params = || program.buffers.iter().filter(|buffer| buffer.kind == BufferKind::Param);
        let known = |buffer: &Buffer| held.iter().find(|(known, _)| known == buffer).map(|(_, at)| *at);
        let mut places: Places =
            params().filter_map(|buffer| Some((buffer.name.clone(), known(buffer)?))).collect();
        let parts = program.share.as_ref().map(|share| Parts::new(self.tensors, share));
        let tensors = parts.as_ref().map_or(self.tensors, |parts| parts as &dyn Tensors);
        load_weights(self.device.borrow_mut().as_mut(), program, tensors, &mut places)
            .map_err(|fault| weight_failure(&fault))?;
        for buffer in params() {
            let fresh = !held.iter().any(|(known, _)| known == buffer);
            held.extend(fresh.then(|| (buffer.clone(), places[&buffer.name])));
        }
        Ok(places)
    }
}

fn weight_failure(fault: &WeightFault) -> Failure {
    match fault {
        WeightFault::Device(error) => failure(error),
        WeightFault::Shape { .. } => Failure::new(Exit::InvalidInput, fault.to_string()),
    }
}
