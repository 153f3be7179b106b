//! Emission of CUDA C++ kernels and GPU programs from the fused module.
