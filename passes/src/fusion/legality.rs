//! When a set of ops can be one kernel, and which.
//!
//! A kernel has at most one anchor, which gives it its loop:
//!
//! - *elementwise*: every op is pointwise over one shape;
//! - *row*: pointwise ops and reductions over the same rows;
//! - *gather*: a lookup that makes rows, and pointwise or row ops over them;
//! - *matmul*: contractions that share their left operand, pointwise ops behind them, nothing before them. The tile that a block computes holds part of a row, so no reduction over rows fits behind;
//! - *attention*: `values` behind `softmax`, behind pointwise ops, behind `scores`: softmax over the axis that
//!   the next contraction sums has a streaming form, so no row of scores is ever whole.
//!
//! Cache stores may end a kernel of any kind. The rules judge a set, not the way it grew.

use crate::fusion::class::{Class, class, is_table};
use crate::fusion::flow::Flow;
use crate::fusion::traffic::Set;
use lapidary_models::op::Backward;
use lapidary_models::{Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// The op that gives a kernel its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anchor {
    /// One contraction, or several over one left operand.
    Matmul,
    /// Softmax and the contractions around it.
    Attention,
    /// A reduction over rows.
    Row,
    /// Pointwise ops.
    Elementwise,
    /// A lookup.
    Gather,
}

impl Anchor {
    /// The name as the IR writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Anchor::Matmul => "matmul",
            Anchor::Attention => "attention",
            Anchor::Row => "row",
            Anchor::Elementwise => "elementwise",
            Anchor::Gather => "gather",
        }
    }
}

/// Columns of the largest tile that a matmul kernel computes at once, in elements.
/// 128 x 128 x 32 fills the registers of one A100 block (the tile family of the kernels in `passes/src/cuda`).
pub const TILE_COLUMNS: u64 = 128;

/// The kernel that a set of ops forms.
///
/// # Errors
/// A sentence that says why the set is no kernel.
pub fn kernel(flow: &Flow, nodes: &Set) -> Result<Anchor, String> {
    if nodes.len() == 1 {
        return nodes.iter().next().map_or(Err("no op".into()), |n| Ok(alone(flow.op(*n))));
    }
    if let Some(core) = flow.cores.iter().find(|core| !core.nodes.is_disjoint(nodes)) {
        return match core.nodes == *nodes {
            true => Ok(Anchor::Attention),
            false => Err("the backward pass of attention streams as a whole and nothing else".into()),
        };
    }
    if let Some(n) = nodes.iter().find(|n| class(flow.op(**n)) == Class::Alone) {
        return accumulated(flow, nodes).ok_or_else(|| {
            format!("{} sums over all rows or into a buffer: it stands alone", flow.node(*n).name)
        });
    }
    tables_are_whole(flow, nodes)?;
    stores_are_last(flow, nodes)?;
    let of_class = |wanted| nodes.iter().copied().filter(move |n| class(flow.op(*n)) == wanted);
    let contractions: Vec<usize> = of_class(Class::Contraction).collect();
    let softmax = nodes.iter().any(|n| *flow.op(*n) == Op::Softmax);
    match contractions.as_slice() {
        [] => rows(flow, nodes),
        _ if softmax => attention(flow, nodes, &contractions),
        _ => matmul(flow, nodes, &contractions),
    }
}

/// A product, sum or scatter that adds straight into the gradient behind it; a column sum, into every gradient behind it.
fn accumulated(flow: &Flow, nodes: &Set) -> Option<Anchor> {
    let first = *nodes.first()?;
    let takes = |n: &usize| {
        matches!(flow.op(*n), Op::Backward(Backward::Gradient { .. }))
            && flow.node(*n).inputs == [flow.node(first).output]
    };
    let several = matches!(flow.op(first), Op::Backward(Backward::ColumnSum));
    let adds = nodes.iter().skip(1).all(takes) && (several || nodes.len() == 2);
    (adds && class(flow.op(first)) == Class::Alone).then(|| alone(flow.op(first)))
}

