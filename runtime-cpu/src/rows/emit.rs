//! Emits machine code for a row function: for every row, a few loops over its elements.
//!
//! Pointwise values are not stored; each loop computes what it needs from memory, four lanes at a time and sixteen
//! elements an iteration. A norm needs its operand twice and a rotation needs it across lanes, so their operands are
//! brought into memory first, into an output of the function where there is one. What is left over goes out in one loop
//! for each width.
//!
//! ```text
//! s = a + b                       loop: s[i] = a[i] + b[i];               (s is an output, and the norm needs it)
//! y = norm(s, w)                  loop: sum of s[i]²
//!                                 loop: y[i] = s[i] r w[i]
//! ```

use crate::program::{RowFn, RowOp};
use crate::rows::math::Lanes;
use crate::rows::{CHUNK, Turn, rotations};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, I8X16, I32X4, I64};
use cranelift_codegen::ir::{BlockArg, ConstantData, InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::FunctionBuilder;
use lapidary_models::spec::NormKind;
use std::collections::BTreeMap;

/// Bytes of four lanes.
const VECTOR: i32 = 16;
/// Bytes of a chunk.
const CHUNK_BYTES: i64 = 4 * CHUNK as i64;
/// Vectors of a chunk.
const VECTORS: usize = CHUNK / 4;

/// Where a value of the row is.
#[derive(Clone, Copy)]
enum Place {
    /// In memory, from this address on.
    Memory(Value),
    /// Computed where it is needed.
    Computed,
    /// As computed, with the norm's mean and factor known.
    Normed { mean: Option<Value>, factor: Value },
    /// As computed, with the norm's statistics and those of the derivative behind it known.
    Backward { mean: Option<Value>, factor: Value, center: Option<Value>, along: Value },
}

/// Elements of scratch memory that the code of a function needs.
pub fn scratch_len(f: &RowFn) -> usize {
    f.values.iter().map(|v| super::pitch(v.width)).sum()
}

/// Emits the body of a function `(rows: pointer to [address, pitch in bytes], count, scratch address)`.
pub fn emit(f: &RowFn, turns: &[Turn], builder: &mut FunctionBuilder) {
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let [table, count, scratch] = builder.block_params(entry)[..] else { return };
    let inputs = f.values.iter().filter(|v| v.op.is_source()).count();
    let total = inputs + rotations(f).len() + f.outputs.len();
    let arguments: Vec<(Value, Value)> = (0..total)
        .map(|at| {
            let base = builder.ins().load(I64, flags(), table, 16 * at as i32);
            (base, builder.ins().load(I64, flags(), table, 16 * at as i32 + 8))
        })
        .collect();
    count_to(builder, count, 1, |builder, row| {
        let address = |builder: &mut FunctionBuilder, (base, pitch): (Value, Value)| {
            let offset = builder.ins().imul(row, pitch);
            builder.ins().iadd(base, offset)
        };
        let addresses: Vec<Value> = arguments.iter().map(|a| address(builder, *a)).collect();
        Row::new(f, turns, builder, &addresses, scratch).run();
    });
    builder.ins().return_(&[]);
    builder.seal_all_blocks();
}

/// Memory is always there; nothing is known about alignment.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Runs `body` for 0, `step`, .. below `end`.
fn count_to(
    builder: &mut FunctionBuilder,
    end: Value,
    step: i64,
    mut body: impl FnMut(&mut FunctionBuilder, Value),
) {
    reduce(builder, end, step, &[], |builder, at, _| {
        body(builder, at);
        Vec::new()
    });
}

/// As [`count_to`], with values that each iteration changes; returns their last state.
fn reduce(
    builder: &mut FunctionBuilder,
    end: Value,
    step: i64,
    start: &[Value],
    body: impl FnOnce(&mut FunctionBuilder, Value, &[Value]) -> Vec<Value>,
) -> Vec<Value> {
    let (head, inside, after) = (builder.create_block(), builder.create_block(), builder.create_block());
    let arguments =
        |values: &[Value]| -> Vec<BlockArg> { values.iter().map(|v| BlockArg::Value(*v)).collect() };
    let at = builder.append_block_param(head, I64);
    let types: Vec<Type> = start.iter().map(|v| builder.func.dfg.value_type(*v)).collect();
    let state: Vec<Value> = types.into_iter().map(|ty| builder.append_block_param(head, ty)).collect();
    let zero = builder.ins().iconst(I64, 0);
    let first: Vec<Value> = std::iter::once(zero).chain(start.iter().copied()).collect();
    builder.ins().jump(head, &arguments(&first));
    builder.switch_to_block(head);
    let more = builder.ins().icmp(IntCC::SignedLessThan, at, end);
    builder.ins().brif(more, inside, &[], after, &[]);
    builder.switch_to_block(inside);
    let mut next = body(builder, at, &state);
    next.insert(0, builder.ins().iadd_imm_s(at, step));
    builder.ins().jump(head, &arguments(&next));
    builder.switch_to_block(after);
    state
}

/// One row of the function while its code is emitted.
struct Row<'e, 'b, 'f> {
    f: &'e RowFn,
    turns: &'e [Turn],
    builder: &'b mut FunctionBuilder<'f>,
    places: Vec<Place>,
    tables: BTreeMap<usize, Value>,
    outputs: Vec<Value>,
    sent: Vec<bool>,
    scratch: Value,
    used: i64,
}

