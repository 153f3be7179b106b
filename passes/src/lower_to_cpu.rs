//! Turns a module, fused or not, into a host program: every `nn.fused` a kernel, every op outside of one alone.
//!
//! What a kernel becomes is decided by [`crate::cpu`] on plain data; this file reads the functions from the IR.

use crate::cpu::{
    HostFunction, HostModule, HostParam, LowerError, Options, TrainModule, lower, lower_train, sizes,
};
use crate::pass::{PassError, diagnostic};
use crate::shard::ShardReport;
use crate::view::read_op;
use lapidary_ir::{Module, Op as IrOp, Value as IrValue};
use lapidary_models::graph::{Slot, Value};
use lapidary_models::op::Backward;
use lapidary_models::shard::schedule::{Form, schedule};
use lapidary_models::{Function, ModelSpec, Node, Op, ValueId};
use lapidary_runtime_cpu::program::{
    Checked, CpuProgram, Member, Share, Sizes, StateSharding, TrainProgram, TrainShare,
};
use std::collections::BTreeSet;

/// The host program of a module of `spec`; the module stays as it is. Its bound dimensions do not matter, but it has to
/// be a prefill or decode graph: attention on the host reads the cache.
///
/// # Errors
/// [`PassError::Refused`] at what has no form on the host.
pub fn emit_cpu(module: &Module<'_>, spec: &ModelSpec, options: &Options) -> Result<CpuProgram, PassError> {
    emit(module, &read_host(module, spec)?, options)
}

/// The host program of a module that the pass `shard` left, with its part of the weights.
///
/// # Errors
/// As [`emit_cpu`].
pub fn emit_cpu_part(
    module: &Module<'_>,
    spec: &ModelSpec,
    options: &Options,
    part: &ShardReport,
) -> Result<CpuProgram, PassError> {
    let host = HostModule { share: Some(share(part)), ..read_host(module, spec)? };
    emit(module, &host, options)
}

/// What a program says of its part.
fn share(part: &ShardReport) -> Share {
    let ShardReport { degrees, place, ref layers, ref parts, .. } = *part;
    let first_layer = layers.first().copied().unwrap_or(0);
    Share {
        tensor: Member { index: place.tensor, of: degrees.tensor },
        stage: Member { index: place.stage, of: degrees.pipeline },
        first_layer,
        parts: parts.clone(),
    }
}

fn emit(module: &Module<'_>, host: &HostModule, options: &Options) -> Result<CpuProgram, PassError> {
    lower(host, options).map_err(|error| {
        let at = match &error {
            LowerError::Unsupported { node, .. } => module
                .op()
                .walk()
                .into_iter()
                .find(|op| op.place().node.is_some_and(|at| at.ends_with(node.as_str()))),
            LowerError::Graph(_) | LowerError::Faulty(_) => None,
        };
        PassError::Refused(vec![diagnostic(at.unwrap_or(module.op()), error.to_string())])
    })
}

/// The host's training program of a training module of `spec`, checked; the module stays as it is. Its batch and length
/// do not matter.
///
/// # Errors
/// [`PassError::Refused`] at what the host does not train.
pub fn emit_cpu_training(module: &Module<'_>, spec: &ModelSpec) -> Result<Checked<TrainProgram>, PassError> {
    emit_training(module, &train_module(module.op(), spec)?)
}

/// How the ranks of a training step work together, beyond what the pass `shard` decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Together {
    /// Ranks that hold the same weights for other sequences.
    pub replicas: u64,
    /// How they share what belongs to the weights.
    pub sharding: StateSharding,
    /// Micro-batches of a step.
    pub micros: u64,
}

/// The training program of a module that the pass `shard` left, with its part of the weights and its schedule.
///
/// # Errors
/// As [`emit_cpu_training`], and for a number of micro-batches that has no schedule.
pub fn emit_cpu_training_part(
    module: &Module<'_>,
    spec: &ModelSpec,
    part: &ShardReport,
    together: Together,
) -> Result<Checked<TrainProgram>, PassError> {
    let mut host = train_module(module.op(), spec)?;
    let form = Form { stages: part.degrees.pipeline, chunks: part.way.chunks, micros: together.micros };
    let schedule =
        schedule(form, part.place.stage).map_err(|error| PassError::at(module.op(), error.to_string()))?;
    host.model.layers = part.layers.len() as u64;
    host.share = Some(TrainShare {
        tensor: Member { index: part.place.tensor, of: part.degrees.tensor },
        stage: Member { index: part.place.stage, of: part.degrees.pipeline },
        replicas: together.replicas,
        layers: part.layers.clone(),
        parts: part.parts.clone(),
        summed: part.summed.clone(),
        tied: part.tied.clone(),
        elsewhere: part.elsewhere.clone(),
        sharding: together.sharding,
        segments: Vec::new(),
        schedule,
    });
    emit_training(module, &host)
}

