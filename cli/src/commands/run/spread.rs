//! A run of a model that is spread over the processes of a job: replicas share the prompts, the first process tells the text.

use super::asked::Asked;
use super::cuda;
use super::output::{Clock, Writer};
use super::{no_room, packed, prepared, sampling, weights_folder};
use crate::args::{Device, Global, Run};
use crate::failure::{Exit, Failure};
use crate::gpu;
use crate::host::{self, Switches};
use crate::input;
use crate::ranks::{self, Job};
use crate::weights::{self, Opened};
use lapidary_runtime_cpu::{Finish, Generation, generate};
use lapidary_runtime_mpi::Degrees;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Duration;

/// What a replica made of its prompts.
#[derive(Default, Serialize, Deserialize)]
struct Made {
    tokens: Vec<Vec<u32>>,
    finish: Vec<u8>,
}

const FINISHES: [Finish; 3] = [Finish::Stop, Finish::Length, Finish::Room];

/// Runs the verb in one process of a job.
///
/// # Errors
/// As the verb; exit 4 when the job is not the plan's, 7 when other processes do not come.
pub fn run(args: &Run, global: &Global, degrees: Degrees) -> Result<(), Failure> {
    if args.device == Device::Cuda {
        return on_gpus(args, global, degrees);
    }
    if args.device != Device::Cpu {
        let what = format!(
            "--plan spreads a model over processes of the host or over GPUs, not --device {}",
            args.device.name()
        );
        return Err(Failure::new(Exit::Unsupported, what));
    }
    ranks::among(degrees, Duration::from_secs(args.patience), |mut job| {
        let sampling = sampling(args)?;
        let spec = input::runnable_model(&args.model)?.spec;
        ranks::fits(degrees, &spec)?;
        let folder = weights_folder(args.weights.as_deref(), &args.model)?;
        let asked = Asked::read(args, &spec, &folder)?;
        let ask = Generation { max_new: args.max_new as usize, stop: asked.stop(args, &spec), sampling };
        let needs = asked.needs(&spec, ask.max_new);
        let clock = Clock::start();
        let model = weights::with_unread(&folder, &spec, |weights: &Opened<'_>| {
            let (degrees, place) = job.part();
            let packed = packed(args.dtype, weights);
            let lowered = host::lower_part(&spec, &Switches::default(), packed, degrees, place)?;
            prepared(lowered, weights, &needs, global)
        })?;
        let mut clock = clock.loaded();
        let own = share(asked.prompts.len(), job.place.replica, degrees.data);
        let prompts: Vec<&[u32]> = asked.prompts[own.clone()].iter().map(Vec::as_slice).collect();
        let mut writer = job.speaks().then(|| Writer::new(&asked, args.json));
        let mut made = Vec::new();
        if !prompts.is_empty() {
            let mut session = model
                .session_among(&mut job.ranks, prompts.len(), needs.positions as usize)
                .map_err(no_room)?;
            made = generate(&mut session, &prompts, &ask, |sequence, token| {
                clock.token();
                if let Some(writer) = &mut writer {
                    writer.token(own.start + sequence, token, ask.stop.contains(&token));
                }
            })
            .map_err(no_room)?;
        }
        if degrees.data > 1 {
            made = of_all_replicas(&job, made)?;
        }
        let Some(mut writer) = writer else { return Ok(()) };
        // What the first replica made has been told as it came.
        for (sequence, (tokens, _)) in made.iter().enumerate().filter(|(at, _)| !own.contains(at)) {
            tokens.iter().for_each(|token| writer.token(sequence, *token, ask.stop.contains(token)));
        }
        writer.finish(&spec, args.device.name(), &made)?;
        if !global.quiet {
            clock.tell(prompts.iter().map(|prompt| prompt.len()).sum(), prompts.len());
        }
        Ok(())
    })
}

/// The same on the GPU of one rank of a job.
fn on_gpus(args: &Run, global: &Global, degrees: Degrees) -> Result<(), Failure> {
    let sampling = sampling(args)?;
    let spec = input::runnable_model(&args.model)?.spec;
    ranks::fits(degrees, &spec)?;
    let folder = weights_folder(args.weights.as_deref(), &args.model)?;
    let asked = Asked::read(args, &spec, &folder)?;
    let ask = Generation { max_new: args.max_new as usize, stop: asked.stop(args, &spec), sampling };
    let (patience, jobs) = (Duration::from_secs(args.patience), crate::commands::jobs(global));
    let terms = gpu::ranks::Terms { degrees, what: &spec.name, patience, jobs };
    gpu::ranks::among(&terms, |device| {
        let asking = cuda::Asking { args, asked: &asked, generation: &ask, quiet: global.quiet };
        cuda::run(device, &spec, &folder, &asking)
    })
}

/// The prompts of a replica.
fn share(prompts: usize, replica: u64, replicas: u64) -> Range<usize> {
    let bound = |replica: u64| (prompts as u64 * replica / replicas) as usize;
    bound(replica)..bound(replica + 1)
}

/// What all replicas made, in the order of the prompts: the first rank of each tells it.
fn of_all_replicas(job: &Job<'_>, made: Vec<(Vec<u32>, Finish)>) -> Result<Vec<(Vec<u32>, Finish)>, Failure> {
    let tells = job.place.tensor == 0 && job.place.stage == 0;
    let mut told = Made::default();
    for (tokens, finish) in made.into_iter().filter(|_| tells) {
        told.finish.push(FINISHES.iter().position(|known| *known == finish).unwrap_or(0) as u8);
        told.tokens.push(tokens);
    }
    let what = "the continuations of all replicas";
    let fault = |error: serde_json::Error| Failure::new(Exit::Internal, format!("{what}: {error}"));
    let bytes = serde_json::to_vec(&told).map_err(fault)?;
    let heard =
        job.world.gather(what, &bytes).map_err(|error| Failure::new(Exit::Missing, error.to_string()))?;
    let mut all = Vec::new();
    for bytes in heard {
        let Made { tokens, finish } = serde_json::from_slice(&bytes).map_err(fault)?;
        let finish = finish.into_iter().filter_map(|at| FINISHES.get(usize::from(at)).copied());
        all.extend(tokens.into_iter().zip(finish));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_share_the_prompts_in_order() {
        let shares: Vec<Range<usize>> = (0..3).map(|replica| share(4, replica, 3)).collect();
        assert_eq!(shares, [0..1, 1..2, 2..4]);
        assert!(share(1, 0, 2).is_empty(), "fewer prompts than replicas");
    }
}