/// A place in a row, in bytes.
#[derive(Clone, Copy)]
struct Spot {
    at: Value,
    shift: i32,
}

impl Spot {
    /// Four lanes of a row in memory at this place.
    fn beside(self, builder: &mut FunctionBuilder, row: Value) -> Value {
        let address = builder.ins().iadd(row, self.at);
        builder.ins().load(F32X4, flags(), address, self.shift)
    }
}

/// Values of one vector of the row that were computed already.
type Known = BTreeMap<usize, Value>;

impl<'e, 'b, 'f> Row<'e, 'b, 'f> {
    fn new(
        f: &'e RowFn,
        turns: &'e [Turn],
        builder: &'b mut FunctionBuilder<'f>,
        addresses: &[Value],
        scratch: Value,
    ) -> Self {
        let mut next = addresses.iter().copied();
        let mut places = Vec::with_capacity(f.values.len());
        for value in &f.values {
            places.push(match value.op.is_source() {
                true => next.next().map_or(Place::Computed, Place::Memory),
                false => Place::Computed,
            });
        }
        let tables = rotations(f).into_iter().zip(next.by_ref()).collect();
        let outputs: Vec<Value> = next.collect();
        Row { f, turns, builder, places, tables, sent: vec![false; outputs.len()], outputs, scratch, used: 0 }
    }

    fn run(&mut self) {
        for at in 0..self.f.values.len() {
            match self.f.values[at].op {
                RowOp::Norm { x, kind, eps, .. } => {
                    let address = self.in_memory(x);
                    self.places[at] = self.statistics(address, self.f.values[at].width, kind, eps);
                }
                RowOp::NormDx { x, g, kind, eps } => {
                    let (x, g) = (self.in_memory(x), self.in_memory(g));
                    self.places[at] = self.backward(x, g, self.f.values[at].width, kind, eps);
                }
                RowOp::Rotate { x, rotation } => {
                    let address = self.in_memory(x);
                    let target = self.target(at);
                    self.rotate(address, target, self.turns[rotation], rotation, self.f.values[at].width);
                    self.places[at] = Place::Memory(target);
                }
                _ => {}
            }
        }
        self.flush();
    }

    /// Memory for a value: an output that takes it, or scratch.
    fn target(&mut self, value: usize) -> Value {
        let open = (0..self.outputs.len()).find(|o| self.f.outputs[*o].value == value && !self.sent[*o]);
        if let Some(output) = open {
            self.sent[output] = true;
            return self.outputs[output];
        }
        let address = self.builder.ins().iadd_imm_s(self.scratch, self.used);
        self.used += 4 * super::pitch(self.f.values[value].width) as i64;
        address
    }

    /// Brings a value into memory and returns its address.
    fn in_memory(&mut self, value: usize) -> Value {
        if let Place::Memory(address) = self.places[value] {
            return address;
        }
        let target = self.target(value);
        self.store_all(&[(value, target)], self.f.values[value].width);
        self.places[value] = Place::Memory(target);
        target
    }

