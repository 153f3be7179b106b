//! Quantities with their units in the type, and the arithmetic that makes sense between them.
//!
//! Values are SI doubles (`Cycles` alone is a whole number): integers up to 2^53 stay exact, and the sizes
//! of absurd models overflow to large numbers instead of wrapping. `Display` scales and names the unit.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// What kind of quantity a unit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// A whole number of things.
    Count,
    /// A dimensionless fraction or factor.
    Ratio,
    /// An amount of memory or traffic.
    Bytes,
    /// A rate of traffic.
    BytesPerSecond,
    /// A rate of arithmetic.
    FlopsPerSecond,
    /// A clock.
    Hertz,
    /// A time.
    Seconds,
    /// A time in clocks of the machine.
    Cycles,
    /// A rate of arithmetic in clocks of the machine.
    ElementsPerCycle,
    /// A length in machine words, as of a queue.
    Words,
}

impl Dimension {
    /// Units a machine file may use for this dimension, for hints.
    pub const fn examples(self) -> &'static str {
        match self {
            Dimension::Count => "\"count\"",
            Dimension::Ratio => "\"ratio\"",
            Dimension::Bytes => "\"B\", \"KiB\", \"GiB\", \"GB\"",
            Dimension::BytesPerSecond => "\"GB/s\", \"TB/s\", \"Gb/s\" (bits)",
            Dimension::FlopsPerSecond => "\"TFLOP/s\", \"TOP/s\"",
            Dimension::Hertz => "\"MHz\", \"GHz\"",
            Dimension::Seconds => "\"s\", \"us\", \"ns\"",
            Dimension::Cycles => "\"cycles\"",
            Dimension::ElementsPerCycle => "\"elements/cycle\"",
            Dimension::Words => "\"words\"",
        }
    }

    /// The dimension in words, for messages.
    pub const fn describe(self) -> &'static str {
        match self {
            Dimension::Count => "a count",
            Dimension::Ratio => "a ratio",
            Dimension::Bytes => "bytes",
            Dimension::BytesPerSecond => "bytes per second",
            Dimension::FlopsPerSecond => "operations per second",
            Dimension::Hertz => "a frequency",
            Dimension::Seconds => "a time",
            Dimension::Cycles => "cycles",
            Dimension::ElementsPerCycle => "elements per cycle",
            Dimension::Words => "words",
        }
    }
}

/// Reads a unit such as `TFLOP/s`, `GiB` or `Gb/s`: its dimension and the factor to SI.
///
/// Bits (`b`) become bytes. Prefixes are `k M G T P E`, binary `Ki Mi Gi Ti Pi` for bytes, and
/// `m u n` for seconds. Returns `None` for a unit that is not known.
pub fn parse_unit(text: &str) -> Option<(Dimension, f64)> {
    const BASES: [(&str, Dimension, f64); 13] = [
        ("elements/cycle", Dimension::ElementsPerCycle, 1.0),
        ("cycles", Dimension::Cycles, 1.0),
        ("words", Dimension::Words, 1.0),
        ("count", Dimension::Count, 1.0),
        ("ratio", Dimension::Ratio, 1.0),
        ("FLOP/s", Dimension::FlopsPerSecond, 1.0),
        ("OP/s", Dimension::FlopsPerSecond, 1.0),
        ("B/s", Dimension::BytesPerSecond, 1.0),
        ("b/s", Dimension::BytesPerSecond, 0.125),
        ("Hz", Dimension::Hertz, 1.0),
        ("B", Dimension::Bytes, 1.0),
        ("b", Dimension::Bytes, 0.125),
        ("s", Dimension::Seconds, 1.0),
    ];
    BASES.iter().find_map(|(base, dimension, factor)| {
        let prefix = text.strip_suffix(base)?;
        Some((*dimension, factor * prefix_factor(prefix, *dimension)?))
    })
}

