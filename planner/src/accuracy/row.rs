//! The columns of a table of published measurements, read and checked.

use super::csv::{Cell, records};
use super::fault::{Fault, TableError};
use std::collections::BTreeMap;

/// What a row reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Time of a step, however it was printed; compared as `step_s_equiv`.
    Step,
    /// Milliseconds of one layer's forward pass.
    LayerForward,
    /// Milliseconds of one layer's backward pass with what it computes again.
    LayerBackward,
    /// Most memory on any GPU, GB.
    Memory,
    /// Memory of weights and optimizer, GiB.
    StateMemory,
    /// Memory of activations, GiB.
    ActivationMemory,
    /// Activations in percent of those of tensor parallelism alone.
    ActivationShare,
    /// Whether the run fits 80 GB.
    Fits,
}

const METRICS: [(&str, Metric); 13] = [
    ("iteration_s", Metric::Step),
    ("tokens_per_s", Metric::Step),
    ("tokens_per_s_per_gpu", Metric::Step),
    ("sequences_per_s_per_gpu", Metric::Step),
    ("tflops_per_gpu", Metric::Step),
    ("MFU_pct", Metric::Step),
    ("layer_fwd_ms", Metric::LayerForward),
    ("layer_bwd_ms", Metric::LayerBackward),
    ("memory_GB_max_gpu", Metric::Memory),
    ("memory_GiB_param_opt", Metric::StateMemory),
    ("memory_GiB_act", Metric::ActivationMemory),
    ("act_mem_pct_of_tp_baseline", Metric::ActivationShare),
    ("fits_80GB", Metric::Fits),
];

impl Metric {
    /// Unit of its measured and predicted values.
    pub const fn unit(self) -> &'static str {
        match self {
            Metric::Step => "s",
            Metric::LayerForward | Metric::LayerBackward => "ms",
            Metric::Memory => "GB",
            Metric::StateMemory | Metric::ActivationMemory => "GiB",
            Metric::ActivationShare => "%",
            Metric::Fits => "fits",
        }
    }

    /// Whether it is a time.
    pub const fn timed(self) -> bool {
        matches!(self, Metric::Step | Metric::LayerForward | Metric::LayerBackward)
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: usize,
    /// Its metric.
    pub metric: Metric,
    /// What was measured, in the metric's unit; `None` where a timed row has no `step_s_equiv`.
    pub measured: Option<f64>,
    words: BTreeMap<&'static str, String>,
    numbers: BTreeMap<&'static str, f64>,
}

impl Row {
    /// A text column; empty where nothing is written.
    pub fn word(&self, column: &str) -> &str {
        self.words.get(column).map_or("", String::as_str)
    }

    /// A number column, where something is written.
    pub fn number(&self, column: &str) -> Option<f64> {
        self.numbers.get(column).copied()
    }

    /// A number column that counts.
    pub fn count(&self, column: &str) -> Option<u64> {
        self.number(column).map(|number| number as u64)
    }

    /// Its name.
    pub fn id(&self) -> &str {
        self.word("id")
    }
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Word,
    Required,
    Count,
    Positive,
    Quality,
}

const COLUMNS: [(&str, Kind); 34] = [
    ("id", Kind::Required),
    ("source", Kind::Word),
    ("group", Kind::Required),
    ("model", Kind::Word),
    ("params_B", Kind::Positive),
    ("hidden", Kind::Count),
    ("layers", Kind::Count),
    ("heads", Kind::Count),
    ("kv_heads", Kind::Count),
    ("ffn", Kind::Count),
    ("mlp", Kind::Word),
    ("vocab", Kind::Count),
    ("seq_len", Kind::Count),
    ("gpu", Kind::Word),
    ("gpus", Kind::Count),
    ("gpus_per_node", Kind::Count),
    ("interconnect", Kind::Word),
    ("global_batch", Kind::Positive),
    ("micro_batch", Kind::Count),
    ("tp", Kind::Count),
    ("pp", Kind::Count),
    ("vpp", Kind::Count),
    ("dp", Kind::Count),
    ("sharding", Kind::Word),
    ("act_recompute", Kind::Word),
    ("seq_parallel", Kind::Word),
    ("flash_attention", Kind::Word),
    ("precision", Kind::Word),
    ("framework", Kind::Word),
    ("metric", Kind::Required),
    ("value", Kind::Word),
    ("step_s_equiv", Kind::Positive),
    ("quality", Kind::Quality),
    ("notes", Kind::Word),
];