    /// One loop that stores values of one width.
    fn store_all(&mut self, stores: &[(usize, Value)], width: u64) {
        let end = self.builder.ins().iconst(I64, super::pitch(width) as i64 * 4);
        let (f, places) = (self.f, &self.places);
        count_to(self.builder, end, CHUNK_BYTES, |builder, at| {
            for vector in 0..VECTORS {
                let mut known = Known::new();
                for (value, target) in stores {
                    let x = compute(f, places, builder, *value, at, vector as i32 * VECTOR, &mut known);
                    let address = builder.ins().iadd(*target, at);
                    builder.ins().store(flags(), x, address, vector as i32 * VECTOR);
                }
            }
        });
    }

    /// Stores every output that was not stored on the way.
    fn flush(&mut self) {
        let mut by_width: BTreeMap<u64, Vec<(usize, Value)>> = BTreeMap::new();
        for (at, output) in self.f.outputs.iter().enumerate().filter(|(at, _)| !self.sent[*at]) {
            by_width
                .entry(self.f.values[output.value].width)
                .or_default()
                .push((output.value, self.outputs[at]));
        }
        for (width, stores) in by_width {
            self.store_all(&stores, width);
        }
    }

    /// Mean and factor of a norm over a row in memory.
    fn statistics(&mut self, x: Value, width: u64, kind: NormKind, eps: f64) -> Place {
        let mean = match kind {
            NormKind::Rms => None,
            NormKind::Layer => {
                let sum = self.sum(x, width, |_, _, x| x);
                let mean = self.divided(sum, width);
                Some(Lanes(self.builder).spread(mean))
            }
        };
        let squares = self.sum(x, width, |lanes, _, x| {
            let x = mean.map_or(x, |mean| lanes.0.ins().fsub(x, mean));
            lanes.mul(x, x)
        });
        let square = self.divided(squares, width);
        let mut lanes = Lanes(self.builder);
        let eps = lanes.scalar(eps as f32);
        let root = lanes.add(square, eps);
        let root = lanes.0.ins().sqrt(root);
        let one = lanes.scalar(1.0);
        let factor = lanes.0.ins().fdiv(one, root);
        Place::Normed { mean, factor: lanes.spread(factor) }
    }

    /// Statistics of the derivative of a norm: of its operand, and of what comes back along it.
    fn backward(&mut self, x: Value, g: Value, width: u64, kind: NormKind, eps: f64) -> Place {
        let Place::Normed { mean, factor } = self.statistics(x, width, kind, eps) else {
            return Place::Computed;
        };
        let center = mean.map(|_| {
            let sum = self.sum(g, width, |_, _, g| g);
            let center = self.divided(sum, width);
            Lanes(self.builder).spread(center)
        });
        let sum = self.sum(x, width, |lanes, at, x| {
            let g = at.beside(lanes.0, g);
            let x = mean.map_or(x, |mean| lanes.0.ins().fsub(x, mean));
            let x = lanes.mul(x, factor);
            lanes.mul(x, g)
        });
        let along = self.divided(sum, width);
        let along = Lanes(self.builder).spread(along);
        Place::Backward { mean, factor, center, along }
    }

    fn divided(&mut self, sum: Value, width: u64) -> Value {
        let n = self.builder.ins().f32const(width as f32);
        self.builder.ins().fdiv(sum, n)
    }

    /// The sum of a function of the elements of a row in memory, a scalar. Elements behind the width do not count.
    fn sum(&mut self, x: Value, width: u64, f: impl Fn(&mut Lanes, Spot, Value) -> Value) -> Value {
        let zero = Lanes(self.builder).splat(0.0);
        let whole = width / CHUNK as u64;
        let end = self.builder.ins().iconst(I64, whole as i64 * CHUNK_BYTES);
        let one = |builder: &mut FunctionBuilder, at: Value, vector: usize| {
            let spot = Spot { at, shift: vector as i32 * VECTOR };
            let x = spot.beside(builder, x);
            f(&mut Lanes(builder), spot, x)
        };
        let mut sums = reduce(self.builder, end, CHUNK_BYTES, &[zero; VECTORS], |builder, at, sums| {
            let add = |(vector, sum): (usize, &Value)| {
                let term = one(builder, at, vector);
                builder.ins().fadd(*sum, term)
            };
            sums.iter().enumerate().map(add).collect()
        });
        let rest = (width % CHUNK as u64) as usize;
        for (vector, sum) in sums.iter_mut().enumerate().take(rest.div_ceil(4)) {
            let term = one(self.builder, end, vector);
            let kept = self.first_lanes(term, (rest - 4 * vector).min(4));
            *sum = self.builder.ins().fadd(*sum, kept);
        }
        let mut lanes = Lanes(self.builder);
        let (a, b) = (lanes.add(sums[0], sums[1]), lanes.add(sums[2], sums[3]));
        let all = lanes.add(a, b);
        lanes.total(all)
    }

