//! From a function of fused regions to a whole program: buffers, memory plan, parameters, steps.
//!
//! Decides where every value lives. The value that a repeat carries from round to round lives in one place: a round's last
//! kernel writes over its input where that is safe, else a copy does. Caches are written in place. What is left shares the
//! arena as the memory plan says.
use super::spec::{KernelSpec, TensorType};
use super::validate::fits;
use super::{CudaError, Options};
use lapidary_models::shard::StateSharding;
use lapidary_models::shard::schedule::Schedule;
use lapidary_runtime_gpu::program::{Buffer, BufferKind, GpuProgram, Kernel, RowOrder, Share, Step};
use std::collections::{BTreeMap, BTreeSet};

mod arrange;
mod buffers;
mod keep_sums;
mod meetings;
mod optimizer;
mod places;
mod ranks;
mod sharding;
mod steps;

pub(crate) use buffers::buffer;
pub use meetings::Talk;
use places::{Carried, reads};
use sharding::Run;
use steps::Call;

/// A function made of fused regions and repeats.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleSpec {
    /// What is computed, for people.
    pub name: String,
    /// Real architecture, such as `sm_80`.
    pub arch: String,
    /// Every value that lives in memory between kernels.
    pub values: Vec<ValueSpec>,
    /// Values that the caller provides (token ids).
    pub inputs: Vec<usize>,
    /// Values that the caller reads.
    pub outputs: Vec<usize>,
    /// What is done, in order.
    pub body: Vec<Node>,
    /// What a training step has beside a forward pass.
    pub training: Option<TrainingSpec>,
    /// Set where the module is one rank's part of a spread model.
    pub share: Option<Share>,
}

/// What layers keep, and how many there are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingSpec {
    /// Layers of the model: slices of every parameter and gradient per layer.
    pub layers: u64,
    /// Whether the optimizer follows; without it gradients stay as they are.
    pub updates: bool,
    /// What layers keep from forward to backward.
    pub kept: Vec<KeptSpec>,
    /// Values that live in the running layer's slice of what is kept, by index.
    pub slots: BTreeMap<usize, usize>,
    /// What ranks have in common; only looked at where the module is one rank's part.
    pub ranks: RanksSpec,
}

/// How the ranks of a training step work together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RanksSpec {
    /// Parameters whose gradient is the sum over the tensor-parallel group.
    pub summed: BTreeSet<String>,
    /// Those whose gradient is the sum over the first stage and the last.
    pub tied: BTreeSet<String>,
    /// Those that count at another rank.
    pub elsewhere: BTreeSet<String>,
    /// In which order segments run for micro-batches.
    pub schedule: Option<Schedule>,
}

/// A value that a run of layers keeps, a slice each.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptSpec {
    /// Name, unique among them.
    pub name: String,
    /// One layer's value.
    pub ty: TensorType,
    /// The first layers of the runs that keep it; of a rank with several, one at a time.
    pub firsts: Vec<u64>,
    /// How many layers of a run keep it.
    pub times: u64,
}

/// A value in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueSpec {
    /// Name, unique in the module; the buffer is called so.
    pub name: String,
    /// Type.
    pub ty: TensorType,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A region. `args` are the values of its activation inputs in order, `results` those of its outputs.
    Kernel {
        /// The region.
        spec: KernelSpec,
        /// One value per activation input.
        args: Vec<usize>,
        /// One value per output.
        results: Vec<usize>,
    },
    /// Something that ranks say to each other, or that they do to what they hear.
    Talk {
        /// A C identifier, unique among kernels and talks.
        name: String,
        /// What it is.
        talk: Talk,
        /// What is told; none for what is only heard.
        arg: Option<usize>,
        /// What is heard.
        result: usize,
    },
    /// The same body several times, each round with the next layer's parameters and caches.
    Repeat {
        /// Number of rounds.
        times: u64,
        /// The layer of the first slice.
        first: u64,
        /// Whether the last layer comes first.
        reverse: bool,
        /// The value that enters the first round.
        input: usize,
        /// Its name within the body.
        param: usize,
        /// One round.
        body: Vec<Node>,
        /// What a round hands to the next one.
        yielded: usize,
        /// What the last round leaves.
        result: usize,
    },
}

