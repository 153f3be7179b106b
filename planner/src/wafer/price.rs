//! Time of a step on wafers, as named terms: every op of the differentiated graph by the closed form of its kernel.
//!
//! Weight streaming: the weights of an op enter while it computes, gradients leave while theirs are made, over links
//! that carry both ways at once; what takes longer is waited for, op by op, since nothing on the wafer holds weights in
//! advance. Layer-pipelined: every layer owns a rectangle in proportion to its work, so one micro-batch takes each
//! stage as long as all rows that hold no weights would take for all of it.

use super::memory::{CODE_BYTES, SERVER_BYTES};
use super::ops::{Kernel, WaferOp};
use super::{REPLICAS, WaferCase};
use crate::assumption::Assumption;
use crate::cost::{Bound, Cost};
use crate::plan::{Recompute, WaferMode};
use indexmap::IndexMap;
use lapidary_hardware::price::wafer::{FUNCTION_CYCLES, Rates, ingress};
use lapidary_hardware::{Bytes, Seconds};
use lapidary_models::autodiff::work::Phase;

/// The least time between a matrix that streams past and the next one, in seconds: programs, routes and first words of
/// what comes. No figure is printed; fitted on the two rows whose batch is too small for anything else to bind
/// (usc_bert-b-128_128 and usc_bert-l-128_128 of `wafer-training.csv`: 12 and 24 layers of 18 matrices each way and back
/// in 56 and 123 ms).
pub const MATRIX_FLOOR: f64 = 0.272e-3;

/// Bytes of a value of the residual stream that leaves the wafer and comes back.
const VALUE_BYTES: f64 = 2.0;

/// One op with its time.
#[derive(Clone, Copy, Debug)]
pub struct Priced<'a> {
    /// The op.
    pub op: &'a WaferOp,
    /// Cycles of this compiler's kernel.
    pub cycles: f64,
    /// Time on the wafer, by the release's kernels.
    pub computes: Seconds,
    /// What its weights or gradients are behind that.
    pub waits: Seconds,
    /// Time of its weights on the links.
    pub enters: Seconds,
}

/// The ops of a layer and of the ends for one micro-batch, priced.
pub fn ops<'a>(case: &WaferCase<'a>) -> (Vec<Priced<'a>>, Vec<Priced<'a>>) {
    let work = case.work;
    let ops = if case.plan.recompute == Recompute::Full { &work.again } else { &work.keeping };
    let price = |ops: &'a [WaferOp]| ops.iter().map(|op| priced(case, op)).collect();
    (price(&ops.layer), price(&ops.ends))
}

fn priced<'a>(case: &WaferCase<'_>, op: &'a WaferOp) -> Priced<'a> {
    let rates = Rates::of(case.wafer, true);
    let cycles = rates.map_or(f64::INFINITY, |rates| op.kernel.cycles(&rates, &case.area(), &case.heads()));
    let computes = Seconds(cycles * case.release.factor / case.wafer.clock().0);
    let waits = match case.plan.mode {
        WaferMode::WeightStreaming => links(case, op.weights.max(op.gradients)) - computes,
        WaferMode::LayerPipelined => Seconds::ZERO,
    };
    Priced { op, cycles, computes, waits: waits.max(Seconds::ZERO), enters: links(case, op.weights) }
}

/// Time for parameters to enter, or their gradients to leave: by a system's own links, or by its share of the tree that
/// carries them to and from all systems, whichever takes longer.
fn links(case: &WaferCase<'_>, parameters: f64) -> Seconds {
    let own = bytes_in(case, parameters * per_parameter(case));
    Seconds(own.0.max(carried(case, parameters).0))
}

fn per_parameter(case: &WaferCase<'_>) -> f64 {
    case.machine.weight_server.as_ref().map_or(4.0, |server| server.bytes_per_parameter.0)
}

/// Time of parameters on the tree, which all systems share.
fn carried(case: &WaferCase<'_>, parameters: f64) -> Seconds {
    let bytes = parameters * per_parameter(case) * case.plan.systems as f64;
    Seconds(case.machine.weight_server.as_ref().map_or(0.0, |server| bytes / server.tree_bandwidth.0))
}

