//! Words in time as bursts: a pattern of words that repeats, without storing a time per word.

use std::rc::Rc;

/// Times closer than this many cycles are the same.
pub const SAME: f64 = 1e-6;

/// Part of a pattern: `words` words from `at` cycles after the pattern begins, `gap` cycles apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Number of words.
    pub words: u64,
    /// When the first one leaves, after the pattern begins.
    pub at: f64,
    /// From one word to the next.
    pub gap: f64,
}

/// What repeats.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// Words at one distance, the first at once.
    Even {
        /// Number of words.
        words: u64,
        /// From one word to the next.
        gap: f64,
    },
    /// Several such pieces.
    Parts(Rc<[Part]>),
}

/// A regular piece of a stream, timed where it leaves its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Burst {
    /// Number of repetitions.
    pub count: u64,
    /// When the first begins.
    pub start: f64,
    /// From one to the next.
    pub period: f64,
    /// What repeats.
    pub pattern: Pattern,
}

impl Burst {
    /// `count` times `words` words that are `gap` apart.
    pub fn even(count: u64, start: f64, period: f64, words: u64, gap: f64) -> Self {
        Burst { count, start, period, pattern: Pattern::Even { words, gap } }
    }

    /// Words per repetition.
    fn words(&self) -> u64 {
        match &self.pattern {
            Pattern::Even { words, .. } => *words,
            Pattern::Parts(parts) => parts.iter().map(|p| p.words).sum(),
        }
    }

    fn total(&self) -> u64 {
        self.count * self.words()
    }

    /// When word `n` leaves.
    fn word(&self, n: u64) -> f64 {
        let words = self.words();
        let begin = self.start + (n / words) as f64 * self.period;
        match &self.pattern {
            Pattern::Even { gap, .. } => begin + (n % words) as f64 * gap,
            Pattern::Parts(parts) => {
                let (part, inside) = part_of(parts, n % words);
                begin + part.at + inside as f64 * part.gap
            }
        }
    }

    /// How many reads of `words` words from word `offset` on keep one rhythm, and the time between them.
    fn reads(&self, offset: u64, words: u64) -> (u64, f64) {
        let (left, own) = (self.total() - offset, self.words());
        let inside = offset % own;
        if let Pattern::Even { gap, .. } = self.pattern
            && (self.count == 1 || (self.period - own as f64 * gap).abs() < SAME)
        {
            return (left / words, words as f64 * gap);
        }
        if inside == 0 && words.is_multiple_of(own) {
            return (left / words, (words / own) as f64 * self.period);
        }
        let (rest, gap) = match &self.pattern {
            Pattern::Even { gap, .. } => (own - inside, *gap),
            Pattern::Parts(parts) => {
                let (part, before) = part_of(parts, inside);
                (part.words - before, part.gap)
            }
        };
        if words <= rest { (rest / words, words as f64 * gap) } else { (1, 0.0) }
    }
}

/// The part that holds word `n` of a pattern, and how many of its words come before.
fn part_of(parts: &[Part], n: u64) -> (Part, u64) {
    let mut rest = n;
    for part in parts {
        if rest < part.words {
            return (*part, rest);
        }
        rest -= part.words;
    }
    (parts[parts.len() - 1], rest)
}

/// Everything a stream carries, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Bursts {
    pieces: Vec<Burst>,
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

/// Pieces behind a single reader are dropped in lots of this many.
const LOT: usize = 64;

impl Bursts {
    /// Adds a piece behind the others.
    pub fn push(&mut self, burst: Burst) {
        if burst.total() == 0 {
            return;
        }
        self.total += burst.total();
        match self.pieces.last_mut() {
            Some(last) if joins(last, &burst) => {
                if last.count == 1 {
                    last.period = burst.start - last.start;
                }
                last.count += burst.count;
            }
            _ => self.pieces.push(burst),
        }
    }

    /// The same words `delay` later.
    pub fn later(&self, delay: f64) -> Self {
        let mut later = self.clone();
        later.pieces.iter_mut().for_each(|piece| piece.start += delay);
        later
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

    /// Forgets what the only reader has read.
    pub fn trim(&mut self, cursor: &mut Cursor) {
        if cursor.piece > LOT {
            let gone = cursor.piece - 1;
            self.pieces.drain(..gone);
            cursor.piece -= gone;
        }
    }
}

/// Whether `next` continues the rhythm of `last`.
fn joins(last: &Burst, next: &Burst) -> bool {
    let alike = match (&last.pattern, &next.pattern) {
        (Pattern::Even { words: a, gap: g }, Pattern::Even { words: b, gap: h }) => {
            a == b && (g - h).abs() < SAME
        }
        _ => false,
    };
    let step = next.start - (last.start + (last.count - 1) as f64 * last.period);
    let period = if last.count > 1 { last.period } else { step };
    alike && (step - period).abs() < SAME && (next.count == 1 || (next.period - period).abs() < SAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keep_the_rhythm_of_bursts() {
        let mut bursts = Bursts::default();
        for i in 0..3 {
            bursts.push(Burst::even(1, 10.0 * f64::from(i), 0.0, 4, 1.0));
        }
        let mut cursor = Cursor::default();
        let whole = bursts.rhythm(&cursor, 4).unwrap();
        assert_eq!(whole, Rhythm { reads: 3, first: 0.0, last: 3.0, period: 10.0 });
        assert_eq!(bursts.rhythm(&cursor, 2).unwrap().reads, 2);
        bursts.advance(&mut cursor, 3);
        assert_eq!(
            bursts.rhythm(&cursor, 4).unwrap(),
            Rhythm { reads: 1, first: 3.0, last: 12.0, period: 0.0 }
        );
        bursts.advance(&mut cursor, 10);
        assert_eq!(bursts.rhythm(&cursor, 1), None);
        bursts.push(Burst::even(1, 50.0, 0.0, 3, 1.0));
        bursts.advance(&mut cursor, 0);
        assert_eq!(bursts.rhythm(&cursor, 1).unwrap().first, 51.0, "one word was read on credit");
        assert_eq!(bursts.last_taken(&cursor), 50.0);
    }

    #[test]
    fn patterns_of_parts_repeat() {
        let parts = [Part { words: 2, at: 0.0, gap: 1.0 }, Part { words: 1, at: 7.0, gap: 0.0 }];
        let mut bursts = Bursts::default();
        bursts.push(Burst { count: 4, start: 100.0, period: 20.0, pattern: Pattern::Parts(parts.into()) });
        let mut cursor = Cursor::default();
        let whole = bursts.rhythm(&cursor, 3).unwrap();
        assert_eq!(whole, Rhythm { reads: 4, first: 100.0, last: 107.0, period: 20.0 });
        bursts.advance(&mut cursor, 5);
        assert_eq!(
            bursts.rhythm(&cursor, 1).unwrap(),
            Rhythm { reads: 1, first: 127.0, last: 127.0, period: 0.0 }
        );
    }
}
