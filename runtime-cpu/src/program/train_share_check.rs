//! Whether what a training program says of being one rank's part holds together, and whether ranks can meet as it says.

use super::share::TrainShare;
use super::train::{Meeting, TIED_LANE, TrainStep};
use super::train_check::Checker;
use crate::program::{BufferId, ParameterId, StateSharding};

impl Checker<'_> {
    pub(super) fn share(&mut self) {
        let Some(share) = self.program.share.as_ref() else { return };
        let TrainShare { tensor, stage, replicas, layers, schedule, segments, .. } = share;
        let members = tensor.exists() && stage.exists() && *replicas > 0;
        self.expect(members, "share", || "a rank of a group that has fewer".into());
        let wanted = self.program.model.layers;
        self.expect(layers.len() as u64 == wanted, "share.layers", || {
            format!("{} layers of the whole model for {wanted}", layers.len())
        });
        let starts = segments.first() == Some(&0)
            && segments.is_sorted_by(|a, b| a < b)
            && segments.last().is_some_and(|last| *last < self.program.body.len());
        self.expect(starts, "share.segments", || format!("{segments:?} are no runs of steps"));
        let turns = schedule.turns.iter().all(|turn| {
            turn.segment < segments.len() as u64
                && turn.micro < schedule.micros
                && turn.flight < schedule.flights
        });
        self.expect(turns, "share.schedule", || {
            "a turn of a segment, micro-batch or flight that is not there".into()
        });
        let each = schedule.turns.len() as u64 == schedule.micros.saturating_mul(segments.len() as u64);
        self.expect(each, "share.schedule", || "not every segment has one turn for each micro-batch".into());
    }

    /// Buffers that have the same rows: all of the batch's, or all the rank's run of them; `run` says which, if it
    /// matters.
    pub(super) fn same_rows(&mut self, name: &str, ids: &[BufferId], run: Option<bool>) {
        let mut kinds = ids.iter().filter_map(|id| self.program.buffers.get(*id)).map(|buffer| buffer.run);
        let Some(first) = run.or_else(|| kinds.next()) else { return };
        let same = kinds.all(|kind| kind == first);
        self.expect(same, name, || "works on all rows of some buffers and a run of others".into());
    }

    pub(super) fn meet(&mut self, name: &str, op: Meeting, x: Option<BufferId>, out: BufferId) {
        let buffer = |id: BufferId| self.program.buffers.get(id).map(|b| (b.width, b.run, b.scores));
        let Some(share) = self.program.share.as_ref() else {
            return self.expect(false, name, || "meets others in a program of no rank".into());
        };
        let (tensor, stage) = (share.tensor.of, share.stage);
        let neighbour = |to: u64, lane: u64| to < stage.of && to != stage.index && lane < TIED_LANE;
        let (found, told) = (buffer(out), x.map(buffer));
        let fits = match (op, told, found) {
            (_, Some(None), _) | (_, _, None) => false,
            (_, Some(Some((.., true))), _) | (_, _, Some((.., true))) => false,
            (Meeting::AllReduce, Some(Some(x)), Some(out)) => x == out && !x.1,
            (Meeting::AllGather, Some(Some((x, false, _))), Some((out, false, _))) => {
                x <= out && out <= x.saturating_mul(tensor)
            }
            (Meeting::ReduceScatter | Meeting::TakeRows, Some(Some((x, false, _))), Some((out, true, _)))
            | (Meeting::GatherRows, Some(Some((x, true, _))), Some((out, false, _))) => x == out,
            (Meeting::Take { first, length }, Some(Some((x, rows, _))), Some((out, same, _))) => {
                first.saturating_add(length) <= x && length <= out && rows == same
            }
            (Meeting::Send { stage, lane }, Some(Some(_)), Some(_)) => {
                x == Some(out) && neighbour(stage, lane)
            }
            (Meeting::Receive { stage, lane }, None, Some(_)) => neighbour(stage, lane),
            _ => false,
        };
        self.expect(fits, name, || format!("{op:?} does not fit its buffers or the other ranks"));
        for id in x.into_iter().chain([out]) {
            let width = self.program.buffers.get(id).map_or(0, |buffer| buffer.width);
            self.row(name, id, width);
        }
    }

    /// Weights that come and go.
    pub(super) fn held(&mut self, name: &str, parameters: &[ParameterId], gradients: &[ParameterId]) {
        let full = self.program.share.as_ref().is_some_and(|share| share.sharding == StateSharding::Full);
        self.expect(full, name, || "gathers weights that every rank has".into());
        for id in parameters.iter().chain(gradients) {
            let found = self.program.parameters.get(*id);
            let there = found.is_some_and(|parameter| !parameter.per_layer || self.layers.is_some());
            self.expect(there, name, || format!("there is no parameter {id} here"));
        }
    }
}

/// Whether a step begins a segment: what another stage sends comes first.
pub fn begins_segment(step: &TrainStep) -> bool {
    matches!(step, TrainStep::Meet { op: Meeting::Receive { .. }, .. })
}
