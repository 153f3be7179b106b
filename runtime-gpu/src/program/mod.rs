//! A GPU program is plain data: buffers, kernels, and steps in the order in which a CUDA graph would hold them.
//!
//! It can be printed, saved, loaded, compared and written by hand. Nothing in it refers to a file or to a device; the text of
//! a kernel lies beside it in the artifact, under [`Kernel::file`]. [`check::check`] turns it into a [`check::Checked`] one.
use serde::{Deserialize, Serialize};

pub mod check;
pub mod limits;
pub mod memory;
pub mod packing;
pub mod share;
mod together;

pub use check::{Checked, Fault};
pub use limits::DeviceLimits;
pub use packing::{PackForm, PackSource, Packing, RowOrder};
pub use share::{Group, Meeting, Member, Micros, Said, Share};
pub use together::check_together;

/// The `schema` field of every program document.
pub const SCHEMA: &str = "lapidary/gpu-program";

/// The element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// bfloat16, the default of weights and activations.
    Bf16,
    /// IEEE single precision.
    F32,
    /// 32-bit signed integer: token ids and positions.
    I32,
    /// 8-bit signed integer: quantised weights.
    I8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::Bf16 => 2,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::I8 => 1,
        }
    }

    /// The word for it in names.
    pub fn word(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
            Dtype::I32 => "i32",
            Dtype::I8 => "int8",
        }
    }

    /// Elements in the 16 bytes of one vector access.
    pub fn vector(self) -> u64 {
        16 / self.bytes()
    }
}

/// A whole program for one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuProgram {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Version of the document's form.
    pub version: u32,
    /// What is computed, for people.
    pub name: String,
    /// Real architecture the kernels are meant for, such as `sm_80`.
    pub arch: String,
    /// Bytes of the arena that holds all [`BufferKind::Arena`] buffers.
    pub arena_bytes: u64,
    /// Bytes that the same buffers would need without sharing.
    pub arena_naive_bytes: u64,
    /// All memory, in a fixed order, names unique.
    pub buffers: Vec<Buffer>,
    /// Kernels used by the steps, names unique.
    pub kernels: Vec<Kernel>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Set where it is one rank's part of a spread model: then it runs among the others of its plan only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// A named piece of device memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// Unique name; parameters carry the canonical name of their first source.
    pub name: String,
    /// Who provides the memory and its contents.
    pub kind: BufferKind,
    /// Element type.
    pub dtype: Dtype,
    /// Logical shape of one layer's slice (or of the whole buffer where there are no layers).
    pub shape: Vec<u64>,
    /// Elements between the starts of two rows (rows run over the last dimension); at least the last dimension.
    /// Rows are padded so that each begins on a 16-byte boundary. The contents of the padding are undefined.
    pub pitch: u64,
    /// Bytes of everything, all layers included.
    pub bytes: u64,
    /// Byte offset in the arena, for [`BufferKind::Arena`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Set for buffers that hold one slice per layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// How a parameter is assembled from the model's tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<Packing>,
    /// Order of the columns within a head, where it is not the model's own.
    #[serde(default, skip_serializing_if = "RowOrder::is_natural")]
    pub column_order: RowOrder,
    /// Whether every replica holds a run of its own. A weight's packing then is that of the whole: a slice has `S` bytes, and
    /// replica `r` has bytes `r * S ..` of the packed whole, and zeros behind its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_replica: bool,
}

/// One slice per layer, at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// Number of slices.
    pub count: u64,
    /// Bytes between two slices.
    pub stride_bytes: u64,
}

/// Who provides a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BufferKind {
    /// Weights: loaded once, read only.
    Param,
    /// Set by the caller before a run (token ids, the cached length).
    Input,
    /// Read by the caller after a run.
    Output,
    /// Temporary: lives in the arena for part of the run.
    Arena,
    /// Keys and values: keeps its contents from run to run.
    Cache,
    /// Weights that are trained: loaded once, changed by every run.
    Weight,
    /// Gradients and moments: zero (or loaded) before the first run, keeps its contents from run to run.
    State,
    /// What layers keep from the forward pass to the backward pass of one run, a slice for each.
    Kept,
}

