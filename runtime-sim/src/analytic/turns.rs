//! PEs of a ring that exchange words turn by turn: each turn waits for the neighbour before, and for room at the next one.

use crate::flow::Profile;
use crate::lower::{Code, Env, Instr, LoweredOp, Sink};
use std::collections::BTreeMap;
use std::ops::Range;

/// Turns and what one of them takes, in order.
pub type Runs = Vec<(u64, f64)>;

/// A PE of a ring.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Cycles before its first turn.
    first: f64,
    /// Its turns.
    runs: Runs,
    /// Who sends to it: a PE, or a place among the members once they are in rings.
    before: Option<u32>,
    /// Turns whose words fit between the one before and this one.
    pub room: u64,
}

impl Default for Member {
    fn default() -> Self {
        Member { first: 0.0, runs: Vec::new(), before: None, room: u64::MAX }
    }
}

impl Member {
    /// It works without exchanging words.
    pub fn spends(&mut self, cycles: f64) {
        if self.runs.is_empty() {
            self.first += cycles;
        }
        spend(&mut self.runs, cycles);
    }

    /// It exchanges words with `before` turn by turn; false if it did so with somebody else.
    pub fn exchanges(&mut self, before: u32, runs: Runs) -> bool {
        self.runs.extend(runs);
        *self.before.get_or_insert(before) == before
    }

    fn turns(&self) -> u64 {
        self.runs.iter().map(|run| run.0).sum()
    }

    /// What each turn takes.
    fn costs(&self) -> impl Iterator<Item = f64> + '_ {
        self.runs.iter().flat_map(|(turns, each)| (0..*turns).map(move |_| *each))
    }
}

/// Makes the last turn so much longer.
fn spend(runs: &mut Runs, cycles: f64) {
    match runs.last_mut() {
        Some((1, each)) => *each += cycles,
        Some((turns, each)) if cycles > 0.0 => {
            let last = (1, *each + cycles);
            *turns -= 1;
            runs.push(last);
        }
        _ => {}
    }
}

/// What the loop at `head` does turn by turn, each turn with what comes before the next, and cycles before its first turn;
/// `longer` is what an exchange takes beside its words. None if that is too much to tell.
pub fn of_loop(code: &Code, head: usize, longer: f64, env: &mut Env) -> Option<(f64, Runs)> {
    let Instr::Loop { length, .. } = &code[head] else { return None };
    sequence(code, head..head + length + 1, longer, env)
}

/// Most runs of a piece of code.
const LONG: usize = 10_000;

fn sequence(code: &Code, range: Range<usize>, longer: f64, env: &mut Env) -> Option<(f64, Runs)> {
    let (mut first, mut runs) = (0.0, Runs::new());
    let mut pc = range.start;
    while pc < range.end {
        let mut last = pc;
        if let Instr::Loop { length, .. } = &code[pc] {
            last = pc + length;
        }
        let inside = code.within(pc..last + 1).iter().any(exchanges);
        match &code[pc] {
            Instr::Loop { depth, count, varies, .. } if inside => {
                let n = count.at(env).max(0);
                let mut body = None;
                for i in 0..n {
                    env.loops[*depth] = i;
                    if *varies || body.is_none() {
                        body = Some(sequence(code, pc + 1..last, longer, env)?);
                    }
                    let Some((before, more)) = &body else { break };
                    append(&mut first, &mut runs, *before);
                    // Iterations that are one turn each are one run.
                    if let ([one], false) = (&more[..], *varies)
                        && *before == 0.0
                    {
                        runs.push((one.0 * n as u64, one.1));
                        break;
                    }
                    runs.extend(more);
                    if runs.len() > LONG {
                        return None;
                    }
                }
                env.loops[*depth] = 0;
            }
            instr => {
                let work = Profile::of(code, pc..last + 1, env).work;
                match exchanges(instr) && work > 0.0 {
                    true => runs.push((1, work + longer)),
                    false => append(&mut first, &mut runs, work),
                }
            }
        }
        pc = last + 1;
    }
    Some((first, runs))
}

fn append(first: &mut f64, runs: &mut Runs, cycles: f64) {
    if runs.is_empty() {
        *first += cycles;
    }
    spend(runs, cycles);
}

