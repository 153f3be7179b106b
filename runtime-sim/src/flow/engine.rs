//! PEs run as far as their inputs are known; a loop takes as many iterations at once as keep one rhythm.

use super::actor::Actor;
use super::bursts::Burst;
use super::held::Held;
use super::pace::Lines;
use super::pe::Pe;
use super::profile::Profile;
use super::skip::Skip;
use super::spans::Spans;
use super::streams::Streams;
use super::work::Works;
use crate::fabric::FabricSpec;
use crate::lower::LoweredClass;
use crate::network::{NONE, Network};
use crate::program::WaferProgram;
use std::collections::{BTreeMap, VecDeque};

/// Why a program cannot be timed at this level.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FlowError {
    /// A feature this level leaves out.
    #[error("class `{class}` has {what}, which level flow leaves out: use level event")]
    LeftOut {
        /// The class.
        class: String,
        /// What it has.
        what: &'static str,
    },
    /// PEs wait for each other's words and for room in queues.
    #[error("deadlock, {stuck} PEs are stuck: {}", .chain.join("; "))]
    Standstill {
        /// PEs that have not finished.
        stuck: usize,
        /// Each waits for the next.
        chain: Vec<String>,
    },
    /// PEs wait for each other, whatever the queues hold.
    #[error("cyclic wait: {}", .chain.join("; "))]
    Deadlock {
        /// Each waits for the next.
        chain: Vec<String>,
    },
}

/// How far a lane of the host has come.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    part: usize,
    /// Words of this part.
    sent: u64,
    /// When the next may leave.
    next: f64,
}

/// State of a run.
pub struct Engine<'a> {
    pub(crate) program: &'a WaferProgram,
    pub(crate) spec: &'a FabricSpec,
    pub(crate) net: &'a Network,
    pub(crate) classes: &'a [LoweredClass],
    pub(crate) pes: Vec<Option<Box<Pe>>>,
    pub(crate) streams: Streams<'a>,
    pub(crate) spans: Spans,
    pub(super) queue: VecDeque<u32>,
    works: &'a Works,
    /// By lane of the host: how far it has come.
    lanes: Vec<Lane>,
    /// What held up the host, by stream.
    pub(super) fed: BTreeMap<u32, Held>,
    /// PEs that wait for the words of a whole iteration.
    patient: VecDeque<u32>,
    /// Instructions executed, and how many there may be.
    pub(super) steps: u64,
    pub(super) most_steps: u64,
    /// By how many cycles words read on credit may be later than they were needed before the run ends.
    pub(super) most_late: f64,
    /// Cycles by which PEs that followed others may be off, at most.
    pub(super) strayed: f64,
}

impl<'a> Engine<'a> {
    /// All PEs at their beginning; none runs yet.
    pub fn new(
        program: &'a WaferProgram,
        spec: &'a FabricSpec,
        net: &'a Network,
        classes: &'a [LoweredClass],
        works: &'a Works,
        skips: &[Skip],
    ) -> Self {
        let mut pes: Vec<Option<Box<Pe>>> = Vec::new();
        pes.resize(net.class_of.len(), None);
        let foretold = |y: u32| skips.iter().any(|skip| skip.foretold().contains(&y));
        for (index, class) in net.traced_pes().filter(|(pe, _)| !foretold(pe / net.width)) {
            let runs = vec![(0, 0); classes[usize::from(class)].tasks.len()];
            pes[index as usize] = Some(Box::new(Pe { runs, stop: usize::MAX, ..Pe::default() }));
        }
        Engine {
            program,
            spec,
            net,
            classes,
            pes,
            streams: Streams::new(net),
            spans: Spans::new(program.phases.len()),
            queue: VecDeque::new(),
            works,
            lanes: vec![Lane::default(); net.host_in.len()],
            fed: BTreeMap::new(),
            patient: VecDeque::new(),
            steps: 0,
            most_steps: u64::MAX,
            most_late: f64::INFINITY,
            strayed: 0.0,
        }
    }

    /// The next PE that waits for the words of a whole iteration.
    fn hurry(&mut self) -> Option<u32> {
        while let Some(index) = self.patient.pop_front() {
            if let Some(pe) = self.pes[index as usize].as_deref_mut().filter(|pe| pe.looping.is_some()) {
                pe.hurried = true;
                return Some(index);
            }
        }
        None
    }

    /// The PEs in rows behind those that are foretold, or the others, ascending.
    pub(super) fn members(&self, skips: &[Skip], behind: bool) -> Vec<u32> {
        let width = self.net.width;
        let is_behind = |pe: &u32| skips.iter().any(|skip| skip.is_behind(pe / width));
        let all = (0..).zip(&self.pes).filter(|(_, pe)| pe.is_some()).map(|(pe, _)| pe);
        all.filter(|pe| is_behind(pe) == behind).collect()
    }

