//! GPU programs: their definition, checks, compilation to cubin, and execution.
//!
//! - [`program`]: a GPU program as plain data (buffers, kernels, steps) and the check that it cannot fault the machine.
//! - [`program::memory`]: the liveness-based plan of one arena that all temporary buffers share.
//! - [`compile`]: CUDA C++ to PTX and cubin through NVRTC, opened at run time and never assumed.
//! - [`bench`]: kernels and programs measured against what the device can do, and held against expected values.
//! - [`device`]: what a GPU is to a program, and the one behind the CUDA driver, opened at run time and never assumed.
//! - [`execute`]: a program on a device: its memory, its weights, its steps, its graph.
//! - [`generate`]: prompts continued on a device, token by token, without the host in between.

pub mod bench;
pub mod collectives;
pub mod compile;
pub mod device;
pub mod execute;
pub mod generate;
pub mod program;