fn prefix_factor(prefix: &str, dimension: Dimension) -> Option<f64> {
    use Dimension::{Bytes, BytesPerSecond, FlopsPerSecond, Hertz, Seconds};
    let large = matches!(dimension, Bytes | BytesPerSecond | FlopsPerSecond | Hertz);
    let binary = matches!(dimension, Bytes | BytesPerSecond);
    match prefix {
        "" => Some(1.0),
        "k" if large => Some(1e3),
        "M" if large => Some(1e6),
        "G" if large => Some(1e9),
        "T" if large => Some(1e12),
        "P" if large => Some(1e15),
        "E" if large => Some(1e18),
        "Ki" if binary => Some(1024f64),
        "Mi" if binary => Some(1024f64.powi(2)),
        "Gi" if binary => Some(1024f64.powi(3)),
        "Ti" if binary => Some(1024f64.powi(4)),
        "Pi" if binary => Some(1024f64.powi(5)),
        "m" if dimension == Seconds => Some(1e-3),
        "u" | "µ" if dimension == Seconds => Some(1e-6),
        "n" if dimension == Seconds => Some(1e-9),
        _ => None,
    }
}

/// A quantity that a machine file can state.
pub trait Quantity: Copy {
    /// What its unit must measure.
    const DIMENSION: Dimension;
    /// From the value in SI units.
    fn from_si(value: f64) -> Self;
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $dimension:ident, $show:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub f64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: $name = $name(0.0);
            /// The larger of two.
            pub fn max(self, other: $name) -> $name {
                $name(self.0.max(other.0))
            }
            /// The smaller of two.
            pub fn min(self, other: $name) -> $name {
                $name(self.0.min(other.0))
            }
        }
        impl Quantity for $name {
            const DIMENSION: Dimension = Dimension::$dimension;
            fn from_si(value: f64) -> Self {
                $name(value)
            }
        }
        impl Add for $name {
            type Output = $name;
            fn add(self, other: $name) -> $name {
                $name(self.0 + other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: $name) {
                self.0 += other.0;
            }
        }
        impl Sub for $name {
            type Output = $name;
            fn sub(self, other: $name) -> $name {
                $name(self.0 - other.0)
            }
        }
        impl Mul<f64> for $name {
            type Output = $name;
            fn mul(self, factor: f64) -> $name {
                $name(self.0 * factor)
            }
        }
        impl Div<f64> for $name {
            type Output = $name;
            fn div(self, divisor: f64) -> $name {
                $name(self.0 / divisor)
            }
        }
        impl Div for $name {
            type Output = f64;
            fn div(self, other: $name) -> f64 {
                self.0 / other.0
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = $name>>(values: I) -> $name {
                $name(values.map(|value| value.0).sum())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let show: fn(f64) -> String = $show;
                f.pad(&show(self.0))
            }
        }
    };
}

quantity!(
    /// An amount of memory or traffic, in bytes.
    Bytes, Bytes, |v| scaled(v, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
);
quantity!(
    /// A number of floating-point operations; a fused multiply-add counts as two.
    Flops, Count, |v| scaled(v, 1e3, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])
);
quantity!(
    /// A time in seconds.
    Seconds, Seconds, seconds
);
quantity!(
    /// A rate of traffic, in bytes per second.
    BytesPerSecond, BytesPerSecond, |v| scaled(v, 1e3, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"])
);
quantity!(
    /// A rate of arithmetic, in floating-point operations per second.
    FlopsPerSecond,
    FlopsPerSecond,
    |v| scaled(v, 1e3, &["FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s"])
);
quantity!(
    /// A clock rate in cycles per second.
    Hertz, Hertz, |v| scaled(v, 1e3, &["Hz", "kHz", "MHz", "GHz"])
);
quantity!(
    /// A dimensionless fraction or factor.
    Ratio, Ratio, |v| format!("{v:.3}")
);
quantity!(
    /// Elements that a datapath retires per clock.
    ElementsPerCycle, ElementsPerCycle, |v| format!("{v} elements/cycle")
);

/// A time in clocks of the machine, a whole number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cycles(pub u64);

impl Cycles {
    /// How long these cycles take at a clock.
    pub fn at(self, clock: Hertz) -> Seconds {
        Seconds(self.0 as f64 / clock.0)
    }
}

impl Quantity for Cycles {
    const DIMENSION: Dimension = Dimension::Cycles;
    fn from_si(value: f64) -> Self {
        Cycles(value as u64)
    }
}

impl Add for Cycles {
    type Output = Cycles;
    fn add(self, other: Cycles) -> Cycles {
        Cycles(self.0.saturating_add(other.0))
    }
}

impl Mul<u64> for Cycles {
    type Output = Cycles;
    fn mul(self, factor: u64) -> Cycles {
        Cycles(self.0.saturating_mul(factor))
    }
}

impl Sum for Cycles {
    fn sum<I: Iterator<Item = Cycles>>(values: I) -> Cycles {
        values.fold(Cycles(0), Add::add)
    }
}

impl fmt::Display for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} cycles", self.0))
    }
}

