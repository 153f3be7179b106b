//! Jobs of ranks that each have a GPU: what the launcher says, where they meet, and how one that fails ends the others.

use super::{Continued, Gpu, failure};
use crate::failure::{Exit, Failure};
use crate::ranks::{COURTESY, wrong_size};
use lapidary_runtime_cpu::Finish;
use lapidary_runtime_gpu::collectives::bootstrap::{BootstrapError, Guest, Hello};
use lapidary_runtime_gpu::collectives::{Among, Nccl, NcclError, NcclPeers, Standing, Word};
use lapidary_runtime_gpu::device::cuda::Cuda;
use lapidary_runtime_gpu::device::{Device, DeviceError};
use lapidary_runtime_gpu::program::{Dtype, Group, Said};
use lapidary_runtime_mpi::{Degrees, Launched, Launcher, launched};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Where ranks of one machine meet whose launcher says nothing of it: the first port that IANA leaves to anybody.
const PORT: u16 = 49_152;

const START: &str =
    "torchrun --nproc-per-node N --no-python lapidary .., mpirun -n N lapidary .., or srun -n N lapidary ..";

/// How a job on GPUs is joined.
pub struct Terms<'a> {
    /// The plan.
    pub degrees: Degrees,
    /// What all ranks run, in words.
    pub what: &'a str,
    /// How long others are waited for.
    pub patience: Duration,
    /// Threads that compile kernels.
    pub jobs: usize,
}

