//! Collectives along a row or over a grid of PEs, as programs: what the fabric does best, and the measure of the
//! simulator against the published cost model.
//!
//! Every PE has a vector `v` of `words` f32 values, loaded from tensor `v`; the result is stored to tensor `out`.
//! Programs say what is sent where; nothing in here knows how long it takes.

mod named;
mod pick;
mod ring;

pub use named::{Collective, word_hops};
pub use pick::{Reduce, pick_reduce, reduce_program};
pub use ring::ring_all_reduce;

pub use lapidary_hardware::price::wafer::balanced_groups;

use crate::program::{
    Affine, Buffer, Class, Colour, Command, Dest, OpKind, Operand, Port, Region, Route, Slice, Stmt,
    TensorMap, Var, VectorOp, WaferProgram, Wire,
};
use Port::{East, North, Ramp, South, West};
use lapidary_models::dtype::DType;

/// The root, PE (0, 0), receives the sum: each PE adds its vector to what comes from the east and passes it on.
pub fn chain_reduce(pes: u32, words: u32) -> WaferProgram {
    let mut program = empty(pes, 1, words);
    for x in 0..pes {
        let mut class = member(&program, x, 0, words);
        if x == 0 {
            store(&mut class);
        }
        chain_link(&mut class, Line { at: x, of: pes, colour: 0, back: West, ahead: East }, words);
        program.classes.push(class);
    }
    merge(program)
}

/// Every PE receives the vector of PE (0, 0), which is multicast along the row.
pub fn broadcast(pes: u32, words: u32) -> WaferProgram {
    let mut program = empty(pes, 1, words);
    program.tensor("out", u64::from(pes) * u64::from(words));
    for x in 0..pes {
        let mut class = member(&program, x, 0, words);
        store_all(&mut class, pes, words);
        spread(&mut class, 0, x, pes, West, East);
        let body = if x == 0 { send(0, words) } else { receive(0, words) };
        class.start("main", vec![body]);
        program.classes.push(class);
    }
    merge(program)
}

/// A chain to PE (0, 0), then a multicast of the sum back along the row: everybody has the sum.
pub fn reduce_broadcast(pes: u32, words: u32) -> WaferProgram {
    let mut program = empty(pes, 1, words);
    program.tensor("out", u64::from(pes) * u64::from(words));
    for x in 0..pes {
        let mut class = member(&program, x, 0, words);
        store_all(&mut class, pes, words);
        chain_link(&mut class, Line { at: x, of: pes, colour: 0, back: West, ahead: East }, words);
        spread(&mut class, 2, x, pes, West, East);
        let body = if x == 0 { send(2, words) } else { receive(2, words) };
        class.tasks[0].body.push(body);
        program.classes.push(class);
    }
    merge(program)
}

/// Everybody sends to PE (0, 0) directly, the nearest first; routers switch to the next sender behind each last word.
pub fn star_reduce(pes: u32, words: u32) -> WaferProgram {
    let mut program = empty(pes, 1, words);
    for x in 0..pes {
        let mut class = member(&program, x, 0, words);
        if x == 0 {
            store(&mut class);
            class.routes.insert(Colour(0), Route::fixed(East, &[Ramp]));
            let others = Affine::constant(i64::from(pes) - 1);
            class.start("main", vec![Stmt::Loop { count: others, body: vec![accumulate(0, words)] }]);
        } else {
            let own = Route::fixed(Ramp, &[West]);
            let route = if x + 1 < pes { own.then(East, &[West]) } else { own };
            class.routes.insert(Colour(0), route);
            let dst = Dest::OutThen { colour: Colour(0), wire: Wire::F32, then: Command::Advance };
            class.start("main", vec![op(OpKind::Mov, dst, vec![vector()], words)]);
        }
        program.classes.push(class);
    }
    merge(program)
}

/// A binary tree to PE (0, 0): in round l, PEs at odd multiples of 2^l send their sum 2^l hops to the west.
///
/// `pes` is a power of two, at most 2^24.
pub fn tree_reduce(pes: u32, words: u32) -> WaferProgram {
    let mut program = empty(pes, 1, words);
    let rounds = pes.max(1).ilog2();
    for x in 0..pes {
        let mut class = member(&program, x, 0, words);
        if x == 0 {
            store(&mut class);
        }
        let mut body = Vec::new();
        for round in 0..rounds {
            let colour = round as u8;
            let (distance, place) = (1 << round, x % (2 << round));
            let route = match place {
                0 => Route::fixed(East, &[Ramp]),
                p if p == distance => Route::fixed(Ramp, &[West]),
                p if p < distance => Route::fixed(East, &[West]),
                _ => continue,
            };
            class.routes.insert(Colour(colour), route);
            match place {
                0 => body.push(accumulate(colour, words)),
                p if p == distance => body.push(send(colour, words)),
                _ => {}
            }
        }
        class.start("main", body);
        program.classes.push(class);
    }
    merge(program)
}

