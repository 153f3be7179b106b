//! Emits the machine code of a vector op: a loop over four elements at a time where they lie one behind the other, then
//! a loop over single elements, strictly in order.

use crate::lower::{LoweredOp, Sink, Source};
use crate::program::OpKind;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, I16, I32, I64};
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::FunctionBuilder;
use lapidary_models::dtype::DType;

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operand {
    Single,
    Brain,
    Scalar,
}

/// All that the code of an op depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    kind: OpKind,
    /// The destination, then the sources.
    operands: Vec<Operand>,
    /// All elements lie one behind the other and none depends on another.
    dense: bool,
}

impl Shape {
    /// The shape of an op; none if it is left to the interpreter.
    pub fn of(op: &LoweredOp) -> Option<Shape> {
        let plain = [OpKind::Mov, OpKind::Neg, OpKind::Add, OpKind::Sub, OpKind::Mul, OpKind::Fmac];
        let rooted = [OpKind::Recip, OpKind::Sqrt, OpKind::Rsqrt];
        if op.src.len() > 3 || !(plain.contains(&op.kind) || rooted.contains(&op.kind)) {
            return None;
        }
        let of = |dtype: DType| match dtype {
            DType::F32 => Some(Operand::Single),
            DType::Bf16 => Some(Operand::Brain),
            DType::F16 | DType::I32 => None,
        };
        let first = match &op.dst {
            Sink::Mem(s) => of(s.dtype)?,
            Sink::Out { .. } => Operand::Single,
        };
        let mut operands = vec![first];
        for source in &op.src {
            operands.push(match source {
                Source::Mem(s) => of(s.dtype)?,
                Source::In { .. } => Operand::Single,
                Source::Scalar { .. } | Source::Trigger { .. } | Source::Const(_) => Operand::Scalar,
            });
        }
        let one_by_one = |strides: &[i64]| strides.is_empty() || (op.dims.len() == 1 && strides == [1]);
        let dense = !op.sequential
            && operands.iter().all(|o| *o != Operand::Brain)
            && op.slices().all(|s| one_by_one(&s.strides));
        Some(Shape { kind: op.kind, operands, dense })
    }

    /// Number of sources.
    pub fn sources(&self) -> usize {
        self.operands.len() - 1
    }

    /// Whether operand `k` (0 the destination) is a scalar.
    pub fn is_scalar(&self, k: usize) -> bool {
        self.operands.get(k) == Some(&Operand::Scalar)
    }

    /// Bytes of an element of operand `k`.
    pub fn bytes(&self, k: usize) -> usize {
        if self.operands.get(k) == Some(&Operand::Brain) { 2 } else { 4 }
    }
}

fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Emits the body of a function of a pointer to the count, four times address and step, and three scalars.
pub fn emit(shape: &Shape, builder: &mut FunctionBuilder) {
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let arguments = builder.block_params(entry)[0];
    let mut count = builder.ins().load(I64, flags(), arguments, 0);
    let (mut at, mut steps, mut scalars) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..shape.operands.len() as i32 {
        at.push(builder.ins().load(I64, flags(), arguments, 8 + 16 * k));
        steps.push(builder.ins().load(I64, flags(), arguments, 16 + 16 * k));
        if k > 0 {
            scalars.push(builder.ins().load(F32, flags(), arguments, 72 + 4 * (k - 1)));
        }
    }
    if shape.dense {
        let three = builder.ins().iconst(I64, 3);
        let rest = builder.ins().band(count, three);
        let many = builder.ins().isub(count, rest);
        let wide: Vec<Value> = scalars.iter().map(|s| builder.ins().splat(F32X4, *s)).collect();
        let sixteen = builder.ins().iconst(I64, 16);
        let step = vec![sixteen; at.len()];
        at = repeat(shape, F32X4, many, 4, &at, &step, &wide, builder);
        count = rest;
    }
    repeat(shape, F32, count, 1, &at, &steps, &scalars, builder);
    builder.ins().return_(&[]);
    builder.seal_all_blocks();
}

