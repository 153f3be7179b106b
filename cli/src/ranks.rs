//! Models spread over processes: which process runs which part, and how a job of them ends.

use crate::failure::{Exit, Failure};
use lapidary_models::{ModelSpec, shard};
pub use lapidary_runtime_mpi::Degrees;
use lapidary_runtime_mpi::{Grid, Launched, Launcher, Place, Ranks, Terms, World, launched};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Ranks that find nothing to say wait so long before they end a job: the first rank tells what all have found.
pub const COURTESY: Duration = Duration::from_millis(500);

/// A plan's degrees by its name, such as `tp4pp2dp8`; what is not named is 1.
///
/// # Errors
/// A sentence about what the name should be.
pub fn degrees(name: &str) -> Result<Degrees, String> {
    let wrong = || format!("a plan is named like tp2pp2dp2, not `{name}`");
    let mut degrees = Degrees { tensor: 1, pipeline: 1, data: 1 };
    let mut rest = name;
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let key = rest.get(..2).ok_or_else(wrong)?;
        let digits = rest[2..].bytes().take_while(u8::is_ascii_digit).count();
        let value: u64 = rest[2..2 + digits].parse().map_err(|_| wrong())?;
        let target = match key {
            "tp" => &mut degrees.tensor,
            "pp" => &mut degrees.pipeline,
            "dp" => &mut degrees.data,
            _ => return Err(wrong()),
        };
        if value == 0 || seen.contains(&key) {
            return Err(format!("{name}: every degree once, and at least 1"));
        }
        (seen, *target) = ([seen, vec![key]].concat(), value);
        rest = &rest[2 + digits..];
    }
    if seen.is_empty() { Err(wrong()) } else { Ok(degrees) }
}

/// This process among the ranks of a job.
pub struct Job<'w> {
    /// All processes.
    pub world: &'w World,
    /// The ranks that it meets.
    pub ranks: Ranks<'w>,
    /// The plan.
    pub degrees: Degrees,
    /// Where it stands.
    pub place: Place,
}

impl Job<'_> {
    /// Whether this process speaks for the job.
    pub fn speaks(&self) -> bool {
        self.world.rank() == 0
    }

    /// The part of the model that it runs.
    pub fn part(&self) -> (shard::Degrees, shard::Place) {
        let Degrees { tensor, pipeline, .. } = self.degrees;
        let Place { tensor: rank, stage, .. } = self.place;
        (shard::Degrees { tensor, pipeline }, shard::Place { tensor: rank, stage })
    }
}

/// Joins the job that a launcher started, does this process's share, and leaves. Where a share fails, the whole job ends with
/// its exit code: nobody waits for a rank that is gone.
///
/// # Errors
/// Exit 4 when the job has another number of processes than the plan has ranks, 7 when what the launcher says of it is
/// wrong or MPI cannot join it.
pub fn among(
    degrees: Degrees,
    patience: Duration,
    share: impl FnOnce(Job<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let launched = launched(&|name| std::env::var(name).ok())
        .map_err(|error| Failure::new(Exit::Missing, error.to_string()).help(START))?;
    joinable(degrees, launched.as_ref())?;
    let start = Instant::now();
    let late = move |what: &str| {
        let why = format!("waited {} s for the other ranks in {what}", patience.as_secs());
        let help = "one of them ended, hangs, or was never started; --patience SECONDS waits longer";
        Failure::new(Exit::Missing, why).help(help).print();
    };
    let joined = watch_join(patience, late);
    let terms = Terms {
        patience,
        clock: Box::new(move || start.elapsed()),
        late: Box::new(late),
        exit: Exit::Missing as i32,
    };
    let world = World::join(terms).ok_or_else(|| {
        Failure::new(Exit::Missing, "MPI does not start: is it installed for this launcher?")
    })?;
    let _ = joined.send(());
    let rank = world.rank();
    let outcome = match world.ranks(Grid { degrees }) {
        Some(ranks) => {
            let place = Grid { degrees }.place(rank as u64);
            share(Job { world: &world, ranks, degrees, place })
        }
        None => Err(wrong_size(degrees, world.size())),
    };
    let Err(failure) = outcome else { return Ok(()) };
    if world.size() == 1 {
        return Err(failure);
    }
    if rank > 0 {
        std::thread::sleep(COURTESY);
        eprintln!("rank {rank}:");
    }
    failure.print();
    world.abort(failure.exit as i32)
}

/// Whether a model has as many layers as a plan has stages.
///
/// # Errors
/// Exit 4.
pub fn fits(degrees: Degrees, spec: &ModelSpec) -> Result<(), Failure> {
    if degrees.pipeline <= spec.n_layers {
        return Ok(());
    }
    let what =
        format!("{} pipeline stages for the {} layers of {}", degrees.pipeline, spec.n_layers, spec.name);
    Err(Failure::new(Exit::DoesNotFit, what).help(format!("pp{} is the most", spec.n_layers)))
}

/// Ends the process when nothing is heard on the channel for too long: the library itself waits without an end for processes
/// that do not join.
fn watch_join(patience: Duration, late: impl Fn(&str) + Send + 'static) -> mpsc::Sender<()> {
    let (joined, heard) = mpsc::channel();
    std::thread::spawn(move || {
        if heard.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            late("joining the job");
            std::process::exit(Exit::Missing as i32);
        }
    });
    joined
}

