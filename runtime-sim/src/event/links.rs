//! Words under way in one strip: who reads and writes which stream, who waits, and what must wait for its time.
//!
//! PEs run as far ahead as their words allow, in any order. Only two things depend on the order of time, which of
//! several tasks is ready first and who gets a shared link. They are *decisions* (`decisions.rs`): each is taken when
//! nothing else can go on and none is earlier, for then nothing can happen any more that would change it.

use super::arbiter::Arbiter;
use super::cause::Causes;
use super::engine::Options;
use super::flow::{Flow, Kind};
use super::plan::Plan;
use super::trace::Histogram;
use super::worklist::Worklist;
use crate::network::{NONE, Network};
use crate::program::Command;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One word at an end.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// When it can be read.
    pub time: u64,
    /// The 32 bits.
    pub value: u32,
    /// What else it is.
    pub kind: Kind,
}

/// State of an end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// Words taken.
    pub taken: u64,
    /// Whether the reader waits for words.
    pub waits: bool,
}

/// What a strip tells another.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// A word was sent.
    Word { stream: u32, time: u64, value: u32, kind: Kind },
    /// There is room for one more word at all ends of strip `from`.
    Room { stream: u32, from: u16, time: u64 },
}

/// What must wait for its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// A PE chooses a task.
    Task(u32),
    /// A shared link takes a word.
    Link(u32),
}

/// All words under way in a strip.
pub struct Links<'a> {
    /// The network.
    pub net: &'a Network,
    /// Who is where.
    pub plan: &'a Plan,
    /// The strip.
    pub own: u16,
    /// By stream, once anything happened on it.
    pub flows: Vec<Option<Box<Flow>>>,
    /// By end.
    pub readers: Vec<Reader>,
    /// Actors that can go on.
    pub work: Worklist,
    /// Who asks for shared links.
    pub arbiter: Arbiter,
    /// What must wait, by time.
    pub decisions: BinaryHeap<Reverse<(u64, Decision)>>,
    /// Messages to each strip.
    pub outbox: Vec<Vec<Message>>,
    /// Time up to which all decisions are taken.
    pub clock: u64,
    /// Whether causes are kept.
    pub with_causes: bool,
    /// Words sent over time, if that is wanted.
    pub histogram: Option<Histogram>,
}

impl<'a> Links<'a> {
    /// Empty streams of strip `own`.
    pub fn new(net: &'a Network, plan: &'a Plan, own: u16, per_cycle: u64, options: &Options) -> Self {
        let rows = (plan.first_row[usize::from(own)], plan.first_row[usize::from(own) + 1]);
        let mut flows = Vec::new();
        flows.resize_with(net.streams.len(), || None);
        Links {
            net,
            plan,
            own,
            flows,
            readers: vec![Reader::default(); net.ends.len()],
            work: Worklist::new(rows.0, rows.1, plan.actors.end, options.shuffle),
            arbiter: Arbiter::new(net, per_cycle),
            decisions: BinaryHeap::new(),
            outbox: vec![Vec::new(); plan.strips()],
            clock: 0,
            with_causes: options.critical_path,
            histogram: None,
        }
    }

    /// Lets an actor of this strip run.
    pub fn wake(&mut self, actor: u32) {
        let row = self.plan.actors.place(self.net, actor) / self.net.width.max(1);
        self.work.add(actor, row);
    }

    /// The strip in which a stream begins.
    pub fn home(&self, stream: u32) -> u16 {
        self.plan.strip_of(self.net, self.plan.actors.sender(self.net.streams[stream as usize].origin))
    }

    /// The state of a stream, which begins here if it has none yet.
    pub fn flow_mut(&mut self, stream: u32) -> &mut Flow {
        let (net, plan, own) = (self.net, self.plan, self.own);
        if self.flows[stream as usize].is_none() {
            let strip_of = |end: u32| plan.strip_of(net, plan.actors.receiver(net.ends[end as usize].target));
            let flow = Flow::new(net, stream, own, self.home(stream), &strip_of, self.with_causes);
            self.flows[stream as usize] = Some(Box::new(flow));
        }
        self.flows[stream as usize].get_or_insert_default()
    }

    /// The state of a stream, if anything happened on it.
    pub fn flow(&self, stream: u32) -> Option<&Flow> {
        self.flows[stream as usize].as_deref()
    }

    /// Sends a word that leaves its source at `time`.
    pub fn send(&mut self, stream: u32, time: u64, value: u32, kind: Kind, causes: Causes) {
        let flow = self.flow_mut(stream);
        flow.push(time, value);
        flow.mark(kind);
        flow.explain_word(causes);
        self.publish(stream, 1);
    }

