//! Prefill and decode of WaferLLM (OSDI 25) on a WSE-2, kernel by kernel from its published source: a square of P x P
//! elements, every dimension padded to a multiple of P.
//!
//! A product in prefill is P steps; in each, an element multiplies a tile of activations with a tile of weights, one
//! mapped multiply-add for every weight, while both tiles move two hops. In decode a vector meets resident weights and the
//! result is reduced over a line of elements: chains inside groups towards the middle, a chain over the groups, a
//! broadcast.

use super::document::{Limits, Outcome, Prediction, Skipped};
use super::table::TableRow;
use crate::Assumption;
use crate::search::divisors;
use lapidary_hardware::builtin::machine;
use lapidary_hardware::price::wafer::Rates;

/// Columns that a table of this kind needs.
pub const COLUMNS: [&str; 9] =
    ["id", "system", "phase", "model", "grid", "input_len", "output_len", "metric", "value"];

/// What the gate asks for.
pub const LIMITS: Limits = Limits { median: None, p95: None, most: Some(10.0) };

/// Least cycles of a mapped multiply-add, from the rows of MeshGEMM in the SDK's simulator.
const MAPPED_FLOOR: f64 = 8.0;
/// Cycles to set up the mapped ops of one column of a tile, from the same rows.
const COLUMN_SETUP: f64 = 4.0;
/// Cycles of a step of a product beside its arithmetic and its words: tasks, pointers, the two-hop exchange.
const STEP_CYCLES: f64 = 270.0;
/// Cycles of a decoded token in a layer that are neither products nor reductions: norms, rotations, softmax and the
/// activation in scalar code, and the set-up of ten reductions.
const TOKEN_CYCLES: f64 = 6000.0;
/// Cycles to set up a product of a vector.
const VECTOR_SETUP: f64 = 20.0;
/// Rows that the two were fitted on.
const FITTED: [&str; 8] = [
    "pf_LLaMA3-8B_WaferLLM_480",
    "pf_LLaMA3-8B_WaferLLM_600",
    "pf_LLaMA3-8B_WaferLLM_720",
    "pf_QWen2-72B*_WaferLLM_600",
    "dc_LLaMA3-8B_WaferLLM_420",
    "dc_LLaMA3-8B_WaferLLM_540",
    "dc_LLaMA3-8B_WaferLLM_660",
    "dc_LLaMA2-13B_WaferLLM_540",
];

/// Parameters without a printed source.
pub fn fitted() -> Vec<Assumption> {
    let step = "a step of a product: fitted on the four prefill rows of LLaMA3-8B and QWen2-72B";
    let token =
        "a token in a layer, in scalar code: fitted on the four decode rows of LLaMA3-8B and LLaMA2-13B";
    let floor = "a mapped multiply-add and the set-up of a column: MeshGEMM rows of wafer-microbench.csv";
    vec![
        Assumption::new("prefill-step", STEP_CYCLES, "cycles", step),
        Assumption::new("decode-token", TOKEN_CYCLES, "cycles/layer", token),
        Assumption::new("mapped-floor", MAPPED_FLOOR, "cycles", floor),
        Assumption::new("column-setup", COLUMN_SETUP, "cycles", floor),
    ]
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sizes {
    hidden: u64,
    inner: u64,
    layers: u64,
    keys: u64,
}

/// Published sizes, from the config.json of each.
const MODELS: [(&str, Sizes); 7] = [
    ("llama3-8b", Sizes { hidden: 4096, inner: 14336, layers: 32, keys: 1024 }),
    ("llama2-13b", Sizes { hidden: 5120, inner: 13824, layers: 40, keys: 5120 }),
    ("llama2-7b", Sizes { hidden: 4096, inner: 11008, layers: 32, keys: 4096 }),
    ("codellama-34b", Sizes { hidden: 8192, inner: 22016, layers: 48, keys: 1024 }),
    ("llama3-70b", Sizes { hidden: 8192, inner: 28672, layers: 80, keys: 1024 }),
    ("qwen2-72b", Sizes { hidden: 8192, inner: 29568, layers: 80, keys: 1024 }),
    ("qwen2-7b", Sizes { hidden: 3584, inner: 18944, layers: 28, keys: 512 }),
];

/// Predicts a row in the unit of its metric.
pub fn predict(row: &TableRow) -> Outcome {
    let id = row.word("id");
    let skipped = |why: String| Skipped { id: id.into(), why };
    let measured = row.measured("value").map_err(&skipped)?;
    let (rate, by) = rate(row).map_err(&skipped)?;
    let prediction = Prediction::new(id, row.word("phase"), measured, rate, row.word("unit"));
    Ok(Prediction { fitted: FITTED.contains(&id), by, ..prediction })
}

fn rate(row: &TableRow) -> Result<(f64, String), String> {
    let (model, system) = (row.word("model").to_ascii_lowercase(), row.word("system"));
    if !system.contains("WSE-2") {
        return Err(format!("system is `{system}`; the kernels were measured on a WSE-2"));
    }
    if !model.contains("waferllm") {
        return Err(format!(
            "`{}` is another implementation, whose kernels are not public",
            row.word("model")
        ));
    }
    if row.word("metric") != "TPR" {
        return Err(format!("metric is `{}`; TPR is known", row.word("metric")));
    }
    let sizes = MODELS.iter().find(|(name, _)| model.starts_with(name)).map(|(_, sizes)| *sizes);
    let sizes = sizes.ok_or_else(|| format!("the sizes of `{}` are not known", row.word("model")))?;
    let cs2 = machine("cs2").map_err(|error| error.to_string())?;
    let wafer = cs2.wafer().ok_or("the machine has no wafer")?;
    let rates = Rates::of(wafer, true).ok_or("the wafer has no 16-bit arithmetic")?;
    let clock = wafer.clock().0;
    let sides = numbers(row.word("grid"));
    let input = tokens(row.word("input_len"))?;
    match row.word("phase") {
        "prefill" => {
            let side = *sides.first().ok_or("grid names no size")?;
            let seconds = Square { rates, sizes, side }.prefill(input) / clock;
            Ok((input as f64 / seconds, format!("prefill on {side} x {side}")))
        }
        "decode" => {
            let side = *sides.first().ok_or("grid names no size")?;
            let seconds = Square { rates, sizes, side }.token(input) / clock;
            Ok((1.0 / seconds, format!("a token on {side} x {side} against {input}")))
        }
        "end-to-end" => {
            let [first, then] = ends(row.word("grid"))?;
            let output = tokens(row.word("output_len"))?;
            let prefill = Square { rates, sizes, side: first }.prefill(input);
            // The cache grows by the output; its mean length stands for all of them.
            let decode = Square { rates, sizes, side: then }.token(input + output / 2) * output as f64;
            let seconds = (prefill + decode) / clock;
            Ok((
                output as f64 / seconds,
                format!("prefill on {first} x {first}, {output} tokens on {then} x {then}"),
            ))
        }
        other => Err(format!("phase is `{other}`; prefill, decode and end-to-end are known")),
    }
}

/// Whole numbers of at least 2 in a text, in order: the 2 of a square left out.
fn numbers(text: &str) -> Vec<u64> {
    let words = text.split(|c: char| !c.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).filter(|number| (3..=994).contains(number)).collect()
}

fn ends(grid: &str) -> Result<[u64; 2], String> {
    numbers(grid)
        .try_into()
        .map_err(|_| format!("grid is `{grid}`; a side for prefill and one for decode are needed"))
}

/// A number of tokens: `4096`, `4K ctx`.
fn tokens(text: &str) -> Result<u64, String> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let thousands = text[digits.len()..].trim_start().to_ascii_lowercase().starts_with('k');
    let count = digits.parse::<u64>().ok().map(|count| if thousands { count * 1024 } else { count });
    count
        .filter(|count| (1..1 << 24).contains(count))
        .ok_or_else(|| format!("`{text}` is no number of tokens"))
}

