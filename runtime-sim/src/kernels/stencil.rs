//! The tiled star stencil of Jorineg/cerebras (`tiled-stencil`): every PE has a tile with halos of `radius`, exchanges
//! borders with its neighbours and updates the tile; PEs around the grid hold fixed values.
//!
//! Radius 1 has a program of its own there: sums with descriptors in registers, and on the WSE-3, for tiles of at least
//! 4 x 4, no waiting for the exchange.

use super::*;

/// A stencil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stencil {
    /// Width of a tile.
    pub width: u32,
    /// Height of a tile.
    pub height: u32,
    /// Farthest value on each arm.
    pub radius: u32,
    /// Columns of PEs that update their tile.
    pub columns: u32,
    /// Rows of them.
    pub rows: u32,
    /// Whether an iteration waits until every transfer is counted.
    pub waits: bool,
}

const SIDES: [Port; 4] = [Port::West, Port::East, Port::North, Port::South];

/// Instructions of the task that begins an iteration: the 32-bit counter compared and counted, blocking and branches.
const LOOP: u32 = 12;

/// Instructions of a task that counts a finished transfer: load, add, store, compare, branch, return.
const COUNT: u32 = 6;

impl Stencil {
    /// The program of some iterations.
    pub fn program(&self, iterations: u32) -> WaferProgram {
        let (width, height) = (self.columns + 2, self.rows + 2);
        let mut program = WaferProgram::new(width, height);
        let across = width * self.width + self.line();
        program.tensor("v", u64::from(across) * u64::from(height * self.height + self.tall()));
        program.tensor("out", u64::from(width * height) * u64::from(self.words()));
        for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
            program.classes.push(self.class(x, y, across, iterations));
        }
        program
    }

    /// Words of a line of the tile with its halos and a spare one.
    fn line(&self) -> u32 {
        self.width + 2 * self.radius + 1
    }

    fn tall(&self) -> u32 {
        self.height + 2 * self.radius
    }

    fn words(&self) -> u32 {
        self.line() * self.tall()
    }

    /// Words between the two arrays. They follow one another; those of radius 1 are exported, which moves them apart: where
    /// to is not known, and the rows show no collisions.
    fn gap(&self) -> u32 {
        if self.radius > 1 {
            return 0;
        }
        let line = i64::from(self.line());
        let collisions = |gap: &u32| {
            let apart = i64::from(self.words() + gap);
            [-line, line, -1, 1].into_iter().filter(|arm| (apart + arm) % 4 == 0).count()
        };
        (0..4).min_by_key(collisions).unwrap_or(0)
    }

    fn class(&self, x: u32, y: u32, across: u32, iterations: u32) -> Class {
        let (width, height) = (self.columns + 2, self.rows + 2);
        let mut class = class_at(x, y);
        buffer(&mut class, "own", DType::F32, self.words(), 0);
        buffer(&mut class, "tile", DType::F32, self.words(), 4 * (self.words() + self.gap()));
        if let Some(tile) = class.buffers.get_mut("tile") {
            let dims: Vec<Affine> = [self.tall(), self.line()].map(|n| i64::from(n).into()).into();
            let first = Affine::term(Var::X, i64::from(self.width))
                .plus(Var::Y, i64::from(self.height) * i64::from(across))
                .plus(Var::Dim(0), i64::from(across))
                .plus(Var::Dim(1), 1);
            tile.load = Some(TensorMap { tensor: "v".into(), dims: dims.clone(), index: first });
            let words = i64::from(self.words());
            let own = Affine::term(Var::X, words)
                .plus(Var::Y, words * i64::from(width))
                .plus(Var::Dim(0), i64::from(self.line()))
                .plus(Var::Dim(1), 1);
            tile.store = Some(TensorMap { tensor: "out".into(), dims, index: own });
        }
        let sides: Vec<Port> =
            SIDES.into_iter().filter(|side| neighbour(x, y, *side, width, height).is_some()).collect();
        for side in &sides {
            class.routes.insert(colour(*side, x + y), Route::fixed(Port::Ramp, &[*side]));
            let comes = colour(opposite(*side), x + y + 1);
            class.routes.insert(comes, Route::fixed(*side, &[Port::Ramp]));
        }
        let inner = (1..=self.columns).contains(&x) && (1..=self.rows).contains(&y);
        let mut body = self.exchange(&sides, x + y);
        if inner {
            body.extend(if self.radius == 1 { self.sums() } else { self.multiplies() });
        }
        class.start("main", vec![repeat(iterations, body)]);
        class
    }

    /// Borders out, halos in; those of equal length side by side.
    fn exchange(&self, sides: &[Port], parity: u32) -> Vec<Stmt> {
        let transfers = 2 * sides.len() as u32;
        let mut body = Vec::new();
        if self.waits {
            body.extend([serial(Serial::Tasks, 2), code(LOOP)]);
        }
        // Descriptors of one dimension are an instruction each, and only those in memory are loaded anew. Where nobody
        // waits, instructions pass while words move.
        match self.radius {
            1 if self.waits => body.push(code(transfers)),
            1 => {}
            _ => body.push(serial(Serial::Transfers, transfers)),
        }
        for pair in [[Port::West, Port::East], [Port::North, Port::South]] {
            let present = pair.into_iter().filter(|side| sides.contains(side));
            let moves: Vec<VectorOp> = present.flat_map(|side| self.transfer(side, parity)).collect();
            if !moves.is_empty() {
                body.push(Stmt::Par(moves));
            }
        }
        if self.waits {
            body.extend([serial(Serial::Tasks, transfers), code(COUNT * transfers)]);
        }
        body
    }

    /// The border sent to a side, and the halo received from it.
    fn transfer(&self, side: Port, parity: u32) -> [VectorOp; 2] {
        let (r, w, h) = (self.radius, self.width, self.height);
        let (dims, border, halo) = match side {
            Port::West => ([h, r], (r, r), (r, 0)),
            Port::East => ([h, r], (r, w), (r, w + r)),
            Port::North => ([r, w], (r, r), (0, r)),
            _ => ([r, w], (h, r), (h + r, r)),
        };
        let wire = Wire::F32;
        let out = Dest::Out { colour: colour(side, parity), wire };
        let comes = Operand::In { colour: colour(opposite(side), parity + 1), wire };
        [
            op(OpKind::Mov, out, vec![Operand::Mem(self.part("tile", border))], &dims),
            op(OpKind::Mov, Dest::Mem(self.part("tile", halo)), vec![comes], &dims),
        ]
    }

    /// Part of an array from a line and a word of it on.
    fn part(&self, buffer: &str, (line, word): (u32, u32)) -> Slice {
        slice(buffer, i64::from(line * self.line() + word), &[i64::from(self.line()), 1])
    }

    /// The tile, shifted by some words.
    fn shifted(&self, buffer: &str, words: i64) -> Slice {
        let centre = i64::from(self.radius * self.line() + self.radius);
        slice(buffer, centre + words, &[i64::from(self.line()), 1])
    }

    fn on_tile(&self, kind: OpKind, dst: Slice, src: Vec<Operand>) -> Stmt {
        Stmt::Op(op(kind, Dest::Mem(dst), src, &[self.height, self.width]))
    }

    /// Radius 2 and more: a multiply-add for each value of the arms and one for the centre, each with a descriptor that
    /// is computed by the compiler and loaded from memory.
    fn multiplies(&self) -> Vec<Stmt> {
        let line = i64::from(self.line());
        let own = || self.shifted("own", 0);
        let arms = (1..=i64::from(self.radius)).flat_map(|i| [-i * line, i * line, -i, i].map(|at| (i, at)));
        let mut body = Vec::new();
        for (k, (i, at)) in arms.enumerate() {
            let (value, weight) = (Operand::Mem(self.shifted("tile", at)), Operand::Const(self.weight(i)));
            body.push(serial(Serial::Descriptors, 1));
            body.push(match k {
                0 => self.on_tile(OpKind::Mul, own(), vec![value, weight]),
                _ => self.on_tile(OpKind::Fmac, own(), vec![value, weight, Operand::Mem(own())]),
            });
        }
        let centre = self.shifted("tile", 0);
        let source = vec![Operand::Mem(centre.clone()), Operand::Const(self.weight(0)), Operand::Mem(own())];
        body.push(serial(Serial::Descriptors, 1));
        body.push(self.on_tile(OpKind::Fmac, centre, source));
        body
    }

    /// Radius 1: scale the centre, add the arms, scale the sum.
    fn sums(&self) -> Vec<Stmt> {
        let line = i64::from(self.line());
        let own = || self.shifted("own", 0);
        let ratio = Operand::Const(self.weight(0) / self.weight(1));
        let mut body =
            vec![self.on_tile(OpKind::Mul, own(), vec![Operand::Mem(self.shifted("tile", 0)), ratio])];
        for at in [-line, line, -1, 1] {
            let source = vec![Operand::Mem(own()), Operand::Mem(self.shifted("tile", at))];
            body.push(self.on_tile(OpKind::Add, own(), source));
        }
        let weight = Operand::Const(self.weight(1));
        body.push(self.on_tile(OpKind::Mul, self.shifted("tile", 0), vec![Operand::Mem(own()), weight]));
        body
    }

    /// The weight of a value at a distance; all of them sum up to one.
    fn weight(&self, distance: i64) -> f32 {
        let of = |distance: i64| 0.5_f32.powi(distance as i32);
        let sum: f32 = (1..=i64::from(self.radius)).map(|i| 4.0 * of(i)).sum();
        of(distance) / (1.0 + sum)
    }
}

