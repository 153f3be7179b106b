//! Measured tables of a device: matrix products, attention and all-reduces, and how they are read between
//! their points.
//!
//! The tables are comma-separated files under `hardware/data`, each with its source in its first lines. Devices
//! without tables are priced by the rules alone.

use crate::gpu::Gpu;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// What a link carried where the all-reduces were measured, bytes per second: 300 GB/s each way through NVSwitch, of
/// which 235 are reached (stas00/ml-engineering, NCCL all-reduce over 8 A100).
pub const LINK_RATE: f64 = 300e9 * 0.78;

/// Measured tables of one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Sustained rates of matrix products, waves averaged out.
    pub products: Vec<Product>,
    attention: BTreeMap<(String, bool, u64), Curve>,
    all_reduce: BTreeMap<u64, Curve>,
}

/// One measured matrix product `[m, k] x [k, n]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of the result.
    pub m: f64,
    /// Columns of the result.
    pub n: f64,
    /// Length of the contraction.
    pub k: f64,
    /// Operations per second.
    pub rate: f64,
}

/// A positive quantity over a positive one, read on logarithmic axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// The value at `x`: between points along the line that joins them on logarithmic axes, outside them along
    /// the nearest end's value (`slope` 0) or in proportion (`slope` 1).
    pub fn at(&self, x: f64, slope_below: f64, slope_above: f64) -> Option<f64> {
        let (first, last) = (self.0.first()?, self.0.last()?);
        if x <= first.0 {
            return Some(first.1 * (x / first.0).powf(slope_below));
        }
        if x >= last.0 {
            return Some(last.1 * (x / last.0).powf(slope_above));
        }
        let upper = self.0.partition_point(|point| point.0 < x);
        let (a, b) = (self.0[upper - 1], self.0[upper]);
        let share = (x / a.0).ln() / (b.0 / a.0).ln();
        Some(a.1 * (b.1 / a.1).powf(share))
    }
}

impl Measured {
    /// The tables of a device, where there are any.
    pub fn of(gpu: &Gpu) -> Option<&'static Measured> {
        static A100: OnceLock<Measured> = OnceLock::new();
        let known = gpu.architecture == "sm_80" && gpu.product.contains("A100");
        known.then(|| {
            A100.get_or_init(|| {
                Measured::read(
                    include_str!("../../data/a100/gemm.csv"),
                    include_str!("../../data/a100/attention.csv"),
                    include_str!("../../data/a100/all_reduce.csv"),
                )
            })
        })
    }

    fn read(products: &str, attention: &str, all_reduce: &str) -> Measured {
        let mut measured = Measured::default();
        for cells in rows(products) {
            if let [m, n, k, tera, _] = numbers(&cells)[..] {
                measured.products.push(Product { m, n, k, rate: tera * 1e12 });
            }
        }
        for cells in rows(attention) {
            if let ([kernel, mask, ..], [head, sequence, tera]) = (&cells[..2], &numbers(&cells[2..])[..]) {
                let key = (kernel.to_string(), *mask == "causal", *head as u64);
                measured.attention.entry(key).or_default().0.push((*sequence, tera * 1e12));
            }
        }
        for cells in rows(all_reduce) {
            if let [ranks, bytes, micros] = numbers(&cells)[..] {
                measured.all_reduce.entry(ranks as u64).or_default().0.push((bytes, micros * 1e-6));
            }
        }
        measured
    }

    /// Operations per second of causal attention, forward and backward together, half of the square counted.
    /// Between head sizes of 64 and 128 the rate is interpolated; outside, that of the nearer one.
    pub fn attention_rate(&self, kernel: &str, head_dim: f64, sequence: f64) -> Option<f64> {
        let at = |head| self.attention.get(&(kernel.to_string(), true, head))?.at(sequence, 0.6, 0.0);
        let share = ((head_dim / 64.0).log2()).clamp(0.0, 1.0);
        Some(at(64)?.powf(1.0 - share) * at(128)?.powf(share))
    }

    /// Seconds of an all-reduce of `bytes` over `ranks` of one node, where that many were measured. Below the
    /// smallest message the shape of the 8-rank curve is used.
    pub fn all_reduce(&self, ranks: u64, bytes: f64) -> Option<f64> {
        let curve = self.all_reduce.get(&ranks)?;
        let (first, time) = *curve.0.first()?;
        if bytes >= first {
            return curve.at(bytes, 0.0, 1.0);
        }
        let eight = self.all_reduce.get(&8)?;
        Some(time * eight.at(bytes, 0.0, 1.0)? / eight.at(first, 0.0, 1.0)?)
    }
}

impl Measured {
    /// The same on links that carry `rate` bytes per second: the traffic takes longer or shorter, what the smallest
    /// message takes stays.
    pub fn all_reduce_at(&self, ranks: u64, bytes: f64, rate: f64) -> Option<f64> {
        let (whole, least) = (self.all_reduce(ranks, bytes)?, self.all_reduce(ranks, 1.0)?);
        let least = least.min(whole);
        Some(least + (whole - least) * LINK_RATE / rate)
    }
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let data = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    data.map(|line| line.split(',').collect())
}

fn numbers(cells: &[&str]) -> Vec<f64> {
    cells.iter().filter_map(|cell| cell.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::machine;

    fn a100() -> &'static Measured {
        Measured::of(machine("a100-80gb").unwrap().gpu().unwrap()).unwrap()
    }

    #[test]
    fn every_row_of_the_tables_is_read() {
        let tables = a100();
        assert_eq!(tables.products.len(), 564);
        assert_eq!(tables.attention.values().map(|curve| curve.0.len()).sum::<usize>(), 79);
        assert_eq!(tables.all_reduce.values().map(|curve| curve.0.len()).sum::<usize>(), 149);
        let ascending = |curve: &Curve| curve.0.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(tables.attention.values().chain(tables.all_reduce.values()).all(ascending));
    }

    #[test]
    fn curves_meet_their_points_and_lie_between_them() {
        let tables = a100();
        assert_eq!(tables.all_reduce(8, 67108864.0), Some(582.1e-6));
        let between = tables.all_reduce(8, 80e6).unwrap();
        assert!(582.1e-6 < between && between < 808.8e-6);
        assert!(tables.all_reduce(4, 1000.0).unwrap() < tables.all_reduce(4, 1048576.0).unwrap());
        assert_eq!(tables.attention_rate("flash-2", 128.0, 2048.0), Some(155e12));
        assert!(tables.all_reduce(16, 1e6).is_none());
    }

    #[test]
    fn other_devices_have_no_tables() {
        assert!(Measured::of(machine("h200").unwrap().gpu().unwrap()).is_none());
    }
}
