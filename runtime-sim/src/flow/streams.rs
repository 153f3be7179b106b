//! What is known of all streams, who has read how far, and who waits for more.

use super::bursts::{Burst, SAME};
use super::exact::Exact;
use super::words::{Cursor, Rhythm, Words};
use crate::network::{NONE, Network, Origin, Target};
use std::collections::BTreeMap;

/// What a stream had sent at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    words: u64,
    pieces: usize,
}

impl Mark {
    /// Pieces sent.
    pub fn pieces(&self) -> usize {
        self.pieces
    }
}

/// Who sends what arrives at an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// A PE of the same row.
    #[default]
    Row,
    /// A PE of another row.
    OtherRow,
    /// The host.
    Host,
    /// Nobody: a reader makes room.
    Room,
}

/// All streams of a run.
pub struct Streams<'a> {
    net: &'a Network,
    words: Vec<Words>,
    cursors: Vec<Cursor>,
    waiting: Vec<bool>,
    /// By end: whether somebody waits for room there.
    crowded: Vec<bool>,
    /// By stream: whether all its words are for PEs of the sender's row.
    stays: Vec<bool>,
    /// PEs that waited for words, or for room, which have come.
    pub woken: Vec<u32>,
    /// Lanes of the host that waited for room which has come.
    pub woken_lanes: Vec<u32>,
    /// Whether words may be read on credit.
    pub credit: bool,
    /// By how many cycles a word read on credit came too late, at most.
    pub late: f64,
    /// By end: words read on credit, counted from the first of all, and when the last of them was needed.
    promises: BTreeMap<u32, Vec<(u64, f64)>>,
    /// Whether it is kept what held PEs up.
    pub explains: bool,
    /// Whether all words are kept, also those that everybody has read.
    pub keeps: bool,
    /// Full queues and shared links, where they are followed.
    pub exact: Option<Exact>,
}

impl<'a> Streams<'a> {
    /// Empty streams.
    pub fn new(net: &'a Network) -> Self {
        Streams {
            net,
            words: vec![Words::default(); net.streams.len()],
            cursors: vec![Cursor::default(); net.ends.len()],
            waiting: vec![false; net.ends.len()],
            crowded: vec![false; net.ends.len()],
            stays: (0..net.streams.len() as u32).map(|stream| stays(net, stream)).collect(),
            woken: Vec::new(),
            woken_lanes: Vec::new(),
            credit: true,
            late: 0.0,
            promises: BTreeMap::new(),
            explains: false,
            keeps: false,
            exact: None,
        }
    }

    /// Adds words to a stream and wakes those who waited for them.
    pub fn write(&mut self, stream: u32, burst: Burst) {
        if let Some(exact) = &mut self.exact {
            exact.write(self.net, stream, self.words[stream as usize].total, &burst);
        }
        let s = &self.net.streams[stream as usize];
        if !self.promises.is_empty() {
            (s.first_end..s.first_end + s.ends).for_each(|end| self.keep(end, &burst));
        }
        self.words[stream as usize].push(burst);
        for end in s.first_end..s.first_end + s.ends {
            if std::mem::take(&mut self.waiting[end as usize])
                && let Target::Pe(pe) = self.net.ends[end as usize].target
            {
                self.woken.push(pe);
            }
        }
    }

    /// Compares what was promised at an end with words that come.
    fn keep(&mut self, end: u32, burst: &Burst) {
        let Some(promises) = self.promises.get_mut(&end) else { return };
        let e = self.net.ends[end as usize];
        let before = self.words[e.stream as usize].total;
        let (mut late, known) = (self.late, before + burst.total());
        promises.retain(|(words, needed)| {
            if *words <= known && *words > before {
                late = late.max(burst.word(words - 1 - before) + f64::from(e.latency) - needed);
            }
            *words > known
        });
        if promises.is_empty() {
            self.promises.remove(&end);
        }
        self.late = late;
    }

    /// Whether the last word read at an end, which is needed at `needed`, has not come by then; if it has not been sent,
    /// that is looked at again when it is.
    pub fn lends(&mut self, end: u32, needed: f64) -> bool {
        match self.settled(end) {
            Some(arrival) => {
                self.late = self.late.max(arrival - needed);
                arrival > needed + SAME
            }
            None => {
                let taken = self.cursors[end as usize].taken;
                self.promises.entry(end).or_default().push((taken, needed));
                true
            }
        }
    }

