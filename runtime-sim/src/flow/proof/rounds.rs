//! Actors that wait for each other behind each turn of what they repeat: rounds that begin and end with nothing under way.
//!
//! A round in which all do what they did in the one before ends like it. An actor that only hands on, in a round, as many
//! words as it reads hands each on at once: the words go from who sends them first to who keeps them, where there is room
//! for at least as many as in the last queue on the way.

use super::rehearse::{Op, Part, Piece, Run, Unit, Wire};
use std::collections::BTreeMap;

/// What an actor does in a round.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Hands on so many words from one stream to another.
    Passes {
        from: u32,
        to: u32,
        words: u64,
    },
    Else,
}

/// Actors under way, round by round.
pub struct Rounds<'a> {
    piece: &'a Piece,
    /// By actor and part: what a turn of it is.
    turns: Vec<Vec<Turn>>,
    /// By stream: how many actors read it at all.
    readers: Vec<u32>,
    /// By actor: its part, and the turns of it that are left.
    at: Vec<(usize, u64)>,
}

impl<'a> Rounds<'a> {
    /// All at their beginning.
    pub fn of(piece: &'a Piece) -> Self {
        let mut readers = vec![0u32; piece.wires.len()];
        for parts in &piece.actors {
            let mut read = Vec::new();
            parts.iter().for_each(|part| reads(&part.unit, &mut read));
            read.sort_unstable();
            read.dedup();
            read.into_iter().for_each(|wire| readers[wire as usize] += 1);
        }
        let single = |wire: u32| readers[wire as usize] == 1 && !piece.wires[wire as usize].of_host;
        let turn = |part: &Part| match &part.unit {
            Unit::Ops(ops) => match &ops[..] {
                [Op { steps, reads, writes }] => match (&reads[..], &writes[..]) {
                    (&[(from, each)], &[(to, also)])
                        if each == also && single(from) && single(to) && from != to =>
                    {
                        Turn::Passes { from, to, words: steps * each }
                    }
                    _ => Turn::Else,
                },
                _ => Turn::Else,
            },
            Unit::Parts(_) => Turn::Else,
        };
        let turns = piece.actors.iter().map(|parts| parts.iter().map(turn).collect()).collect();
        let first = |parts: &Vec<Part>| (0, parts.first().map_or(0, |part| part.times));
        Rounds { piece, turns, readers: readers.clone(), at: piece.actors.iter().map(first).collect() }
    }

    /// Whether all rounds come to their end.
    pub fn end(mut self, left: &mut u64) -> bool {
        loop {
            let working = |(at, parts): &(&(usize, u64), &Vec<Part>)| at.0 < parts.len();
            let least = self.at.iter().zip(&self.piece.actors).filter(working).map(|(at, _)| at.1).min();
            let Some(rounds) = least else { return true };
            *left = left.saturating_sub(1 + self.at.len() as u64 / 16);
            if *left == 0 || !self.round(left).unwrap_or(false) {
                return false;
            }
            for ((part, turns), parts) in self.at.iter_mut().zip(&self.piece.actors) {
                if *part < parts.len() {
                    *turns -= rounds;
                    if *turns == 0 {
                        *part += 1;
                        *turns = parts.get(*part).map_or(0, |part| part.times);
                    }
                }
            }
        }
    }