    /// Runs all PEs that there are, none by another.
    pub(super) fn run_all(&mut self) {
        let all = self.members(&[], false);
        self.queue.extend(all);
        self.run();
    }

    /// All words of the host, at the pace of their intervals, as far as there is room.
    pub(super) fn feed(&mut self) {
        (0..self.lanes.len() as u32).for_each(|lane| self.feed_lane(lane));
    }

    /// Goes on with the words of a lane of the host.
    fn feed_lane(&mut self, number: u32) {
        let lane = &self.net.host_in[number as usize];
        let mut at = self.lanes[number as usize];
        while let Some(&part) = lane.parts.get(at.part) {
            let host = &self.program.host[part as usize];
            let gap = f64::from(host.interval.max(1));
            at.sent += self.send(lane.link, &mut at.next, host.words_at(lane.at) - at.sent, gap);
            if at.sent < host.words_at(lane.at) {
                break;
            }
            at.next += if host.then.is_some() { gap } else { 0.0 };
            (at.part, at.sent) = (at.part + 1, 0);
        }
        self.lanes[number as usize] = at;
    }

    /// Sends words of the host from `start` on, `gap` apart, until there is no room; returns how many, and moves `start` to when
    /// the next may follow.
    fn send(&mut self, stream: u32, start: &mut f64, words: u64, gap: f64) -> u64 {
        let mut left = words;
        while left > 0 {
            let mut lines = Lines::new(*start, gap, left);
            match self.streams.room(stream, 1) {
                Ok(Some(room)) => lines.room(0.0, room.0.last, (&room.0, room.1)),
                Ok(None) => {}
                Err(()) => break,
            }
            let pace = lines.pace();
            if self.streams.explains && pace.waits.iter().any(|wait| pace.is_held(wait)) {
                let host = Profile { work: gap, ..Profile::default() };
                self.fed.entry(stream).or_default().paced(&pace, &host, [0.0; 3], false);
            }
            self.streams.write(stream, Burst::even(1, pace.start, 0.0, pace.runs, pace.period));
            *start = pace.start + (pace.runs - 1) as f64 * pace.period + gap;
            left -= pace.runs;
        }
        words - left
    }

    /// Lets PEs run as far as they can; those that wait for the words of a whole iteration do without, one after the
    /// other, only when nobody else can go on.
    pub(super) fn run(&mut self) {
        while let Some(index) = self.queue.pop_front().or_else(|| self.hurry()) {
            if self.steps > self.most_steps || self.streams.late > self.most_late {
                return;
            }
            let Some(mut pe) = self.pes[index as usize].take() else { continue };
            let class = &self.classes[self.net.class_of[index as usize] as usize];
            let mut actor = Actor {
                net: self.net,
                class,
                works: self.works,
                index: index as usize,
                at: self.net.coord(index),
                activation: f64::from(self.spec.task_activation),
                streams: &mut self.streams,
                pe: &mut pe,
                spans: &mut self.spans,
                steps: &mut self.steps,
            };
            actor.run();
            if pe.looping.is_some() {
                self.patient.push_back(index);
            }
            self.pes[index as usize] = Some(pe);
            for lane in std::mem::take(&mut self.streams.woken_lanes) {
                self.feed_lane(lane);
            }
            self.queue.extend(self.streams.woken.drain(..));
        }
    }

    pub(super) fn first_stuck(&self) -> Option<u32> {
        self.pes.iter().position(|pe| pe.as_ref().is_some_and(|pe| !pe.finished)).map(|p| p as u32)
    }

    pub(super) fn explain(&self, first: u32) -> Vec<String> {
        let (mut chain, mut seen, mut next) = (Vec::new(), Vec::new(), first);
        while !seen.contains(&next) {
            seen.push(next);
            let at = self.net.coord(next);
            let Some(pe) = self.pes[next as usize].as_deref().filter(|pe| !pe.finished) else {
                chain.push(format!("PE {at} has finished"));
                break;
            };
            if pe.waits_for == NONE {
                chain.push(format!("PE {at} waits for a task that is not activated"));
                break;
            }
            let stream = self.net.ends[pe.waits_for as usize].stream;
            let described = &self.net.streams[stream as usize];
            let crate::network::Origin::Pe(sender) = described.origin else {
                chain.push(format!(
                    "PE {at} waits for more words of the host on colour {}",
                    described.colour.0
                ));
                break;
            };
            let from = self.net.coord(sender);
            chain.push(format!("PE {at} waits for words on colour {} from PE {from}", described.colour.0));
            next = sender;
        }
        chain
    }
}
