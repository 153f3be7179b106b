//! Links that colours share: each takes a word per cycle, first come, first served, the stream traced first among those
//! that come in the same cycle.

use crate::network::Network;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// All shared links.
#[derive(Debug, Default)]
pub struct Arbiter {
    /// By use of a link: its stream and its number in the stream, from 1.
    uses: Vec<(u32, u32)>,
    /// By use: whether a word is asking.
    asking: Vec<bool>,
    /// By link: who asks, by wish.
    queues: Vec<BinaryHeap<Reverse<(u64, u32)>>>,
    /// By link: the first free place, in parts of a cycle.
    free: Vec<u64>,
    per_cycle: u64,
}

impl Arbiter {
    /// Free links that take `per_cycle` words per cycle.
    pub fn new(net: &Network, per_cycle: u64) -> Self {
        let uses =
            net.streams.iter().zip(0..).flat_map(|(s, stream)| (1..=s.shared).map(move |c| (stream, c)));
        let links = net.shared_links as usize;
        Arbiter {
            uses: uses.collect(),
            asking: vec![false; net.shared.len()],
            queues: vec![BinaryHeap::new(); links],
            free: vec![0; links],
            per_cycle: per_cycle.max(1),
        }
    }

    /// Stream and number in the stream of a use.
    pub fn place(&self, shared: u32) -> (u32, u32) {
        self.uses[shared as usize]
    }

    /// Marks that a word of this use asks; false if one does already.
    pub fn enter(&mut self, shared: u32) -> bool {
        !std::mem::replace(&mut self.asking[shared as usize], true)
    }

    /// A word wants to pass `link` at `wish`.
    pub fn ask(&mut self, link: u32, wish: u64, shared: u32) {
        self.queues[link as usize].push(Reverse((wish, shared)));
    }

    /// The next word that wants to pass by `now`, and when it does.
    pub fn grant(&mut self, link: u32, now: u64) -> Option<(u64, u32)> {
        let queue = &mut self.queues[link as usize];
        let &Reverse((wish, shared)) = queue.peek()?;
        if wish > now {
            return None;
        }
        queue.pop();
        self.asking[shared as usize] = false;
        let place = self.free[link as usize].max(wish * self.per_cycle);
        self.free[link as usize] = place + 1;
        Some((place / self.per_cycle, shared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_link_serves_in_order_of_wishes() {
        let mut arbiter = Arbiter {
            asking: vec![true; 4],
            queues: vec![BinaryHeap::new()],
            free: vec![0],
            per_cycle: 1,
            ..Arbiter::default()
        };
        [(5, 1), (5, 0), (4, 2), (9, 3)].into_iter().for_each(|(wish, who)| arbiter.ask(0, wish, who));
        let granted: Vec<_> = std::iter::from_fn(|| arbiter.grant(0, 5)).collect();
        assert_eq!(granted, [(4, 2), (5, 0), (6, 1)]);
    }
}