/// The colour on which PEs of a parity send to a side.
fn colour(side: Port, parity: u32) -> Colour {
    let number = match side {
        Port::West => 0,
        Port::East => 2,
        Port::North => 4,
        _ => 6,
    };
    Colour(number + (parity % 2) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A naive update of all inner tiles.
    fn expected(kernel: &Stencil, v: &[f32], across: usize) -> Vec<f32> {
        let (r, w, h) = (kernel.radius as usize, kernel.width as usize, kernel.height as usize);
        let mut next = v.to_vec();
        for y in r + h..r + h * (1 + kernel.rows as usize) {
            for x in r + w..r + w * (1 + kernel.columns as usize) {
                let arms = (1..=r).map(|i| {
                    let at = |dx: isize, dy: isize| {
                        v[(y as isize + dy) as usize * across + (x as isize + dx) as usize]
                    };
                    let i = i as isize;
                    kernel.weight(i as i64) * (at(0, -i) + at(0, i) + at(-i, 0) + at(i, 0))
                });
                next[y * across + x] = kernel.weight(0) * v[y * across + x] + arms.sum::<f32>();
            }
        }
        next
    }

    #[test]
    fn tiles_hold_what_a_naive_stencil_computes() {
        let fabric = FabricSpec::wse2();
        for (radius, width, height) in [(1, 3, 2), (2, 4, 3), (3, 3, 5)] {
            let kernel = Stencil { width, height, radius, columns: 2, rows: 2, waits: true };
            let program = kernel.program(2);
            let count = program.tensors["v"].elements as usize;
            let v: Vec<f32> = (0..count).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
            let across = (4 * width + kernel.line()) as usize;
            let checked = check(&program, &fabric).unwrap_or_else(|e| panic!("{e:#?}"));
            let run = event::simulate(&checked, BTreeMap::from([("v".to_string(), v.clone())])).unwrap();
            let want = expected(&kernel, &expected(&kernel, &v, across), across);
            let (r, line, words) = (radius as usize, kernel.line() as usize, kernel.words() as usize);
            for (px, py) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
                for (i, j) in (0..height as usize).flat_map(|i| (0..width as usize).map(move |j| (i, j))) {
                    let got = run.tensors["out"][(py * 4 + px) * words + (r + i) * line + r + j];
                    let at = (py * height as usize + r + i) * across + px * width as usize + r + j;
                    assert!((got - want[at]).abs() < 1e-5, "radius {radius}, ({px}, {py}), ({i}, {j})");
                }
            }
        }
    }
}
