//! Words under way: what was sent, when it arrives, and how full the queues are.
//!
//! Times obey a max-plus recurrence. Word `i` of a stream arrives a constant after it was sent; it may be sent once
//! word `i - depth` has been taken at every end. Links shared by several colours are servers of one word per cycle.

use crate::fabric::FabricSpec;
use crate::network::{End, Network, Origin, Target};
use crate::program::Command;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// One word in a stream's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// The 32 bits.
    pub value: u32,
    /// Whether it is a pure control word, which processors do not see as data.
    pub control: bool,
    /// What it does to switches.
    pub command: Option<Command>,
    /// Ends that have not taken it yet.
    left: u32,
}

/// What is sent as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// 32 bits.
    Data(u32),
    /// 32 bits that may also command switches.
    Last(u32, Option<Command>),
    /// A command without data.
    Control(Command),
}

impl Word {
    /// The same content, to be sent on.
    pub fn content(&self) -> Content {
        match self.command {
            Some(command) if self.control => Content::Control(command),
            command => Content::Last(self.value, command),
        }
    }
}

/// Room for one future word.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Ends that have made room.
    released: u32,
    /// When the last of them did.
    time: u64,
}

/// State of a stream.
#[derive(Debug, Default)]
struct Flow {
    words: VecDeque<Word>,
    times: VecDeque<u64>,
    slots: VecDeque<Slot>,
    base: u64,
    sent: u64,
    waiting_ends: u32,
    sender_waits: bool,
}

/// State of an end.
#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    taken: u64,
    waits: bool,
}

/// All words under way and the calendar of who is to act when.
pub struct Links<'a> {
    net: &'a Network,
    flows: Vec<Flow>,
    readers: Vec<Reader>,
    /// Depths of the ends of each stream, ascending; parallel to `net.ends`.
    depths: Vec<u32>,
    servers: Vec<Server>,
    per_cycle: u64,
    calendar: BinaryHeap<Reverse<(u64, u32)>>,
    /// Time of the entry of the calendar being handled.
    pub clock: u64,
}

/// Actors in one numbering: PEs, switches, host inputs, host outputs.
#[derive(Clone, Copy, Debug)]
pub struct Actors {
    /// First switch.
    pub switches: u32,
    /// First host input lane.
    pub host_in: u32,
    /// First host output lane.
    pub host_out: u32,
    /// One past the last.
    pub end: u32,
}

impl Actors {
    /// Numbers the actors of a network.
    pub fn of(net: &Network) -> Actors {
        let switches = net.class_of.len() as u32;
        let host_in = switches + net.switches.len() as u32;
        let host_out = host_in + net.host_in.len() as u32;
        Actors { switches, host_in, host_out, end: host_out + net.host_out.len() as u32 }
    }

    /// The actor that sends for `origin`.
    pub fn sender(&self, origin: Origin) -> u32 {
        match origin {
            Origin::Pe(pe) => pe,
            Origin::Switch(s, _) => self.switches + s,
            Origin::Host(h) => self.host_in + h,
        }
    }

    /// The actor that receives for `target`.
    pub fn receiver(&self, target: Target) -> u32 {
        match target {
            Target::Pe(pe) => pe,
            Target::Switch(s, _) => self.switches + s,
            Target::Host(h) => self.host_out + h,
        }
    }
}

impl<'a> Links<'a> {
    /// Empty streams.
    pub fn new(net: &'a Network, spec: &FabricSpec) -> Self {
        let mut depths: Vec<u32> = net.ends.iter().map(|e| e.depth).collect();
        for s in &net.streams {
            depths[s.first_end as usize..(s.first_end + s.ends) as usize].sort_unstable();
        }
        let mut flows = Vec::new();
        flows.resize_with(net.streams.len(), Flow::default);
        let mut servers = Vec::new();
        servers.resize_with(net.shared_links as usize, Server::default);
        let readers = vec![Reader::default(); net.ends.len()];
        let per_cycle = u64::from(spec.link_words_per_cycle.max(1));
        Links { net, flows, readers, depths, servers, per_cycle, calendar: BinaryHeap::new(), clock: 0 }
    }

