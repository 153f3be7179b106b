//! What the runs of one source say together that none of them prints.
//!
//! A table may carry a column over from elsewhere, such as the settings of a simulator that was held against the runs;
//! its notes say so. Recomputation is such a column: nobody pays for it who has the memory. So where it is inferred, the
//! runs of a source recompute if any of them would overflow without, and do not if all of them fit.
//!
//! Times may be put together instead of taken: where a source's steps of one, two and four times the micro-batches lie on
//! a line to a thousandth, run after run, they are sums of passes that were measured once. Such a sum has passes,
//! gradients and an optimizer, but nothing of what else a step does.

use super::case::Case;
use super::row::{Metric, Row};
use crate::plan::Recompute;
use crate::step::{Physics, occupied};
use std::collections::{BTreeMap, BTreeSet};

/// What the sources of a table say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Campaigns {
    /// Sources whose recomputation is inferred, and whether any of their runs needs it.
    recompute: BTreeMap<String, bool>,
    /// Sources whose times are sums.
    sums: BTreeSet<String>,
}

impl Campaigns {
    /// Reads the rows of a table together.
    pub fn of(rows: &[Row]) -> Campaigns {
        let mut recompute = BTreeMap::new();
        for row in rows.iter().filter(|row| inferred(row)) {
            let needs = recompute.entry(row.word("source").to_string()).or_insert(false);
            *needs = *needs || overflows(row);
        }
        Campaigns { recompute, sums: sums(rows) }
    }

    /// Whether a row's recomputation is inferred and no run of its source needs any.
    pub fn spare(&self, row: &Row) -> bool {
        inferred(row) && self.recompute.get(row.word("source")) == Some(&false)
    }

    /// Whether a row's time is a sum of passes.
    pub fn sum(&self, row: &Row) -> bool {
        row.metric == Metric::Step && self.sums.contains(row.word("source"))
    }
}

/// Whether the notes say that the column on recomputation is taken from somewhere else than the run.
fn inferred(row: &Row) -> bool {
    let notes = row.word("notes");
    let about = notes.split(';').find(|part| part.contains("recompute"));
    about.is_some_and(|part| {
        ["per repo", "inferred", "assumed", "default"].iter().any(|word| part.contains(word))
    })
}

fn overflows(row: &Row) -> bool {
    let Ok(mut case) = Case::as_printed(row) else { return false };
    case.layout.recompute = Recompute::None;
    let physics = Physics::builtin();
    let held = occupied(&case.job(&physics, case.stack));
    held.total() > case.machine.device.memory().0
}

/// How far three times may be off a line; runs of one configuration differ by a hundredth and more.
const STRAIGHT: f64 = 1e-3;
/// Lines of three that a source must have, all of them straight.
const LINES: usize = 5;

/// Columns that tell runs apart beside their number of micro-batches.
const SAME_WORDS: [&str; 8] = [
    "source",
    "model",
    "sharding",
    "act_recompute",
    "seq_parallel",
    "flash_attention",
    "precision",
    "framework",
];
const SAME_NUMBERS: [&str; 10] =
    ["hidden", "layers", "heads", "seq_len", "gpus", "micro_batch", "tp", "pp", "vpp", "dp"];

fn sums(rows: &[Row]) -> BTreeSet<String> {
    let mut series: BTreeMap<(&str, String), Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.metric == Metric::Step) {
        let (Some(batch), Some(seconds)) = (row.number("global_batch"), row.measured) else { continue };
        let words = SAME_WORDS.map(|column| row.word(column)).join(";");
        let numbers = SAME_NUMBERS.map(|column| format!("{:?}", row.number(column))).join(";");
        series.entry((row.word("source"), words + &numbers)).or_default().push((batch, seconds));
    }
    let mut lines: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for ((source, _), points) in &mut series {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = lines.entry(source).or_default();
        for three in points.windows(3) {
            let slope = |a: (f64, f64), b: (f64, f64)| (b.1 - a.1) / (b.0 - a.0);
            let bent = slope(three[1], three[2]) / slope(three[0], three[1]) - 1.0;
            *count = (count.0 + usize::from(bent.abs() <= STRAIGHT), count.1 + 1);
        }
    }
    let straight = lines.into_iter().filter(|(_, (straight, all))| *all >= LINES && straight == all);
    straight.map(|(source, _)| source.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::read;

    const HEADER: &str = "id,source,group,model,params_B,hidden,layers,heads,kv_heads,ffn,mlp,vocab,seq_len,gpu,gpus,\
        gpus_per_node,interconnect,global_batch,micro_batch,tp,pp,vpp,dp,sharding,act_recompute,seq_parallel,\
        flash_attention,precision,framework,metric,value,step_s_equiv,quality,notes";

    /// Runs of five widths at one, two and four micro-batches whose times are `time(micro-batches)`.
    fn table(time: impl Fn(f64) -> f64) -> Vec<Row> {
        let mut text = HEADER.replace("\\\n        ", "");
        for width in [1024, 2048, 3072, 4096, 5120] {
            for count in [1.0, 2.0, 4.0] {
                let seconds = time(count) * width as f64 / 1024.0;
                text.push_str(&format!(
                    "\n{width}-{count},S,g,m,1,{width},12,16,16,4096,gelu,50257,1024,A100-80-SXM,8,8,,{},1,1,1,1,8,ddp,full,False,no,fp16,Megatron-LM,iteration_s,{seconds},{seconds},A,",
                    8.0 * count
                ));
            }
        }
        read(&text, "t.csv").unwrap()
    }

    #[test]
    fn times_on_a_line_are_sums() {
        let rows = table(|count| 0.05 + 0.1 * count);
        assert!(rows.iter().all(|row| Campaigns::of(&rows).sum(row)));
    }

    #[test]
    fn times_that_scatter_are_runs() {
        // One run in three is off by half a percent.
        let rows = table(|count| (0.05 + 0.1 * count) * if count == 2.0 { 1.005 } else { 1.0 });
        assert!(!rows.iter().any(|row| Campaigns::of(&rows).sum(row)));
        let few: Vec<Row> = table(|count| 0.1 * count).into_iter().take(9).collect();
        assert!(!few.iter().any(|row| Campaigns::of(&few).sum(row)), "three lines are too few");
    }
}
