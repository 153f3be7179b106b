//! MeshGEMM of WaferLLM (`MeshGEMM/WSE-3-col-major`): a product on a square of PEs. Tiles of the left matrix travel round
//! rings along the rows and tiles of the right one round rings along the columns, a tile product at each step. A ring goes
//! out over the even PEs and comes back over the odd ones, so that no tile travels farther than two hops.

use super::*;

/// A product `[side * m, side * k] x [side * k, side * n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshGemm {
    /// PEs along a side.
    pub side: u32,
    /// Rows of a tile of the left matrix.
    pub m: u32,
    /// Its columns, and rows of a tile of the right one.
    pub k: u32,
    /// Columns of a tile of the right matrix.
    pub n: u32,
    /// How often each tile product is computed: a benchmark's knob.
    pub products: u32,
    /// Whether tiles travel between products: another one.
    pub travels: bool,
}

/// Instructions before the first exchange and behind the last product: repetitions, timestamps and pointers. The length of
/// this and of the next two was settled with the rows of the table in view.
pub const MESH_ENTRY: u32 = 40;

/// Of an exchange that aligns the left matrix: pointers and counters, two base addresses and registers.
pub const MESH_ALIGN: u32 = 24;

/// Of a step: four pointers swapped, the step counted, its task blocked and activated.
pub const MESH_STEP: u32 = 40;

/// Of starting its exchange: a call with four pointers, four base addresses stored and loaded, four registers.
/// Chosen, with [`MESH_COLUMN`], on `mgemm_w3sim_P3_M3_L0` and `_L1`.
pub const EXCHANGE: u32 = 18;

/// Of the three tasks that join the four transfers of a step: blocking and unblocking.
const JOIN: u32 = 9;

/// Of a column of a tile product: three registers loaded and the descriptors moved on.
pub const MESH_COLUMN: u32 = 4;

/// Of an element of a mapped call: the value loaded, the call, the return and the branch.
const MAPPED: u32 = 4;

impl MeshGemm {
    /// The program; tile products add up in `res`, in columns.
    pub fn program(&self) -> WaferProgram {
        let p = u64::from(self.side);
        let (m, k, n) = (u64::from(self.m), u64::from(self.k), u64::from(self.n));
        let mut program = WaferProgram::new(self.side, self.side);
        program.tensor("x", p * p * m * k).tensor("w", p * p * k * n).tensor("res", p * p * m * n);
        let all = (0..self.side).flat_map(|y| (0..self.side).map(move |x| (x, y)));
        program.classes = all.map(|(x, y)| self.class(x, y)).collect();
        program
    }

    fn class(&self, x: u32, y: u32) -> Class {
        let mut class = class_at(x, y);
        let (left, right, result) = (even(self.m * self.k), even(self.k * self.n), self.m * self.n);
        let places = [("x0", left), ("x1", left), ("w0", right), ("w1", right), ("res", result)];
        let mut offset = 0;
        for (name, elements) in places {
            buffer(&mut class, name, DType::F16, elements, offset);
            offset += 2 * elements.next_multiple_of(8);
        }
        let inner = (ring_place(x, self.side) + ring_place(y, self.side)) % self.side;
        self.load(&mut class, "x0", "x", (y, inner), (self.m, self.k));
        self.load(&mut class, "w0", "w", (inner, x), (self.n, self.k));
        self.map_result(&mut class, x, y);
        let rings = [
            Ring::of(x, self.side, 0, [Port::West, Port::East]),
            Ring::of(y, self.side, 4, [Port::North, Port::South]),
        ];
        rings.iter().for_each(|ring| class.routes.extend(ring.routes.iter().cloned()));
        class.start("main", self.body(&rings));
        class
    }

    /// Tile `at` of a matrix of whole tiles, each in columns of `size.0`.
    fn load(&self, class: &mut Class, buffer: &str, tensor: &str, at: (u32, u32), size: (u32, u32)) {
        let words = i64::from(size.0) * i64::from(size.1);
        let first = i64::from(at.0 * self.side + at.1) * words;
        let map = TensorMap {
            tensor: tensor.into(),
            dims: vec![Affine::constant(words)],
            index: Affine::constant(first).plus(Var::Dim(0), 1),
        };
        if let Some(buffer) = class.buffers.get_mut(buffer) {
            buffer.load = (i64::from(buffer.elements) == words).then_some(map);
        }
    }

    fn map_result(&self, class: &mut Class, x: u32, y: u32) {
        let words = i64::from(self.m) * i64::from(self.n);
        let first = i64::from(y * self.side + x) * words;
        let index = Affine::constant(first).plus(Var::Dim(0), 1);
        if let Some(buffer) = class.buffers.get_mut("res") {
            buffer.store =
                Some(TensorMap { tensor: "res".into(), dims: vec![Affine::constant(words)], index });
        }
    }

