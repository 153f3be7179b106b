//! The door to the CUDA driver. All calls into it are here, each with the reason why it is sound.
//!
//! The driver is opened at run time and looked at before it is used: the binding panics where the library or a function is
//! missing, so both are asked for by name first. One GPU, its primary context, one stream of its own.
#![allow(unsafe_code)]

use super::blas::Blas;
use super::{About, Address, Call, Device, DeviceError, GraphId, KernelId, MarkId, Product, Streams, Value};
use crate::compile::{Compiler, Source};
use crate::program::{Boxes, DeviceLimits, LIBRARY_WORKSPACE_BYTES};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::BTreeSet;
use std::ffi::{CString, c_void};

/// The oldest driver interface that loads machine code of the compiler in use: within a major version old drivers load
/// what newer compilers made (CUDA Compatibility guide, "Minor Version Compatibility").
const OLDEST_DRIVER: i32 = 12_000;

/// Shared memory that a kernel may have without asking for more (CUDA C++ Programming Guide, compute capability 8.x).
const SHARED_WITHOUT_ASKING: u64 = 48 * 1024;

/// Every driver function that this file calls.
const FUNCTIONS: [&str; 39] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamQuery",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuTensorMapEncodeTiled",
];

/// A GPU, known to be there and new enough.
pub struct Cuda {
    about: About,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// Copies to the host that work goes on beside.
    beside: sys::CUstream,
    compiler: Box<dyn Compiler>,
    modules: Vec<sys::CUmodule>,
    kernels: Vec<sys::CUfunction>,
    /// Kernels that were allowed more shared memory than usual.
    widened: BTreeSet<(KernelId, u64)>,
    graphs: Vec<sys::CUgraphExec>,
    marks: Vec<sys::CUevent>,
    capturing: bool,
    /// Opened when the first product is asked for.
    blas: Option<Blas>,
}

impl Cuda {
    /// What names this GPU on this machine and no other: its place on the bus.
    ///
    /// # Errors
    /// What the driver says.
    pub fn place_on_bus(&self) -> Result<String, DeviceError> {
        use sys::CUdevice_attribute_enum as Attribute;
        let of = [
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
        ];
        // SAFETY: the device exists.
        let found = of.map(|which| unsafe { result::device::get_attribute(self.device, which) });
        let [domain, bus, device] = found.map(|one| call("cuDeviceGetAttribute", one));
        Ok(format!("{:04x}:{:02x}:{:02x}", domain?, bus?, device?))
    }

