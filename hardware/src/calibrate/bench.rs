//! A site's own device from measured kernels: the document `lapidary/bench`, and the machine file that it makes of a base.
//!
//! A document holds one result for each kernel and shape: how long it took in the median, by how much its runs differed,
//! and what rate that is. Of these a machine file has the best: of matrix products at 16 bits, of attention forward and
//! backward together, of bytes that streaming kernels move.

use super::{CalibrationError, replaced};
use crate::builtin;
use crate::gpu::Gpu;
use crate::spec::HardwareSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Schema name of a bench document.
pub const SCHEMA: &str = "lapidary/bench";
/// Schema version of a bench document.
pub const VERSION: u32 = 1;

/// Measured kernels of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// Product name of the device.
    pub device: String,
    /// Day of the measurement, as `2026-11-22`.
    pub date: String,
    /// One result for each kernel and shape.
    pub results: Vec<Measurement>,
    /// What this device can do, measured in the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<Ceilings>,
    /// What could not be measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceilings {
    /// Bytes per second of a copy within the device, read and written counted.
    pub copy_bytes_per_s: f64,
    /// Operations per second of the best of some large products at 16 bits.
    pub product_flops_per_s: f64,
}

/// A kernel without a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Which.
    pub kernel: String,
    /// Why.
    pub why: String,
}

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What ran: `gemm`, `attention` (forward and backward together), `norm`, `add`, `decode`, ...
    pub kernel: String,
    /// Its sizes by name, as `m`, `n` and `k`.
    pub shape: BTreeMap<String, u64>,
    /// Element type: `bf16`, `f16`, `f32`.
    pub dtype: String,
    /// Seconds of one run, in the median.
    pub median_s: f64,
    /// Between the quickest and the slowest run, percent of the median.
    pub spread_pct: f64,
    /// Rate that the median means.
    pub achieved: f64,
    /// Unit of the rate.
    pub unit: Unit,
    /// Percent of the run that it would take at the device's ceilings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_pct: Option<f64>,
    /// Tokens per second, of whole models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Operations of one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops: Option<u64>,
    /// Bytes that one run must move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What a product has behind it: the region's operations in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<String>,
    /// The form that was the fastest, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
}

/// Unit of a measured rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Operations per second.
    #[serde(rename = "FLOP/s")]
    Flops,
    /// Bytes per second.
    #[serde(rename = "B/s")]
    Bytes,
}

/// Runs that differ by more than this tell no rate.
const STEADY_PCT: f64 = 20.0;

impl Bench {
    /// Reads a document. `file` is its name for messages.
    ///
    /// # Errors
    /// Where it is no document of this kind and version, or a number is none.
    pub fn read(text: &str, file: &str) -> Result<Bench, CalibrationError> {
        let refused = |message: String| CalibrationError::Bench { file: file.to_string(), message };
        let bench: Bench = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        if (bench.schema.as_str(), bench.version) != (SCHEMA, VERSION) {
            let message = format!(
                "is {} version {}, but {SCHEMA} version {VERSION} is expected",
                bench.schema, bench.version
            );
            return Err(refused(message));
        }
        for (index, one) in bench.results.iter().enumerate() {
            let numbers = [("median_s", one.median_s), ("achieved", one.achieved)];
            let wrong = numbers.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0));
            if let Some((name, value)) = wrong {
                let message = format!("results[{index}].{name}: expected a number above 0, found {value}");
                return Err(refused(message));
            }
            if !(one.spread_pct.is_finite() && one.spread_pct >= 0.0) {
                let found = one.spread_pct;
                let message = format!("results[{index}].spread_pct: expected percent, found {found}");
                return Err(refused(message));
            }
        }
        Ok(bench)
    }

    /// The best steady result of some kernels.
    fn best(&self, wanted: impl Fn(&Measurement) -> bool) -> Option<&Measurement> {
        let steady = self.results.iter().filter(|one| one.spread_pct <= STEADY_PCT && wanted(one));
        steady.max_by(|a, b| a.achieved.total_cmp(&b.achieved))
    }
}