macro_rules! rate {
    ($amount:ident, $rate:ident) => {
        impl Div<$rate> for $amount {
            type Output = Seconds;
            fn div(self, rate: $rate) -> Seconds {
                Seconds(self.0 / rate.0)
            }
        }
        impl Div<Seconds> for $amount {
            type Output = $rate;
            fn div(self, time: Seconds) -> $rate {
                $rate(self.0 / time.0)
            }
        }
        impl Mul<Seconds> for $rate {
            type Output = $amount;
            fn mul(self, time: Seconds) -> $amount {
                $amount(self.0 * time.0)
            }
        }
    };
}

rate!(Bytes, BytesPerSecond);
rate!(Flops, FlopsPerSecond);

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut scaled = value;
    let mut index = 0;
    while scaled.abs() >= base && index + 1 < units.len() {
        scaled /= base;
        index += 1;
    }
    let digits = if index == 0 || scaled.abs() >= 1000.0 { 0 } else { 2 };
    format!("{scaled:.digits$} {}", units[index])
}

fn seconds(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || v >= 1.0 => format!("{value:.3} s"),
        v if v >= 1e-3 => format!("{:.3} ms", value * 1e3),
        v if v >= 1e-6 => format!("{:.3} us", value * 1e6),
        _ => format!("{:.3} ns", value * 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_into_si() {
        assert_eq!(parse_unit("TFLOP/s"), Some((Dimension::FlopsPerSecond, 1e12)));
        assert_eq!(parse_unit("TOP/s"), Some((Dimension::FlopsPerSecond, 1e12)));
        assert_eq!(parse_unit("KiB"), Some((Dimension::Bytes, 1024.0)));
        assert_eq!(parse_unit("GB/s"), Some((Dimension::BytesPerSecond, 1e9)));
        assert_eq!(parse_unit("Gb/s"), Some((Dimension::BytesPerSecond, 1.25e8)));
        assert_eq!(parse_unit("MHz"), Some((Dimension::Hertz, 1e6)));
        assert_eq!(parse_unit("us"), Some((Dimension::Seconds, 1e-6)));
        assert_eq!(parse_unit("cycles"), Some((Dimension::Cycles, 1.0)));
        assert_eq!(parse_unit("elements/cycle"), Some((Dimension::ElementsPerCycle, 1.0)));
        for bad in ["furlong", "KB/s", "Ms", "KiHz", "kcount", "", "gb/s"] {
            assert_eq!(parse_unit(bad), None, "{bad}");
        }
    }

    #[test]
    fn arithmetic_keeps_the_units() {
        let time: Seconds = Bytes(50e9) / BytesPerSecond(25e9);
        assert_eq!(time, Seconds(2.0));
        assert_eq!(FlopsPerSecond(312e12) * Seconds(2.0), Flops(624e12));
        assert_eq!(Cycles(1_100).at(Hertz(1.1e9)), Seconds(1e-6));
        assert_eq!([Bytes(1.0), Bytes(2.0)].into_iter().sum::<Bytes>(), Bytes(3.0));
    }

    #[test]
    fn every_quantity_prints_its_unit() {
        assert_eq!(Bytes(80.0 * 1024f64.powi(3)).to_string(), "80.00 GiB");
        assert_eq!(BytesPerSecond(2.039e12).to_string(), "2.04 TB/s");
        assert_eq!(FlopsPerSecond(312e12).to_string(), "312.00 TFLOP/s");
        assert_eq!(Seconds(7.877).to_string(), "7.877 s");
        assert_eq!(Seconds(3.4e-6).to_string(), "3.400 us");
        assert_eq!(Cycles(12).to_string(), "12 cycles");
        assert_eq!(Hertz(1.41e9).to_string(), "1.41 GHz");
    }
}
