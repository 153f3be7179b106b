//! In which order a stage of a pipeline works on the micro-batches of a training step.
//!
//! ```text
//! 1F1B, two stages, four micro-batches      interleaved, two stages of two ranges each
//! stage 0   F0 F1 B0 F2 B1 F3 B2 B3         a stage has the first of its ranges for as many micro-batches as there are
//! stage 1   F0 B0 F1 B1 F2 B2 F3 B3         stages, then the next; backwards the other way round
//! ```
//! A stage goes forwards as often as there are stages behind it, then once forwards and once backwards in turn, and
//! backwards at the end (Narayanan et al., arXiv:2104.04473, section 2.2): no more micro-batches than stages are under
//! way, whatever their number. A send does not wait, so no order of these can lock.

use serde::{Deserialize, Serialize};

/// The form of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Stages of the pipeline.
    pub stages: u64,
    /// Ranges of layers of each stage.
    pub chunks: u64,
    /// Micro-batches of a step.
    pub micros: u64,
}

/// One turn of a stage: a segment of its program for a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Segment of the program, from one receive to the next: ranges forwards, then ranges backwards. The last range goes
    /// forwards and backwards in one.
    pub segment: u64,
    /// Which micro-batch.
    pub micro: u64,
    /// Where what it keeps for its backward pass is in memory.
    pub flight: u64,
}

/// The turns of a stage, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Micro-batches of a step.
    pub micros: u64,
    /// Micro-batches that are under way at once, at most.
    pub flights: u64,
    /// What is done.
    pub turns: Vec<Turn>,
}

/// Why there is no such schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{micros} micro-batches for {stages} stages of {chunks} ranges each: expected a multiple of {stages}"
)]
pub struct ScheduleError {
    micros: u64,
    stages: u64,
    chunks: u64,
}

/// The schedule of a stage: 1F1B, interleaved where stages have several ranges.
///
/// # Errors
/// [`ScheduleError`] for no micro-batches, or a number that is no multiple of the stages where ranges take turns.
pub fn schedule(form: Form, stage: u64) -> Result<Schedule, ScheduleError> {
    let Form { stages, chunks, micros } = form;
    if micros == 0 || (chunks > 1 && !micros.is_multiple_of(stages)) {
        return Err(ScheduleError { micros, stages, chunks });
    }
    let behind = stages - 1 - stage;
    let all = micros * chunks;
    let ahead = if chunks > 1 { 2 * behind + (chunks - 1) * stages } else { behind };
    let ahead = ahead.min(all);
    let mut draft = Draft { form, last: behind == 0, free: Vec::new(), flights: 0, turns: Vec::new() };
    (0..ahead).for_each(|k| draft.forwards(k));
    for k in 0..all - ahead {
        draft.forwards(ahead + k);
        draft.backwards(k);
    }
    (all - ahead..all).for_each(|k| draft.backwards(k));
    Ok(Schedule { micros, flights: draft.flights, turns: draft.turns })
}

struct Draft {
    form: Form,
    /// Whether the stage has the last range.
    last: bool,
    /// Of each flight, what is under way in it: a range and a micro-batch.
    free: Vec<Option<(u64, u64)>>,
    flights: u64,
    turns: Vec<Turn>,
}

impl Draft {
    /// Range and micro-batch of the `k`th of a stage's works.
    fn work(&self, k: u64) -> (u64, u64) {
        let Form { stages, chunks, .. } = self.form;
        let (round, within) = (k / (stages * chunks), k % (stages * chunks));
        match chunks {
            1 => (0, k),
            _ => (within / stages, round * stages + within % stages),
        }
    }

    fn both_ways(&self, chunk: u64) -> bool {
        self.last && chunk + 1 == self.form.chunks
    }

    fn forwards(&mut self, k: u64) {
        let (chunk, micro) = self.work(k);
        let flight = match self.free.iter().position(Option::is_none) {
            Some(at) => at,
            None => {
                self.free.push(None);
                self.free.len() - 1
            }
        };
        self.flights = self.flights.max(flight as u64 + 1);
        if !self.both_ways(chunk) {
            self.free[flight] = Some((chunk, micro));
        }
        self.turns.push(Turn { segment: chunk, micro, flight: flight as u64 });
    }