/// The kernel of a single op.
pub fn alone(op: &Op) -> Anchor {
    match class(op) {
        Class::Contraction => Anchor::Matmul,
        Class::Row => Anchor::Row,
        Class::Gather => Anchor::Gather,
        Class::Alone if matches!(op, Op::Backward(Backward::LinearDw | Backward::ValuesDv { .. })) => {
            Anchor::Matmul
        }
        Class::Alone
            if matches!(
                op,
                Op::Backward(Backward::ColumnSum | Backward::NormDw { .. } | Backward::CrossEntropy)
            ) =>
        {
            Anchor::Row
        }
        Class::Elementwise | Class::Store | Class::Alone | Class::Outside => Anchor::Elementwise,
    }
}

/// Vectors and tables that all rows share must be complete before a kernel starts.
fn tables_are_whole(flow: &Flow, nodes: &Set) -> Result<(), String> {
    for (n, operand) in nodes.iter().flat_map(|n| (0..flow.node(*n).inputs.len()).map(move |i| (*n, i))) {
        let node = flow.node(n);
        if is_table(&node.op, operand) && flow.made_in(node.inputs[operand], nodes) {
            let maker = flow.maker(node.inputs[operand]).map_or("?", |m| &flow.node(m).name);
            return Err(format!("every block of {} needs all of {maker}", node.name));
        }
    }
    Ok(())
}

/// A kernel may store cache rows, but nobody inside may read the cache: its older rows come from memory.
fn stores_are_last(flow: &Flow, nodes: &Set) -> Result<(), String> {
    let read_inside = |n: &usize| {
        matches!(flow.op(*n), Op::KvAppend { .. })
            && flow.users(flow.node(*n).output).iter().any(|user| nodes.contains(user))
    };
    match nodes.iter().find(|n| read_inside(n)) {
        Some(n) => Err(format!("{} is read as a whole, with the rows cached before", flow.node(*n).name)),
        None => Ok(()),
    }
}

/// Pointwise and row ops, over one set of rows, perhaps behind a lookup.
fn rows(flow: &Flow, nodes: &Set) -> Result<Anchor, String> {
    let gathers: Vec<usize> = nodes.iter().copied().filter(|n| class(flow.op(*n)) == Class::Gather).collect();
    if let Some(inner) =
        gathers.iter().find(|n| flow.node(**n).inputs.iter().any(|v| flow.made_in(*v, nodes)))
    {
        return Err(format!("{} reads rows that other blocks make", flow.node(*inner).name));
    }
    let mut shapes =
        nodes.iter().filter(|n| class(flow.op(**n)) != Class::Store).map(|n| (*n, flow.result(*n)));
    let Some((first, shape)) = shapes.next() else { return Ok(Anchor::Elementwise) };
    if let Some((other, found)) = shapes.find(|(_, found)| found.shape != shape.shape) {
        let (a, b) = (&flow.node(first).name, &flow.node(other).name);
        return Err(format!("{a} walks over {shape}, {b} over {found}"));
    }
    stores_match(flow, nodes, &shape.shape)?;
    let has = |wanted| nodes.iter().any(|n| class(flow.op(*n)) == wanted);
    Ok(match (has(Class::Gather), has(Class::Row)) {
        (true, _) => Anchor::Gather,
        (false, true) => Anchor::Row,
        (false, false) => Anchor::Elementwise,
    })
}

fn stores_match(flow: &Flow, nodes: &Set, shape: &[u64]) -> Result<(), String> {
    let fits = |n: &usize| {
        class(flow.op(*n)) != Class::Store || flow.function.ty(flow.node(*n).inputs[0]).shape == shape
    };
    match nodes.iter().find(|n| !fits(n)) {
        Some(n) => Err(format!("{} stores rows of another shape", flow.node(*n).name)),
        None => Ok(()),
    }
}

/// Contractions over one left operand, pointwise ops and stores behind them.
fn matmul(flow: &Flow, nodes: &Set, contractions: &[usize]) -> Result<Anchor, String> {
    one_left_operand(flow, contractions)?;
    let mut segments: BTreeMap<usize, BTreeSet<usize>> =
        contractions.iter().map(|n| (*n, BTreeSet::from([*n]))).collect();
    for n in nodes.iter().filter(|n| !contractions.contains(n)) {
        let inside: Vec<usize> = flow.node(*n).inputs.iter().filter_map(|v| made(flow, *v, nodes)).collect();
        let from: BTreeSet<usize> =
            inside.iter().filter_map(|m| segments.get(m)).flatten().copied().collect();
        match from.is_empty() {
            true => return Err(prologue(flow, *n, contractions)),
            false => {
                epilogue(flow, *n, &from)?;
                segments.insert(*n, from);
            }
        }
    }
    neighbours(flow, nodes, &segments)?;
    Ok(Anchor::Matmul)
}