/// Why a system waits for weights: its own links, or the tree.
fn waits_for(case: &WaferCase<'_>) -> (&'static str, Bound) {
    match carried(case, 1.0).0 > bytes_in(case, per_parameter(case)).0 {
        true => ("tree_wait", Bound::Network),
        false => ("ingress_wait", Bound::Ingress),
    }
}

fn bytes_in(case: &WaferCase<'_>, bytes: f64) -> Seconds {
    case.wafer.ingress.as_ref().map_or(Seconds::ZERO, |links| ingress(links, Bytes(bytes)))
}

/// The term that an op counts to.
fn term(op: &WaferOp) -> &'static str {
    let backward = op.phase == Phase::Backward;
    match op.kernel {
        _ if op.phase == Phase::Recompute => "recompute",
        Kernel::Linear { .. } if backward => "linear_dx",
        Kernel::Linear { .. } => "linear",
        Kernel::Outer { .. } => "linear_dw",
        Kernel::Attention { backward: true } => "attention_backward",
        Kernel::Attention { .. } => "attention",
        _ if backward => "vector_backward",
        _ => "vector",
    }
}

/// Terms of arithmetic, in the order of the table.
const TERMS: [&str; 8] = [
    "linear",
    "attention",
    "vector",
    "linear_dx",
    "linear_dw",
    "attention_backward",
    "vector_backward",
    "recompute",
];

/// Time of a step.
pub fn step(case: &WaferCase<'_>) -> Cost {
    let micro_batches = case.plan.accumulation as f64;
    let layers = case.model.n_layers as f64;
    let (layer, ends) = ops(case);
    let mut terms: IndexMap<&'static str, (Bound, Seconds)> =
        TERMS.into_iter().map(|name| (name, (Bound::Compute, Seconds::ZERO))).collect();
    let mut add = |name: &'static str, bound: Bound, time: Seconds| {
        terms.entry(name).or_insert((bound, Seconds::ZERO)).1 += time * micro_batches;
    };
    for (ops, times) in [(&layer, layers), (&ends, 1.0)] {
        for priced in ops.iter() {
            add(term(priced.op), Bound::Compute, priced.computes * times);
        }
    }
    let forward = pass(&layer, |phase| phase == Phase::Forward);
    let backward = pass(&layer, |phase| phase != Phase::Forward);
    add("recompute", Bound::Compute, forward.computes * (reruns(case) * layers));
    match case.plan.mode {
        WaferMode::WeightStreaming => {
            let passes = [(&forward, layers * (1.0 + reruns(case))), (&backward, layers)];
            let of_ends: Seconds = ends.iter().map(|priced| priced.waits).sum();
            let waits: Seconds = passes.iter().map(|(pass, times)| pass.waits * *times).sum();
            let kept: Seconds = passes.iter().map(|(pass, _)| pass.behind(kept_outside(case)) * layers).sum();
            // The hosts turn to the next micro-batch while matrices are switched.
            let switches: Seconds = passes.iter().map(|(pass, times)| pass.switches * *times).sum();
            let (name, bound) = waits_for(case);
            add(name, bound, waits + of_ends + kept);
            add("matrix_switch", Bound::Host, switches.max(case.release.turn));
        }
        WaferMode::LayerPipelined => {
            let busy: Seconds = terms.values().map(|(_, seconds)| *seconds).sum();
            let one = busy / micro_batches;
            terms.insert("pipeline_fill", (Bound::Pipeline, one * (layers - 1.0) / layers));
            terms.insert("gradient_exchange", (Bound::Ingress, exchange(case)));
        }
    }
    Cost { terms }
}

/// Ops of a layer that run one behind the other.
struct Pass {
    computes: Seconds,
    waits: Seconds,
    /// What its weights take on the links.
    weights: Seconds,
    /// What its matrices wait for programs and routes, where they are too fast for these.
    switches: Seconds,
}

impl Pass {
    /// By how much the links are behind with these bytes beside the weights.
    fn behind(&self, more: Seconds) -> Seconds {
        (self.weights + more - self.computes - self.waits).max(Seconds::ZERO)
    }
}