/// Joins the job that a launcher started, does this process's share on its own GPU, and leaves. Where a share fails, the
/// others are told: nobody waits for a rank that is gone.
///
/// # Errors
/// Exit 4 when the job has another number of processes than the plan has ranks, 7 where the launcher, NCCL, the GPU or the
/// other ranks are missing.
pub fn among(
    terms: &Terms<'_>,
    share: impl FnOnce(Box<dyn Device>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let environment = |name: &str| std::env::var(name).ok();
    let launched = launched(&environment).map_err(|error| missing(error.to_string()).help(START))?;
    let (rank, world) = launched.as_ref().map_or((0, 1), |job| (job.rank, job.world));
    if world != terms.degrees.ranks() {
        return Err(wrong_size(terms.degrees, world as usize));
    }
    let Some(launched) = launched.filter(|job| job.world > 1) else {
        return share(super::open(terms.jobs)?);
    };
    let address = meeting_place(&launched, &environment)?;
    let nccl = Nccl::open().map_err(|error| missing(error.to_string()).help(error.help()))?;
    let gpu = own_gpu(launched.local, terms.jobs)?;
    let joined = join(terms, &launched, &address, (nccl, gpu));
    let outcome = joined.and_then(|(device, guest)| {
        share(device)?;
        guest.borrow_mut().leave();
        Ok(())
    });
    outcome.inspect_err(|_| {
        if rank > 0 {
            std::thread::sleep(COURTESY);
            eprintln!("rank {rank}:");
        }
    })
}

fn missing(what: String) -> Failure {
    Failure::new(Exit::Missing, what)
}

/// Host and port of the first rank.
fn meeting_place(
    launched: &Launched,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, u16), Failure> {
    if let Some(address) = &launched.address {
        return Ok(address.clone());
    }
    let here = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"].into_iter().find_map(environment);
    let all_here = here.and_then(|count| count.trim().parse().ok()) == Some(launched.world);
    let port = environment("MASTER_PORT").and_then(|port| port.trim().parse().ok()).unwrap_or(PORT);
    match launched.launcher == Launcher::Mpirun && all_here {
        true => Ok(("127.0.0.1".into(), port)),
        false => Err(missing(format!("{} does not say where rank 0 is", launched.launcher))
            .help("set MASTER_ADDR to the host of rank 0, and MASTER_PORT to a port that is free there")),
    }
}

/// The GPU of a process. A launcher that shows each process its own one only shows it as the first.
fn own_gpu(local: u64, jobs: usize) -> Result<Cuda, Failure> {
    let ordinal = u32::try_from(local).unwrap_or(u32::MAX);
    let opened = match Cuda::open(ordinal, super::compiler(jobs)) {
        Err(DeviceError::NoGpu { count: 1, .. }) => Cuda::open(0, super::compiler(jobs)),
        opened => opened,
    };
    opened.map_err(|error| match error {
        DeviceError::NoGpu { asked, count } => {
            let what = format!("rank {asked} of this machine has no GPU: the driver sees {count}");
            missing(what).help("start as many ranks on a machine as it has GPUs")
        }
        error => failure(&error),
    })
}

type Joined = (Box<dyn Device>, Rc<RefCell<Guest>>);

/// Meets the others.
fn join(
    terms: &Terms<'_>,
    launched: &Launched,
    (host, port): &(String, u16),
    (nccl, gpu): (Nccl, Cuda),
) -> Result<Joined, Failure> {
    let Degrees { tensor, pipeline, data } = terms.degrees;
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let place = gpu.place_on_bus().map_err(|error| failure(&error))?;
    let hello = Hello {
        rank: launched.rank,
        world: launched.world,
        plan: format!("tp{tensor}pp{pipeline}dp{data} of {}", terms.what),
        device: format!("GPU {place} of {}", machine.trim()),
    };
    let (start, patience) = (Instant::now(), terms.patience);
    let waited = move || start.elapsed() >= patience;
    let namer = Box::new(move || nccl.name().map_err(|error: NcclError| error.to_string()));
    let help = "every rank must be started and reach rank 0 there; --patience SECONDS waits longer";
    let told = |error: BootstrapError| missing(format!("ranks do not meet: {error}")).help(help);
    let guest = Guest::meet(&hello, (host, *port), namer, waited).map_err(told)?;
    let guest = Rc::new(RefCell::new(guest));
    let standing = Standing::of(launched.rank, [tensor, data, pipeline]);
    let clock = Box::new(move || start.elapsed());
    let peers = NcclPeers::new(nccl, guest.clone(), standing, patience, clock);
    Ok((Box::new(Among::new(Box::new(gpu), peers)), guest))
}

/// The part of a number of things that is a replica's.
pub fn replicas_part(things: usize, standing: Option<Standing>) -> Range<usize> {
    let Some(Standing { replica, .. }) = standing else { return 0..things };
    let bound = |index: u64| (things as u64 * index / replica.of) as usize;
    bound(replica.index)..bound(replica.index + 1)
}

const FINISHES: [Finish; 3] = [Finish::Stop, Finish::Length, Finish::Room];

impl Gpu<'_> {
    /// What all replicas made of their parts of `prompts` prompts, each with at most `most` tokens, in the order of the
    /// prompts.
    ///
    /// # Errors
    /// Exit 7 when the others are not met.
    pub fn of_all_replicas(
        &self,
        made: Continued,
        prompts: usize,
        most: usize,
    ) -> Result<Continued, Failure> {
        let Some(standing) = self.standing().filter(|standing| standing.replica.of > 1) else {
            return Ok(made);
        };
        // Every prompt takes a row: how many tokens, why they end, and the tokens.
        let (row, ranks) = (most + 2, standing.replica.of as usize);
        let rows = prompts.div_ceil(ranks);
        let mut words = vec![0u32; rows * row];
        for ((tokens, finish), into) in made.iter().zip(words.chunks_exact_mut(row)) {
            into[0] = tokens.len() as u32;
            into[1] = FINISHES.iter().position(|known| known == finish).unwrap_or(0) as u32;
            into[2..2 + tokens.len()].copy_from_slice(tokens);
        }
        let heard = self.gather(&words, ranks).map_err(|error| failure(&error))?;
        let mut all = Vec::new();
        for (index, of_replica) in heard.chunks_exact(rows * row).enumerate() {
            let mut place = standing;
            place.replica.index = index as u64;
            let count = replicas_part(prompts, Some(place)).len();
            for told in of_replica.chunks_exact(row).take(count) {
                let finish = FINISHES.get(told[1] as usize).copied().unwrap_or(Finish::Length);
                all.push((told[2..2 + (told[0] as usize).min(most)].to_vec(), finish));
            }
        }
        Ok(all)
    }

    /// Words of all replicas, one after another.
    fn gather(&self, words: &[u32], ranks: usize) -> Result<Vec<u32>, DeviceError> {
        let mut device = self.device.borrow_mut();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (x, out) = (device.allocate(bytes.len() as u64)?, device.allocate((bytes.len() * ranks) as u64)?);
        device.write(x, &bytes)?;
        device.say(&Word {
            name: "the continuations of all replicas".into(),
            said: Said::Gather,
            group: Group::Data,
            dtype: Dtype::I32,
            count: words.len() as u64,
            x: Some(x),
            out: Some(out),
            beside: false,
            last: false,
        })?;
        let mut heard = vec![0; bytes.len() * ranks];
        device.read(out, &mut heard)?;
        device.release(x)?;
        device.release(out)?;
        Ok(heard.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_one_machine_meet_there_and_others_have_to_be_told_where() {
        let of = |launcher, address| Launched { launcher, rank: 1, world: 2, local: 1, address };
        let met = |launched: &Launched, pairs: &[(&str, &str)]| {
            meeting_place(launched, &|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
            })
            .map_err(|failure| failure.exit as i32)
        };
        let alone = of(Launcher::Mpirun, None);
        assert_eq!(met(&alone, &[("OMPI_COMM_WORLD_LOCAL_SIZE", "2")]), Ok(("127.0.0.1".into(), PORT)));
        assert_eq!(met(&alone, &[("OMPI_COMM_WORLD_LOCAL_SIZE", "1")]), Err(7));
        let told = of(Launcher::Torchrun, Some(("node7".into(), 29_501)));
        assert_eq!(met(&told, &[]), Ok(("node7".into(), 29_501)));
    }

    #[test]
    fn replicas_share_prompts_in_order() {
        let part = |replica: u64| replicas_part(5, Some(Standing::of(replica * 2, [2, 3, 1])));
        assert_eq!([part(0), part(1), part(2)], [0..1, 1..3, 3..5]);
        assert_eq!(replicas_part(5, None), 0..5);
    }
}