    fn backwards(&mut self, k: u64) {
        let (mirrored, micro) = self.work(k);
        let chunk = self.form.chunks - 1 - mirrored;
        if self.both_ways(chunk) {
            return;
        }
        let Some(flight) = self.free.iter().position(|work| *work == Some((chunk, micro))) else { return };
        self.free[flight] = None;
        let first = if self.last { self.form.chunks - 1 } else { self.form.chunks };
        self.turns.push(Turn { segment: first + mirrored, micro, flight: flight as u64 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn turns(form: Form, stage: u64) -> Vec<(u64, u64)> {
        schedule(form, stage).unwrap().turns.into_iter().map(|turn| (turn.segment, turn.micro)).collect()
    }

    #[test]
    fn one_forwards_one_backwards() {
        let form = Form { stages: 2, chunks: 1, micros: 4 };
        let (f, b) = (0, 1);
        let first = [(f, 0), (f, 1), (b, 0), (f, 2), (b, 1), (f, 3), (b, 2), (b, 3)];
        assert_eq!(turns(form, 0), first);
        assert_eq!(turns(form, 1), [(0, 0), (0, 1), (0, 2), (0, 3)]);
        assert_eq!(schedule(form, 0).unwrap().flights, 2);
        assert_eq!(schedule(form, 1).unwrap().flights, 1);
    }

    #[test]
    fn ranges_take_turns_by_as_many_micro_batches_as_there_are_stages() {
        let form = Form { stages: 2, chunks: 2, micros: 4 };
        assert_eq!(turns(form, 0)[..6], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]);
        assert_eq!(turns(form, 1)[..6], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]);
        assert!(schedule(Form { micros: 3, ..form }, 0).is_err());
    }

    /// What goes between two ranges: the range, whether backwards, the micro-batch.
    type Message = (u64, bool, u64);

    /// What a turn waits for and what it hands on.
    fn messages(form: Form, stage: u64, turn: Turn) -> (Option<Message>, Option<Message>) {
        let last = form.stages * form.chunks - 1;
        let own_last = stage + 1 == form.stages;
        let both = own_last && turn.segment + 1 == form.chunks;
        let first_back = if own_last { form.chunks - 1 } else { form.chunks };
        let back = both || turn.segment >= form.chunks;
        let mirrored = turn.segment.saturating_sub(first_back);
        let chunk = if back { form.chunks - 1 - mirrored } else { turn.segment };
        let range = chunk * form.stages + stage;
        let heard = match back && !both {
            true => Some((range, true, turn.micro)),
            false => (range > 0).then_some((range, false, turn.micro)),
        };
        let told = match back {
            true => (range > 0).then(|| (range - 1, true, turn.micro)),
            false => (range < last).then_some((range + 1, false, turn.micro)),
        };
        (heard, told)
    }

    /// All stages get to their end, each range goes forwards and backwards once for each micro-batch, and no flight holds
    /// two things.
    #[test]
    fn no_schedule_locks() {
        for (stages, chunks, micros) in [
            (1, 1, 3),
            (2, 1, 1),
            (4, 1, 2),
            (4, 1, 9),
            (3, 1, 3),
            (2, 2, 2),
            (2, 3, 4),
            (4, 2, 8),
            (3, 2, 3),
        ] {
            let form = Form { stages, chunks, micros };
            let plans: Vec<Schedule> = (0..stages).map(|stage| schedule(form, stage).unwrap()).collect();
            let mut sent = BTreeSet::new();
            let mut done = vec![0; stages as usize];
            loop {
                let mut moved = false;
                for (stage, plan) in plans.iter().enumerate() {
                    while let Some(turn) = plan.turns.get(done[stage]) {
                        let (heard, told) = messages(form, stage as u64, *turn);
                        if heard.is_some_and(|message| !sent.contains(&message)) {
                            break;
                        }
                        sent.extend(told);
                        done[stage] += 1;
                        moved = true;
                    }
                }
                if !moved {
                    break;
                }
            }
            for (plan, done) in plans.iter().zip(&done) {
                assert_eq!(*done, plan.turns.len(), "{form:?}");
            }
            assert_eq!(sent.len() as u64, 2 * (stages * chunks - 1) * micros, "{form:?}");
            flights_hold_one_thing(form, &plans);
        }
    }

    fn flights_hold_one_thing(form: Form, plans: &[Schedule]) {
        for (stage, plan) in plans.iter().enumerate() {
            let mut flying: BTreeMap<u64, u64> = BTreeMap::new();
            let own_last = stage as u64 + 1 == form.stages;
            for turn in &plan.turns {
                assert!(turn.flight < plan.flights);
                let both = own_last && turn.segment + 1 == form.chunks;
                match turn.segment < form.chunks {
                    true => assert!(flying.insert(turn.flight, turn.micro).is_none(), "{form:?}"),
                    false => assert_eq!(flying.remove(&turn.flight), Some(turn.micro), "{form:?}"),
                }
                if both {
                    flying.remove(&turn.flight);
                }
            }
            assert!(flying.is_empty());
            if form.chunks == 1 {
                assert_eq!(plan.flights, (form.stages - stage as u64).min(form.micros), "{form:?}");
            }
        }
    }
}
