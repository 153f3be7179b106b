//! Rows of a chain, which hand words on to the south: a row that begins as one before it did, and gets the same words from
//! the rows above, both by the same delay, does the same.
//!
//! The rows run one after the other, so that all words from above are known when a row begins.

use super::bursts::SAME;
use super::engine::Engine;
use super::follow::{Before, HostRead, LEADERS, Led, since};
use super::groups::{Group, Row};
use super::streams::Sender;
use super::stretches::Stretches;
use super::words::later_than;
use crate::network::Origin;

/// Rows begin alike, and words come alike, within so many cycles: what they hand on is handed on by all others.
const ALIKE: f64 = 1.0;

/// A row that was timed.
pub(super) struct Timed {
    look: Vec<i64>,
    led: Led,
    /// Where it read words of rows above.
    above: Vec<Above>,
}

/// An input for words of rows above.
struct Above {
    /// Which PE of the row, and which input of its piece.
    place: usize,
    input: usize,
    /// The piece of their stream that these words begin with, if it begins with them.
    begin: Option<usize>,
}

impl Engine<'_> {
    /// Runs the rows of a chain one after the other.
    pub(super) fn run_chain(
        &mut self,
        stretches: &Stretches,
        stretch: usize,
        chain: Vec<Row>,
        timed: &mut Vec<Timed>,
        most: f64,
    ) {
        let most = most.min(ALIKE);
        let mut rows = chain.into_iter();
        if !rows.as_slice().iter().all(|row| self.has_begun(stretches, stretch, &row.pes)) {
            return self.run_all_of(stretches, stretch, rows);
        }
        for row in rows.as_slice() {
            row.pes.iter().for_each(|pe| self.seal(stretches, stretch, *pe));
        }
        while let Some(row) = rows.next() {
            if self.follows(stretches, stretch, timed, &row, most) {
                continue;
            }
            let Some(row) = self.time_row(stretches, stretch, row) else {
                return self.run_all_of(stretches, stretch, rows);
            };
            timed.push(row);
        }
    }

    fn run_all_of(&mut self, stretches: &Stretches, stretch: usize, rows: impl Iterator<Item = Row>) {
        rows.for_each(|row| self.admit(stretches, stretch, &row.pes));
        self.run();
    }

    /// Begins new pieces of all streams of a PE.
    fn seal(&mut self, stretches: &Stretches, stretch: usize, pe: u32) {
        let net = self.net;
        let slots = self.piece(stretches, pe, stretch).map_or(&[][..], |piece| &piece.outputs);
        for slot in slots {
            self.streams.mark(net.output(pe as usize, *slot));
        }
    }

    /// Runs a row; none if it does not come to the end of the stretch.
    fn time_row(&mut self, stretches: &Stretches, stretch: usize, row: Row) -> Option<Timed> {
        let before: Vec<Before> = row.pes.iter().map(|pe| self.before(stretches, stretch, *pe)).collect();
        let above = self.above(stretches, stretch, &row.pes);
        self.lead(stretches, stretch, &row.pes);
        self.run();
        let ended = self.has_ended(stretches, stretch, &row.pes);
        let mut led = Led { leader: row.pes, before, ..Led::default() };
        led.hosts = self.host_reads(stretches, stretch, &led);
        ended.then_some(Timed { look: row.look, led, above })
    }

    /// Lets a row do what one before it did, if it may.
    fn follows(
        &mut self,
        stretches: &Stretches,
        stretch: usize,
        timed: &[Timed],
        row: &Row,
        most: f64,
    ) -> bool {
        for known in timed.iter().rev().take(LEADERS).filter(|known| known.look == row.look) {
            let Some((delay, off)) = self.after(stretches, stretch, known, &row.pes, most) else { continue };
            let hosts = known.led.hosts.as_deref();
            let apart =
                |hosts: &[HostRead]| self.host_apart(stretches, stretch, hosts, (&row.pes, delay), most);
            if let Some(host) = hosts.and_then(apart) {
                self.strayed += off.max(host);
                self.take_over(stretches, stretch, &known.led, &(row.pes.clone(), delay));
                return true;
            }
        }
        false
    }

    /// The delay by which a row does what one before it did, and by how much it may be off; none if it does something else.
    ///
    /// It is the delay of its beginning, where the words of the rows above come by the same delay, or came and come in
    /// time. Or it is the delay of these words, where all PEs waited for the first of them and wait for it now.
    fn after(
        &mut self,
        stretches: &Stretches,
        stretch: usize,
        known: &Timed,
        row: &Group,
        most: f64,
    ) -> Option<(f64, f64)> {
        let (least, begin) = since(&self.pes, &known.led.before, row);
        let fed = self.fed(stretches, stretch, known, row)?;
        let early = fed.iter().all(|(pe, _, later)| {
            let ahead = self.pe(*pe).ahead;
            ahead > SAME && later - begin <= ahead
        });
        let apart = |delay: f64| {
            fed.iter()
                .map(|(_, least, most)| (most - delay).abs().max((least - delay).abs()))
                .fold(0.0, f64::max)
        };
        let off = begin - least;
        if off <= most && (early || apart(begin) <= most) {
            return Some((begin, if early { off } else { off.max(apart(begin)) }));
        }
        let words = fed.iter().map(|(_, _, later)| *later).fold(f64::NEG_INFINITY, f64::max);
        let held = known
            .led
            .leader
            .iter()
            .map(|pe| self.pe(*pe).held_first.unwrap_or(0.0))
            .fold(f64::INFINITY, f64::min);
        let waits = !fed.is_empty() && held > SAME && begin - words <= held;
        (waits && apart(words) <= most).then(|| (words, apart(words)))
    }

    /// The inputs of a row for words of other rows, before these are read.
    fn above(&mut self, stretches: &Stretches, stretch: usize, row: &Group) -> Vec<Above> {
        let net = self.net;
        let mut above = Vec::new();
        for (place, &pe) in row.iter().enumerate() {
            let slots = self.piece(stretches, pe, stretch).map_or(&[][..], |piece| &piece.inputs);
            for (input, slot) in slots.iter().enumerate() {
                let end = net.input(pe as usize, *slot);
                if self.is_from_above(stretches, stretch, end) {
                    above.push(Above { place, input, begin: self.streams.unread(end) });
                }
            }
        }
        above
    }

    /// Whether a PE of another row sends to an end in this stretch.
    fn is_from_above(&self, stretches: &Stretches, stretch: usize, end: u32) -> bool {
        let Some(e) =
            self.net.ends.get(end as usize).filter(|_| self.streams.sender(end) == Sender::OtherRow)
        else {
            return false;
        };
        let Origin::Pe(from) = self.net.streams[e.stream as usize].origin else { return false };
        let sends = |slot: &usize| self.net.output(from as usize, *slot) == e.stream;
        self.piece(stretches, from, stretch).is_some_and(|piece| piece.outputs.iter().any(sends))
    }

    /// For every input with words that rows above have sent: the PE of a row before that reads it there, and by how much
    /// later than there they come, least and most; none if that cannot be told. The two rows look the same, so what comes from
    /// above in one does so in the other.
    fn fed(
        &mut self,
        stretches: &Stretches,
        stretch: usize,
        known: &Timed,
        row: &Group,
    ) -> Option<Vec<(u32, f64, f64)>> {
        let net = self.net;
        let mut fed = Vec::with_capacity(known.above.len());
        for &Above { place, input, begin } in &known.above {
            let (a, b) = (known.led.leader[place], row[place]);
            let (own, other) = (self.piece(stretches, a, stretch)?, self.piece(stretches, b, stretch)?);
            let (from, to) =
                (net.input(a as usize, own.inputs[input]), net.input(b as usize, other.inputs[input]));
            let (least, most) = self.comes_apart((from, begin?), to)?;
            fed.push((a, least, most));
        }
        Some(fed)
    }

    /// By how much the words sent to an end come later than those sent to the other from a piece on, least and most; none
    /// if that cannot be told.
    fn comes_apart(&mut self, (from, begin): (u32, usize), to: u32) -> Option<(f64, f64)> {
        let other = self.streams.unread(to)?;
        let pieces = |end: u32, begin: usize| {
            let end = &self.net.ends[end as usize];
            (self.streams.words(end.stream).pieces().get(begin..), f64::from(end.latency))
        };
        let ((a, way), (b, other_way)) = (pieces(from, begin), pieces(to, other));
        let (least, most) = later_than(b?, a?)?;
        let by = other_way - way;
        Some((least + by, most + by))
    }
}
