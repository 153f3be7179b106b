//! Room in the queues of a strip: who takes words makes room, and who waits for room is told, here or in another strip.

use super::cause::{Cause, Causes};
use super::links::{Links, Message};

impl Links<'_> {
    /// Words that may be sent now.
    pub fn room(&mut self, stream: u32) -> u64 {
        let flow = self.flow_mut(stream);
        flow.open - flow.sent()
    }

    /// When the next word may leave at the earliest; `None` while queues are full.
    pub fn next_room(&mut self, stream: u32) -> Option<u64> {
        let flow = self.flow_mut(stream);
        (flow.open > flow.sent()).then(|| flow.cells[flow.sent() as usize & flow.mask].free)
    }

    /// Marks that the sender wants to be woken when there is room.
    pub fn await_room(&mut self, stream: u32) {
        self.flow_mut(stream).sender_waits = true;
    }

    /// Causes of the room for the next word of a stream.
    pub fn room_causes(&self, stream: u32) -> Causes {
        let flow = self.flows[stream as usize].as_deref().filter(|_| self.with_causes);
        flow.map_or(Causes::default(), |flow| flow.room_causes(flow.sent()))
    }

    /// Takes the next word at an end at `time`.
    pub fn take(&mut self, end: u32, time: u64, causes: Causes) {
        let e = self.net.ends[end as usize];
        let n = self.readers[end as usize].taken + u64::from(e.depth);
        self.readers[end as usize].taken += 1;
        let flow = self.flow_mut(e.stream);
        flow.release(n, time + 1);
        flow.explain_room(n, time + 1, causes.and(Cause::Queue, 1));
        self.released(end);
    }

    /// Takes `words` words at an end per step, in steps that begin at `starts`.
    pub fn take_steps(&mut self, end: u32, words: u64, starts: &[u64]) {
        let e = self.net.ends[end as usize];
        let mut n = self.readers[end as usize].taken + u64::from(e.depth);
        self.readers[end as usize].taken += words * starts.len() as u64;
        let flow = self.flow_mut(e.stream);
        for start in starts {
            for _ in 0..words {
                flow.release(n, start + 1);
                n += 1;
            }
        }
        self.released(end);
    }

    /// Says why the room behind the last `words` words taken at an end, free from `time` on, is free then.
    pub fn explain_taken(&mut self, end: u32, words: u64, time: u64, causes: Causes) {
        let e = self.net.ends[end as usize];
        let until = self.readers[end as usize].taken + u64::from(e.depth);
        let flow = self.flow_mut(e.stream);
        (until - words..until).for_each(|n| flow.explain_room(n, time, causes));
    }

    /// Tells the sender of the stream behind an end that there may be more room.
    fn released(&mut self, end: u32) {
        let e = self.net.ends[end as usize];
        let until = self.readers[end as usize].taken + u64::from(e.depth);
        let Some(flow) = self.flows[e.stream as usize].as_deref_mut() else { return };
        let before = flow.open;
        flow.reopen(until);
        if self.plan.strips() > 1 {
            let (from, home) = (self.own, self.home(e.stream));
            let Some(flow) = self.flows[e.stream as usize].as_deref().filter(|_| from != home) else {
                return self.wake_sender(e.stream);
            };
            let time = |n: u64| flow.cells[n as usize & flow.mask].free;
            let rooms = (before..flow.open).map(|n| Message::Room { stream: e.stream, from, time: time(n) });
            self.outbox[usize::from(home)].extend(rooms);
            return;
        }
        self.wake_sender(e.stream);
    }

    /// Wakes the sender of a stream if it waits for room that is there.
    pub fn wake_sender(&mut self, stream: u32) {
        let flow = self.flow_mut(stream);
        if flow.sender_waits && flow.open > flow.sent() {
            flow.sender_waits = false;
            self.wake(self.plan.actors.sender(self.net.streams[stream as usize].origin));
        }
    }
}
