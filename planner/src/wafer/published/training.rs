//! Rows of training on wafers: throughput of published runs, by the price of the best plan that keeps to what a row says.

use super::document::{Limits, Outcome, Prediction, Skipped};
use super::table::TableRow;
use crate::Assumption;
use crate::recipe::Recipe;
use crate::request::Batch;
use crate::search::divisors;
use crate::search::wafer::wafer_plans;
use crate::wafer::price::{MATRIX_FLOOR, step};
use crate::wafer::release::{RELEASES, Release};
use crate::wafer::{WaferCase, WaferWork};
use crate::{WaferMode, WaferPlan};
use lapidary_hardware::builtin::machine;
use lapidary_hardware::{HardwareSpec, Seconds};
use lapidary_models::{ModelSpec, builtin};

/// Columns that a table of this kind needs.
pub const COLUMNS: [&str; 14] = [
    "id",
    "n_systems",
    "mode",
    "sw_release",
    "model",
    "layers",
    "hidden",
    "ffn",
    "gated",
    "heads",
    "vocab",
    "seq",
    "global_batch",
    "metric",
];

/// Rows that the floor of a matrix was fitted on; those of releases name theirs.
const FLOOR_ROWS: [&str; 2] = ["usc_bert-b-128_128", "usc_bert-l-128_128"];

/// Seconds that one worker of the loader takes for a sample of text: split into tokens by Python's own code, padded, put
/// into a batch (Cerebras/modelzoo, `BertClassifierDataProcessor.py`: `SST2Dataset.__getitem__`; 8 workers and one batch a
/// worker by `bert_base_classifier_sst2.yaml`). No figure is printed; fitted on one row, the largest batch.
const READ_TEXT: f64 = 156e-6;

/// The row that reading text was fitted on.
const READ_TEXT_ROW: &str = "usc_bert-b-128_16384";

/// What the gate asks for.
pub const LIMITS: Limits = Limits { median: Some(5.0), p95: None, most: Some(10.0) };

/// Parameters without a printed source.
pub fn fitted() -> Vec<Assumption> {
    let floor =
        "least time between two streamed matrices, fitted on usc_bert-b-128_128 and usc_bert-l-128_128";
    let floor = Assumption::new("matrix-floor", MATRIX_FLOOR, "s/matrix", floor);
    let turns = RELEASES.iter().map(Release::turn_assumption);
    let text = "one worker's time to split a sample of text into tokens, fitted on usc_bert-b-128_16384";
    let text = Assumption::new("read-text", READ_TEXT, "s/sample", text);
    RELEASES.iter().map(Release::assumption).chain(turns).chain([floor, text]).collect()
}

/// Predicts a row in the unit of its metric.
pub fn predict(row: &TableRow) -> Outcome {
    let id = row.word("id");
    let skipped = |why: String| Skipped { id: id.into(), why };
    let run = Run::of(row).map_err(&skipped)?;
    let measured = row.measured("value").map_err(&skipped)?;
    let found = run.best().map_err(&skipped)?;
    let predicted = run.in_unit(row, found.time).map_err(&skipped)?;
    let of_release = RELEASES.iter().any(|release| release.fitted_on.iter().any(|row| row == id));
    let fitted = of_release || FLOOR_ROWS.contains(&id) || id == READ_TEXT_ROW;
    let over = found.over / run.machine.device.memory().0 * 100.0;
    let fits = if over > 0.0 { format!("; {over:.0} % over the memory of its wafer") } else { String::new() };
    let by = format!(
        "{} on {}, release {} at {}{fits}",
        found.plan, run.machine.name, run.release.name, run.release.factor
    );
    let prediction = Prediction::new(id, row.word("model"), measured, predicted, row.word("unit"));
    Ok(Prediction { fitted, by, ..prediction })
}

/// What a row says of a run.
struct Run {
    model: ModelSpec,
    machine: HardwareSpec,
    systems: u64,
    batch: Batch,
    micro_batch: MicroBatch,
    release: Release,
    mode: WaferMode,
}

/// What a row says of the micro-batch on one system.
enum MicroBatch {
    /// This many sequences.
    Given(u64),
    /// At most this many: a search, or a bound.
    AtMost(u64),
    /// Whatever the compiler found.
    Any,
}

struct Found {
    plan: WaferPlan,
    time: Seconds,
    /// Bytes that it lacks.
    over: f64,
}

impl Run {
    fn of(row: &TableRow) -> Result<Run, String> {
        if row.word("complete").starts_with('N') {
            return Err(incomplete(row));
        }
        let mode = match row.word("mode") {
            mode if mode.contains("weight streaming") => WaferMode::WeightStreaming,
            mode if mode.contains("compile estimate") => {
                return Err("an estimate of a compiler, not a measurement".into());
            }
            mode if mode.contains("layer-pipelined") => WaferMode::LayerPipelined,
            other => return Err(format!("mode is `{other}`, neither weight streaming nor layer-pipelined")),
        };
        let name = row.word("sw_release");
        let release = Release::named(name).ok_or_else(|| {
            format!("there is no factor for software release `{name}`, and none is made up for one row")
        })?;
        let systems = row.count("n_systems")?;
        let batch = Batch { global: row.count("global_batch")?, seq_len: row.count("seq")? };
        if !batch.global.is_multiple_of(systems) {
            return Err(format!("a batch of {} does not divide by {systems} systems", batch.global));
        }
        let cg1 = machine("cg1").map_err(|error| error.to_string())?;
        Ok(Run {
            model: model(row)?,
            machine: cg1.with_devices(systems).map_err(|error| error.to_string())?,
            systems,
            batch,
            micro_batch: micro_batch(row.word("micro_batch"))?,
            release,
            mode,
        })
    }

