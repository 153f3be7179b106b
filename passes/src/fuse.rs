//! Groups ops into kernels: every op ends up in exactly one `nn.fused`, next to parameters and repeats.
//!
//! before: %p = nn.linear %x, %w; %y = nn.add %p, %r
//! after:  %y = nn.fused "attn.out" matmul(%x, %w, %r) { linear; add; yield } saved_bytes = .. reason = ".."
//!
//! What joins what is decided by [`crate::fusion`]; this file reads functions and writes regions.
//! Leaves alone: functions that hold an `nn.fused` already.

use crate::fusion::traffic::{Set, reads};
use crate::fusion::{FusionPlan, Region, Rules, Step, flow::Flow, plan};
use crate::pass::{Changed, Pass, PassCx, PassError};
use crate::report::{FusionReport, RegionReport};
use crate::view::{FunctionView, ModuleView};
use lapidary_ir::{At, New, Op as IrOp, Value as IrValue};
use lapidary_models::op::Backward;
use lapidary_models::{Op, ValueId};
use std::collections::BTreeMap;

/// The pass. Options: `only=RULE,..`, `without=RULE,..`, `off`.
pub struct Fuse {
    /// Rules that are on.
    pub rules: Rules,
}

impl Pass for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn summary(&self) -> &'static str {
        "group ops into kernels, each with the reason and the bytes it saves"
    }

    fn run(&self, module: IrOp<'_>, cx: &PassCx) -> Result<Changed, PassError> {
        if module.walk().iter().any(|op| op.is("nn.fused")) {
            return Ok(Changed::No);
        }
        let view = ModuleView::read(module)?;
        let plans: Vec<FusionPlan> = view.functions.iter().map(|f| plan(&f.function, &self.rules)).collect();
        let report = report(&view, &plans);
        for (function, plan) in view.functions.iter().zip(&plans) {
            write(function, plan)?;
        }
        let changed = Changed::when(!report.regions.is_empty());
        cx.with(|notes| notes.fusion = Some(report));
        Ok(changed)
    }
}

/// Rebuilds the body behind what is there, then erases the old ops.
fn write<'c>(view: &FunctionView<'c>, plan: &FusionPlan) -> Result<(), PassError> {
    let Some(end) = view.op.region_block(0).and_then(|block| block.terminator()) else { return Ok(()) };
    let flow = Flow::new(&view.function);
    let mut known: BTreeMap<ValueId, IrValue<'c>> =
        view.function.arguments.iter().map(|id| (*id, view.values[id.0])).collect();
    for step in &plan.steps {
        match step {
            Step::Keep(n) => keep(view, *n, end, &mut known),
            Step::Region(region) => fused((view, &flow), &plan.regions[*region], end, &mut known)?,
        }
    }
    let results: Vec<IrValue<'c>> =
        view.function.results.iter().filter_map(|id| known.get(id).copied()).collect();
    end.set_operands(&results);
    for op in view.ops.iter().rev().filter(|op| !op.is("nn.param")) {
        op.erase()?;
    }
    Ok(())
}

fn keep<'c>(view: &FunctionView<'c>, n: usize, end: IrOp<'c>, known: &mut BTreeMap<ValueId, IrValue<'c>>) {
    let (node, op) = (&view.function.nodes[n], view.ops[n]);
    let kept = match node.op {
        Op::Param { .. } => Some(view.values[node.output.0]),
        _ => At::before(end).located(op.location()).copy(op, &mapped(view, op, known)).result(0),
    };
    known.extend(kept.map(|value| (node.output, value)));
}

/// The operands of an operation, each replaced by what is known for it.
fn mapped<'c>(
    view: &FunctionView<'c>,
    op: IrOp<'c>,
    known: &BTreeMap<ValueId, IrValue<'c>>,
) -> Vec<IrValue<'c>> {
    let replace =
        |value: IrValue<'c>| view.find(value).and_then(|id| known.get(&id).copied()).unwrap_or(value);
    op.operands().into_iter().map(replace).collect()
}

/// Puts one region in front of the terminator.
fn fused<'c>(
    (view, flow): (&FunctionView<'c>, &Flow),
    region: &Region,
    end: IrOp<'c>,
    known: &mut BTreeMap<ValueId, IrValue<'c>>,
) -> Result<(), PassError> {
    let cx = end.context();
    let nodes: Set = region.nodes.iter().copied().collect();
    let inputs = inputs(view, flow, &nodes);
    let outputs: Vec<ValueId> = region
        .nodes
        .iter()
        .map(|n| view.function.nodes[*n].output)
        .filter(|v| leaves(flow, *v, &nodes))
        .collect();
    let operands: Vec<IrValue<'c>> = inputs
        .iter()
        .map(|value| view.find(*value).and_then(|id| known.get(&id).copied()).unwrap_or(*value))
        .collect();
    let results: Vec<_> = outputs.iter().map(|id| view.values[id.0].ty()).collect();
    let first = region.nodes.first().map_or(end, |n| view.ops[*n]);
    let new = New::of("nn.fused", &results)
        .reads(&operands)
        .with("name", cx.text(&region.name))
        .with("anchor", cx.parse_attribute(&format!("#nn<anchor {}>", region.anchor.name()))?)
        .with("saved_bytes", cx.i64(i64::try_from(region.saved_bytes()).unwrap_or(i64::MAX)))
        .with("reason", cx.text(&region.reason))
        .regions(1);
    let op = At::before(end).located(first.location()).create(&new)?;
    body(view, region, op, &inputs, &outputs)?;
    known.extend(outputs.iter().copied().zip(op.results()));
    Ok(())
}