/// A program and the texts of its generated kernels.
#[derive(Debug, Clone, PartialEq)]
pub struct Lowered {
    /// Checked.
    pub program: GpuProgram,
    /// In the order of their first launch.
    pub sources: Vec<KernelSource>,
    /// Name of the buffer that holds each value of the module.
    pub places: Vec<String>,
}

/// The text of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSource {
    /// Name and entry point.
    pub name: String,
    /// Place within the artifact.
    pub file: String,
    /// CUDA C++.
    pub text: String,
}

/// The architecture whose own instructions products may use.
const HOPPER: &str = "sm_90a";

/// Lowers a module to a program that passes its check.
pub fn lower(module: &ModuleSpec, options: &Options) -> Result<Lowered, CudaError> {
    let (hopper, spread) = (module.arch == HOPPER, module.share.is_some());
    let options = &Options { hopper, spread, ..options.clone() };
    let module = &keep_sums::keep_sums(module);
    let mut assembler = Assembler::new(module, options)?;
    let mut steps = assembler.nodes(&module.body, None)?;
    assembler.refresh(&mut steps)?;
    if module.training.as_ref().is_some_and(|training| training.updates) {
        match assembler.sharding() {
            StateSharding::None => assembler.sum_replicas(&mut steps)?,
            StateSharding::Optimizer | StateSharding::Full => assembler.shard_state(&mut steps)?,
        }
        assembler.finish = steps.len();
        steps.extend(assembler.together()?);
        steps.extend(assembler.optimizer()?);
        steps.extend(assembler.gather_changed()?);
    }
    let places = (0..module.values.len()).map(|value| assembler.place(value).to_string()).collect();
    let program = assembler.program(steps)?;
    let sources = assembler.sources;
    match program.check() {
        Ok(checked) => Ok(Lowered { program: checked.into_inner(), sources, places }),
        Err(faults) => Err(CudaError::Unchecked { faults: faults.iter().map(ToString::to_string).collect() }),
    }
}

/// What a repeat says to what is inside.
#[derive(Debug, Clone, Copy)]
struct Round {
    times: u64,
    first: u64,
}

/// Rounds of the longest repeat.
const MOST_ROUNDS: u64 = 1 << 16;

struct Assembler<'a> {
    module: &'a ModuleSpec,
    options: &'a Options,
    /// The value whose buffer holds a value.
    home: Vec<usize>,
    /// Buffers of values that live in caches.
    caches: BTreeMap<usize, String>,
    orders: Vec<RowOrder>,
    buffers: Vec<Buffer>,
    kernels: Vec<Kernel>,
    sources: Vec<KernelSource>,
    /// The first step that runs once behind all micro-batches.
    finish: usize,
    /// Parameters of which every replica holds a run.
    runs: Vec<Run>,
}