fn pass(layer: &[Priced<'_>], of: impl Fn(Phase) -> bool) -> Pass {
    let ops = || layer.iter().filter(|priced| of(priced.op.phase));
    Pass {
        computes: ops().map(|priced| priced.computes).sum(),
        waits: ops().map(|priced| priced.waits).sum(),
        weights: ops().map(|priced| priced.enters).sum(),
        switches: switches(ops()),
    }
}

/// What matrices wait for one another: each takes its floor at least, in which the ops that run before it without
/// a matrix of their own are done as well.
fn switches<'a, 'b: 'a>(ops: impl Iterator<Item = &'a Priced<'b>>) -> Seconds {
    let mut since = Seconds::ZERO;
    let mut waited = Seconds::ZERO;
    for priced in ops {
        since += priced.computes + priced.waits;
        if matches!(priced.op.kernel, Kernel::Linear { .. } | Kernel::Outer { .. }) {
            waited += (Seconds(MATRIX_FLOOR) - since).max(Seconds::ZERO);
            since = Seconds::ZERO;
        }
    }
    waited
}

/// Time on the links of a layer's kept input, where it leaves the wafer.
fn kept_outside(case: &WaferCase<'_>) -> Seconds {
    if !case.plan.outside {
        return Seconds::ZERO;
    }
    let tokens = (case.plan.micro_batch * case.batch.seq_len) as f64;
    bytes_in(case, tokens * case.model.d_model as f64 * VALUE_BYTES)
}

/// Share of the step in which the wafer computes.
pub fn busy_share(cost: &Cost) -> f64 {
    let busy = cost.terms.values().filter(|(bound, _)| *bound == Bound::Compute).map(|(_, s)| *s);
    busy.sum::<Seconds>() / cost.time()
}

/// Forward passes of a layer beside the first one and the one within the backward pass: where only every n-th input is
/// kept, from the kept input of its segment for all but the first layer of each.
fn reruns(case: &WaferCase<'_>) -> f64 {
    match case.plan.recompute {
        Recompute::Full => 1.0 - 1.0 / case.plan.checkpoint_every as f64,
        Recompute::None | Recompute::Selective => 0.0,
    }
}

/// Gradients leave and updated weights enter once a step; one system keeps both.
fn exchange(case: &WaferCase<'_>) -> Seconds {
    if case.plan.systems == 1 {
        return Seconds::ZERO;
    }
    links(case, case.work.parameters) * 2.0
}

/// What prices of wafer plans take for granted, beside the machine's own numbers.
pub fn assumptions() -> Vec<Assumption> {
    let forms = "closed forms of this compiler's kernels, op by op of the differentiated graph";
    let functions = "assumed: no figure is printed for exp; log, sqrt and the like beside it";
    let floor =
        "fitted on usc_bert-b-128_128 and usc_bert-l-128_128 of wafer-training.csv (arXiv 2409.00287)";
    let replicas = "assumed: the fan-out of a weight; rows of narrow models in wafer-training.csv agree";
    let overlap = "an op's weights enter, its gradients leave while it computes; none are held in advance";
    let optimizer = "assumed: MemoryX updates a weight at the rate at which its gradient arrives";
    let tree = "assumed: SwarmX broadcasts and sums at the rate of a system's links";
    let outside =
        "activation servers take kept inputs over the same links (ALCF user guides, ai-testbed/cerebras)";
    let code = "assumed, as by the placer";
    let server = "weight, gradient and both moments in 32 bits";
    vec![
        Assumption::new("kernel-overlap", 0.0, "ratio", forms),
        Assumption::new("exp-cycles", f64::from(FUNCTION_CYCLES.exp), "cycles/element", functions),
        Assumption::new("matrix-floor", MATRIX_FLOOR, "s/matrix", floor),
        Assumption::new("replicas", REPLICAS[REPLICAS.len() - 1] as f64, "count", replicas),
        Assumption::new("ingress-overlap", 1.0, "ratio", overlap),
        Assumption::new("optimizer-overlap", 1.0, "ratio", optimizer),
        Assumption::new("swarmx-overlap", 1.0, "ratio", tree),
        Assumption::new("kept-outside", 1.0, "ratio", outside),
        Assumption::new("code-bytes", CODE_BYTES, "B/PE", code),
        Assumption::new("weight-server-bytes", SERVER_BYTES, "B/parameter", server),
    ]
}
