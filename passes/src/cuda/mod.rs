//! Emission of CUDA C++ kernels and GPU programs from fused regions.
//!
//! Plain data in ([`spec::KernelSpec`], [`assemble::ModuleSpec`]), text and a program out; nothing here knows MLIR.
//!
//! ```text
//! KernelSpec --lower_kernel--> Choice: a generated kernel (or two), or a library product with the reason
//! ModuleSpec --lower--------> GpuProgram (buffers, memory plan, steps) + one .cu text per generated kernel
//! ```
//!
//! All kernels share one evaluator of a region's operations ([`dag`]): it writes code that computes a run of neighbouring
//! columns of one row in f32 registers. Row kernels, the epilogue of matrix products and of matrix-vector products are
//! that same code around different loops; the loops themselves are the texts in `device/`.
use lapidary_runtime_gpu::program::{Access, Boxes, Dtype, FormChoice, Packing, RowOrder};
use std::collections::BTreeMap;

pub mod assemble;
mod attention;
mod backward;
mod dag;
mod matmul;
mod matmul_forms;
mod matmul_source;
mod row;
mod sampler;
mod source;
pub mod spec;
mod validate;
mod work;

pub use assemble::{KernelSource, Lowered, ModuleSpec, Node, Talk, ValueSpec, lower};
pub use sampler::Sampler;
pub use spec::{Anchor, KernelOp, KernelSpec, OpSpec, TensorType};

/// What a caller may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether plain, bias-only and residual-only products become library calls. Small products never do.
    pub library: bool,
    /// Multiprocessors of the target, to size split work (108 on the A100).
    pub processors: u64,
    /// The form of every product and attention that can have it, by name ([`forms`]); chosen when absent.
    pub form: Option<String>,
    /// The fastest form of products and attention that were measured on a GPU of the target's kind, by
    /// [`FormChoice::product`].
    pub measured: BTreeMap<String, String>,
    /// Whether the target has Hopper's copy engine and warpgroup products; [`lower`] sets it for `sm_90a`.
    pub hopper: bool,
    /// Whether the module is one rank's part: losses are means over more labels than it sees. [`lower`] sets it.
    pub spread: bool,
    /// Whether products inside layers read their weights as whole numbers with a scale for each row.
    pub int8: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            library: true,
            processors: 108,
            form: None,
            measured: BTreeMap::new(),
            hopper: false,
            spread: false,
            int8: false,
        }
    }
}

/// Why a region cannot become a kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The region is well formed but no kernel form holds it.
    #[error("kernel `{kernel}`: {what}; {hint}")]
    Unsupported {
        /// The region's name.
        kernel: String,
        /// What it asks for.
        what: String,
        /// What would help.
        hint: String,
    },
    /// The region contradicts itself.
    #[error("kernel `{kernel}`: {what}")]
    Malformed {
        /// The region's name.
        kernel: String,
        /// The contradiction.
        what: String,
    },
    /// The program that came out fails its own check.
    #[error("the program does not pass its check: {}", faults.join("; "))]
    Unchecked {
        /// What the check found.
        faults: Vec<String>,
    },
}

/// How a region is carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// Kernels to launch in order.
    Generated(Generated),
    /// One library product.
    Library(Box<LibraryProduct>),
}

/// Kernels made from one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// In launch order.
    pub kernels: Vec<GeneratedKernel>,
    /// Temporary tensors between them.
    pub scratch: Vec<TensorType>,
    /// Order of the columns within a head of each output.
    pub output_orders: Vec<RowOrder>,
}

/// One kernel: text and how to launch it.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedKernel {
    /// Name and entry point.
    pub name: String,
    /// The whole `.cu` text.
    pub source: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u64,
    /// Static shared memory in bytes.
    pub static_shared_bytes: u64,
    /// Parameters of the entry point, in order.
    pub args: Vec<KernelArg>,
    /// Floating-point operations of a launch.
    pub flops: u64,
    /// Bytes that a launch must move.
    pub bytes: u64,
    /// The form, where there are several.
    pub choice: Option<FormChoice>,
    /// Why this form.
    pub reason: String,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelArg {
    /// What it points to.
    pub operand: Operand,
    /// What the kernel does with it.
    pub access: Access,
    /// Set where it is not a pointer but a matrix for the copy engine.
    pub boxes: Option<Boxes>,
}

/// What a kernel's pointer points to.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Input `i` of the region (an activation).
    Input(usize),
    /// A device parameter assembled at load time.
    Param(Packing, Dtype),
    /// Output `i` of the region.
    Output(usize),
    /// Scratch tensor `i`.
    Scratch(usize),
    /// The cached length, one i32 in device memory.
    Position,
    /// The labels that a mean is over, one f32 in device memory.
    Counted,
}

/// The right side of a library product.
#[derive(Debug, Clone, PartialEq)]
pub enum RightSide {
    /// A packed weight.
    Param(Packing),
    /// Input `i` of the region.
    Input(usize),
}

/// A product left to cuBLASLt.
#[derive(Debug, Clone, PartialEq)]
pub struct LibraryProduct {
    /// Rows, columns, depth.
    pub mnk: [u64; 3],
    /// Element type.
    pub dtype: Dtype,
    /// Input index of the left side.
    pub a: usize,
    /// Elements between rows of the left side.
    pub lda: u64,
    /// Elements between rows of the right side.
    pub ldw: u64,
    /// Whether each side has one row per step of depth instead of its rows along the depth.
    pub deep: [bool; 2],
    /// The right side.
    pub w: RightSide,
    /// The packed bias.
    pub bias: Option<Packing>,
    /// Input index of the residual.
    pub residual: Option<usize>,
    /// Whether the product is added to what the f32 result holds.
    pub adds: bool,
    /// Factor of the product.
    pub alpha: f64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How the library was chosen.
    pub choice: Option<FormChoice>,
    /// Why the library.
    pub reason: String,
}

/// Turns one region into kernels or a library call.
pub fn lower_kernel(spec: &KernelSpec, options: &Options) -> Result<Choice, CudaError> {
    spec.validate()?;
    if let Some(choice) = backward::lower(spec, options)? {
        return Ok(choice);
    }
    match spec.anchor {
        Anchor::Row | Anchor::Elementwise | Anchor::Gather => row::lower(spec).map(Choice::Generated),
        Anchor::Matmul => matmul::lower(spec, options),
        Anchor::Attention => attention::lower(spec, options).map(Choice::Generated),
    }
}

/// The names of all forms in which a region's product or attention can be computed; empty for a region without any, and for one
/// that has only one.
///
/// # Errors
/// [`CudaError`] for a region that no form holds.
pub fn forms(spec: &KernelSpec, options: &Options) -> Result<Vec<String>, CudaError> {
    spec.validate()?;
    if let Some(names) = backward::form_names(spec, options)? {
        return Ok(names);
    }
    match spec.anchor {
        Anchor::Matmul if spec.ops.iter().any(|op| op.op == KernelOp::Linear) => {
            matmul::form_names(spec, options)
        }
        Anchor::Attention => attention::form_names(spec, options),
        _ => Ok(Vec::new()),
    }
}

impl KernelSpec {
    /// An error about something no kernel form holds.
    pub(crate) fn unsupported(&self, what: impl Into<String>, hint: impl Into<String>) -> CudaError {
        CudaError::Unsupported { kernel: self.name.clone(), what: what.into(), hint: hint.into() }
    }

    /// An error about a contradiction.
    pub(crate) fn malformed(&self, what: impl Into<String>) -> CudaError {
        CudaError::Malformed { kernel: self.name.clone(), what: what.into() }
    }
}
