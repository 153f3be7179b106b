//! Which shared links must be watched. Streams that all come from one shared link over the same way have their order
//! and their distances from there: they pass the next link without waiting for each other, and nobody need decide who
//! is first. What is left are the links where streams meet.

use super::Network;

impl Network {
    /// The same streams without the shared links at which no two words can meet. Changes no time.
    pub fn thinned(mut self) -> Network {
        let gone = self.needless();
        if !gone.contains(&true) {
            return self;
        }
        let old = std::mem::take(&mut self.shared);
        for stream in &mut self.streams {
            let (first, count) = (stream.first_shared as usize, stream.shared as usize);
            stream.first_shared = self.shared.len() as u32;
            // By number in the stream, 0 for its source: the number that is left of it, or of the last one before it.
            let mut new = vec![0u32; count + 1];
            for n in 1..=count {
                let link = &old[first + n - 1];
                new[n] = new[link.parent as usize];
                if !gone[first + n - 1] {
                    let parent = new[n];
                    self.shared.push(super::SharedLink { parent, ..*link });
                    new[n] = self.shared.len() as u32 - stream.first_shared;
                }
            }
            stream.shared = self.shared.len() as u32 - stream.first_shared;
            let ends = stream.first_end as usize..(stream.first_end + stream.ends) as usize;
            self.ends[ends].iter_mut().for_each(|end| end.column = new[end.column as usize]);
        }
        self.number_shared();
        self
    }

    /// By shared link of a stream: whether all streams on the link come from one and the same shared link before it.
    fn needless(&self) -> Vec<bool> {
        let mut before = vec![u32::MAX; self.shared.len()];
        for stream in &self.streams {
            let links = stream.first_shared..stream.first_shared + stream.shared;
            for n in links.filter(|n| self.shared[*n as usize].parent > 0) {
                before[n as usize] = stream.first_shared + self.shared[n as usize].parent - 1;
            }
        }
        let mut users: Vec<(u32, u32)> =
            self.shared.iter().zip(0..).map(|(shared, n)| (shared.link, n)).collect();
        users.sort_unstable();
        let mut gone = vec![false; self.shared.len()];
        loop {
            let mut changed = false;
            for link in users.chunk_by(|a, b| a.0 == b.0) {
                if gone[link[0].1 as usize] {
                    continue;
                }
                let from = |n: u32| {
                    let last = self.shared.get(before[n as usize] as usize)?;
                    Some((last.link, self.shared[n as usize].latency - last.latency))
                };
                let first = from(link[0].1);
                if first.is_some() && link.iter().all(|(_, n)| from(*n) == first) {
                    link.iter().for_each(|(_, n)| gone[*n as usize] = true);
                    changed = true;
                }
            }
            if !changed {
                return gone;
            }
            // Streams that crossed a link which is gone come from the one before it.
            for n in 0..before.len() {
                while before[n] != u32::MAX && gone[before[n] as usize] {
                    before[n] = before[before[n] as usize];
                }
            }
        }
    }

    /// Numbers shared links from 0 without gaps, in their order.
    pub(super) fn number_shared(&mut self) {
        let mut links: Vec<u32> = self.shared.iter().map(|shared| shared.link).collect();
        links.sort_unstable();
        links.dedup();
        let place = |link: u32| links.partition_point(|known| *known < link) as u32;
        self.shared.iter_mut().for_each(|shared| shared.link = place(shared.link));
        self.shared_links = links.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    use crate::network::Network;
    use crate::text::parse;
    use crate::{FabricSpec, check, event};

    /// Two colours westwards over the same five links, the second from the middle.
    const TEXT: &str = "wafer 6 x 1 tensor t[8]
class root at (0, 0) { buffer v: f32[8] @0 store t dims 8 at d0 route 0: east -> ramp route 1: east -> ramp
  task m start { par { mov v[0] <- in(0) len 4 mov v[4] <- in(1) len 4 } } }
class pass at (1, 0) { route 0: east -> west route 1: east -> west }
class pass2 at (2, 0) { route 0: east -> west route 1: east -> west }
class mid at (3, 0) { buffer v: f32[4] @0 route 0: east -> west route 1: ramp -> west
  task m start { mov v <- 1.0 len 4 mov out(1) <- v len 4 } }
class pass3 at (4, 0) { route 0: east -> west route 1: east -> west }
class end at (5, 0) { buffer v: f32[4] @0 route 0: ramp -> west
  task m start { mov v <- 2.0 len 4 mov out(0) <- v len 4 } }";

    #[test]
    fn links_are_watched_where_streams_meet_only() {
        let (program, spec) = (parse(TEXT, "meet").unwrap(), FabricSpec::wse2());
        let whole = Network::build(&program, &spec).unwrap();
        let links = |net: &Network| (net.shared_links, net.shared.len());
        // Of the links out of 4, 3, 2 and 1, the last three have two streams on them, which meet at the first of these.
        assert_eq!(links(&whole), (4, 7));
        let thin = whole.thinned();
        assert_eq!(links(&thin), (2, 3));
        let run = event::simulate(&check(&program, &spec).unwrap(), Default::default()).unwrap();
        assert_eq!(run.tensors["t"], [2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]);
    }
}