    /// Lets `actor` act at `time`.
    pub fn schedule(&mut self, time: u64, actor: u32) {
        self.calendar.push(Reverse((time, actor)));
    }

    /// The next actor to act; the clock moves to its time.
    pub fn next(&mut self) -> Option<u32> {
        let Reverse((time, actor)) = self.calendar.pop()?;
        self.clock = self.clock.max(time);
        Some(actor)
    }

    /// When the `ahead`-th next word of the stream may leave at the earliest; `None` while queues are full.
    pub fn room(&self, stream: u32, ahead: usize) -> Option<u64> {
        let s = &self.net.streams[stream as usize];
        let flow = &self.flows[stream as usize];
        let depths = &self.depths[s.first_end as usize..(s.first_end + s.ends) as usize];
        let index = flow.sent + ahead as u64;
        let needed = match (depths.first(), depths.last()) {
            (Some(&least), _) if index < u64::from(least) => return Some(0),
            (_, Some(&most)) if index >= u64::from(most) => s.ends,
            _ => depths.partition_point(|&d| u64::from(d) <= index) as u32,
        };
        match flow.slots.get(ahead) {
            Some(slot) if slot.released >= needed => Some(slot.time),
            None if needed == 0 => Some(0),
            _ => None,
        }
    }

    /// Marks that the sender wants to be woken when there is room.
    pub fn await_room(&mut self, stream: u32) {
        self.flows[stream as usize].sender_waits = true;
    }

    /// Sends a word that leaves its source at `time`.
    pub fn send(&mut self, stream: u32, time: u64, content: Content) {
        let net = self.net;
        let s = &net.streams[stream as usize];
        if s.ends == 0 {
            return;
        }
        let flow = &mut self.flows[stream as usize];
        let (value, control, command) = match content {
            Content::Data(value) => (value, false, None),
            Content::Last(value, command) => (value, false, command),
            Content::Control(command) => (0, true, Some(command)),
        };
        flow.words.push_back(Word { value, control, command, left: s.ends });
        flow.sent += 1;
        flow.slots.pop_front();
        let row = flow.times.len();
        flow.times.push_back(time);
        for shared in &net.shared[s.first_shared as usize..(s.first_shared + s.shared) as usize] {
            let (start, before) = match shared.parent {
                0 => (time, 0),
                p => (flow.times[row + p as usize], net.shared[(s.first_shared + p - 1) as usize].latency),
            };
            let wish = start + u64::from(shared.latency - before);
            let granted = self.servers[shared.link as usize].grant(wish, self.per_cycle, self.clock);
            flow.times.push_back(granted);
        }
        if flow.waiting_ends > 0 {
            self.wake_readers(stream);
        }
    }

    fn wake_readers(&mut self, stream: u32) {
        let s = &self.net.streams[stream as usize];
        let actors = Actors::of(self.net);
        for end in s.first_end..s.first_end + s.ends {
            if self.readers[end as usize].waits {
                self.readers[end as usize].waits = false;
                let time = self.front(end).map_or(self.clock, |(t, _)| t);
                self.schedule(time, actors.receiver(self.net.ends[end as usize].target));
            }
        }
        self.flows[stream as usize].waiting_ends = 0;
    }

    /// The next word at an end and when it is readable there.
    #[inline]
    pub fn front(&self, end: u32) -> Option<(u64, Word)> {
        self.ahead(end, 0)
    }

