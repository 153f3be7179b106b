//! Actors and streams as a graph that falls into pieces: what is on no circle is left out.

use super::bridges::on_cycles;
use super::rehearse::{Piece, Wire};
use super::shape::Shapes;
use super::skeleton::Items;
use std::collections::BTreeSet;
use std::rc::Rc;

/// What an actor does at an item: a stream, whether words are sent, and the words of each step.
pub type Use = (usize, bool, u32, u64);

/// Actors: by class of rows and column.
#[derive(Default)]
pub struct Folded {
    pub items: Vec<Option<Rc<Items>>>,
    /// Those of an actor by stream.
    pub uses: Vec<Vec<Use>>,
    pub wires: Vec<Wire>,
}

/// What is known of pieces.
pub struct Known {
    shapes: Shapes,
    /// Pieces that come to their end.
    ending: BTreeSet<Vec<u64>>,
    /// Turns of actors that are left.
    left: u64,
}

impl Known {
    /// Nothing, and so many turns to find out more.
    pub fn nothing(turns: u64) -> Self {
        Known { shapes: Shapes::default(), ending: BTreeSet::new(), left: turns }
    }
}

/// Streams of actors that lie on circles, in order, by actor.
struct Kept {
    wires: Vec<u32>,
    /// By actor: its first one.
    first: Vec<usize>,
}

impl Kept {
    fn of(&self, actor: u32) -> &[u32] {
        &self.wires[self.first[actor as usize]..self.first[actor as usize + 1]]
    }
}

impl Folded {
    /// Whether all pieces come to their end.
    pub fn all_end(&self, known: &mut Known) -> bool {
        let kept = self.kept();
        let mut number = vec![u32::MAX; self.wires.len()];
        self.pieces(&kept).iter().all(|members| self.piece(members, &kept, &mut number, known))
    }

    /// What lies on circles of actors and streams.
    fn kept(&self) -> Kept {
        let actors = self.uses.len() as u32;
        let mut edges: Vec<(u32, u32)> = Vec::new();
        for (actor, uses) in (0..).zip(&self.uses) {
            for used in uses.chunk_by(|a, b| a.2 == b.2) {
                let ways = [false, true].into_iter().filter(|out| used.iter().any(|used| used.1 == *out));
                edges.extend(ways.map(|_| (actor, actors + used[0].2)));
            }
        }
        let cyclic = on_cycles(self.uses.len() + self.wires.len(), &edges);
        edges = edges.into_iter().zip(cyclic).filter(|(_, cyclic)| *cyclic).map(|(edge, _)| edge).collect();
        edges.dedup();
        let mut first = vec![0; self.uses.len() + 1];
        edges.iter().for_each(|(actor, _)| first[*actor as usize + 1] += 1);
        (0..self.uses.len()).for_each(|actor| first[actor + 1] += first[actor]);
        Kept { wires: edges.into_iter().map(|(_, wire)| wire - actors).collect(), first }
    }

    /// Actors joined by streams.
    fn pieces(&self, kept: &Kept) -> Vec<Vec<u32>> {
        let actors = self.uses.len() as u32;
        let mut parent: Vec<u32> = (0..actors + self.wires.len() as u32).collect();
        for actor in 0..actors {
            for wire in kept.of(actor) {
                let (a, b) = (root(&mut parent, actor), root(&mut parent, actors + wire));
                parent[a.max(b) as usize] = a.min(b);
            }
        }
        let mut place = vec![usize::MAX; self.uses.len()];
        let mut pieces: Vec<Vec<u32>> = Vec::new();
        for actor in (0..actors).filter(|actor| !kept.of(*actor).is_empty()) {
            // The least of its nodes is an actor, and comes first.
            let place = &mut place[root(&mut parent, actor) as usize];
            if *place == usize::MAX {
                *place = pieces.len();
                pieces.push(Vec::new());
            }
            pieces[*place].push(actor);
        }
        pieces
    }

    /// Whether some actors come to their end, with the streams that are theirs; `number` is by stream.
    fn piece(&self, members: &[u32], kept: &Kept, number: &mut [u32], known: &mut Known) -> bool {
        let mut piece = Piece::default();
        let mut uses: Vec<Use> = Vec::new();
        for &actor in members {
            let mut own = kept.of(actor).iter().copied().peekable();
            uses.clear();
            for used in self.uses[actor as usize].chunk_by(|a, b| a.2 == b.2) {
                if let Some(wire) = own.next_if_eq(&used[0].2) {
                    uses.extend(used);
                    if number[wire as usize] == u32::MAX {
                        number[wire as usize] = piece.wires.len() as u32;
                        piece.wires.push(self.wires[wire as usize]);
                    }
                }
            }
            uses.iter_mut().for_each(|used| used.2 = number[used.2 as usize]);
            piece
                .actors
                .extend(self.items[actor as usize].as_ref().map(|items| known.shapes.of(items, &mut uses)));
        }
        members.iter().flat_map(|actor| kept.of(*actor)).for_each(|wire| number[*wire as usize] = u32::MAX);
        let look = piece.look();
        if known.ending.contains(&look) {
            return true;
        }
        let ends = piece.ends(&mut known.left);
        if ends {
            known.ending.insert(look);
        }
        ends
    }
}

fn root(parent: &mut [u32], mut node: u32) -> u32 {
    while parent[node as usize] != node {
        parent[node as usize] = parent[parent[node as usize] as usize];
        node = parent[node as usize];
    }
    node
}
