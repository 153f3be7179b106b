//! Room in queues: from when on a word may leave, because the one as many words before it as the queues hold was taken.
//!
//! Who sends waits until it is known when that word was taken, as who reads waits for words.

use super::bursts::Burst;
use super::words::{Cursor, Rhythm, Words};
use crate::network::{End, Network};

/// The room of all streams.
#[derive(Clone, Debug)]
pub struct Room {
    /// By end: from when on words may leave, as far as that is known.
    free: Vec<Words>,
    /// By end: words sent.
    cursors: Vec<Cursor>,
}

impl Room {
    /// Empty queues.
    pub fn new(net: &Network) -> Self {
        let empty = |end: &End| {
            let mut free = Words::default();
            free.push(Burst::even(1, 0.0, 0.0, u64::from(end.depth), 0.0));
            free
        };
        Room { free: net.ends.iter().map(empty).collect(), cursors: vec![Cursor::default(); net.ends.len()] }
    }

    /// Notes when words were taken at an end.
    pub fn take(&mut self, end: u32, burst: Burst) {
        self.free[end as usize].push(Burst { start: burst.start + 1.0, ..burst });
    }

    /// The rhythm in which the next writes of `words` words each have room at an end; none as long as that is not known.
    pub fn rhythm(&mut self, end: u32, words: u64) -> Option<Rhythm> {
        let (free, cursor) = (&self.free[end as usize], &mut self.cursors[end as usize]);
        free.advance(cursor, 0);
        free.rhythm(cursor, words)
    }

    /// Notes that words were sent to an end.
    pub fn send(&mut self, end: u32, words: u64) {
        self.free[end as usize].advance(&mut self.cursors[end as usize], words);
    }
}
