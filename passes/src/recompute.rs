//! Keeps less for the backward pass of a training step and computes the rest again, by a policy.
//!
//! before: @layer saves 13 values, @layer_backward reads them
//! after:  @layer saves what the policy keeps, @layer_backward makes the others again from it
//!
//! The rewrite itself is [`lapidary_models::autodiff::recompute`], on the graph that the functions are read back to; its
//! report, with the price of every choice, leaves through the notes. Leaves alone: nothing; a module that is no training
//! step as the import makes it is refused.

use crate::cpu::HostFunction;
use crate::lower_to_cpu::training_functions;
use crate::pass::{Changed, Pass, PassCx, PassError, diagnostic};
use lapidary_ir::{Op as IrOp, import};
use lapidary_models::autodiff::{Policy, Recompute, recompute};
use lapidary_models::graph::Slot;
use lapidary_models::op::Backward;
use lapidary_models::{Dims, Function, Graph, Mode, Op, Param};

/// The pass. Option: `policy=none|selective|full`; selective without one.
pub struct RecomputePass {
    policy: Recompute,
}

impl RecomputePass {
    /// The pass with its options.
    ///
    /// # Errors
    /// A sentence about an option or a policy that does not exist.
    pub fn of(options: &[(String, String)]) -> Result<RecomputePass, String> {
        let mut pass = RecomputePass { policy: Recompute::Selective };
        for (key, value) in options {
            let found = Recompute::ALL.into_iter().find(|policy| key == "policy" && policy.name() == value);
            let wrong = || format!("recompute takes policy=none|selective|full, not `{key}={value}`");
            pass.policy = found.ok_or_else(wrong)?;
        }
        Ok(pass)
    }
}

impl Pass for RecomputePass {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn summary(&self) -> &'static str {
        "keep less for the backward pass and compute the rest again"
    }

    fn run(&self, module: IrOp<'_>, cx: &PassCx) -> Result<Changed, PassError> {
        let refused = |error: lapidary_models::GraphError| PassError::at(module, error.to_string());
        let before = training_graph(module)?;
        let (after, report) = recompute(&before, &Policy::Uniform(self.policy)).map_err(refused)?;
        report.segments.iter().for_each(|segment| {
            let last = segment.first + segment.times.saturating_sub(1);
            cx.note(format!(
                "layers {} to {last}, {}: {}",
                segment.first,
                segment.policy.name(),
                segment.reason
            ));
        });
        cx.with(|notes| notes.recompute = Some(report));
        let Some(body) = module.region_block(0) else { return Ok(Changed::No) };
        // Main calls the others, so it goes first.
        module.functions().into_iter().rev().try_for_each(IrOp::erase)?;
        import::functions(body, &after)?;
        Ok(Changed::when(after.functions != before.functions))
    }
}

/// The graph that a training module was imported from.
///
/// # Errors
/// [`PassError::Refused`] for a module that is no training step.
pub(crate) fn training_graph(module: IrOp<'_>) -> Result<Graph, PassError> {
    if !module.walk().iter().any(|op| op.is("nn.gradient")) {
        return Err(PassError::at(module, "only a training step has something to compute again"));
    }
    let (hosts, slots) = training_functions(module)?;
    let number = |name: &str| module.i64(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let mut graph = Graph {
        name: module.text("nn.model").unwrap_or("module").to_string(),
        mode: Mode::Train,
        dims: Dims { batch: number("nn.batch"), seq: number("nn.seq"), cached: number("nn.cached") },
        n_layers: layers(&slots),
        params: Vec::new(),
        slots,
        functions: Vec::new(),
    };
    for host in hosts {
        let function = shared(host, &mut graph.params);
        graph.functions.push(function);
    }
    match graph.check() {
        Ok(()) => Ok(graph),
        Err(faults) => Err(PassError::Refused(
            faults.iter().map(|fault| diagnostic(module, fault.to_string())).collect(),
        )),
    }
}

fn layers(slots: &[Slot]) -> u64 {
    slots.iter().map(|slot| slot.first + slot.times).max().unwrap_or(0)
}

/// The function with indices into the parameters of the whole graph, to which it adds its own.
fn shared(host: HostFunction, params: &mut Vec<Param>) -> Function {
    let HostFunction { mut function, params: own, .. } = host;
    for at in 0..function.nodes.len() {
        let ty = function.ty(function.nodes[at].output).clone();
        let mut place = |param: usize| {
            let name = &own[param].name;
            params.iter().position(|known| known.name == *name).unwrap_or_else(|| {
                params.push(Param { name: name.clone(), per_layer: name.contains('*'), ty: ty.clone() });
                params.len() - 1
            })
        };
        match &mut function.nodes[at].op {
            Op::Param { param } | Op::Backward(Backward::Gradient { param }) => *param = place(*param),
            _ => {}
        }
    }
    function
}