/// A loop over `count` elements, `lanes` at a time; returns the addresses behind them.
#[allow(clippy::too_many_arguments)]
fn repeat(
    shape: &Shape,
    lane: Type,
    count: Value,
    lanes: i64,
    at: &[Value],
    steps: &[Value],
    scalars: &[Value],
    builder: &mut FunctionBuilder,
) -> Vec<Value> {
    let (head, inside, after) = (builder.create_block(), builder.create_block(), builder.create_block());
    let left = builder.append_block_param(head, I64);
    let addresses: Vec<Value> = at.iter().map(|_| builder.append_block_param(head, I64)).collect();
    let start: Vec<BlockArg> =
        std::iter::once(count).chain(at.iter().copied()).map(BlockArg::Value).collect();
    builder.ins().jump(head, &start);
    builder.switch_to_block(head);
    let zero = builder.ins().iconst(I64, 0);
    let more = builder.ins().icmp(IntCC::SignedGreaterThan, left, zero);
    builder.ins().brif(more, inside, &[], after, &[]);
    builder.switch_to_block(inside);
    let sources: Vec<Value> = (1..shape.operands.len())
        .map(|k| fetch(shape.operands[k], lane, addresses[k], scalars[k - 1], builder))
        .collect();
    let value = apply(shape.kind, lane, &sources, builder);
    put(shape.operands[0], value, addresses[0], builder);
    let taken = builder.ins().iconst(I64, lanes);
    let mut next = vec![BlockArg::Value(builder.ins().isub(left, taken))];
    for (address, step) in addresses.iter().zip(steps) {
        next.push(BlockArg::Value(builder.ins().iadd(*address, *step)));
    }
    builder.ins().jump(head, &next);
    builder.switch_to_block(after);
    addresses
}

fn fetch(operand: Operand, lane: Type, at: Value, scalar: Value, builder: &mut FunctionBuilder) -> Value {
    match operand {
        Operand::Scalar => scalar,
        Operand::Single => builder.ins().load(lane, flags(), at, 0),
        Operand::Brain => {
            let bits = builder.ins().load(I16, flags(), at, 0);
            let wide = builder.ins().uextend(I32, bits);
            let sixteen = builder.ins().iconst(I32, 16);
            let shifted = builder.ins().ishl(wide, sixteen);
            builder.ins().bitcast(F32, MemFlagsData::new(), shifted)
        }
    }
}

fn put(operand: Operand, value: Value, at: Value, builder: &mut FunctionBuilder) {
    let value = if operand == Operand::Brain { to_brain(value, builder) } else { value };
    builder.ins().store(flags(), value, at, 0);
}

/// Rounds to the nearest bf16, ties to even; a NaN stays one and becomes quiet.
fn to_brain(value: Value, builder: &mut FunctionBuilder) -> Value {
    let bits = builder.ins().bitcast(I32, MemFlagsData::new(), value);
    let sixteen = builder.ins().iconst(I32, 16);
    let high = builder.ins().ushr(bits, sixteen);
    let one = builder.ins().iconst(I32, 1);
    let odd = builder.ins().band(high, one);
    let half = builder.ins().iconst(I32, 0x7fff);
    let up = builder.ins().iadd(odd, half);
    let rounded = builder.ins().iadd(bits, up);
    let rounded = builder.ins().ushr(rounded, sixteen);
    let quiet = builder.ins().iconst(I32, 0x40);
    let nan = builder.ins().bor(high, quiet);
    let is_nan = builder.ins().fcmp(FloatCC::Unordered, value, value);
    let chosen = builder.ins().select(is_nan, nan, rounded);
    builder.ins().ireduce(I16, chosen)
}

fn apply(kind: OpKind, lane: Type, v: &[Value], builder: &mut FunctionBuilder) -> Value {
    let reciprocal = |value: Value, builder: &mut FunctionBuilder| {
        let one = builder.ins().f32const(1.0);
        let one = if lane == F32 { one } else { builder.ins().splat(lane, one) };
        builder.ins().fdiv(one, value)
    };
    match (kind, v) {
        (OpKind::Neg, [a]) => builder.ins().fneg(*a),
        (OpKind::Sqrt, [a]) => builder.ins().sqrt(*a),
        (OpKind::Recip, [a]) => reciprocal(*a, builder),
        (OpKind::Rsqrt, [a]) => {
            let root = builder.ins().sqrt(*a);
            reciprocal(root, builder)
        }
        (OpKind::Add, [a, b]) => builder.ins().fadd(*a, *b),
        (OpKind::Sub, [a, b]) => builder.ins().fsub(*a, *b),
        (OpKind::Mul, [a, b]) => builder.ins().fmul(*a, *b),
        (OpKind::Fmac, [a, b, c]) => {
            let product = builder.ins().fmul(*a, *b);
            builder.ins().fadd(product, *c)
        }
        (_, v) => v[0],
    }
}