    /// Whether a round comes to its end; none if there is no telling.
    fn round(&self, left: &mut u64) -> Option<bool> {
        let mut passed: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
        let mut code: Vec<Vec<Part>> = Vec::new();
        for ((at, turns), parts) in self.at.iter().zip(&self.turns).zip(&self.piece.actors) {
            match turns.get(at.0) {
                None => {}
                Some(Turn::Passes { from, to, words }) => drop(passed.insert(*to, (*from, *words))),
                Some(Turn::Else) => code.push(vec![Part { times: 1, unit: parts[at.0].unit.clone() }]),
            }
        }
        // What is sent to several is read by all of them in the same round.
        let (mut hear, mut used) = (BTreeMap::<u32, u32>::new(), Vec::new());
        for parts in &code {
            let mut read = Vec::new();
            parts.iter().for_each(|part| reads(&part.unit, &mut read));
            read.sort_unstable();
            read.dedup();
            read.iter().for_each(|wire| *hear.entry(*wire).or_default() += 1);
            used.extend(read);
            parts.iter().for_each(|part| writes(&part.unit, &mut used));
        }
        passed.values().for_each(|(from, _)| *hear.entry(*from).or_default() += 1);
        if used.iter().any(|wire| hear.get(wire) != Some(&self.readers[*wire as usize])) {
            return None;
        }
        let mut wires: Vec<Wire> = Vec::new();
        let mut number: BTreeMap<u32, u32> = BTreeMap::new();
        let (mut handed, mut kept) = (0, BTreeMap::new());
        code.iter().for_each(|parts| words(parts, 1, &mut kept));
        // Each wire that somebody reads, traced back to where its words were sent first.
        for (&wire, &total) in &kept {
            let mut first = wire;
            while let Some((from, words)) = passed.get(&first) {
                if *words != total || handed > passed.len() {
                    return None;
                }
                (first, handed) = (*from, handed + 1);
            }
            for end in [wire, first] {
                number.insert(end, wires.len() as u32);
            }
            wires.push(self.piece.wires[wire as usize]);
        }
        if handed != passed.len() {
            return None;
        }
        code.iter_mut().for_each(|parts| renumber(parts, &mut number, &mut wires));
        Some(Run::new(&wires, &code).ends(left))
    }
}

fn reads(unit: &Unit, wires: &mut Vec<u32>) {
    match unit {
        Unit::Ops(ops) => wires.extend(ops.iter().flat_map(|op| &op.reads).map(|(wire, _)| *wire)),
        Unit::Parts(parts) => parts.iter().for_each(|part| reads(&part.unit, wires)),
    }
}

fn writes(unit: &Unit, wires: &mut Vec<u32>) {
    match unit {
        Unit::Ops(ops) => wires.extend(ops.iter().flat_map(|op| &op.writes).map(|(wire, _)| *wire)),
        Unit::Parts(parts) => parts.iter().for_each(|part| writes(&part.unit, wires)),
    }
}

/// By stream: words that one actor reads; of many actors, those of the last.
fn words(parts: &[Part], times: u64, read: &mut BTreeMap<u32, u64>) {
    let mut own = BTreeMap::new();
    add(parts, times, &mut own);
    read.extend(own);
}

fn add(parts: &[Part], times: u64, read: &mut BTreeMap<u32, u64>) {
    for part in parts {
        match &part.unit {
            Unit::Parts(parts) => add(parts, times * part.times, read),
            Unit::Ops(ops) => {
                for op in ops {
                    for (wire, words) in &op.reads {
                        *read.entry(*wire).or_default() += times * part.times * op.steps * words;
                    }
                }
            }
        }
    }
}

fn renumber(parts: &mut [Part], number: &mut BTreeMap<u32, u32>, wires: &mut Vec<Wire>) {
    for part in parts {
        match &mut part.unit {
            Unit::Parts(parts) => renumber(parts, number, wires),
            Unit::Ops(ops) => {
                for (wire, _) in ops.iter_mut().flat_map(|op| op.reads.iter_mut().chain(&mut op.writes)) {
                    *wire = *number.entry(*wire).or_insert_with(|| {
                        wires.push(Wire { depth: u64::MAX / 2, of_host: false });
                        wires.len() as u32 - 1
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(times: u64, reads: &[u32], writes: &[u32]) -> Part {
        let words = |wires: &[u32]| wires.iter().map(|wire| (*wire, 1)).collect();
        Part { times, unit: Unit::Ops(vec![Op { steps: 4, reads: words(reads), writes: words(writes) }]) }
    }

    fn end(actors: Vec<Vec<Part>>, depth: u64, of_host: bool) -> (bool, bool) {
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
