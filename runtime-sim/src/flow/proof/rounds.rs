//! Actors that wait for each other behind each turn of what they repeat: rounds that begin and end with nothing under way.
//!
//! A round in which all do what they did in the one before ends like it. An actor that only hands on, in a round, as many
//! words as it reads hands each on at once: the words go from who sends them first to who keeps them, where there is room
//! for at least as many as in the last queue on the way.

use super::rehearse::{Actor, Piece, Run, Wire};
use super::shape::Turn;
use crate::network::NONE;

/// Actors under way, round by round.
pub struct Rounds<'a> {
    piece: &'a Piece,
    /// By stream: how many actors read it at all.
    readers: Vec<u32>,
    /// By actor: its part, and the turns of it that are left.
    at: Vec<(usize, u64)>,
    /// By stream: who hands words on to it, and how many, in this round.
    passed: Vec<Option<(u32, u64)>>,
    /// By stream: how many actors read it in this round, and the words that are kept of it.
    hear: Vec<u32>,
    kept: Vec<u64>,
    /// By stream: its number in the rehearsal of this round.
    number: Vec<u32>,
}

impl<'a> Rounds<'a> {
    /// All at their beginning.
    pub fn of(piece: &'a Piece) -> Self {
        let count = piece.wires.len();
        let mut readers = vec![0u32; count];
        for Actor { shape, wires } in &piece.actors {
            shape.reads.iter().for_each(|own| readers[wires[*own as usize] as usize] += 1);
        }
        let first = |actor: &Actor| (0, actor.shape.parts.first().map_or(0, |part| part.times));
        Rounds {
            piece,
            readers,
            at: piece.actors.iter().map(first).collect(),
            passed: vec![None; count],
            hear: vec![0; count],
            kept: vec![0; count],
            number: vec![NONE; count],
        }
    }

    /// Whether all rounds come to their end.
    pub fn end(mut self, left: &mut u64) -> bool {
        loop {
            let working = |(at, actor): &(&(usize, u64), &Actor)| at.0 < actor.shape.parts.len();
            let least = self.at.iter().zip(&self.piece.actors).filter(working).map(|(at, _)| at.1).min();
            let Some(rounds) = least else { return true };
            *left = left.saturating_sub(1 + self.at.len() as u64 / 16);
            if *left == 0 || !self.round(left).unwrap_or(false) {
                return false;
            }
            for ((part, turns), actor) in self.at.iter_mut().zip(&self.piece.actors) {
                if *part < actor.shape.parts.len() {
                    *turns -= rounds;
                    if *turns == 0 {
                        *part += 1;
                        *turns = actor.shape.parts.get(*part).map_or(0, |part| part.times);
                    }
                }
            }
        }
    }

    /// What a turn hands on, if words come from one actor to one other.
    fn passes(&self, turn: &Turn, wires: &[u32]) -> Option<(u32, u32, u64)> {
        let (from, to, words) = turn.passes?;
        let (from, to) = (wires[from as usize], wires[to as usize]);
        let single = |wire: u32| self.readers[wire as usize] == 1 && !self.piece.wires[wire as usize].of_host;
        (from != to && single(from) && single(to)).then_some((from, to, words))
    }

