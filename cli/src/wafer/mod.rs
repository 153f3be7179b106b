//! Models on simulated wafers: programs of the stages, and a pass of tokens through them with the model's weights.
//!
//! ```text
//! before --x--> layer (weights of 0) --x--> layer (weights of 1) --x--> .. --x--> after --> logits
//! ```
//! As in weight streaming, one program serves every layer: the weights stand beside the wafer and enter word by word,
//! the residual stream x stays in the PEs' memories. Layer-pipelined, one program holds all layers with their weights,
//! and sequences pass through them one behind the other; new tokens are made one by one against a cache (see [`decode`]).
//! Programs fix batch and length, so there is a set for each pair.

mod decode;
mod grid;
mod pipelined;

pub use decode::Session;
pub use grid::Grid;

use crate::failure::{Exit, Failure};
use crate::host::{self, Switches};
use decode::Decoder;
use lapidary_hardware::price::wafer as price;
use lapidary_hardware::{Bytes, HardwareSpec};
use lapidary_ir::{IrContext, Module};
use lapidary_models::{DType, Dims, Graph, ModelSpec};
use lapidary_passes::pipeline::pipeline_text;
use lapidary_passes::wafer::{self, EmitError, EmitOptions, HostData, Scope, Shown, WaferError};
use lapidary_passes::{Goal, Pipeline, Watch};
use lapidary_reference::Params;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{Checked, FabricSpec, check, event};
use pipelined::Pipelined;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Where a model's weights are while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Beside the wafer: layer after layer has all of it, and the weights of each stream in.
    #[default]
    WeightStreaming,
    /// On the wafer: every layer has rows of its own, and sequences stream through.
    LayerPipelined,
}

impl Mode {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::WeightStreaming => "weight-streaming",
            Mode::LayerPipelined => "layer-pipelined",
        }
    }
}

/// A stage that passed its check.
struct Stage {
    name: String,
    times: u64,
    program: Checked<WaferProgram>,
    host: BTreeMap<String, HostData>,
}

/// What a pass of tokens gives.
#[derive(Default)]
pub struct Forward {
    /// The residual stream before the first layer and behind every layer; rows are tokens, sequence by sequence. Of a
    /// pipeline only where it was asked for.
    pub stream: Vec<Vec<f32>>,
    /// Logits, one row of the vocabulary's width for each token.
    pub logits: Vec<f32>,
    /// Keys and values of every layer; of a pipeline where they were asked for.
    pub cache: Vec<[Vec<f32>; 2]>,
    /// Cycles of all stages.
    pub cycles: u64,
}

/// A model with its weights, on a grid.
pub struct Simulator {
    spec: ModelSpec,
    switches: Switches,
    grid: Grid,
    mode: Mode,
    machine: HardwareSpec,
    params: Params<f32>,
    programs: RefCell<BTreeMap<(Dimensions, Shown), Programs>>,
    decoders: RefCell<BTreeMap<usize, Rc<Decoder>>>,
}

/// The programs for some dimensions.
#[derive(Clone)]
enum Programs {
    /// To be run one after the other.
    Stages(Rc<Vec<Stage>>),
    /// To be run once.
    Pipelined(Rc<Pipelined>),
}

/// What a stage calls the residual stream that it finds, and the one that it leaves.
const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// Sequences, and tokens of each.
type Dimensions = (u64, u64);

impl Simulator {
    /// A model whose activations and weights are words of `dtype` on the wafer.
    ///
    /// # Errors
    /// Exit 1 when the machine is unknown.
    pub fn new(
        spec: &ModelSpec,
        switches: Switches,
        dtype: DType,
        (grid, mode): (Grid, Mode),
        params: Params<f32>,
    ) -> Result<Simulator, Failure> {
        let machine = lapidary_hardware::builtin::machine("cs2")
            .map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        let mut spec = spec.clone();
        (spec.dtype.params, spec.dtype.compute) = (dtype, dtype);
        let (programs, decoders) = (RefCell::default(), RefCell::default());
        Ok(Simulator { spec, switches, grid, mode, machine, params, programs, decoders })
    }

    /// Whether new tokens are made against a cache.
    pub fn caches(&self) -> bool {
        self.mode == Mode::LayerPipelined
    }

    /// How long the wafer takes for these cycles.
    pub fn seconds(&self, cycles: u64) -> f64 {
        self.machine.wafer().map_or(0.0, |wafer| FabricSpec::from(wafer).seconds(cycles))
    }

    /// Cycles in which so many numbers pass the links into a system.
    fn through_links(&self, numbers: usize) -> u64 {
        let Some((wafer, links)) =
            self.machine.wafer().and_then(|wafer| Some((wafer, wafer.ingress.as_ref()?)))
        else {
            return 0;
        };
        let bytes = Bytes((numbers as u64 * self.spec.dtype.compute.bytes()) as f64);
        (price::ingress(links, bytes).0 * wafer.clock().0).ceil() as u64
    }

