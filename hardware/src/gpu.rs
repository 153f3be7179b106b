//! A GPU as the price rules and the kernel emitters see it.

use crate::reader::{Reader, Table};
use crate::unit::{Bytes, BytesPerSecond, FlopsPerSecond, Hertz, Seconds};
use lapidary_models::DType;
use serde::Serialize;
use std::collections::BTreeMap;

/// An arithmetic that a machine states a rate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE binary64.
    Fp64,
    /// IEEE binary32 on the ordinary datapath.
    Fp32,
    /// binary32 operands rounded to 10 bits of mantissa, on tensor cores.
    Tf32,
    /// bfloat16 with binary32 accumulation.
    Bf16,
    /// IEEE binary16; with binary32 accumulation on GPUs.
    Fp16,
    /// binary16 products accumulated in binary32, on wafers.
    Mixed,
    /// 8-bit floating point.
    Fp8,
    /// 8-bit integers.
    Int8,
}

impl Precision {
    /// All of them with their names in machine files.
    pub const NAMES: [(&'static str, Precision); 8] = [
        ("fp64", Precision::Fp64),
        ("fp32", Precision::Fp32),
        ("tf32", Precision::Tf32),
        ("bf16", Precision::Bf16),
        ("fp16", Precision::Fp16),
        ("mixed", Precision::Mixed),
        ("fp8", Precision::Fp8),
        ("int8", Precision::Int8),
    ];

    /// Its name in machine files.
    pub fn name(self) -> &'static str {
        Precision::NAMES.iter().find(|(_, precision)| *precision == self).map_or("", |(name, _)| name)
    }

    /// The arithmetic of matrix products of this element type.
    pub const fn of(dtype: DType) -> Precision {
        match dtype {
            DType::F32 | DType::I32 => Precision::Fp32,
            DType::Bf16 => Precision::Bf16,
            DType::F16 => Precision::Fp16,
        }
    }

    /// Reads the entries of a table of rates, one per precision.
    pub(crate) fn rates<'a, Q: crate::unit::Quantity>(
        reader: &mut Reader<'a>,
        table: &Table<'a>,
    ) -> BTreeMap<Precision, Q> {
        let mut rates = BTreeMap::new();
        for (name, rate) in reader.named::<Q>(table) {
            match Precision::NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, precision)) => {
                    rates.insert(*precision, rate);
                }
                None => {
                    let known = Precision::NAMES.map(|(name, _)| name).join(", ");
                    let message = "is not a known precision".to_string();
                    reader.fault(table.key_path(&name), None, message, &format!("one of {known}"));
                }
            }
        }
        rates
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// What the maker calls it.
    pub product: String,
    /// Compiler architecture, as `sm_80`.
    pub architecture: String,
    /// Peak rate of dense arithmetic by precision.
    pub peak: BTreeMap<Precision, FlopsPerSecond>,
    /// Rates that were measured to be reached, where the file states them.
    pub sustained: Sustained,
    /// Memory on the package.
    pub memory: DeviceMemory,
    /// What a kernel finds on one multiprocessor.
    pub multiprocessor: Multiprocessor,
    /// Highest clock.
    pub boost_clock: Hertz,
    /// Time that one kernel launch occupies the host.
    pub launch_latency: Seconds,
}

/// Measured rates; each may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sustained {
    /// Large matrix products at 16 bits.
    pub matmul: Option<FlopsPerSecond>,
    /// Fused attention, forward and backward.
    pub attention: Option<FlopsPerSecond>,
    /// Streaming element-wise kernels.
    pub memory: Option<BytesPerSecond>,
}

/// Memory of a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceMemory {
    /// What a program can allocate.
    pub capacity: Bytes,
    /// Peak bandwidth.
    pub bandwidth: BytesPerSecond,
    /// Level-2 cache.
    pub l2: Bytes,
}

