//! Gradients and optimizer steps of a model that is spread over processes, held against the stored ones.

use super::directory::Directory;
use super::gradients::{GradientChecks, Learner, compare_all};
use crate::args::Verify;
use crate::failure::{Exit, Failure};
use crate::host::{self, RankStep};
use crate::ranks::Job;
use crate::weights::Opened;
use lapidary_models::autodiff::labels::next_tokens;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::optimizer::{AdamW, ParamUpdate};
use lapidary_models::shard::{Part, Way};
use lapidary_models::{Dims, ModelSpec};
use lapidary_passes::lower_to_cpu::Together;
use lapidary_reference::{Params, Tensor};
use lapidary_runtime_cpu::train::{GradientPart, Micro, TrainError, Trainer};
use lapidary_runtime_cpu::{LoadOptions, PeerError};
use lapidary_runtime_mpi::{Ranks, World};
use serde::{Deserialize, Serialize};

/// One rank of a training step.
struct SpreadStep<'w> {
    trainer: Trainer,
    world: &'w World,
    ranks: Ranks<'w>,
    /// The sequences of the rank's replica, micro-batch by micro-batch.
    micros: Vec<Vec<Vec<u32>>>,
    /// Labels of all replicas.
    counted: usize,
}

/// What a rank tells of its gradients, as bits: what is no number has no other form in a document.
#[derive(Serialize, Deserialize)]
struct Told {
    name: String,
    shape: Vec<u64>,
    part: Option<Part>,
    start: usize,
    bits: Vec<u32>,
}

/// Compares the gradients of a directory, and its optimizer steps, as one process of a job.
///
/// # Errors
/// Exit 3 for files that are not of the form, 4 for micro-batches that have no schedule, 5 for what cannot be spread so.
pub fn check(
    directory: &Directory,
    weights: &Opened<'_>,
    args: &Verify,
    options: LoadOptions,
    job: Job<'_>,
) -> Result<GradientChecks, Failure> {
    let (degrees, place) = job.part();
    let micros = args.step.micro_batches.unwrap_or(degrees.pipeline);
    let way = Way { chunks: args.step.chunks, sequence: args.step.sequence_parallel };
    if way.chunks > 1 && !micros.is_multiple_of(degrees.pipeline) {
        let what = format!(
            "--chunks {}: {micros} micro-batches do not divide among {} stages",
            way.chunks, degrees.pipeline
        );
        let help = format!("--micro-batches {}", micros.next_multiple_of(degrees.pipeline));
        return Err(Failure::new(Exit::DoesNotFit, what).help(help));
    }
    ranges_fit(way.chunks, degrees.pipeline, &directory.spec)?;
    let replicas = job.degrees.data;
    let groups = (replicas * micros) as usize;
    let each = directory.ids.len().div_ceil(groups).max(1);
    // The mean over a batch that is repeated as a whole is the batch's own.
    let count = lowest_common_multiple(groups * each, directory.ids.len());
    let ids: Vec<Vec<u32>> = directory.ids.iter().cycle().take(count).cloned().collect();
    let each = count / groups;
    let dims = Dims { batch: each as u64, seq: ids[0].len() as u64, cached: 0 };
    let recompute: Recompute = args.recompute.into();
    let graph = training(&directory.spec, dims, &Policy::Uniform(recompute))
        .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?
        .graph;
    let together = Together { replicas, sharding: args.step.sharding.into(), micros };
    let rank = RankStep { degrees, way, place, together };
    let program = host::lower_training_part(&directory.spec, &graph, &args.fuse, &rank)?;
    let trainer = Trainer::load_replica(program, job.place.replica, weights, options)
        .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?;
    let counted = ids.iter().flat_map(|ids| next_tokens(ids)).filter(|label| *label >= 0).count();
    let own = ids.chunks(each).skip((job.place.replica * micros) as usize).take(micros as usize);
    let micros = own.map(<[Vec<u32>]>::to_vec).collect();
    let mut learner = SpreadStep { trainer, world: job.world, ranks: job.ranks, micros, counted };
    compare_all(directory, recompute, &mut learner)
}

/// Whether every range of a stage has a layer; the first of all may do with the embedding.
fn ranges_fit(chunks: u64, stages: u64, spec: &ModelSpec) -> Result<(), Failure> {
    if chunks > 1 && stages == 1 {
        let what = format!("--chunks {chunks}: one stage has nobody to take turns with");
        return Err(Failure::new(Exit::Usage, what).help("a plan with pp2 or more"));
    }
    let most = spec.n_layers.saturating_add(1) / stages;
    if chunks > 1 && chunks > most {
        let layers = spec.n_layers;
        let what = format!("--chunks {chunks}: {stages} stages of as many ranges each for {layers} layers");
        let help = if most > 1 { format!("--chunks {most} at most") } else { "leave --chunks out".into() };
        return Err(Failure::new(Exit::DoesNotFit, what).help(help));
    }
    Ok(())
}