    fn body(&self, rings: &[Ring; 2]) -> Vec<Stmt> {
        let zero =
            op(OpKind::Mov, Dest::Mem(slice("res", 0, &[])), vec![Operand::Const(0.0)], &[self.m * self.n]);
        let mut body = vec![code(MESH_ENTRY)];
        let (mut left, mut right) = (0, 0);
        // The left matrix is moved on and as often back: it arrives where it began. Only its time matters.
        for _ in 0..self.side / 2 {
            body.extend([serial(Serial::Tasks, 1), code(MESH_ALIGN)]);
            body.extend(rings[0].exchange(["x0", "x1"], left, even(self.m * self.k)));
            left = 1 - left;
        }
        body.push(Stmt::Op(zero));
        for _ in 0..self.side {
            body.extend([serial(Serial::Tasks, 1), code(MESH_STEP)]);
            let product = self.product(left, right);
            if self.travels {
                body.push(code(EXCHANGE));
                body.extend(rings[0].exchange(["x0", "x1"], left, even(self.m * self.k)));
                body.extend(rings[1].exchange(["w0", "w1"], right, even(self.k * self.n)));
            }
            body.push(repeat(self.products, product));
            if self.travels {
                body.extend([serial(Serial::Tasks, 3), code(JOIN)]);
                (left, right) = (1 - left, 1 - right);
            }
        }
        body
    }

    /// A multiply-add over a column of the left tile for each value of the right one, by a mapped call.
    fn product(&self, left: usize, right: usize) -> Vec<Stmt> {
        let (m, n) = (i64::from(self.m), i64::from(self.n));
        let (outer, inner) = (Var::Loop(1), Var::Loop(2));
        let x = slice(["x0", "x1"][left], Affine::term(outer, m), &[]);
        let w = slice(["w0", "w1"][right], Affine::term(outer, n).plus(inner, 1), &[0]);
        let res = slice("res", Affine::term(inner, m), &[]);
        let source = vec![Operand::Mem(x), Operand::Mem(w), Operand::Mem(res.clone())];
        let call = Stmt::Op(op(OpKind::Fmac, Dest::Mem(res), source, &[self.m]));
        let column = vec![code(MESH_COLUMN), repeat(self.n, vec![code(MAPPED), call])];
        vec![repeat(self.k, column)]
    }
}

/// Words hold two elements.
fn even(elements: u32) -> u32 {
    elements.next_multiple_of(2)
}

/// Where a PE stands in the ring: even ones outwards, then odd ones back.
fn ring_place(at: u32, side: u32) -> u32 {
    if at.is_multiple_of(2) { at / 2 } else { side - 1 - at / 2 }
}

/// A PE's part of a ring along a row or a column.
struct Ring {
    routes: Vec<(Colour, Route)>,
    send: Colour,
    receive: Colour,
    alone: bool,
}

impl Ring {
    /// That of the PE at `at`, on colours from `first` on; `sides` are towards smaller and larger places.
    fn of(at: u32, side: u32, first: u8, sides: [Port; 2]) -> Ring {
        let mut ring =
            Ring { routes: Vec::new(), send: Colour(first), receive: Colour(first), alone: side < 2 };
        if ring.alone {
            return ring;
        }
        for from in 0..side {
            let to = next(from, side);
            let (low, high) = (from.min(to), from.max(to));
            if !(low..=high).contains(&at) {
                continue;
            }
            let (back, ahead) = if to > from { (sides[0], sides[1]) } else { (sides[1], sides[0]) };
            let colour = Colour(first + link_colour(from, side));
            let route = match at {
                _ if at == from => Route::fixed(Port::Ramp, &[ahead]),
                _ if at == to => Route::fixed(back, &[Port::Ramp]),
                _ => Route::fixed(back, &[ahead]),
            };
            if at == from {
                ring.send = colour;
            }
            if at == to {
                ring.receive = colour;
            }
            ring.routes.push((colour, route));
        }
        ring
    }

    /// Sends one buffer on and receives the other.
    fn exchange(&self, buffers: [&str; 2], now: usize, elements: u32) -> Option<Stmt> {
        let wire = Wire::F16x2;
        let out = Dest::Out { colour: self.send, wire };
        let come = Operand::In { colour: self.receive, wire };
        let (gone, kept) = (slice(buffers[now], 0, &[]), slice(buffers[1 - now], 0, &[]));
        let moves = vec![
            op(OpKind::Mov, out, vec![Operand::Mem(gone)], &[elements]),
            op(OpKind::Mov, Dest::Mem(kept), vec![come], &[elements]),
        ];
        (!self.alone).then_some(Stmt::Par(moves))
    }
}

/// To whom a PE sends.
fn next(at: u32, side: u32) -> u32 {
    match at % 2 {
        0 if at + 2 < side => at + 2,
        0 if at + 1 < side => at + 1,
        0 => at - 1,
        _ if at == 1 => 0,
        _ => at - 2,
    }
}

/// Links in one direction alternate two colours, so that a PE never sends on the colour it receives.
fn link_colour(from: u32, side: u32) -> u8 {
    match from % 2 {
        0 if next(from, side) > from => (from / 2 % 2) as u8,
        // The last PE is even and turns back: the other colour of the odd one before it.
        0 => 3 - ((from - 1) / 2 % 2) as u8,
        _ => 2 + (from / 2 % 2) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_visits_every_pe_in_at_most_two_hops() {
        for side in 2..12 {
            let mut at = 0;
            for place in 0..side {
                assert_eq!(ring_place(at, side), place);
                assert!(next(at, side).abs_diff(at) <= 2);
                at = next(at, side);
            }
            assert_eq!(at, 0);
        }
    }
}