/// A kernel that some step launches, or a library routine that some step calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Unique name.
    pub name: String,
    /// Source file within the artifact, for generated kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Entry point in the source, or the name of the library routine.
    pub entry: String,
    /// Generated here, or a library's.
    pub kind: KernelKind,
    /// The fused region's anchor: row, elementwise, gather, matmul, attention.
    pub anchor: String,
    /// The operations inside, in order.
    pub ops: Vec<String>,
    /// Why this form was chosen.
    pub reason: String,
    /// The form of a product among those that could compute it, and how it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<FormChoice>,
    /// Registers per thread; absent until compiled.
    pub registers: Option<u32>,
    /// Static plus dynamic shared memory of a block.
    pub shared_bytes: u64,
    /// Bytes of spill stores and loads per thread; absent until compiled.
    pub spill_bytes: Option<u64>,
    /// Floating-point operations of one launch.
    pub flops: u64,
    /// Bytes of memory one launch must move: each input read once, each output written once.
    pub bytes: u64,
}

/// One of several forms that compute the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormChoice {
    /// The product: sizes, type and operations. Measured choices are found by it.
    pub product: String,
    /// The form: `tiles-128x256`, `stream-4`, `hopper-128x128`, `library`, ..
    pub form: String,
    /// How it was chosen.
    pub by: ChosenBy,
}

/// How a form was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChosenBy {
    /// By a rule over the sizes.
    Rule,
    /// It was the fastest on a GPU of this kind.
    Measured,
    /// The caller asked for it.
    Asked,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelKind {
    /// CUDA C++ written by this compiler.
    Generated,
    /// A routine of a vendor library.
    Library,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Start a generated kernel.
    Launch(Launch),
    /// Call the library's matrix product.
    Gemm(Box<Gemm>),
    /// Do the body `times` times, for slice 0, 1, ..: the slice's number times `layer_stride_bytes` is added to an argument's
    /// offset.
    Repeat {
        /// Number of rounds.
        times: u64,
        /// Whether the last slices come first, as in a backward pass: round `r` then works on slice `times - 1 - r`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reverse: bool,
        /// Steps of one round.
        body: Vec<Step>,
    },
    /// Meet other ranks.
    Meet(Box<Meeting>),
    /// Wait for all meetings that run beside.
    Join,
}

/// A kernel launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u64,
    /// Device pointers in the order of the entry's parameters.
    pub args: Vec<Arg>,
}

/// A library matrix product, all operands row-major:
/// `out[m,n] = alpha * a[m,k] · w[n,k]^T + beta * residual[m,n] + bias[n]`, accumulated in f32. `a` may lie as `[k,m]`
/// (`transpose_a`) and `w` as `[k,n]` (not `transpose_w`).
///
/// For the column-major cuBLASLt this is `out^T = w · a^T`: operation A is `w` transposed, operation B is `a` as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gemm {
    /// Name of the entry among the kernels that carries this product's work.
    pub kernel: String,
    /// Rows of `a` and `out`.
    pub m: u64,
    /// Columns of `out`.
    pub n: u64,
    /// Columns of `a` and of `w`.
    pub k: u64,
    /// Whether `a` is stored `[k, m]`, as the left side of a weight's gradient is.
    pub transpose_a: bool,
    /// Whether `w` is stored `[n, k]` and used transposed, as in a forward pass.
    pub transpose_w: bool,
    /// Elements between rows of `a`.
    pub lda: u64,
    /// Elements between rows of `w`.
    pub ldw: u64,
    /// Elements between rows of `out` and `residual`.
    pub ldo: u64,
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of the residual: 0 without one.
    pub beta: f64,
    /// Element type of `a`, `w` and the bias, and of `out` and the residual unless they have their own.
    pub dtype: Dtype,
    /// Element type of `out` and the residual where it is another one: gradients are f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_dtype: Option<Dtype>,
    /// Activations.
    pub a: Arg,
    /// Weights.
    pub w: Arg,
    /// Added when present; may be the same memory as `out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Arg>,
    /// Added to each row when present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<Arg>,
    /// Result.
    pub out: Arg,
}

/// A pointer into a buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    /// Name of the buffer.
    pub buffer: String,
    /// What the step does with it.
    pub access: Access,
    /// Distance from the buffer's start.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset_bytes: u64,
    /// Added per round of the enclosing repeat.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub layer_stride_bytes: u64,
    /// Bytes that one use may touch from its start.
    pub extent_bytes: u64,
    /// Set where the kernel does not take a pointer but a matrix that Hopper's copy engine fetches boxes of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boxes: Option<Boxes>,
}

/// A row-major matrix of 16-bit elements and the boxes of it that a kernel fetches, 128 bytes wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boxes {
    /// Rows of the matrix.
    pub rows: u64,
    /// Columns of the matrix; what a box has beyond them is zero.
    pub cols: u64,
    /// Bytes between rows.
    pub pitch_bytes: u64,
    /// Rows of a box.
    pub box_rows: u32,
    /// Set where it is not one matrix but one for every head of every sequence, of `rows` rows and `cols` columns each; a
    /// box does not reach from one into the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
}

