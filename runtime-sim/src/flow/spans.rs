//! When the first PE enters each phase, and when the last one leaves it.

use super::pe::Pe;

/// All phases of a run.
#[derive(Clone, Debug)]
pub struct Spans {
    /// By phase: first entry and last exit so far.
    spans: Vec<(f64, f64)>,
    /// Whether PEs keep the phases of the whole run, and not only those of the stretch that they are in.
    pub keeps: bool,
}

impl Spans {
    /// So many phases that nobody has entered.
    pub fn new(phases: usize) -> Self {
        Spans { spans: vec![(f64::INFINITY, 0.0); phases], keeps: false }
    }

    /// A PE leaves the phase it is in, if it is in one, for another.
    pub fn enter(&mut self, pe: &mut Pe, phase: u16, time: f64) {
        self.cross(pe, phase, time);
        pe.phases.push((phase, time));
    }

    /// A PE enters a phase in a stretch in which it only does what another one did.
    pub fn enter_behind(&mut self, pe: &mut Pe, phase: u16, time: f64) {
        self.cross(pe, phase, time);
        if self.keeps {
            pe.phases.push((phase, time));
        }
    }

    fn cross(&mut self, pe: &mut Pe, phase: u16, time: f64) {
        self.leave(pe, time);
        let first = &mut self.spans[usize::from(phase)].0;
        *first = first.min(time);
        pe.phase = Some(phase);
    }

    fn leave(&mut self, pe: &Pe, time: f64) {
        if let Some(phase) = pe.phase {
            let last = &mut self.spans[usize::from(phase)].1;
            *last = last.max(time);
        }
    }

    /// By phase: first entry and last exit, once these PEs have come to their ends. Of a phase that nobody entered the first is
    /// infinite.
    pub fn ended<'p>(&self, pes: impl Iterator<Item = &'p Pe>) -> Vec<(f64, f64)> {
        let mut ended = self.clone();
        pes.for_each(|pe| ended.leave(pe, pe.time));
        ended.spans
    }
}
