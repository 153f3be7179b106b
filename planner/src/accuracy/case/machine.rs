//! The machine of a row: its device, its node's links and the adapters of its node, as publications write them.

use super::super::row::Row;
use super::super::source::known;
use super::Skip;
use lapidary_hardware::{BytesPerSecond, HardwareSpec, LinkTopology, builtin};

/// Bytes a second of PCIe 4.0 x16 each way, where devices have no links of their own.
const PCIE: f64 = 24e9;

/// The machine: a built-in one with the node and the adapters that the row prints.
pub(super) fn machine(row: &Row, gpus: u64, assumed: &mut Vec<String>) -> Result<HardwareSpec, Skip> {
    let gpu = row.word("gpu").to_uppercase();
    let get = |name: &str| builtin::machine(name).map_err(|error| Skip(error.to_string()));
    let name = device(&gpu).ok_or_else(|| Skip(format!("no machine file for `{}`", row.word("gpu"))))?;
    if gpu.is_empty() {
        assumed.push("A100 SXM with 80 GB; the device is not printed".to_string());
    }
    let mut machine = get("dgx-a100")?;
    machine.device = get(name)?.device;
    let per_node = row.count("gpus_per_node").unwrap_or(8);
    machine.node.devices = per_node.min(gpus);
    machine.nodes = gpus.div_ceil(per_node);
    let interconnect = row.word("interconnect");
    if let Some(links) = machine.node.links.as_mut() {
        let linked = interconnect.to_uppercase().contains("NVLINK")
            || interconnect.to_uppercase().contains("NVSWITCH");
        // A board of four has no switch: four links between each pair.
        if per_node <= 4 {
            links.topology = LinkTopology::Pairs;
            links.bandwidth = BytesPerSecond(100e9);
        }
        if gpu.contains("PCI") && !linked {
            links.topology = LinkTopology::Pairs;
            links.bandwidth = BytesPerSecond(PCIE);
            assumed.push("devices talk over PCIe 4.0 x16".to_string());
        }
        if gpu.contains("A800") && !gpu.contains("A100") {
            links.bandwidth = BytesPerSecond(links.bandwidth.0 * 2.0 / 3.0);
        }
    }
    network(row, per_node, &mut machine, assumed);
    Ok(machine)
}

/// The adapters of a node: printed, known of the publication's runs, or assumed.
fn network(row: &Row, per_node: u64, machine: &mut HardwareSpec, assumed: &mut Vec<String>) {
    let nodes = machine.nodes;
    let Some(network) = machine.network.as_mut() else { return };
    let told = known(row.word("source")).and_then(|source| source.network.as_deref());
    let found = adapters(row.word("interconnect")).or_else(|| {
        assumed.push(format!("{} a node, where the source's runs were made", told?));
        adapters(told?)
    });
    match found {
        Some((count, gigabits)) => {
            network.adapters = count;
            network.adapter_bandwidth = BytesPerSecond(gigabits * 1e9 / 8.0);
        }
        None if nodes > 1 => {
            network.adapters = per_node;
            assumed.push(format!("{per_node} x 200 Gb/s a node; the network's rate is not printed"));
        }
        None => {}
    }
}

/// The built-in machine whose device a publication's words mean, in capital letters.
fn device(gpu: &str) -> Option<&'static str> {
    let has = |word: &str| gpu.contains(word);
    let forty = ["40-SXM", "40GB", "40 GB", "40G", "-40"].iter().any(|word| gpu.contains(word)) && !has("80");
    match () {
        _ if has("H200") => Some("h200"),
        _ if has("H100") || has("H800") => Some("h100"),
        _ if has("A100") && forty => Some("a100-40gb"),
        _ if has("A100") || has("A800") || has("AMPERE") || gpu.is_empty() => Some("a100-80gb"),
        _ => None,
    }
}

/// Rates of one adapter by the names of their generations, Gb/s. HDR100 before HDR.
const GENERATIONS: [(&str, f64); 4] = [("hdr100", 100.0), ("hdr", 200.0), ("ndr", 400.0), ("edr", 100.0)];

/// Adapters of a node and the rate of one, Gb/s: `8x200Gb/s`, `4xHDR`, `1600Gb/s per node` (as eight).
fn adapters(text: &str) -> Option<(u64, f64)> {
    let lower = text.to_lowercase().replace("gbps", "gb/s").replace("gbit/s", "gb/s");
    for (name, rate) in GENERATIONS {
        let head = lower.find(name).map(|at| lower[..at].trim_end());
        let count =
            head.and_then(|head| head.strip_suffix('x')).and_then(|head| trailing_number(head.trim_end()));
        if let Some(count) = count {
            return Some((count as u64, rate));
        }
    }
    let at = lower.find("gb/s")?;
    let head = lower[..at].trim_end();
    let rate = trailing_number(head)?;
    let before = head.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').trim_end();
    match before.strip_suffix('x').and_then(|rest| trailing_number(rest.trim_end())) {
        Some(count) => Some((count as u64, rate)),
        None if rate >= 400.0 => Some((8, rate / 8.0)),
        None => Some((8, rate)),
    }
}

pub(super) fn trailing_number(text: &str) -> Option<f64> {
    let start = text.rfind(|c: char| !(c.is_ascii_digit() || c == '.')).map_or(0, |at| at + 1);
    text[start..].parse().ok().filter(|number: &f64| *number > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_they_are_printed() {
        let read = |text| adapters(text);
        assert_eq!(read("8x200Gb/s HDR IB per node"), Some((8, 200.0)));
        assert_eq!(read("4x100Gb/s Omni-Path per node; NVLink4"), Some((4, 100.0)));
        assert_eq!(read("1600Gb/s RoCE per node"), Some((8, 200.0)));
        assert_eq!(read("NVLink3/NVSwitch; HDR IB (paper: 200Gb/s)"), Some((8, 200.0)));
        assert_eq!(read("4xHDR? (paper: ConnectX-6 HDR switches)"), Some((4, 200.0)));
        assert_eq!(read("2 x HDR100"), Some((2, 100.0)));
        assert_eq!(read("8 x 400 Gbps NDR"), Some((8, 400.0)));
        assert_eq!(read("EFA 400 Gbps"), Some((8, 50.0)));
        assert_eq!(read("single node, NVSwitch"), None);
    }

    #[test]
    fn devices_are_read_as_they_are_printed() {
        for text in
            ["A100-80-SXM", "NVIDIA A100-SXM4-80GB", "8X A100 (80 GB)", "AMPERE", "A100", "A800-80", ""]
        {
            assert_eq!(device(text), Some("a100-80gb"), "{text}");
        }
        for text in ["A100-40-SXM", "NVIDIA A100-SXM4-40GB", "A100 40G", "A100-PCIE-40GB"] {
            assert_eq!(device(text), Some("a100-40gb"), "{text}");
        }
        assert_eq!((device("H100-SXM"), device("TPU V4")), (Some("h100"), None));
    }
}
