//! What a PE works with: its streams, its memory, its tasks, and what it notes.

use super::cause::Causes;
use super::jit::Compiled;
use super::links::Links;
use super::ops::Scratch;
use super::trace::Tracer;
use crate::lower::LoweredClass;
use crate::network::{NONE, Network};
use crate::program::Coord;
use std::collections::{BTreeMap, VecDeque};

/// How often a task ran, and how often it has been activated beyond that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    /// Runs done.
    pub done: u64,
    /// Activations beyond those.
    pub pending: u64,
}

/// Control words that no task has handled yet, by PE and input slot: when and why they came.
pub type Controls = BTreeMap<(u32, usize), VecDeque<(u64, Causes)>>;

/// The streams of one PE.
#[derive(Clone, Copy)]
pub struct Ports<'a> {
    net: &'a Network,
    /// Its index.
    pub pe: u32,
    /// Where it is.
    pub at: Coord,
}

impl<'a> Ports<'a> {
    /// Those of PE `pe`.
    pub fn new(net: &'a Network, pe: u32) -> Self {
        Ports { net, pe, at: net.coord(pe) }
    }

    /// The end behind an input slot.
    pub fn input(&self, slot: usize) -> u32 {
        self.net.input(self.pe as usize, slot)
    }

    /// The stream behind an output slot.
    pub fn output(&self, slot: usize) -> u32 {
        self.net.output(self.pe as usize, slot)
    }
}

/// What a PE works with.
pub struct Cx<'s, 'a> {
    /// Its streams.
    pub ports: Ports<'a>,
    /// Its class.
    pub class: &'a LoweredClass,
    /// All words under way.
    pub links: &'s mut Links<'a>,
    /// Buffers shared by all ops.
    pub scratch: &'s mut Scratch,
    /// Its memory.
    pub memory: &'s mut [u8],
    /// Its tasks.
    pub runs: &'s mut [Runs],
    /// Control words set aside.
    pub controls: &'s mut Controls,
    /// Why its time is what it is.
    pub causes: &'s mut Causes,
    /// Cycles to start a task.
    pub activation: u64,
    /// Compiled ops.
    pub compiled: Option<&'s Compiled>,
    /// Where what it does is noted, if it is.
    pub tracer: Option<&'s mut Tracer>,
}

impl Cx<'_, '_> {
    /// The end behind an input slot, after setting aside control words that come next there.
    pub fn data(&mut self, slot: usize) -> u32 {
        let end = self.ports.input(slot);
        if end == NONE {
            return NONE;
        }
        while let Some(word) = self.links.front(end).filter(|word| word.kind.control) {
            let causes = self.links.arrival_causes(end);
            self.links.take(end, word.time, causes);
            self.controls.entry((self.ports.pe, slot)).or_default().push_back((word.time, causes));
        }
        end
    }
}
