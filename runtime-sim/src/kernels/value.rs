//! The stencil of radius 1 with one value in each PE of Jorineg/cerebras (`non-tiled-tencil`): every PE sends its
//! weighted value to all sides and adds what comes; PEs around the grid send fixed values, one ahead of the others.

use super::*;

/// A stencil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueStencil {
    /// Columns of PEs, those around it included.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// Whether an op can read two streams: on the WSE-2, not on the WSE-3.
    pub two_streams: bool,
}

const SIDES: [Port; 4] = [Port::East, Port::West, Port::North, Port::South];

/// Weights of the value itself and of its neighbours.
const WEIGHTS: (f32, f32) = (1.0 / 3.0, 1.0 / 6.0);

impl ValueStencil {
    /// The program of some iterations.
    pub fn program(&self, iterations: u32) -> WaferProgram {
        let mut program = WaferProgram::new(self.width, self.height);
        let all = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        program.classes = all.map(|(x, y)| self.class(x, y, iterations)).collect();
        program
    }

    fn inner(&self, x: u32, y: u32) -> bool {
        (1..self.width - 1).contains(&x) && (1..self.height - 1).contains(&y)
    }

    /// Sides behind which a PE computes.
    fn computing(&self, x: u32, y: u32) -> Vec<Port> {
        let computes = |side: &Port| {
            neighbour(x, y, *side, self.width, self.height).is_some_and(|(x, y)| self.inner(x, y))
        };
        SIDES.into_iter().filter(computes).collect()
    }

    fn class(&self, x: u32, y: u32, iterations: u32) -> Class {
        let mut class = class_at(x, y);
        for (k, name) in ["value", "first", "second", "fixed"].into_iter().enumerate() {
            buffer(&mut class, name, DType::F32, 1, 4 * k as u32);
        }
        let inner = self.inner(x, y);
        let to = if inner { SIDES.to_vec() } else { self.computing(x, y) };
        if to.is_empty() {
            return class;
        }
        class.routes.insert(colour(x, y), Route::fixed(Port::Ramp, &to));
        let mut inputs = Vec::new();
        for side in &to {
            let (nx, ny) = neighbour(x, y, *side, self.width, self.height).unwrap_or((x, y));
            class.routes.insert(colour(nx, ny), Route::fixed(*side, &[Port::Ramp]));
            inputs.push(Operand::In { colour: colour(nx, ny), wire: Wire::F32 });
        }
        let out = || Dest::Out { colour: colour(x, y), wire: Wire::F32 };
        let mut body = Vec::new();
        if inner {
            body.push(repeat(iterations, self.update(out(), &inputs)));
            // The word by which fixed PEs are ahead.
            let fixed = |side: &Port| {
                let (nx, ny) = neighbour(x, y, *side, self.width, self.height).unwrap_or((x, y));
                !self.inner(nx, ny)
            };
            let ahead = to.iter().zip(&inputs).filter(|(side, _)| fixed(side));
            body.extend(ahead.map(|(_, input)| one(OpKind::Mov, memory("fixed"), vec![input.clone()])));
        } else {
            let send = || one(OpKind::Mov, out(), vec![value("fixed")]);
            let receive = one(OpKind::Mov, memory("first"), vec![inputs[0].clone()]);
            body.extend([send(), repeat(iterations, vec![send(), receive])]);
        }
        class.start("main", body);
        class
    }

    fn update(&self, out: Dest, inputs: &[Operand]) -> Vec<Stmt> {
        let weighted = |weight: f32| vec![value("value"), Operand::Const(weight)];
        let add = |to: &str, a: Operand, b: Operand| one(OpKind::Add, memory(to), vec![a, b]);
        let mut body = vec![
            one(OpKind::Mul, out, weighted(WEIGHTS.1)),
            one(OpKind::Mul, memory("value"), weighted(WEIGHTS.0)),
        ];
        if self.two_streams {
            body.push(add("first", inputs[0].clone(), inputs[1].clone()));
            body.push(add("second", inputs[2].clone(), inputs[3].clone()));
            body.extend(["first", "second"].map(|sum| add("value", value("value"), value(sum))));
        } else {
            body.extend(inputs.iter().map(|input| add("value", value("value"), input.clone())));
        }
        body
    }
}

/// Six colours, so that the four neighbours of a PE send on four others than its own.
fn colour(x: u32, y: u32) -> Colour {
    Colour(((x + (y / 2) % 2) % 3 + (y % 2) * 3) as u8)
}

fn one(kind: OpKind, dst: Dest, src: Vec<Operand>) -> Stmt {
    Stmt::Op(op(kind, dst, src, &[1]))
}

fn memory(buffer: &str) -> Dest {
    Dest::Mem(slice(buffer, 0, &[]))
}

fn value(buffer: &str) -> Operand {
    Operand::Mem(slice(buffer, 0, &[]))
}
