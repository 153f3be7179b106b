//! From the final state of a flow run to its report; chosen rows count for those they stand for.

use super::engine::Engine;
use super::pe::Pe;
use super::rows::Rows;
use crate::event::memory_peak;
use crate::heat::{Heat, HeatMap};
use crate::network::{NONE, Origin, PORTS};
use crate::report::{ClassReport, HotLink, PhaseReport, Report, assumptions};
use std::collections::BTreeMap;

/// Writes the report.
pub fn report(engine: &Engine, rows: &Rows) -> Report {
    let members = || engine.pes.iter().enumerate().filter_map(|(i, pe)| Some((i as u32, pe.as_deref()?)));
    let last = members().map(|(_, pe)| pe).max_by(|a, b| a.time.total_cmp(&b.time));
    let drained = engine.net.host_out.iter().filter(|l| l.link != NONE);
    let egress = drained.map(|l| engine.streams.last_arrival(l.link)).fold(0.0, f64::max);
    let exact = last.map_or(0.0, |pe| pe.time).max(egress);
    let cycles = exact.ceil() as u64;
    let weights: Vec<f64> = (0..engine.net.height).map(|y| rows.weight_of(y)).collect();
    let weight = |index: u32| weights[(index / engine.net.width) as usize];
    let (busy, pes) = members()
        .fold((0.0, 0.0), |(busy, pes), (index, pe)| (busy + pe.busy * weight(index), pes + weight(index)));
    let (sram_peak_bytes, sram_peak_class) = memory_peak(engine.program);
    let (host_in_words, host_out_words) = host_words(engine);
    let traffic = traffic(engine, cycles, &weight);
    Report {
        level: "flow".into(),
        cycles,
        seconds: engine.spec.seconds(cycles),
        clock_hz: engine.spec.clock_hz,
        pes: pes.round() as u64,
        pe_busy_pct: percent(busy, pes * exact),
        sram_peak_bytes,
        sram_peak_class,
        hottest_link: traffic.2,
        words: traffic.0,
        word_hops: traffic.1,
        host_in_words,
        host_out_words,
        host_cycles: engine.spec.host_cycles(host_in_words, host_out_words),
        terms: terms(last, cycles),
        critical_path: BTreeMap::new(),
        heat: heat(engine, rows, cycles, &traffic.3),
        classes: classes(engine, rows, exact, &weight),
        phases: phases(engine),
        assumptions: assumptions(engine.spec),
        limits: Vec::new(),
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}

/// The load of all links of timed rows.
pub fn load(engine: &Engine) -> Load {
    traffic(engine, 0, &|_| 1.0).3
}

fn host_words(engine: &Engine) -> (u64, u64) {
    let fed = engine.net.host_in.iter().map(|l| engine.streams.sent(l.link)).sum();
    let ends = engine.net.host_out.iter().filter(|l| l.link != NONE);
    let drained = ends.map(|l| engine.streams.sent(engine.net.ends[l.link as usize].stream)).sum();
    (fed, drained)
}

/// Words over the links that leave each router, by port.
pub type Load = Vec<[u64; 5]>;

/// Words, word-hops, the link with the most words, and the load of all links of timed rows.
fn traffic(engine: &Engine, cycles: u64, weight: &dyn Fn(u32) -> f64) -> (u64, u64, Option<HotLink>, Load) {
    let mut load = vec![[0u64; 5]; engine.net.class_of.len()];
    let (mut words, mut hops) = (0.0, 0.0);
    for stream in 0..engine.net.streams.len() as u32 {
        let sent = engine.streams.sent(stream);
        if sent == 0 {
            continue;
        }
        let share = match engine.net.streams[stream as usize].origin {
            Origin::Pe(pe) => weight(pe),
            _ => 1.0,
        };
        words += sent as f64 * share;
        engine.net.links(engine.program, stream, &mut |pe, port| {
            hops += sent as f64 * share;
            load[pe as usize][port as usize] += sent;
        });
    }
    let mut best: Option<HotLink> = None;
    let all =
        (0u32..).zip(&load).flat_map(|(pe, load)| load.iter().zip(PORTS).map(move |(n, port)| (pe, n, port)));
    for (pe, &sent, port) in all {
        if sent > best.as_ref().map_or(0, |b| b.words) {
            let load_pct = percent(sent as f64, cycles as f64);
            best = Some(HotLink { at: engine.net.coord(pe), port, words: sent, load_pct });
        }
    }
    (words as u64, hops as u64, best, load)
}

fn terms(last: Option<&Pe>, cycles: u64) -> BTreeMap<String, u64> {
    let time = last.map_or(0, |pe| pe.time.ceil() as u64);
    let [busy, issue, activation] = last.map(Pe::spent).unwrap_or_default().map(|cycles| cycles as u64);
    let wait = time.saturating_sub(busy + issue + activation);
    let egress = cycles.saturating_sub(time);
    let named = [
        ("busy", busy),
        ("issue", issue),
        ("task_activation", activation),
        ("wait_data", wait),
        ("wait_room", 0),
        ("egress", egress),
    ];
    named.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn classes(engine: &Engine, rows: &Rows, cycles: f64, weight: &dyn Fn(u32) -> f64) -> Vec<ClassReport> {
    let mut sums = vec![(0.0, 0.0); engine.program.classes.len()];
    for (index, pe) in engine.pes.iter().enumerate() {
        if let Some(pe) = pe {
            let sum = &mut sums[rows.shape_of[engine.net.class_of[index] as usize] as usize];
            sum.0 += pe.busy * weight(index as u32);
            sum.1 += weight(index as u32);
        }
    }
    let by_class = rows.shape_of.iter().map(|shape| sums[*shape as usize]);
    let all = engine.program.classes.iter().zip(by_class).zip(engine.classes);
    let report = |((class, (busy, pes)), lowered): (
        (&crate::program::Class, (f64, f64)),
        &crate::lower::LoweredClass,
    )| {
        let busy_pct = percent(busy, pes * cycles);
        ClassReport {
            name: class.name.clone(),
            pes: class.count(),
            busy_pct,
            sram_bytes: u64::from(lowered.memory),
        }
    };
    all.map(report).collect()
}

fn phases(engine: &Engine) -> Vec<PhaseReport> {
    let spans = engine.spans.ended(engine.pes.iter().filter_map(|pe| pe.as_deref()));
    let named = engine.program.phases.iter().zip(spans).filter(|(_, span)| span.0.is_finite());
    named
        .map(|(name, (start, end))| PhaseReport {
            name: name.clone(),
            start: start as u64,
            end: end.ceil() as u64,
        })
        .collect()
}

/// Where on the grid; rows that were not timed look like those that stand for them.
fn heat(engine: &Engine, rows: &Rows, cycles: u64, load: &Load) -> HeatMap {
    let net = engine.net;
    let mut heat = Heat::new(net.width, net.height, cycles as f64);
    for y in 0..net.height {
        let like = rows.like.get(&y).copied().unwrap_or(y);
        for x in 0..net.width {
            let (here, there) = (y * net.width + x, like * net.width + x);
            if let (Some(pe), Some(class)) =
                (&engine.pes[there as usize], engine.classes.get(usize::from(net.class_of[here as usize])))
            {
                heat.pe(x, y, pe.busy, u64::from(class.memory));
            }
            let fullest = load[there as usize].iter().max().copied().unwrap_or(0);
            heat.link(x, y, fullest as f64);
        }
    }
    heat.finish()
}
