//! What a launcher tells a process about its job: rank, world, neighbours on the machine, and where the first rank is.
//!
//! ```text
//! mpirun     OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK} (Open MPI), PMI_{RANK,SIZE} with MPI_LOCALRANKID (MPICH, Intel MPI)
//! torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
//! Slurm      SLURM_PROCID, SLURM_STEP_NUM_TASKS or SLURM_NTASKS, SLURM_LOCALID, SLURM_STEP_NODELIST or SLURM_JOB_NODELIST
//! ```
//! The names are those of Open MPI's `mpirun(1)`, PyTorch's `torchrun` page ("Environment Variables") and Slurm's `srun(1)`
//! ("OUTPUT ENVIRONMENT VARIABLES"). A launcher inside an allocation of another counts: mpirun before torchrun before Slurm.
//! The environment itself is read by who calls: this file gets a function from names to values.

use std::fmt;
use thiserror::Error;

/// Where ranks meet that are told no port: the first of those that IANA leaves to anybody.
const PORT: u16 = 49_152;

/// Who started a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// mpirun or mpiexec.
    Mpirun,
    /// torchrun.
    Torchrun,
    /// srun.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Mpirun => "mpirun",
            Launcher::Torchrun => "torchrun",
            Launcher::Slurm => "Slurm",
        })
    }
}

/// A process among those of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Who started it.
    pub launcher: Launcher,
    /// Which of the processes it is.
    pub rank: u64,
    /// How many there are.
    pub world: u64,
    /// Which of those on its machine; also the device it takes.
    pub local: u64,
    /// Host and port where the first rank can be met; none where the launcher says nothing of it.
    pub address: Option<(String, u16)>,
}

/// Why the environment of a process is none of a job.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LaunchError {
    /// A variable is missing beside another of the same launcher.
    #[error("{found} is set, as {launcher} does it, but {missing} is not")]
    Missing {
        /// Who sets both.
        launcher: Launcher,
        /// The variable that is there.
        found: String,
        /// The one that is not.
        missing: String,
    },
    /// A variable is no number of the range.
    #[error("{name}={value}: expected {expected}")]
    Value {
        /// The variable.
        name: String,
        /// What it is.
        value: String,
        /// What it should be.
        expected: String,
    },
}

type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// One launcher's names.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    world: &'static [&'static str],
    local: &'static str,
}