    /// The fastest plan that fits and keeps to the row; where none fits, the one that lacks least.
    fn best(&self) -> Result<Found, String> {
        let wafer = self.machine.wafer().ok_or("the machine has no wafer")?;
        let work = WaferWork::new(&self.model, self.batch.seq_len)?;
        let local = self.batch.global / self.systems;
        let sizes = match self.micro_batch {
            MicroBatch::Given(size) => vec![size.min(local)],
            MicroBatch::AtMost(most) => divisors(local).into_iter().filter(|size| *size <= most).collect(),
            MicroBatch::Any => divisors(local),
        };
        let plans = sizes
            .iter()
            .flat_map(|size| wafer_plans(&self.model, self.systems, *size, local.div_ceil(*size)));
        let found = plans.filter(|plan| plan.mode == self.mode).map(|plan| {
            let (machine, model, recipe) = (&self.machine, &self.model, &Recipe::MIXED);
            let (batch, release) = (self.batch, self.release);
            let case =
                WaferCase { machine, wafer, model, batch, plan, work: &work, recipe, release, row: None }
                    .spread();
            let over = (case.memory().total() - wafer.sram()).0.max(0.0);
            Found { plan, time: step(&case).time(), over }
        });
        let order = |a: &Found, b: &Found| a.over.total_cmp(&b.over).then(a.time.0.total_cmp(&b.time.0));
        found.min_by(order).ok_or_else(|| "no plan keeps to what the row says".to_string())
    }

    /// What an epoch over text waits for its first batch. The text of fine-tuning is split into tokens while it is read,
    /// each batch by one worker; workers begin an epoch anew, while the wafer has one batch of the last one left.
    fn refill(&self, row: &TableRow, rate: f64) -> Seconds {
        if !classifies(row) {
            return Seconds::ZERO;
        }
        let behind = (Seconds(READ_TEXT) - Seconds(1.0 / rate)).max(Seconds::ZERO);
        behind * self.batch.global as f64
    }

    /// A step's time in the unit of the row.
    fn in_unit(&self, row: &TableRow, step: Seconds) -> Result<f64, String> {
        let rate = self.batch.global as f64 / step.0;
        let samples =
            || number_within(row.word("metric")).ok_or("the metric names no number of samples".to_string());
        let all = || samples().map(|samples| samples / rate + self.refill(row, rate).0);
        match row.word("unit") {
            "samples/s" => Ok(rate),
            "tokens/s" => Ok(rate * self.batch.seq_len as f64),
            "h" => Ok(all()? / 3600.0),
            "s" => all(),
            other => Err(format!("unit is `{other}`; samples/s, tokens/s, s and h are known")),
        }
    }
}

fn incomplete(row: &TableRow) -> String {
    let note = row.word("note");
    format!("the row is not complete: {}", if note.is_empty() { row.word("metric") } else { note })
}

/// The largest number in a text, whose thousands may be set off by commas: `hours for 211,043,181 samples`.
fn number_within(text: &str) -> Option<f64> {
    let digits = |word: &str| word.chars().filter(|c| c.is_ascii_digit()).collect::<String>();
    let words = text.split(|c: char| !c.is_ascii_digit() && c != ',');
    words.filter_map(|word| digits(word).parse::<f64>().ok()).max_by(f64::total_cmp)
}

fn micro_batch(text: &str) -> Result<MicroBatch, String> {
    let numbers: Vec<u64> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .filter(|number| *number > 0)
        .collect();
    match numbers[..] {
        [] if matches!(text, "" | "auto") => Ok(MicroBatch::Any),
        [] => Err(format!("micro_batch is `{text}`; a number, a bound or auto is known")),
        [size] if !text.starts_with('<') => Ok(MicroBatch::Given(size)),
        _ if text.contains("grad") => Ok(MicroBatch::Given(numbers[0])),
        _ => Ok(MicroBatch::AtMost(numbers.iter().copied().max().unwrap_or(1))),
    }
}

/// Whether a run fine-tunes a classifier: two classes in place of a vocabulary, and text for data.
fn classifies(row: &TableRow) -> bool {
    row.word("metric").contains("classifier") || row.word("complete").contains("no vocab projection")
}

/// The model of a row: the sizes of its columns on the shape of its family.
fn model(row: &TableRow) -> Result<ModelSpec, String> {
    let name = row.word("model");
    let lower = name.to_ascii_lowercase();
    let family = match () {
        () if lower.contains("llama") => "llama-2-7b",
        () if lower.contains("gpt-j") || lower.contains("gptj") => "gpt-j-6b",
        () if lower.contains("crystal") => "crystalcoder",
        () if row.word("gated").starts_with('Y') => "llama-2-7b",
        () => "gpt3-6.7b",
    };
    let base = builtin(family).map_err(|error| error.to_string())?;
    let (hidden, heads) = (row.count("hidden")?, row.count("heads")?);
    if !hidden.is_multiple_of(heads) {
        return Err(format!("{heads} heads do not divide {hidden} features"));
    }
    let vocab = if classifies(row) { 2 } else { row.count("vocab")? };
    Ok(ModelSpec {
        name: name.into(),
        vocab,
        vocab_padded_to: None,
        d_model: hidden,
        n_layers: row.count("layers")?,
        n_heads: heads,
        n_kv_heads: heads,
        head_dim: hidden / heads,
        d_ff: row.count("ffn")?,
        max_seq: row.count("seq")?.max(base.max_seq),
        ..base
    })
}