/// Values from outside, each once, in the order in which ops read them; the layer's number among them.
fn inputs<'c>(view: &FunctionView<'c>, flow: &Flow, nodes: &Set) -> Vec<IrValue<'c>> {
    let outside = reads(flow, nodes);
    let mut found: Vec<IrValue<'c>> = Vec::new();
    for value in nodes.iter().flat_map(|n| view.ops[*n].operands()) {
        let read = view.find(value).is_none_or(|id| outside.contains_key(&id));
        if read && !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// A value leaves when somebody outside needs it; caches and gradients always do, since writing them is the point.
fn leaves(flow: &Flow, value: ValueId, nodes: &Set) -> bool {
    let stores = |op: &Op| matches!(op, Op::KvAppend { .. } | Op::Backward(Backward::Gradient { .. }));
    let stored = flow.maker(value).is_some_and(|n| stores(flow.op(n)));
    stored || flow.escapes(value, nodes)
}

fn body<'c>(
    view: &FunctionView<'c>,
    region: &Region,
    op: IrOp<'c>,
    inputs: &[IrValue<'c>],
    outputs: &[ValueId],
) -> Result<(), PassError> {
    let types: Vec<_> = inputs.iter().map(|value| value.ty()).collect();
    let Some(block) = op.add_block(0, &types) else { return Ok(()) };
    let mut inside: Vec<(IrValue<'c>, IrValue<'c>)> = inputs.iter().copied().zip(block.arguments()).collect();
    let look = |inside: &[(IrValue<'c>, IrValue<'c>)], value: IrValue<'c>| {
        inside.iter().find(|(outer, _)| *outer == value).map_or(value, |(_, inner)| *inner)
    };
    for n in &region.nodes {
        let old = view.ops[*n];
        let operands: Vec<IrValue<'c>> =
            old.operands().into_iter().map(|value| look(&inside, value)).collect();
        let copy = At::end_of(block).located(old.location()).copy(old, &operands);
        inside.extend(old.results().into_iter().zip(copy.results()));
    }
    let yields: Vec<IrValue<'c>> = outputs.iter().map(|id| look(&inside, view.values[id.0])).collect();
    At::end_of(block).located(op.location()).create(&New::of("nn.yield", &[]).reads(&yields))?;
    Ok(())
}

fn report(view: &ModuleView<'_>, plans: &[FusionPlan]) -> FusionReport {
    let times = times(view);
    let mut report = FusionReport::default();
    for ((function, plan), times) in view.functions.iter().zip(plans).zip(times) {
        let name = &function.function.name;
        for region in &plan.regions {
            report.bytes_before =
                report.bytes_before.saturating_add(region.bytes_before.saturating_mul(times));
            report.bytes_after = report.bytes_after.saturating_add(region.bytes_after.saturating_mul(times));
            report.regions.push(region_report(function, region, times));
        }
        report.merges.extend(plan.merges.iter().map(|merge| (name.clone(), merge.clone())));
        report.refusals.extend(plan.refusals.iter().map(|refusal| (name.clone(), refusal.clone())));
    }
    report
}

fn region_report(function: &FunctionView<'_>, region: &Region, times: u64) -> RegionReport {
    RegionReport {
        name: region.name.clone(),
        function: function.function.name.clone(),
        times,
        anchor: region.anchor.name(),
        ops: region.nodes.iter().map(|n| function.function.nodes[*n].name.clone()).collect(),
        bytes_before: region.bytes_before,
        bytes_after: region.bytes_after,
        reason: region.reason.clone(),
    }
}

/// How often each function runs in one run of the module: repeated ones as often as repeats say, others once.
fn times(view: &ModuleView<'_>) -> Vec<u64> {
    let repeats = |wanted: usize| {
        let all = view.functions.iter().flat_map(|f| &f.function.nodes);
        all.filter_map(move |node| match node.op {
            Op::Repeat { function, times, .. } if function == wanted => Some(times),
            _ => None,
        })
        .fold(0, u64::saturating_add)
    };
    (0..view.functions.len())
        .map(|f| if view.functions[f].function.per_layer { repeats(f) } else { 1 })
        .collect()
}
