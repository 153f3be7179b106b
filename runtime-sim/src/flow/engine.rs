//! PEs run as far as their inputs are known; a loop takes as many iterations at once as keep one rhythm.

use super::actor::Actor;
use super::bursts::Burst;
use super::leaders::Leaders;
use super::pe::Pe;
use super::rows::{self, Rows};
use super::streams::Streams;
use super::work::{Works, works};
use crate::check::Checked;
use crate::fabric::FabricSpec;
use crate::lower::{LoweredClass, lower};
use crate::network::{NONE, Network, cover};
use crate::parallel;
use crate::program::{Trigger, WaferProgram};
use crate::report::Report;
use crate::trace::Trace;
use std::collections::VecDeque;

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
    /// PEs wait for each other, whatever the queues hold.
    #[error("cyclic wait: {}", .chain.join("; "))]
    Deadlock {
        /// Each waits for the next.
        chain: Vec<String>,
    },
}

/// Times a checked program without computing its numbers.
pub fn time(program: &Checked<WaferProgram>) -> Result<Report, FlowError> {
    time_sharing(program, Sharing::Rows)
}

/// As [`time`], with the phases of one PE of each class as tracks.
pub fn time_traced(program: &Checked<WaferProgram>) -> Result<(Report, Trace), FlowError> {
    timed(program, Sharing::Rows)
}

/// What rows of PEs that do the same have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// They are timed once, for as long as they do the same.
    Rows,
    /// Each is timed alone.
    #[cfg(test)]
    Nothing,
}

pub(super) fn time_sharing(program: &Checked<WaferProgram>, sharing: Sharing) -> Result<Report, FlowError> {
    timed(program, sharing).map(|(report, _)| report)
}

fn timed(program: &Checked<WaferProgram>, sharing: Sharing) -> Result<(Report, Trace), FlowError> {
    let (program, spec) = (program.get(), program.fabric());
    let classes = lower(program, spec);
    let Some((net, rows)) = chosen(program, spec, &classes) else { return Ok(Default::default()) };
    let leaders = match sharing {
        Sharing::Rows => Leaders::of(&net, &classes),
        #[cfg(test)]
        Sharing::Nothing => Leaders::default(),
    };
    run(program, spec, &net, &classes, &rows, &leaders)
}

/// The streams of the rows that stand for all rows of a program.
fn chosen(program: &WaferProgram, spec: &FabricSpec, classes: &[LoweredClass]) -> Option<(Network, Rows)> {
    let class_of = cover(program).ok()?;
    let rows = rows::choose(program, &class_of, classes);
    let traced = (0..program.height).map(|y| rows.chosen.contains(&y)).collect();
    let net = Network::of_rows(program, spec, class_of, traced).ok()?;
    Some((net, rows))
}

/// Times a program by something that sets the times of all PEs and sends all their words; the host has sent its own.
pub fn timed_by(
    program: &Checked<WaferProgram>,
    solve: &mut dyn FnMut(&mut Engine),
) -> Result<(Report, Trace), FlowError> {
    let (program, spec) = (program.get(), program.fabric());
    supported(program)?;
    let classes = lower(program, spec);
    let Some((net, rows)) = chosen(program, spec, &classes) else { return Ok(Default::default()) };
    let mut engine = Engine::new(program, spec, &net, &classes, &[], &Leaders::default());
    engine.feed();
    solve(&mut engine);
    let report = super::outcome::report(&engine, &rows);
    let trace = super::outcome::trace(&engine, &report);
    Ok((report, trace))
}

/// Whether the PEs of the traced rows can all finish if queues never fill.
pub fn finishes(
    program: &WaferProgram,
    spec: &FabricSpec,
    net: &Network,
    classes: &[LoweredClass],
) -> Result<(), FlowError> {
    let shape_of = (0..classes.len() as u16).collect();
    let (chosen, weight, like) = Default::default();
    let rows = Rows { chosen, weight, like, shape_of };
    run(program, spec, net, classes, &rows, &Leaders::of(net, classes)).map(|_| ())
}

