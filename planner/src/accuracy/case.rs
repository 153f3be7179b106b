//! From a row of the table to what the step-time model needs: model, machine, layout and software.
//!
//! What a publication leaves out is filled in by a rule that is the same for every row, and listed.

mod machine;
mod model;
mod words;

use super::campaign::Campaigns;
use super::row::{Metric, Row};
use crate::plan::Recompute;
use crate::request::Batch;
use crate::step::{Again, AttentionKernel, Job, Layout, Physics, Shape, Stack, Work, estimate};
use lapidary_hardware::HardwareSpec;
use lapidary_models::ModelSpec;
use machine::machine;
use model::model;
use words::{again_share, attention, context, recompute, schedule, sharding, stack};

/// Why a row is not predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Skip(pub String);

/// A row made ready: everything a [`Job`] borrows.
#[derive(Clone, Debug)]
pub struct Case {
    /// The model.
    pub model: ModelSpec,
    /// What one rank does for one sequence.
    pub work: Work,
    /// The machine.
    pub machine: HardwareSpec,
    /// Work of a step.
    pub batch: Batch,
    /// Layout.
    pub layout: Layout,
    /// Attention.
    pub attention: AttentionKernel,
    /// Whether norms are fused.
    pub fused_norm: bool,
    /// Whether the optimizer lives on the host.
    pub offload: bool,
    /// Whether numbers are fp16.
    pub half: bool,
    /// Software.
    pub stack: &'static Stack,
    /// What was filled in.
    pub assumed: Vec<String>,
    /// Whether the micro-batch and the chunks are still to be chosen.
    open: (bool, bool),
}

impl Case {
    /// Makes a row ready; `campaigns` decide what its columns only infer.
    ///
    /// # Errors
    /// [`Skip`] where a size is missing that no rule fills in.
    pub fn new(row: &Row, campaigns: &Campaigns) -> Result<Case, Skip> {
        let mut case = Case::as_printed(row)?;
        if campaigns.spare(row) && case.layout.recompute != Recompute::None {
            case.layout.recompute = Recompute::None;
            case.assumed.push(
                "nothing recomputed: the column is inferred, and every run of its source fits without".into(),
            );
        }
        Ok(case)
    }

    /// A row with every column as it is printed.
    ///
    /// # Errors
    /// As [`Case::new`].
    pub fn as_printed(row: &Row) -> Result<Case, Skip> {
        let mut assumed = Vec::new();
        let stack = stack(row, &mut assumed);
        let model = model(row, &mut assumed)?;
        let gpus = need(row, "gpus")?;
        let machine = machine(row, gpus, &mut assumed)?;
        let global = match row.number("global_batch") {
            Some(global) => global,
            None if row.metric == Metric::Step => return Err(missing("global_batch")),
            None => gpus as f64,
        };
        let batch = Batch { global: global as u64, seq_len: need(row, "seq_len")? };
        let (tensor, pipeline) = (degree(row, "tp", &mut assumed), degree(row, "pp", &mut assumed));
        if tensor * pipeline > gpus || pipeline > model.n_layers {
            return Err(Skip(format!(
                "tp {tensor} x pp {pipeline} do not fit {gpus} GPUs and {} layers",
                model.n_layers
            )));
        }
        let context = context(row);
        if !gpus.is_multiple_of(context * tensor * pipeline) {
            return Err(Skip(format!(
                "tp {tensor} x pp {pipeline} x cp {context} do not divide {gpus} GPUs"
            )));
        }
        let data = data_ranks(row, gpus, tensor * pipeline * context, &mut assumed);
        let micro_batch = row.count("micro_batch");
        let interleaved = row.word("notes").contains("interleaved schedule") && pipeline > 1;
        let open = (micro_batch.is_none(), row.count("vpp").is_none() && interleaved);
        let micro_batch = micro_batch.unwrap_or(1);
        let attention = attention(row, stack);
        let layout = Layout {
            tensor,
            pipeline,
            chunks: row.count("vpp").unwrap_or(1),
            data,
            context,
            expert: 1,
            micro_batch,
            accumulation: (global / (data * micro_batch) as f64).max(1.0),
            sharding: sharding(row, data, &mut assumed),
            recompute: recompute(row, &mut assumed),
            again: Again::Share(again_share(row.word("act_recompute"))),
            ends: None,
            sequence_parallel: ["true", "yes", "1"]
                .contains(&row.word("seq_parallel").to_lowercase().as_str()),
            schedule: schedule(row.word("framework")),
        };
        let text = format!("{} {}", row.word("framework"), row.word("notes")).to_lowercase();
        let fused_norm =
            stack.fused_norm || row.word("flash_attention").to_lowercase().contains("fused rmsnorm");
        let offload = text.contains("cpu_offload=true");
        let half = row.word("precision").starts_with("fp16");
        let work = Work::new(&model, tensor, batch.seq_len, stack, attention, fused_norm).map_err(Skip)?;
        Ok(Case {
            model,
            work,
            machine,
            batch,
            layout,
            attention,
            fused_norm,
            offload,
            half,
            stack,
            assumed,
            open,
        })
    }

