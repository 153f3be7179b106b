//! What one micro-batch takes on any stage: the passes of a layer and of both ends, which every plan of the same
//! tensor-parallel degree, micro-batch and sequence parallelism shares.

use super::ends::{End, embedding, head};
use super::job::Job;
use super::layer::{Layer, Pace, Pass, layer};
use super::rates::Rates;

/// Passes that stages are put together from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// One layer.
    pub layer: Layer,
    embedding: End,
    head: End,
    pace: Pace,
}

/// A stage's passes over one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stage {
    /// Forward.
    pub forward: Pass,
    /// Backward, without what is computed again.
    pub backward: Pass,
    /// What the backward pass computes again.
    pub again: Pass,
    /// Seconds of the forward and of the backward pass.
    pub seconds: (f64, f64),
}

impl Stage {
    /// Seconds that the forward pass keeps the device busy.
    pub fn forward_device(&self) -> f64 {
        self.forward.device()
    }

    /// Seconds that the backward pass and what it computes again keep the device busy.
    pub fn backward_device(&self) -> f64 {
        self.backward.device() + self.again.device()
    }
}

impl Prices {
    /// The passes of a job.
    pub fn of(job: &Job<'_>, rates: &Rates<'_>) -> Prices {
        Prices {
            layer: layer(job, rates),
            embedding: embedding(job, rates),
            head: head(job, rates),
            pace: Pace {
                host_launch: job.physics.host_launch * job.stack.host,
                skew: job.physics.skew * job.tp().min(job.machine.node.devices as f64),
                lead: job.physics.lead,
            },
        }
    }

    /// The passes of a stage of a job.
    pub fn stage(&self, job: &Job<'_>, index: u64) -> Stage {
        let layers = job.stage_layers(index);
        let again = self.layer.again(job.layout.recompute).times(job.layout.again.of(layers));
        let mut stage = Stage {
            forward: self.layer.forward.times(layers),
            backward: self.layer.backward.times(layers),
            again,
            seconds: (0.0, 0.0),
        };
        stage.seconds = (self.seconds(stage.forward), self.seconds(stage.backward + again));
        let ends = [(index == 0, &self.embedding), (index + 1 == job.layout.pipeline, &self.head)];
        for (_, end) in ends.iter().filter(|(here, _)| *here) {
            stage.forward = stage.forward + end.forward;
            stage.backward = stage.backward + end.backward;
            stage.seconds.0 += self.seconds(end.forward);
            stage.seconds.1 += self.seconds(end.backward);
        }
        stage
    }

    /// Seconds of all layers and both ends that no recomputation brings them under. What is computed again may fill the
    /// time in which ranks miss each other, so that is left out of backward passes.
    pub fn whole(&self, layers: f64) -> f64 {
        let both =
            |forward: Pass, backward: Pass| self.seconds(forward) + backward.seconds(&self.pace.in_step());
        let ends = both(self.embedding.forward, self.embedding.backward)
            + both(self.head.forward, self.head.backward);
        layers * both(self.layer.forward, self.layer.backward) + ends
    }

    fn seconds(&self, pass: Pass) -> f64 {
        pass.seconds(&self.pace)
    }
}
