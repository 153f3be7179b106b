//! Words through switches: which way they take is decided at run time, so they are only counted in sum.

use super::fault::{CheckError, Fault};
use super::words::{Words, host_words};
use crate::network::{NONE, Origin, Target};
use std::collections::BTreeMap;

impl Words<'_> {
    /// Streams joined by switches, where no word is ever copied: all words sent equal all words read.
    pub(super) fn switched(&mut self) {
        let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
        let roots = self.roots();
        for index in 0..self.net.streams.len() as u32 {
            let stream = &self.net.streams[index as usize];
            let touches = |e: &crate::network::End| matches!(e.target, Target::Switch(..));
            if !matches!(stream.origin, Origin::Switch(..)) && !self.net.ends_of(index).iter().any(touches) {
                continue;
            }
            let sent = self.sent(stream.origin, stream.colour);
            let group = groups.entry(roots[index as usize]).or_insert_with(|| Group::new(index));
            group.copies |= sent.is_none() && !matches!(stream.origin, Origin::Switch(..));
            let sent = sent.unwrap_or(0);
            group.sent += sent;
            group.copies |= stream.ends != 1;
            for end in self.net.ends_of(index) {
                let read = match end.target {
                    Target::Pe(pe) => self.read(pe, stream.colour).unwrap_or_else(|| {
                        group.copies = true;
                        0
                    }),
                    Target::Host(lane) => host_words(self.program, &self.net.host_out[lane as usize]),
                    Target::Switch(node, _) => {
                        let node = &self.net.switches[node as usize];
                        let route = &self.program.classes[node.class as usize].routes[&node.colour];
                        group.copies |= route.positions.iter().any(|p| p.to.len() != 1);
                        0
                    }
                };
                group.read += read;
            }
        }
        for group in groups.values().filter(|g| !g.copies && g.sent != g.read) {
            let stream = &self.net.streams[group.stream as usize];
            let (_, pe) = self.name_origin(stream.origin);
            let (sender, reader) =
                ("all PEs that share the switched route send".into(), "its readers".into());
            let fault = Fault::Count { sender, sent: group.sent, reader, read: group.read };
            let error = CheckError::new(fault).colour(stream.colour);
            self.errors.push(match pe {
                Some(pe) => error.at(self.net.coord(pe)),
                None => error,
            });
        }
    }

    /// One representative per set of streams that switches connect.
    fn roots(&self) -> Vec<u32> {
        let mut root: Vec<u32> = (0..self.net.streams.len() as u32).collect();
        fn find(root: &mut [u32], mut s: u32) -> u32 {
            while root[s as usize] != s {
                root[s as usize] = root[root[s as usize] as usize];
                s = root[s as usize];
            }
            s
        }
        for node in &self.net.switches {
            let ends = node.ends.iter().filter(|e| **e != NONE).map(|e| self.net.ends[*e as usize].stream);
            let all: Vec<u32> = ends.chain(node.streams.iter().copied().filter(|s| *s != NONE)).collect();
            for pair in all.windows(2) {
                let (a, b) = (find(&mut root, pair[0]), find(&mut root, pair[1]));
                root[a.max(b) as usize] = a.min(b);
            }
        }
        (0..root.len() as u32).map(|s| find(&mut root, s)).collect()
    }
}

struct Group {
    stream: u32,
    sent: u64,
    read: u64,
    copies: bool,
}

impl Group {
    fn new(stream: u32) -> Self {
        Group { stream, sent: 0, read: 0, copies: false }
    }
}
