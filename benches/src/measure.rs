//! Clocks, and what a machine can do at most.

use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::simd::{COLUMNS, Isa, TILE_ROWS, Tile, panel_product};
use std::hint::black_box;
use std::time::Instant;

/// Times since a moment.
pub struct Clocks {
    wall: Instant,
    processor: f64,
}

impl Clocks {
    /// Begins now.
    pub fn start() -> Clocks {
        Clocks { wall: Instant::now(), processor: processor() }
    }

    /// Seconds since then: by the clock, and of the processor, all threads together.
    pub fn passed(&self) -> [f64; 2] {
        [self.wall.elapsed().as_secs_f64(), processor() - self.processor]
    }
}

/// Seconds that the threads of this process have run, as Linux counts them; 0 elsewhere.
fn processor() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 * 1e-9
}

/// The best of several.
fn best(times: usize, mut seconds: impl FnMut() -> f64) -> f64 {
    (0..times).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

/// Bytes per second that `threads` threads read from memory, each its share of every part.
pub fn read_bandwidth(parts: &[&[u8]], threads: usize) -> f64 {
    let sum = |part: &[u8]| {
        let mut lanes = [0u64; 32];
        for words in part.as_chunks::<8>().0.as_chunks::<32>().0 {
            lanes.iter_mut().zip(words).for_each(|(a, b)| *a = a.wrapping_add(u64::from_le_bytes(*b)));
        }
        black_box(lanes);
    };
    let seconds = best(5, || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads.max(1) {
                let share = move |part: &&'_ [u8]| {
                    let size = part.len().div_ceil(threads.max(1)).max(1);
                    sum(part.chunks(size).nth(thread).unwrap_or(&[]));
                };
                scope.spawn(move || parts.iter().for_each(share));
            }
        });
        start.elapsed().as_secs_f64()
    });
    parts.iter().map(|part| part.len()).sum::<usize>() as f64 / seconds
}

/// Operations per second of one thread's product kernel on operands in the first-level cache.
pub fn peak(isa: Isa, dtype: WeightType) -> f64 {
    const STEPS: usize = 64;
    const TIMES: usize = 2000;
    let (x, w) = (vec![0; STEPS * TILE_ROWS], vec![0; STEPS * COLUMNS]);
    let mut out = vec![0.0; TILE_ROWS * COLUMNS];
    let tile = Tile { dtype, x: &x, w: &w, rows: TILE_ROWS, steps: STEPS };
    let seconds = best(20, || {
        let start = Instant::now();
        (0..TIMES).for_each(|_| panel_product(isa, black_box(tile), &mut out, COLUMNS, false));
        black_box(&out);
        start.elapsed().as_secs_f64()
    });
    (2 * TIMES * STEPS * dtype.per_word() * TILE_ROWS * COLUMNS) as f64 / seconds
}