/// Reads a table. `file` is its name for messages. Columns may stand in any order; unknown ones are passed over.
///
/// # Errors
/// [`TableError`] with every fault.
pub fn read(text: &str, file: &str) -> Result<Vec<Row>, TableError> {
    let refused = |faults| TableError { file: file.to_string(), faults };
    let records = records(text).map_err(|fault| refused(vec![fault]))?;
    let Some((header, body)) = records.split_first() else {
        return Err(refused(vec![Fault::new(
            1,
            1,
            "",
            "the table is empty",
            "a first line names the columns",
        )]));
    };
    let places = columns(header).map_err(refused)?;
    if body.is_empty() {
        let hint = "each line below the first is a measurement";
        return Err(refused(vec![Fault::new(2, 1, "", "the table has no rows", hint)]));
    }
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for record in body {
        match row(record, &places, header.len()) {
            Ok(row) => rows.push(row),
            Err(mut found) => faults.append(&mut found),
        }
    }
    faults.extend(repeated(&rows));
    faults.sort_by_key(|fault| (fault.line, fault.column));
    if faults.is_empty() { Ok(rows) } else { Err(refused(faults)) }
}

fn columns(header: &[Cell]) -> Result<Vec<usize>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut places = Vec::new();
    for (name, _) in COLUMNS {
        let mut found = header.iter().enumerate().filter(|(_, cell)| cell.text.trim() == name);
        match (found.next(), found.next()) {
            (Some((place, _)), None) => places.push(place),
            (Some(_), Some((_, cell))) => {
                faults.push(Fault::new(cell.line, cell.column, name, "this column stands twice", ""));
            }
            (None, _) => {
                let stem = name.split('_').next().unwrap_or(name);
                let near = header.iter().find(|cell| {
                    let text = cell.text.trim();
                    text.starts_with(stem) && COLUMNS.iter().all(|(known, _)| *known != text)
                });
                let hint = near.map_or(String::new(), |cell| format!("is `{}` meant?", cell.text.trim()));
                let (line, column) = near.map_or((1, 1), |cell| (cell.line, cell.column));
                faults.push(Fault::new(line, column, name, "this column is missing", &hint));
            }
        }
    }
    if faults.is_empty() { Ok(places) } else { Err(faults) }
}

fn row(record: &[Cell], places: &[usize], width: usize) -> Result<Row, Vec<Fault>> {
    if record.len() != width {
        let message = format!("the row has {} cells, the header {width}", record.len());
        return Err(vec![Fault::new(record[0].line, 1, "", &message, "quote cells that hold commas")]);
    }
    let (mut words, mut numbers, mut faults) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for ((name, kind), place) in COLUMNS.iter().zip(places) {
        let cell = &record[*place];
        match check(cell, name, *kind) {
            Ok(Some(number)) => {
                numbers.insert(*name, number);
            }
            Ok(None) => {
                words.insert(*name, cell.text.trim().to_string());
            }
            Err(fault) => faults.push(*fault),
        }
    }
    let at = |name: &str| {
        let index = COLUMNS.iter().position(|(known, _)| *known == name).unwrap_or(0);
        &record[places[index]]
    };
    let metric = metric(at("metric"));
    let mut row = Row { line: record[0].line, metric: Metric::Step, measured: None, words, numbers };
    match metric {
        Ok(metric) => {
            row.metric = metric;
            match measured(&row, at("value"), at("step_s_equiv")) {
                Ok(value) => row.measured = value,
                Err(fault) => faults.push(*fault),
            }
        }
        Err(fault) => faults.push(*fault),
    }
    if faults.is_empty() { Ok(row) } else { Err(faults) }
}

fn fault(cell: &Cell, name: &str, message: String, hint: &str) -> Box<Fault> {
    Box::new(Fault::new(cell.line, cell.column, name, &message, hint))
}

