//! Holds the host's product kernel against the crate `gemm` on the shapes of the models of this comparison.
//!
//! `products [ROUNDS]`: one thread, `out [rows, width] = x [rows, k] wᵀ` with `w [width, k]` as checkpoints store it,
//! both kernels taking turns on the same operands. Prints Gflop/s (medians over the rounds) of ours with f32 weights, of
//! `gemm` with f32, and of ours with bf16 weights, for which `gemm` has no kernel; and how far the two f32 results differ.

use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::simd::{COLUMNS, Dots, Isa, dot_products, pack};
use std::hint::black_box;
use std::time::Instant;

/// Rows, inner dimension, width: projections, MLP and head of the 110M model under a prompt of 512 tokens, of the 1.1B
/// under one of 128, and a square one.
const SHAPES: [[usize; 3]; 8] = [
    [512, 768, 768],
    [512, 768, 2048],
    [512, 2048, 768],
    [128, 2048, 2048],
    [128, 2048, 5632],
    [128, 5632, 2048],
    [128, 2048, 32000],
    [1024, 1024, 1024],
];
/// Rows that pass through the matrix together, as in the host's runtime (`runtime-cpu/src/step.rs`).
const BLOCK: usize = 240;
/// Words of a cache line.
const LINE: usize = 16;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(9usize).max(1);
    println!(
        "{:>18}  {:>8}  {:>8}  {:>6}  {:>9}  apart",
        "rows, k, width", "ours f32", "gemm f32", "ratio", "ours bf16"
    );
    for [rows, k, width] in SHAPES {
        let (x, w) = (numbers(rows * k, 1), numbers(width * k, 2));
        let (ours, theirs, bf16) =
            (Ours::new(WeightType::F32, &w, k), Gemm { w: &w }, Ours::new(WeightType::Bf16, &w, k));
        let mut out = [vec![0.0; rows * width], vec![0.0; rows * width], vec![0.0; rows * width]];
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..=rounds {
            times[0].push(timed(|| ours.product(black_box(&x), &mut out[0])));
            times[1].push(timed(|| theirs.product(black_box(&x), k, &mut out[1])));
            times[2].push(timed(|| bf16.product(black_box(&x), &mut out[2])));
        }
        let apart = out[0].iter().zip(&out[1]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let largest = out[1].iter().fold(0f32, |most, x| most.max(x.abs()));
        // The first round touches the memory.
        let rate = |times: &[f64]| (2 * rows * k * width) as f64 / median(&times[1..]) * 1e-9;
        let [ours, gemm, bf16] = [rate(&times[0]), rate(&times[1]), rate(&times[2])];
        let shape = format!("{rows}, {k}, {width}");
        println!(
            "{shape:>18}  {ours:>8.1}  {gemm:>8.1}  {:>5.2}x  {bf16:>9.1}  {:.0e}",
            ours / gemm,
            apart / largest
        );
    }
}

/// A matrix `[width, k]` for our kernel.
struct Ours {
    dtype: WeightType,
    words: Vec<u32>,
    k: usize,
}

impl Ours {
    fn new(dtype: WeightType, w: &[f32], k: usize) -> Ours {
        let steps = dtype.words(k);
        let mut words = vec![0; w.len() / k * steps];
        w.chunks(k).zip(words.chunks_mut(steps)).for_each(|(row, into)| pack(dtype, row, into.iter_mut()));
        Ours { dtype, words, k }
    }

    /// Packs the left operand, as a step of the runtime does, and multiplies panel by panel.
    fn product(&self, x: &[f32], out: &mut [f32]) {
        let (isa, steps) = (Isa::detect(), self.dtype.words(self.k));
        let width = self.words.len() / steps;
        let mut words = vec![0; BLOCK * steps + LINE];
        let line = words.as_ptr().align_offset(4 * LINE).min(LINE);
        let words = &mut words[line..];
        for (x, out) in x.chunks(BLOCK * self.k).zip(out.chunks_mut(BLOCK * width)) {
            let rows = x.len() / self.k;
            x.chunks(self.k)
                .zip(words.chunks_mut(steps))
                .for_each(|(row, into)| pack(self.dtype, row, into.iter_mut()));
            for (panel, w) in self.words.chunks(COLUMNS * steps).enumerate() {
                let dots = Dots { dtype: self.dtype, x: words, x_pitch: steps, rows, w, steps };
                dot_products(isa, dots, &mut out[panel * COLUMNS..], width);
            }
        }
    }
}

/// The same for `gemm`.
struct Gemm<'a> {
    w: &'a [f32],
}

impl Gemm<'_> {
    fn product(&self, x: &[f32], k: usize, out: &mut [f32]) {
        let (rows, width) = (x.len() / k, self.w.len() / k);
        assert!(x.len() == rows * k && self.w.len() == width * k && out.len() == rows * width);
        // SAFETY: the three matrices have the lengths that were just asserted, with rows of k, k and width elements.
        unsafe {
            gemm::gemm(
                rows,
                width,
                k,
                out.as_mut_ptr(),
                1,
                width as isize,
                false,
                x.as_ptr(),
                1,
                k as isize,
                self.w.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// Numbers between -1 and 1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