/// Whether it sends and takes words side by side.
fn exchanges(instr: &Instr) -> bool {
    let Instr::Par(ops) = instr else { return false };
    let takes = |op: &LoweredOp| op.src.iter().any(|source| source.stream().is_some());
    ops.iter().any(|op| matches!(op.dst, Sink::Out { .. })) && ops.iter().any(takes)
}

/// Most turns of all members that are looked at one by one.
const MOST: u64 = 20_000_000;

/// The members of rings, each of which knows the place of the one before; none if somebody sends to nobody or to several, if
/// they do not take as many turns, or if these are too many.
pub fn in_rings(members: BTreeMap<u32, Member>) -> Option<Vec<Member>> {
    let place: BTreeMap<u32, u32> = members.keys().copied().zip(0..).collect();
    let mut found: Vec<Member> = members.into_values().collect();
    let turns = found.first()?.turns();
    let mut sends = vec![false; found.len()];
    for member in &mut found {
        let before = *place.get(&member.before?)?;
        member.before = Some(before);
        if member.turns() != turns || std::mem::replace(&mut sends[before as usize], true) {
            return None;
        }
    }
    (turns.saturating_mul(found.len() as u64) <= MOST).then_some(found)
}

/// Cycles until the last member is done.
pub fn length(members: Vec<Member>) -> f64 {
    let before: Vec<usize> = members.iter().map(|member| member.before.unwrap_or(0) as usize).collect();
    let mut next = vec![0; members.len()];
    before.iter().enumerate().for_each(|(place, before)| next[*before] = place);
    let room: Vec<u64> = members.iter().map(|member| member.room).collect();
    let turns = members.first().map_or(0, Member::turns);
    // So many turns back somebody may wait for room.
    let kept = room.iter().filter(|room| **room < turns).max().map_or(1, |room| room + 1) as usize;
    let mut costs: Vec<_> = members.iter().map(Member::costs).collect();
    let mut done = vec![vec![0.0f64; members.len()]; kept];
    let mut begin: Vec<f64> = members.iter().map(|member| member.first).collect();
    for turn in 0..turns {
        let at = turn as usize % kept;
        for (place, costs) in costs.iter_mut().enumerate() {
            done[at][place] = begin[place] + costs.next().unwrap_or(0.0);
        }
        for place in 0..members.len() {
            let ahead = room[next[place]];
            let behind = if ahead <= turn { done[(turn - ahead) as usize % kept][next[place]] } else { 0.0 };
            begin[place] = done[at][place].max(done[at][before[place]]).max(behind);
        }
    }
    begin.into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of which the first `holding` attend for 10 cycles whenever a block of one of them comes by.
    fn attention(columns: u64, holding: u64, room: u64) -> BTreeMap<u32, Member> {
        let member = |column: u64| {
            let mut member = Member { room, ..Member::default() };
            for turn in 0..4 * columns {
                let block = (column + columns - turn % columns) % columns;
                let attends = column < holding && block < holding;
                assert!(member.exchanges(((column + columns - 1) % columns) as u32, vec![(1, 1.0)]));
                member.spends(if attends { 10.0 } else { 0.0 });
            }
            (column as u32, member)
        };
        (0..columns).map(member).collect()
    }

    #[test]
    fn who_attends_is_waited_for() {
        // Of 31 turns, 12 attend; with no room neighbours wait for each other, with one block in between less often.
        for (room, attending) in [(0, 22.0), (1, 18.0), (u64::MAX, 12.0)] {
            let rings = in_rings(attention(31, 12, room)).unwrap();
            let told = (length(rings) - 124.0) / 40.0;
            assert!((told - attending).abs() <= 3.0, "{room}: {told} turns instead of {attending}");
        }
    }

    #[test]
    fn what_is_no_ring_is_none() {
        let mut open = attention(5, 2, 1);
        open.remove(&3);
        assert_eq!(in_rings(open), None);
        let mut uneven = attention(5, 2, 1);
        assert!(uneven.get_mut(&2).unwrap().exchanges(1, vec![(2, 2.0)]));
        assert_eq!(in_rings(uneven), None);
        let mut other = attention(5, 2, 1);
        assert!(!other.get_mut(&2).unwrap().exchanges(3, vec![(2, 2.0)]));
    }
}
