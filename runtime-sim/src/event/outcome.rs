//! From the final state of a run to its report.

use super::cause::{Cause, Causes};
use super::engine::{Run, Setup};
use super::host::LaneState;
use super::images;
use super::pe::{Pe, Spent};
use super::strip::Strip;
use super::trace::Histogram;
use crate::heat::Heat;
use crate::network::{Network, Origin};
use crate::program::{Port, WaferProgram};
use crate::report::{ClassReport, HotLink, PhaseReport, Report, assumptions};
use crate::trace::{LINKS, LinkLoad, Span, Trace, Track};
use std::collections::BTreeMap;

/// Words over the links that leave each router, by port.
type Load = Vec<[u64; 5]>;

/// Reads back tensors and writes the report.
pub fn collect(setup: &Setup, mut strips: Vec<Strip>) -> Run {
    let tensors = images::read_back(setup, &strips);
    let names = setup.tensors.iter().map(|(name, _)| name.to_string());
    let cycles = cycles(&strips);
    let (words, word_hops, load) = traffic(setup, &strips);
    let report = report(setup, &strips, cycles, (words, word_hops), &load);
    let trace = trace(setup, &mut strips, &report, &load);
    Run { report, tensors: names.zip(tensors).collect(), trace }
}

fn report(setup: &Setup, strips: &[Strip], cycles: u64, traffic: (u64, u64), load: &Load) -> Report {
    let sram = memory_peak(setup.program);
    let lanes = |of: &dyn Fn(&Strip) -> u64| -> u64 { strips.iter().map(of).sum() };
    let words = |lanes: &[LaneState]| -> u64 { lanes.iter().map(|lane| lane.words).sum() };
    let host_in_words = lanes(&|strip| words(&strip.host_in));
    let host_out_words = lanes(&|strip| words(&strip.host_out));
    let spec = setup.spec;
    Report {
        level: "event".into(),
        cycles,
        seconds: spec.seconds(cycles),
        clock_hz: spec.clock_hz,
        pes: members(strips).count() as u64,
        pe_busy_pct: share(members(strips).map(|(.., pe)| pe.spent.busy), cycles),
        sram_peak_bytes: sram.0,
        sram_peak_class: sram.1,
        hottest_link: hottest(setup.net, load, cycles),
        words: traffic.0,
        word_hops: traffic.1,
        host_in_words,
        host_out_words,
        host_cycles: spec.host_cycles(host_in_words, host_out_words),
        terms: terms(strips, cycles),
        critical_path: critical_path(setup, strips, cycles),
        classes: classes(setup, strips, cycles),
        phases: phases(setup, strips),
        heat: heat(setup, strips, cycles, load),
        assumptions: assumptions(spec),
        limits: Vec::new(),
    }
}

/// PEs that have a class, with their numbers and classes, in order.
fn members<'s>(strips: &'s [Strip]) -> impl Iterator<Item = (u32, usize, &'s Pe)> {
    strips.iter().flat_map(Strip::members)
}