    /// Makes the last `count` words of a stream known.
    pub fn publish(&mut self, stream: u32, count: u64) {
        let Some(flow) = self.flows[stream as usize].as_deref() else { return };
        if let Some(histogram) = &mut self.histogram {
            let time = |n: u64| flow.cells[n as usize & flow.mask].time;
            (flow.sent() - count..flow.sent()).for_each(|n| histogram.add(stream, time(n), 1));
        }
        for replica in &flow.replicas {
            for n in flow.sent() - count..flow.sent() {
                let cell = flow.cells[n as usize & flow.mask];
                let word = Message::Word { stream, time: cell.time, value: cell.value, kind: flow.kind(n) };
                self.outbox[usize::from(replica.strip)].push(word);
            }
        }
        if flow.waiting > 0 {
            self.wake_readers(stream, 0);
        }
        let s = &self.net.streams[stream as usize];
        for shared in s.first_shared..s.first_shared + s.shared {
            if self.net.shared[shared as usize].parent == 0 {
                self.request(shared);
            }
        }
    }

    /// Wakes those who wait for words of a stream behind shared link number `column`.
    pub fn wake_readers(&mut self, stream: u32, column: u32) {
        let s = &self.net.streams[stream as usize];
        let mut woken = 0;
        for end in s.first_end..s.first_end + s.ends {
            let e = &self.net.ends[end as usize];
            if self.readers[end as usize].waits && e.column == column {
                self.readers[end as usize].waits = false;
                woken += 1;
                self.wake(self.plan.actors.receiver(e.target));
            }
        }
        self.flow_mut(stream).waiting -= woken;
    }

    /// Words that have come to an end and are not taken, control words among them.
    pub fn available(&self, end: u32) -> u64 {
        let e = &self.net.ends[end as usize];
        let flow = self.flows[e.stream as usize].as_deref();
        flow.map_or(0, |flow| flow.passed[e.column as usize] - self.readers[end as usize].taken)
    }

    /// Cycles from the source, or the last shared link on the way, to an end.
    pub fn way(&self, end: u32) -> u64 {
        let e = &self.net.ends[end as usize];
        let before = match e.column {
            0 => 0,
            c => {
                let first = self.net.streams[e.stream as usize].first_shared;
                self.net.shared[(first + c - 1) as usize].latency
            }
        };
        u64::from(e.latency - before)
    }

    /// The next word at an end.
    pub fn front(&self, end: u32) -> Option<Word> {
        if self.available(end) == 0 {
            return None;
        }
        let e = &self.net.ends[end as usize];
        let flow = self.flows[e.stream as usize].as_deref()?;
        let n = self.readers[end as usize].taken;
        let at = n as usize & flow.mask;
        let time = flow.ring(e.column)[at].time + self.way(end);
        Some(Word { time, value: flow.cells[at].value, kind: flow.kind(n) })
    }

    /// Causes of the arrival of the next word at an end.
    pub fn arrival_causes(&self, end: u32) -> Causes {
        let e = &self.net.ends[end as usize];
        match (self.flows[e.stream as usize].as_deref(), self.front(end)) {
            (Some(flow), Some(word)) if self.with_causes => {
                let causes = flow.word_causes(self.readers[end as usize].taken);
                causes.arrived(word.time, u64::from(e.latency))
            }
            _ => Causes::default(),
        }
    }

    /// Takes note of what another strip says.
    pub fn receive(&mut self, message: Message) {
        match message {
            Message::Word { stream, time, value, kind } => {
                let flow = self.flow_mut(stream);
                flow.push(time, value);
                flow.mark(kind);
                if flow.waiting > 0 {
                    self.wake_readers(stream, 0);
                }
            }
            Message::Room { stream, from, time } => {
                let flow = self.flow_mut(stream);
                let n = flow.replica_word(from);
                flow.release(n, time);
                flow.reopen(n + 1);
                self.wake_sender(stream);
            }
        }
    }

    /// Marks that the reader wants to be woken when a word comes.
    pub fn await_word(&mut self, end: u32) {
        if end != NONE && !std::mem::replace(&mut self.readers[end as usize].waits, true) {
            self.flow_mut(self.net.ends[end as usize].stream).waiting += 1;
        }
    }

    /// Words sent so far.
    pub fn sent(&self, stream: u32) -> u64 {
        self.flow(stream).map_or(0, Flow::sent)
    }

    /// Words taken so far at an end.
    pub fn taken(&self, end: u32) -> u64 {
        self.readers[end as usize].taken
    }
}

/// The kind of a pure control word.
pub fn control(command: Command) -> Kind {
    Kind { control: true, command: Some(command) }
}

#[cfg(test)]
impl Links<'_> {
    /// Bytes that are held, without the words under way.
    pub fn held_bytes(&self) -> usize {
        size_of_val(&self.flows[..]) + size_of_val(&self.readers[..]) + self.work.held_bytes()
    }
}