    /// Follows queues, and links as the run before tells.
    pub fn follow(&mut self, exact: Exact) {
        self.exact = Some(exact);
        self.keeps = true;
    }

    /// What this run tells the next of shared links, and whether that is nothing new.
    pub fn learn(&self, per_cycle: u64) -> Option<(Exact, bool)> {
        Some(self.exact.as_ref()?.next(self.net, &self.words, per_cycle))
    }

    /// What a stream carries.
    pub fn words(&self, stream: u32) -> &Words {
        &self.words[stream as usize]
    }

    /// Whether the host sends what arrives at an end.
    pub fn is_of_host(&self, end: u32) -> bool {
        end != NONE && {
            let stream = self.net.ends[end as usize].stream;
            matches!(self.net.streams[stream as usize].origin, Origin::Host(_))
        }
    }

    /// Who sends what arrives at an end.
    pub fn sender(&self, end: u32) -> Sender {
        let Some(e) = self.net.ends.get(end as usize) else { return Sender::Row };
        match (self.net.streams[e.stream as usize].origin, e.target) {
            (Origin::Host(_), _) => Sender::Host,
            (Origin::Pe(from), Target::Pe(to)) if from / self.net.width != to / self.net.width => {
                Sender::OtherRow
            }
            _ => Sender::Row,
        }
    }

    /// By how much the next `runs` times `words` words at an end come before what reads them begins, at least: at `start`, and
    /// then every `period`. Less than anything where they are not known.
    pub fn earliness(&self, end: u32, words: u64, runs: u64, (start, period): (f64, f64)) -> f64 {
        let (known, mut cursor) = (self.words_at(end), self.cursors[end as usize]);
        let way = f64::from(self.net.ends[end as usize].latency);
        let (mut done, mut least) = (0, f64::INFINITY);
        known.advance(&mut cursor, 0);
        while done < runs {
            let Some(rhythm) = known.rhythm(&cursor, words) else { return f64::NEG_INFINITY };
            let reads = rhythm.reads.min(runs - done);
            for n in [0, reads - 1] {
                let begin = start + (done + n) as f64 * period;
                least = least.min(begin - (rhythm.last + way + n as f64 * rhythm.period));
            }
            known.advance(&mut cursor, reads * words);
            done += reads;
        }
        least
    }

    /// Words read at an end.
    pub fn taken(&self, end: u32) -> u64 {
        if end == NONE { 0 } else { self.cursors[end as usize].taken }
    }

    /// Begins a new piece of a stream; returns what it has sent before.
    pub fn mark(&mut self, stream: u32) -> Mark {
        let words = &mut self.words[stream as usize];
        Mark { words: words.total, pieces: words.seal() }
    }

    /// Lets stream `to` carry what stream `from` did since `mark`, `delay` later: piece by piece where that is of interest,
    /// and at one pace from `begin` on where all that counts is that it was sent.
    pub fn send_like(&mut self, (from, mark): (u32, &Mark), to: u32, begin: f64, delay: f64) {
        if self.keeps || !self.stays[from as usize] {
            let Ok([from, to]) = self.words.get_disjoint_mut([from as usize, to as usize]) else { return };
            to.seal();
            for piece in &from.pieces()[mark.pieces..] {
                to.push(Burst { start: piece.start + delay, ..piece.clone() });
            }
            return;
        }
        let words = self.words[from as usize].total - mark.words;
        let last = self.words[from as usize].last_word() + delay;
        let gap = (last - begin).max(0.0) / words.saturating_sub(1).max(1) as f64;
        let start = last - gap * words.saturating_sub(1) as f64;
        self.words[to as usize].push(Burst::even(1, start, 0.0, words, gap));
    }

    /// Words sent on a stream.
    pub fn sent(&self, stream: u32) -> u64 {
        self.words[stream as usize].total
    }

    /// When the first and the last word of a stream leave.
    pub fn span(&self, stream: u32) -> (f64, f64) {
        let words = &self.words[stream as usize];
        (words.first_word(), words.last_word())
    }

    /// When the last word of a stream arrives at an end.
    pub fn last_arrival(&self, end: u32) -> f64 {
        let e = self.net.ends[end as usize];
        self.words_at(end).last_word() + f64::from(e.latency)
    }

    /// How long the word that arrives at an end then had waited for shared links.
    pub fn lost(&self, end: u32, arrival: f64) -> f64 {
        let e = &self.net.ends[end as usize];
        if self.exact.is_none() || e.column == 0 {
            return 0.0;
        }
        let behind = arrival - f64::from(e.latency);
        let word = self.words_at(end).before(behind - SAME) as usize;
        self.words[e.stream as usize].times().nth(word).map_or(0.0, |left| (behind - left).max(0.0))
    }