fn lowest_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor.max(1) * b
}

fn failed(error: TrainError) -> Failure {
    match error {
        TrainError::Peers(error) => apart(&error),
        error => Failure::new(Exit::InvalidInput, error.to_string()),
    }
}

fn apart(error: &PeerError) -> Failure {
    Failure::new(Exit::Missing, error.to_string())
}

impl SpreadStep<'_> {
    fn accumulate(&mut self) -> Result<f64, TrainError> {
        let labels: Vec<Vec<Vec<i32>>> =
            self.micros.iter().map(|ids| ids.iter().map(|ids| next_tokens(ids)).collect()).collect();
        let ids: Vec<Vec<&[u32]>> =
            self.micros.iter().map(|ids| ids.iter().map(Vec::as_slice).collect()).collect();
        let labels: Vec<Vec<&[i32]>> =
            labels.iter().map(|labels| labels.iter().map(Vec::as_slice).collect()).collect();
        let micro = |(ids, labels)| Micro { ids, labels };
        let micros: Vec<Micro<'_>> =
            ids.iter().map(Vec::as_slice).zip(labels.iter().map(Vec::as_slice)).map(micro).collect();
        self.trainer.clear();
        let loss = self.trainer.accumulate_among(&mut self.ranks, &micros, self.counted)?;
        self.trainer.reduce(&mut self.ranks)?;
        Ok(loss)
    }
}

impl Learner for SpreadStep<'_> {
    fn gradients(&mut self) -> Result<(f64, Params<f64>), Failure> {
        let loss = self.accumulate().map_err(failed)?;
        let told = |part: GradientPart| {
            let GradientPart { name, shape, part, start, values } = part;
            Told { name, shape, part, start, bits: values.into_iter().map(f32::to_bits).collect() }
        };
        let own: Vec<Told> = self.trainer.gradient_parts().map_err(failed)?.into_iter().map(told).collect();
        let fault = |error: serde_json::Error| Failure::new(Exit::Internal, format!("gradients: {error}"));
        let bytes = serde_json::to_vec(&own).map_err(fault)?;
        let heard = self.world.gather("the gradients", &bytes).map_err(|error| apart(&error))?;
        let mut all = Params::new();
        for bytes in heard {
            let told: Vec<Told> = serde_json::from_slice(&bytes).map_err(fault)?;
            told.iter().for_each(|told| place(told, &mut all));
        }
        Ok((loss, all))
    }

    fn step(&mut self, settings: &AdamW, updates: &[ParamUpdate]) -> Result<f64, Failure> {
        self.trainer.update_among(&mut self.ranks, settings, updates).map_err(failed)
    }
}

/// Lays what a rank tells where it belongs in the gradient of the whole model.
fn place(told: &Told, all: &mut Params<f64>) {
    let mut own = vec![0.0; told.shape.iter().product::<u64>() as usize];
    for (at, bits) in own.iter_mut().skip(told.start).zip(&told.bits) {
        *at = f64::from(f32::from_bits(*bits));
    }
    let mut shape = told.shape.clone();
    if let Some(part) = told.part {
        shape.iter_mut().skip(part.axis).take(1).for_each(|n| *n = part.whole);
    }
    let whole = all.entry(told.name.clone()).or_insert_with(|| {
        let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        let zeros = vec![0.0; shape.iter().product()];
        Tensor::new(shape, zeros)
    });
    match told.part {
        Some(part) => part.place(&shape, &own, &mut whole.data),
        None => whole.data.iter_mut().zip(&own).for_each(|(sum, x)| *sum += x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_repeated_until_they_divide() {
        assert_eq!(lowest_common_multiple(4, 2), 4);
        assert_eq!(lowest_common_multiple(6, 4), 12);
        assert_eq!(lowest_common_multiple(1, 3), 3);
    }

    #[test]
    fn runs_of_parts_make_the_whole() {
        let part = Part { axis: 1, start: 2, length: 1, held: 2, whole: 3 };
        let told = |start, values: [f32; 2]| Told {
            name: "w".into(),
            shape: vec![2, 2],
            part: Some(part),
            start,
            bits: values.map(f32::to_bits).to_vec(),
        };
        let mut all = Params::new();
        place(&told(0, [1.0, 9.0]), &mut all);
        place(&told(2, [2.0, 9.0]), &mut all);
        assert_eq!(all["w"].data, [0.0, 0.0, 1.0, 0.0, 0.0, 2.0]);
    }
}
