//! A strip of rows: its PEs, switches and lanes, which run until nothing in it can go on.

use super::cause::Causes;
use super::engine::Setup;
use super::host::{self, LaneState};
use super::links::Links;
use super::ops::{OpFault, Scratch, Wait};
use super::pe::Pe;
use super::ports::{Controls, Cx, Ports, Runs};
use super::switch::{self, SwitchState};
use super::trace::Tracer;
use crate::network::{NOBODY, NONE};
use std::ops::Range;

/// State of a strip.
pub struct Strip<'a> {
    setup: &'a Setup<'a>,
    /// Words under way.
    pub links: Links<'a>,
    first_pe: u32,
    /// PEs of its rows, also those without a class.
    pub pes: Vec<Pe>,
    /// Where each PE's memory begins, and the end.
    memory_at: Vec<usize>,
    memory: Vec<u8>,
    runs_at: Vec<u32>,
    runs: Vec<Runs>,
    controls: Controls,
    causes: Vec<Causes>,
    /// Switches of the whole grid; those of other strips stay as they are.
    pub switches: Vec<SwitchState>,
    /// Host lanes that feed, likewise.
    pub host_in: Vec<LaneState>,
    /// Host lanes that drain, likewise.
    pub host_out: Vec<LaneState>,
    scratch: Scratch,
    /// Accesses beyond a buffer: when, at which PE.
    pub faults: Vec<(u64, u32, OpFault)>,
    /// What happened when, if that is wanted.
    pub tracer: Option<Tracer>,
}

impl<'a> Strip<'a> {
    /// Strip `own` before the start.
    pub fn new(setup: &'a Setup<'a>, own: u16) -> Self {
        let (net, plan) = (setup.net, setup.plan);
        let rows = plan.first_row[usize::from(own)]..plan.first_row[usize::from(own) + 1];
        let pes = rows.start * net.width..rows.end * net.width;
        let per_cycle = u64::from(setup.spec.link_words_per_cycle);
        let explained = setup.options.critical_path;
        let mut strip = Strip {
            setup,
            links: Links::new(net, plan, own, per_cycle, setup.options),
            first_pe: pes.start,
            pes: Vec::with_capacity(pes.len()),
            memory_at: Vec::with_capacity(pes.len() + 1),
            memory: Vec::new(),
            runs_at: Vec::with_capacity(pes.len() + 1),
            runs: Vec::new(),
            controls: Controls::new(),
            causes: vec![Causes::default(); if explained { pes.len() } else { 1 }],
            switches: vec![SwitchState::default(); net.switches.len()],
            host_in: vec![LaneState::default(); net.host_in.len()],
            host_out: vec![LaneState::default(); net.host_out.len()],
            scratch: Scratch::default(),
            faults: Vec::new(),
            tracer: setup.options.trace.then(|| Tracer::new(setup.net)),
        };
        strip.links.histogram = strip.tracer.is_some().then(Default::default);
        strip.furnish(pes);
        strip.wake_all(own);
        strip
    }

    /// Gives each PE its memory and its tasks.
    fn furnish(&mut self, pes: Range<u32>) {
        let (mut memory, mut runs) = (0usize, 0u32);
        for pe in pes {
            self.memory_at.push(memory);
            self.runs_at.push(runs);
            self.pes.push(Pe::default());
            if let Some(class) = self.class(pe) {
                let class = &self.setup.classes[class];
                memory += (class.memory as usize).next_multiple_of(8);
                runs += class.tasks.len() as u32;
            }
        }
        self.memory_at.push(memory);
        self.runs_at.push(runs);
        self.memory = vec![0; memory];
        self.runs = vec![Runs::default(); runs as usize];
    }

    fn wake_all(&mut self, own: u16) {
        let (net, plan) = (self.setup.net, self.setup.plan);
        for index in 0..self.pes.len() as u32 {
            let pe = self.first_pe + index;
            match self.class(pe) {
                Some(class) if !self.setup.classes[class].tasks.is_empty() => self.links.wake(pe),
                _ => self.pes[index as usize].finished = true,
            }
        }
        for actor in plan.actors.switches..plan.actors.end {
            if plan.strip_of(net, actor) == own {
                self.links.wake(actor);
            }
        }
    }

    fn class(&self, pe: u32) -> Option<usize> {
        let class = self.setup.net.class_of[pe as usize];
        (class != NOBODY).then_some(usize::from(class))
    }

