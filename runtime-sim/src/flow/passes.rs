//! Who runs when: stretch by stretch, first the PEs that are timed at the beginning, then, where rows in a line are skipped,
//! those behind them, which get the words that are foretold. A group behind does what one before did, if it may.

use super::chain::Timed;
use super::engine::Engine;
use super::follow::{LEADERS, Led, apart, since};
use super::groups::{Finder, Group, Groups, Outline};
use super::skip::{Skip, Told};
use super::stretches::Stretches;
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;

/// Fewest PEs that are worth a second thread, and by how many stretches it may be ahead.
const MANY: usize = 4096;
const AHEAD: usize = 4;

/// Who was timed in a stretch.
#[derive(Default)]
struct Seen {
    /// By what they do, groups of one kind.
    groups: BTreeMap<Vec<i64>, Vec<Led>>,
    /// Rows of chains.
    rows: Vec<Timed>,
}

/// PEs to run, ascending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Members<'m> {
    /// Those at the beginning of lines, or in none.
    pub first: &'m [u32],
    /// Those behind rows that are foretold.
    pub behind: &'m [u32],
    /// What is skipped between them.
    pub skips: &'m [Skip],
}

/// Where a run is: the stretches, and within how many cycles beginnings are the same.
#[derive(Clone, Copy)]
struct Plan<'s> {
    stretches: &'s Stretches,
    most: f64,
}

impl Engine<'_> {
    /// Runs PEs, stretch by stretch where beginnings within so many cycles are the same; false if there is no telling what
    /// rows in a line do.
    pub(super) fn run_members(&mut self, pes: Members, likeness: Option<(&Stretches, f64)>) -> bool {
        let Some((stretches, most)) = likeness else { return self.run_whole(pes) };
        let half = pes.first.len() / 2;
        let mut finders = [pes.first, pes.behind].map(|pes| Finder::new(self.net, stretches, pes, half));
        let mut outlines = move |stretch| finders.each_mut().map(|finder| finder.outline(stretch));
        let (all, plan) = (0..stretches.count, Plan { stretches, most });
        if pes.first.len() < MANY {
            return self.run_stretches(plan, pes, all.map(outlines));
        }
        // Who belongs together is found by another thread, some stretches ahead.
        thread::scope(|scope| {
            let (send, found) = mpsc::sync_channel(AHEAD);
            scope.spawn(move || all.into_iter().all(|stretch| send.send(outlines(stretch)).is_ok()));
            self.run_stretches(plan, pes, found.into_iter())
        })
    }

    fn run_whole(&mut self, pes: Members) -> bool {
        self.queue.extend(pes.first);
        self.run();
        let mut told = BTreeMap::new();
        pes.skips.iter().for_each(|skip| self.listen(skip, None, &mut told));
        if !self.tell(&mut told) {
            return false;
        }
        self.queue.extend(pes.behind);
        self.run();
        true
    }

    fn run_stretches(
        &mut self,
        plan: Plan,
        pes: Members,
        outlines: impl Iterator<Item = [Outline; 2]>,
    ) -> bool {
        let mut told: BTreeMap<u32, Told> = BTreeMap::new();
        // Stretches that those behind have not begun, because some before have not come to their end.
        let mut late: Vec<(usize, Outline)> = Vec::new();
        for (stretch, [first, behind]) in outlines.enumerate() {
            for skip in pes.skips {
                self.listen(skip, Some((plan.stretches, stretch)), &mut told);
            }
            let mut seen = Seen::default();
            self.begin(plan, (stretch, first), (&mut seen, !pes.behind.is_empty()));
            if self.steps > self.most_steps {
                return true;
            }
            late.push((stretch, behind));
            if late.len() == 1 && self.has_told(&told, (plan.stretches, stretch)) {
                if !self.tell(&mut told) {
                    return false;
                }
                late.drain(..).for_each(|outline| self.begin(plan, outline, (&mut seen, false)));
            }
        }
        if !self.tell(&mut told) {
            return false;
        }
        for outline in late {
            self.begin(plan, outline, (&mut Seen::default(), false));
        }
        true
    }

    /// Runs a stretch; whoever is timed is kept if others come behind.
    fn begin(&mut self, plan: Plan, (stretch, outline): (usize, Outline), (seen, keeps): (&mut Seen, bool)) {
        let spent = |end: u32| self.streams.ahead(end) == 0;
        let groups = Groups::of(outline, &spent, &|look| seen.groups.contains_key(look));
        self.admit(plan.stretches, stretch, &groups.others);
        for (look, kind) in groups.kinds {
            let known = seen.groups.entry(look).or_default();
            self.choose(plan, stretch, kind, (known, keeps));
        }
        self.run();
        for chain in groups.chains {
            self.run_chain(plan.stretches, stretch, chain, &mut seen.rows, plan.most);
        }
        for led in seen.groups.values_mut().flatten() {
            self.follow(plan, stretch, led, keeps);
        }
        self.run();
    }

    /// Sorts groups of one kind into leaders, which begin to run unless they are known, and followers.
    fn choose(
        &mut self,
        plan: Plan,
        stretch: usize,
        kind: Vec<Group>,
        (leading, keeps): (&mut Vec<Led>, bool),
    ) {
        let known = leading.len();
        for group in kind {
            if !self.has_begun(plan.stretches, stretch, &group) {
                self.admit(plan.stretches, stretch, &group);
                continue;
            }
            let (before, beside) = leading.split_at_mut(known);
            let before =
                before.iter_mut().take(LEADERS).map(|led| (since(&self.pes, &led.before, &group), led));
            let beside =
                beside.iter_mut().take(LEADERS).map(|led| (apart(&self.pes, &led.leader, &group), led));
            let near = before.chain(beside).find(|((least, delay), _)| delay - least <= plan.most);
            match near {
                Some(((_, delay), led)) => led.followers.push((group, delay)),
                None => leading.push(Led { leader: group, ..Led::default() }),
            }
        }
        for led in &mut leading[known..] {
            if keeps || !led.followers.is_empty() {
                led.before = led.leader.iter().map(|pe| self.before(plan.stretches, stretch, *pe)).collect();
            }
            self.lead(plan.stretches, stretch, &led.leader);
        }
    }

    /// Lets groups do what their leader did, if they may.
    fn follow(&mut self, plan: Plan, stretch: usize, led: &mut Led, keeps: bool) {
        if led.hosts.is_none()
            && (keeps || !led.followers.is_empty())
            && self.has_ended(plan.stretches, stretch, &led.leader)
        {
            led.hosts = self.host_reads(plan.stretches, stretch, led);
        }
        let mut strayed: f64 = 0.0;
        for follower in std::mem::take(&mut led.followers) {
            let off = |hosts| self.off_by(plan.stretches, stretch, led, hosts, &follower, plan.most);
            match led.hosts.as_deref().and_then(off) {
                Some(off) => {
                    strayed = strayed.max(off);
                    self.take_over(plan.stretches, stretch, led, &follower);
                }
                None => self.admit(plan.stretches, stretch, &follower.0),
            }
        }
        self.strayed += strayed;
    }
}
