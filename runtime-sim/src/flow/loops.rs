//! Loops of a PE: in bulk where their inputs are known, by extrapolation where two pieces in bulk or two iterations were
//! alike, and step by step otherwise. Loops within loops are looked at on every level: an outer loop whose iterations are
//! alike is done after two of them, whatever is inside.

use super::actor::Actor;
use super::pe::{Looping, Record};
use super::profile::Profile;
use crate::lower::{Code, Instr};
use std::rc::Rc;

impl Actor<'_, '_> {
    /// Goes on with the loop at `head`, of which an iteration has ended or none begun.
    pub fn iterate(&mut self, head: usize) {
        let last = self.close(head).map(Box::new);
        self.pe.looping = Some(Looping { head, last });
    }

    /// Does iterations of a loop in bulk, by extrapolation, or begins one more step by step. False if it must wait: a PE
    /// waits for the words of a whole iteration first, and does without only if nobody else can go on.
    pub fn go_on(&mut self, code: &Code, looping: Looping) -> bool {
        let head = looping.head;
        let Instr::Loop { depth, count, length, varies } = &code[head] else { return false };
        let (depth, end) = (*depth, head + length);
        let mut env = self.env();
        env.loops[depth] = 0;
        let n = count.at(&env).max(0);
        let plain = |i: &Instr| !matches!(i, Instr::Phase(_) | Instr::Activate(_) | Instr::Control { .. });
        if !varies && self.streams.exact.is_none() && code.within(head + 1..end).iter().all(plain) {
            if !self.bulk_iterations(code, head, end, depth, n) && !std::mem::take(&mut self.pe.hurried) {
                self.pe.looping = Some(looping);
                return false;
            }
            self.repeat_or_record(looping, n, depth);
        }
        if self.pe.loops[depth] < n {
            self.pe.pc = head + 1;
        } else {
            self.pe.pc = end + 1;
            self.pe.profiles.retain(|(of, _)| *of != head);
            self.pe.beats.retain(|beat| beat.head != head);
        }
        true
    }

    /// False if words are missing that others may still send.
    fn bulk_iterations(&mut self, code: &Code, head: usize, end: usize, depth: usize, n: i64) -> bool {
        if self.pe.loops[depth] + 1 >= n {
            return true;
        }
        let profile = self.profile(code, head, end);
        while self.pe.loops[depth] < n {
            let left = (n - self.pe.loops[depth]) as u64;
            let runs = self.piece(head, &profile, self.pe.loops[depth] as u64, left);
            if runs == 0 {
                self.wait_for_any(&profile);
                return false;
            }
            self.pe.loops[depth] += runs as i64;
        }
        true
    }

    /// What an iteration does undisturbed; counts are the same in all iterations of the running loop.
    fn profile(&mut self, code: &Code, head: usize, end: usize) -> Rc<Profile> {
        if let Some((_, profile)) = self.pe.profiles.iter().find(|(of, _)| *of == head) {
            return Rc::clone(profile);
        }
        let profile = Rc::new(Profile::of(code, head + 1..end, &mut self.env()));
        self.pe.profiles.push((head, Rc::clone(&profile)));
        profile
    }

    /// Ends the record of the iteration of the loop at `head`, if there is one.
    fn close(&mut self, head: usize) -> Option<Record> {
        let mut record = self.pe.records.pop_if(|record| record.head == head)?;
        record.length = self.pe.time - record.start;
        Some(record)
    }

    /// Does the remaining iterations like the last one, if that was like the one before; otherwise begins the record of
    /// the next.
    fn repeat_or_record(&mut self, looping: Looping, n: i64, depth: usize) {
        let left = n - self.pe.loops[depth];
        // Iterations in bulk are none that the last one could be compared with.
        let mut last = looping.last.filter(|last| last.iteration + 1 == self.pe.loops[depth]);
        if let Some(last) = last.as_ref().filter(|last| left >= 2 && !last.reads.is_empty() && last.repeats())
        {
            self.repeat(last, left as u64);
            self.pe.loops[depth] += left;
        } else if left > 0 {
            if let Some(last) = &mut last {
                last.before = None;
            }
            let (start, spent) = (self.pe.time, (self.pe.busy, self.pe.issue));
            let (iteration, before, head) = (self.pe.loops[depth], last, looping.head);
            let held = self.pe.held.entries.len();
            self.pe.records.push(Record { head, iteration, start, spent, held, before, ..Record::default() });
        }
    }
}
