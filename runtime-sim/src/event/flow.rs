//! One stream's words under way and the room behind them, in a ring as long as its deepest queue.
//!
//! Times obey a max-plus recurrence. Word `i` arrives a constant after it was sent; it may be sent once word `i - depth`
//! has been taken at every end, the cycle after the last of them took it.

use super::cause::Causes;
use crate::network::Network;
use crate::program::Command;

/// What a word is beside its 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Whether it is a pure control word, which processors do not see as data.
    pub control: bool,
    /// What it does to switches.
    pub command: Option<Command>,
}

/// Word `i` of a stream, and the room for the word that takes its place in the ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cell {
    /// When the word left its source, or its last shared link.
    pub time: u64,
    /// From when on the next word of this place may leave.
    pub free: u64,
    /// The 32 bits.
    pub value: u32,
    /// Ends that have made room for the next word of this place.
    released: u32,
}

/// The part of a stream that ends in another strip, seen from where the stream begins.
#[derive(Clone, Copy, Debug)]
pub struct Replica {
    /// The strip.
    pub strip: u16,
    /// The first word it has not yet made room for.
    next: u64,
}

/// State of a stream in one strip.
#[derive(Debug, Default)]
pub struct Flow {
    /// By shared link (the source first): a ring of words.
    pub cells: Box<[Cell]>,
    /// Length of a ring less one.
    pub mask: usize,
    /// Kinds of the words; empty as long as all are plain data.
    kinds: Vec<Kind>,
    /// Words that passed the source and each shared link.
    pub passed: Box<[u64]>,
    /// The first word that has no room.
    pub open: u64,
    /// Depths of several ends, ascending; empty if there is one.
    depths: Box<[u32]>,
    /// Ends whose readers wait.
    pub waiting: u32,
    /// Whether the sender waits for room.
    pub sender_waits: bool,
    /// Parts of the stream in other strips.
    pub replicas: Vec<Replica>,
    /// Causes of the words, then of the room, if they are asked for.
    causes: Box<[Causes]>,
}

/// Which strip an end is in.
pub type StripOf<'s> = &'s dyn Fn(u32) -> u16;

impl Flow {
    /// The part of `stream` in strip `own`, which begins in strip `home`.
    pub fn new(
        net: &Network,
        stream: u32,
        own: u16,
        home: u16,
        strip_of: StripOf,
        with_causes: bool,
    ) -> Flow {
        let s = &net.streams[stream as usize];
        let (mut depths, mut others) = (Vec::new(), Vec::<(u16, u32)>::new());
        for end in s.first_end..s.first_end + s.ends {
            let depth = net.ends[end as usize].depth;
            let strip = strip_of(end);
            if strip == own {
                depths.push(depth);
            } else if own == home {
                match others.iter_mut().find(|o| o.0 == strip) {
                    Some(other) => other.1 = other.1.min(depth),
                    None => others.push((strip, depth)),
                }
            }
        }
        let deepest = (s.first_end..s.first_end + s.ends).map(|e| net.ends[e as usize].depth).max();
        let length = (deepest.unwrap_or(1) as usize).next_power_of_two();
        depths.extend(others.iter().map(|o| o.1));
        depths.sort_unstable();
        let replicas = others.iter().map(|&(strip, depth)| Replica { strip, next: u64::from(depth) });
        let columns = 1 + s.shared as usize;
        Flow {
            cells: vec![Cell::default(); length * columns].into(),
            mask: length - 1,
            passed: vec![0; columns].into(),
            open: depths.first().map_or(u64::MAX, |d| u64::from(*d)),
            replicas: replicas.collect(),
            depths: if depths.len() == 1 { Box::default() } else { depths.into() },
            causes: vec![Causes::default(); if with_causes { 2 * length } else { 0 }].into(),
            ..Flow::default()
        }
    }

    /// Words sent.
    pub fn sent(&self) -> u64 {
        self.passed[0]
    }

    /// The ring behind shared link number `column`.
    pub fn ring(&self, column: u32) -> &[Cell] {
        let length = self.mask + 1;
        &self.cells[column as usize * length..][..length]
    }

    /// Sends one word that leaves the source at `time`.
    pub fn push(&mut self, time: u64, value: u32) {
        let several = !self.depths.is_empty();
        let cell = &mut self.cells[self.passed[0] as usize & self.mask];
        cell.time = time;
        cell.value = value;
        if several {
            cell.released = 0;
            cell.free = 0;
        }
        if !self.kinds.is_empty() {
            self.kinds[self.passed[0] as usize & self.mask] = Kind::default();
        }
        self.passed[0] += 1;
    }

    /// Says what the last word sent is.
    pub fn mark(&mut self, kind: Kind) {
        if kind != Kind::default() {
            if self.kinds.is_empty() {
                self.kinds.resize(self.mask + 1, Kind::default());
            }
            self.kinds[(self.passed[0] - 1) as usize & self.mask] = kind;
        }
    }

    /// What word `n` is.
    pub fn kind(&self, n: u64) -> Kind {
        self.kinds.get(n as usize & self.mask).copied().unwrap_or_default()
    }

    /// Whether there may be words that are not plain data.
    pub fn has_kinds(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// Makes room for word `n` from `time` on, at one of the ends.
    pub fn release(&mut self, n: u64, time: u64) {
        let cell = &mut self.cells[n as usize & self.mask];
        if self.depths.is_empty() {
            cell.free = time;
        } else {
            cell.released += 1;
            cell.free = cell.free.max(time);
        }
    }

    /// Opens the words for which all ends have made room; `taken` is how far the only end has come, if there is one.
    pub fn reopen(&mut self, taken_and_depth: u64) {
        if self.depths.is_empty() {
            self.open = taken_and_depth;
            return;
        }
        let limit = self.passed[0] + self.mask as u64 + 1;
        while self.open < limit
            && self.cells[self.open as usize & self.mask].released >= self.needed(self.open)
        {
            self.open += 1;
        }
    }

    /// Ends that must make room for word `n`.
    fn needed(&self, n: u64) -> u32 {
        match self.depths.last() {
            Some(&most) if n >= u64::from(most) => self.depths.len() as u32,
            _ => self.depths.partition_point(|&d| u64::from(d) <= n) as u32,
        }
    }

    /// The next word for which a replica makes room.
    pub fn replica_word(&mut self, strip: u16) -> u64 {
        match self.replicas.iter_mut().find(|r| r.strip == strip) {
            Some(replica) => {
                replica.next += 1;
                replica.next - 1
            }
            None => self.open,
        }
    }

    /// Causes of word `n`.
    pub fn word_causes(&self, n: u64) -> Causes {
        self.causes.get(n as usize & self.mask).copied().unwrap_or_default()
    }

    /// Causes of the room for word `n`.
    pub fn room_causes(&self, n: u64) -> Causes {
        self.causes.get((n as usize & self.mask) + self.mask + 1).copied().unwrap_or_default()
    }

    /// Sets the causes of the last word sent.
    pub fn explain_word(&mut self, causes: Causes) {
        if let Some(place) = self.causes.get_mut((self.passed[0] - 1) as usize & self.mask) {
            *place = causes;
        }
    }

    /// Sets the causes of the room for word `n`, made at `time`, if no other end made it later.
    pub fn explain_room(&mut self, n: u64, time: u64, causes: Causes) {
        let last = self.cells[n as usize & self.mask].free <= time;
        let place = self.causes.get_mut((n as usize & self.mask) + self.mask + 1);
        if let Some(place) = place.filter(|_| last) {
            *place = causes;
        }
    }
}
