//! Which rows or columns of a parameter a rank holds.

use serde::{Deserialize, Serialize};

/// The part of a parameter that a rank holds: `length` rows or columns of the whole from `start` on, and zeros up to `held`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The axis that is split: 0 for rows (outputs), 1 for columns (inputs).
    pub axis: usize,
    /// First index on that axis.
    pub start: u64,
    /// How many indices of the whole; 0 on a rank that only pads.
    pub length: u64,
    /// Length of the axis on the rank, zeros included.
    pub held: u64,
    /// Length of the axis of the whole parameter.
    pub whole: u64,
}

impl Part {
    /// The shape of the part of a parameter of `shape`.
    pub fn shape(&self, shape: &[u64]) -> Vec<u64> {
        let mut part = shape.to_vec();
        if let Some(length) = part.get_mut(self.axis) {
            *length = self.held;
        }
        part
    }

    /// The part of a parameter of `shape`, row-major, of `size` items an element (bytes, or 1 for whole elements); `zero`
    /// where the rank pads. `whole` holds as many items as the shape says.
    pub fn cut<T: Copy>(&self, shape: &[u64], size: usize, whole: &[T], zero: T) -> Vec<T> {
        let inner: u64 = shape.iter().skip(self.axis + 1).product();
        let run = |indices: u64| (indices * inner) as usize * size;
        let (all, held, length) = (run(self.whole), run(self.held), run(self.length));
        let rows = whole.chunks(all.max(1));
        let mut part = vec![zero; rows.len() * held];
        for (row, into) in rows.zip(part.chunks_mut(held.max(1))) {
            into[..length].copy_from_slice(&row[run(self.start)..][..length]);
        }
        part
    }
}

impl Part {
    /// Adds a part to a whole parameter of `shape`, row-major, where it belongs; padding is left out. The other way of
    /// [`Part::cut`].
    pub fn place<T: Copy + std::ops::AddAssign>(&self, shape: &[u64], part: &[T], whole: &mut [T]) {
        let inner: u64 = shape.iter().skip(self.axis + 1).product();
        let run = |indices: u64| (indices * inner) as usize;
        let (all, held, length) = (run(self.whole).max(1), run(self.held).max(1), run(self.length));
        for (row, from) in whole.chunks_mut(all).zip(part.chunks(held)) {
            let into = row[run(self.start)..].iter_mut();
            into.zip(&from[..length]).for_each(|(sum, x)| *sum += *x);
        }
    }
}

/// An axis that is split over the ranks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// First index that this rank has.
    pub start: u64,
    /// How many of them; the rest of `held` is padding.
    pub length: u64,
    /// Indices on every rank.
    pub held: u64,
    /// Indices in all.
    pub whole: u64,
}

impl Split {
    /// `whole` indices in runs of equal length, the last ones shorter or empty.
    pub fn even(whole: u64, ranks: u64, rank: u64) -> Split {
        let held = whole.div_ceil(ranks);
        let start = held.saturating_mul(rank).min(whole);
        Split { start, length: held.min(whole - start), held, whole }
    }

    /// The same with `unit` elements for each index.
    pub fn times(self, unit: u64) -> Split {
        let Split { start, length, held, whole } = self;
        Split { start: start * unit, length: length * unit, held: held * unit, whole: whole * unit }
    }

    /// The part of a parameter split on an axis.
    pub fn part(self, axis: usize) -> Part {
        let Split { start, length, held, whole } = self;
        Part { axis, start, length, held, whole }
    }
}

/// Query heads and key-value heads of a rank. Every rank has the same number of both, and each of its query heads finds
/// its key-value head by the same division as in the whole model.
///
/// With at least as many key-value heads as ranks a rank takes whole groups. With fewer, several ranks share a key-value
/// head and divide the query heads of its group.
pub(super) fn heads(heads: u64, kv_heads: u64, ranks: u64, rank: u64) -> (Split, Split) {
    let group = heads / kv_heads.max(1);
    if ranks <= kv_heads {
        let kv = Split::even(kv_heads, ranks, rank);
        return (kv.times(group), kv);
    }
    let sharers = ranks / kv_heads.max(1);
    let owner = rank / sharers;
    if owner >= kv_heads {
        let idle = |held: u64, whole: u64| Split { start: whole, length: 0, held, whole };
        return (idle(group.div_ceil(sharers), heads), idle(1, kv_heads));
    }
    let within = Split::even(group, sharers, rank % sharers);
    let q = Split { start: owner * group + within.start, whole: heads, ..within };
    (q, Split { start: owner, length: 1, held: 1, whole: kv_heads })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every query head is held once, next to its own key-value head.
    #[test]
    fn every_query_head_has_one_home_with_its_keys() {
        for (all, kv_heads) in [(4, 4), (4, 2), (6, 2), (8, 1), (3, 3), (12, 4), (10, 5), (1, 1)] {
            for ranks in 1..=9 {
                let mut homes = vec![0; all as usize];
                let places: Vec<(Split, Split)> =
                    (0..ranks).map(|rank| heads(all, kv_heads, ranks, rank)).collect();
                for (q, kv) in &places {
                    assert_eq!((q.held, kv.held), (places[0].0.held, places[0].1.held));
                    assert_eq!(q.held % kv.held, 0);
                    for i in 0..q.length {
                        homes[(q.start + i) as usize] += 1;
                        let local = i / (q.held / kv.held);
                        assert_eq!(
                            kv.start + local,
                            (q.start + i) / (all / kv_heads),
                            "{all}/{kv_heads} on {ranks}"
                        );
                        assert!(local < kv.length);
                    }
                }
                assert!(homes.iter().all(|n| *n == 1), "{all}/{kv_heads} on {ranks}: {homes:?}");
            }
        }
    }

    #[test]
    fn rows_and_columns_are_cut_and_padded() {
        let whole: Vec<u32> = (1..=15).collect();
        let cut =
            |axis, rank, ranks| Split::even([3, 5][axis], ranks, rank).part(axis).cut(&[3, 5], 1, &whole, 0);
        assert_eq!(cut(0, 1, 2), [11, 12, 13, 14, 15, 0, 0, 0, 0, 0]);
        assert_eq!(cut(1, 1, 2), [4, 5, 0, 9, 10, 0, 14, 15, 0]);
        assert_eq!(cut(1, 0, 5), [1, 6, 11]);
        let bytes: Vec<u8> = (0..12).collect();
        assert_eq!(Split::even(3, 3, 2).part(1).cut(&[2, 3], 2, &bytes, 0), [4, 5, 10, 11]);
    }

    #[test]
    fn parts_go_back_to_where_they_were_cut() {
        let whole: Vec<u32> = (1..=15).collect();
        for (axis, ranks) in [(0, 2), (1, 2), (1, 5), (0, 4)] {
            let mut back = vec![0; 15];
            for rank in 0..ranks {
                let part = Split::even([3, 5][axis], ranks, rank).part(axis);
                part.place(&[3, 5], &part.cut(&[3, 5], 1, &whole, 7), &mut back);
            }
            assert_eq!(back, whole, "axis {axis} over {ranks}");
        }
    }

    #[test]
    fn an_axis_that_does_not_divide_is_padded_at_its_end() {
        let runs: Vec<(u64, u64)> =
            (0..4).map(|r| Split::even(10, 4, r)).map(|s| (s.start, s.length)).collect();
        assert_eq!(runs, [(0, 3), (3, 3), (6, 3), (9, 1)]);
        assert_eq!(Split::even(2, 4, 3), Split { start: 2, length: 0, held: 1, whole: 2 });
    }
}
