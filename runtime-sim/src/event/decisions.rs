//! Decisions of a strip, which must wait for their time: who gets a shared link, and which PE chooses a task.

use super::links::{Decision, Links};
use std::cmp::Reverse;

impl Links<'_> {
    /// Asks for a decision at `time`.
    pub fn decide_at(&mut self, time: u64, decision: Decision) {
        self.decisions.push(Reverse((time, decision)));
    }

    /// The time of the next decision.
    pub fn next_decision(&self) -> Option<u64> {
        self.decisions.peek().map(|Reverse((time, _))| *time)
    }

    /// Takes all decisions of time `now`; tasks are chosen by their PEs, which are woken.
    pub fn decide(&mut self, now: u64) {
        self.clock = now;
        while let Some(&Reverse((time, decision))) = self.decisions.peek() {
            if time > now {
                return;
            }
            self.decisions.pop();
            match decision {
                Decision::Task(pe) => self.wake(pe),
                Decision::Link(link) => self.grant(link, now),
            }
        }
    }

    /// Lets the next word of a stream ask for shared link number `shared`, if there is one and it does not yet.
    pub fn request(&mut self, shared: u32) {
        let node = self.net.shared[shared as usize];
        let (stream, column) = self.arbiter.place(shared);
        let Some(flow) = self.flows[stream as usize].as_deref() else { return };
        let n = flow.passed[column as usize];
        if n == flow.passed[node.parent as usize] || !self.arbiter.enter(shared) {
            return;
        }
        let before = match node.parent {
            0 => 0,
            p => self.net.shared[(self.net.streams[stream as usize].first_shared + p - 1) as usize].latency,
        };
        let wish = flow.ring(node.parent)[n as usize & flow.mask].time + u64::from(node.latency - before);
        self.arbiter.ask(node.link, wish, shared);
        self.decide_at(wish, Decision::Link(node.link));
    }

    /// Gives a shared link to all who want it at `now`, in order of their wishes.
    fn grant(&mut self, link: u32, now: u64) {
        while let Some((time, shared)) = self.arbiter.grant(link, now) {
            let (stream, column) = self.arbiter.place(shared);
            let flow = self.flow_mut(stream);
            let n = flow.passed[column as usize];
            let at = (flow.mask + 1) * column as usize + (n as usize & flow.mask);
            flow.cells[at].time = time;
            flow.passed[column as usize] += 1;
            let waiting = flow.waiting > 0;
            let s = &self.net.streams[stream as usize];
            for next in s.first_shared..s.first_shared + s.shared {
                if next == shared || self.net.shared[next as usize].parent == column {
                    self.request(next);
                }
            }
            if waiting {
                self.wake_readers(stream, column);
            }
        }
    }
}
