//! A model while it is trained: weights, gradients, moments, and the program that changes them.

use super::adamw;
use super::memory::{AllWeights, Buffers, Form, Replica, Weight};
use super::pass::{Batch, Pass};
use super::product::Packing;
use crate::model::{Engine, LoadError, LoadOptions};
use crate::parts::of_training_rank;
use crate::peers::{PeerError, Peers};
use crate::program::train::{KeyOp, TrainRotation, TrainStep};
use crate::program::{Checked, StateSharding, TrainProgram};
use crate::rotation::{RotationTable, turn};
use crate::rows::{Jit, Kernel, Turn};
use crate::simd::Isa;
use crate::weights::Weights;
use lapidary_models::optimizer::{AdamW, ParamUpdate};
use rayon::prelude::*;
use thiserror::Error;

/// Why a batch cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrainError {
    /// The batch is not one.
    #[error("batch: {0}")]
    Batch(String),
    /// The optimizer's rules do not name a parameter.
    #[error("{name}: no learning rate for this parameter")]
    Rule {
        /// Canonical name.
        name: String,
    },
    /// Other ranks cannot be met.
    #[error(transparent)]
    Peers(#[from] PeerError),
}

/// A model while it is trained.
pub struct Trainer {
    pub(super) program: Checked<TrainProgram>,
    isa: Isa,
    pub(super) pool: rayon::ThreadPool,
    plan: Vec<Planned>,
    /// Rotations by position, for sequences of a length.
    tables: (usize, Vec<RotationTable>),
    pub(super) weights: AllWeights,
    pub(super) buffers: Buffers,
    pub(super) replica: Replica,
    packing: Packing,
    steps: i32,
}

/// What is prepared for a step.
pub(super) struct Planned {
    /// Its row function.
    pub kernel: Option<Kernel>,
    /// ALiBi's slope of every head; empty without.
    pub slopes: Vec<f32>,
    /// The steps of a repeat.
    pub body: Vec<Planned>,
}

impl Trainer {
    /// Reads weights and compiles row functions. The program of one rank reads its part of the whole model's weights; of
    /// the ranks that hold the same ones it is the first.
    ///
    /// # Errors
    /// [`LoadError`] where a weight is missing or of another shape, or threads cannot be had.
    pub fn load(
        program: Checked<TrainProgram>,
        weights: &dyn Weights,
        options: LoadOptions,
    ) -> Result<Trainer, LoadError> {
        Trainer::load_replica(program, 0, weights, options)
    }

