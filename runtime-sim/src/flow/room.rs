//! Room in queues: from when on a word may leave, because the one as many words before it as the queues hold was taken.
//!
//! When words are taken is known after a run only. So a program runs several times, each run with the room that the one
//! before left, until nothing changes; times only grow from run to run, as those of level event would from a start
//! without queues.

use super::bursts::Burst;
use super::words::{Cursor, Rhythm, Words};
use crate::network::{End, Network};

/// The room of all streams.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// By end: when words were taken in this run, and when there was room again.
    taken: Vec<Words>,
    /// By end: from when on words may leave, as the run before left it; none before the first.
    free: Option<Vec<Words>>,
    /// By end: words sent.
    cursors: Vec<Cursor>,
}

impl Room {
    /// Room without end, of a first run.
    pub fn endless(net: &Network) -> Self {
        Room {
            taken: vec![Words::default(); net.ends.len()],
            free: None,
            cursors: vec![Cursor::default(); net.ends.len()],
        }
    }

    /// The room that this run leaves for the next, and whether that is what this run had.
    pub fn next(self, net: &Network) -> (Self, bool) {
        let opened = |(taken, end): (&Words, &End)| {
            let mut free = Words::default();
            free.push(Burst::even(1, 0.0, 0.0, u64::from(end.depth), 0.0));
            taken.pieces().iter().for_each(|piece| {
                free.push(Burst { start: piece.start + 1.0, ..piece.clone() });
            });
            free
        };
        let free: Vec<Words> = self.taken.iter().zip(&net.ends).map(opened).collect();
        let alike = |(a, b): (&Words, &Words)| a.is_like(b);
        let settled = self.free.is_some_and(|before| before.iter().zip(&free).all(alike));
        (Room { free: Some(free), ..Room::endless(net) }, settled)
    }

    /// Notes when words were taken at an end.
    pub fn take(&mut self, end: u32, burst: Burst) {
        self.taken[end as usize].push(burst);
    }

    /// The rhythm in which the next writes of `words` words each have room at an end; none if nothing limits them.
    pub fn rhythm(&mut self, end: u32, words: u64) -> Option<Rhythm> {
        let free = self.free.as_ref()?.get(end as usize)?;
        let cursor = &mut self.cursors[end as usize];
        free.advance(cursor, 0);
        free.rhythm(cursor, words)
    }

    /// Notes that words were sent to an end.
    pub fn send(&mut self, end: u32, words: u64) {
        if let Some(free) = self.free.as_ref().and_then(|free| free.get(end as usize)) {
            free.advance(&mut self.cursors[end as usize], words);
        }
    }
}