/// Matrices beside each other (heads) and below each other (sequences).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Heads of a row.
    pub heads: u64,
    /// Sequences.
    pub sequences: u64,
}

impl Boxes {
    /// Columns of a box: as many as fill the 128 bytes of the swizzle.
    pub const COLS: u32 = 64;
}

/// What a step does with an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads.
    Read,
    /// Writes all of it.
    Write,
    /// Writes a part and leaves the rest, or reads and writes.
    Update,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Memory that the library's products may work in: what NVIDIA recommends for Hopper (cuBLAS, `cublasSetWorkspace`).
pub const LIBRARY_WORKSPACE_BYTES: u64 = 32 << 20;

fn calls_library(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Gemm(_) => true,
        Step::Launch(_) | Step::Meet(_) | Step::Join => false,
        Step::Repeat { body, .. } => calls_library(body),
    })
}

impl GpuProgram {
    /// What the library needs beside the program's buffers: its workspace, where a product is the library's.
    pub fn library_bytes(&self) -> u64 {
        if calls_library(&self.steps) { LIBRARY_WORKSPACE_BYTES } else { 0 }
    }

    /// The buffer of that name.
    pub fn buffer(&self, name: &str) -> Option<&Buffer> {
        self.buffers.iter().find(|buffer| buffer.name == name)
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Total bytes per kind of buffer; the arena counts once.
    pub fn bytes_of(&self, kind: BufferKind) -> u64 {
        match kind {
            BufferKind::Arena => self.arena_bytes,
            _ => {
                let own = self.buffers.iter().filter(|b| b.kind == kind);
                own.map(|b| b.bytes.saturating_mul(self.flights_of(b))).sum()
            }
        }
    }

    /// How often a buffer is there: what is kept and the ids and labels of a micro-batch once for each that is under way.
    pub fn flights_of(&self, buffer: &Buffer) -> u64 {
        let micros = self.share.as_ref().and_then(|share| share.micros.as_ref());
        let given = buffer.kind == BufferKind::Input && matches!(buffer.name.as_str(), "ids" | "labels");
        match micros {
            Some(micros) if given || buffer.kind == BufferKind::Kept => micros.schedule.flights,
            _ => 1,
        }
    }

    /// All steps with every repeat's body once, in order.
    pub fn flat_steps(&self) -> Vec<&Step> {
        fn walk<'a>(steps: &'a [Step], out: &mut Vec<&'a Step>) {
            for step in steps {
                match step {
                    Step::Repeat { body, .. } => walk(body, out),
                    other => out.push(other),
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.steps, &mut out);
        out
    }
}

impl Buffer {
    /// Bytes of one slice: all rows at the buffer's pitch.
    pub fn slice_bytes(&self) -> u64 {
        let rows = self.shape.iter().rev().skip(1).fold(1u64, |rows, &dim| rows.saturating_mul(dim));
        rows.saturating_mul(self.pitch).saturating_mul(self.dtype.bytes())
    }
}

impl Step {
    /// The arguments of a launch, product or meeting, in order; none for a repeat.
    pub fn args(&self) -> Vec<&Arg> {
        match self {
            Step::Launch(launch) => launch.args.iter().collect(),
            Step::Gemm(gemm) => {
                [Some(&gemm.a), Some(&gemm.w), gemm.residual.as_ref(), gemm.bias.as_ref(), Some(&gemm.out)]
                    .into_iter()
                    .flatten()
                    .collect()
            }
            Step::Meet(meeting) => meeting.x.iter().chain(&meeting.out).collect(),
            Step::Repeat { .. } | Step::Join => Vec::new(),
        }
    }

    /// The same arguments, to be changed.
    pub fn args_mut(&mut self) -> Vec<&mut Arg> {
        match self {
            Step::Launch(launch) => launch.args.iter_mut().collect(),
            Step::Gemm(gemm) => {
                let Gemm { a, w, residual, bias, out, .. } = gemm.as_mut();
                [Some(a), Some(w), residual.as_mut(), bias.as_mut(), Some(out)]
                    .into_iter()
                    .flatten()
                    .collect()
            }
            Step::Meet(meeting) => meeting.x.iter_mut().chain(&mut meeting.out).collect(),
            Step::Repeat { .. } | Step::Join => Vec::new(),
        }
    }

    /// The kernel named by a launch or product.
    pub fn kernel(&self) -> Option<&str> {
        match self {
            Step::Launch(launch) => Some(&launch.kernel),
            Step::Gemm(gemm) => Some(&gemm.kernel),
            Step::Repeat { .. } | Step::Meet(_) | Step::Join => None,
        }
    }
}