fn check(cell: &Cell, name: &str, kind: Kind) -> Result<Option<f64>, Box<Fault>> {
    let text = cell.text.trim();
    match kind {
        Kind::Word => Ok(None),
        Kind::Required if text.is_empty() => Err(fault(cell, name, "must not be empty".into(), "")),
        Kind::Required => Ok(None),
        Kind::Quality if ["A", "B", "C"].contains(&text) => Ok(None),
        Kind::Quality => Err(fault(cell, name, format!("expected A, B or C, found `{text}`"), "")),
        Kind::Count | Kind::Positive if text.is_empty() => Ok(None),
        Kind::Count | Kind::Positive => {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
            let whole = |number: &f64| kind == Kind::Positive || (number.fract() == 0.0 && *number < 1e12);
            match number.filter(whole) {
                Some(number) => Ok(Some(number)),
                None => {
                    Err(fault(cell, name, not_a_number(name, kind, text), "write a plain number, no unit"))
                }
            }
        }
    }
}

fn not_a_number(name: &str, kind: Kind, text: &str) -> String {
    let what = match (kind, name) {
        (_, "step_s_equiv") => "seconds above 0",
        (Kind::Count, _) => "a whole number of at least 1",
        _ => "a number above 0",
    };
    format!("expected {what}, found `{text}`")
}

fn metric(cell: &Cell) -> Result<Metric, Box<Fault>> {
    let text = cell.text.trim();
    let known = METRICS.iter().find(|(name, _)| *name == text);
    known.map(|(_, metric)| *metric).ok_or_else(|| {
        let names = METRICS.map(|(name, _)| name).join(", ");
        fault(cell, "metric", format!("`{text}` is not a known metric"), &format!("one of {names}"))
    })
}

/// How far the two time columns may lie apart before one of them must be in another unit.
const CONTRADICTION: f64 = 5.0;

/// What a row measured; its time columns must agree about the unit.
fn measured(row: &Row, value: &Cell, step: &Cell) -> Result<Option<f64>, Box<Fault>> {
    let text = value.text.trim();
    let number = match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Some(number),
        _ if text.is_empty() && row.metric == Metric::Step => None,
        _ => return Err(fault(value, "value", format!("expected a number, found `{text}`"), "")),
    };
    if row.metric == Metric::Fits {
        return match number {
            Some(flag) if flag == 0.0 || flag == 1.0 => Ok(number),
            _ => {
                Err(fault(value, "value", format!("expected 1 or 0, found `{text}`"), "1 means that it fits"))
            }
        };
    }
    if row.metric != Metric::Step {
        return match number.filter(|number| *number > 0.0) {
            Some(_) => Ok(number),
            None => Err(fault(value, "value", format!("expected a number above 0, found `{text}`"), "")),
        };
    }
    let seconds = row.number("step_s_equiv");
    if let (Some(seconds), Some(expected)) = (seconds, number.and_then(|value| step_of(row, value))) {
        let off = seconds / expected;
        if !(1.0 / CONTRADICTION..CONTRADICTION).contains(&off) {
            let message = format!(
                "{seconds} s contradicts the {} of {text}, which is {expected:.4} s",
                row.word("metric")
            );
            return Err(fault(step, "step_s_equiv", message, "write seconds of one optimizer step"));
        }
    }
    Ok(seconds)
}

/// Seconds of a step as the printed figure says, where it alone says so.
fn step_of(row: &Row, value: f64) -> Option<f64> {
    let tokens = row.number("global_batch")? * row.number("seq_len")?;
    match row.word("metric") {
        "iteration_s" => Some(value),
        "tokens_per_s" => Some(tokens / value),
        "tokens_per_s_per_gpu" => Some(tokens / value / row.number("gpus")?),
        // Six to eight operations a parameter and token, and those of attention: the range of CONTRADICTION holds them.
        "tflops_per_gpu" => {
            let flops = 8.0 * row.number("params_B")? * 1e9 * tokens;
            Some(flops / (value * 1e12 * row.number("gpus")?))
        }
        "sequences_per_s_per_gpu" => Some(row.number("global_batch")? / value / row.number("gpus")?),
        _ => None,
    }
}

fn repeated(rows: &[Row]) -> Vec<Fault> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    for row in rows {
        if let Some(first) = seen.insert(row.id(), row.line) {
            let message = format!("`{}` stands in line {first} already", row.id());
            faults.push(Fault::new(row.line, 1, "id", &message, "names of rows are unique"));
        }
    }
    faults
}
