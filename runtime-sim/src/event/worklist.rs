//! Actors that can go on, row by row, so that what is at work together lies together in memory.
//!
//! The order is a matter of speed only: what depends on the order of time waits for a decision (`super::links`).

use std::collections::VecDeque;

/// Actors to run; each is in it once.
#[derive(Debug)]
pub struct Worklist {
    first_row: u32,
    rows: Vec<VecDeque<u32>>,
    /// Rows with work, each once.
    open: VecDeque<u32>,
    queued: Vec<bool>,
    /// State of the shuffle; 0 for none.
    shuffle: u64,
}

impl Worklist {
    /// No work yet, for rows `first..end` and actors below `actors`; shuffled if `shuffle` is not 0.
    pub fn new(first: u32, end: u32, actors: u32, shuffle: u64) -> Self {
        let rows = vec![VecDeque::new(); (end - first).max(1) as usize];
        Worklist {
            first_row: first,
            rows,
            open: VecDeque::new(),
            queued: vec![false; actors as usize],
            shuffle,
        }
    }

    /// Adds an actor at row `y`.
    pub fn add(&mut self, actor: u32, y: u32) {
        if std::mem::replace(&mut self.queued[actor as usize], true) {
            return;
        }
        let row = (y - self.first_row) as usize;
        if self.rows[row].is_empty() && self.open.front() != Some(&(row as u32)) {
            self.open.push_back(row as u32);
        }
        self.rows[row].push_back(actor);
    }

    /// The next actor; the row at work is finished first.
    pub fn next(&mut self) -> Option<u32> {
        while let Some(&row) = self.open.front() {
            if self.shuffle != 0 {
                self.shuffle = self.shuffle.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (row, random) = (&mut self.rows[row as usize], (self.shuffle >> 33) as usize);
                if !row.is_empty() {
                    let other = random % row.len();
                    row.swap(0, other);
                }
                if random.is_multiple_of(3) {
                    self.open.rotate_left(1);
                    continue;
                }
            }
            if let Some(actor) = self.rows[row as usize].pop_front() {
                self.queued[actor as usize] = false;
                return Some(actor);
            }
            self.open.pop_front();
        }
        None
    }
}

#[cfg(test)]
impl Worklist {
    /// Bytes that are held.
    pub fn held_bytes(&self) -> usize {
        let queues: usize = self.rows.iter().map(|row| row.capacity() * size_of::<u32>()).sum();
        size_of_val(&self.queued[..]) + size_of_val(&self.rows[..]) + queues
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_actor_is_in_it_once_and_rows_go_one_after_the_other() {
        let mut work = Worklist::new(3, 5, 10, 0);
        [(7, 3), (8, 4), (9, 3), (7, 3)].into_iter().for_each(|(actor, y)| work.add(actor, y));
        assert_eq!(work.next(), Some(7));
        work.add(7, 3);
        let rest: Vec<u32> = std::iter::from_fn(|| work.next()).collect();
        assert_eq!(rest, [9, 7, 8]);
    }
}