    /// The same for a rank among those that hold the same weights: `replica` counts them from 0.
    ///
    /// # Errors
    /// As [`Trainer::load`].
    pub fn load_replica(
        program: Checked<TrainProgram>,
        replica: u64,
        weights: &dyn Weights,
        options: LoadOptions,
    ) -> Result<Trainer, LoadError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.jobs).build();
        let pool = pool.map_err(|error| LoadError::Threads { jobs: options.jobs, why: error.to_string() })?;
        let mut jit = match options.engine {
            Engine::Compiled => Jit::new(),
            Engine::Interpreted => None,
        };
        let turns: Vec<Turn> = program.rotations.iter().map(|r| turn(&r.rotation)).collect();
        let plan = plan(&program.body, &turns, &mut jit);
        let replica = program.share.as_ref().map_or(Replica::ALONE, |share| Replica {
            index: replica as usize,
            of: share.replicas as usize,
            sharding: if share.replicas > 1 { share.sharding } else { StateSharding::None },
        });
        let weights =
            of_training_rank(&program, weights, |weights| AllWeights::load(&program, weights, &replica))?;
        Ok(Trainer {
            program,
            isa: Isa::detect(),
            pool,
            plan,
            tables: (0, Vec::new()),
            weights,
            buffers: Buffers::default(),
            replica,
            packing: Packing::default(),
            steps: 0,
        })
    }

    /// Adds the gradients of a batch of sequences of one length and returns its loss: the mean cross entropy over the
    /// positions whose label is not negative.
    ///
    /// # Errors
    /// When sequences are empty, of different lengths, longer than the model was built for, or hold ids or labels
    /// outside of the vocabulary.
    pub fn accumulate(&mut self, ids: &[&[u32]], labels: &[&[i32]]) -> Result<f64, TrainError> {
        if self.program.share.is_some() {
            return Err(TrainError::Batch("one rank's part of a step runs among the others".into()));
        }
        let seq = self.check_batch(ids, labels)?;
        let form = Form { batch: ids.len(), seq, run: ids.len() * seq, flights: 1 };
        self.buffers.prepare(&self.program, form);
        let batch = Batch::new(ids, labels, None);
        let steps = 0..self.program.body.len();
        self.run(&batch, steps, seq, &mut None)
    }

    /// Runs steps of the body for a batch and returns the loss, where they make one.
    pub(super) fn run(
        &mut self,
        batch: &Batch,
        steps: std::ops::Range<usize>,
        seq: usize,
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<f64, TrainError> {
        if self.tables.0 != seq {
            let rotations = self.program.rotations.iter();
            let table = |r: &TrainRotation| RotationTable::directed(&r.rotation, seq, r.back);
            self.tables = (seq, rotations.map(table).collect());
        }
        let Trainer { program, isa, pool, plan, tables, weights, buffers, packing, replica, .. } = self;
        let mut pass = Pass {
            program,
            isa: *isa,
            pool,
            weights,
            buffers,
            replica: *replica,
            tables: &tables.1,
            batch,
            layer: 0,
            loss: 0.0,
            packing: std::mem::take(packing),
            products: Vec::new(),
        };
        let done = pass.steps(&program.body[steps.clone()], &plan[steps], peers);
        let (loss, used) = (pass.loss, std::mem::take(&mut pass.packing));
        *packing = used;
        done?;
        Ok(loss)
    }

    pub(super) fn check_batch(&self, ids: &[&[u32]], labels: &[&[i32]]) -> Result<usize, TrainError> {
        let fault = |what: String| Err(TrainError::Batch(what));
        let seq = ids.first().map_or(0, |ids| ids.len());
        if seq == 0 || seq as u64 > self.program.model.max_seq {
            return fault(format!("sequences of {seq} tokens, expected 1 to {}", self.program.model.max_seq));
        }
        if ids.len() != labels.len()
            || ids.iter().any(|x| x.len() != seq)
            || labels.iter().any(|x| x.len() != seq)
        {
            return fault(format!("every sequence and its labels must have {seq} tokens"));
        }
        let vocab = self.program.model.vocab;
        if let Some(id) = ids.iter().copied().flatten().find(|id| u64::from(**id) >= vocab) {
            return fault(format!("id {id} is outside of the vocabulary of {vocab}"));
        }
        match labels.iter().copied().flatten().find(|label| i64::from(**label) >= vocab as i64) {
            Some(label) => fault(format!("label {label} is outside of the vocabulary of {vocab}")),
            None => Ok(seq),
        }
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        let clear = |weight: &mut Weight| {
            weight.gradient.fill(0.0);
            weight.scattered.fill(0.0);
        };
        self.pool.install(|| self.weights.list.par_iter_mut().for_each(clear));
    }

    /// The norm of all gradients together.
    pub fn gradient_norm(&self) -> f64 {
        self.squares(&|_| true).sqrt()
    }

    /// The sum of the squares of the gradients of some weights.
    pub(super) fn squares(&self, counts: &(dyn Fn(&Weight) -> bool + Sync)) -> f64 {
        self.pool.install(|| adamw::squares(&self.weights.list, &|weight| counts(weight)))
    }

    /// Changes every weight by its gradient and returns the norm of the gradients before clipping; `updates` are those of
    /// [`AdamW::updates`]. Gradients stay until they are cleared.
    ///
    /// # Errors
    /// When a parameter has no rule.
    pub fn update(&mut self, settings: &AdamW, updates: &[ParamUpdate]) -> Result<f64, TrainError> {
        let norm = self.gradient_norm();
        self.change(settings, updates, norm)?;
        Ok(norm)
    }

    /// One step of the optimizer on what the rank changes.
    pub(super) fn change(
        &mut self,
        settings: &AdamW,
        updates: &[ParamUpdate],
        norm: f64,
    ) -> Result<(), TrainError> {
        let rule = |name: &String| match updates.iter().find(|update| update.name == *name) {
            Some(update) => Ok((update.lr, update.weight_decay)),
            None => Err(TrainError::Rule { name: name.clone() }),
        };
        let rates: Vec<(f64, f64)> = self
            .program
            .parameters
            .iter()
            .map(|parameter| rule(&parameter.name))
            .collect::<Result<_, _>>()?;
        self.steps += 1;
        let (steps, weights) = (self.steps, &mut self.weights.list);
        self.pool.install(|| adamw::update(settings, steps, &rates, norm, weights));
        Ok(())
    }

    /// Every weight by its canonical name: values and gradient; empty where other ranks hold them.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &[f32], &[f32])> {
        fn all(values: &[f32], len: usize) -> &[f32] {
            values.get(..len).unwrap_or(&[])
        }
        self.weights.list.iter().map(|w| (w.name.as_str(), all(&w.values, w.len), all(&w.gradient, w.len)))
    }

    /// Bytes of the buffers of the last batch.
    pub fn buffer_bytes(&self) -> usize {
        self.buffers.bytes()
    }

    /// Row functions in all, and how many of them were compiled.
    pub fn kernels(&self) -> (usize, usize) {
        fn count(plan: &[Planned]) -> (usize, usize) {
            plan.iter().fold((0, 0), |(all, compiled), p| {
                let inside = count(&p.body);
                let own = usize::from(p.kernel.is_some());
                let ready = usize::from(p.kernel.as_ref().is_some_and(Kernel::is_compiled));
                (all + inside.0 + own, compiled + inside.1 + ready)
            })
        }
        count(&self.plan)
    }
}

fn plan(steps: &[TrainStep], turns: &[Turn], jit: &mut Option<Jit>) -> Vec<Planned> {
    let mut planned = Vec::with_capacity(steps.len());
    for step in steps {
        let none = Planned { kernel: None, slopes: Vec::new(), body: Vec::new() };
        planned.push(match step {
            TrainStep::Rows { function, .. }
            | TrainStep::Linear { function, .. }
            | TrainStep::ColumnGradient { function, .. } => {
                Planned { kernel: Some(Kernel::new(function, turns, jit.as_mut())), ..none }
            }
            TrainStep::Attention { heads, mask, .. } | TrainStep::AttentionBackward { heads, mask, .. } => {
                Planned { slopes: mask.slopes(heads.heads), ..none }
            }
            TrainStep::Keys { heads, op: KeyOp::Mask(mask), .. } => {
                Planned { slopes: mask.slopes(*heads), ..none }
            }
            TrainStep::Repeat { body, .. } => Planned { body: plan(body, turns, jit), ..none },
            _ => none,
        });
    }
    planned
}
