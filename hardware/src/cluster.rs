//! How devices stand together: nodes with links inside, a network between, and the weight server of wafers.

use crate::reader::{Reader, Table};
use crate::unit::{Bytes, BytesPerSecond, Ratio, Seconds};
use serde::Serialize;

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// Devices in it.
    pub devices: u64,
    /// Links between them; `None` for a node of one device.
    pub links: Option<Links>,
    /// The host's side; `None` where the file does not state it, and nothing may then live there.
    pub host: Option<Host>,
}

/// What the host of a node gives each of its devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Host {
    /// Between host and one device, each way, while all devices of the node use it.
    pub bandwidth: BytesPerSecond,
    /// Of the host's memory, as element-wise kernels of one process reach it with one process a device.
    pub memory_bandwidth: BytesPerSecond,
}

impl Host {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Host> {
        let bandwidth = reader.quantity(&mut table, "bandwidth");
        let memory_bandwidth = reader.quantity(&mut table, "memory-bandwidth");
        reader.finish(table);
        Some(Host { bandwidth: bandwidth?, memory_bandwidth: memory_bandwidth? })
    }
}

/// Links inside a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Links {
    /// Who is connected to whom.
    pub topology: LinkTopology,
    /// Each way: of one device into a switch, or between one pair.
    pub bandwidth: BytesPerSecond,
    /// Part of it that large collectives reach.
    pub efficiency: Ratio,
    /// Time of one step of a ring.
    pub step_latency: Seconds,
    /// Time of a collective call beside its steps.
    pub call_latency: Seconds,
}

/// Shape of the links of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkTopology {
    /// Every device into a switch that does not block.
    Switch,
    /// A link between each pair of devices, no switch.
    Pairs,
}

/// The network between nodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// What it is, for reports.
    pub topology: String,
    /// Adapters of a node, shared by its devices.
    pub adapters: u64,
    /// Bandwidth of one adapter, each way.
    pub adapter_bandwidth: BytesPerSecond,
    /// Part of it that large collectives reach.
    pub efficiency: Ratio,
    /// Time of one step of a ring that crosses nodes.
    pub step_latency: Seconds,
    /// Time of a collective call beside its steps.
    pub call_latency: Seconds,
    /// Adapter bandwidth over bandwidth upwards; 1 where the fabric does not block.
    pub oversubscription: Ratio,
}

impl Network {
    /// Bandwidth of a node into the network, each way, before efficiency.
    pub fn node_bandwidth(&self) -> BytesPerSecond {
        self.adapter_bandwidth * self.adapters as f64 / self.oversubscription.0
    }

    pub(crate) fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Network> {
        let topology = reader.text(&mut table, "topology");
        let adapters = reader.count(&mut table, "adapters");
        let adapter_bandwidth = reader.quantity(&mut table, "adapter-bandwidth");
        let efficiency = ratio_up_to_one(reader, &mut table, "efficiency");
        let step_latency = reader.quantity(&mut table, "step-latency");
        let call_latency = reader.quantity(&mut table, "call-latency");
        let oversubscription = reader.quantity(&mut table, "oversubscription");
        reader.finish(table);
        Some(Network {
            topology: topology?,
            adapters: adapters?,
            adapter_bandwidth: adapter_bandwidth?,
            efficiency: efficiency?,
            step_latency: step_latency?,
            call_latency: call_latency?,
            oversubscription: oversubscription?,
        })
    }
}

/// Where weights live when wafers stream them, and the tree that carries them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightServer {
    /// Memory for weights and optimizer state.
    pub capacity: Bytes,
    /// Traffic of one parameter in one direction.
    pub bytes_per_parameter: Bytes,
    /// Bandwidth of the broadcast and reduce tree, all systems together.
    pub tree_bandwidth: BytesPerSecond,
}

impl WeightServer {
    pub(crate) fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<WeightServer> {
        let capacity = reader.quantity(&mut table, "capacity");
        let bytes_per_parameter = reader.quantity(&mut table, "bytes-per-parameter");
        let tree_bandwidth = reader.quantity(&mut table, "tree-bandwidth");
        reader.finish(table);
        Some(WeightServer {
            capacity: capacity?,
            bytes_per_parameter: bytes_per_parameter?,
            tree_bandwidth: tree_bandwidth?,
        })
    }
}

impl Node {
    /// A node of one device.
    pub const fn single() -> Node {
        Node { devices: 1, links: None, host: None }
    }

    pub(crate) fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Node> {
        let devices = reader.count(&mut table, "devices");
        let needs_links = devices.is_some_and(|devices| devices > 1);
        let links = if needs_links {
            reader.table(&mut table, "links").map(|table| Links::read(reader, table))
        } else {
            reader.optional_table(&mut table, "links").map(|table| Links::read(reader, table))
        };
        let host = reader.optional_table(&mut table, "host").map(|table| Host::read(reader, table));
        reader.finish(table);
        Some(Node { devices: devices?, links: links.flatten(), host: host.flatten() })
    }
}

impl Links {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Links> {
        let words = [("switch", LinkTopology::Switch), ("pairs", LinkTopology::Pairs)];
        let topology = reader.word(&mut table, "topology", &words);
        let bandwidth = reader.quantity(&mut table, "bandwidth");
        let efficiency = ratio_up_to_one(reader, &mut table, "efficiency");
        let step_latency = reader.quantity(&mut table, "step-latency");
        let call_latency = reader.quantity(&mut table, "call-latency");
        reader.finish(table);
        Some(Links {
            topology: topology?,
            bandwidth: bandwidth?,
            efficiency: efficiency?,
            step_latency: step_latency?,
            call_latency: call_latency?,
        })
    }
}

fn ratio_up_to_one<'a>(reader: &mut Reader<'a>, table: &mut Table<'a>, key: &'static str) -> Option<Ratio> {
    let ratio: Ratio = reader.quantity(table, key)?;
    if ratio.0 > 1.0 {
        let message = format!("must be at most 1, found {}", ratio.0);
        reader.fault(table.key_path(key), table.place(key), message, "it is a part of the bandwidth");
        return None;
    }
    Some(ratio)
}
