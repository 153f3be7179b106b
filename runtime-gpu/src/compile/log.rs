//! Reads registers, shared memory and spills from what `ptxas -v` prints into NVRTC's log.
use serde::{Deserialize, Serialize};

/// What a kernel takes of a multiprocessor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory per block, in bytes.
    pub shared_bytes: u64,
    /// Stack per thread, in bytes.
    pub stack_bytes: u64,
    /// Bytes of registers stored to local memory for lack of room.
    pub spill_stores: u64,
    /// Bytes loaded back.
    pub spill_loads: u64,
}

impl Resources {
    /// Reads the log of one entry point; none if the `Used .. registers` line is missing.
    pub fn parse(log: &str) -> Option<Resources> {
        let mut found = Resources::default();
        let mut registers = None;
        for line in log.lines() {
            if let Some(used) = line.split("Used ").nth(1) {
                registers = before(used, " registers");
                found.shared_bytes = before(used, " bytes smem").unwrap_or(0);
            }
            if line.contains("spill stores") {
                found.stack_bytes = before(line, " bytes stack frame")?;
                found.spill_stores = before(line, " bytes spill stores")?;
                found.spill_loads = before(line, " bytes spill loads")?;
            }
        }
        found.registers = u32::try_from(registers?).ok()?;
        Some(found)
    }
}

/// The number right before `unit`.
fn before(line: &str, unit: &str) -> Option<u64> {
    let head = line.split(unit).next().filter(|head| head.len() < line.len())?;
    let digits = head.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_log_with_and_without_shared_memory() {
        let log = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k' for 'sm_80'\n\
            ptxas info    : Function properties for k\n    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 72 registers, used 1 barriers, 20480 bytes smem, 380 bytes cmem[0]\n";
        let expected = Resources {
            registers: 72,
            shared_bytes: 20480,
            stack_bytes: 8,
            spill_stores: 4,
            spill_loads: 12,
        };
        assert_eq!(Resources::parse(log), Some(expected));
        let bare = Resources::parse("ptxas info    : Used 10 registers, 380 bytes cmem[0]");
        assert_eq!(bare.map(|r| (r.registers, r.shared_bytes)), Some((10, 0)));
        assert_eq!(Resources::parse("nothing"), None);
    }
}