    /// Runs sequences of one length, as many at once as the grid has room for.
    ///
    /// # Errors
    /// Exit 4 when one sequence has no room, 5 for ops without a kernel.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Forward, Failure> {
        self.pass(ids, Shown::default())
    }

    /// The same with the residual stream, of which a pipeline keeps copies.
    ///
    /// # Errors
    /// As [`Simulator::forward`].
    pub fn trace(&self, ids: &[Vec<u32>]) -> Result<Forward, Failure> {
        self.pass(ids, Shown { stream: true, ..Shown::default() })
    }

    fn pass(&self, ids: &[Vec<u32>], shown: Shown) -> Result<Forward, Failure> {
        let mut whole = Forward::default();
        let mut most = match self.mode {
            Mode::WeightStreaming => ids.len().min(self.grid.height as usize).max(1),
            Mode::LayerPipelined => ids.len().max(1),
        };
        let mut rest = ids;
        while !rest.is_empty() {
            let some = &rest[..most.min(rest.len())];
            match self.batch(some, shown) {
                Ok(part) => {
                    whole.join(part);
                    rest = &rest[some.len()..];
                }
                Err(failure) if failure.exit == Exit::DoesNotFit && some.len() > 1 => {
                    most = some.len().div_ceil(2);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(whole)
    }

    fn batch(&self, ids: &[Vec<u32>], shown: Shown) -> Result<Forward, Failure> {
        let flat: Vec<i32> = ids.iter().flatten().map(|id| id.cast_signed()).collect();
        match self.programs((ids.len() as u64, ids[0].len() as u64), shown)? {
            Programs::Stages(stages) => self.run_stages(&stages, &flat),
            Programs::Pipelined(pipelined) => {
                let made = pipelined.run(&self.params, &flat)?;
                Ok(Forward { logits: self.cut(&made.logits, flat.len()), ..made })
            }
        }
    }

    fn run_stages(&self, stages: &[Stage], flat: &[i32]) -> Result<Forward, Failure> {
        let mut made = Forward::default();
        let mut x = Vec::new();
        for stage in stages.iter() {
            let is_layer = stage.name == "layer";
            if is_layer {
                made.stream.push(x.clone());
            }
            for layer in 0..stage.times {
                let (cycles, y) = self.stage(stage, layer, flat, x)?;
                made.cycles += cycles;
                x = y;
                if is_layer {
                    made.stream.push(x.clone());
                }
            }
        }
        made.logits = self.cut(&x, flat.len());
        Ok(made)
    }

    /// Logits without the rows that pad the vocabulary.
    fn cut(&self, logits: &[f32], tokens: usize) -> Vec<f32> {
        let width = logits.len() / tokens.max(1);
        let rows = logits.chunks_exact(width.max(1));
        rows.flat_map(|row| &row[..width.min(self.spec.vocab as usize)]).copied().collect()
    }

    /// One run of a stage on the result of the one before: its cycles and its result.
    fn stage(&self, stage: &Stage, layer: u64, ids: &[i32], x: Vec<f32>) -> Result<(u64, Vec<f32>), Failure> {
        let fault = |what: String| Failure::new(Exit::Internal, format!("stage {}: {what}", stage.name));
        let number = layer.to_string();
        let parameter =
            |name: &str| self.params.get(&name.replacen('*', &number, 1)).map(|t| t.data.as_slice());
        let mut tensors = BTreeMap::from([(INPUT.to_string(), x)]);
        for (name, data) in &stage.host {
            match data {
                HostData::Activations { .. } => {}
                _ => {
                    let values = data.values(parameter, ids);
                    let values = values.ok_or_else(|| fault(format!("tensor {name} has no values")))?;
                    tensors.insert(name.clone(), values);
                }
            }
        }
        tensors.retain(|name, _| stage.host.contains_key(name));
        let mut run = event::simulate(&stage.program, tensors).map_err(|error| fault(error.to_string()))?;
        let y = run.tensors.remove(OUTPUT).ok_or_else(|| fault("leaves nothing behind".into()))?;
        Ok((run.report.cycles, y))
    }

    /// The programs for these dimensions, compiled once.
    fn programs(&self, dimensions: Dimensions, shown: Shown) -> Result<Programs, Failure> {
        // Stages show the residual stream anyway.
        let shown = if self.mode == Mode::LayerPipelined { shown } else { Shown::default() };
        if let Some(known) = self.programs.borrow().get(&(dimensions, shown)) {
            return Ok(known.clone());
        }
        let made = self.compile(dimensions, shown)?;
        self.programs.borrow_mut().insert((dimensions, shown), made.clone());
        Ok(made)
    }

    /// Lowers a batch; a pipeline has one sequence at a place.
    fn compile(&self, (batch, seq): Dimensions, shown: Shown) -> Result<Programs, Failure> {
        let sequences = if self.mode == Mode::LayerPipelined { 1 } else { batch };
        let cx = IrContext::new();
        let module = self.placed(&cx, Dims { batch: sequences, seq, cached: 0 })?;
        let fabric = self.fabric();
        let refused = |error: EmitError| self.refused(&error, batch, seq);
        if self.mode == Mode::LayerPipelined {
            let micro_batches = u32::try_from(batch).unwrap_or(u32::MAX);
            let pipeline =
                wafer::emit_pipeline(&module, &self.machine, micro_batches, shown).map_err(refused)?;
            return Ok(Programs::Pipelined(Rc::new(Pipelined::new(pipeline, &fabric)?)));
        }
        let options = EmitOptions { scope: Scope::Steps };
        let artifact = wafer::emit(&module, &self.machine, &options).map_err(refused)?;
        let stages = artifact.stages.into_iter().map(|stage| checked(stage, &fabric));
        Ok(Programs::Stages(Rc::new(stages.collect::<Result<_, _>>()?)))
    }

    /// The programs that make a token against up to `capacity` tokens, compiled once.
    fn decoder(&self, capacity: usize) -> Result<Rc<Decoder>, Failure> {
        if let Some(known) = self.decoders.borrow().get(&capacity) {
            return Ok(Rc::clone(known));
        }
        let cx = IrContext::new();
        let module = self.placed(&cx, Dims { batch: 1, seq: 1, cached: 0 })?;
        let room = u32::try_from(capacity).unwrap_or(u32::MAX);
        let decode = wafer::emit_decode(&module, &self.machine, room)
            .map_err(|error| self.refused(&error, 1, capacity as u64))?;
        let decoder = Rc::new(Decoder::new(decode, &self.fabric())?);
        self.decoders.borrow_mut().insert(capacity, Rc::clone(&decoder));
        Ok(decoder)
    }

    fn fabric(&self) -> FabricSpec {
        self.machine.wafer().map(FabricSpec::from).unwrap_or_default()
    }

    /// The forward pass as placed ops.
    fn placed<'c>(&self, cx: &'c IrContext, dims: Dims) -> Result<Module<'c>, Failure> {
        let graph = Graph::build(&self.spec, lapidary_models::Mode::Forward, dims)
            .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", self.spec.name)))?;
        let Grid { width, height } = self.grid;
        let passes = pipeline_text(Goal::Wafer, self.switches.mup, &self.switches.fusion);
        let passes = Pipeline::parse(&format!("{passes},lower-to-wafer{{width={width} height={height}}}"))
            .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let mut module = host::imported(cx, &graph)?;
        lapidary_passes::run(&mut module, &passes, Watch::default()).map_err(host::run_failure)?;
        Ok(module)
    }

    fn refused(&self, error: &EmitError, batch: u64, seq: u64) -> Failure {
        let exit = match error {
            EmitError::Placement { error, .. } if !matches!(**error, WaferError::Unsupported { .. }) => {
                Exit::DoesNotFit
            }
            _ => Exit::Unsupported,
        };
        let what = format!("{batch} sequences of {seq} tokens on {} PEs: {error}", self.grid);
        Failure::new(exit, what).help("--grid WIDTHxHEIGHT takes another number of PEs")
    }
}

fn checked(stage: wafer::Stage, fabric: &FabricSpec) -> Result<Stage, Failure> {
    let program = proved(&stage.name, &stage.generated.program, fabric)?;
    Ok(Stage { name: stage.name, times: stage.times, program, host: stage.generated.host })
}

/// A program that fails its own check is a fault of the compiler.
fn proved(name: &str, program: &WaferProgram, fabric: &FabricSpec) -> Result<Checked<WaferProgram>, Failure> {
    check(program, fabric).map_err(|faults| {
        let told: Vec<String> = faults.iter().take(4).map(ToString::to_string).collect();
        let what = format!("stage {name} does not pass its check: {}", told.join("; "));
        Failure::new(Exit::Internal, what)
    })
}

impl Forward {
    /// Appends the sequences of another pass.
    fn join(&mut self, part: Forward) {
        self.stream.resize_with(part.stream.len().max(self.stream.len()), Vec::new);
        self.stream.iter_mut().zip(part.stream).for_each(|(all, more)| all.extend(more));
        self.logits.extend(part.logits);
        self.cache.extend(part.cache);
        self.cycles += part.cycles;
    }
}
