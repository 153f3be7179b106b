//! Short spellings for the statements of a PE: slices, operands, vector ops and loops.

use lapidary_runtime_sim::program::{
    Affine, Colour, Dest, OpKind, Operand, Slice, Stmt, Var, VectorOp, Wire,
};

/// Elements of a buffer from `at` on, in row-major order.
pub fn slice(buffer: &str, at: impl Into<Affine>) -> Slice {
    Slice { buffer: buffer.into(), at: at.into(), strides: vec![] }
}

/// Elements of a buffer from `at` on, with one stride per dimension of the op.
pub fn strided(buffer: &str, at: impl Into<Affine>, strides: &[i64]) -> Slice {
    Slice { buffer: buffer.into(), at: at.into(), strides: strides.to_vec() }
}

/// A slice as an operand.
pub fn from(slice: Slice) -> Operand {
    Operand::Mem(slice)
}

/// A number as an operand.
pub fn number(value: f64) -> Operand {
    Operand::Const(value as f32)
}

/// Words that arrive, one per element.
pub fn words(colour: Colour, wire: Wire) -> Operand {
    Operand::In { colour, wire }
}

/// One word that arrives, for all elements.
pub fn scalar(colour: Colour, wire: Wire) -> Operand {
    Operand::Scalar { colour, wire }
}

/// A slice as a destination.
pub fn to(slice: Slice) -> Dest {
    Dest::Mem(slice)
}

/// Words that leave.
pub fn send(colour: Colour, wire: Wire) -> Dest {
    Dest::Out { colour, wire }
}

/// Lengths of a vector op.
pub fn dims<const N: usize>(lengths: [i64; N]) -> Vec<Affine> {
    lengths.into_iter().map(Affine::constant).collect()
}

/// A vector op by itself.
pub fn vector<const N: usize>(kind: OpKind, dst: Dest, src: [Operand; N], dims: Vec<Affine>) -> VectorOp {
    VectorOp { kind, dst, src: src.into(), dims }
}

/// A vector op as a statement.
pub fn op<const N: usize>(kind: OpKind, dst: Dest, src: [Operand; N], dims: Vec<Affine>) -> Stmt {
    Stmt::Op(vector(kind, dst, src, dims))
}

/// A loop, or nothing where the count is a constant below 1.
pub fn repeat(count: impl Into<Affine>, body: Vec<Stmt>) -> Vec<Stmt> {
    let count = count.into();
    match count.as_constant() {
        Some(n) if n <= 0 => vec![],
        _ if body.is_empty() => vec![],
        _ => vec![Stmt::Loop { count, body }],
    }
}

/// Which micro-batch is at hand, in a body that [`repeated`] puts its loop around.
pub const MICRO_BATCH: Var = Var::Loop(u8::MAX);

/// `times` times a body that knows of no loop around it but by [`MICRO_BATCH`].
pub fn repeated(times: u32, body: Vec<Stmt>) -> Vec<Stmt> {
    match times {
        1 => rewritten(body, &alone),
        _ => vec![Stmt::Loop { count: i64::from(times).into(), body: rewritten(body, &deeper) }],
    }
}

/// An expression with one more loop around it.
fn deeper(affine: &Affine) -> Affine {
    let shift = |(var, factor): (&Var, &i64)| match var {
        var if *var == MICRO_BATCH => (Var::Loop(0), *factor),
        Var::Loop(depth) => (Var::Loop(depth + 1), *factor),
        other => (*other, *factor),
    };
    Affine { base: affine.base, terms: affine.terms.iter().map(shift).collect() }
}

/// An expression at the first micro-batch, which is the only one.
fn alone(affine: &Affine) -> Affine {
    let mut affine = affine.clone();
    affine.terms.remove(&MICRO_BATCH);
    affine
}

/// A body with every expression changed.
pub fn rewritten(body: Vec<Stmt>, change: &dyn Fn(&Affine) -> Affine) -> Vec<Stmt> {
    let one = |stmt: Stmt| match stmt {
        Stmt::Op(op) => Stmt::Op(rewritten_op(op, change)),
        Stmt::Par(ops) => Stmt::Par(ops.into_iter().map(|op| rewritten_op(op, change)).collect()),
        Stmt::Loop { count, body } => Stmt::Loop { count: change(&count), body: rewritten(body, change) },
        other => other,
    };
    body.into_iter().map(one).collect()
}

fn rewritten_op(mut op: VectorOp, change: &dyn Fn(&Affine) -> Affine) -> VectorOp {
    let slices = op.src.iter_mut().filter_map(|operand| match operand {
        Operand::Mem(slice) => Some(slice),
        _ => None,
    });
    let dst = if let Dest::Mem(slice) = &mut op.dst { Some(slice) } else { None };
    slices.chain(dst).for_each(|slice| slice.at = change(&slice.at));
    op.dims.iter_mut().for_each(|length| *length = change(length));
    op
}

/// Drops vector ops that can be seen to have no elements, and loops that are left empty by that.
pub fn prune(body: Vec<Stmt>) -> Vec<Stmt> {
    let kept = |op: &VectorOp| !op.dims.iter().any(|d| d.as_constant().is_some_and(|n| n <= 0));
    body.into_iter()
        .filter_map(|stmt| match stmt {
            Stmt::Op(op) => kept(&op).then_some(Stmt::Op(op)),
            Stmt::Par(ops) => {
                let ops: Vec<_> = ops.into_iter().filter(kept).collect();
                (!ops.is_empty()).then_some(Stmt::Par(ops))
            }
            Stmt::Loop { count, body } => repeat(count, prune(body)).pop(),
            other => Some(other),
        })
        .collect()
}
