//! Full queues and shared links of a run, as far as the run before it tells.
//!
//! When room comes and what words lose on shared links is known after a run only. So a small program runs several times,
//! each run with what the one before says, until nothing changes any more.

use super::bursts::Burst;
use super::links::Delays;
use super::room::Room;
use super::words::{Rhythm, Words};
use crate::network::{Network, Target};

/// What a run knows of queues and links.
#[derive(Clone, Debug, Default)]
pub struct Exact {
    room: Room,
    delays: Delays,
    /// By shared link of a stream: its words, timed where they left their source, as late as they are behind the link.
    passed: Vec<Words>,
}

impl Exact {
    /// Queues never fill, and links have room.
    pub fn endless(net: &Network) -> Self {
        Exact {
            room: Room::endless(net),
            delays: Delays::default(),
            passed: vec![Words::default(); net.shared.len()],
        }
    }

    /// What this run, in which `sent` was sent, tells the next; and whether it is what this run was told.
    pub fn next(&mut self, net: &Network, sent: &[Words], per_cycle: u64) -> (Self, bool) {
        for end in 0..net.ends.len() as u32 {
            if let Target::Host(_) = net.ends[end as usize].target {
                self.leave(net, sent, end);
            }
        }
        let delays = Delays::of_words(net, sent, per_cycle);
        let (room, same_room) = std::mem::take(&mut self.room).next(net);
        let settled = same_room && delays == self.delays;
        (Exact { room, delays, ..Exact::endless(net) }, settled)
    }

    /// The host takes words as they come.
    fn leave(&mut self, net: &Network, sent: &[Words], end: u32) {
        let e = net.ends[end as usize];
        let words = match e.column {
            0 => &sent[e.stream as usize],
            column => self.behind(net, e.stream, column),
        };
        for burst in words.later(f64::from(e.latency)).pieces() {
            self.room.take(end, burst.clone());
        }
    }

    /// Notes words sent on a stream that has sent `before` words.
    pub fn write(&mut self, net: &Network, stream: u32, before: u64, burst: &Burst) {
        let s = &net.streams[stream as usize];
        (s.first_end..s.first_end + s.ends).for_each(|end| self.room.send(end, burst.total()));
        for shared in s.first_shared..s.first_shared + s.shared {
            let words = &mut self.passed[shared as usize];
            for n in 0..burst.total() {
                let time = burst.word(n) + self.delays.of(shared, before + n);
                words.push(Burst::even(1, time, 0.0, 1, 0.0));
            }
        }
    }

    /// The words of a stream behind its shared link number `column`, from 1.
    pub fn behind(&self, net: &Network, stream: u32, column: u32) -> &Words {
        &self.passed[(net.streams[stream as usize].first_shared + column - 1) as usize]
    }

    /// When the next `words` words of a stream have room at all its ends, and at which they have it last; none if nothing
    /// limits them.
    pub fn room(&mut self, net: &Network, stream: u32, words: u64) -> Option<(Rhythm, u32)> {
        let s = &net.streams[stream as usize];
        let ends = s.first_end..s.first_end + s.ends;
        let rhythms = ends.filter_map(|end| Some((self.room.rhythm(end, words)?, end)));
        rhythms.reduce(|a, b| later(&a, &b))
    }

    /// Notes when words were taken.
    pub fn take(&mut self, end: u32, burst: Burst) {
        self.room.take(end, burst);
    }
}

/// The later of the rhythms of two ends, as long as it is.
fn later(a: &(Rhythm, u32), b: &(Rhythm, u32)) -> (Rhythm, u32) {
    let first = (a.0.last, a.0.period) >= (b.0.last, b.0.period);
    let ((late, end), (early, _)) = if first { (a, b) } else { (b, a) };
    let reads = match late.period >= early.period {
        true => late.reads.min(early.reads),
        // The early one catches up.
        false => {
            let meet = ((late.last - early.last) / (early.period - late.period)).floor() as u64 + 1;
            late.reads.min(early.reads).min(meet.max(1))
        }
    };
    (Rhythm { reads, ..*late }, *end)
}
