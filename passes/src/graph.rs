//! A module as one graph, for rewrites that are made on graphs and imported again.

use crate::pass::{PassError, diagnostic};
use crate::view::{FunctionView, ModuleView};
use lapidary_ir::Op as IrOp;
use lapidary_models::{Dims, Function, Graph, Mode, Op, Param};
use std::collections::BTreeMap;

/// A graph and what it does not hold of its module.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The functions, main last.
    pub graph: Graph,
    /// Load-time factors of parameters other than 1, by canonical name.
    pub scales: BTreeMap<String, f64>,
}

/// Reads a forward, prefill or decode module.
///
/// # Errors
/// [`PassError::Refused`] for a module that is no model's, contradicts itself, or reads a parameter with two factors.
pub fn read(module: IrOp<'_>) -> Result<Read, PassError> {
    let ModuleView { mut functions } = ModuleView::read(module)?;
    let main = functions.iter().position(|f| f.function.name == "main");
    let main = main.ok_or_else(|| PassError::at(module, "there is no function @main to begin with"))?;
    let last = functions.len() - 1;
    functions.swap(main, last);
    let moved = |function: usize| match function {
        at if at == main => last,
        at if at == last => main,
        at => at,
    };
    let number = |name: &str| module.i64(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let mut read = Read {
        graph: Graph {
            name: module.text("nn.model").unwrap_or("module").to_string(),
            mode: mode(module),
            dims: Dims { batch: number("nn.batch"), seq: number("nn.seq"), cached: number("nn.cached") },
            n_layers: 0,
            params: Vec::new(),
            slots: Vec::new(),
            functions: Vec::new(),
        },
        scales: BTreeMap::new(),
    };
    for view in functions {
        let function = read.function(view, &moved)?;
        read.graph.functions.push(function);
    }
    match read.graph.check() {
        Ok(()) => Ok(read),
        Err(faults) => Err(PassError::Refused(
            faults.iter().map(|fault| diagnostic(module, fault.to_string())).collect(),
        )),
    }
}

fn mode(module: IrOp<'_>) -> Mode {
    let modes = [Mode::Forward, Mode::Prefill, Mode::Decode, Mode::Train];
    modes.into_iter().find(|mode| module.text("nn.mode") == Some(mode.name())).unwrap_or(Mode::Forward)
}

impl Read {
    /// The function with indices into the parameters of the whole graph, to which it adds its own.
    fn function(
        &mut self,
        view: FunctionView<'_>,
        moved: &impl Fn(usize) -> usize,
    ) -> Result<Function, PassError> {
        let FunctionView { mut function, params, ops, .. } = view;
        for (at, op) in ops.into_iter().enumerate() {
            let ty = function.ty(function.nodes[at].output).clone();
            match &mut function.nodes[at].op {
                Op::Param { param } => {
                    let own = &params[*param];
                    let known = self.graph.params.iter().position(|known| known.name == own.name);
                    let factor = *self.scales.entry(own.name.clone()).or_insert(own.scale);
                    if factor != own.scale {
                        let why = format!("{} is read with the factors {factor} and {}", own.name, own.scale);
                        return Err(PassError::at(op, why));
                    }
                    *param = known.unwrap_or_else(|| {
                        let per_layer = own.name.contains('*');
                        self.graph.params.push(Param { name: own.name.clone(), ty, per_layer });
                        self.graph.params.len() - 1
                    });
                }
                Op::Repeat { function, first, times, .. } => {
                    *function = moved(*function);
                    self.graph.n_layers = self.graph.n_layers.max(first.saturating_add(*times));
                }
                _ => {}
            }
        }
        Ok(function)
    }
}
