//! Where the optional tools are: NVRTC from the wheels, the kernel cache, the CUDA driver.

use crate::failure::{Exit, Failure};
use crate::output;
use lapidary_runtime_gpu::bench::Tunings;
use lapidary_runtime_gpu::compile::{CompileError, Nvrtc, Prebuilt, library_folder};
use lapidary_runtime_gpu::device::cuda::Cuda;
use lapidary_runtime_gpu::device::{About, Device};
use std::path::PathBuf;

/// Names the folder of the unpacked CUDA wheels.
const CUDA_FOLDER: &str = "LAPIDARY_CUDA";
/// Names the folder of compiled kernels.
const CACHE_FOLDER: &str = "LAPIDARY_CACHE";

/// A part of the toolchain.
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether it is here.
    pub found: Found,
}

/// Whether a part is here: its version or place, or how to get it.
pub enum Found {
    /// Here.
    Yes(String),
    /// Missing.
    No(String),
}

/// Every part that `doctor` reports.
pub fn parts() -> Vec<Part> {
    let nvrtc = match nvrtc() {
        Ok(nvrtc) => Found::Yes(format!("{}.{}", nvrtc.version().0, nvrtc.version().1)),
        Err(error) => Found::No(error.to_string()),
    };
    vec![
        Part { name: "MLIR", purpose: "every compilation", found: Found::Yes("22, linked".into()) },
        Part { name: "NVRTC", purpose: "PTX and cubin of target a100", found: nvrtc },
        Part { name: "kernel cache", purpose: "compiling each kernel once", found: cache_part() },
        Part { name: "GPU", purpose: "--device cuda and bench", found: gpu_part() },
    ]
}

/// The first GPU, or why there is none.
fn gpu_part() -> Found {
    match Cuda::open(0, Box::new(Prebuilt::default())) {
        Ok(gpu) => {
            let About { product, arch, driver, .. } = gpu.about();
            Found::Yes(format!("{product} ({arch}), driver for CUDA {driver}"))
        }
        Err(error) => Found::No(error.to_string()),
    }
}

fn cache_part() -> Found {
    match kernel_cache() {
        Some(folder) => Found::Yes(folder.display().to_string()),
        None => Found::No(format!("set {CACHE_FOLDER}, XDG_CACHE_HOME or HOME")),
    }
}

/// NVRTC from the first folder that has it.
///
/// # Errors
/// When it is nowhere; the message says how to get it.
pub fn nvrtc() -> Result<Nvrtc, CompileError> {
    let mut last = None;
    for folder in cuda_folders() {
        match Nvrtc::open(&library_folder(&folder)) {
            Ok(nvrtc) => return Ok(nvrtc),
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last
        .unwrap_or(CompileError::Missing { directory: ".deps/cuda".into(), why: "no such folder".into() }))
}

/// The folder named by the environment, or the project's own beside the binary or the working folder.
fn cuda_folders() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os(CUDA_FOLDER) {
        return vec![named.into()];
    }
    let beside_binary = std::env::current_exe().ok();
    let upwards = beside_binary.iter().flat_map(|path| path.ancestors().skip(1).take(4));
    let mut roots: Vec<PathBuf> = upwards.map(PathBuf::from).collect();
    roots.push(PathBuf::from("."));
    roots.into_iter().map(|root| root.join(".deps/cuda")).filter(|folder| folder.is_dir()).collect()
}

/// Where compiled kernels are kept between runs; none without a home.
pub fn kernel_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(CACHE_FOLDER)
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("lapidary")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/lapidary")))
}

/// What was measured on a GPU with a driver in earlier runs on this machine; nothing where there is no file, or one that
/// cannot be read.
pub fn tunings(device: &str, driver: &str) -> Tunings {
    let fresh = Tunings::new(device, driver);
    let text = kernel_cache().and_then(|folder| std::fs::read_to_string(folder.join(fresh.file_name())).ok());
    let known = text.and_then(|text| Tunings::read(&text).ok());
    known.filter(|known| (known.device.as_str(), known.driver.as_str()) == (device, driver)).unwrap_or(fresh)
}

/// What was measured in earlier runs on this machine on GPUs of a product's kind, the driver's name for it first; of several
/// drivers the last by name. The kind is what the first two words say: drivers call the H200-SXM5-141GB plainly H200.
pub fn tunings_of(product: &str) -> Option<Tunings> {
    let folder = std::fs::read_dir(kernel_cache()?).ok()?;
    let mut files: Vec<PathBuf> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let named = |path: &&PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("tunings-") && name.ends_with(".json")
    };
    let read = |path: &PathBuf| Tunings::read(&std::fs::read_to_string(path).ok()?).ok();
    let known: Vec<Tunings> = files.iter().filter(named).filter_map(read).collect();
    let exact = known.iter().rfind(|tunings| tunings.device == product);
    exact.or_else(|| known.iter().rfind(|tunings| kind(&tunings.device) == kind(product))).cloned()
}

/// Whose and which: `NVIDIA H200-SXM5-141GB` is an NVIDIA H200.
pub fn kind(product: &str) -> Vec<&str> {
    product.split([' ', '-']).take(2).collect()
}

/// Keeps what was measured, for later runs on this machine.
///
/// # Errors
/// Exit 3 where the file cannot be written.
pub fn keep_tunings(tunings: &Tunings) -> Result<(), Failure> {
    let Some(folder) = kernel_cache() else { return Ok(()) };
    let place = folder.join(tunings.file_name());
    let refused =
        |error: std::io::Error| Failure::new(Exit::InvalidInput, format!("{}: {error}", place.display()));
    std::fs::create_dir_all(&folder).map_err(refused)?;
    let text = serde_json::to_string_pretty(tunings)
        .map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    output::file(&place, &text)
}
