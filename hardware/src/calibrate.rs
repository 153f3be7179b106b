//! A site's own numbers: its links from a log of nccl-tests, its devices' rates from measured kernels ([`bench`]). The
//! result is a machine file like another, with the measured numbers in the place of its own.
//!
//! What is taken of a log: the efficiency of the links (one node) or of the network (several nodes) from the best bus bandwidth of
//! large messages, and the latency of a step from the smallest messages. All else stays as the base file has it.

pub mod bench;

use crate::fault::MachineError;
use crate::price::collective::{Group, Ring};
use crate::spec::HardwareSpec;
use crate::unit::Bytes;
use std::collections::BTreeSet;

/// One measured message size, better of out-of-place and in-place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Message {
    /// Bytes.
    pub bytes: f64,
    /// Seconds.
    pub seconds: f64,
    /// Bus bandwidth, bytes per second.
    pub bus: f64,
}

/// What a log of `all_reduce_perf` says.
#[derive(Clone, Debug, PartialEq)]
pub struct NcclLog {
    /// Ranks.
    pub ranks: u64,
    /// Hosts they ran on.
    pub nodes: u64,
    /// Measured messages, ascending.
    pub messages: Vec<Message>,
}

/// Why a log is refused, or a base file cannot take its numbers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// A place in the log.
    #[error("{file}:{line}: {message}")]
    Log {
        /// The log.
        file: String,
        /// Line, from 1; 0 for the whole of it.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A document of measured kernels.
    #[error("{file}: {message}")]
    Bench {
        /// The document.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// The base machine and the log do not go together.
    #[error("{0}")]
    Base(String),
    /// The base file, or the file that was made of it, is no machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Columns at the end of a row: time, algorithm bandwidth, bus bandwidth and error, out of place and in place.
const COLUMNS: usize = 8;
/// Messages of at least this many bytes tell a rate.
const LARGE: f64 = 64.0 * 1024.0 * 1024.0;
/// Messages of at most this many bytes tell a latency.
const SMALL: f64 = 32.0 * 1024.0;

impl NcclLog {
    /// Reads the output of nccl-tests' `all_reduce_perf`, with or without its leading `#`.
    ///
    /// # Errors
    /// Where it names fewer than two ranks, has no rows, or a row is broken.
    pub fn read(text: &str, file: &str) -> Result<NcclLog, CalibrationError> {
        let refused = |line: usize, message: &str| CalibrationError::Log {
            file: file.to_string(),
            line,
            message: message.to_string(),
        };
        let (mut ranks, mut hosts) = (0, BTreeSet::new());
        let mut messages: Vec<Message> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.trim_start_matches(['#', ' ']).split_whitespace().collect();
            if words.first() == Some(&"Rank") {
                ranks += 1;
                let host = words.iter().position(|word| *word == "on").and_then(|at| words.get(at + 1));
                hosts.insert(host.unwrap_or(&"").to_string());
            } else if let Some(message) = row(&words) {
                let message = message.map_err(|what| refused(index + 1, &what))?;
                if messages.last().is_some_and(|last| last.bytes >= message.bytes) {
                    return Err(refused(index + 1, "messages must grow: is this more than one run?"));
                }
                messages.push(message);
            }
        }
        if ranks < 2 {
            return Err(refused(0, "names fewer than two ranks; keep the lines `# Rank 0 ... on HOST`"));
        }
        if messages.is_empty() {
            return Err(refused(
                0,
                "has no row of all_reduce_perf (size, count, type, ..., time, algbw, busbw)",
            ));
        }
        Ok(NcclLog { ranks, nodes: hosts.len() as u64, messages })
    }
}

/// A row of measurements; `None` for other lines.
fn row(words: &[&str]) -> Option<Result<Message, String>> {
    let bytes: f64 = words.first()?.parse::<u64>().ok()? as f64;
    if words.len() < COLUMNS + 3 || words[1].parse::<u64>().is_err() {
        return None;
    }
    let tail = &words[words.len() - COLUMNS..];
    let number = |at: usize| -> Result<f64, String> {
        let found = tail[at].parse::<f64>().ok().filter(|found| found.is_finite() && *found >= 0.0);
        found.ok_or_else(|| format!("expected a number, found `{}`", tail[at]))
    };
    let half = |from: usize| Ok::<_, String>((number(from)? * 1e-6, number(from + 2)? * 1e9));
    Some(half(0).and_then(|out| Ok((out, half(4)?))).map(|((a, one), (b, other))| Message {
        bytes,
        seconds: a.min(b),
        bus: one.max(other),
    }))
}

/// The machine file of a site: `base`, a machine file's text, with the log's numbers in it.
///
/// # Errors
/// Where the base has no such link, the log beats what the link can carry, or a number stands on no line of its own.
pub fn site_file(
    base: &str,
    base_name: &str,
    log: &NcclLog,
    log_name: &str,
    name: &str,
) -> Result<String, CalibrationError> {
    let machine = HardwareSpec::from_toml(base, base_name)?;
    let per_node = log.ranks / log.nodes.max(1);
    let what = |message: String| CalibrationError::Base(message);
    if log.ranks != per_node * log.nodes || per_node > machine.node.devices {
        return Err(what(format!(
            "{log_name} has {} ranks on {} hosts, {base_name} has {} devices a node",
            log.ranks, log.nodes, machine.node.devices
        )));
    }
    let section = if log.nodes > 1 { "network" } else { "node.links" };
    let carried = full_rate(&machine, log).ok_or_else(|| {
        what(format!("{base_name} has no [{section}] for a log of {} hosts to set", log.nodes))
    })?;
    let mut text = replaced(base, "", "name", &format!("\"{name}\""))
        .ok_or_else(|| what(format!("{base_name}: name stands on no line of its own")))?;
    let about = |kind: &str| {
        format!("{log_name}: all_reduce_perf over {} ranks on {} hosts, {kind}", log.ranks, log.nodes)
    };
    let best = log.messages.iter().filter(|message| message.bytes >= LARGE).map(|message| message.bus);
    let best = best.fold(0.0, f64::max);
    if best > 0.0 {
        let efficiency = best / carried;
        if efficiency > 1.0 {
            return Err(what(format!(
                "{log_name} reaches {:.1} GB/s, more than the {:.1} GB/s that {base_name} states for [{section}]: correct its bandwidth first",
                best / 1e9,
                carried / 1e9
            )));
        }
        let source = about("best bus bandwidth of messages of 64 MiB and more");
        let fact = format!("{{ value = {efficiency:.4}, unit = \"ratio\", source = \"{source}\" }}");
        text = replaced(&text, section, "efficiency", &fact)
            .ok_or_else(|| what(format!("{base_name}: {section}.efficiency stands on no line of its own")))?;
    }
    let small = log.messages.iter().find(|message| message.bytes <= SMALL && message.seconds > 0.0);
    if let Some(step) = small.and_then(|message| step_latency(&machine, log, message)) {
        let source = about("a step of its ring at the smallest message");
        let fact = format!("{{ value = {:.3}, unit = \"us\", source = \"{source}\" }}", step * 1e6);
        text = replaced(&text, section, "step-latency", &fact).ok_or_else(|| {
            what(format!("{base_name}: {section}.step-latency stands on no line of its own"))
        })?;
    }
    HardwareSpec::from_toml(&text, name)?;
    Ok(text)
}

/// Bytes per second of bus bandwidth that the links of a log would carry at an efficiency of one.
fn full_rate(machine: &HardwareSpec, log: &NcclLog) -> Option<f64> {
    if log.nodes > 1 {
        return machine.network.as_ref().map(|network| network.node_bandwidth().0);
    }
    let links = machine.node.links.as_ref()?;
    let ring = Ring::new(machine, Group { size: log.ranks, stride: 1 });
    Some(ring.bandwidth.0 / links.efficiency.0)
}

/// What a step of the ring takes, so that the whole takes what the message took.
fn step_latency(machine: &HardwareSpec, log: &NcclLog, message: &Message) -> Option<f64> {
    let mut idle = machine.clone();
    let nodes = log.nodes;
    idle.nodes = idle.nodes.max(nodes);
    if let Some(links) = idle.node.links.as_mut().filter(|_| nodes == 1) {
        links.step_latency.0 = 0.0;
    }
    if let Some(network) = idle.network.as_mut().filter(|_| nodes > 1) {
        network.step_latency.0 = 0.0;
    }
    let ring = Ring::new(&idle, Group { size: log.ranks, stride: 1 });
    let rest = message.seconds - ring.all_reduce(Bytes(message.bytes)).0;
    let steps = 2.0 * if nodes > 1 { nodes - 1 } else { log.ranks - 1 } as f64;
    (rest > 0.0).then_some(rest / steps)
}

/// A text with the value of a key of a section replaced; `None` where the key has no line of its own there.
fn replaced(text: &str, section: &str, key: &str, value: &str) -> Option<String> {
    let (mut own, mut found) = (String::new(), false);
    let mut here = section.is_empty();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            here = trimmed.trim_matches(['[', ']']) == section;
        }
        let matches = here && !found && trimmed.split_once('=').is_some_and(|(left, _)| left.trim() == key);
        match matches {
            true => own.push_str(&format!("{key} = {value}")),
            false => own.push_str(line),
        }
        own.push('\n');
        found |= matches;
    }
    found.then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    fn log(hosts: usize, each: usize, rows: &[(u64, f64, f64)]) -> String {
        let mut text =
            "# nThread 1 nGpus 1 minBytes 8 maxBytes 1073741824 step: 2(factor)\n#\n# Using devices\n"
                .to_string();
        for rank in 0..hosts * each {
            text.push_str(&format!(
                "#  Rank {rank:>2} Group  0 Pid 1000 on node{} device  {} [0x07] NVIDIA A100-SXM4-80GB\n",
                rank / each,
                rank % each
            ));
        }
        text.push_str(
            "#       size  count  type  redop  root  time  algbw  busbw #wrong  time  algbw  busbw #wrong\n",
        );
        for (bytes, micros, bus) in rows {
            let count = bytes / 4;
            text.push_str(&format!(
                "  {bytes} {count} float sum -1 {micros} 1.0 {bus} 0 {micros} 1.0 {bus} N/A\n"
            ));
        }
        text.push_str("# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 40\n");
        text
    }

    fn site(base: &str, text: &str) -> Result<HardwareSpec, CalibrationError> {
        let log = NcclLog::read(text, "nccl.log")?;
        let file = site_file(builtin::text(base).unwrap(), base, &log, "nccl.log", "site")?;
        Ok(HardwareSpec::from_toml(&file, "site.toml")?)
    }

    #[test]
    fn a_log_of_one_node_sets_its_links() {
        let text = log(1, 8, &[(1024, 70.0, 0.1), (134217728, 1000.0, 225.0), (1073741824, 8000.0, 240.0)]);
        let machine = site("dgx-a100", &text).unwrap();
        let links = machine.node.links.as_ref().unwrap();
        assert!((links.efficiency.0 - 0.8).abs() < 1e-9 && machine.name == "site");
        // The whole takes what the message took.
        let ring = Ring::new(&machine, Group { size: 8, stride: 1 });
        assert!((ring.all_reduce(Bytes(1024.0)).0 / 70e-6 - 1.0).abs() < 1e-2);
        let fact = machine.fact("node.links.efficiency").unwrap();
        assert!(
            fact.source.starts_with("nccl.log: all_reduce_perf over 8 ranks on 1 hosts"),
            "{}",
            fact.source
        );
        assert_eq!(machine.network, builtin::machine("dgx-a100").unwrap().network);
    }

    #[test]
    fn a_log_of_several_nodes_sets_the_network() {
        let text = log(3, 4, &[(1024, 200.0, 0.1), (1073741824, 8000.0, 40.0)]);
        let machine = site("amber-cluster", &text).unwrap();
        let network = machine.network.as_ref().unwrap();
        assert!((network.efficiency.0 - 0.8).abs() < 1e-9);
        assert_eq!(machine.node.links, builtin::machine("amber-cluster").unwrap().node.links);
        assert!(network.step_latency.0 > 10e-6, "{}", network.step_latency.0);
    }

    #[test]
    fn logs_that_do_not_go_with_the_machine_are_refused() {
        let told = |base: &str, text: &str| site(base, text).unwrap_err().to_string();
        let large = [(1073741824, 8000.0, 40.0)];
        assert!(told("dgx-a100", "").contains("names fewer than two ranks"));
        assert!(told("dgx-a100", &log(1, 8, &[])).contains("has no row of all_reduce_perf"));
        assert!(
            told("amber-cluster", &log(1, 8, &large)).contains("has 8 ranks on 1 hosts, amber-cluster has 4")
        );
        let fast = log(1, 8, &[(1073741824, 8000.0, 400.0)]);
        assert!(told("dgx-a100", &fast).contains("reaches 400.0 GB/s, more than the 300.0 GB/s"));
        let twice = log(1, 8, &[(1024, 70.0, 0.1), (1024, 70.0, 0.1)]);
        assert!(
            told("dgx-a100", &twice).contains("nccl.log:14: messages must grow"),
            "{}",
            told("dgx-a100", &twice)
        );
        let broken = log(1, 8, &large).replace("8000", "8o00");
        assert!(told("dgx-a100", &broken).contains("nccl.log:13: expected a number, found `8o00`"));
    }
}