/// A model on a square of elements.
struct Square {
    rates: Rates,
    sizes: Sizes,
    side: u64,
}

impl Square {
    fn tile(&self, items: u64) -> f64 {
        items.div_ceil(self.side) as f64
    }

    /// A mapped multiply-add over `elements`.
    fn mapped(&self, elements: f64) -> f64 {
        self.rates.op(elements, self.rates.half).max(MAPPED_FLOOR)
    }

    /// Cycles of all layers over a prompt.
    fn prefill(&self, length: u64) -> f64 {
        let Sizes { hidden, inner, keys, layers } = self.sizes;
        let tokens = self.tile(length);
        let product = |inputs: u64, outputs: u64| {
            let (inputs, outputs) = (self.tile(inputs), self.tile(outputs));
            let words = (tokens * inputs + inputs * outputs) * self.rates.packed;
            let arithmetic = inputs * (COLUMN_SETUP + outputs * self.mapped(tokens));
            self.side as f64 * (arithmetic + STEP_CYCLES + words)
        };
        let projections = 2.0 * product(hidden, hidden) + 2.0 * product(hidden, keys);
        let attention = product(hidden, length) + product(length, hidden);
        let feed_forward = 2.0 * product(hidden, inner) + product(inner, hidden);
        layers as f64 * (projections + attention + feed_forward)
    }

    /// Cycles of all layers for one token against a cache of `context`. The cache and the key and value projections are
    /// as wide as the queries, as in the published decoder.
    fn token(&self, context: u64) -> f64 {
        let Sizes { hidden, inner, layers, .. } = self.sizes;
        let product =
            |inputs: u64, outputs: u64| self.tile(inputs) * self.mapped(self.tile(outputs)) + VECTOR_SETUP;
        let products = 4.0 * product(hidden, hidden)
            + product(hidden, context)
            + product(context, hidden)
            + 2.0 * product(hidden, inner)
            + product(inner, hidden);
        let (own, seen, wide) = (self.tile(hidden), self.tile(context), self.tile(inner));
        let reduced = [1.0, 3.0 * own, seen, 1.0, 1.0, own, own, 1.0, 2.0 * wide, own];
        let reductions: f64 = reduced.iter().map(|elements| self.all_reduce(*elements)).sum();
        layers as f64 * (products + reductions + TOKEN_CYCLES)
    }

    /// Cycles of an all-reduce along a line, towards the middle from both ends: groups of about the square root.
    fn all_reduce(&self, elements: f64) -> f64 {
        let side = self.side as f64;
        let root = self.side.isqrt();
        let groups = divisors(self.side).into_iter().filter(|count| *count <= root).max().unwrap_or(1) as f64;
        let link = self.rates.neighbour + 1.0;
        let inner = link * (side / groups).ceil() / 2.0;
        let outer = side / 2.0 * self.rates.hop + self.rates.neighbour * groups / 2.0;
        inner + outer + side / 2.0 * self.rates.hop + 3.0 * elements
    }
}