    /// The word after `n` others at an end.
    #[inline]
    pub fn ahead(&self, end: u32, n: u64) -> Option<(u64, Word)> {
        let e: &End = &self.net.ends[end as usize];
        let flow = &self.flows[e.stream as usize];
        let place = (self.readers[end as usize].taken + n - flow.base) as usize;
        let word = *flow.words.get(place)?;
        let s = &self.net.streams[e.stream as usize];
        let time = flow.times[place * (1 + s.shared as usize) + e.column as usize];
        let before = match e.column {
            0 => 0,
            c => self.net.shared[(s.first_shared + c - 1) as usize].latency,
        };
        Some((time + u64::from(e.latency - before), word))
    }

    /// Takes the next word at an end at `time`.
    pub fn take(&mut self, end: u32, time: u64) {
        let e = self.net.ends[end as usize];
        let s = &self.net.streams[e.stream as usize];
        let reader = &mut self.readers[end as usize];
        let index = reader.taken;
        reader.taken += 1;
        let flow = &mut self.flows[e.stream as usize];
        flow.words[(index - flow.base) as usize].left -= 1;
        while flow.words.front().is_some_and(|w| w.left == 0) {
            flow.words.pop_front();
            flow.times.drain(..1 + s.shared as usize);
            flow.base += 1;
        }
        let place = (index + u64::from(e.depth) - flow.sent) as usize;
        if flow.slots.len() <= place {
            flow.slots.resize(place + 1, Slot::default());
        }
        let slot = &mut flow.slots[place];
        slot.released += 1;
        slot.time = slot.time.max(time + 1);
        if flow.sender_waits && place <= 1 && self.room(e.stream, 0).is_some() {
            self.flows[e.stream as usize].sender_waits = false;
            self.schedule(time + 1, Actors::of(self.net).sender(s.origin));
        }
    }

    /// Marks that the reader wants to be woken when a word comes.
    pub fn await_word(&mut self, end: u32) {
        let reader = &mut self.readers[end as usize];
        if !reader.waits {
            reader.waits = true;
            self.flows[self.net.ends[end as usize].stream as usize].waiting_ends += 1;
        }
    }

    /// Words sent so far.
    pub fn sent(&self, stream: u32) -> u64 {
        self.flows[stream as usize].sent
    }

    /// Words taken so far at an end.
    pub fn taken(&self, end: u32) -> u64 {
        self.readers[end as usize].taken
    }
}

/// A shared link: grants each word the first free place in time.
#[derive(Debug, Default)]
struct Server {
    /// Occupied places, as disjoint ascending ranges.
    busy: VecDeque<(u64, u64)>,
}

impl Server {
    /// The first free cycle from `wish` on, which is then occupied. Nothing before `horizon` is asked for any more.
    fn grant(&mut self, wish: u64, per_cycle: u64, horizon: u64) -> u64 {
        while self.busy.front().is_some_and(|&(_, end)| end < horizon * per_cycle) {
            self.busy.pop_front();
        }
        let mut place = wish * per_cycle;
        let mut at = self.busy.partition_point(|&(_, end)| end < place);
        while let Some(&(start, end)) = self.busy.get(at) {
            if place < start {
                break;
            }
            place = place.max(end);
            if self.busy.get(at + 1).is_none_or(|&(next, _)| place < next) {
                self.busy[at].1 = place + 1;
                self.join(at);
                return place / per_cycle;
            }
            at += 1;
        }
        self.busy.insert(at, (place, place + 1));
        self.join(at);
        place / per_cycle
    }

    /// Merges the range at `at` with the one after it if they touch.
    fn join(&mut self, at: usize) {
        if let (Some(&(_, end)), Some(&(next, last))) = (self.busy.get(at), self.busy.get(at + 1))
            && end == next
        {
            self.busy[at].1 = last;
            self.busy.remove(at + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_link_gives_each_cycle_once() {
        let mut server = Server::default();
        let granted: Vec<u64> = [5, 5, 3, 4, 4, 9, 3].iter().map(|&w| server.grant(w, 1, 0)).collect();
        assert_eq!(granted, [5, 6, 3, 4, 7, 9, 8]);
    }
}