impl<'a> Assembler<'a> {
    fn new(module: &'a ModuleSpec, options: &'a Options) -> Result<Assembler<'a>, CudaError> {
        let n = module.values.len();
        let mut assembler = Assembler {
            module,
            options,
            home: (0..n).collect(),
            caches: BTreeMap::new(),
            orders: vec![RowOrder::Natural; n],
            buffers: Vec::new(),
            kernels: Vec::new(),
            sources: Vec::new(),
            finish: 0,
            runs: Vec::new(),
        };
        assembler.values_exist(&module.body)?;
        if let Some(value) = module.values.iter().find(|value| !fits(&value.ty)) {
            return Err(assembler.malformed(format!(
                "value `{}` of shape {:?} is empty or too large",
                value.name, value.ty.shape
            )));
        }
        for &value in module.inputs.iter().chain(&module.outputs) {
            assembler.exists(value)?;
        }
        for &value in &module.inputs {
            assembler.value_buffer(value, BufferKind::Input);
        }
        assembler.claim_kept()?;
        Ok(assembler)
    }

    /// The name of the buffer that holds a value.
    fn place(&self, value: usize) -> &str {
        self.caches.get(&value).unwrap_or(&self.module.values[self.home[value]].name)
    }

    fn malformed(&self, what: impl Into<String>) -> CudaError {
        CudaError::Malformed { kernel: self.module.name.clone(), what: what.into() }
    }

    fn exists(&self, value: usize) -> Result<(), CudaError> {
        let known = value < self.module.values.len();
        if known { Ok(()) } else { Err(self.malformed(format!("there is no value {value}"))) }
    }

    fn values_exist(&self, nodes: &[Node]) -> Result<(), CudaError> {
        for node in nodes {
            match node {
                Node::Kernel { args, results, .. } => {
                    args.iter().chain(results).try_for_each(|&value| self.exists(value))?
                }
                Node::Talk { arg, result, .. } => {
                    arg.iter().chain([result]).try_for_each(|&value| self.exists(value))?
                }
                Node::Repeat { input, param, body, yielded, result, .. } => {
                    [input, param, yielded, result].into_iter().try_for_each(|&value| self.exists(value))?;
                    self.values_exist(body)?;
                }
            }
        }
        Ok(())
    }

    /// Steps of a list of nodes; `round` is set inside a repeat: how many there are and what they carry.
    fn nodes(&mut self, nodes: &[Node], round: Option<(Round, Carried)>) -> Result<Vec<Step>, CudaError> {
        let (rounds, carried) = (round.map(|round| round.0), round.map(|round| round.1));
        let mut steps = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            match node {
                Node::Kernel { spec, args, results } => {
                    Call::of(spec, args, results)?;
                    self.claim_gradients(spec, results)?;
                    self.claim_loss(spec, results);
                    self.settle(nodes, i, carried);
                    steps.extend(self.kernel(spec, args, results, rounds)?);
                }
                Node::Talk { name, talk, arg, result } => {
                    let free =
                        arg.is_some_and(|arg| self.may_take(nodes, i, self.home[arg], *result, carried));
                    self.settle_talk(talk, *arg, *result, free);
                    steps.extend(self.talk((name, talk), *arg, *result, rounds)?);
                }
                Node::Repeat { .. } => {
                    let used_later = |value: usize| nodes[i + 1..].iter().any(|node| reads(node, value));
                    steps.extend(self.repeat(node, &used_later, rounds.is_some())?);
                }
            }
        }
        Ok(steps)
    }

    /// A repeat keeps its value in one place: that of the value that enters, unless that one is still needed.
    fn repeat(
        &mut self,
        node: &Node,
        used_later: &dyn Fn(usize) -> bool,
        nested: bool,
    ) -> Result<Vec<Step>, CudaError> {
        let Node::Repeat { times, first, reverse, input, param, body, yielded, result } = node else {
            return Ok(Vec::new());
        };
        let round = Round { times: *times, first: *first };
        if !(1..=MOST_ROUNDS).contains(times) {
            return Err(
                self.malformed(format!("a repeat of {times} rounds; 1 to {MOST_ROUNDS} are possible"))
            );
        }
        let mut steps = Vec::new();
        let given = self.module.inputs.contains(input) || self.module.outputs.contains(input);
        let entering = used_later(*input) || given || nested;
        self.home[*result] = if entering { *result } else { self.home[*input] };
        self.home[*param] = self.home[*result];
        if entering {
            steps.extend(self.copy(*input, *result, None)?);
        }
        let mut body = self.nodes(body, Some((round, Carried { param: *param, yielded: *yielded })))?;
        if self.place(*yielded) != self.place(*param) {
            body.extend(self.copy(*yielded, *param, Some(round))?);
        }
        steps.push(Step::Repeat { times: *times, reverse: *reverse, body });
        Ok(steps)
    }

    /// An element-wise copy of one value to another's place.
    fn copy(&mut self, from: usize, to: usize, round: Option<Round>) -> Result<Vec<Step>, CudaError> {
        let ty = self.module.values[from].ty.clone();
        let name = format!("copy_{}", self.kernels.len());
        let spec = KernelSpec::copy(name, ty, "A repeat keeps its value in one place.");
        self.kernel(&spec, &[from], &[to], round)
    }
}