fn run(
    program: &WaferProgram,
    spec: &FabricSpec,
    net: &Network,
    classes: &[LoweredClass],
    rows: &Rows,
    leaders: &Leaders,
) -> Result<(Report, Trace), FlowError> {
    supported(program)?;
    let works: Vec<Works> = parallel::map(classes, works);
    let mut engine = Engine::new(program, spec, net, classes, &works, leaders);
    engine.feed();
    if !leaders.followers.is_empty() {
        engine.run();
        engine.spread(leaders);
    }
    engine.run();
    match engine.first_stuck() {
        Some(pe) => Err(FlowError::Deadlock { chain: engine.explain(pe) }),
        None => {
            let report = super::outcome::report(&engine, rows);
            let trace = super::outcome::trace(&engine, &report);
            Ok((report, trace))
        }
    }
}

fn supported(program: &WaferProgram) -> Result<(), FlowError> {
    for class in &program.classes {
        let switches = class.routes.values().any(|r| r.positions.len() > 1);
        let control = class.tasks.iter().any(|t| matches!(t.trigger, Trigger::Control { .. }));
        let what = match (switches, control) {
            (true, _) => "routes with switch positions",
            (_, true) => "a control task",
            _ => continue,
        };
        return Err(FlowError::LeftOut { class: class.name.clone(), what });
    }
    Ok(())
}

/// State of a run.
pub struct Engine<'a> {
    pub(crate) program: &'a WaferProgram,
    pub(crate) spec: &'a FabricSpec,
    pub(crate) net: &'a Network,
    pub(crate) classes: &'a [LoweredClass],
    pub(crate) pes: Vec<Option<Box<Pe>>>,
    pub(crate) streams: Streams<'a>,
    pub(super) queue: VecDeque<u32>,
    works: &'a [Works],
}

impl<'a> Engine<'a> {
    fn new(
        program: &'a WaferProgram,
        spec: &'a FabricSpec,
        net: &'a Network,
        classes: &'a [LoweredClass],
        works: &'a [Works],
        leaders: &Leaders,
    ) -> Self {
        let mut pes: Vec<Option<Box<Pe>>> = Vec::new();
        let mut queue = VecDeque::new();
        pes.resize(net.class_of.len(), None);
        let following: Vec<bool> = (0..net.height).map(|y| leaders.follows(y)).collect();
        for (index, class) in net.traced_pes() {
            let runs = vec![(0, 0); classes[usize::from(class)].tasks.len()];
            let stop = leaders.stop(net, index);
            pes[index as usize] = Some(Box::new(Pe { runs, stop, ..Pe::default() }));
            if !following[(index / net.width) as usize] {
                queue.push_back(index);
            }
        }
        Engine { program, spec, net, classes, pes, streams: Streams::new(net), queue, works }
    }

    /// All words of the host, at the pace of their intervals.
    fn feed(&mut self) {
        for lane in &self.net.host_in {
            let mut start = 0.0;
            for &part in &lane.parts {
                let host = &self.program.host[part as usize];
                let at = |a: &crate::program::Affine| {
                    a.eval(|v| v.at_place(lane.at.x, lane.at.y).unwrap_or(0)).max(0)
                };
                let elements: u64 = host.dims.iter().map(|d| at(d) as u64).product();
                let words = elements / u64::from(host.wire.lanes());
                let gap = f64::from(host.interval.max(1));
                self.streams.write(lane.link, Burst::even(1, start, 0.0, words, gap));
                start += (words + u64::from(host.then.is_some())) as f64 * gap;
            }
        }
    }

    fn run(&mut self) {
        while let Some(index) = self.queue.pop_front() {
            let Some(mut pe) = self.pes[index as usize].take() else { continue };
            let class = &self.classes[self.net.class_of[index as usize] as usize];
            let mut actor = Actor {
                net: self.net,
                class,
                works: &self.works[self.net.class_of[index as usize] as usize],
                index: index as usize,
                at: self.net.coord(index),
                activation: f64::from(self.spec.task_activation),
                streams: &mut self.streams,
                pe: &mut pe,
            };
            actor.run();
            self.pes[index as usize] = Some(pe);
            self.queue.extend(self.streams.woken.drain(..));
        }
    }

    fn first_stuck(&self) -> Option<u32> {
        self.pes.iter().position(|pe| pe.as_ref().is_some_and(|pe| !pe.finished)).map(|p| p as u32)
    }

    fn explain(&self, first: u32) -> Vec<String> {
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