    /// Opens the driver and GPU `ordinal`.
    ///
    /// # Errors
    /// Where there is no driver, it is too old or does not start, or the GPU is not there or too old.
    pub fn open(ordinal: u32, compiler: Box<dyn Compiler>) -> Result<Cuda, DeviceError> {
        open_driver()?;
        let mut version = 0;
        // SAFETY: the driver is loaded and has the function; the pointer is valid for the write.
        call("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) }.result())?;
        if version < OLDEST_DRIVER {
            let (found, needed) = (dotted(version), dotted(OLDEST_DRIVER));
            return Err(DeviceError::OldDriver { found, needed });
        }
        result::init().map_err(|error| DeviceError::NotStarted { code: code(error) })?;
        let count = call("cuDeviceGetCount", result::device::get_count())?.cast_unsigned();
        if ordinal >= count {
            return Err(DeviceError::NoGpu { asked: ordinal, count });
        }
        let device = call("cuDeviceGet", result::device::get(ordinal.cast_signed()))?;
        let about = about(device, version)?;
        // SAFETY: the device exists; the context is given back when this value is dropped.
        let context = call("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        // SAFETY: the context was retained above. The value is not `Send`, so it stays on this thread.
        call("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
        let stream = call("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        let beside = call("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Cuda {
            about,
            device,
            stream,
            beside,
            compiler,
            modules: Vec::new(),
            kernels: Vec::new(),
            widened: BTreeSet::new(),
            graphs: Vec::new(),
            marks: Vec::new(),
            capturing: false,
            blas: None,
        })
    }

    /// Refuses what cannot be part of a graph.
    fn outside_graphs(&self, what: &str) -> Result<(), DeviceError> {
        match self.capturing {
            true => Err(DeviceError::Mismatch(format!("{what} cannot be part of a graph"))),
            false => Ok(()),
        }
    }

    /// A kernel may ask for more shared memory than usual once it was allowed to.
    fn widen(&mut self, kernel: KernelId, bytes: u64) -> Result<(), DeviceError> {
        if bytes <= SHARED_WITHOUT_ASKING || !self.widened.insert((kernel, bytes)) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function belongs to a module that stays loaded as long as this value lives.
        let set =
            unsafe { result::function::set_function_attribute(self.kernels[kernel.0], attribute, bytes) };
        call("cuFuncSetAttribute", set)
    }
}

/// Loads the driver's library for the rest of the process, and makes sure that it has every function.
fn open_driver() -> Result<(), DeviceError> {
    // SAFETY: loading runs the library's initialisers, which NVIDIA documents as safe; the handle is leaked on purpose, so
    // that the binding finds the same library by its name.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.map_err(|_| DeviceError::NoDriver)?;
    // SAFETY: only tries to open the library; without this check the binding panics where it finds none.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    for name in FUNCTIONS {
        // SAFETY: the symbol is looked up and not called.
        let found = unsafe { library.get::<*const c_void>(name.as_bytes()) };
        found.map_err(|_| DeviceError::NoFunction { name: name.into() })?;
    }
    std::mem::forget(library);
    Ok(())
}

fn about(device: sys::CUdevice, version: i32) -> Result<About, DeviceError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let product = call("cuDeviceGetName", result::device::get_name(device))?;
    // SAFETY: the device exists.
    let attribute =
        |which| call("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) });
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // Hopper's own instructions need code for exactly this architecture.
    let found = format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" });
    if DeviceLimits::of(&found).is_none() {
        return Err(DeviceError::Architecture { product, found });
    }
    let count = |value: i32| u32::try_from(value).unwrap_or(0);
    // SAFETY: the device exists.
    let memory = call("cuDeviceTotalMem", unsafe { result::device::total_mem(device) })?;
    Ok(About {
        product,
        arch: found,
        processors: count(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?),
        memory_bytes: memory as u64,
        cache_bytes: count(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?).into(),
        driver: dotted(version),
    })
}

/// What the driver copies a kernel's parameter from.
enum Parameter {
    Pointer(u64),
    Matrix(Box<sys::CUtensorMap>),
}

/// Matrices are described as kernels for `sm_90a` expect them: bf16, boxes 128 bytes wide in the 128-byte swizzle.
fn parameter(value: &Value) -> Result<Parameter, DeviceError> {
    let (at, boxes) = match value {
        Value::Pointer(at) => return Ok(Parameter::Pointer(at.0)),
        Value::Boxes(at, boxes) => (at, boxes),
    };
    let mut map = Box::new(sys::CUtensorMap { opaque: [0; 16] });
    // Columns and rows; or columns of a head, heads, rows of a sequence, sequences.
    let (sizes, strides, window) = match boxes.parts {
        None => (vec![boxes.cols, boxes.rows], vec![boxes.pitch_bytes], vec![Boxes::COLS, boxes.box_rows]),
        Some(parts) => (
            vec![boxes.cols, parts.heads, boxes.rows, parts.sequences],
            vec![boxes.cols * 2, boxes.pitch_bytes, boxes.pitch_bytes * boxes.rows],
            vec![Boxes::COLS, 1, boxes.box_rows, 1],
        ),
    };
    let (rank, steps) = (sizes.len() as u32, vec![1u32; sizes.len()]);
    // SAFETY: sizes, window and steps have `rank` entries, strides one less, as the call asks for, and outlive it; it only
    // computes; the address is that of memory which the program's owner keeps.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut(),
            sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            rank,
            at.0 as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            window.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    call("cuTensorMapEncodeTiled", encoded.result()).map(|()| Parameter::Matrix(map))
}

/// 12090 as 12.9.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn code(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.map_or_else(|_| format!("{:?}", error.0), |text| format!("{:?}: {text}", error.0))
}

fn call<T>(what: &str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
    result.map_err(|error| DeviceError::Call { what: what.into(), code: code(error) })
}

impl Device for Cuda {
    fn about(&self) -> &About {
        &self.about
    }

    fn free_bytes(&mut self) -> Result<u64, DeviceError> {
        call("cuMemGetInfo", result::mem_get_info()).map(|(free, _)| free as u64)
    }

