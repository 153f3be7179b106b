//! PEs of a ring that exchange words turn by turn: each turn waits for the neighbour before, and for room at the next one.

use std::collections::BTreeMap;

/// A PE of a ring.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Turns and what one of them takes, in order.
    runs: Vec<(u64, f64)>,
    /// Cycles since the last turn.
    rest: f64,
    /// Who sends to it: a PE, or a place among the members once they are in rings.
    before: Option<u32>,
    /// Turns whose words fit between the one before and this one.
    pub room: u64,
}

impl Default for Member {
    fn default() -> Self {
        Member { runs: Vec::new(), rest: 0.0, before: None, room: u64::MAX }
    }
}

impl Member {
    /// It works without exchanging words.
    pub fn spends(&mut self, cycles: f64) {
        self.rest += cycles;
    }

    /// It exchanges words with `before` so many times; false if it did so with somebody else.
    pub fn exchanges(&mut self, before: u32, cycles: f64, turns: u64) -> bool {
        let each = cycles / turns as f64;
        let rest = std::mem::take(&mut self.rest);
        if rest > 0.0 {
            self.runs.push((1, each + rest));
        }
        self.runs.push((turns - u64::from(rest > 0.0), each));
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
    let mut begin = vec![0.0f64; members.len()];
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
    let last = begin.iter().zip(&members).map(|(begin, member)| begin + member.rest);
    last.fold(0.0, f64::max)
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
                assert!(member.exchanges(((column + columns - 1) % columns) as u32, 1.0, 1));
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
        assert!(uneven.get_mut(&2).unwrap().exchanges(1, 4.0, 2));
        assert_eq!(in_rings(uneven), None);
        let mut other = attention(5, 2, 1);
        assert!(!other.get_mut(&2).unwrap().exchanges(3, 4.0, 2));
    }
}
