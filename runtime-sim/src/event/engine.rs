//! The loop that lets actors act in the order of time, and its beginning and end.

use super::deadlock::{self, Standstill};
use super::host::{self, LaneState, Walk};
use super::links::{Actors, Links};
use super::ops::{Scratch, Wait};
use super::outcome;
use super::pe::{Pe, Ports};
use super::switch::{self, SwitchState};
use super::values::{load, store};
use crate::check::Checked;
use crate::fabric::FabricSpec;
use crate::lower::{LoweredClass, lower};
use crate::network::{NONE, Network};
use crate::program::{Coord, WaferProgram};
use crate::report::Report;
use std::collections::BTreeMap;

/// What a run leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Times.
    pub report: Report,
    /// All tensors of the program after the run.
    pub tensors: BTreeMap<String, Vec<f32>>,
}

/// Why a run could not be completed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SimError {
    /// Nothing can go on, but not all is done.
    #[error("deadlock after {cycles} cycles, {stuck} participants are stuck{}: {}",
        if *.circular { " in a circle" } else { "" }, .chain.join("; "))]
    Deadlock {
        /// Time of the last thing that happened.
        cycles: u64,
        /// PEs, switches and lanes that are not done.
        stuck: usize,
        /// Each waits for the next.
        chain: Vec<String>,
        /// Whether the last waits for one of the others.
        circular: bool,
    },
    /// An access beyond a buffer.
    #[error("PE {at}, class `{class}`: `{op}` reaches element {index} of a buffer of {elements}")]
    Bounds {
        /// The PE.
        at: Coord,
        /// Its class.
        class: String,
        /// The op.
        op: &'static str,
        /// The element reached.
        index: i64,
        /// Size of the buffer.
        elements: u32,
    },
    /// A tensor that is missing or of the wrong size.
    #[error("tensor `{name}` has {found} elements, the program declares {expected}: pass it with that size")]
    Tensor {
        /// Its name.
        name: String,
        /// Elements declared.
        expected: u64,
        /// Elements given.
        found: u64,
    },
}

/// Runs a checked program on the fabric it was checked for.
///
/// `tensors` gives values to declared tensors; those not given are zero. Fails on a deadlock, with an explanation, and
/// on accesses that the checker could not decide.
pub fn simulate(
    program: &Checked<WaferProgram>,
    tensors: BTreeMap<String, Vec<f32>>,
) -> Result<Run, SimError> {
    let (program, spec) = (program.get(), program.fabric());
    let values = declared(program, tensors)?;
    let Ok(net) = Network::build(program, spec) else { return Ok(Run::empty()) };
    let classes = lower(program, spec);
    let mut engine = Engine::new(program, spec, &net, &classes, values);
    engine.preload();
    engine.run()?;
    Ok(outcome::collect(engine))
}

impl Run {
    fn empty() -> Run {
        Run { report: Report::default(), tensors: BTreeMap::new() }
    }
}

/// All declared tensors, in name order.
fn declared(
    program: &WaferProgram,
    mut given: BTreeMap<String, Vec<f32>>,
) -> Result<Vec<(&str, Vec<f32>)>, SimError> {
    let mut out = Vec::new();
    for (name, decl) in &program.tensors {
        let values = given.remove(name).unwrap_or_else(|| vec![0.0; decl.elements as usize]);
        if values.len() as u64 != decl.elements {
            let (expected, found) = (decl.elements, values.len() as u64);
            return Err(SimError::Tensor { name: name.clone(), expected, found });
        }
        out.push((name.as_str(), values));
    }
    Ok(out)
}

/// State of a run.
pub struct Engine<'a> {
    pub(super) program: &'a WaferProgram,
    pub(super) spec: &'a FabricSpec,
    pub(super) net: &'a Network,
    pub(super) classes: &'a [LoweredClass],
    pub(super) links: Links<'a>,
    pub(super) actors: Actors,
    pub(super) pes: Vec<Option<Box<Pe>>>,
    pub(super) switches: Vec<(SwitchState, Wait)>,
    pub(super) host_in: Vec<(LaneState, Option<Wait>)>,
    pub(super) host_out: Vec<(LaneState, Option<Wait>)>,
    pub(super) tensors: Vec<(&'a str, Vec<f32>)>,
    scratch: Scratch,
}