    fn has_workspace(&self) -> bool {
        self.blas.is_some()
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.outside_graphs("an allocation")?;
        // SAFETY: the context is current; memory that is not released goes with the context.
        match unsafe { result::malloc_sync(bytes.max(1) as usize) } {
            Ok(at) => Ok(Address(at)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(DeviceError::Memory {
                what: "one buffer".into(),
                product: self.about.product.clone(),
                needed: bytes,
                free: self.free_bytes()?,
                classes: Vec::new(),
            }),
            Err(error) => call("cuMemAlloc", Err(error)),
        }
    }

    fn release(&mut self, at: Address) -> Result<(), DeviceError> {
        self.outside_graphs("a release")?;
        self.wait()?;
        // SAFETY: `Device::release` takes only addresses of `Device::allocate`, and no work is under way.
        call("cuMemFree", unsafe { result::free_sync(at.0) })
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.outside_graphs("a copy from the host")?;
        // SAFETY: the host's bytes outlive the copy, which is waited for.
        call("cuMemcpyHtoD", unsafe { result::memcpy_htod_async(to.0, bytes, self.stream) })?;
        self.wait()
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.outside_graphs("a copy to the host")?;
        // SAFETY: the host's bytes outlive the copy, which is waited for.
        call("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream) })?;
        self.wait()
    }

    fn read_behind(&mut self, mark: MarkId, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.outside_graphs("a copy to the host")?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event exist as long as this value.
        let behind = unsafe { result::stream::wait_event(self.beside, self.marks[mark.0], flags) };
        call("cuStreamWaitEvent", behind)?;
        // SAFETY: the host's bytes outlive the copy, which is waited for below.
        call("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_async(bytes, from.0, self.beside) })?;
        // SAFETY: the stream lives as long as this value.
        call("the work before", unsafe { result::stream::synchronize(self.beside) })
    }

    fn fill(&mut self, to: Address, byte: u8, bytes: u64) -> Result<(), DeviceError> {
        // SAFETY: the caller's addresses are of memory that it allocated with at least so many bytes.
        call("cuMemsetD8", unsafe { result::memset_d8_async(to.0, byte, bytes as usize, self.stream) })
    }

    fn copy(&mut self, to: Address, from: Address, bytes: u64) -> Result<(), DeviceError> {
        // SAFETY: as for `fill`, of both places.
        call("cuMemcpyDtoD", unsafe { result::memcpy_dtod_async(to.0, from.0, bytes as usize, self.stream) })
    }

    fn load(&mut self, sources: &[Source]) -> Result<Vec<KernelId>, DeviceError> {
        self.outside_graphs("loading kernels")?;
        let images = self.compiler.machine_code(sources, &self.about.arch);
        let mut ids = Vec::new();
        for (source, image) in sources.iter().zip(images) {
            let image = image?;
            let refused = |error| DeviceError::Image {
                kernel: source.name.clone(),
                product: self.about.product.clone(),
                arch: self.about.arch.clone(),
                code: code(error),
            };
            let damaged = || refused(DriverError(sys::CUresult::CUDA_ERROR_INVALID_IMAGE));
            // An ELF file says how long it is; anything else the driver would read beyond its end.
            if !image.starts_with(b"\x7fELF") {
                return Err(damaged());
            }
            // SAFETY: the image is a whole ELF file from the compiler or from a cache that checks its digest.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(refused)?;
            self.modules.push(module);
            let entry = CString::new(source.name.as_str()).map_err(|_| damaged())?;
            // SAFETY: the module was loaded above and is unloaded only when this value is dropped.
            self.kernels.push(unsafe { result::module::get_function(module, entry) }.map_err(refused)?);
            ids.push(KernelId(self.kernels.len() - 1));
        }
        Ok(ids)
    }

    fn launch(&mut self, work: &Call) -> Result<(), DeviceError> {
        self.widen(work.kernel, work.shared_bytes)?;
        let mut args: Vec<Parameter> = work.args.iter().map(parameter).collect::<Result<_, _>>()?;
        let mut pointers: Vec<*mut c_void> = args
            .iter_mut()
            .map(|arg| match arg {
                Parameter::Pointer(at) => std::ptr::from_mut(at).cast(),
                Parameter::Matrix(map) => std::ptr::from_mut(map.as_mut()).cast(),
            })
            .collect();
        let axes = |[x, y, z]: [u32; 3]| (x, y, z);
        let shared = u32::try_from(work.shared_bytes).unwrap_or(u32::MAX);
        let kernel = self.kernels[work.kernel.0];
        // SAFETY: the kernel is loaded, the pointers are copied by the driver before it returns, and their number and
        // targets are those of a checked program: each within memory that the program's owner keeps.
        let launched = unsafe {
            result::launch_kernel(
                kernel,
                axes(work.grid),
                axes(work.block),
                shared,
                self.stream,
                &mut pointers,
            )
        };
        call("cuLaunchKernel", launched)
    }

    fn product(&mut self, product: &Product) -> Result<(), DeviceError> {
        if self.blas.is_none() {
            // What it works in is allocated here, which a graph cannot hold: programs run once before they are captured.
            self.outside_graphs("opening the library")?;
            self.blas = Some(Blas::open(&mut || self.allocate(LIBRARY_WORKSPACE_BYTES))?);
        }
        let Some(blas) = &mut self.blas else { return Err(DeviceError::NoLibrary) };
        blas.multiply(product, self.stream.cast())
    }

    fn begin_graph(&mut self) -> Result<(), DeviceError> {
        self.outside_graphs("a graph")?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this value.
        call("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.stream, mode) })?;
        self.capturing = true;
        Ok(())
    }

    fn end_graph(&mut self) -> Result<GraphId, DeviceError> {
        self.capturing = false;
        // SAFETY: the stream lives as long as this value.
        let graph = call("cuStreamEndCapture", unsafe { result::stream::end_capture(self.stream) })?;
        let mut made = std::ptr::null_mut();
        // SAFETY: the graph came from the capture; the executable copy outlives it and is kept for this value's life.
        let outcome = unsafe {
            let outcome = sys::cuGraphInstantiateWithFlags(&mut made, graph, 0).result();
            result::graph::destroy(graph).and(outcome)
        };
        call("cuGraphInstantiate", outcome)?;
        self.graphs.push(made);
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), DeviceError> {
        // SAFETY: the graph was instantiated by `end_graph`, and the memory it names is the program owner's.
        call("cuGraphLaunch", unsafe { result::graph::launch(self.graphs[graph.0], self.stream) })
    }

    fn mark(&mut self) -> Result<MarkId, DeviceError> {
        let event = call("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        // SAFETY: event and stream exist as long as this value.
        call("cuEventRecord", unsafe { result::event::record(event, self.stream) })?;
        self.marks.push(event);
        Ok(MarkId(self.marks.len() - 1))
    }

    fn seconds(&mut self, from: MarkId, to: MarkId) -> Result<f64, DeviceError> {
        let (from, to) = (self.marks[from.0], self.marks[to.0]);
        // SAFETY: both events were recorded on this value's stream.
        call("cuEventSynchronize", unsafe { result::event::synchronize(to) })?;
        // SAFETY: as above.
        call("cuEventElapsedTime", unsafe { result::event::elapsed(from, to) }).map(|ms| f64::from(ms) / 1e3)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as this value.
        call("the work before", unsafe { result::stream::synchronize(self.stream) })
    }

    fn streams(&mut self) -> Option<&mut dyn Streams> {
        Some(self)
    }
}

/// Handles are the driver's pointers as numbers: all that are passed in came from here and live as long as this value.
impl Streams for Cuda {
    fn main(&self) -> u64 {
        self.stream as u64
    }

    fn another(&mut self) -> Result<u64, DeviceError> {
        let kind = result::stream::StreamKind::NonBlocking;
        call("cuStreamCreate", result::stream::create(kind)).map(|stream| stream as u64)
    }

    fn follow(&mut self, later: u64, earlier: u64) -> Result<(), DeviceError> {
        let event =
            call("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both streams exist, and the driver keeps what it needs of the event until nobody waits for it.
        let followed = unsafe {
            let followed = result::event::record(event, earlier as sys::CUstream)
                .and_then(|()| result::stream::wait_event(later as sys::CUstream, event, flags));
            result::event::destroy(event).and(followed)
        };
        call("cuStreamWaitEvent", followed)
    }

    fn idle(&mut self, stream: u64) -> Result<bool, DeviceError> {
        // SAFETY: the stream exists.
        match unsafe { sys::cuStreamQuery(stream as sys::CUstream) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => call("the work before", answer.result()).map(|()| true),
        }
    }

    fn copy_on(&mut self, stream: u64, to: Address, from: Address, bytes: u64) -> Result<(), DeviceError> {
        let stream = stream as sys::CUstream;
        // SAFETY: as for `copy`, on a stream that exists.
        call("cuMemcpyDtoD", unsafe { result::memcpy_dtod_async(to.0, from.0, bytes as usize, stream) })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A failure to give something back leaks it until the process ends, and nothing else.
        let _ = self.wait();
        self.blas = None;
        for module in &self.modules {
            // SAFETY: no work is under way, and no kernel of the module is used again.
            let _ = unsafe { result::module::unload(*module) };
        }
        // SAFETY: retained by `open`, not used again; stream, events, graphs and memory go with the context.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Prebuilt;

    /// Where there is a driver this opens it, and where there is none it must say so and not panic.
    #[test]
    fn opening_never_panics() {
        match Cuda::open(0, Box::new(Prebuilt::default())) {
            Ok(gpu) => assert!(gpu.about().arch.starts_with("sm_") && gpu.about().processors > 0),
            Err(error) => assert!(error.help().is_some(), "{error}"),
        }
    }

    #[test]
    fn versions_are_told_as_people_write_them() {
        assert_eq!((dotted(12_090), dotted(OLDEST_DRIVER)), ("12.9".to_string(), "12.0".to_string()));
    }
}