/// Chains inside groups of neighbours, then a chain over the groups' first PEs. `groups` are their sizes, that of the root
/// first; their sum is the length of the row.
pub fn two_phase_reduce(groups: &[u32], words: u32) -> WaferProgram {
    let pes = groups.iter().sum();
    let mut program = empty(pes, 1, words);
    let count = groups.len() as u32;
    let places = (0..).zip(groups).flat_map(|(number, of)| (0..*of).map(move |at| (number, at, *of)));
    for (x, (number, at, of)) in (0..).zip(places) {
        let mut class = member(&program, x, 0, words);
        if x == 0 {
            store(&mut class);
        }
        chain_link(&mut class, Line { at, of, colour: 0, back: West, ahead: East }, words);
        if at == 0 {
            let outer = Line { at: number, of: count, colour: 2, back: West, ahead: East };
            chain_link(&mut class, outer, words);
        } else if number + 1 < count {
            let colour = 2 + ((number + 1) % 2) as u8;
            class.routes.insert(Colour(colour), Route::fixed(East, &[West]));
        }
        program.classes.push(class);
    }
    merge(program)
}

/// Chains along all rows, then a chain along column 0; PE (0, 0) receives the sum of `side` x `side` vectors.
pub fn xy_reduce(side: u32, words: u32) -> WaferProgram {
    let mut program = empty(side, side, words);
    for (x, y) in (0..side).flat_map(|y| (0..side).map(move |x| (x, y))) {
        let mut class = member(&program, x, y, words);
        if (x, y) == (0, 0) {
            store(&mut class);
        }
        chain_link(&mut class, Line { at: x, of: side, colour: 0, back: West, ahead: East }, words);
        if x == 0 {
            chain_link(&mut class, Line { at: y, of: side, colour: 2, back: North, ahead: South }, words);
        }
        program.classes.push(class);
    }
    merge(program)
}

/// A multicast of the vector of PE (0, 0) to a whole grid: along row 0, and down every column.
pub fn broadcast_2d(width: u32, height: u32, words: u32) -> WaferProgram {
    let mut program = empty(width, height, words);
    program.tensor("out", u64::from(width) * u64::from(height) * u64::from(words));
    for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
        let mut class = member(&program, x, y, words);
        store_all(&mut class, width, words);
        let from = match (x, y) {
            (0, 0) => Ramp,
            (_, 0) => West,
            _ => North,
        };
        let mut to = Vec::new();
        to.extend((y == 0 && x + 1 < width).then_some(East));
        to.extend((y + 1 < height).then_some(South));
        to.extend((from != Ramp).then_some(Ramp));
        class.routes.insert(Colour(0), Route::fixed(from, &to));
        let body = if from == Ramp { send(0, words) } else { receive(0, words) };
        class.start("main", vec![body]);
        program.classes.push(class);
    }
    merge(program)
}

/// A reduction to PE (0, 0) along rows and column 0, then a broadcast to the whole grid.
pub fn all_reduce_2d(width: u32, height: u32, words: u32) -> WaferProgram {
    let mut program = broadcast_2d(width, height, words);
    let mut classes = Vec::new();
    for class in split(&program) {
        let Region { x, y, .. } = class.regions[0];
        let mut class = Class { tasks: Vec::new(), routes: shift(&class, 4), ..class };
        chain_link(&mut class, Line { at: x, of: width, colour: 0, back: West, ahead: East }, words);
        if x == 0 {
            chain_link(&mut class, Line { at: y, of: height, colour: 2, back: North, ahead: South }, words);
        }
        let body = if (x, y) == (0, 0) { send(4, words) } else { receive(4, words) };
        class.tasks[0].body.push(body);
        classes.push(class);
    }
    program.classes = classes;
    merge(program)
}

/// A position on a line of PEs that reduce towards position 0.
struct Line {
    at: u32,
    of: u32,
    colour: u8,
    back: Port,
    ahead: Port,
}

/// Adds one link of a chain to the class's main task. Neighbours alternate two colours, because a router takes a
/// colour from one side only.
fn chain_link(class: &mut Class, line: Line, words: u32) {
    let own = line.colour + (line.at % 2) as u8;
    let other = line.colour + ((line.at + 1) % 2) as u8;
    let (first, last) = (line.at == 0, line.at + 1 == line.of);
    if !first {
        class.routes.insert(Colour(own), Route::fixed(Ramp, &[line.back]));
    }
    if !last {
        class.routes.insert(Colour(other), Route::fixed(line.ahead, &[Ramp]));
    }
    let body = match (first, last) {
        (true, true) => None,
        (true, false) => Some(accumulate(other, words)),
        (false, true) => Some(send(own, words)),
        (false, false) => Some(op(OpKind::Add, out(own), vec![vector(), input(other)], words)),
    };
    if class.tasks.is_empty() {
        class.start("main", Vec::new());
    }
    class.tasks[0].body.extend(body);
}