    /// The first `n` lanes, zero in the others.
    fn first_lanes(&mut self, x: Value, n: usize) -> Value {
        if n == 4 {
            return x;
        }
        let bytes: Vec<u8> = (0..16).map(|byte| if byte < 4 * n { 0xff } else { 0 }).collect();
        let mask = self.builder.func.dfg.constants.insert(ConstantData::from(bytes));
        let mask = self.builder.ins().vconst(I32X4, mask);
        let x = Lanes(self.builder).bits(I32X4, x);
        let kept = self.builder.ins().band(x, mask);
        Lanes(self.builder).bits(F32X4, kept)
    }

    /// Rotates a row of heads from memory to memory.
    fn rotate(&mut self, x: Value, y: Value, turn: Turn, table: usize, width: u64) {
        let table = self.tables[&table];
        let heads = width as usize / turn.head_dim;
        let end = self.builder.ins().iconst(I64, 4 * (heads * turn.head_dim) as i64);
        count_to(self.builder, end, 4 * turn.head_dim as i64, |builder, head| {
            let (x, y) = (builder.ins().iadd(x, head), builder.ins().iadd(y, head));
            Head { x, y, table, turn }.rotate(builder);
        });
    }
}

/// One head of a rotated row.
#[derive(Clone, Copy)]
struct Head {
    x: Value,
    y: Value,
    table: Value,
    turn: Turn,
}

impl Head {
    fn rotate(self, builder: &mut FunctionBuilder) {
        let Turn { head_dim, rot_dims, interleaved } = self.turn;
        let apart = if interleaved { rot_dims } else { rot_dims / 2 };
        let wide = apart.is_multiple_of(4) && head_dim.is_multiple_of(4);
        let (ty, lanes) = if wide { (F32X4, 4) } else { (F32, 1) };
        match (interleaved, wide) {
            (true, true) => {
                self.over(builder, 0, rot_dims, 4, |head, builder, at| head.neighbours(builder, at))
            }
            (true, false) => {
                self.over(builder, 0, rot_dims, 2, |head, builder, at| head.pair(builder, at, 4, F32))
            }
            (false, _) => {
                let apart = 2 * rot_dims as i32;
                self.over(builder, 0, rot_dims / 2, lanes, |head, builder, at| {
                    head.pair(builder, at, apart, ty)
                });
            }
        }
        self.over(builder, rot_dims, head_dim, lanes, |head, builder, at| {
            let from = builder.ins().iadd(head.x, at);
            let to = builder.ins().iadd(head.y, at);
            let x = builder.ins().load(ty, flags(), from, 0);
            builder.ins().store(flags(), x, to, 0);
        });
    }

    /// Runs `body` with the byte offset of dimensions `from`, `from + step`, .. below `to`.
    fn over(
        self,
        builder: &mut FunctionBuilder,
        from: usize,
        to: usize,
        step: usize,
        body: impl Fn(Head, &mut FunctionBuilder, Value),
    ) {
        if from == to {
            return;
        }
        let end = builder.ins().iconst(I64, 4 * (to - from) as i64);
        count_to(builder, end, 4 * step as i64, |builder, at| {
            let at = builder.ins().iadd_imm_s(at, 4 * from as i64);
            body(self, builder, at);
        });
    }

    /// The table's factor for the dimensions at a byte offset, and for their partners.
    fn factors(self, builder: &mut FunctionBuilder, at: Value, offset: i32, ty: Type) -> (Value, Value) {
        let address = builder.ins().iadd(self.table, at);
        let own = builder.ins().load(ty, flags(), address, offset);
        (own, builder.ins().load(ty, flags(), address, offset + 4 * self.turn.rot_dims as i32))
    }