/// The machine file of a site: `base`, a machine file's text, with the rates of a bench in it. A device that the base
/// only names is written out.
///
/// # Errors
/// Where the base is no machine of GPUs or of another product, the bench has no rate to take, or one beats the peak.
pub fn site_file(
    base: &str,
    base_name: &str,
    bench: &Bench,
    bench_name: &str,
    name: &str,
) -> Result<String, CalibrationError> {
    let machine = HardwareSpec::from_toml(base, base_name)?;
    let wrong = |message: String| CalibrationError::Base(message);
    let gpu = machine.gpu().ok_or_else(|| wrong(format!("{base_name} is no machine of GPUs")))?;
    if !same_product(&gpu.product, &bench.device) {
        let (device, product) = (&bench.device, &gpu.product);
        return Err(wrong(format!("{bench_name} was measured on {device}, {base_name} has {product}")));
    }
    let rates = rates(gpu, bench);
    if rates.is_empty() {
        return Err(wrong(format!(
            "{bench_name} has no steady result of a gemm at 16 bits, of attention or of a kernel in B/s"
        )));
    }
    let mut text = replaced(&written_out(base), "", "name", &format!("\"{name}\""))
        .ok_or_else(|| wrong(format!("{base_name}: name stands on no line of its own")))?;
    for (key, one, peak) in rates {
        if one.achieved > peak {
            let (found, most) = (one.achieved, peak);
            return Err(wrong(format!(
                "{bench_name}: {} reaches {found:.4e}, more than the {most:.4e} that {base_name} states as its peak",
                one.kernel
            )));
        }
        text = with_rate(&text, key, &fact(one, bench, bench_name));
    }
    HardwareSpec::from_toml(&text, name)?;
    Ok(text)
}

/// Keys of `[device.sustained]` with the result that sets each and the peak that it cannot beat.
fn rates<'a>(gpu: &Gpu, bench: &'a Bench) -> Vec<(&'static str, &'a Measurement, f64)> {
    let half = |one: &Measurement| matches!(one.dtype.as_str(), "bf16" | "f16" | "fp16");
    let peak = gpu.peak.iter().filter(|(precision, _)| matches!(precision.name(), "bf16" | "fp16"));
    let peak = peak.map(|(_, rate)| rate.0).fold(0.0, f64::max);
    let of = |kernel: &'static str| {
        bench.best(move |one| one.kernel == kernel && one.unit == Unit::Flops && half(one))
    };
    let streamed = bench.best(|one| one.unit == Unit::Bytes);
    [
        ("matmul", of("gemm"), peak),
        ("attention", of("attention"), peak),
        ("memory", streamed, gpu.memory.bandwidth.0),
    ]
    .into_iter()
    .filter_map(|(key, one, most)| Some((key, one?, most)))
    .collect()
}

/// Whether two product names mean the same: tools leave the maker out.
fn same_product(one: &str, other: &str) -> bool {
    let bare = |name: &str| name.to_lowercase().replace("nvidia", "").replace([' ', '-'], "");
    bare(one) == bare(other)
}

fn fact(one: &Measurement, bench: &Bench, bench_name: &str) -> String {
    let unit = if one.unit == Unit::Flops { "TFLOP/s" } else { "TB/s" };
    let shape: Vec<String> = one.shape.iter().map(|(name, size)| format!("{name} {size}")).collect();
    let source = format!(
        "{bench_name}: {} {} ({}), median of runs that differ by {:.1} %, {}, {}",
        one.kernel,
        one.dtype,
        shape.join(", "),
        one.spread_pct,
        bench.device,
        bench.date
    );
    let source = source.replace(['"', '\\', '\n', '\r'], " ");
    format!("{{ value = {:.5}, unit = \"{unit}\", source = \"{source}\" }}", one.achieved / 1e12)
}

/// A file whose device is a table: where the base names a built-in one, that one's tables.
fn written_out(base: &str) -> String {
    let named = |line: &str| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "device").then(|| value.trim().trim_matches('"').to_string())
    };
    let head: Vec<&str> = base.lines().take_while(|line| !line.trim_start().starts_with('[')).collect();
    let Some(name) = head.iter().find_map(|line| named(line)) else { return base.to_string() };
    let own: Vec<&str> = base.lines().filter(|line| named(line).is_none()).collect();
    let device = written_out(builtin::text(&name).unwrap_or_default());
    let of_device = |line: &&str| line.trim_start().starts_with("[device");
    let other = |line: &&str| line.trim_start().starts_with('[') && !of_device(line);
    let tables: Vec<&str> =
        device.lines().skip_while(|line| !of_device(line)).take_while(|line| !other(line)).collect();
    format!("{}\n\n{}\n", own.join("\n").trim_end(), tables.join("\n").trim_end())
}

