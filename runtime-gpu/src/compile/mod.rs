//! CUDA C++ to PTX and cubin, through NVRTC opened at run time, with the resources that the assembler reports.
//!
//! Nothing here needs a GPU. Where NVRTC is missing the error says how to get it; programs and sources exist without it.
use crate::program::GpuProgram;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

mod cache;
mod log;
mod nvrtc;
mod provide;

pub use log::Resources;
pub use nvrtc::Nvrtc;
pub use provide::{Absent, Compiler, Online, Prebuilt, digest};

/// One CUDA C++ file with one entry point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Kernel and file name, for messages.
    pub name: String,
    /// The text. It includes nothing.
    pub text: String,
}

/// What NVRTC made of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Virtual assembly.
    pub ptx: String,
    /// Machine code (an ELF file) for the architecture.
    pub cubin: Vec<u8>,
    /// Registers, shared memory and spills.
    pub resources: Resources,
    /// Everything the compiler said.
    pub log: String,
    /// Whether it came from the cache.
    pub cached: bool,
}

/// Why compilation did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// NVRTC is not there.
    #[error("cannot open NVRTC in {directory}: {why}; `make setup` fetches it into the project")]
    Missing {
        /// Where it was looked for.
        directory: String,
        /// What the loader said.
        why: String,
    },
    /// NVRTC refused the source.
    #[error("kernel `{kernel}` does not compile for {arch} ({code}):\n{log}")]
    Rejected {
        /// The kernel.
        kernel: String,
        /// The architecture.
        arch: String,
        /// NVRTC's result code.
        code: String,
        /// NVRTC's log.
        log: String,
    },
    /// NVRTC's log lacks the resource lines.
    #[error("kernel `{kernel}`: no resources in the assembler's output:\n{log}")]
    NoResources {
        /// The kernel.
        kernel: String,
        /// NVRTC's log.
        log: String,
    },
    /// A text that cannot be handed to C.
    #[error("kernel `{kernel}`: {what} contains a zero byte")]
    ZeroByte {
        /// The kernel.
        kernel: String,
        /// source, name or option.
        what: &'static str,
    },
    /// Machine code that was made beforehand lacks this kernel.
    #[error("kernel `{kernel}` was not compiled for {arch} beforehand")]
    NotPrebuilt {
        /// The kernel.
        kernel: String,
        /// The architecture.
        arch: String,
    },
    /// The cache folder cannot be used.
    #[error("kernel cache {path}: {why}")]
    Cache {
        /// The file or folder.
        path: String,
        /// What the system said.
        why: String,
    },
}

/// Architecture, cache and parallelism of a compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileOptions {
    /// Real architecture, such as `sm_80`.
    pub arch: String,
    /// Folder of earlier results, if any. Created when missing.
    pub cache: Option<PathBuf>,
    /// Kernels compiled at once; at least one.
    pub jobs: usize,
}

impl CompileOptions {
    /// For an architecture, without a cache, one at a time.
    pub fn new(arch: &str) -> CompileOptions {
        CompileOptions { arch: arch.into(), cache: None, jobs: 1 }
    }

    /// The options NVRTC gets.
    pub fn flags(&self) -> Vec<String> {
        vec![format!("--gpu-architecture={}", self.arch), "--std=c++17".into(), "--ptxas-options=-v".into()]
    }
}

/// Compiles every source; results in the order of the sources.
pub fn compile_all(
    nvrtc: &Nvrtc,
    sources: &[Source],
    options: &CompileOptions,
) -> Vec<Result<Compiled, CompileError>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<Compiled, CompileError>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                while let Some((i, source)) = take(&next, sources) {
                    let result = compile(nvrtc, source, options);
                    results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

fn take<'a>(next: &AtomicUsize, sources: &'a [Source]) -> Option<(usize, &'a Source)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    Some((i, sources.get(i)?))
}

/// Compiles one source, or finds it in the cache.
pub fn compile(nvrtc: &Nvrtc, source: &Source, options: &CompileOptions) -> Result<Compiled, CompileError> {
    let key = cache::key(source, &options.flags(), nvrtc.version());
    if let Some(found) = options.cache.as_deref().and_then(|folder| cache::load(folder, &key)) {
        return finish(source, found, true);
    }
    let output = nvrtc.compile(source, options)?;
    if let Some(folder) = options.cache.as_deref() {
        cache::store(folder, &key, &output)?;
    }
    finish(source, output, false)
}

/// PTX, machine code and log as they come from NVRTC or from the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub ptx: Vec<u8>,
    pub cubin: Vec<u8>,
    pub log: Vec<u8>,
}

fn finish(source: &Source, output: Output, cached: bool) -> Result<Compiled, CompileError> {
    let log = String::from_utf8_lossy(&output.log).into_owned();
    let resources = Resources::parse(&log)
        .ok_or_else(|| CompileError::NoResources { kernel: source.name.clone(), log: log.clone() })?;
    let ptx = String::from_utf8_lossy(&output.ptx).into_owned();
    Ok(Compiled { ptx, cubin: output.cubin, resources, log, cached })
}

/// Writes the resources of a compiled kernel into the program that launches it. Static shared memory adds to the dynamic.
pub fn apply(program: &mut GpuProgram, kernel: &str, resources: &Resources) {
    for entry in program.kernels.iter_mut().filter(|entry| entry.name == kernel) {
        entry.registers = Some(resources.registers);
        entry.spill_bytes = Some(resources.spill_stores + resources.spill_loads);
    }
}

/// The folder of NVRTC's library within an unpacked set of wheels.
pub fn library_folder(wheels: &Path) -> PathBuf {
    wheels.join("nvidia").join("cuda_nvrtc").join("lib")
}