fn emit_training(module: &Module<'_>, host: &TrainModule) -> Result<Checked<TrainProgram>, PassError> {
    let program = lower_train(host).map_err(|error| {
        let name = match &error {
            LowerError::Unsupported { node, .. } => node.as_str(),
            LowerError::Graph(_) | LowerError::Faulty(_) => "",
        };
        let named = |op: &IrOp<'_>| op.place().node.is_some_and(|at| !name.is_empty() && at.ends_with(name));
        let at = module.op().walk().into_iter().find(named).unwrap_or(module.op());
        PassError::Refused(vec![diagnostic(at, error.to_string())])
    })?;
    program.check().map_err(|faults| PassError::at(module.op(), LowerError::Faulty(faults).to_string()))
}

fn train_module(module: IrOp<'_>, spec: &ModelSpec) -> Result<TrainModule, PassError> {
    let (functions, slots) = training_functions(module)?;
    Ok(TrainModule { model: sizes(spec), slots, functions, share: None })
}

/// Reads every function, main last; what layers keep is told from the ops that keep it and the repeats that call them.
///
/// # Errors
/// [`PassError::Refused`] for a module that is no training step of a model.
pub(crate) fn training_functions(module: IrOp<'_>) -> Result<(Vec<HostFunction>, Vec<Slot>), PassError> {
    let ops = module.functions();
    let main = ops.iter().position(|op| op.symbol_name() == Some("main"));
    let main = main.ok_or_else(|| PassError::at(module, "there is no function @main to begin with"))?;
    let order: Vec<IrOp<'_>> =
        ops.iter().enumerate().filter(|(at, _)| *at != main).map(|(_, op)| *op).chain([ops[main]]).collect();
    let symbols: Vec<String> =
        order.iter().map(|op| op.symbol_name().unwrap_or_default().to_string()).collect();
    let slots = slots(&order)?;
    let names: Vec<String> = slots.iter().map(|slot| slot.name.clone()).collect();
    let read = |op: &IrOp<'_>| host_function_of(*op, &symbols, &names);
    let functions: Vec<HostFunction> = order.iter().map(read).collect::<Result<_, _>>()?;
    Ok((functions, slots))
}

