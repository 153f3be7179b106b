//! What one launch may ask of a device, by architecture; the numbers and their source are in `limits.toml`.
use serde::Deserialize;

/// Launch limits of an architecture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DeviceLimits {
    /// Architecture, such as `sm_80`.
    pub name: String,
    /// Threads of a block, all axes multiplied.
    pub threads_per_block: u32,
    /// Registers of a thread.
    pub registers_per_thread: u32,
    /// Registers of a multiprocessor, which a block may not exceed.
    pub registers_per_sm: u32,
    /// Shared memory of a block in bytes, after opting in.
    pub shared_bytes_per_block: u64,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads in x, y, z.
    pub block: [u32; 3],
}

#[derive(Deserialize)]
struct Table {
    arch: Vec<DeviceLimits>,
}

impl DeviceLimits {
    /// The limits of `arch`; `sm_90a` counts as `sm_90`. None for an architecture the table lacks.
    pub fn of(arch: &str) -> Option<DeviceLimits> {
        let table: Table = toml::from_str(include_str!("../../limits.toml")).ok()?;
        let wanted = arch.trim_end_matches('a');
        table.arch.into_iter().find(|limits| limits.name == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_and_knows_ampere_and_hopper() {
        assert_eq!(DeviceLimits::of("sm_80").map(|l| l.shared_bytes_per_block), Some(163 * 1024));
        assert_eq!(DeviceLimits::of("sm_90a").map(|l| l.shared_bytes_per_block), Some(227 * 1024));
        assert_eq!(DeviceLimits::of("sm_12"), None);
    }
}