const NAMES: [Names; 4] = [
    Names {
        launcher: Launcher::Mpirun,
        rank: "OMPI_COMM_WORLD_RANK",
        world: &["OMPI_COMM_WORLD_SIZE"],
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Names { launcher: Launcher::Mpirun, rank: "PMI_RANK", world: &["PMI_SIZE"], local: "MPI_LOCALRANKID" },
    Names { launcher: Launcher::Torchrun, rank: "RANK", world: &["WORLD_SIZE"], local: "LOCAL_RANK" },
    Names {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local: "SLURM_LOCALID",
    },
];

/// Reads what a launcher says; none for a process that nobody launched as one of several.
///
/// # Errors
/// [`LaunchError`] for variables that are missing beside others, are no numbers, or contradict each other.
pub fn launched(environment: Environment<'_>) -> Result<Option<Launched>, LaunchError> {
    let told = |names: &&Names| {
        environment(names.rank).is_some() || names.world.iter().any(|name| environment(name).is_some())
    };
    // An allocation of Slurm has its number of tasks also where srun starts none of them.
    let starts = |names: &&Names| names.launcher != Launcher::Slurm || environment(names.rank).is_some();
    match NAMES.iter().filter(starts).find(told) {
        Some(names) => read(names, environment).map(Some),
        None => Ok(None),
    }
}

fn read(names: &Names, environment: Environment<'_>) -> Result<Launched, LaunchError> {
    let launcher = names.launcher;
    let missing = |found: &str, missing: &str| LaunchError::Missing {
        launcher,
        found: found.into(),
        missing: missing.into(),
    };
    let world_name = names.world.iter().find(|name| environment(name).is_some()).copied();
    let world_name = world_name.ok_or_else(|| missing(names.rank, names.world[0]))?;
    let world = number(environment, world_name, 1, None)?.ok_or_else(|| missing(names.rank, world_name))?;
    let rank = number(environment, names.rank, 0, Some((world, world_name)))?
        .ok_or_else(|| missing(world_name, names.rank))?;
    let local = number(environment, names.local, 0, Some((world, world_name)))?.unwrap_or(0);
    Ok(Launched { launcher, rank, world, local, address: address(launcher, environment)? })
}

/// A whole number of at least `least`, below another variable's where one is given.
fn number(
    environment: Environment<'_>,
    name: &str,
    least: u64,
    below: Option<(u64, &str)>,
) -> Result<Option<u64>, LaunchError> {
    let Some(value) = environment(name) else { return Ok(None) };
    let expected = match below {
        Some((most, other)) => format!("a whole number below {other}={most}"),
        None => format!("a whole number, at least {least}"),
    };
    let fits = |n: &u64| *n >= least && below.is_none_or(|(most, _)| *n < most);
    match value.trim().parse::<u64>().ok().filter(fits) {
        Some(n) => Ok(Some(n)),
        None => Err(LaunchError::Value { name: name.into(), value, expected }),
    }
}

/// Where the first rank is. What torchrun calls the master's port its own store listens on: ranks meet at the next one.
fn address(launcher: Launcher, environment: Environment<'_>) -> Result<Option<(String, u16)>, LaunchError> {
    let port = match environment("MASTER_PORT") {
        None => None,
        Some(value) => match value.trim().parse::<u16>() {
            Ok(port) if port > 0 && port < u16::MAX => Some(port),
            _ => {
                let expected = "a port below 65535".into();
                return Err(LaunchError::Value { name: "MASTER_PORT".into(), value, expected });
            }
        },
    };
    let master = environment("MASTER_ADDR").filter(|host| !host.is_empty());
    if launcher == Launcher::Torchrun {
        let missing = |found: &str, missing: &str| LaunchError::Missing {
            launcher,
            found: found.into(),
            missing: missing.into(),
        };
        let host = master.ok_or_else(|| missing("RANK", "MASTER_ADDR"))?;
        let port = port.ok_or_else(|| missing("MASTER_ADDR", "MASTER_PORT"))?;
        return Ok(Some((host, port + 1)));
    }
    let nodes = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"].into_iter().find_map(environment);
    let host = master.or_else(|| nodes.and_then(|nodes| first_host(&nodes)));
    Ok(host.map(|host| (host, port.unwrap_or(PORT))))
}

/// The first host of a list in Slurm's form: of `gpu[003-010,12],login` it is `gpu003`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let host = match rest.strip_prefix('[') {
        Some(range) => {
            let (range, behind) = range.split_once(']')?;
            let first = range.split([',', '-']).next()?;
            let behind = behind.split(',').next().unwrap_or_default();
            format!("{name}{first}{behind}")
        }
        None => name.to_string(),
    };
    (!host.is_empty() && !host.contains('[')).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(&str, &str)]) -> Result<Option<Launched>, LaunchError> {
        launched(&|name| list.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    fn found(list: &[(&str, &str)]) -> (Launcher, u64, u64, u64, Option<String>) {
        let launched = of(list).unwrap().unwrap();
        let address = launched.address.map(|(host, port)| format!("{host}:{port}"));
        (launched.launcher, launched.rank, launched.world, launched.local, address)
    }

    #[test]
    fn every_launcher_is_read() {
        let open = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ];
        assert_eq!(found(&open), (Launcher::Mpirun, 5, 8, 1, None));
        assert_eq!(found(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), (Launcher::Mpirun, 0, 2, 0, None));
        let torch = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "3"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "29500"),
        ];
        assert_eq!(found(&torch), (Launcher::Torchrun, 3, 4, 3, Some("node7:29501".into())));
        let slurm = [
            ("SLURM_PROCID", "9"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_NODELIST", "gpu[003-010,12],login"),
        ];
        assert_eq!(found(&slurm), (Launcher::Slurm, 9, 16, 1, Some("gpu003:49152".into())));
        assert_eq!(of(&[("HOME", "/root")]), Ok(None));
    }

    /// mpirun in an allocation of Slurm, and an allocation in which nothing was started.
    #[test]
    fn the_launcher_that_started_the_process_counts() {
        let both = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "2"),
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("SLURM_JOB_NODELIST", "a1"),
        ];
        assert_eq!(found(&both), (Launcher::Mpirun, 3, 4, 0, Some("a1:49152".into())));
        assert_eq!(of(&[("SLURM_NTASKS", "4")]), Ok(None));
        let steps = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(found(&steps).2, 2);
    }

    #[test]
    fn what_is_missing_or_contradicts_is_named() {
        let says = |list: &[(&str, &str)]| of(list).unwrap_err().to_string();
        assert_eq!(says(&[("WORLD_SIZE", "4")]), "WORLD_SIZE is set, as torchrun does it, but RANK is not");
        assert_eq!(
            says(&[("SLURM_PROCID", "0")]),
            "SLURM_PROCID is set, as Slurm does it, but SLURM_STEP_NUM_TASKS is not"
        );
        assert_eq!(
            says(&[("RANK", "4"), ("WORLD_SIZE", "4")]),
            "RANK=4: expected a whole number below WORLD_SIZE=4"
        );
        assert_eq!(
            says(&[("RANK", "0"), ("WORLD_SIZE", "0")]),
            "WORLD_SIZE=0: expected a whole number, at least 1"
        );
        assert_eq!(
            says(&[("PMI_RANK", "one"), ("PMI_SIZE", "4")]),
            "PMI_RANK=one: expected a whole number below PMI_SIZE=4"
        );
        let torch = [("RANK", "0"), ("WORLD_SIZE", "2")];
        assert_eq!(says(&torch), "RANK is set, as torchrun does it, but MASTER_ADDR is not");
        let port = [torch[0], torch[1], ("MASTER_ADDR", "x"), ("MASTER_PORT", "70000")];
        assert_eq!(says(&port), "MASTER_PORT=70000: expected a port below 65535");
    }

    #[test]
    fn the_first_host_of_a_list() {
        for (list, first) in [
            ("a", Some("a")),
            ("a,b", Some("a")),
            ("n[1-3]", Some("n1")),
            ("n[07,9]-ib,m", Some("n07-ib")),
            ("n[1-", None),
            ("", None),
        ] {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
    }
}
