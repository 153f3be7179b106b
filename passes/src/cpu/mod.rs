//! Emission of host programs: kernels of a fused graph become steps of a [`CpuProgram`].
//!
//! Plain data in, plain data out: a [`HostModule`] holds the functions with the kernels that fusion chose (or one kernel
//! per op), [`lower`] decides for each kernel which steps of the host run it, names what passes between steps, packs
//! parameters for those who read them, and lays buffers out by liveness. Dimensions bound in the graph are dropped: a
//! program runs any batch, number of tokens and cached length.

mod function;
mod parameters;
mod parts;
mod slots;

use lapidary_models::{Dims, Function, Graph, Mode, ModelSpec, Op};
use lapidary_runtime_cpu::program::{CpuProgram, ProgramFaults, WeightType};
use thiserror::Error;

/// A model whose ops are grouped into kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct HostModule {
    /// Name of the model.
    pub name: String,
    /// Layers of the model.
    pub layers: u64,
    /// Token ids are below this.
    pub vocab: u64,
    /// Most tokens of a sequence.
    pub max_seq: u64,
    /// The layer function.
    pub layer: HostFunction,
    /// The function that runs once.
    pub main: HostFunction,
}

/// A function with its kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct HostFunction {
    /// The ops.
    pub function: Function,
    /// What [`Op::Param`] indexes.
    pub params: Vec<HostParam>,
    /// Indices of nodes, kernel by kernel, in an order in which they can run. Parameters are in none; a repeat is one of
    /// its own.
    pub kernels: Vec<Vec<usize>>,
}

/// A parameter as the module names it.
#[derive(Clone, Debug, PartialEq)]
pub struct HostParam {
    /// Canonical name, `*` for the layer.
    pub name: String,
    /// Load-time factor.
    pub scale: f64,
}

/// Choices of the emission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Element type of packed matrices and tables; vectors are f32 always.
    pub weights: WeightType,
}

/// Why a module has no host program.
#[derive(Debug, Error)]
pub enum LowerError {
    /// An op stands where the host has no step for it.
    #[error("{node}: {what}")]
    Unsupported {
        /// The node.
        node: String,
        /// What is missing, and what would help.
        what: String,
    },
    /// The dimensions are not those of the model.
    #[error(transparent)]
    Graph(#[from] lapidary_models::graph::GraphError),
    /// The program does not pass its check: a fault of the emission.
    #[error("the emitted program is faulty:\n{0}")]
    Faulty(#[from] ProgramFaults),
}

impl HostFunction {
    /// The function with every op a kernel of its own.
    pub fn unfused(function: &Function, params: Vec<HostParam>) -> HostFunction {
        let alone = |(n, node): (usize, &lapidary_models::Node)| match node.op {
            Op::Param { .. } => None,
            _ => Some(vec![n]),
        };
        let kernels = function.nodes.iter().enumerate().filter_map(alone).collect();
        HostFunction { function: function.clone(), params, kernels }
    }
}

impl HostModule {
    /// The module of a graph without fusion.
    pub fn unfused(spec: &ModelSpec, graph: &Graph) -> HostModule {
        let params: Vec<HostParam> =
            graph.params.iter().map(|p| HostParam { name: p.name.clone(), scale: 1.0 }).collect();
        HostModule {
            name: graph.name.clone(),
            layers: graph.n_layers,
            vocab: spec.vocab,
            max_seq: spec.max_seq,
            layer: HostFunction::unfused(graph.layer(), params.clone()),
            main: HostFunction::unfused(graph.main(), params),
        }
    }
}

/// The graph that host programs are made from: prefill, whose bound dimensions do not matter.
///
/// # Errors
/// When the specification has no graph.
pub fn host_graph(spec: &ModelSpec) -> Result<Graph, LowerError> {
    Ok(Graph::build(spec, Mode::Prefill, Dims { batch: 1, seq: 1, cached: 0 })?)
}

/// The program of a model without any fusion.
///
/// # Errors
/// As [`lower`].
pub fn lower_unfused(spec: &ModelSpec, options: &Options) -> Result<CpuProgram, LowerError> {
    lower(&HostModule::unfused(spec, &host_graph(spec)?), options)
}

/// The host program of a module, checked.
///
/// # Errors
/// [`LowerError`] when the module is not that of a model with a cache, or the emission is at fault.
pub fn lower(module: &HostModule, options: &Options) -> Result<CpuProgram, LowerError> {
    let program = function::Emitter::new(module, options).emit()?;
    Ok(program.check()?.into_inner())
}