/// Routes a multicast along a line from position 0.
fn spread(class: &mut Class, colour: u8, at: u32, of: u32, back: Port, ahead: Port) {
    let last = at + 1 == of;
    let route = match (at, last) {
        (0, true) => return,
        (0, false) => Route::fixed(Ramp, &[ahead]),
        (_, false) => Route::fixed(back, &[Ramp, ahead]),
        (_, true) => Route::fixed(back, &[Ramp]),
    };
    class.routes.insert(Colour(colour), route);
}

fn empty(width: u32, height: u32, words: u32) -> WaferProgram {
    let mut program = WaferProgram::new(width, height);
    program.tensor("v", u64::from(width) * u64::from(height) * u64::from(words));
    program.tensor("out", u64::from(words));
    program
}

/// One PE with its vector.
fn member(program: &WaferProgram, x: u32, y: u32, words: u32) -> Class {
    let mut class = Class::new(format!("pe_{x}_{y}"), Region::pe(x, y));
    let mut buffer = Buffer::new(DType::F32, words, 0);
    buffer.load = Some(per_pe("v", program.width, words));
    class.buffers.insert("v".into(), buffer);
    class
}

fn per_pe(tensor: &str, width: u32, words: u32) -> TensorMap {
    let row = i64::from(width) * i64::from(words);
    let index = Affine::term(Var::X, i64::from(words)).plus(Var::Y, row).plus(Var::Dim(0), 1);
    TensorMap { tensor: tensor.into(), dims: vec![Affine::constant(i64::from(words))], index }
}

fn store(class: &mut Class) {
    if let Some(buffer) = class.buffers.get_mut("v") {
        let dims = vec![Affine::constant(i64::from(buffer.elements))];
        buffer.store = Some(TensorMap { tensor: "out".into(), dims, index: Var::Dim(0).into() });
    }
}

fn store_all(class: &mut Class, width: u32, words: u32) {
    if let Some(buffer) = class.buffers.get_mut("v") {
        buffer.store = Some(per_pe("out", width, words));
    }
}

fn op(kind: OpKind, dst: Dest, src: Vec<Operand>, words: u32) -> Stmt {
    Stmt::Op(VectorOp { kind, dst, src, dims: vec![Affine::constant(i64::from(words))] })
}

fn slice() -> Slice {
    Slice { buffer: "v".into(), at: Affine::constant(0), strides: Vec::new() }
}

fn vector() -> Operand {
    Operand::Mem(slice())
}

fn input(colour: u8) -> Operand {
    Operand::In { colour: Colour(colour), wire: Wire::F32 }
}

fn out(colour: u8) -> Dest {
    Dest::Out { colour: Colour(colour), wire: Wire::F32 }
}

fn send(colour: u8, words: u32) -> Stmt {
    op(OpKind::Mov, out(colour), vec![vector()], words)
}

fn receive(colour: u8, words: u32) -> Stmt {
    op(OpKind::Mov, Dest::Mem(slice()), vec![input(colour)], words)
}

fn accumulate(colour: u8, words: u32) -> Stmt {
    op(OpKind::Add, Dest::Mem(slice()), vec![vector(), input(colour)], words)
}

fn shift(class: &Class, colours: u8) -> std::collections::BTreeMap<Colour, Route> {
    class.routes.iter().map(|(c, r)| (Colour(c.0 + colours), r.clone())).collect()
}

/// One class per PE.
fn split(program: &WaferProgram) -> Vec<Class> {
    let single = |class: &Class, x: u32, y: u32| Class {
        name: format!("pe_{x}_{y}"),
        regions: vec![Region::pe(x, y)],
        ..class.clone()
    };
    let all = program.classes.iter();
    all.flat_map(|c| c.regions.iter().flat_map(move |r| r.pes().map(move |at| single(c, at.x, at.y))))
        .collect()
}

/// Joins classes that differ only in name and place.
fn merge(mut program: WaferProgram) -> WaferProgram {
    let mut merged: Vec<Class> = Vec::new();
    for class in program.classes {
        let same =
            |m: &&mut Class| m.routes == class.routes && m.tasks == class.tasks && m.buffers == class.buffers;
        match merged.iter_mut().find(same) {
            Some(m) => m.regions.extend(class.regions),
            None => merged.push(class),
        }
    }
    program.classes = merged;
    program
}