/// The slots that functions fill, in order.
fn slots(functions: &[IrOp<'_>]) -> Result<Vec<Slot>, PassError> {
    let repeats: Vec<IrOp<'_>> =
        functions.iter().flat_map(|f| f.walk()).filter(|op| op.is("nn.repeat")).collect();
    let number = |op: IrOp<'_>, name: &str| op.i64(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let mut slots = Vec::new();
    for function in functions {
        // A rank may run several ranges of its layers with one function.
        let calls = repeats.iter().filter(|op| op.symbol("body") == function.symbol_name());
        let call = calls.fold(None, |layers: Option<(u64, u64)>, op| {
            let (first, times) = (number(*op, "first"), number(*op, "times"));
            Some(layers.map_or((first, times), |(start, all)| (start.min(first), all + times)))
        });
        for save in function.walk().into_iter().filter(|op| op.is("nn.save")) {
            let ty = save.operand(0).and_then(|value| value.tensor());
            let (Some((first, times)), Some(ty)) = (call, ty) else {
                return Err(PassError::at(save, "keeps a value of a function that no layer is"));
            };
            let name = save.text("name").unwrap_or_default().to_string();
            slots.push(Slot { name, ty, first, times });
        }
    }
    Ok(slots)
}

/// The module as plain functions with their kernels: `@main` and the function that it repeats, with dimensions as bound.
///
/// # Errors
/// [`PassError::Refused`] for a module that is not that of a model.
pub fn read_host(module: &Module<'_>, spec: &ModelSpec) -> Result<HostModule, PassError> {
    let module = module.op();
    let main = module.lookup("main").filter(|op| op.is("func.func"));
    let main = main.ok_or_else(|| PassError::at(module, "there is no function @main to begin with"))?;
    let repeat = main.walk().into_iter().find(|op| op.is("nn.repeat"));
    let repeat = repeat.ok_or_else(|| PassError::at(main, "there are no layers to repeat"))?;
    let layer = repeat.symbol("body").and_then(|name| module.lookup(name));
    let layer = layer.ok_or_else(|| PassError::at(repeat, "the repeated function is not there"))?;
    Ok(HostModule {
        model: Sizes { layers: times(repeat), ..sizes(spec) },
        layer: host_function(layer)?,
        main: host_function(main)?,
        share: None,
    })
}

fn times(repeat: IrOp<'_>) -> u64 {
    repeat.i64("times").and_then(|times| u64::try_from(times).ok()).unwrap_or(0)
}

fn host_function(op: IrOp<'_>) -> Result<HostFunction, PassError> {
    host_function_of(op, &[], &[])
}

/// Reads a function; `symbols` are those that repeats may call, `slots` those that layers keep.
fn host_function_of(op: IrOp<'_>, symbols: &[String], slots: &[String]) -> Result<HostFunction, PassError> {
    let function = Function {
        name: op.symbol_name().unwrap_or_default().to_string(),
        per_layer: false,
        arguments: Vec::new(),
        values: Vec::new(),
        nodes: Vec::new(),
        results: Vec::new(),
    };
    let host = HostFunction { function, params: Vec::new(), kernels: Vec::new() };
    let mut reader = Reader { host, known: Vec::new(), names: BTreeSet::new(), symbols, slots };
    reader.function(op)?;
    Ok(reader.host)
}

struct Reader<'c, 's> {
    symbols: &'s [String],
    slots: &'s [String],
    host: HostFunction,
    known: Vec<(IrValue<'c>, ValueId)>,
    names: BTreeSet<String>,
}

impl<'c> Reader<'c, '_> {
    fn function(&mut self, op: IrOp<'c>) -> Result<(), PassError> {
        let Some(block) = op.region_block(0) else {
            return Err(PassError::at(op, "a function without a body"));
        };
        for argument in block.arguments() {
            match self.value(argument) {
                Some(id) => self.host.function.arguments.push(id),
                None => self.host.function.per_layer = true,
            }
        }
        for inner in block.ops() {
            match inner.name() {
                "nn.fused" => self.kernel(inner)?,
                "func.return" => self.host.function.results = self.ids(inner),
                _ => {
                    let node = self.node(inner)?;
                    if !inner.is("nn.param") {
                        self.host.kernels.push(vec![node]);
                    }
                }
            }
        }
        Ok(())
    }

    /// The ops of a region, in which arguments are what comes in and results what is yielded.
    fn kernel(&mut self, op: IrOp<'c>) -> Result<(), PassError> {
        let Some(block) = op.region_block(0) else {
            return Err(PassError::at(op, "a kernel without a body"));
        };
        for (outer, inner) in op.operands().into_iter().zip(block.arguments()) {
            self.known.extend(self.find(outer).map(|id| (inner, id)));
        }
        let mut nodes = Vec::new();
        for inner in block.ops() {
            match inner.is("nn.yield") {
                true => {
                    let yielded = self.ids(inner);
                    self.known.extend(op.results().into_iter().zip(yielded));
                }
                false => nodes.push(self.node(inner)?),
            }
        }
        self.host.kernels.push(nodes);
        Ok(())
    }

    fn node(&mut self, op: IrOp<'c>) -> Result<usize, PassError> {
        let kind = match op.name() {
            "nn.param" => {
                let name = op.text("name").unwrap_or_default().to_string();
                self.host.params.push(HostParam { name, scale: op.f64("scale").unwrap_or(1.0) });
                Op::Param { param: self.host.params.len() - 1 }
            }
            "nn.repeat" => self.repeat(op),
            "nn.save" => Op::Backward(Backward::Save { slot: self.slot(op)? }),
            "nn.saved" => Op::Backward(Backward::Saved { slot: self.slot(op)? }),
            "nn.gradient" => {
                let name = op.text("name").unwrap_or_default().to_string();
                self.host.params.push(HostParam { name, scale: 1.0 });
                Op::Backward(Backward::Gradient { param: self.host.params.len() - 1 })
            }
            _ => read_op(op).map_err(|what| PassError::at(op, what))?,
        };
        let inputs = self.ids(op);
        let located = op.place().node.filter(|node| !node.is_empty());
        let wanted = located.unwrap_or_else(|| kind.name().to_string());
        let name = self.unique(wanted.strip_prefix("layers.*.").unwrap_or(&wanted).to_string());
        let output = op.result(0).and_then(|result| self.value(result));
        let output = output.ok_or_else(|| PassError::at(op, format!("{} makes no tensor", op.name())))?;
        self.host.function.nodes.push(Node { name, op: kind, inputs, output });
        Ok(self.host.function.nodes.len() - 1)
    }

    fn repeat(&self, op: IrOp<'c>) -> Op {
        let body = op.symbol("body").unwrap_or_default();
        let function = self.symbols.iter().position(|name| name == body).unwrap_or(0);
        let first = op.i64("first").and_then(|first| u64::try_from(first).ok()).unwrap_or(0);
        Op::Repeat { function, first, times: times(op), reverse: op.flag("reverse") }
    }

    fn slot(&self, op: IrOp<'c>) -> Result<usize, PassError> {
        let name = op.text("name").unwrap_or_default();
        let found = self.slots.iter().position(|slot| slot == name);
        found.ok_or_else(|| PassError::at(op, format!("no layer keeps \"{name}\"")))
    }

    /// Adds a value; none for what is not a tensor (the layer's number).
    fn value(&mut self, value: IrValue<'c>) -> Option<ValueId> {
        let id = ValueId(self.host.function.values.len());
        self.host.function.values.push(Value { ty: value.tensor()? });
        self.known.push((value, id));
        Some(id)
    }

    fn find(&self, value: IrValue<'c>) -> Option<ValueId> {
        self.known.iter().find(|(known, _)| *known == value).map(|(_, id)| *id)
    }

    fn ids(&self, op: IrOp<'c>) -> Vec<ValueId> {
        op.operands().into_iter().filter_map(|value| self.find(value)).collect()
    }

    fn unique(&mut self, wanted: String) -> String {
        let free = (1..).map(|n| if n == 1 { wanted.clone() } else { format!("{wanted}.{n}") });
        let name = free.into_iter().find(|name| !self.names.contains(name)).unwrap_or(wanted);
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{host_graph, lower_unfused};
    use crate::{Fusion, Goal, Mup, Watch, pipeline::pipeline, run};
    use lapidary_ir::{IrContext, import::import};
    use lapidary_runtime_cpu::program::{Step, WeightType};

    const OPTIONS: Options = Options::all(WeightType::Bf16);

    fn emitted(name: &str, fusion: Fusion) -> CpuProgram {
        let spec = lapidary_models::builtin(name).expect("a built-in model");
        let cx = IrContext::new();
        let mut module = import(&cx, &host_graph(&spec).expect("a graph")).expect("imports");
        let passes = pipeline(Goal::Cpu, Mup::Fold, &fusion).expect("a pipeline");
        run(&mut module, &passes, Watch::default()).expect("runs");
        emit_cpu(&module, &spec, &OPTIONS).expect("a host program")
    }

    fn layer(program: &CpuProgram) -> Vec<&str> {
        let body = program.body.iter().find_map(|step| match step {
            Step::Repeat { body, .. } => Some(body),
            _ => None,
        });
        body.expect("layers").iter().map(Step::name).collect()
    }

    #[test]
    fn fused_layers_are_a_few_steps() {
        for name in ["amber", "crystalcoder"] {
            let program = emitted(name, Fusion::On);
            assert!(layer(&program).len() <= 7, "{name}: {:?}", layer(&program));
            assert_eq!(program.model.layers, 32);
        }
    }

    #[test]
    fn a_module_without_fusion_is_the_plain_program() {
        let spec = lapidary_models::builtin("amber").expect("a built-in model");
        let plain = lower_unfused(&spec, &OPTIONS).expect("a host program");
        assert_eq!(layer(&emitted("amber", Fusion::Off)), layer(&plain));
    }
}