    /// What arrives at an end, timed where it left its source: later than that if it waited for a shared link.
    fn words_at(&self, end: u32) -> &Words {
        let e = &self.net.ends[end as usize];
        match &self.exact {
            Some(exact) if e.column > 0 => exact.behind(self.net, e.stream, e.column),
            _ => &self.words[e.stream as usize],
        }
    }

    /// How the next `words` words of a stream find room, and at which end that comes last, where that is followed.
    ///
    /// # Errors
    /// Nothing, where that is not known yet: who asked is woken when it is.
    pub fn room(&mut self, stream: u32, words: u64) -> Result<Option<(Rhythm, u32)>, ()> {
        let Some(exact) = self.exact.as_mut() else { return Ok(None) };
        exact.room(self.net, stream, words).map_err(|end| self.crowded[end as usize] = true)
    }

    /// Notes when words were taken at an end, where that is followed, and wakes who waited for the room.
    pub fn note_taken(&mut self, end: u32, burst: Burst) {
        let Some(exact) = &mut self.exact else { return };
        exact.take(end, burst);
        if std::mem::take(&mut self.crowded[end as usize]) {
            match self.net.streams[self.net.ends[end as usize].stream as usize].origin {
                Origin::Pe(pe) => self.woken.push(pe),
                Origin::Host(lane) => self.woken_lanes.push(lane),
                Origin::Switch(..) => {}
            }
        }
    }

    /// The rhythm in which the next reads of `words` words arrive at an end.
    pub fn rhythm(&mut self, end: u32, words: u64) -> Option<Rhythm> {
        if end == NONE {
            return None;
        }
        let e = self.net.ends[end as usize];
        let mut cursor = self.cursors[end as usize];
        let known = self.words_at(end);
        known.advance(&mut cursor, 0);
        let rhythm = known.rhythm(&cursor, words);
        self.cursors[end as usize] = cursor;
        let rhythm = rhythm?;
        let latency = f64::from(e.latency);
        Some(Rhythm { first: rhythm.first + latency, last: rhythm.last + latency, ..rhythm })
    }

    /// Words that are known and not read at an end.
    pub fn ahead(&self, end: u32) -> u64 {
        match end {
            NONE => 0,
            _ => self.words_at(end).ahead(&self.cursors[end as usize]),
        }
    }

    /// The piece of its stream that an end reads next; none if it has read a part of it, or more than there is.
    pub fn unread(&mut self, end: u32) -> Option<usize> {
        let mut cursor = self.cursors[end as usize];
        let known = self.words_at(end);
        known.advance(&mut cursor, 0);
        let next = known.next_piece(&cursor);
        self.cursors[end as usize] = cursor;
        next
    }

    /// Reads `words` words at an end, possibly on credit.
    pub fn take(&mut self, end: u32, words: u64) {
        let stream = self.net.ends[end as usize].stream as usize;
        let mut cursor = self.cursors[end as usize];
        self.words_at(end).advance(&mut cursor, words);
        if self.net.streams[stream].ends == 1 && !self.keeps && self.stays[stream] {
            self.words[stream].trim(&mut cursor);
        }
        self.cursors[end as usize] = cursor;
    }

    /// When the last word read at an end arrived; none while it is not known.
    pub fn settled(&mut self, end: u32) -> Option<f64> {
        let e = self.net.ends[end as usize];
        let mut cursor = self.cursors[end as usize];
        let known = self.words_at(end);
        known.advance(&mut cursor, 0);
        let settled = (known.total >= cursor.taken).then(|| known.last_taken(&cursor) + f64::from(e.latency));
        self.cursors[end as usize] = cursor;
        settled
    }

    /// Wakes the reader of an end when words come.
    pub fn wait(&mut self, end: u32) {
        if end != NONE {
            self.waiting[end as usize] = true;
        }
    }
}

/// Whether all words of a stream are for PEs of the sender's row.
fn stays(net: &Network, stream: u32) -> bool {
    let row = |pe: u32| pe / net.width;
    let Origin::Pe(from) = net.streams[stream as usize].origin else { return false };
    let here = |target: Target| matches!(target, Target::Pe(to) if row(to) == row(from));
    // Rows that are not timed have no ends.
    let ends = net.ends_of(stream);
    !ends.is_empty() && ends.iter().all(|end| here(end.target))
}