fn made(flow: &Flow, value: ValueId, nodes: &Set) -> Option<usize> {
    flow.maker(value).filter(|maker| nodes.contains(maker))
}

fn one_left_operand(flow: &Flow, contractions: &[usize]) -> Result<(), String> {
    let [first, rest @ ..] = contractions else { return Ok(()) };
    let linear = |n: usize| *flow.op(n) == Op::Linear;
    for other in rest {
        let (a, b) = (flow.node(*first), flow.node(*other));
        if !linear(*first) || !linear(*other) {
            return Err(format!(
                "{} and {} are two contractions, and no softmax streams between them",
                a.name, b.name
            ));
        }
        if a.inputs[0] != b.inputs[0] {
            let k = flow.function.ty(b.inputs[0]).shape.last().copied().unwrap_or(0);
            return Err(match depends(flow, *other, *first) {
                true => {
                    format!("{} sums over {k} columns of {}, a tile holds {TILE_COLUMNS}", b.name, a.name)
                }
                false => format!("{} and {} have different left operands", a.name, b.name),
            });
        }
    }
    Ok(())
}

/// Whether `later` needs `earlier`.
fn depends(flow: &Flow, later: usize, earlier: usize) -> bool {
    let mut reached = BTreeSet::from([later]);
    for n in (earlier..=later).rev() {
        if reached.contains(&n) {
            reached.extend(flow.before(n));
        }
    }
    reached.contains(&earlier)
}

/// What stands before a contraction: its tiles go from memory to the multipliers as they are, and every column tile
/// reads them again.
fn prologue(flow: &Flow, n: usize, contractions: &[usize]) -> String {
    let name = &flow.node(n).name;
    let columns: u64 = contractions.iter().filter_map(|c| flow.result(*c).shape.last()).sum();
    let tiles = columns.div_ceil(TILE_COLUMNS);
    let width = flow.result(n).shape.last().copied().unwrap_or(0);
    match class(flow.op(n)) {
        Class::Row => format!(
            "{name} needs the whole row of {width} and would run again for each of {tiles} column tiles"
        ),
        _ => format!("{name} would run again for each of {tiles} column tiles"),
    }
}

/// What stands behind a contraction works on the tile that a block holds.
fn epilogue(flow: &Flow, n: usize, from: &BTreeSet<usize>) -> Result<(), String> {
    let (node, width) = (flow.node(n), flow.result(n).shape.last().copied().unwrap_or(0));
    match class(&node.op) {
        Class::Elementwise | Class::Store => {}
        Class::Row if width > TILE_COLUMNS => {
            return Err(format!(
                "{} needs the whole row of {width}, the tile holds {TILE_COLUMNS}",
                node.name
            ));
        }
        Class::Row => return Err(format!("{} reduces over the row, an epilogue is pointwise", node.name)),
        _ => return Err(format!("{} reads rows that other blocks make", node.name)),
    }
    let widths: BTreeSet<u64> = from.iter().filter_map(|c| flow.result(*c).shape.last().copied()).collect();
    match widths.len() {
        1 => Ok(()),
        _ => Err(format!("{} joins columns of different widths", node.name)),
    }
}

/// Columns that meet in one op must be neighbours in the tile: each contraction has at most one partner set, and
/// rotated pairs cannot be neighbours at the same time.
fn neighbours(flow: &Flow, nodes: &Set, segments: &BTreeMap<usize, BTreeSet<usize>>) -> Result<(), String> {
    let joined: BTreeSet<&BTreeSet<usize>> = segments.values().filter(|from| from.len() > 1).collect();
    for (n, from) in segments.iter().filter(|(n, _)| nodes.contains(n)) {
        let clash = joined.iter().any(|other| *other != from && !from.is_disjoint(other) && from.len() > 1);
        let rotated =
            matches!(flow.op(*n), Op::Rope { .. }) && joined.iter().any(|other| !from.is_disjoint(other));
        if clash || rotated {
            return Err(format!("{}: columns cannot be neighbours of two partners", flow.node(*n).name));
        }
    }
    Ok(())
}

