//! What is kept for a trace: what one PE of each class did, and how many words each stream sent when.

use crate::network::{NOBODY, Network};
use crate::trace::Span;
use std::collections::BTreeMap;

/// Longest list of spans; what comes later is not kept.
const MOST: usize = 200_000;

/// Spans of some PEs.
#[derive(Debug, Default)]
pub struct Tracer {
    /// The PEs that are followed: the first of each class.
    pub followed: BTreeMap<u32, usize>,
    /// What they did, each with its PE.
    pub spans: Vec<(u32, Span)>,
}

impl Tracer {
    /// Follows the first PE of each class.
    pub fn new(net: &Network) -> Self {
        let mut first: BTreeMap<u16, u32> = BTreeMap::new();
        for (pe, class) in (0..).zip(&net.class_of).filter(|(_, class)| **class != NOBODY) {
            first.entry(*class).or_insert(pe);
        }
        let followed = first.into_iter().map(|(class, pe)| (pe, usize::from(class))).collect();
        Tracer { followed, spans: Vec::new() }
    }

    /// Whether a PE is followed.
    pub fn follows(&self, pe: u32) -> bool {
        self.followed.contains_key(&pe)
    }

    /// Notes what a PE did from `start` to `end`.
    pub fn span(&mut self, pe: u32, name: &'static str, start: u64, end: u64) {
        if end > start && self.spans.len() < MOST {
            self.spans.push((pe, Span { name: name.into(), start, cycles: end - start }));
        }
    }
}

/// Words sent per stream in equal stretches of time, which double when there would be too many of them.
#[derive(Debug)]
pub struct Histogram {
    /// Cycles of a stretch.
    pub width: u64,
    /// By stream: words per stretch.
    pub words: BTreeMap<u32, Vec<u64>>,
}

/// Most stretches.
const STRETCHES: u64 = 1024;

impl Default for Histogram {
    fn default() -> Self {
        Histogram { width: 16, words: BTreeMap::new() }
    }
}

impl Histogram {
    /// Counts `count` words of a stream at `time`.
    pub fn add(&mut self, stream: u32, time: u64, count: u64) {
        while time / self.width >= STRETCHES {
            self.width *= 2;
            for words in self.words.values_mut() {
                *words = words.chunks(2).map(|pair| pair.iter().sum()).collect();
            }
        }
        let words = self.words.entry(stream).or_default();
        let at = (time / self.width) as usize;
        if words.len() <= at {
            words.resize(at + 1, 0);
        }
        words[at] += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_double_and_no_word_is_lost() {
        let mut histogram = Histogram::default();
        (0..100_000).for_each(|time| histogram.add(3, time, 1));
        assert_eq!(histogram.width, 128);
        assert_eq!(histogram.words[&3].iter().sum::<u64>(), 100_000);
        assert_eq!(histogram.words[&3][0], 128);
    }
}
