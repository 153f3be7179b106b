//! What is known of all streams, who has read how far, and who waits for more.

use super::bursts::{Burst, Bursts, Cursor, Rhythm};
use crate::network::{NONE, Network, Target};

/// All streams of a run.
pub struct Streams<'a> {
    net: &'a Network,
    bursts: Vec<Bursts>,
    cursors: Vec<Cursor>,
    waiting: Vec<bool>,
    /// PEs that waited for words which have come.
    pub woken: Vec<u32>,
}

impl<'a> Streams<'a> {
    /// Empty streams.
    pub fn new(net: &'a Network) -> Self {
        Streams {
            net,
            bursts: vec![Bursts::default(); net.streams.len()],
            cursors: vec![Cursor::default(); net.ends.len()],
            waiting: vec![false; net.ends.len()],
            woken: Vec::new(),
        }
    }

    /// Adds words to a stream and wakes those who waited for them.
    pub fn write(&mut self, stream: u32, burst: Burst) {
        self.bursts[stream as usize].push(burst);
        let s = &self.net.streams[stream as usize];
        for end in s.first_end..s.first_end + s.ends {
            if std::mem::take(&mut self.waiting[end as usize])
                && let Target::Pe(pe) = self.net.ends[end as usize].target
            {
                self.woken.push(pe);
            }
        }
    }

    /// Lets end `to` be read as far as end `from`.
    pub fn copy_cursor(&mut self, from: u32, to: u32) {
        self.cursors[to as usize] = self.cursors[from as usize];
    }

    /// Lets stream `to` carry what stream `from` does, `delay` later.
    pub fn copy_words(&mut self, from: u32, to: u32, delay: f64) {
        self.bursts[to as usize] = self.bursts[from as usize].later(delay);
    }

    /// Words sent on a stream.
    pub fn sent(&self, stream: u32) -> u64 {
        self.bursts[stream as usize].total
    }

    /// When the first and the last word of a stream leave.
    pub fn span(&self, stream: u32) -> (f64, f64) {
        let bursts = &self.bursts[stream as usize];
        (bursts.first_word(), bursts.last_word())
    }

    /// When the last word of a stream arrives at an end.
    pub fn last_arrival(&self, end: u32) -> f64 {
        let e = self.net.ends[end as usize];
        self.bursts[e.stream as usize].last_word() + f64::from(e.latency)
    }

    /// The rhythm in which the next reads of `words` words arrive at an end.
    pub fn rhythm(&mut self, end: u32, words: u64) -> Option<Rhythm> {
        if end == NONE {
            return None;
        }
        let e = self.net.ends[end as usize];
        let bursts = &self.bursts[e.stream as usize];
        let cursor = &mut self.cursors[end as usize];
        bursts.advance(cursor, 0);
        let rhythm = bursts.rhythm(cursor, words)?;
        let latency = f64::from(e.latency);
        Some(Rhythm { first: rhythm.first + latency, last: rhythm.last + latency, ..rhythm })
    }

    /// Words that are known and not read at an end.
    pub fn ahead(&self, end: u32) -> u64 {
        match end {
            NONE => 0,
            _ => self.bursts[self.net.ends[end as usize].stream as usize].ahead(&self.cursors[end as usize]),
        }
    }

    /// Reads `words` words at an end, possibly on credit.
    pub fn take(&mut self, end: u32, words: u64) {
        let stream = self.net.ends[end as usize].stream as usize;
        let cursor = &mut self.cursors[end as usize];
        self.bursts[stream].advance(cursor, words);
        if self.net.streams[stream].ends == 1 {
            self.bursts[stream].trim(cursor);
        }
    }

    /// When the last word read at an end arrived; none while it is not known.
    pub fn settled(&mut self, end: u32) -> Option<f64> {
        let e = self.net.ends[end as usize];
        let bursts = &self.bursts[e.stream as usize];
        let cursor = &mut self.cursors[end as usize];
        bursts.advance(cursor, 0);
        (bursts.total >= cursor.taken).then(|| bursts.last_taken(cursor) + f64::from(e.latency))
    }

    /// Wakes the reader of an end when words come.
    pub fn wait(&mut self, end: u32) {
        if end != NONE {
            self.waiting[end as usize] = true;
        }
    }
}
