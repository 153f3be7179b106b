//! GPU programs: their definition, checks, and compilation to cubin.
//!
//! - [`program`]: a GPU program as plain data (buffers, kernels, steps) and the check that it cannot fault the machine.
//! - [`program::memory`]: the liveness-based plan of one arena that all temporary buffers share.
//! - [`compile`]: CUDA C++ to PTX and cubin through NVRTC, opened at run time and never assumed.

pub mod compile;
pub mod program;
