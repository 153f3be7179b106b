//! Full queues and shared links of a run.
//!
//! When room comes is known as soon as readers have come so far. What words lose on shared links is known after a run only:
//! so a small program runs several times, each run with what the one before says, until nothing changes any more.

use super::bursts::Burst;
use super::links::Delays;
use super::room::Room;
use super::words::{Rhythm, Words};
use crate::network::{Network, Target};

/// What a run knows of queues and links.
#[derive(Clone, Debug)]
pub struct Exact {
    room: Room,
    delays: Delays,
    /// By shared link of a stream: its words, timed where they left their source, as late as they are behind the link.
    passed: Vec<Words>,
}

impl Exact {
    /// Empty queues, and links on which words lose so much.
    pub fn new(net: &Network, delays: Delays) -> Self {
        Exact { room: Room::new(net), delays, passed: vec![Words::default(); net.shared.len()] }
    }

    /// What this run, in which `sent` was sent, tells the next; and whether it is what this run was told.
    pub fn next(&self, net: &Network, sent: &[Words], per_cycle: u64) -> (Self, bool) {
        let delays = Delays::of_words(net, sent, per_cycle);
        let settled = delays == self.delays;
        (Exact::new(net, delays), settled)
    }

    /// Notes words sent on a stream that has sent `before` words. The host takes words as they come.
    pub fn write(&mut self, net: &Network, stream: u32, before: u64, burst: &Burst) {
        let s = &net.streams[stream as usize];
        for shared in s.first_shared..s.first_shared + s.shared {
            let words = &mut self.passed[shared as usize];
            for n in 0..burst.total() {
                let time = burst.word(n) + self.delays.of(shared, before + n);
                words.push(Burst::even(1, time, 0.0, 1, 0.0));
            }
        }
        for end in s.first_end..s.first_end + s.ends {
            self.room.send(end, burst.total());
            let e = net.ends[end as usize];
            let Target::Host(_) = e.target else { continue };
            let way = f64::from(e.latency);
            match e.column.checked_sub(1).map(|column| s.first_shared + column) {
                None => self.room.take(end, Burst { start: burst.start + way, ..burst.clone() }),
                Some(shared) => (0..burst.total()).for_each(|n| {
                    let time = burst.word(n) + self.delays.of(shared, before + n) + way;
                    self.room.take(end, Burst::even(1, time, 0.0, 1, 0.0));
                }),
            }
        }
    }

    /// The words of a stream behind its shared link number `column`, from 1.
    pub fn behind(&self, net: &Network, stream: u32, column: u32) -> &Words {
        &self.passed[(net.streams[stream as usize].first_shared + column - 1) as usize]
    }

    /// When the next `words` words of a stream have room at all its ends, and at which they have it last; none if it has no
    /// ends.
    ///
    /// # Errors
    /// An end where that is not known yet.
    pub fn room(&mut self, net: &Network, stream: u32, words: u64) -> Result<Option<(Rhythm, u32)>, u32> {
        let s = &net.streams[stream as usize];
        let mut last: Option<(Rhythm, u32)> = None;
        for end in s.first_end..s.first_end + s.ends {
            let here = (self.room.rhythm(end, words).ok_or(end)?, end);
            last = Some(last.map_or(here, |other| later(&other, &here)));
        }
        Ok(last)
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
