//! Whether a model and its sequences fit into this machine's memory, told by class before anything is loaded.

use crate::failure::{Exit, Failure, Fault};
use crate::show;
use lapidary_runtime_cpu::program::CpuProgram;
use lapidary_runtime_cpu::store::Footprint;
use std::path::Path;

/// What a run needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Sequences at once.
    pub sequences: u64,
    /// Most tokens of a sequence.
    pub positions: u64,
    /// Most new tokens of one call, all sequences together.
    pub tokens: u64,
}

/// Positions of the cache come in blocks of this many.
const BLOCK: u64 = 32;

impl Needs {
    /// Bytes by class, with `weights` bytes of them in memory of our own.
    pub fn bytes(&self, program: &CpuProgram, weights: u64) -> [(&'static str, u64); 3] {
        let kept = self.sequences.saturating_mul(self.positions.next_multiple_of(BLOCK));
        [
            ("weights", weights),
            ("kv_cache", program.cache_bytes_per_token().saturating_mul(kept)),
            ("activations", program.activation_bytes_per_token().saturating_mul(self.tokens)),
        ]
    }

    /// Checks the classes against the memory of this machine, where the system tells it. Weights that stay in their
    /// files need none: the system drops their pages where it needs room, and reads them again.
    ///
    /// # Errors
    /// Exit 4 with every class when their sum is more.
    pub fn check(&self, program: &CpuProgram, weights: u64) -> Result<(), Failure> {
        available().map_or(Ok(()), |bytes| self.fits(program, weights, bytes))
    }

    fn fits(&self, program: &CpuProgram, weights: u64, available: u64) -> Result<(), Failure> {
        let classes = self.bytes(program, weights);
        let (name, Needs { sequences, positions, .. }) = (&program.model.name, self);
        let what = format!("{name} with {sequences} sequences of {positions} positions");
        let help = match weights > available {
            true => {
                "weights in the type that they are stored in are read from their files; or take a smaller model"
            }
            false => "give fewer prompts at once, or ask for fewer tokens with -n",
        };
        within(available, &what, &classes, help)
    }
}

/// What to expect where weights in files are more than memory that is left for them.
pub fn slow(footprint: &Footprint) -> Option<String> {
    available().and_then(|bytes| read_again(footprint, bytes))
}

fn read_again(footprint: &Footprint, available: u64) -> Option<String> {
    let left = available.saturating_sub(footprint.copied);
    (footprint.mapped > left).then(|| {
        let (weights, left) = (show::bytes(footprint.mapped), show::bytes(left));
        format!("{weights} of weights stay in their files, {left} of memory are left to hold them: tokens will be slow")
    })
}

/// Checks bytes by class against the memory of this machine, where the system tells it.
///
/// # Errors
/// Exit 4 with every class when their sum is more.
pub fn check(what: &str, classes: &[(&str, u64)], help: &str) -> Result<(), Failure> {
    available().map_or(Ok(()), |bytes| within(bytes, what, classes, help))
}

fn within(available: u64, what: &str, classes: &[(&str, u64)], help: &str) -> Result<(), Failure> {
    let sum = classes.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if sum <= available {
        return Ok(());
    }
    let parts: Vec<String> =
        classes.iter().map(|(class, bytes)| format!("{class} {}", show::bytes(*bytes))).collect();
    let message = format!(
        "{what} needs {} ({}), and {} of memory are available: {} too much",
        show::bytes(sum),
        parts.join(", "),
        show::bytes(available),
        show::bytes(sum - available)
    );
    Err(Failure {
        exit: Exit::DoesNotFit,
        faults: vec![Fault { help: Some(help.to_string()), ..Fault::new(message) }],
    })
}

/// Bytes that a process can still have: the system's estimate, or the group's limit where that is less.
fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let system = free_of(&read("/proc/meminfo")?)?;
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let used = read("/sys/fs/cgroup/memory.current").and_then(|text| text.trim().parse::<u64>().ok());
    let group = limit.map(|limit| limit.saturating_sub(used.unwrap_or(0)));
    Some(group.map_or(system, |group| group.min(system)))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn free_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_passes::cpu::{Options, lower_unfused};
    use lapidary_runtime_cpu::program::WeightType;

    #[test]
    fn what_does_not_fit_is_told_by_class() {
        let spec = lapidary_models::builtin("amber").expect("a built-in model");
        let program = lower_unfused(&spec, &Options::all(WeightType::Bf16)).expect("a program");
        let needs = Needs { sequences: 2, positions: 1000, tokens: 20 };
        let [(_, weights), (_, cache), _] = needs.bytes(&program, program.weight_bytes());
        assert_eq!(weights, 2 * 6_738_415_616 + 2 * 65 * 4096);
        assert_eq!(cache, 2 * 1024 * 32 * 2 * 4096 * 2, "K and V of 32 layers, 4096 wide, in bf16");
        assert!(needs.fits(&program, weights, 1 << 40).is_ok());
        let failure = needs.fits(&program, weights, 1 << 30).expect_err("too small");
        assert_eq!(failure.exit, Exit::DoesNotFit);
        for word in ["weights", "kv_cache", "activations", "1.00 GiB"] {
            assert!(failure.faults[0].message.contains(word), "{}", failure.faults[0].message);
        }
    }

    /// Weights that stay in their files take no memory, so a cache that fits beside nothing else does.
    #[test]
    fn only_what_is_copied_counts() {
        let spec = lapidary_models::builtin("amber").expect("a built-in model");
        let program = lower_unfused(&spec, &Options::all(WeightType::Bf16)).expect("a program");
        let needs = Needs { sequences: 1, positions: 32, tokens: 1 };
        let [_, (_, cache), (_, activations)] = needs.bytes(&program, 0);
        assert!(needs.fits(&program, 0, cache + activations).is_ok());
        assert!(needs.fits(&program, 1, cache + activations).is_err());
    }

    #[test]
    fn weights_that_are_read_again_for_every_token_are_told() {
        let told = |mapped| read_again(&Footprint { copied: 1 << 30, mapped }, 3 << 30);
        assert_eq!(told(2 << 30), None);
        let told = told(4 << 30).expect("too many");
        assert!(told.contains("4.00 GiB") && told.contains("2.00 GiB"), "{told}");
    }

    #[test]
    fn the_system_tells_kibibytes() {
        assert_eq!(free_of("MemTotal: 5 kB\nMemAvailable:   1024 kB\n"), Some(1 << 20));
        assert_eq!(free_of("MemTotal: 5 kB\n"), None);
    }
}
