//! Words in time as bursts: `count` bursts of `words` words, burst starts `period` apart, words in a burst `gap` apart.

/// Times closer than this many cycles are the same.
const SAME: f64 = 1e-6;

/// A regular piece of a stream, timed where it leaves its source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burst {
    /// Number of bursts.
    pub count: u64,
    /// Words per burst.
    pub words: u64,
    /// When the first word leaves.
    pub start: f64,
    /// From one burst to the next.
    pub period: f64,
    /// From one word to the next in a burst.
    pub gap: f64,
}

impl Burst {
    fn total(&self) -> u64 {
        self.count * self.words
    }

    /// When word `n` leaves.
    fn word(&self, n: u64) -> f64 {
        self.start + (n / self.words) as f64 * self.period + (n % self.words) as f64 * self.gap
    }

    /// Whether bursts follow each other without a break in rhythm.
    fn even(&self) -> bool {
        self.count == 1 || (self.period - self.words as f64 * self.gap).abs() < SAME
    }
}

/// Everything a stream carries, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Bursts {
    pieces: Vec<Burst>,
    /// All words.
    pub total: u64,
}

/// How far a reader has come.
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

    /// Words known and not read.
    pub fn ahead(&self, cursor: &Cursor) -> u64 {
        self.total - cursor.taken
    }

    /// When the last word read left its source.
    pub fn last_word(&self) -> f64 {
        self.pieces.last().map_or(0.0, |b| b.word(b.total() - 1))
    }

    /// The rhythm of the next reads of `words` words each, as long as it lasts; none if not even one is known.
    pub fn rhythm(&self, cursor: &Cursor, words: u64) -> Option<Rhythm> {
        if self.ahead(cursor) < words {
            return None;
        }
        let b = &self.pieces[cursor.piece];
        let left = b.total() - cursor.offset;
        let first = b.word(cursor.offset);
        if left < words {
            return Some(Rhythm { reads: 1, first, last: self.beyond(cursor, words - 1), period: 0.0 });
        }
        let inside = cursor.offset % b.words;
        let (reads, period) = if b.even() {
            (left / words, words as f64 * b.gap)
        } else if inside == 0 && words.is_multiple_of(b.words) {
            (left / words, (words / b.words) as f64 * b.period)
        } else if inside + words <= b.words {
            ((b.words - inside) / words, words as f64 * b.gap)
        } else {
            (1, 0.0)
        };
        Some(Rhythm { reads, first, last: b.word(cursor.offset + words - 1), period })
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

    /// Moves a reader on.
    pub fn advance(&self, cursor: &mut Cursor, words: u64) {
        cursor.taken += words;
        cursor.offset += words;
        while let Some(b) = self.pieces.get(cursor.piece)
            && cursor.offset >= b.total()
            && cursor.piece + 1 < self.pieces.len()
        {
            cursor.offset -= b.total();
            cursor.piece += 1;
        }
    }

    /// Brings a reader that stood at the end of what was known to the words that came since.
    pub fn settle(&self, cursor: &mut Cursor) {
        self.advance(cursor, 0);
    }
}

/// Whether `next` continues the rhythm of `last`.
fn joins(last: &Burst, next: &Burst) -> bool {
    let alike = last.words == next.words && (last.gap - next.gap).abs() < SAME;
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
            bursts.push(Burst { count: 1, words: 4, start: 10.0 * f64::from(i), period: 0.0, gap: 1.0 });
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
        bursts.advance(&mut cursor, 9);
        assert_eq!(bursts.rhythm(&cursor, 1), None);
        bursts.push(Burst { count: 1, words: 1, start: 50.0, period: 0.0, gap: 0.0 });
        bursts.settle(&mut cursor);
        assert_eq!(bursts.rhythm(&cursor, 1).unwrap().first, 50.0);
    }
}