/// When the last PE is done and the last word has left.
pub fn cycles(strips: &[Strip]) -> u64 {
    let pes = members(strips).map(|(.., pe)| pe.time).max().unwrap_or(0);
    let lanes = strips.iter().flat_map(|strip| &strip.host_out).map(|lane| lane.time).max().unwrap_or(0);
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

fn sent(setup: &Setup, strips: &[Strip], stream: u32) -> u64 {
    let sender = setup.plan.actors.sender(setup.net.streams[stream as usize].origin);
    strips[usize::from(setup.plan.strip_of(setup.net, sender))].links.sent(stream)
}

/// Words, word-hops and the load of each link.
fn traffic(setup: &Setup, strips: &[Strip]) -> (u64, u64, Load) {
    let mut load = vec![[0u64; 5]; setup.net.class_of.len()];
    let (mut words, mut hops) = (0, 0);
    for stream in 0..setup.net.streams.len() as u32 {
        let sent = sent(setup, strips, stream);
        if sent == 0 {
            continue;
        }
        if !matches!(setup.net.streams[stream as usize].origin, Origin::Switch(..)) {
            words += sent;
        }
        setup.net.links(setup.program, stream, &mut |pe, port| {
            hops += sent;
            load[pe as usize][port as usize] += sent;
        });
    }
    (words, hops, load)
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
fn terms(strips: &[Strip], cycles: u64) -> BTreeMap<String, u64> {
    let last = members(strips).map(|(.., pe)| pe).max_by_key(|pe| pe.time);
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

/// The causes of whatever was last, if causes were kept.
fn critical_path(setup: &Setup, strips: &[Strip], cycles: u64) -> BTreeMap<String, u64> {
    if !setup.options.critical_path {
        return BTreeMap::new();
    }
    let of_pe = |strip: &Strip| -> Option<(u64, Causes)> {
        let (index, _, pe) = strip.members().max_by_key(|(.., pe)| pe.time)?;
        Some((pe.time, strip.causes_of(index)))
    };
    let pes = strips.iter().filter_map(of_pe);
    let lanes = strips.iter().flat_map(|strip| &strip.host_out).map(|lane| (lane.time, lane.causes));
    let last = pes.chain(lanes).max_by_key(|(time, _)| *time);
    last.map_or(Causes::default(), |(_, causes)| causes).until(cycles, Cause::Egress).named()
}

fn classes(setup: &Setup, strips: &[Strip], cycles: u64) -> Vec<ClassReport> {
    let mut sums = vec![(0u64, 0u64); setup.classes.len()];
    for (_, class, pe) in members(strips) {
        sums[class].0 += pe.spent.busy;
        sums[class].1 += 1;
    }
    let all = setup.program.classes.iter().zip(setup.classes).zip(sums);
    let report = |((class, lowered), (busy, pes)): (
        (&crate::program::Class, &crate::lower::LoweredClass),
        (u64, u64),
    )| ClassReport {
        name: class.name.clone(),
        pes: class.count(),
        busy_pct: if pes * cycles == 0 { 0.0 } else { 100.0 * busy as f64 / (pes as f64 * cycles as f64) },
        sram_bytes: u64::from(lowered.memory),
    };
    all.map(report).collect()
}

fn phases(setup: &Setup, strips: &[Strip]) -> Vec<PhaseReport> {
    let mut spans = vec![(u64::MAX, 0u64); setup.program.phases.len()];
    for (.., pe) in members(strips) {
        for (n, &(phase, start)) in pe.phases.iter().enumerate() {
            let end = pe.phases.get(n + 1).map_or(pe.time, |next| next.1);
            let span = &mut spans[phase as usize];
            *span = (span.0.min(start), span.1.max(end));
        }
    }
    let named = setup.program.phases.iter().zip(spans).filter(|(_, span)| span.0 != u64::MAX);
    named.map(|(name, (start, end))| PhaseReport { name: name.clone(), start, end }).collect()
}

fn heat(setup: &Setup, strips: &[Strip], cycles: u64, load: &Load) -> crate::heat::HeatMap {
    let mut heat = Heat::new(setup.net.width, setup.net.height, cycles as f64);
    for (index, class, pe) in members(strips) {
        let at = setup.net.coord(index);
        heat.pe(at.x, at.y, pe.spent.busy as f64, u64::from(setup.classes[class].memory));
    }
    for (index, ports) in load.iter().enumerate() {
        let most = ports.iter().copied().max().unwrap_or(0);
        if most > 0 {
            let at = setup.net.coord(index as u32);
            heat.link(at.x, at.y, most as f64);
        }
    }
    heat.finish()
}

/// What the tracer saw, if there was one.
fn trace(setup: &Setup, strips: &mut [Strip], report: &Report, load: &Load) -> Option<Trace> {
    let strip = strips.first_mut()?;
    let tracer = strip.tracer.take()?;
    let histogram = strip.links.histogram.take().unwrap_or_default();
    let mut tracks: BTreeMap<u32, Track> = BTreeMap::new();
    for (pe, class) in &tracer.followed {
        let class = setup.classes[*class].name.clone();
        tracks.insert(*pe, Track { class, at: setup.net.coord(*pe), spans: Vec::new() });
    }
    for (pe, span) in tracer.spans {
        if let Some(track) = tracks.get_mut(&pe) {
            track.spans.push(span);
        }
    }
    let span = |p: &PhaseReport| Span { name: p.name.clone(), start: p.start, cycles: p.end - p.start };
    Some(Trace {
        clock_hz: report.clock_hz,
        phases: report.phases.iter().map(span).collect(),
        tracks: tracks.into_values().collect(),
        stretch: histogram.width,
        links: links(setup, &histogram, load),
    })
}

/// The links with the most words, with their words over time.
fn links(setup: &Setup, histogram: &Histogram, load: &Load) -> Vec<LinkLoad> {
    let ports = [Port::North, Port::East, Port::South, Port::West];
    let all = (0u32..).zip(load).flat_map(|(pe, l)| ports.map(|port| (l[port as usize], pe, port)));
    let mut all: Vec<(u64, u32, Port)> = all.filter(|(words, ..)| *words > 0).collect();
    all.sort_unstable_by_key(|(words, pe, port)| (std::cmp::Reverse(*words), *pe, *port));
    all.truncate(LINKS);
    let mut loads: Vec<LinkLoad> = all
        .iter()
        .map(|(_, pe, port)| LinkLoad { at: setup.net.coord(*pe), port: *port, words: Vec::new() })
        .collect();
    for (stream, words) in &histogram.words {
        setup.net.links(setup.program, *stream, &mut |pe, port| {
            if let Some(at) = all.iter().position(|(_, p, q)| (*p, *q) == (pe, port)) {
                let sum = &mut loads[at].words;
                sum.resize(sum.len().max(words.len()), 0);
                sum.iter_mut().zip(words).for_each(|(sum, words)| *sum += words);
            }
        });
    }
    loads
}
