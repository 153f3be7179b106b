//! The generated CUDA C++, run on the host thread by thread, computes what the region means.
//!
//! Random input, NaN in every output, in row padding and in shared memory before the kernel starts. Needs g++.
#[path = "cuda_emulation/harness.rs"]
mod harness;
#[path = "cuda_emulation/reference.rs"]
mod reference;

#[path = "cuda_emulation/models.rs"]
mod models;
#[path = "cuda_emulation/region.rs"]
mod region;

#[path = "cuda_emulation/attention.rs"]
mod attention;
#[path = "cuda_emulation/backward.rs"]
mod backward;
#[path = "cuda_emulation/products.rs"]
mod products;
#[path = "cuda_emulation/programs.rs"]
mod programs;
#[path = "cuda_emulation/ranks.rs"]
mod ranks;
#[path = "cuda_emulation/rows.rs"]
mod rows;
#[path = "cuda_emulation/sampling.rs"]
mod sampling;
#[path = "cuda_emulation/training.rs"]
mod training;
