//! A model spread over processes as a device: every process runs its part, and all of them see the whole result.

use super::compiled::continued;
use super::device::{Ask, Device, Trace, traced};
use crate::commands::run::load_failure;
use crate::failure::{Exit, Failure};
use crate::host::{self, Switches};
use crate::ranks::Job;
use lapidary_models::op::Sharded;
use lapidary_models::{Function, ModelSpec, Op, ValueId};
use lapidary_passes::cpu::HostModule;
use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::{LoadOptions, Model, Observation, PeerError, RunError, Weights, Which};
use lapidary_runtime_mpi::{Grid, Place, Ranks, World};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// This process's part of a model.
pub struct Spread<'w> {
    /// The whole model, which says what values are called.
    module: HostModule,
    model: Model,
    world: &'w World,
    ranks: RefCell<Ranks<'w>>,
    grid: Grid,
    place: Place,
    /// Values of a layer that every rank of a group has whole, under their names in the whole model.
    wholes: BTreeSet<String>,
}

/// What one process has seen, as bits: what is no number has no other form in a document.
#[derive(Default, Serialize, Deserialize)]
struct Seen {
    values: BTreeMap<String, Vec<u32>>,
    logits: Vec<u32>,
}

/// The values of a layer that are whole on every rank of a tensor-parallel group: what the layer gets, what is put
/// together from parts, and what is made of such values alone.
fn wholes(layer: &Function, tensor: u64) -> BTreeSet<String> {
    let mut whole: BTreeSet<ValueId> = layer.arguments.iter().copied().collect();
    let mut names = BTreeSet::new();
    for node in &layer.nodes {
        let met = matches!(node.op, Op::Sharded(Sharded::AllReduce | Sharded::AllGather { .. }));
        // Biases and norms read vectors that all ranks have; a linear's weight is a part.
        let made = match node.op {
            Op::Param { .. } => false,
            Op::Norm { .. } => whole.contains(&node.inputs[0]),
            Op::Add | Op::Scale { .. } => node.inputs.iter().all(|id| whole.contains(id)),
            _ => false,
        };
        if met || made || tensor == 1 {
            whole.insert(node.output);
        }
        // A sum over ranks has a name of its own, and may be but a summand of what the whole model calls so.
        if (made || tensor == 1) && !matches!(node.op, Op::Param { .. }) {
            names.insert(node.name.clone());
        }
    }
    names
}

fn numbers(bits: Vec<u32>) -> impl Iterator<Item = f64> {
    bits.into_iter().map(|bits| f64::from(f32::from_bits(bits)))
}

impl<'w> Spread<'w> {
    /// Compiles and loads the part of the process.
    ///
    /// # Errors
    /// Exit 5 for a model that cannot be spread so, 3 for weights that do not fit it.
    pub fn load(
        spec: &ModelSpec,
        switches: &Switches,
        dtype: WeightType,
        weights: &dyn Weights,
        job: Job<'w>,
        options: LoadOptions,
    ) -> Result<Spread<'w>, Failure> {
        let whole = host::lower(spec, switches, dtype)?;
        let (degrees, place) = job.part();
        let part = host::lower_part(spec, switches, dtype, degrees, place)?;
        let wholes = wholes(&part.module.layer.function, job.degrees.tensor);
        let model = Model::load(part.program, weights, options).map_err(|error| load_failure(&error))?;
        let Job { world, ranks, degrees, place } = job;
        let (ranks, grid) = (RefCell::new(ranks), Grid { degrees });
        Ok(Spread { module: whole.module, model, world, ranks, grid, place, wholes })
    }

    /// The sequences of a replica.
    fn share(&self, sequences: usize, replica: u64) -> Range<usize> {
        let bound = |replica: u64| (sequences as u64 * replica / self.grid.degrees.data) as usize;
        bound(replica)..bound(replica + 1)
    }

    /// The name in the whole model of a value that is whole on every rank of its group; none for parts and summands.
    fn whole_name(&self, o: &Observation) -> Option<String> {
        let first = self.model.program().share.as_ref().map_or(0, |share| share.first_layer) as usize;
        match o.layer {
            Some(layer) => self.wholes.contains(o.value).then(|| traced(Some(first + layer), o.value)),
            // A sum over ranks stands for the value that the whole model has.
            None if o.value.starts_with("pipeline.") => None,
            None => Some(o.value.trim_end_matches(".all_reduce").to_string()),
        }
    }

    fn run(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Seen, RunError> {
        let mut seen = Seen::default();
        if ids.is_empty() {
            return Ok(seen);
        }
        let mut ranks = self.ranks.borrow_mut();
        let mut session = self.model.session_among(&mut *ranks, ids.len(), ids[0].len())?;
        let lists: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let values = &mut seen.values;
        let logits = session.watch(&lists, Which::All, &mut |o| {
            if let Some(name) = self.whole_name(&o).filter(|name| wanted(name)) {
                let rows = (0..o.rows).flat_map(|row| o.data[row * o.pitch..][..o.width].iter());
                values.insert(name, rows.map(|x| x.to_bits()).collect());
            }
        })?;
        let logits = (0..logits.rows()).flat_map(|row| logits.row(row)).map(|x| x.to_bits()).collect();
        Ok(Seen { logits, ..seen })
    }

    fn continued(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, RunError> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let most = self.model.program().model.max_seq as usize;
        let mut ranks = self.ranks.borrow_mut();
        continued(most, asked, |sequences, positions| {
            self.model.session_among(&mut *ranks, sequences, positions)
        })
    }

    /// What every process tells, by rank.
    fn tell<T: Serialize + for<'t> Deserialize<'t>>(&self, what: &str, told: &T) -> Result<Vec<T>, Failure> {
        let fault = |error: serde_json::Error| Failure::new(Exit::Internal, format!("{what}: {error}"));
        let told = serde_json::to_vec(told).map_err(fault)?;
        let heard = self.world.gather(what, &told).map_err(apart)?;
        heard.iter().map(|bytes| serde_json::from_slice(bytes).map_err(fault)).collect()
    }
}

fn apart(error: PeerError) -> Failure {
    Failure::new(Exit::Missing, error.to_string())
}

fn failed(error: RunError) -> Failure {
    match error {
        RunError::Peers(error) => apart(error),
        error => Failure::new(Exit::DoesNotFit, error.to_string()),
    }
}

impl Device for Spread<'_> {
    fn module(&self) -> &HostModule {
        &self.module
    }

    fn trace(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Trace, Failure> {
        let own = self.run(&ids[self.share(ids.len(), self.place.replica)], wanted).map_err(failed)?;
        // Ranks of a group have the same values: the first of each stage tells them.
        let own = if self.place.tensor == 0 { own } else { Seen::default() };
        let mut trace = Trace::default();
        for (rank, seen) in self.tell("the comparison", &own)?.into_iter().enumerate() {
            for (name, values) in seen.values {
                trace.values.entry(name).or_default().extend(numbers(values));
            }
            if self.grid.place(rank as u64).stage == 0 {
                trace.logits.extend(numbers(seen.logits));
            }
        }
        Ok(trace)
    }

    fn continuations(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, Failure> {
        let mine = self.share(asked.len(), self.place.replica);
        let own = self.continued(&asked[mine]).map_err(failed)?;
        let speaks = self.place.tensor == 0 && self.place.stage == 0;
        let own = if speaks { own } else { Vec::new() };
        Ok(self.tell("the continuations", &own)?.into_iter().flatten().collect())
    }
}
