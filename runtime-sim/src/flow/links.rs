//! Links that streams share: each takes a word per cycle, first come, first served.
//!
//! What the words of a stream lose on the way is known after a run, when it is known when all of them came. The next
//! run sends them that much later, and so on until nothing changes.

use super::words::Words;
use crate::network::{Network, SharedLink};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// By shared link of a stream, as in [`Network::shared`]: by how much each word of the stream is late behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delays {
    by_link: Vec<Vec<f64>>,
}

impl Delays {
    /// By how much word `n` of a stream is late behind its shared link number `shared` of all.
    pub fn of(&self, shared: u32, n: u64) -> f64 {
        let late = self.by_link.get(shared as usize);
        late.and_then(|late| late.get(n as usize).or(late.last())).copied().unwrap_or(0.0)
    }

    /// Lets all words sent pass their shared links; `per_cycle` words pass a link in a cycle.
    pub fn of_words(net: &Network, sent: &[Words], per_cycle: u64) -> Delays {
        let mut crossing = Crossing::new(net, sent, per_cycle);
        (0..net.shared.len() as u32).for_each(|shared| crossing.request(shared));
        crossing.run();
        let late = |shared: u32| {
            let (stream, _) = crossing.place[shared as usize];
            let latency = u64::from(net.shared[shared as usize].latency);
            let own = crossing.passed[shared as usize].iter().zip(&crossing.left[stream as usize]);
            own.map(|(passed, left)| (passed - latency - left) as f64).collect()
        };
        Delays { by_link: (0..net.shared.len() as u32).map(late).collect() }
    }
}

/// Words on their way over shared links.
struct Crossing<'n> {
    net: &'n Network,
    /// By shared link of a stream: the stream, and the shared link before it.
    place: Vec<(u32, Option<u32>)>,
    /// By stream: when its words left.
    left: Vec<Vec<u64>>,
    /// By shared link of a stream: when words passed.
    passed: Vec<Vec<u64>>,
    asking: Vec<bool>,
    /// By link: the first free place, in parts of a cycle.
    free: Vec<u64>,
    wishes: BinaryHeap<Reverse<(u64, u32)>>,
    per_cycle: u64,
}

impl<'n> Crossing<'n> {
    fn new(net: &'n Network, sent: &[Words], per_cycle: u64) -> Self {
        let times = |(words, stream): (&Words, &crate::network::Stream)| match stream.shared {
            0 => Vec::new(),
            _ => words.times().map(|time| (time + 0.5).floor() as u64).collect(),
        };
        let place = net.streams.iter().zip(0..).flat_map(|(s, stream)| {
            let before = move |n: u32| net.shared[(s.first_shared + n) as usize].parent.checked_sub(1);
            (0..s.shared).map(move |n| (stream, before(n).map(|parent| s.first_shared + parent)))
        });
        Crossing {
            net,
            place: place.collect(),
            left: sent.iter().zip(&net.streams).map(times).collect(),
            passed: vec![Vec::new(); net.shared.len()],
            asking: vec![false; net.shared.len()],
            free: vec![0; net.shared_links as usize],
            wishes: BinaryHeap::new(),
            per_cycle: per_cycle.max(1),
        }
    }

    /// Lets the next word of a stream ask for a shared link, if there is one and it does not yet.
    fn request(&mut self, shared: u32) {
        let SharedLink { latency, .. } = self.net.shared[shared as usize];
        let (stream, before) = self.place[shared as usize];
        let n = self.passed[shared as usize].len();
        let (times, way) = match before {
            Some(before) => {
                (&self.passed[before as usize], latency - self.net.shared[before as usize].latency)
            }
            None => (&self.left[stream as usize], latency),
        };
        if let Some(time) = times.get(n)
            && !self.asking[shared as usize]
        {
            self.wishes.push(Reverse((time + u64::from(way), shared)));
            self.asking[shared as usize] = true;
        }
    }

    /// Gives links to all who want them, in order of their wishes.
    fn run(&mut self) {
        while let Some(Reverse((wish, shared))) = self.wishes.pop() {
            self.asking[shared as usize] = false;
            let link = self.net.shared[shared as usize].link as usize;
            let place = self.free[link].max(wish * self.per_cycle);
            self.free[link] = place + 1;
            self.passed[shared as usize].push(place / self.per_cycle);
            let stream = &self.net.streams[self.place[shared as usize].0 as usize];
            for next in stream.first_shared..stream.first_shared + stream.shared {
                if next == shared || self.place[next as usize].1 == Some(shared) {
                    self.request(next);
                }
            }
        }
    }
}
