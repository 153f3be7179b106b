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
mod train;

pub use train::{TrainModule, lower_train};

use lapidary_models::op::Sharded;
use lapidary_models::{Dims, Function, Graph, Mode, ModelSpec, Op};
use lapidary_runtime_cpu::program::{CpuProgram, ProgramFaults, Share, Sizes, WeightType};
use thiserror::Error;

/// A model whose ops are grouped into kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct HostModule {
    /// The model.
    pub model: Sizes,
    /// The layer function.
    pub layer: HostFunction,
    /// The function that runs once.
    pub main: HostFunction,
    /// Which part of the model it is; none for the whole of it.
    pub share: Option<Share>,
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
    /// Element type of cached keys and values.
    pub cache: WeightType,
}

impl Options {
    /// Weights and cache of one type.
    pub const fn all(dtype: WeightType) -> Options {
        Options { weights: dtype, cache: dtype }
    }
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

/// What programs for the host say of a model.
pub fn sizes(spec: &ModelSpec) -> Sizes {
    Sizes { name: spec.name.clone(), layers: spec.n_layers, vocab: spec.vocab, max_seq: spec.max_seq }
}

impl HostModule {
    /// The module of a graph without fusion.
    pub fn unfused(spec: &ModelSpec, graph: &Graph) -> HostModule {
        let params: Vec<HostParam> =
            graph.params.iter().map(|p| HostParam { name: p.name.clone(), scale: 1.0 }).collect();
        HostModule {
            model: sizes(spec),
            layer: HostFunction::unfused(graph.layer(), params.clone()),
            main: HostFunction::unfused(graph.main(), params),
            share: None,
        }
    }
}

/// The graph that host programs are made from: prefill of two tokens where the model takes as many. The bound dimensions
/// do not matter to the program, but in a graph of one token the op that picks the last one folds away.
///
/// # Errors
/// When the specification has no graph.
pub fn host_graph(spec: &ModelSpec) -> Result<Graph, LowerError> {
    Ok(Graph::build(spec, Mode::Prefill, Dims { batch: 1, seq: 2.min(spec.max_seq), cached: 0 })?)
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
    let main = &module.main.function.nodes;
    let repeat = main.iter().find(|node| matches!(node.op, Op::Repeat { .. }));
    let hands_on = |node: &lapidary_models::Node| matches!(node.op, Op::Sharded(Sharded::Send { .. }));
    let picks_last = main.iter().any(|node| node.op == Op::LastToken || hands_on(node));
    if let Some(repeat) = repeat.filter(|_| !picks_last && module.model.max_seq > 1) {
        let what = "no last_token follows the layers, so prompts of several tokens would get the first one's logits: \
                    lower a prefill graph of at least two tokens";
        return Err(LowerError::Unsupported { node: repeat.name.clone(), what: what.into() });
    }
    let program = function::Emitter::new(module, options).emit()?;
    Ok(program.check()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fusion::{self, Rules, Step as FusionStep};
    use lapidary_runtime_cpu::program::{Form, Step};

    const OPTIONS: Options = Options::all(WeightType::Bf16);

    fn fused(host: HostFunction, rules: &Rules) -> HostFunction {
        let plan = fusion::plan(&host.function, rules);
        let is_repeat = |n: usize| matches!(host.function.nodes[n].op, Op::Repeat { .. });
        let kernel = |step: &FusionStep| match *step {
            FusionStep::Region(region) => Some(plan.regions[region].nodes.clone()),
            FusionStep::Keep(n) => is_repeat(n).then(|| vec![n]),
        };
        HostFunction { kernels: plan.steps.iter().filter_map(kernel).collect(), ..host }
    }

    fn program(name: &str, rules: &Rules) -> CpuProgram {
        let spec = lapidary_models::builtin(name).expect("a built-in model");
        let plain = HostModule::unfused(&spec, &host_graph(&spec).expect("a graph"));
        let module = HostModule { layer: fused(plain.layer, rules), main: fused(plain.main, rules), ..plain };
        lower(&module, &OPTIONS).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn layer(program: &CpuProgram) -> &[Step] {
        let repeat = program.body.iter().find_map(|step| match step {
            Step::Repeat { body, .. } => Some(body.as_slice()),
            _ => None,
        });
        repeat.expect("layers")
    }

    #[test]
    fn every_built_in_model_has_a_program_with_any_fusion() {
        let mut rules = vec![Rules::none(), Rules::all()];
        rules.extend(fusion::Rule::ALL.map(|rule| Rules::all().without([rule])));
        for name in lapidary_models::builtin_names() {
            for rules in &rules {
                let program = program(name, rules);
                let text = program.to_json();
                assert_eq!(CpuProgram::from_json(&text).expect("reads back"), program);
            }
        }
    }

    #[test]
    fn a_fused_layer_of_amber_is_seven_steps() {
        let program = program("amber", &Rules::all());
        let names: Vec<&str> = layer(&program).iter().map(Step::name).collect();
        let kinds = |step: &Step| match step {
            Step::Rows { .. } => 'r',
            Step::Linear { .. } => 'l',
            Step::Attention { .. } => 'a',
            _ => '?',
        };
        assert_eq!(layer(&program).iter().map(kinds).collect::<String>(), "rlalrll", "{names:?}");
        // 6,738,415,616 parameters, all but the 65 norms' in bf16, and no padding: every row count divides by 32.
        assert_eq!(program.weight_bytes(), 2 * 6_738_415_616 + 2 * 65 * 4096);
        assert_eq!(program.cache_bytes_per_token(), 2 * 32 * 4096 * 2);
    }

    #[test]
    fn a_tied_table_is_packed_once() {
        let program = program("crystalcoder", &Rules::all());
        let embeds = program.parameters.iter().filter(|p| p.name == "embed");
        let forms: Vec<&Form> = embeds.map(|p| &p.form).collect();
        assert!(matches!(forms[..], [Form::Matrix { .. }]), "{forms:?}");
    }

    #[test]
    fn a_graph_without_a_cache_is_refused() {
        let spec = lapidary_models::builtin("amber").expect("a built-in model");
        let graph =
            Graph::build(&spec, Mode::Forward, Dims { batch: 1, seq: 1, cached: 0 }).expect("a graph");
        let error = lower(&HostModule::unfused(&spec, &graph), &OPTIONS).expect_err("no cache");
        assert!(error.to_string().contains("prefill"), "{error}");
    }
}