impl<'a> Engine<'a> {
    fn new(
        program: &'a WaferProgram,
        spec: &'a FabricSpec,
        net: &'a Network,
        classes: &'a [LoweredClass],
        tensors: Vec<(&'a str, Vec<f32>)>,
    ) -> Self {
        let pe = |class: &u16| (*class != u16::MAX).then(|| Box::new(Pe::new(&classes[*class as usize])));
        Engine {
            program,
            spec,
            net,
            classes,
            links: Links::new(net, spec),
            actors: Actors::of(net),
            pes: net.class_of.iter().map(pe).collect(),
            switches: vec![(SwitchState::default(), Wait::Word(NONE)); net.switches.len()],
            host_in: vec![(LaneState::default(), None); net.host_in.len()],
            host_out: vec![(LaneState::default(), None); net.host_out.len()],
            tensors,
            scratch: Scratch::default(),
        }
    }

    /// Fills buffers from tensors.
    fn preload(&mut self) {
        for (index, pe) in self.pes.iter_mut().enumerate() {
            let Some(pe) = pe else { continue };
            let at = self.net.coord(index as u32);
            let class = &self.program.classes[self.net.class_of[index] as usize];
            for buffer in class.buffers.values() {
                let Some(map) = &buffer.load else { continue };
                let Some((_, values)) = self.tensors.iter().find(|(name, _)| *name == map.tensor) else {
                    continue;
                };
                let walk = Walk::new(&map.dims, &map.index, at.x, at.y);
                for n in 0..walk.len().min(u64::from(buffer.elements)) {
                    let value = values.get(walk.at(n) as usize).copied().unwrap_or(0.0);
                    store(&mut pe.memory, buffer.offset, buffer.dtype, n as usize, value);
                }
            }
        }
    }

    /// Copies buffers to tensors.
    pub(super) fn read_back(&mut self) {
        for (index, pe) in self.pes.iter().enumerate() {
            let Some(pe) = pe else { continue };
            let at = self.net.coord(index as u32);
            let class = &self.program.classes[self.net.class_of[index] as usize];
            for buffer in class.buffers.values() {
                let Some(map) = &buffer.store else { continue };
                let named = self.tensors.iter_mut().find(|(name, _)| *name == map.tensor);
                let Some((_, values)) = named else { continue };
                let walk = Walk::new(&map.dims, &map.index, at.x, at.y);
                for n in 0..walk.len().min(u64::from(buffer.elements)) {
                    if let Some(place) = values.get_mut(walk.at(n) as usize) {
                        *place = load(&pe.memory, buffer.offset, buffer.dtype, n as usize);
                    }
                }
            }
        }
    }

    fn run(&mut self) -> Result<(), SimError> {
        for actor in 0..self.actors.end {
            let idle = actor < self.actors.switches && self.pes[actor as usize].is_none();
            if !idle {
                self.act(actor)?;
            }
        }
        while let Some(actor) = self.links.next() {
            self.act(actor)?;
        }
        match self.stuck() {
            0 => Ok(()),
            stuck => {
                let Standstill { chain, circular } = deadlock::explain(self);
                Err(SimError::Deadlock { cycles: self.links.clock, stuck, chain, circular })
            }
        }
    }

    fn act(&mut self, actor: u32) -> Result<(), SimError> {
        let a = self.actors;
        if actor < a.switches {
            return self.act_pe(actor);
        }
        if actor < a.host_in {
            self.act_switch((actor - a.switches) as usize);
        } else if actor < a.host_out {
            let lane = (actor - a.host_in) as usize;
            let (state, wait) = &mut self.host_in[lane];
            *wait = host::feed(&self.net.host_in[lane], state, self.program, &self.tensors, &mut self.links);
            if let Some(Wait::Room(stream)) = *wait {
                self.links.await_room(stream);
            }
        } else {
            let lane = (actor - a.host_out) as usize;
            let (state, wait) = &mut self.host_out[lane];
            let described = &self.net.host_out[lane];
            if described.link == NONE {
                *wait = Some(Wait::Word(NONE));
                return Ok(());
            }
            *wait = host::drain(described, state, self.program, &mut self.tensors, &mut self.links);
            if let Some(Wait::Word(end)) = *wait {
                self.links.await_word(end);
            }
        }
        Ok(())
    }

    fn act_switch(&mut self, index: usize) {
        let node = &self.net.switches[index];
        let Some(route) = self.program.classes[node.class as usize].routes.get(&node.colour) else { return };
        let (state, wait) = &mut self.switches[index];
        *wait = switch::forward(node, route, state, &mut self.links);
        match *wait {
            Wait::Word(NONE) => {}
            Wait::Word(end) => self.links.await_word(end),
            Wait::Room(stream) => self.links.await_room(stream),
        }
    }

    fn act_pe(&mut self, index: u32) -> Result<(), SimError> {
        let Some(pe) = self.pes[index as usize].as_deref_mut() else { return Ok(()) };
        if pe.finished {
            return Ok(());
        }
        let class = &self.classes[self.net.class_of[index as usize] as usize];
        let ports = Ports::new(self.net, index);
        let activation = u64::from(self.spec.task_activation);
        match pe.run(class, &ports, &mut self.links, activation, &mut self.scratch) {
            Ok(None) => Ok(()),
            Ok(Some(time)) => {
                self.links.schedule(time, index);
                Ok(())
            }
            Err(fault) => {
                let (op, index, elements) = (fault.op, fault.index, fault.elements);
                Err(SimError::Bounds { at: ports.at, class: class.name.clone(), op, index, elements })
            }
        }
    }

    fn stuck(&self) -> usize {
        let pes = self.pes.iter().flatten().filter(|pe| !pe.finished).count();
        let lanes = self.host_in.iter().chain(&self.host_out).filter(|(lane, _)| !lane.finished).count();
        pes + lanes
    }

    /// The first actor that is not done.
    pub(super) fn first_stuck(&self) -> Option<u32> {
        let pe = self.pes.iter().position(|pe| pe.as_ref().is_some_and(|pe| !pe.finished)).map(|p| p as u32);
        let lane = |lanes: &[(LaneState, Option<Wait>)], first: u32| {
            lanes.iter().position(|(lane, _)| !lane.finished).map(|l| first + l as u32)
        };
        let feed = || lane(&self.host_in, self.actors.host_in);
        let drain = || lane(&self.host_out, self.actors.host_out);
        pe.or_else(feed).or_else(drain)
    }

    /// What an actor waits for.
    pub(super) fn waits_of(&self, actor: u32) -> Vec<Wait> {
        let a = self.actors;
        if actor < a.switches {
            return self.pes[actor as usize].as_ref().map(|pe| pe.waits.clone()).unwrap_or_default();
        }
        if actor < a.host_in {
            return vec![self.switches[(actor - a.switches) as usize].1];
        }
        let lanes = if actor < a.host_out { &self.host_in } else { &self.host_out };
        let first = if actor < a.host_out { a.host_in } else { a.host_out };
        lanes[(actor - first) as usize].1.into_iter().collect()
    }

    /// A readable name.
    pub(super) fn actor_name(&self, actor: u32) -> String {
        deadlock::name(self, actor)
    }
}
