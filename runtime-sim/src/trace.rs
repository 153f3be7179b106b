//! What happened when: spans of PEs, phases of the program and words over links, as tracks of a trace viewer.

use crate::program::{Coord, Port};
use serde::Serialize;
use std::collections::BTreeMap;

/// Something that took a while.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// What it was.
    pub name: String,
    /// When it began, in cycles.
    pub start: u64,
    /// How long it took, in cycles.
    pub cycles: u64,
}

/// What one PE did, standing for its class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Track {
    /// The class.
    pub class: String,
    /// The PE.
    pub at: Coord,
    /// In order of time.
    pub spans: Vec<Span>,
}

/// Words over a link in equal stretches of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkLoad {
    /// The router it leaves.
    pub at: Coord,
    /// Through which port.
    pub port: Port,
    /// Words in each stretch.
    pub words: Vec<u64>,
}

/// Links of which a trace tells, most words first.
pub const LINKS: usize = 16;

/// A run as tracks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trace {
    /// Clock in hertz, to turn cycles into time.
    pub clock_hz: f64,
    /// Phases of the program, from the first PE in to the last PE out.
    pub phases: Vec<Span>,
    /// One PE of each class.
    pub tracks: Vec<Track>,
    /// Cycles of a stretch of [`LinkLoad::words`].
    pub stretch: u64,
    /// The links with the most words, most first.
    pub links: Vec<LinkLoad>,
}

/// An event in the JSON format that Perfetto and Chrome's trace viewer read. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Name of the span or the counter.
    pub name: String,
    /// `X` for a span, `C` for a counter, `M` for the name of a track.
    pub ph: char,
    /// When.
    pub ts: f64,
    /// How long, for spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dur: Option<f64>,
    /// Group of tracks: 1 phases, 2 PEs, 3 links; plus 10 for each stage before.
    pub pid: u32,
    /// Track.
    pub tid: u32,
    /// Values of a counter, cycles of a span, or the name of a track.
    pub args: BTreeMap<String, Arg>,
}

/// A value in an [`Event`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Arg {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

impl Trace {
    /// The events of stage number `stage` of a model, which is called `name`.
    pub fn events(&self, stage: u32, name: &str) -> Vec<Event> {
        let mut events = Vec::new();
        let pid = |group: u32| 10 * stage + group;
        for (group, title) in [(1, "phases"), (2, "PE classes"), (3, "links, words per cycle")] {
            events.push(named("process_name", pid(group), 0, format!("{name}: {title}")));
        }
        // Phases overlap, so each has a track of its own.
        for (tid, phase) in (0..).zip(&self.phases) {
            events.push(named("thread_name", pid(1), tid, phase.name.clone()));
            events.push(self.span(phase, pid(1), tid));
        }
        for (tid, track) in (0..).zip(&self.tracks) {
            events.push(named("thread_name", pid(2), tid, format!("{} {}", track.class, track.at)));
            events.extend(track.spans.iter().map(|span| self.span(span, pid(2), tid)));
        }
        for (tid, link) in (0..).zip(&self.links) {
            let title = format!("({}, {}) {}", link.at.x, link.at.y, link.port.name());
            // A counter keeps its last value: behind the last word it is none.
            for (n, words) in (0u64..).zip(link.words.iter().chain(&[0])) {
                let rate = *words as f64 / self.stretch.max(1) as f64;
                let args = BTreeMap::from([("words per cycle".into(), Arg::Number(rate))]);
                let ts = self.micros(n * self.stretch);
                events.push(Event { name: title.clone(), ph: 'C', ts, dur: None, pid: pid(3), tid, args });
            }
        }
        events
    }

    fn micros(&self, cycles: u64) -> f64 {
        1e6 * cycles as f64 / self.clock_hz
    }

    fn span(&self, span: &Span, pid: u32, tid: u32) -> Event {
        let args = BTreeMap::from([
            ("cycle".into(), Arg::Number(span.start as f64)),
            ("cycles".into(), Arg::Number(span.cycles as f64)),
        ]);
        let (ts, dur) = (self.micros(span.start), Some(self.micros(span.cycles)));
        Event { name: span.name.clone(), ph: 'X', ts, dur, pid, tid, args }
    }
}

fn named(what: &str, pid: u32, tid: u32, name: String) -> Event {
    let args = BTreeMap::from([("name".into(), Arg::Text(name))]);
    Event { name: what.into(), ph: 'M', ts: 0.0, dur: None, pid, tid, args }
}