/// A text with a key of `[device.sustained]` set, in its place, under the heading or with one at the end.
fn with_rate(text: &str, key: &str, value: &str) -> String {
    const SECTION: &str = "[device.sustained]";
    if let Some(set) = replaced(text, "device.sustained", key, value) {
        return set;
    }
    match text.find(SECTION) {
        Some(at) => {
            let (head, tail) = text.split_at(at + SECTION.len());
            format!("{head}\n{key} = {value}{tail}")
        }
        None => format!("{}\n\n{SECTION}\n{key} = {value}\n", text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(kernel: &str, dtype: &str, achieved: f64, unit: &str, spread: f64) -> String {
        format!(
            r#"{{"kernel": "{kernel}", "shape": {{"m": 4096, "n": 8192}}, "dtype": "{dtype}", "median_s": 1e-3,
                "spread_pct": {spread}, "achieved": {achieved}, "unit": "{unit}"}}"#
        )
    }

    fn document(device: &str, results: &[String]) -> String {
        format!(
            r#"{{"schema": "lapidary/bench", "version": 1, "device": "{device}", "date": "2026-11-22",
                "results": [{}]}}"#,
            results.join(",")
        )
    }

    const A100: &str = "A100-SXM4-80GB";

    fn site(base: &str, text: &str) -> Result<HardwareSpec, CalibrationError> {
        let bench = Bench::read(text, "bench.json")?;
        let file = site_file(builtin::text(base).unwrap(), base, &bench, "bench.json", "site")?;
        Ok(HardwareSpec::from_toml(&file, "site.toml")?)
    }

    #[test]
    fn the_best_steady_result_of_each_kind_is_taken_with_its_source() {
        let results = [
            result("gemm", "bf16", 240e12, "FLOP/s", 1.0),
            result("gemm", "bf16", 250e12, "FLOP/s", 2.0),
            result("gemm", "bf16", 260e12, "FLOP/s", 50.0),
            result("gemm", "f32", 290e12, "FLOP/s", 1.0),
            result("attention", "bf16", 120e12, "FLOP/s", 1.0),
            result("norm", "bf16", 1.5e12, "B/s", 1.0),
        ];
        for base in ["a100-80gb", "dgx-a100", "amber-cluster"] {
            let machine = site(base, &document(A100, &results)).unwrap();
            let own = builtin::machine(base).unwrap();
            assert_eq!((machine.name.as_str(), &machine.node), ("site", &own.node));
            assert_eq!((&machine.network, machine.nodes), (&own.network, own.nodes));
            let (gpu, known) = (machine.gpu().unwrap(), own.gpu().unwrap());
            assert_eq!((&gpu.peak, &gpu.memory), (&known.peak, &known.memory));
            let rate = |found: Option<f64>, wanted: f64| (found.unwrap() / wanted - 1.0).abs() < 1e-9;
            assert!(rate(gpu.sustained.matmul.map(|rate| rate.0), 250e12));
            assert!(rate(gpu.sustained.attention.map(|rate| rate.0), 120e12));
            assert!(rate(gpu.sustained.memory.map(|rate| rate.0), 1.5e12));
            let source = &machine.fact("device.sustained.matmul").unwrap().source;
            assert!(source.starts_with("bench.json: gemm bf16 (m 4096, n 8192), median of runs"), "{source}");
        }
    }

    #[test]
    fn a_device_without_measured_rates_gets_them() {
        let mut text = document("NVIDIA H200 SXM5 141GB", &[result("gemm", "bf16", 700e12, "FLOP/s", 1.0)]);
        let machine = site("h200", &text).unwrap();
        assert_eq!(machine.gpu().unwrap().sustained.matmul.map(|rate| rate.0), Some(700e12));
        text = text.replace("gemm", "attention");
        assert!(site("h200", &text).unwrap().gpu().unwrap().sustained.attention.is_some());
    }

    #[test]
    fn documents_that_do_not_go_with_the_machine_are_refused() {
        let told = |base: &str, text: &str| site(base, text).unwrap_err().to_string();
        let gemm = |rate| result("gemm", "bf16", rate, "FLOP/s", 1.0);
        assert!(told("cs2", &document(A100, &[gemm(1e12)])).contains("no machine of GPUs"));
        assert!(told("h200", &document(A100, &[gemm(1e12)])).contains("was measured on A100-SXM4-80GB"));
        assert!(told("dgx-a100", &document(A100, &[gemm(400e12)])).contains("states as its peak"));
        assert!(told("dgx-a100", &document(A100, &[])).contains("no steady result"));
        assert!(told("dgx-a100", &document(A100, &[gemm(-1.0)])).contains("results[0].achieved"));
        assert!(told("dgx-a100", "{}").contains("missing field `schema`"));
        let newer = document(A100, &[gemm(1e12)]).replace("\"version\": 1", "\"version\": 2");
        assert!(told("dgx-a100", &newer).contains("lapidary/bench version 1 is expected"));
    }
}