    /// The job under some constants.
    pub fn job<'a>(&'a self, physics: &'a Physics, stack: &'a Stack) -> Job<'a> {
        Job {
            shape: Shape::of(&self.model),
            work: &self.work,
            batch: self.batch,
            layout: self.layout,
            attention: self.attention,
            fused_norm: self.fused_norm,
            offload: self.offload,
            half: self.half,
            stack,
            machine: &self.machine,
            physics,
        }
    }

    /// Fills in a micro-batch and chunks that are not printed with the fastest ones, as their authors would have.
    pub fn close(&mut self, physics: &Physics) {
        let (micro, chunks) = self.open;
        let local = self.batch.global as f64 / self.layout.data as f64;
        let layers = (self.model.n_layers / self.layout.pipeline).max(1);
        let divides = |m: &u64| (local / *m as f64).fract() == 0.0;
        // A pipeline's publication that prints no micro-batch means 1 (arXiv 2104.04473, section 5.1).
        let micro_batches: Vec<u64> = match micro && self.layout.pipeline == 1 {
            true => [1, 2, 4, 8].into_iter().filter(divides).collect(),
            false => vec![self.layout.micro_batch],
        };
        let chunk_counts: Vec<u64> = match chunks {
            true => (1..=layers).filter(|c| layers.is_multiple_of(*c)).collect(),
            false => vec![self.layout.chunks],
        };
        let mut best: Option<(f64, Layout)> = None;
        for micro_batch in micro_batches {
            for chunks in &chunk_counts {
                let accumulation = (local / micro_batch as f64).max(1.0);
                let layout = Layout { micro_batch, chunks: *chunks, accumulation, ..self.layout };
                let tried = Case { layout, ..self.clone() };
                let time =
                    estimate(&tried.job(physics, self.stack)).map_or(f64::INFINITY, |found| found.step_s);
                if best.is_none_or(|(least, _)| time < least) {
                    best = Some((time, layout));
                }
            }
        }
        let Some((_, layout)) = best else { return };
        self.layout = layout;
        if micro {
            self.assumed.push(format!("micro-batch {}, not printed", layout.micro_batch));
        }
        if chunks {
            self.assumed.push(format!("{} chunks a rank, not printed", layout.chunks));
        }
        self.open = (false, false);
    }
}

fn missing(column: &str) -> Skip {
    Skip(format!("{column} is not printed"))
}

fn need(row: &Row, column: &'static str) -> Result<u64, Skip> {
    row.count(column).ok_or_else(|| missing(column))
}

fn degree(row: &Row, column: &'static str, assumed: &mut Vec<String>) -> u64 {
    row.count(column).unwrap_or_else(|| {
        assumed.push(format!("{column} 1, not printed"));
        1
    })
}

fn data_ranks(row: &Row, gpus: u64, model_ranks: u64, assumed: &mut Vec<String>) -> u64 {
    let fitting = (gpus / model_ranks).max(1);
    match row.count("dp") {
        Some(ranks) if ranks * model_ranks == gpus => ranks,
        Some(ranks) => {
            assumed.push(format!("dp {fitting} in place of {ranks}, which does not fit {gpus} GPUs"));
            fitting
        }
        None => fitting,
    }
}
