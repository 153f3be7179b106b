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

use crate::cuda::{CudaError, Lowered, Options, lower};
use crate::pass::{PassError, diagnostic};
use lapidary_ir::Module;
use module::FusedModule;

/// A program and the texts of its kernels.
///
/// # Errors
/// [`PassError::Refused`] at the kernel that has no CUDA form, or where the module is not fused.
pub fn emit_gpu(module: &Module<'_>, arch: &str, options: &Options) -> Result<Lowered, PassError> {
    let fused = module::read(module.op(), arch)?;
    lower(&fused.spec, options).map_err(|error| at_kernel(module.op(), &fused, &error))
}

/// The error at the region that it names.
fn at_kernel(module: lapidary_ir::Op<'_>, fused: &FusedModule<'_>, error: &CudaError) -> PassError {
    let name = match error {
        CudaError::Unsupported { kernel, .. } | CudaError::Malformed { kernel, .. } => Some(kernel),
        CudaError::Unchecked { .. } => None,
    };
    let region = fused.regions.iter().find(|region| Some(&region.spec.name) == name);
    PassError::Refused(vec![diagnostic(region.map_or(module, |region| region.op), error.to_string())])
}
