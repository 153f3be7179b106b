//! The roofline: a kernel takes as long as its arithmetic, its traffic or its launch, whichever is longest.

use super::Limiter;
use crate::unit::{Bytes, BytesPerSecond, Flops, FlopsPerSecond, Seconds};

/// Rates that a kernel runs against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Rate of its arithmetic.
    pub arithmetic: FlopsPerSecond,
    /// Bandwidth of its memory.
    pub memory: BytesPerSecond,
    /// Time that a launch occupies the host; launches are queued, so it only binds when it is the longest.
    pub launch: Seconds,
}

/// Time of a kernel and what binds it: the longest of arithmetic, traffic and launch
/// (Williams, Waterman, Patterson: Roofline, CACM 2009; the launch as a third roof).
pub fn kernel(flops: Flops, bytes: Bytes, roof: Roof) -> (Seconds, Limiter) {
    let compute = flops / roof.arithmetic;
    let memory = bytes / roof.memory;
    let (time, limiter) =
        if compute >= memory { (compute, Limiter::Compute) } else { (memory, Limiter::Memory) };
    if time < roof.launch { (roof.launch, Limiter::Launch) } else { (time, limiter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOF: Roof =
        Roof { arithmetic: FlopsPerSecond(1e12), memory: BytesPerSecond(1e9), launch: Seconds(1e-6) };

    #[test]
    fn the_longest_roof_binds() {
        assert_eq!(kernel(Flops(2e12), Bytes(1e9), ROOF), (Seconds(2.0), Limiter::Compute));
        assert_eq!(kernel(Flops(1e9), Bytes(1e9), ROOF), (Seconds(1.0), Limiter::Memory));
        assert_eq!(kernel(Flops(1.0), Bytes(1.0), ROOF), (Seconds(1e-6), Limiter::Launch));
    }
}
