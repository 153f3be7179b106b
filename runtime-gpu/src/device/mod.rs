//! What a GPU is to a program: memory with addresses, kernels, one stream of work in order, graphs of it, and marks in time.
//!
//! [`cuda::Cuda`] is the real one. Tests have another, which runs the kernels' texts on the host; what executes programs
//! ([`crate::execute`]) knows only this trait. All work of a device is in one order: a read sees what was launched before it.
use crate::collectives::{Standing, Word};
use crate::compile::Source;
use crate::program::{Boxes, Gemm};

mod blas;
pub mod cuda;
mod error;

pub use error::DeviceError;

/// A place in a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u64);

impl Address {
    /// The place `bytes` further on.
    pub fn after(self, bytes: u64) -> Address {
        Address(self.0.wrapping_add(bytes))
    }
}

/// A loaded kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelId(pub usize);

/// Work that was captured and can be repeated at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GraphId(pub usize);

/// A moment between two pieces of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkId(pub usize);

/// A kernel with everything that a launch needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The kernel.
    pub kernel: KernelId,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u64,
    /// What the entry's parameters get, in their order.
    pub args: Vec<Value>,
}

/// What a parameter of a kernel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A pointer.
    Pointer(Address),
    /// A matrix that starts there, for the copy engine (`sm_90a`).
    Boxes(Address, Boxes),
}

/// A library's matrix product with the places of its operands.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    /// Sizes, order and factors; its own arguments are not looked at.
    pub gemm: Gemm,
    /// Left side.
    pub a: Address,
    /// Right side.
    pub w: Address,
    /// Added with the factor `beta`.
    pub residual: Option<Address>,
    /// Added to each row.
    pub bias: Option<Address>,
    /// Result.
    pub out: Address,
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Product name.
    pub product: String,
    /// Architecture that kernels are compiled for, such as `sm_80`.
    pub arch: String,
    /// Multiprocessors.
    pub processors: u32,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Bytes of the second-level cache.
    pub cache_bytes: u64,
    /// Version of the driver's interface, such as `12.9`.
    pub driver: String,
}

/// A device with one stream of work, and a second one that only copies to the host ([`Device::read_behind`]).
///
/// Every method may fail with [`DeviceError`]; what was launched wrongly may be told by a later call, as devices do.
pub trait Device {
    /// What the device says of itself.
    fn about(&self) -> &About;

    /// Bytes that can be allocated now.
    fn free_bytes(&mut self) -> Result<u64, DeviceError>;

    /// Whether what the library works in is allocated already; it is with the first product.
    fn has_workspace(&self) -> bool;

    /// Memory of at least one byte at a multiple of 256, its contents undefined.
    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError>;

    /// Gives memory back that [`Device::allocate`] gave.
    fn release(&mut self, at: Address) -> Result<(), DeviceError>;

    /// Copies from the host, behind all earlier work.
    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies to the host once all earlier work is done.
    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies to the host once the work before a mark is done, while the work behind it goes on.
    fn read_behind(&mut self, mark: MarkId, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Sets every byte.
    fn fill(&mut self, to: Address, byte: u8, bytes: u64) -> Result<(), DeviceError>;

    /// Copies within the device.
    fn copy(&mut self, to: Address, from: Address, bytes: u64) -> Result<(), DeviceError>;

    /// Compiles kernels, or finds their machine code, and loads it; ids in the order of the sources.
    fn load(&mut self, sources: &[Source]) -> Result<Vec<KernelId>, DeviceError>;

    /// Starts a kernel behind all earlier work.
    fn launch(&mut self, call: &Call) -> Result<(), DeviceError>;

    /// Starts the library's matrix product.
    fn product(&mut self, product: &Product) -> Result<(), DeviceError>;

    /// From here on, work is noted and not done. Only launches, fills and copies within the device may be noted.
    fn begin_graph(&mut self) -> Result<(), DeviceError>;

    /// Ends what [`Device::begin_graph`] began.
    fn end_graph(&mut self) -> Result<GraphId, DeviceError>;

    /// Does a graph's work once.
    fn replay(&mut self, graph: GraphId) -> Result<(), DeviceError>;

    /// Sets a mark behind all earlier work.
    fn mark(&mut self) -> Result<MarkId, DeviceError>;

    /// Seconds of the device between two marks, once the later one is reached.
    fn seconds(&mut self, from: MarkId, to: MarkId) -> Result<f64, DeviceError>;

    /// Returns when all work is done.
    fn wait(&mut self) -> Result<(), DeviceError>;

    /// Where the device's rank stands among others; none for a device that has nobody to meet.
    fn standing(&self) -> Option<Standing> {
        None
    }

    /// Says a word to other ranks, behind all earlier work.
    fn say(&mut self, word: &Word) -> Result<(), DeviceError> {
        Err(DeviceError::Mismatch(format!("{}: this device has nobody to meet", word.name)))
    }

    /// Lets later work wait for all words that were said beside.
    fn join(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Streams for libraries that put work on the device themselves; none where there is no such thing.
    fn streams(&mut self) -> Option<&mut dyn Streams> {
        None
    }
}

/// The streams of a device by their driver's handles.
pub trait Streams {
    /// That of all the device's work.
    fn main(&self) -> u64;

    /// One more, which lives as long as the device.
    fn another(&mut self) -> Result<u64, DeviceError>;

    /// Lets what is put on `later` from now on wait for what is on `earlier` now.
    fn follow(&mut self, later: u64, earlier: u64) -> Result<(), DeviceError>;

    /// Whether all work of a stream is done.
    fn idle(&mut self, stream: u64) -> Result<bool, DeviceError>;

    /// Copies within the device on a stream.
    fn copy_on(&mut self, stream: u64, to: Address, from: Address, bytes: u64) -> Result<(), DeviceError>;
}
