//! Why a device did not do what it was asked, and what would help.
use crate::compile::CompileError;

/// A device's refusal.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The driver's library is not there.
    #[error("no NVIDIA driver: the loader finds no libcuda.so.1")]
    NoDriver,
    /// The driver is older than the kernels.
    #[error("the NVIDIA driver is too old: it knows CUDA {found}, kernels need {needed}")]
    OldDriver {
        /// What the driver knows.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// The driver lacks a function.
    #[error("the NVIDIA driver is too old: it has no {name}")]
    NoFunction {
        /// The function.
        name: String,
    },
    /// The driver is there but does not start.
    #[error("the NVIDIA driver does not start: {code}")]
    NotStarted {
        /// The driver's code.
        code: String,
    },
    /// There is no such GPU.
    #[error("no GPU {asked}: the driver sees {count}")]
    NoGpu {
        /// Number asked for.
        asked: u32,
        /// GPUs there are.
        count: u32,
    },
    /// The GPU is of another architecture than kernels are made for.
    #[error("{product} is {found}; kernels are made for sm_80 and sm_90a")]
    Architecture {
        /// Product name.
        product: String,
        /// Its architecture.
        found: String,
    },
    /// Machine code is not for this GPU, or damaged.
    #[error("kernel `{kernel}`: its machine code does not load on {product} ({arch}): {code}")]
    Image {
        /// The kernel.
        kernel: String,
        /// Product name.
        product: String,
        /// The GPU's architecture.
        arch: String,
        /// The driver's code.
        code: String,
    },
    /// There is no machine code and no way to make it.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// What is needed is more than what is free.
    #[error("{what} needs {} on {product}, which has {} free: {}", bytes(*needed), bytes(*free), told(classes))]
    Memory {
        /// What needs it.
        what: String,
        /// Product name.
        product: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes by class, the largest first.
        classes: Vec<(String, u64)>,
    },
    /// A call failed.
    #[error("{what} failed on the GPU: {code}")]
    Call {
        /// What was being done.
        what: String,
        /// The driver's code.
        code: String,
    },
    /// A program asks for the library, which is not opened.
    #[error("the program calls cuBLASLt's matrix product: the loader finds no libcublasLt.so.12")]
    NoLibrary,
    /// Other ranks are not met, or do not answer.
    #[error("{what}: {why}")]
    Peers {
        /// What was to be said.
        what: String,
        /// What happened.
        why: String,
    },
    /// A program is one of another job, or of another rank.
    #[error("the program is rank {rank} in stage {stage} of {plan}, but this process is {found}")]
    World {
        /// The plan that the program is part of.
        plan: String,
        /// Place in the tensor-parallel group.
        rank: u64,
        /// Stage of the pipeline.
        stage: u64,
        /// What the process is.
        found: String,
    },
    /// A program and what it is given do not go together.
    #[error("{0}")]
    Mismatch(String),
}

impl DeviceError {
    /// What would help.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            DeviceError::NoDriver => "install the NVIDIA driver (525 or later), or use --device cpu",
            DeviceError::OldDriver { .. } | DeviceError::NoFunction { .. } => {
                "install driver 525 or later, or use --device cpu"
            }
            DeviceError::NotStarted { .. } => {
                "`nvidia-smi` says more; in a container, start it with access to the GPU; or use --device cpu"
            }
            DeviceError::NoGpu { .. } => "CUDA_VISIBLE_DEVICES may hide GPUs; or use --device cpu",
            DeviceError::Architecture { .. } => "use an A100, H100 or H200, or --device cpu",
            DeviceError::Image { .. } => {
                "compile the kernels for this GPU: empty the kernel cache and run again"
            }
            DeviceError::Memory { .. } => {
                "use bf16 weights, fewer or shorter sequences, or a GPU with more memory"
            }
            DeviceError::NoLibrary => {
                "put the folder of libcublasLt.so.12 into LD_LIBRARY_PATH, or compile with lower-to-cuda{library=off}"
            }
            DeviceError::Peers { .. } => {
                "one of the ranks ended, hangs, or was never started; --patience SECONDS waits longer, NCCL_DEBUG=INFO tells more"
            }
            DeviceError::World { .. } => {
                "start as many processes as the plan has ranks, or compile for the plan of this job"
            }
            DeviceError::Compile(_) | DeviceError::Call { .. } | DeviceError::Mismatch(_) => return None,
        })
    }
}

/// Bytes for people.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.2} {}", UNITS[unit])
}

fn told(classes: &[(String, u64)]) -> String {
    let parts: Vec<String> =
        classes.iter().map(|(class, size)| format!("{class} {}", bytes(*size))).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_by_class() {
        let error = DeviceError::Memory {
            what: "decode".into(),
            product: "A100".into(),
            needed: 3 << 30,
            free: 1 << 30,
            classes: vec![("weights".into(), 2 << 30), ("kv_cache".into(), 1 << 30)],
        };
        let told =
            "decode needs 3.00 GiB on A100, which has 1.00 GiB free: weights 2.00 GiB, kv_cache 1.00 GiB";
        assert_eq!(error.to_string(), told);
        assert!(error.help().is_some_and(|help| help.contains("bf16")));
    }
}