    /// Whether a round comes to its end; none if there is no telling.
    fn round(&mut self, left: &mut u64) -> Option<bool> {
        self.passed.fill(None);
        self.hear.fill(0);
        self.number.fill(NONE);
        let mut acting: Vec<(&Actor, usize)> = Vec::new();
        for ((part, _), actor) in self.at.iter().zip(&self.piece.actors) {
            let Some(turn) = actor.shape.turns.get(*part) else { continue };
            match self.passes(turn, &actor.wires) {
                Some((from, to, words)) => self.passed[to as usize] = Some((from, words)),
                None => acting.push((actor, *part)),
            }
        }
        // What is sent to several is read by all of them in the same round.
        let mut heard: Vec<u32> = Vec::new();
        for (actor, part) in &acting {
            for (own, words) in &actor.shape.turns[*part].reads {
                let wire = actor.wires[*own as usize];
                (self.hear[wire as usize], self.kept[wire as usize]) = (self.hear[wire as usize] + 1, *words);
                heard.push(wire);
            }
        }
        let handed: Vec<u32> = self.passed.iter().flatten().map(|(from, _)| *from).collect();
        handed.iter().for_each(|from| self.hear[*from as usize] += 1);
        let all_hear = |wire: u32| {
            let hear = self.hear[wire as usize];
            hear > 0 && hear == self.readers[wire as usize]
        };
        let written = |(actor, part): &(&Actor, usize)| {
            let mut writes = actor.shape.turns[*part].writes.iter();
            writes.all(|own| all_hear(actor.wires[*own as usize]))
        };
        if !heard.iter().all(|wire| all_hear(*wire)) || !acting.iter().all(written) {
            return None;
        }
        heard.sort_unstable();
        heard.dedup();
        let (all, mut on_the_way) = (handed.len(), 0);
        let mut wires: Vec<Wire> = Vec::new();
        // Each wire that somebody reads, traced back to where its words were sent first.
        for &wire in &heard {
            let mut first = wire;
            while let Some((from, words)) = self.passed[first as usize] {
                if words != self.kept[wire as usize] || on_the_way > all {
                    return None;
                }
                (first, on_the_way) = (from, on_the_way + 1);
            }
            for end in [wire, first] {
                self.number[end as usize] = wires.len() as u32;
            }
            wires.push(self.piece.wires[wire as usize]);
        }
        if on_the_way != all {
            return None;
        }
        // What nobody reads in this round has room for all.
        for (actor, part) in &acting {
            for own in &actor.shape.turns[*part].writes {
                let number = &mut self.number[actor.wires[*own as usize] as usize];
                if *number == NONE {
                    *number = wires.len() as u32;
                    wires.push(Wire { depth: u64::MAX / 2, of_host: false });
                }
            }
        }
        let mut run = Run::new(&wires);
        for (actor, part) in &acting {
            let number = |own: u32| self.number[actor.wires[own as usize] as usize];
            run.add_once(number, &actor.shape.parts[*part].unit);
        }
        Some(run.ends(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::proof::rehearse::{Op, Part, Unit};
    use crate::flow::proof::shape::Shape;
    use std::rc::Rc;

    fn part(times: u64, reads: &[u32], writes: &[u32]) -> Part {
        let words = |wires: &[u32]| wires.iter().map(|wire| (*wire, 1)).collect();
        Part { times, unit: Unit::Ops(vec![Op { steps: 4, reads: words(reads), writes: words(writes) }]) }
    }

    fn end(actors: Vec<Vec<Part>>, depth: u64, of_host: bool) -> (bool, bool) {
        let actor = |parts| Actor { shape: Rc::new(Shape::of(0, parts)), wires: vec![0, 1] };
        let actors = actors.into_iter().map(actor).collect();
        let piece = Piece { actors, wires: vec![Wire { depth, of_host }, Wire { depth, of_host: false }] };
        (Rounds::of(&piece).end(&mut 10_000), piece.ends(&mut 10_000))
    }

    /// What is left between two rounds may be more than there is room for.
    #[test]
    fn a_round_in_which_words_are_left_proves_nothing() {
        let late = |depth| {
            end(
                vec![
                    vec![part(9, &[], &[0]), part(9, &[], &[1])],
                    vec![part(9, &[1], &[]), part(9, &[0], &[])],
                ],
                depth,
                false,
            )
        };
        assert_eq!((late(12), late(36)), ((false, false), (false, true)));
        let of_host = |depth| {
            end(
                vec![
                    vec![part(9, &[0], &[]), part(9, &[], &[1])],
                    vec![part(9, &[1], &[]), part(9, &[0], &[])],
                ],
                depth,
                true,
            )
        };
        assert_eq!((of_host(12), of_host(36)), ((false, false), (false, true)));
        let together =
            vec![vec![part(9, &[], &[0]), part(9, &[1], &[])], vec![part(9, &[0], &[]), part(9, &[], &[1])]];
        assert_eq!(end(together, 1, false), (true, true));
    }
}
