//! What a stream carries, as far as it is known, and how far its readers have come.

use super::bursts::Burst;

/// Everything a stream carries, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Words {
    pieces: Vec<Burst>,
    /// The next piece is not joined to the last one.
    sealed: bool,
    /// All words.
    pub total: u64,
}

/// How far a reader has come; on credit it may be ahead of what is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    piece: usize,
    offset: u64,
    /// Words read.
    pub taken: u64,
}

/// A rhythm of equal reads: read number i has its first word at `first + i * period`, its last at `last + i * period`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rhythm {
    /// Number of reads.
    pub reads: u64,
    /// First word of the first read.
    pub first: f64,
    /// Last word of the first read.
    pub last: f64,
    /// Time between reads.
    pub period: f64,
}

/// By how much the words of some pieces are later than those of others, least and most; none if they are not as many, or of
/// another shape.
pub fn later_than(pieces: &[Burst], others: &[Burst]) -> Option<(f64, f64)> {
    let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut a, mut b) = ((0, 0), (0, 0));
    while let (Some(own), Some(other)) = (pieces.get(a.0), others.get(b.0)) {
        let (low, high, words) = own.later_than(a.1, other, b.1)?;
        (least, most) = (least.min(low), most.max(high));
        let beyond = |at: (usize, u64), burst: &Burst| match at.1 + words {
            all if all == burst.total() => (at.0 + 1, 0),
            some => (at.0, some),
        };
        (a, b) = (beyond(a, own), beyond(b, other));
    }
    (a.0 == pieces.len() && b.0 == others.len()).then_some((least, most))
}

/// Pieces behind a single reader are dropped in lots of this many.
const LOT: usize = 4;

impl Words {
    /// Adds a piece behind the others.
    pub fn push(&mut self, burst: Burst) {
        if burst.total() == 0 {
            return;
        }
        self.total += burst.total();
        let sealed = std::mem::take(&mut self.sealed);
        if !self.pieces.last_mut().is_some_and(|last| !sealed && last.takes(&burst)) {
            self.pieces.push(burst);
        }
    }

    /// Begins a new piece with the next words; returns the number of pieces before them.
    pub fn seal(&mut self) -> usize {
        self.sealed = true;
        self.pieces.len()
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[Burst] {
        &self.pieces
    }

    /// When each word leaves, in order.
    pub fn times(&self) -> impl Iterator<Item = f64> + '_ {
        self.pieces.iter().flat_map(|piece| (0..piece.total()).map(|n| piece.word(n)))
    }

    /// Words that leave before `time`.
    pub fn before(&self, time: f64) -> u64 {
        let at = self.pieces.partition_point(|piece| piece.start < time);
        let whole: u64 = self.pieces[..at.saturating_sub(1)].iter().map(Burst::total).sum();
        let Some(last) = at.checked_sub(1).map(|at| &self.pieces[at]) else { return 0 };
        let (mut low, mut high) = (0, last.total());
        while low < high {
            let middle = (low + high) / 2;
            if last.word(middle) < time { low = middle + 1 } else { high = middle }
        }
        whole + low
    }

    /// Words known and not read.
    pub fn ahead(&self, cursor: &Cursor) -> u64 {
        self.total.saturating_sub(cursor.taken)
    }

    /// When the first word kept left its source.
    pub fn first_word(&self) -> f64 {
        self.pieces.first().map_or(0.0, |b| b.word(0))
    }

    /// When the last word known left its source.
    pub fn last_word(&self) -> f64 {
        self.pieces.last().map_or(0.0, |b| b.word(b.total() - 1))
    }

    /// When the last word read left its source; the reader is not on credit.
    pub fn last_taken(&self, cursor: &Cursor) -> f64 {
        match (self.pieces.get(cursor.piece), cursor.offset) {
            (Some(b), n) if n > 0 => b.word(n - 1),
            _ if cursor.piece > 0 => {
                let b = &self.pieces[cursor.piece - 1];
                b.word(b.total() - 1)
            }
            _ => 0.0,
        }
    }

    /// The rhythm of the next reads of `words` words each, as long as it lasts; none if not even one is known.
    pub fn rhythm(&self, cursor: &Cursor, words: u64) -> Option<Rhythm> {
        if self.ahead(cursor) < words {
            return None;
        }
        let b = &self.pieces[cursor.piece];
        let first = b.word(cursor.offset);
        if b.total() - cursor.offset < words {
            return Some(Rhythm { reads: 1, first, last: self.beyond(cursor, words - 1), period: 0.0 });
        }
        let (reads, period) = b.reads(cursor.offset, words);
        let last = if words == 1 { first } else { b.word(cursor.offset + words - 1) };
        Some(Rhythm { reads, first, last, period })
    }

