//! Where a training program of one rank is cut into segments, and where weights are gathered of which it holds a run.
//!
//! Weights of a layer are there while the layer runs, forwards and backwards; those outside of layers while the segment
//! that reads them does. Gradients are summed and scattered when their layer or segment is done.

use lapidary_runtime_cpu::program::train::TrainStep;
use lapidary_runtime_cpu::program::{ParameterId, begins_segment};
use std::collections::BTreeSet;

/// The first step of each segment: what another stage sends begins one.
pub(super) fn segments(body: &[TrainStep]) -> Vec<usize> {
    let starts = body.iter().enumerate().skip(1).filter(|(_, step)| begins_segment(step));
    std::iter::once(0).chain(starts.map(|(at, _)| at)).collect()
}

/// The steps with a gather before and a release behind every layer and segment.
pub(super) fn gathered(body: Vec<TrainStep>) -> Vec<TrainStep> {
    let starts = segments(&body);
    let mut made = Vec::new();
    let mut rest = body.into_iter();
    for (at, start) in starts.iter().enumerate() {
        let count = starts.get(at + 1).map_or(usize::MAX, |end| end - start);
        let segment: Vec<TrainStep> = rest.by_ref().take(count).map(layers).collect();
        made.extend(around(segment));
    }
    made
}

fn layers(step: TrainStep) -> TrainStep {
    match step {
        TrainStep::Repeat { name, layers, reverse, carried, yielded, body } => {
            TrainStep::Repeat { name, layers, reverse, carried, yielded, body: around(body) }
        }
        step => step,
    }
}

/// The steps between a gather and a release of what they read and give gradients to; layers do so themselves. A segment
/// still begins with what it receives.
fn around(steps: Vec<TrainStep>) -> Vec<TrainStep> {
    let (mut reads, mut adds) = (BTreeSet::new(), BTreeSet::new());
    for step in steps.iter().filter(|step| !matches!(step, TrainStep::Repeat { .. })) {
        step.parameters(&mut |id| _ = reads.insert(id), &mut |id| _ = adds.insert(id));
    }
    if reads.is_empty() && adds.is_empty() {
        return steps;
    }
    let list = |ids: &BTreeSet<ParameterId>| ids.iter().copied().collect::<Vec<_>>();
    let (parameters, gradients) = (list(&reads), list(&adds));
    let gather = TrainStep::Gather {
        name: "weights.gather".into(),
        parameters: parameters.clone(),
        gradients: gradients.clone(),
    };
    let release = TrainStep::Release { name: "weights.release".into(), parameters, gradients };
    let mut steps = steps;
    let at = usize::from(steps.first().is_some_and(begins_segment));
    steps.insert(at, gather);
    steps.push(release);
    steps
}