    /// Dimensions at a byte offset with those `apart` bytes further on.
    fn pair(self, builder: &mut FunctionBuilder, at: Value, apart: i32, ty: Type) {
        let (from, to) = (builder.ins().iadd(self.x, at), builder.ins().iadd(self.y, at));
        let a = builder.ins().load(ty, flags(), from, 0);
        let b = builder.ins().load(ty, flags(), from, apart);
        for (own, other, offset) in [(a, b, 0), (b, a, apart)] {
            let (cos, sin) = self.factors(builder, at, offset, ty);
            let (own, other) = (builder.ins().fmul(own, cos), builder.ins().fmul(other, sin));
            let turned = builder.ins().fadd(own, other);
            builder.ins().store(flags(), turned, to, offset);
        }
    }

    /// Four dimensions that are two pairs of neighbours.
    fn neighbours(self, builder: &mut FunctionBuilder, at: Value) {
        let (from, to) = (builder.ins().iadd(self.x, at), builder.ins().iadd(self.y, at));
        let x = builder.ins().load(F32X4, flags(), from, 0);
        let bytes = Lanes(builder).bits(I8X16, x);
        let order: Vec<u8> =
            [1u8, 0, 3, 2].iter().flat_map(|lane| (0..4).map(move |byte| 4 * lane + byte)).collect();
        let order = builder.func.dfg.immediates.push(ConstantData::from(order));
        let swapped = builder.ins().shuffle(bytes, bytes, order);
        let swapped = Lanes(builder).bits(F32X4, swapped);
        let (cos, sin) = self.factors(builder, at, 0, F32X4);
        let (own, other) = (builder.ins().fmul(x, cos), builder.ins().fmul(swapped, sin));
        let turned = builder.ins().fadd(own, other);
        builder.ins().store(flags(), turned, to, 0);
    }
}

/// Four lanes of a value: at byte offset `at` of the row, plus `shift`.
fn compute(
    f: &RowFn,
    places: &[Place],
    builder: &mut FunctionBuilder,
    value: usize,
    at: Value,
    shift: i32,
    known: &mut Known,
) -> Value {
    if let Some(found) = known.get(&value) {
        return *found;
    }
    let mut operand = |builder: &mut FunctionBuilder, id| compute(f, places, builder, id, at, shift, known);
    let computed = match (places[value], f.values[value].op) {
        (Place::Memory(address), _) => {
            let address = builder.ins().iadd(address, at);
            builder.ins().load(F32X4, flags(), address, shift)
        }
        (Place::Normed { mean, factor }, RowOp::Norm { x, weight, bias, .. }) => {
            let x = operand(builder, x);
            let x = mean.map_or(x, |mean| builder.ins().fsub(x, mean));
            let (x, weight) = (builder.ins().fmul(x, factor), operand(builder, weight));
            let x = builder.ins().fmul(x, weight);
            match bias {
                Some(bias) => {
                    let bias = operand(builder, bias);
                    builder.ins().fadd(x, bias)
                }
                None => x,
            }
        }
        (Place::Backward { mean, factor, center, along }, RowOp::NormDx { x, g, .. }) => {
            let (x, g) = (operand(builder, x), operand(builder, g));
            let x = mean.map_or(x, |mean| builder.ins().fsub(x, mean));
            let x = builder.ins().fmul(x, factor);
            let x = builder.ins().fmul(x, along);
            let g = center.map_or(g, |center| builder.ins().fsub(g, center));
            let rest = builder.ins().fsub(g, x);
            builder.ins().fmul(rest, factor)
        }
        (_, RowOp::Slope { x, function }) => {
            let x = operand(builder, x);
            Lanes(builder).slope(function, x)
        }
        (_, RowOp::Add { a, b }) => {
            let (a, b) = (operand(builder, a), operand(builder, b));
            builder.ins().fadd(a, b)
        }
        (_, RowOp::Mul { a, b }) => {
            let (a, b) = (operand(builder, a), operand(builder, b));
            builder.ins().fmul(a, b)
        }
        (_, RowOp::Scale { x, by }) => {
            let x = operand(builder, x);
            Lanes(builder).scale(x, by as f32)
        }
        (_, RowOp::Activation { x, function }) => {
            let x = operand(builder, x);
            Lanes(builder).activation(function, x)
        }
        _ => Lanes(builder).splat(0.0),
    };
    known.insert(value, computed);
    computed
}