    /// Its PEs that have a class, with their numbers and classes.
    pub fn members(&self) -> impl Iterator<Item = (u32, usize, &Pe)> {
        let pes = (self.first_pe..).zip(&self.pes);
        pes.filter_map(|(index, pe)| Some((index, self.class(index)?, pe)))
    }

    /// Memory of a PE.
    pub fn memory_of(&self, pe: u32) -> &[u8] {
        let index = (pe - self.first_pe) as usize;
        &self.memory[self.memory_at[index]..self.memory_at[index + 1]]
    }

    /// Memory of a PE.
    pub fn memory_of_mut(&mut self, pe: u32) -> &mut [u8] {
        let index = (pe - self.first_pe) as usize;
        &mut self.memory[self.memory_at[index]..self.memory_at[index + 1]]
    }

    /// A PE.
    pub fn pe(&self, pe: u32) -> &Pe {
        &self.pes[(pe - self.first_pe) as usize]
    }

    /// Causes of a PE's time.
    pub fn causes_of(&self, pe: u32) -> Causes {
        self.causes.get((pe - self.first_pe) as usize).copied().unwrap_or_default()
    }

    /// Runs until nothing can go on before a decision or a message.
    pub fn go(&mut self) {
        while let Some(actor) = self.links.work.next() {
            self.act(actor);
        }
    }

    /// Lets an actor run; returns what it waits for.
    pub fn act(&mut self, actor: u32) -> &[Wait] {
        let a = self.setup.plan.actors;
        if actor < a.switches {
            self.act_pe(actor);
            return &self.scratch.waits;
        }
        let wait = if actor < a.host_in {
            self.act_switch((actor - a.switches) as usize)
        } else if actor < a.host_out {
            let lane = (actor - a.host_in) as usize;
            let (program, tensors) = (self.setup.program, self.setup.tensors);
            host::feed(
                &self.setup.net.host_in[lane],
                &mut self.host_in[lane],
                program,
                tensors,
                &mut self.links,
            )
        } else {
            let lane = (actor - a.host_out) as usize;
            let (program, tensors) = (self.setup.program, self.setup.tensors);
            let described = &self.setup.net.host_out[lane];
            host::drain(described, &mut self.host_out[lane], program, tensors, &mut self.links)
        };
        self.scratch.waits.clear();
        self.scratch.waits.extend(wait);
        match wait {
            Some(Wait::Word(end)) if end != NONE => self.links.await_word(end),
            Some(Wait::Room(stream)) => self.links.await_room(stream),
            _ => {}
        }
        &self.scratch.waits
    }

    fn act_switch(&mut self, index: usize) -> Option<Wait> {
        let node = &self.setup.net.switches[index];
        let route = self.setup.program.classes[usize::from(node.class)].routes.get(&node.colour)?;
        Some(switch::forward(node, route, &mut self.switches[index], &mut self.links))
    }

    fn act_pe(&mut self, pe: u32) {
        let index = (pe - self.first_pe) as usize;
        let Some(class) = self.class(pe).filter(|_| !self.pes[index].finished) else { return };
        let causes = if self.causes.len() > 1 { index } else { 0 };
        let runs = self.runs_at[index] as usize..self.runs_at[index + 1] as usize;
        let mut cx = Cx {
            ports: Ports::new(self.setup.net, pe),
            class: &self.setup.classes[class],
            links: &mut self.links,
            scratch: &mut self.scratch,
            memory: &mut self.memory[self.memory_at[index]..self.memory_at[index + 1]],
            runs: &mut self.runs[runs],
            controls: &mut self.controls,
            causes: &mut self.causes[causes],
            activation: u64::from(self.setup.spec.task_activation),
            compiled: self.setup.compiled.as_ref(),
            tracer: self.tracer.as_mut().filter(|tracer| tracer.follows(pe)),
        };
        if let Err(fault) = self.pes[index].run(&mut cx) {
            self.pes[index].finished = true;
            self.faults.push((self.pes[index].time, pe, fault));
        }
    }
}

#[cfg(test)]
impl Strip<'_> {
    /// Bytes that are held beside the memories of the PEs.
    pub fn held_bytes(&self) -> usize {
        size_of_val(&self.pes[..])
            + size_of_val(&self.memory_at[..])
            + size_of_val(&self.runs_at[..])
            + size_of_val(&self.runs[..])
            + size_of_val(&self.causes[..])
            + self.links.held_bytes()
    }
}
