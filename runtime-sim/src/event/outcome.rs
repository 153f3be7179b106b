//! From the final state of a run to its report.

use super::engine::{Engine, Run};
use super::pe::{Pe, Spent};
use crate::network::{Network, Origin};
use crate::program::{Port, WaferProgram};
use crate::report::{ClassReport, HotLink, PhaseReport, Report, assumptions};
use std::collections::BTreeMap;

/// Reads back tensors and writes the report.
pub fn collect(mut engine: Engine) -> Run {
    engine.read_back();
    let cycles = cycles(&engine);
    let sram = memory_peak(engine.program);
    let (words, word_hops, hottest_link) = traffic(&engine, cycles);
    let host = |lanes: &[(super::host::LaneState, Option<super::ops::Wait>)]| -> u64 {
        lanes.iter().map(|(lane, _)| lane.words).sum()
    };
    let (host_in_words, host_out_words) = (host(&engine.host_in), host(&engine.host_out));
    let report = Report {
        level: "event".into(),
        cycles,
        seconds: engine.spec.seconds(cycles),
        clock_hz: engine.spec.clock_hz,
        pes: engine.pes.iter().flatten().count() as u64,
        pe_busy_pct: share(engine.pes.iter().flatten().map(|pe| pe.spent.busy), cycles),
        sram_peak_bytes: sram.0,
        sram_peak_class: sram.1,
        hottest_link,
        words,
        word_hops,
        host_in_words,
        host_out_words,
        host_cycles: engine.spec.host_cycles(host_in_words, host_out_words),
        terms: terms(&engine, cycles),
        classes: classes(&engine, cycles),
        phases: phases(&engine),
        assumptions: assumptions(engine.spec),
    };
    let tensors = engine.tensors.into_iter().map(|(name, values)| (name.to_string(), values)).collect();
    Run { report, tensors }
}

fn cycles(engine: &Engine) -> u64 {
    let pes = engine.pes.iter().flatten().map(|pe| pe.time).max().unwrap_or(0);
    let lanes = engine.host_out.iter().map(|(lane, _)| lane.time).max().unwrap_or(0);
    pes.max(lanes)
}

/// Percentage of `cycles` that the given PEs were busy.
fn share(busy: impl Iterator<Item = u64>, cycles: u64) -> f64 {
    let (count, sum) = busy.fold((0u64, 0u64), |(n, s), b| (n + 1, s + b));
    if count == 0 || cycles == 0 { 0.0 } else { 100.0 * sum as f64 / (count as f64 * cycles as f64) }
}

/// Most memory in use and by which class.
pub fn memory_peak(program: &WaferProgram) -> (u64, String) {
    let end = |c: &crate::program::Class| {
        c.buffers.values().map(|b| u64::from(b.offset) + b.bytes()).max().unwrap_or(0)
    };
    let most = program.classes.iter().max_by_key(|c| end(c));
    most.map_or((0, String::new()), |c| (end(c), c.name.clone()))
}

/// Words, word-hops and the link with the most words.
fn traffic(engine: &Engine, cycles: u64) -> (u64, u64, Option<HotLink>) {
    let mut load = vec![[0u64; 5]; engine.net.class_of.len()];
    let (mut words, mut hops) = (0, 0);
    for stream in 0..engine.net.streams.len() as u32 {
        let sent = engine.links.sent(stream);
        if !matches!(engine.net.streams[stream as usize].origin, Origin::Switch(..)) {
            words += sent;
        }
        engine.net.links(engine.program, stream, &mut |pe, port| {
            hops += sent;
            load[pe as usize][port as usize] += sent;
        });
    }
    (words, hops, hottest(engine.net, &load, cycles))
}

/// The link with the most words; the first in reading order among equals.
pub fn hottest(net: &Network, load: &[[u64; 5]], cycles: u64) -> Option<HotLink> {
    let mut best: Option<HotLink> = None;
    for (pe, ports) in load.iter().enumerate() {
        for port in [Port::North, Port::East, Port::South, Port::West] {
            let words = ports[port as usize];
            if words > best.as_ref().map_or(0, |b| b.words) {
                let load_pct = 100.0 * words as f64 / cycles.max(1) as f64;
                best = Some(HotLink { at: net.coord(pe as u32), port, words, load_pct });
            }
        }
    }
    best
}

/// The time of the PE that finished last, by cause.
fn terms(engine: &Engine, cycles: u64) -> BTreeMap<String, u64> {
    let last = engine.pes.iter().flatten().max_by_key(|pe| pe.time);
    let spent = last.map_or(Spent::default(), |pe| pe.spent);
    let time = last.map_or(0, |pe| pe.time);
    let named = [
        ("busy", spent.busy),
        ("issue", spent.issue),
        ("task_activation", spent.activation),
        ("wait_data", spent.wait_data),
        ("wait_room", spent.wait_room),
        ("egress", cycles - time),
    ];
    named.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn classes(engine: &Engine, cycles: u64) -> Vec<ClassReport> {
    let of = |class: usize| {
        let members = engine.pes.iter().zip(&engine.net.class_of).filter(move |(_, c)| **c as usize == class);
        members.filter_map(|(pe, _)| pe.as_deref())
    };
    let report = |(index, class): (usize, &crate::program::Class)| ClassReport {
        name: class.name.clone(),
        pes: class.count(),
        busy_pct: share(of(index).map(|pe: &Pe| pe.spent.busy), cycles),
        sram_bytes: u64::from(engine.classes[index].memory),
    };
    engine.program.classes.iter().enumerate().map(report).collect()
}

fn phases(engine: &Engine) -> Vec<PhaseReport> {
    let mut spans = vec![(u64::MAX, 0u64); engine.program.phases.len()];
    for pe in engine.pes.iter().flatten() {
        for (n, &(phase, start)) in pe.phases.iter().enumerate() {
            let end = pe.phases.get(n + 1).map_or(pe.time, |next| next.1);
            let span = &mut spans[phase as usize];
            *span = (span.0.min(start), span.1.max(end));
        }
    }
    let named = engine.program.phases.iter().zip(spans).filter(|(_, span)| span.0 != u64::MAX);
    named.map(|(name, (start, end))| PhaseReport { name: name.clone(), start, end }).collect()
}