/// One streaming multiprocessor and how many there are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Multiprocessor {
    /// How many the device has.
    pub count: u64,
    /// Shared memory of one.
    pub shared_memory: Bytes,
    /// Shared memory that one block may take.
    pub shared_memory_per_block: Bytes,
    /// 32-bit registers of one.
    pub registers: u64,
    /// Registers that one thread may use.
    pub registers_per_thread: u64,
    /// Resident threads of one.
    pub threads: u64,
    /// Threads of one block.
    pub threads_per_block: u64,
    /// Resident blocks of one.
    pub blocks: u64,
    /// Threads that run in step.
    pub warp: u64,
}

impl Gpu {
    /// The rate large matrix products reach: measured where stated for 16 bits, else the peak.
    /// `None` where the machine has no such arithmetic.
    pub fn matmul_rate(&self, precision: Precision) -> Option<FlopsPerSecond> {
        let peak = *self.peak.get(&precision)?;
        match (precision, self.sustained.matmul) {
            (Precision::Bf16 | Precision::Fp16, Some(measured)) => Some(measured),
            _ => Some(peak),
        }
    }

    /// The bandwidth streaming kernels reach: measured where stated, else the peak.
    pub fn stream_rate(&self) -> BytesPerSecond {
        self.sustained.memory.unwrap_or(self.memory.bandwidth)
    }

    pub(crate) fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Gpu> {
        let product = reader.text(&mut table, "product");
        let architecture = reader.text(&mut table, "architecture");
        let peak = reader.table(&mut table, "peak").map(|peaks| Precision::rates(reader, &peaks));
        let sustained = reader.optional_table(&mut table, "sustained");
        let sustained = sustained.map(|table| Sustained::read(reader, table)).unwrap_or_default();
        let memory = reader.table(&mut table, "memory").map(|table| DeviceMemory::read(reader, table));
        let multiprocessor = reader.table(&mut table, "multiprocessor");
        let multiprocessor = multiprocessor.map(|table| Multiprocessor::read(reader, table));
        let boost_clock = reader.quantity(&mut table, "boost-clock");
        let launch_latency = reader.quantity(&mut table, "launch-latency");
        reader.finish(table);
        Some(Gpu {
            product: product?,
            architecture: architecture?,
            peak: peak?,
            sustained,
            memory: memory??,
            multiprocessor: multiprocessor??,
            boost_clock: boost_clock?,
            launch_latency: launch_latency?,
        })
    }
}

impl Sustained {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Sustained {
        let sustained = Sustained {
            matmul: reader.optional_quantity(&mut table, "matmul"),
            attention: reader.optional_quantity(&mut table, "attention"),
            memory: reader.optional_quantity(&mut table, "memory"),
        };
        reader.finish(table);
        sustained
    }
}

impl DeviceMemory {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<DeviceMemory> {
        let capacity = reader.quantity(&mut table, "capacity");
        let bandwidth = reader.quantity(&mut table, "bandwidth");
        let l2 = reader.quantity(&mut table, "l2");
        reader.finish(table);
        Some(DeviceMemory { capacity: capacity?, bandwidth: bandwidth?, l2: l2? })
    }
}

impl Multiprocessor {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Multiprocessor> {
        let count = reader.count(&mut table, "count");
        let shared_memory = reader.quantity(&mut table, "shared-memory");
        let shared_memory_per_block = reader.quantity(&mut table, "shared-memory-per-block");
        let registers = reader.count(&mut table, "registers");
        let registers_per_thread = reader.count(&mut table, "registers-per-thread");
        let threads = reader.count(&mut table, "threads");
        let threads_per_block = reader.count(&mut table, "threads-per-block");
        let blocks = reader.count(&mut table, "blocks");
        let warp = reader.count(&mut table, "warp");
        reader.finish(table);
        Some(Multiprocessor {
            count: count?,
            shared_memory: shared_memory?,
            shared_memory_per_block: shared_memory_per_block?,
            registers: registers?,
            registers_per_thread: registers_per_thread?,
            threads: threads?,
            threads_per_block: threads_per_block?,
            blocks: blocks?,
            warp: warp?,
        })
    }
}