/// How a job is started, for who sets variables by hand.
const START: &str = "start the job with mpirun -n N or srun --mpi=pmix -n N, or unset the variable";

/// Whether what the launcher says is a job for the plan that MPI can join: told before MPI is asked, which waits for
/// processes that never come.
fn joinable(degrees: Degrees, launched: Option<&Launched>) -> Result<(), Failure> {
    let Some(Launched { launcher, world, .. }) = launched else { return Ok(()) };
    let ranks = degrees.ranks();
    if *world != ranks {
        return Err(wrong_size(degrees, *world as usize));
    }
    if *launcher == Launcher::Torchrun && ranks > 1 {
        let what = "torchrun starts processes that MPI cannot join, and ranks on the host meet over MPI";
        let help = format!("mpirun -n {ranks} lapidary .., or srun --mpi=pmix -n {ranks} lapidary ..");
        return Err(Failure::new(Exit::Missing, what).help(help));
    }
    Ok(())
}

/// A job that has another number of processes than a plan has ranks.
pub fn wrong_size(degrees: Degrees, found: usize) -> Failure {
    let ranks = degrees.ranks();
    let Degrees { tensor, pipeline, data } = degrees;
    let what = format!(
        "the plan tp{tensor}pp{pipeline}dp{data} has {ranks} ranks, but {found} processes were started"
    );
    Failure::new(Exit::DoesNotFit, what).help(format!("mpirun -n {ranks} lapidary .."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_is_none_of_the_plan_is_not_joined() {
        let of = |launcher, world| Launched { launcher, rank: 0, world, local: 0, address: None };
        let degrees = Degrees { tensor: 2, pipeline: 1, data: 1 };
        let exit = |launched| joinable(degrees, Some(&launched)).map_err(|failure| failure.exit as i32);
        assert_eq!(exit(of(Launcher::Mpirun, 2)), Ok(()));
        assert_eq!(exit(of(Launcher::Slurm, 2)), Ok(()));
        assert_eq!(exit(of(Launcher::Slurm, 3)), Err(4));
        assert_eq!(exit(of(Launcher::Torchrun, 2)), Err(7));
        assert!(joinable(degrees, None).is_ok());
    }

    #[test]
    fn a_plan_is_read_by_its_name() {
        assert_eq!(degrees("tp4pp2dp28"), Ok(Degrees { tensor: 4, pipeline: 2, data: 28 }));
        assert_eq!(degrees("dp2"), Ok(Degrees { tensor: 1, pipeline: 1, data: 2 }));
        for wrong in ["", "tp", "tp0", "xp2", "tp2tp2", "tp2 pp2", "2", "tp99999999999999999999", "tpé"] {
            assert!(degrees(wrong).is_err(), "{wrong}");
        }
    }
}