/// `values(softmax(pointwise(scores)))`, from the softmax on at least.
fn attention(flow: &Flow, nodes: &Set, contractions: &[usize]) -> Result<Anchor, String> {
    let softmaxes: Vec<usize> = nodes.iter().copied().filter(|n| *flow.op(*n) == Op::Softmax).collect();
    let [softmax] = softmaxes.as_slice() else { return Err("two softmaxes in one kernel".into()) };
    let values: Vec<usize> =
        contractions.iter().copied().filter(|n| matches!(flow.op(*n), Op::Values { .. })).collect();
    let [values] = values.as_slice() else { return Err(row_is_split(flow, *softmax)) };
    let before = chain_before(flow, nodes, *softmax)?;
    let between = factors_between(flow, nodes, *softmax, *values)?;
    let after =
        nodes.iter().filter(|n| !before.contains(n) && !between.contains(n) && *n != softmax && *n != values);
    for n in after {
        let inside = flow.node(*n).inputs.iter().any(|v| flow.made_in(*v, nodes));
        if !matches!(class(flow.op(*n)), Class::Elementwise | Class::Store) || !inside || n < values {
            return Err(foreign(flow, *n, *values));
        }
    }
    Ok(Anchor::Attention)
}

/// Why an op cannot follow or precede the streams of an attention kernel.
fn foreign(flow: &Flow, n: usize, values: usize) -> String {
    let name = &flow.node(n).name;
    match class(flow.op(n)) {
        Class::Contraction if depends(flow, n, values) => {
            let width = flow.result(values).shape.last().copied().unwrap_or(0);
            format!("{name} sums over all {width} columns, a block of attention makes those of one head")
        }
        Class::Contraction => format!("{name} does not stream into the softmax"),
        _ => format!("{name} is no part of the streams that lead to and from the softmax"),
    }
}

fn row_is_split(flow: &Flow, softmax: usize) -> String {
    let width = flow.result(softmax).shape.last().copied().unwrap_or(0);
    format!("{} needs the whole row of {width}, the tile holds {TILE_COLUMNS}", flow.node(softmax).name)
}

/// Pointwise ops and `scores` that lead to the softmax; none of their results may be needed elsewhere.
fn chain_before(flow: &Flow, nodes: &Set, softmax: usize) -> Result<Set, String> {
    let mut chain = Set::new();
    let mut at = flow.node(softmax).inputs[0];
    while let Some(n) = made(flow, at, nodes) {
        stays_inside(flow, n, nodes)?;
        chain.insert(n);
        match (class(flow.op(n)), flow.op(n)) {
            (_, Op::Scores { .. }) => break,
            (Class::Elementwise, _) => at = flow.node(n).inputs[0],
            _ => return Err(format!("{} cannot stream into a softmax", flow.node(n).name)),
        }
    }
    Ok(chain)
}

/// Only factors may stand between the softmax and `values`: the streaming form divides by the row's sum at the end.
fn factors_between(flow: &Flow, nodes: &Set, softmax: usize, values: usize) -> Result<Set, String> {
    let mut chain = Set::new();
    let mut at = flow.node(values).inputs[0];
    while let Some(n) = made(flow, at, nodes) {
        stays_inside(flow, n, nodes)?;
        if n == softmax {
            return Ok(chain);
        }
        match flow.op(n) {
            Op::Scale { .. } => chain.insert(n),
            _ => return Err(format!("{} stands between softmax and values", flow.node(n).name)),
        };
        at = flow.node(n).inputs[0];
    }
    Err(row_is_split(flow, softmax))
}

fn stays_inside(flow: &Flow, n: usize, nodes: &Set) -> Result<(), String> {
    match flow.escapes(flow.node(n).output, nodes) {
        true => Err(format!("{} is needed outside, and streaming never has it whole", flow.node(n).name)),
        false => Ok(()),
    }
}
