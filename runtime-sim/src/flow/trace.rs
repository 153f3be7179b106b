//! What happened when, of a flow run: phases, also of one PE of each class, and words over the links with most of them.

use super::engine::Engine;
use super::outcome::{Load, load};
use super::pe::Pe;
use super::words::Words;
use crate::network::PORTS;
use crate::program::Port;
use crate::report::{PhaseReport, Report};
use crate::trace::{LINKS, LinkLoad, Span, Trace, Track};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Stretches of time in which words are counted.
const STRETCHES: u64 = 256;

/// The tracks of a run of which all words were kept.
pub fn trace(engine: &Engine, report: &Report) -> Trace {
    let mut tracks: BTreeMap<u16, Track> = BTreeMap::new();
    for (pe, class) in (0..).zip(&engine.net.class_of) {
        let Some(state) = &engine.pes[pe as usize] else { continue };
        tracks.entry(*class).or_insert_with(|| Track {
            class: engine.classes[usize::from(*class)].name.clone(),
            at: engine.net.coord(pe),
            spans: spans(engine, state),
        });
    }
    let span = |p: &PhaseReport| Span { name: p.name.clone(), start: p.start, cycles: p.end - p.start };
    let stretch = report.cycles.div_ceil(STRETCHES).max(1);
    Trace {
        clock_hz: report.clock_hz,
        phases: report.phases.iter().map(span).collect(),
        tracks: tracks.into_values().collect(),
        stretch,
        links: links(engine, stretch, &load(engine)),
    }
}

/// The phases of a PE.
fn spans(engine: &Engine, state: &Pe) -> Vec<Span> {
    let ends = state.phases.iter().skip(1).map(|(_, start)| *start).chain([state.time]);
    let span = |((phase, start), end): (&(u16, f64), f64)| Span {
        name: engine.program.phases[usize::from(*phase)].clone(),
        start: *start as u64,
        cycles: (end - start) as u64,
    };
    state.phases.iter().zip(ends).map(span).collect()
}

/// The links with the most words, with their words over time.
fn links(engine: &Engine, stretch: u64, load: &Load) -> Vec<LinkLoad> {
    let all = (0u32..).zip(load).flat_map(|(pe, l)| l.iter().zip(PORTS).map(move |(n, port)| (*n, pe, port)));
    let mut all: Vec<(u64, u32, Port)> = all.filter(|(words, ..)| *words > 0).collect();
    all.sort_unstable_by_key(|(words, pe, port)| (Reverse(*words), *pe, *port));
    all.truncate(LINKS);
    let at = |pe: &u32| engine.net.coord(*pe);
    let mut loads: Vec<LinkLoad> =
        all.iter().map(|(_, pe, port)| LinkLoad { at: at(pe), port: *port, words: Vec::new() }).collect();
    for stream in 0..engine.net.streams.len() as u32 {
        let mut counted: Option<Vec<u64>> = None;
        engine.net.links(engine.program, stream, &mut |pe, port| {
            if let Some(at) = all.iter().position(|(_, p, q)| (*p, *q) == (pe, port)) {
                let counted = counted.get_or_insert_with(|| over_time(engine.streams.words(stream), stretch));
                let sum = &mut loads[at].words;
                sum.resize(sum.len().max(counted.len()), 0);
                sum.iter_mut().zip(counted).for_each(|(sum, words)| *sum += *words);
            }
        });
    }
    loads
}

/// Words in each stretch of time, until the last one.
fn over_time(words: &Words, stretch: u64) -> Vec<u64> {
    let mut counted = Vec::new();
    let mut before = 0;
    while before < words.total {
        let until = words.before((counted.len() as u64 + 1) as f64 * stretch as f64);
        counted.push(until - before);
        before = until;
    }
    counted
}
