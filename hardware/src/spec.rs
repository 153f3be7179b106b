//! One type for every machine: a GPU, a wafer, or a cluster of either.

use crate::cluster::{Network, Node, WeightServer};
use crate::fault::MachineError;
use crate::gpu::{Gpu, Precision};
use crate::reader::Fact;
use crate::unit::{Bytes, FlopsPerSecond};
use crate::wafer::Wafer;
use serde::Serialize;

/// The most devices a machine may have.
const MOST_DEVICES: u64 = 10_000_000;

/// A machine: identical nodes of identical devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HardwareSpec {
    /// Name, as in `--machine`.
    pub name: String,
    /// One line on what it is.
    pub description: String,
    /// The device.
    pub device: Device,
    /// One node.
    pub node: Node,
    /// How many nodes.
    pub nodes: u64,
    /// The network between nodes; `None` for a machine of one node.
    pub network: Option<Network>,
    /// Where wafers stream weights from.
    pub weight_server: Option<WeightServer>,
    /// Every number of the files behind this machine, with its source, in the order of the text.
    pub facts: Vec<Fact>,
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Device {
    /// A GPU.
    Gpu(Gpu),
    /// A wafer.
    Wafer(Wafer),
}

impl Device {
    /// What the maker calls it.
    pub fn product(&self) -> &str {
        match self {
            Device::Gpu(gpu) => &gpu.product,
            Device::Wafer(wafer) => &wafer.product,
        }
    }

    /// Memory a program can use.
    pub fn memory(&self) -> Bytes {
        match self {
            Device::Gpu(gpu) => gpu.memory.capacity,
            Device::Wafer(wafer) => wafer.sram(),
        }
    }

    /// Peak rate of dense arithmetic; `None` where the device has no such arithmetic.
    pub fn peak(&self, precision: Precision) -> Option<FlopsPerSecond> {
        match self {
            Device::Gpu(gpu) => gpu.peak.get(&precision).copied(),
            Device::Wafer(wafer) => wafer.peak(precision),
        }
    }
}

impl HardwareSpec {
    /// Devices of the whole machine.
    pub fn devices(&self) -> u64 {
        self.node.devices.saturating_mul(self.nodes)
    }

    /// The GPU, if the machine is made of them.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.device {
            Device::Gpu(gpu) => Some(gpu),
            Device::Wafer(_) => None,
        }
    }

    /// The wafer, if the machine is made of them.
    pub fn wafer(&self) -> Option<&Wafer> {
        match &self.device {
            Device::Wafer(wafer) => Some(wafer),
            Device::Gpu(_) => None,
        }
    }

    /// The fact of a key path, as `device.memory.capacity`.
    pub fn fact(&self, key: &str) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.key == key)
    }

    /// The same machine with this many devices: a part of one node, or whole nodes, fewer or more.
    ///
    /// # Errors
    /// When the number is zero, is not a number of whole nodes, or needs a network that the machine lacks.
    pub fn with_devices(&self, devices: u64) -> Result<HardwareSpec, MachineError> {
        let mut machine = self.clone();
        (machine.node.devices, machine.nodes) = self
            .divide(devices)
            .map_err(|reason| MachineError::Devices { machine: self.name.clone(), devices, reason })?;
        Ok(machine)
    }

    fn divide(&self, devices: u64) -> Result<(u64, u64), String> {
        let per_node = self.node.devices;
        match devices {
            0 => Err("at least one is needed".to_string()),
            n if n > MOST_DEVICES => Err(format!("{MOST_DEVICES} are the most that are planned for")),
            n if n <= per_node => Ok((n, 1)),
            n if self.network.is_none() && self.weight_server.is_none() => Err(format!(
                "it has one node of {per_node} and no network; write a cluster file with [network] for {n}"
            )),
            n if n % per_node != 0 => Err(format!(
                "nodes have {per_node}; {} or {} would be whole nodes",
                n / per_node * per_node,
                (n / per_node + 1) * per_node
            )),
            n => Ok((per_node, n / per_node)),
        }
    }
}
