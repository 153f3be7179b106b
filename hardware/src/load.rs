//! Machine files: text in, a machine or all its faults out.

use crate::builtin;
use crate::cluster::{Network, Node, WeightServer};
use crate::fault::MachineError;
use crate::gpu::Gpu;
use crate::reader::{Fact, Reader, Table};
use crate::spec::{Device, HardwareSpec};
use crate::wafer::{Ingress, Wafer};
use toml::de::DeTable;

/// How deep `device = "name"` may lead from file to file.
const DEEPEST_REFERENCE: usize = 4;

impl HardwareSpec {
    /// Reads a machine file. `file` is its name for messages; `device = "name"` refers to a built-in machine.
    ///
    /// # Errors
    /// [`MachineError::Invalid`] with every fault of the text.
    pub fn from_toml(text: &str, file: &str) -> Result<HardwareSpec, MachineError> {
        load(text, file, DEEPEST_REFERENCE)
    }
}

fn load(text: &str, file: &str, depth: usize) -> Result<HardwareSpec, MachineError> {
    let mut reader = Reader::new(text);
    let (parsed, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        reader.fault(String::new(), error.span(), error.message().to_string(), "");
    }
    let machine = if errors.is_empty() { read(&mut reader, Table::root(&parsed), depth) } else { None };
    let mut faults = reader.faults;
    match machine {
        Some(machine) if faults.is_empty() => Ok(machine),
        _ => {
            faults.sort_by_key(|fault| fault.span.as_ref().map_or(usize::MAX, |span| span.start));
            Err(MachineError::Invalid { file: file.to_string(), text: text.to_string(), faults })
        }
    }
}

fn read<'a>(reader: &mut Reader<'a>, mut root: Table<'a>, depth: usize) -> Option<HardwareSpec> {
    let name = reader.text(&mut root, "name");
    let description = reader.text(&mut root, "description");
    let base = read_device(reader, &mut root, depth);
    let ingress = reader.optional_table(&mut root, "ingress").and_then(|table| Ingress::read(reader, table));
    let node = reader.optional_table(&mut root, "node");
    let node = node.map_or(Some(Node::single()), |table| Node::read(reader, table));
    let network = reader.optional_table(&mut root, "network").and_then(|table| Network::read(reader, table));
    let server = reader.optional_table(&mut root, "weight-server");
    let weight_server = server.and_then(|table| WeightServer::read(reader, table));
    let nodes = if root.has("nodes") { reader.count(&mut root, "nodes") } else { Some(1) };
    root.expect(&["nodes"]);
    reader.finish(root);
    let (mut device, inherited) = base?;
    place_ingress(reader, &mut device, ingress);
    let (node, nodes) = (node?, nodes?);
    check_network(reader, nodes, network.is_some() || weight_server.is_some());
    let facts = all_facts(reader, inherited);
    Some(HardwareSpec {
        name: name?,
        description: description?,
        device,
        node,
        nodes,
        network,
        weight_server,
        facts,
    })
}

/// The device of this file, or the one of the built-in machine it names, with that one's facts.
fn read_device<'a>(
    reader: &mut Reader<'a>,
    root: &mut Table<'a>,
    depth: usize,
) -> Option<(Device, Vec<Fact>)> {
    if root.has("device") && !root.is_table("device") {
        let name = reader.text(root, "device")?;
        return match base_machine(&name, depth) {
            Ok(base) => {
                let of_device =
                    |fact: &Fact| fact.key.starts_with("device.") || fact.key.starts_with("ingress.");
                Some((base.device, base.facts.into_iter().filter(of_device).collect()))
            }
            Err(error) => {
                let hint = "name a built-in machine or write a [device] table";
                reader.fault("device".to_string(), None, error.to_string(), hint);
                None
            }
        };
    }
    let mut table = reader.table(root, "device")?;
    let wafer = reader.word(&mut table, "kind", &[("gpu", false), ("wafer", true)])?;
    let device = if wafer {
        Device::Wafer(Wafer::read(reader, table)?)
    } else {
        Device::Gpu(Gpu::read(reader, table)?)
    };
    Some((device, Vec::new()))
}

fn base_machine(name: &str, depth: usize) -> Result<HardwareSpec, MachineError> {
    match (builtin::text(name), depth) {
        (Some(text), 1..) => load(text, &builtin::file(name), depth - 1),
        _ => Err(MachineError::Unknown { name: name.to_string(), known: builtin::names().join(", ") }),
    }
}

fn place_ingress(reader: &mut Reader<'_>, device: &mut Device, ingress: Option<Ingress>) {
    let Some(ingress) = ingress else { return };
    match device {
        Device::Wafer(wafer) => wafer.ingress = Some(ingress),
        Device::Gpu(_) => {
            let hint = "describe the adapters of a GPU node under [network]";
            reader.fault("ingress".to_string(), None, "belongs to wafers".to_string(), hint);
        }
    }
}

fn check_network(reader: &mut Reader<'_>, nodes: u64, connected: bool) {
    if nodes > 1 && !connected {
        let hint = "write [network] with adapters, bandwidth and latency";
        let message = format!("is missing, but the machine has {nodes} nodes");
        reader.fault("network".to_string(), None, message, hint);
    }
}

fn all_facts(reader: &mut Reader<'_>, inherited: Vec<Fact>) -> Vec<Fact> {
    let mut own = std::mem::take(&mut reader.facts);
    own.sort_by_key(|(at, _)| *at);
    let own: Vec<Fact> = own.into_iter().map(|(_, fact)| fact).collect();
    let kept = inherited.into_iter().filter(|old| own.iter().all(|fact| fact.key != old.key));
    kept.chain(own.iter().cloned()).collect()
}
