//! What it runs on and what things cost: machines as data, units and price rules.
//!
//! A machine is a TOML file in which every number has a value, a unit and a source. It becomes a
//! [`HardwareSpec`], one type for GPUs, wafers and clusters of either. The [`price`] rules say what a
//! kernel, a collective or a wafer operation takes on it; planner and simulators call the same rules.

pub mod builtin;
pub mod calibrate;
pub mod cluster;
pub mod fault;
pub mod gpu;
mod load;
pub mod price;
mod reader;
pub mod spec;
pub mod unit;
pub mod wafer;

pub use cluster::{Host, LinkTopology, Links, Network, Node, WeightServer};
pub use fault::{Fault, MachineError};
pub use gpu::{DeviceMemory, Gpu, Multiprocessor, Precision, Sustained};
pub use reader::Fact;
pub use spec::{Device, HardwareSpec};
pub use unit::{
    Bytes, BytesPerSecond, Cycles, ElementsPerCycle, Flops, FlopsPerSecond, Hertz, Ratio, Seconds,
};
pub use wafer::{Fabric, Ingress, ProcessingElement, Rectangle, Router, Statements, Wafer};
