//! All-reduce round a ring: the vector is cut into one part for each PE; parts travel east and, from the last PE, back to
//! the first; a first time round they are summed, a second time their sums are handed out.

use super::{Line, empty, member, merge, store_all};
use crate::program::{
    Affine, Class, Colour, Dest, OpKind, Operand, Port, Route, Slice, Stmt, VectorOp, WaferProgram, Wire,
};
use Port::{East, Ramp, West};

/// The colour from the last PE to the first.
const WRAP: u8 = 2;

/// Every PE receives the sum of the vectors of `pes` PEs. Of vectors that do not divide, the first parts are a word
/// longer; parts of no words do not travel.
pub fn ring_all_reduce(pes: u32, words: u32) -> WaferProgram {
    let mut program = empty(pes, 1, words);
    program.tensor("out", u64::from(pes) * u64::from(words));
    for x in 0..pes {
        let mut class = member(&program, x, 0, words);
        store_all(&mut class, pes, words);
        let line = Line { at: x, of: pes, colour: 0, back: West, ahead: East };
        let (send, receive) = routes(&mut class, &line);
        let ring = Ring { pes, words, x, send, receive };
        class.start("main", (0..2 * (pes - 1)).filter_map(|round| ring.round(round)).collect());
        program.classes.push(class);
    }
    merge(program)
}

/// Routes of a PE: colours alternate by parity, as in a chain, and one goes back along the whole row.
fn routes(class: &mut Class, line: &Line) -> (Colour, Colour) {
    let (own, other) = (Colour((line.at % 2) as u8), Colour(((line.at + 1) % 2) as u8));
    let (first, last) = (line.at == 0, line.at + 1 == line.of);
    let wrap = Colour(WRAP);
    if !last {
        class.routes.insert(own, Route::fixed(Ramp, &[line.ahead]));
    }
    if !first {
        class.routes.insert(other, Route::fixed(line.back, &[Ramp]));
    }
    let back = match (first, last) {
        (true, _) => Route::fixed(line.ahead, &[Ramp]),
        (_, true) => Route::fixed(Ramp, &[line.back]),
        _ => Route::fixed(line.ahead, &[line.back]),
    };
    class.routes.insert(wrap, back);
    (if last { wrap } else { own }, if first { wrap } else { other })
}

struct Ring {
    pes: u32,
    words: u32,
    x: u32,
    send: Colour,
    receive: Colour,
}

impl Ring {
    /// Sends one part on and takes the one before it; `None` where both are of no words.
    fn round(&self, round: u32) -> Option<Stmt> {
        let part = |back: u32| (self.x + 2 * self.pes - round % self.pes - back) % self.pes;
        let (gone, come) = match round < self.pes - 1 {
            true => (part(0), part(1)),
            // The sum of part x + 1 is complete at PE x, and is the first to be handed on.
            false => {
                let round = round - (self.pes - 1);
                let part = |ahead: u32| (self.x + 2 * self.pes + ahead - round) % self.pes;
                (part(1), part(0))
            }
        };
        let mut ops = Vec::new();
        let out = Dest::Out { colour: self.send, wire: Wire::F32 };
        ops.extend(self.op(gone, OpKind::Mov, Some(out), vec![self.slice(gone)]));
        let arrives = Operand::In { colour: self.receive, wire: Wire::F32 };
        let (kind, sources) = match round < self.pes - 1 {
            true => (OpKind::Add, vec![self.slice(come), arrives]),
            false => (OpKind::Mov, vec![arrives]),
        };
        ops.extend(self.op(come, kind, None, sources));
        match ops.len() {
            0 => None,
            1 => ops.pop().map(Stmt::Op),
            _ => Some(Stmt::Par(ops)),
        }
    }

    fn op(&self, part: u32, kind: OpKind, out: Option<Dest>, src: Vec<Operand>) -> Option<VectorOp> {
        let Operand::Mem(place) = self.slice(part) else { return None };
        let words = self.size(part);
        let dims = vec![Affine::constant(i64::from(words))];
        (words > 0).then(|| VectorOp { kind, dst: out.unwrap_or(Dest::Mem(place)), src, dims })
    }

    fn size(&self, part: u32) -> u32 {
        self.words / self.pes + u32::from(part < self.words % self.pes)
    }

    fn slice(&self, part: u32) -> Operand {
        let at = part * (self.words / self.pes) + part.min(self.words % self.pes);
        let at = Affine::constant(i64::from(at));
        Operand::Mem(Slice { buffer: "v".into(), at, strides: Vec::new() })
    }
}