    /// When the word `n` places ahead leaves.
    fn beyond(&self, cursor: &Cursor, n: u64) -> f64 {
        let mut at = cursor.offset + n;
        for b in &self.pieces[cursor.piece..] {
            if at < b.total() {
                return b.word(at);
            }
            at -= b.total();
        }
        self.last_word()
    }

    /// Moves a reader on by `words`, also over words that are not known yet; called with 0 it catches up with what
    /// has become known.
    pub fn advance(&self, cursor: &mut Cursor, words: u64) {
        cursor.taken += words;
        cursor.offset += words;
        while cursor.piece + 1 < self.pieces.len() && cursor.offset >= self.pieces[cursor.piece].total() {
            cursor.offset -= self.pieces[cursor.piece].total();
            cursor.piece += 1;
        }
    }

    /// The piece that a reader takes up next; none if it is inside of one, or ahead of all.
    pub fn next_piece(&self, cursor: &Cursor) -> Option<usize> {
        match cursor.offset {
            0 => Some(cursor.piece),
            n => (cursor.piece + 1 == self.pieces.len() && n == self.pieces[cursor.piece].total())
                .then_some(cursor.piece + 1),
        }
    }

    /// Forgets what the only reader has read.
    pub fn trim(&mut self, cursor: &mut Cursor) {
        if cursor.piece > LOT {
            let gone = cursor.piece - 1;
            self.pieces.drain(..gone);
            cursor.piece -= gone;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keep_the_rhythm_of_bursts() {
        let mut words = Words::default();
        for i in 0..3 {
            words.push(Burst::even(1, 10.0 * f64::from(i), 0.0, 4, 1.0));
        }
        let mut cursor = Cursor::default();
        let whole = words.rhythm(&cursor, 4).unwrap();
        assert_eq!(whole, Rhythm { reads: 3, first: 0.0, last: 3.0, period: 10.0 });
        assert_eq!(words.rhythm(&cursor, 2).unwrap().reads, 2);
        words.advance(&mut cursor, 3);
        assert_eq!(
            words.rhythm(&cursor, 4).unwrap(),
            Rhythm { reads: 1, first: 3.0, last: 12.0, period: 0.0 }
        );
        words.advance(&mut cursor, 10);
        assert_eq!(words.rhythm(&cursor, 1), None);
        words.push(Burst::even(1, 50.0, 0.0, 3, 1.0));
        words.advance(&mut cursor, 0);
        assert_eq!(words.rhythm(&cursor, 1).unwrap().first, 51.0, "one word was read on credit");
        assert_eq!(words.last_taken(&cursor), 50.0);
    }

    #[test]
    fn patterns_of_patterns_repeat() {
        let inner = vec![Burst::even(1, 0.0, 0.0, 2, 1.0), Burst::even(1, 7.0, 0.0, 1, 0.0)];
        let mut words = Words::default();
        words.push(Burst::repeated(4, 100.0, 20.0, inner.clone()));
        let mut cursor = Cursor::default();
        let whole = words.rhythm(&cursor, 3).unwrap();
        assert_eq!(whole, Rhythm { reads: 4, first: 100.0, last: 107.0, period: 20.0 });
        words.advance(&mut cursor, 5);
        let next = words.rhythm(&cursor, 1).unwrap();
        assert_eq!(next, Rhythm { reads: 1, first: 127.0, last: 127.0, period: 0.0 });
        // Four of these, then two words at once, and all of that three times.
        let outer = vec![Burst::repeated(4, 0.0, 20.0, inner), Burst::even(1, 90.0, 0.0, 2, 0.0)];
        let nested = Burst::repeated(3, 1000.0, 100.0, outer);
        assert_eq!(nested.total(), 42);
        assert_eq!((nested.word(14 + 11), nested.word(14 + 13)), (1000.0 + 100.0 + 67.0, 1000.0 + 190.0));
        assert_eq!(nested.reads(14, 3), (4, 20.0), "the inner rhythm, as long as it lasts");
        assert_eq!(nested.reads(0, 14), (3, 100.0));
    }
}
