//! Machine files: every built-in one loads with sources, and bad ones say what is wrong and where.

use lapidary_hardware::{Bytes, HardwareSpec, LinkTopology, MachineError, Precision, Rectangle, builtin};

#[test]
fn every_built_in_machine_loads_and_every_number_has_a_source() {
    for name in builtin::names() {
        let machine = builtin::machine(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(machine.name, name);
        assert!(machine.facts.len() >= 15, "{name}: {} facts", machine.facts.len());
        for fact in &machine.facts {
            assert!(fact.source.len() > 10, "{name}: {}: {}", fact.key, fact.source);
        }
    }
}

#[test]
fn the_amber_cluster_is_what_the_paper_says() {
    let amber = builtin::machine("amber-cluster").unwrap();
    assert_eq!((amber.devices(), amber.nodes, amber.node.devices), (224, 56, 4));
    let links = amber.node.links.as_ref().unwrap();
    assert_eq!(links.topology, LinkTopology::Pairs);
    assert_eq!(links.bandwidth.0, 100e9);
    assert_eq!(amber.network.as_ref().unwrap().node_bandwidth().0, 50e9);
    assert_eq!(amber.device.peak(Precision::Bf16).unwrap().0, 312e12);
    assert!(amber.fact("device.peak.bf16").unwrap().source.contains("datasheet"));
}

#[test]
fn a_cs2_is_a_wse2_with_links() {
    let (wse2, cs2) = (builtin::machine("wse2").unwrap(), builtin::machine("cs2").unwrap());
    let wafer = cs2.wafer().unwrap();
    assert_eq!(wafer.fabric.usable, Rectangle { x: 4, y: 1, width: 750, height: 994 });
    assert_eq!(wafer.ingress.as_ref().unwrap().bandwidth().0, 150e9);
    assert_eq!(wse2.wafer().unwrap().ingress, None);
    assert_eq!(wafer.clocks.iter().map(|(_, clock)| clock.0).collect::<Vec<_>>(), [1.1e9, 0.85e9]);
    assert_eq!(wafer.router.input_queues, [6, 6, 4, 4, 2, 2, 2, 2]);
    assert_eq!(wafer.sram(), Bytes(745_500.0 * 48.0 * 1024.0));
    let cg1 = builtin::machine("cg1").unwrap();
    assert_eq!(cg1.devices(), 64);
    assert!(cg1.fact("ingress.links").is_some() && cg1.fact("device.pe.sram").is_some());
}

#[test]
fn machines_are_cut_and_grown_by_whole_nodes() {
    let dgx = builtin::machine("dgx-a100").unwrap();
    assert_eq!(dgx.with_devices(64).unwrap().nodes, 8);
    assert_eq!(dgx.with_devices(4).unwrap().node.devices, 4);
    let error = dgx.with_devices(12).unwrap_err().to_string();
    assert!(error.contains("8 or 16 would be whole nodes"), "{error}");
    let error = builtin::machine("h200").unwrap().with_devices(2).unwrap_err().to_string();
    assert!(error.contains("no network"), "{error}");
    assert!(dgx.with_devices(0).is_err() && dgx.with_devices(u64::MAX).is_err());
}

fn faults_of(text: &str) -> Vec<String> {
    match HardwareSpec::from_toml(text, "box.toml") {
        Err(error @ MachineError::Invalid { .. }) => error.to_string().lines().map(str::to_string).collect(),
        other => panic!("expected faults, found {other:?}"),
    }
}

#[test]
fn all_faults_of_a_file_are_reported_at_once_with_places_and_hints() {
    let text = "\
name = \"box\"
description = \"two faults a line\"
device = \"a100-80gb\"
nodes = { value = -3, unit = \"count\", source = \"the rack\" }
colour = \"red\"

[node]
devices = { value = 2.5, unit = \"count\", source = \"the rack\" }

[network]
topology = \"ring\"
adapters = 2
adapter-bandwith = { value = 1, unit = \"GB/s\", source = \"the box\" }
efficiency = { value = 0.9, unit = \"ratio\" }
step-latency = { value = \"5 us\", unit = \"us\", source = \"a guess\" }
call-latency = { value = 5, unit = \"GiB\", source = \"a guess\" }
oversubscription = { value = 1, unit = \"furlong\", source = \"a guess\" }
";
    let expected = "\
box.toml:4:19: nodes.value: must be finite and above zero, found -3
box.toml:5:1: colour: is not a known key (keys here are description, device, ingress, name, network, node, nodes, weight-server)
box.toml:8:11: node.devices: expected a whole number up to 1000000000, found 2.5
box.toml:10:1: network.adapter-bandwidth: is missing (write { value = ..., unit = ..., source = \"...\" } with a unit such as \"GB/s\", \"TB/s\", \"Gb/s\" (bits))
box.toml:12:12: network.adapters: expected a count, found a bare integer (write { value = ..., unit = ..., source = \"...\" } with a unit such as \"count\")
box.toml:13:1: network.adapter-bandwith: is not a known key (did you mean `adapter-bandwidth`?)
box.toml:14:14: network.efficiency.source: is missing (every number says where it comes from)
box.toml:15:26: network.step-latency.value: expected a number, found the text \"5 us\" (write the number and its unit apart: value = 2.039, unit = \"TB/s\")
box.toml:16:36: network.call-latency.unit: expected a time, found \"GiB\", bytes (write a unit such as \"s\", \"us\", \"ns\")
box.toml:17:40: network.oversubscription.unit: \"furlong\" is not a known unit (write a unit such as \"ratio\")";
    assert_eq!(faults_of(text).join("\n"), expected);
}

#[test]
fn broken_toml_unknown_bases_and_missing_parts_are_told() {
    assert!(faults_of("name = \"a\nb")[0].starts_with("box.toml:1:"));
    let text = "name = \"a\"\ndescription = \"b\"\ndevice = \"b200\"\n";
    assert!(faults_of(text)[0].contains("no machine is called `b200`; built in are a100-80gb"));
    let text = "name = \"a\"\ndescription = \"b\"\ndevice = \"h200\"\nnodes = { value = 2, unit = \"count\", source = \"rack\" }\n";
    assert_eq!(
        faults_of(text),
        [
            "box.toml:network: is missing, but the machine has 2 nodes (write [network] with adapters, bandwidth and latency)"
        ]
    );
    let text = include_str!("../dgx-a100.toml").replacen("value = 0.85", "value = 1.85", 1);
    assert_eq!(
        faults_of(&text),
        ["box.toml:24:14: network.efficiency: must be at most 1, found 1.85 (it is a part of the bandwidth)"]
    );
    assert!(faults_of("")[0].contains("name: is missing"));
    let text = "name = \"a\"\ndescription = \"b\"\ndevice = 7\n";
    assert!(faults_of(text)[0].contains("device: expected a text, found integer"));
}

#[test]
fn truncated_machine_files_never_panic() {
    for name in builtin::names() {
        let text = builtin::text(name).unwrap();
        for cut in (0..text.len()).step_by(97).filter(|cut| text.is_char_boundary(*cut)) {
            let _ = HardwareSpec::from_toml(&text[..cut], "cut.toml");
        }
    }
}
