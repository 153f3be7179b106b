//! Words in time as bursts: a pattern of words that repeats, and patterns of such patterns, without a time per word.

use std::rc::Rc;

/// Times closer than this many cycles are the same.
pub const SAME: f64 = 1e-6;

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
    /// Several bursts one after the other.
    Parts(Rc<Parts>),
}

/// Bursts one after the other, timed from where the first of them is counted from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    list: Vec<Burst>,
    /// By part: words up to its end.
    ends: Vec<u64>,
}

impl Parts {
    /// These bursts.
    pub fn new(list: Vec<Burst>) -> Self {
        let mut words = 0;
        let end = |part: &Burst| {
            words += part.total();
            words
        };
        let ends = list.iter().map(end).collect();
        Parts { list, ends }
    }

    fn words(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn is_like(&self, other: &Parts) -> bool {
        self.ends == other.ends && self.list.iter().zip(&other.list).all(|(a, b)| a.is_like(b))
    }

    /// The part that holds word `n`, and how many words come before it.
    fn holder(&self, n: u64) -> (&Burst, u64) {
        let at = self.ends.partition_point(|end| *end <= n).min(self.list.len() - 1);
        (&self.list[at], if at == 0 { 0 } else { self.ends[at - 1] })
    }
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

    /// `count` times these bursts, timed from `start` and then from every `period` later.
    pub fn repeated(count: u64, start: f64, period: f64, mut list: Vec<Burst>) -> Self {
        match &mut list[..] {
            [one] if one.count == 1 => {
                Burst { count, start: start + one.start, period, pattern: one.pattern.clone() }
            }
            _ => Burst { count, start, period, pattern: Pattern::Parts(Rc::new(Parts::new(list))) },
        }
    }

    /// Words per repetition.
    fn words(&self) -> u64 {
        match &self.pattern {
            Pattern::Even { words, .. } => *words,
            Pattern::Parts(parts) => parts.words(),
        }
    }

    /// All words.
    pub fn total(&self) -> u64 {
        self.count * self.words()
    }

    /// When word `n` leaves.
    pub fn word(&self, n: u64) -> f64 {
        let words = self.words();
        let begin = self.start + (n / words) as f64 * self.period;
        match &self.pattern {
            Pattern::Even { gap, .. } => begin + (n % words) as f64 * gap,
            Pattern::Parts(parts) => {
                let (part, before) = parts.holder(n % words);
                begin + part.word(n % words - before)
            }
        }
    }

    /// How many reads of `words` words from word `offset` on keep one rhythm, and the time between them.
    pub fn reads(&self, offset: u64, words: u64) -> (u64, f64) {
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
        match &self.pattern {
            Pattern::Even { gap, .. } if words <= own - inside => {
                ((own - inside) / words, words as f64 * gap)
            }
            Pattern::Even { .. } => (1, 0.0),
            Pattern::Parts(parts) => {
                let (part, before) = parts.holder(inside);
                match before + part.total() - inside {
                    rest if words <= rest => part.reads(inside - before, words),
                    _ => (1, 0.0),
                }
            }
        }
    }

    /// By how much words are later than as many of `other`, least and most, as far as the two are of one shape, and how many
    /// words that are; `from` words of each are left aside. None if their shapes differ from there on.
    pub fn later_than(&self, from: u64, other: &Burst, other_from: u64) -> Option<(f64, f64, u64)> {
        let left = (self.total() - from).min(other.total() - other_from);
        let at = |n: u64| self.word(from + n) - other.word(other_from + n);
        let over = |places: &[u64], words: u64| {
            let later = places.iter().map(|n| at(*n));
            let (least, most) =
                later.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), t| (a.min(t), b.max(t)));
            Some((least, most, words))
        };
        if self.flat().is_some() && other.flat().is_some() {
            return over(&[0, left - 1], left);
        }
        let (own, others) = (self.words(), other.words());
        let whole =
            own == others && from.is_multiple_of(own) && other_from.is_multiple_of(own) && left >= own;
        match (&self.pattern, &other.pattern) {
            _ if !whole => None,
            (Pattern::Even { .. }, Pattern::Even { .. }) => {
                let last = left / own * own - own;
                over(&[0, own - 1, last, last + own - 1], last + own)
            }
            (Pattern::Parts(a), Pattern::Parts(b)) if a.is_like(b) => {
                let last = left / own * own - own;
                over(&[0, last], last + own)
            }
            _ => None,
        }
    }

    /// Adds a burst that continues the rhythm; false if it does not.
    pub fn takes(&mut self, next: &Burst) -> bool {
        if let (Some((words, gap)), Some((more, next_gap))) = (self.flat(), next.flat()) {
            let step = next.start - self.word(words - 1);
            let gap = if words > 1 { gap } else { step };
            if close(step, gap) && (more == 1 || close(next_gap, gap)) {
                *self = Burst::even(1, self.start, 0.0, words + more, gap);
                return true;
            }
        }
        let continued = self.is_continued_by(next);
        if continued {
            if self.count == 1 {
                self.period = next.start - self.start;
            }
            self.count += next.count;
        }
        continued
    }

    /// All words and their distance, if that is always the same.
    fn flat(&self) -> Option<(u64, f64)> {
        let Pattern::Even { words, gap } = self.pattern else { return None };
        match self.count == 1 || close(self.period, words as f64 * gap) {
            true => Some((self.count * words, gap)),
            false if words == 1 => Some((self.count, self.period)),
            false => None,
        }
    }

    fn is_continued_by(&self, next: &Burst) -> bool {
        let step = next.start - (self.start + (self.count - 1) as f64 * self.period);
        let period = if self.count > 1 { self.period } else { step };
        let alike = match (&self.pattern, &next.pattern) {
            (Pattern::Even { words: a, gap: g }, Pattern::Even { words: b, gap: h }) => {
                a == b && (*a == 1 || close(*g, *h))
            }
            (Pattern::Parts(a), Pattern::Parts(b)) => Rc::ptr_eq(a, b),
            _ => false,
        };
        alike && close(step, period) && (next.count == 1 || close(next.period, period))
    }

    /// What comes `steps` periods after this, which is one after `earlier`: times and numbers of words go on as they
    /// did. Where they would run out, what is left is nothing, and so many words are missing. None if they differ in more.
    pub fn ahead_of(&self, earlier: &Burst, steps: u64) -> Option<(Burst, u64)> {
        let more = |a: u64, b: u64| i128::from(b) + (i128::from(b) - i128::from(a)) * i128::from(steps);
        let single = self.count <= 1 && earlier.count <= 1;
        let mut missing = 0;
        let pattern = match (&earlier.pattern, &self.pattern) {
            (Pattern::Even { words: a, gap: g }, Pattern::Even { words: b, gap: h }) => {
                let words = more(*a, *b);
                missing = u64::try_from(-words).unwrap_or(0);
                (close(*g, *h) || (*a < 2 && *b < 2)).then_some(())?;
                Pattern::Even { words: u64::try_from(words).unwrap_or(0), gap: *h }
            }
            (Pattern::Parts(a), Pattern::Parts(b)) => a.is_like(b).then(|| self.pattern.clone())?,
            _ => return None,
        };
        let start = self.start + (self.start - earlier.start) * steps as f64;
        let count = u64::try_from(more(earlier.count, self.count)).ok()?;
        (single || (missing == 0 && close(self.period, earlier.period))).then_some(())?;
        Some((Burst { count, start, period: self.period, pattern }, missing))
    }

    /// This without its first `words` words, of which there are more; none if that is no burst.
    pub fn without(&self, words: u64) -> Option<Burst> {
        match (&self.pattern, self.count) {
            _ if words == 0 => Some(self.clone()),
            (Pattern::Even { words: all, gap }, 1) => {
                Some(Burst::even(1, self.word(words), 0.0, all - words, *gap))
            }
            _ => None,
        }
    }

    /// Whether `other` has the same words at the same times.
    pub fn is_like(&self, other: &Burst) -> bool {
        let same_period = self.count == 1 || close(self.period, other.period);
        self.count == other.count
            && close(self.start, other.start)
            && same_period
            && match (&self.pattern, &other.pattern) {
                (Pattern::Even { words: a, gap: g }, Pattern::Even { words: b, gap: h }) => {
                    a == b && (*a < 2 || close(*g, *h))
                }
                (Pattern::Parts(a), Pattern::Parts(b)) => Rc::ptr_eq(a, b) || a.is_like(b),
                _ => false,
            }
    }
}

/// Whether two times are the same.
pub fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < SAME
}
