//! Programs of three kinds of traffic, columns fed by the host, chains along rows and steps down within groups of
//! rows, in which single PEs can be spoilt.

use crate::program::*;
use lapidary_models::dtype::DType;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A program and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Case {
    width: u32,
    height: u32,
    /// Rows per group: words of PEs go down within a group only.
    group: u32,
    /// Words of one pass of a chain, without what depends on the row.
    words: u32,
    /// Passes, and how many more per column.
    passes: (i64, i64),
    /// Chains run before words go down, and are of one length in all rows.
    early: bool,
    /// How many more passes go down from each row than from the one above it, if all columns have as many.
    grows: Option<i64>,
    pub faults: Vec<Fault>,
}

/// What is done to the PE at a place, or to all in its column and at its place of a group.
#[derive(Clone, Debug)]
pub struct Fault {
    x: u32,
    y: u32,
    wide: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The length of its `n`th op grows.
    Longer(usize, Affine),
    /// Its `n`th loop runs once more.
    More(usize),
    /// Its `n`th route is gone.
    NoRoute(usize),
    /// Its `n`th route takes words from another port.
    From(usize, Port),
    /// Its `n`th route sends words to another port only.
    To(usize, Port),
    /// Its buffer is shorter.
    Smaller(u32),
    /// Its `n`th op begins later in its buffer.
    Later(usize, Affine),
    /// Words of the host end here.
    Cut,
    /// What it uses of one colour it uses of another.
    Recolour(u8, u8),
    /// It sends to the host beyond an edge, which only the first or the last row can reach.
    Exit(Port),
    /// It is not there.
    Gone,
    /// The host sends more, or less.
    Host(i64),
}

const PORTS: [Port; 5] = [Port::Ramp, Port::North, Port::East, Port::South, Port::West];

fn growth() -> impl Strategy<Value = Affine> {
    let var = prop_oneof![Just(Var::Y), (2u32..9).prop_map(Var::YOver), (2u32..4).prop_map(Var::XOver)];
    prop_oneof![Just(Affine::constant(1)), var.prop_map(Affine::from)]
}

fn kind() -> impl Strategy<Value = Kind> {
    let port = || prop::sample::select(&PORTS[..]);
    prop_oneof![
        (0usize..5, growth()).prop_map(|(n, by)| Kind::Longer(n, by)),
        (0usize..3).prop_map(Kind::More),
        (0usize..5).prop_map(Kind::NoRoute),
        (0usize..5, port()).prop_map(|(n, port)| Kind::From(n, port)),
        (0usize..5, port()).prop_map(|(n, port)| Kind::To(n, port)),
        (1u32..12).prop_map(Kind::Smaller),
        (0usize..5, -2i64..6, -1i64..2)
            .prop_map(|(n, base, by)| Kind::Later(n, Affine::constant(base).plus(Var::Y, by))),
        Just(Kind::Cut),
        (1u8..3, 1u8..7).prop_map(|(from, to)| Kind::Recolour(from, to)),
        prop::sample::select(&[Port::North, Port::South][..]).prop_map(Kind::Exit),
        Just(Kind::Gone),
        (-1i64..2).prop_map(Kind::Host),
    ]
}

/// Random cases, most of them with a fault.
pub fn case() -> impl Strategy<Value = Case> {
    (2u32..5, 1u32..12, 1u32..5, 1u32..5, (1i64..3, 0i64..3), any::<bool>()).prop_flat_map(
        |(width, height, group, words, passes, early)| {
            spoilt(Case { width, height, group, words, passes, early, grows: None, faults: Vec::new() })
        },
    )
}

/// Random cases in which words go down from row to row through all rows.
pub fn long_case() -> impl Strategy<Value = Case> {
    (2u32..5, 15u32..28, 1u32..4, any::<bool>(), prop_oneof![Just(None), (-1i64..3).prop_map(Some)])
        .prop_flat_map(|(width, height, words, early, grows)| {
            spoilt(Case { width, height, words, early, grows, ..Case::long(Vec::new()) })
        })
}

fn spoilt(case: Case) -> impl Strategy<Value = Case> {
    let fault = (0..case.width, 0..case.height, any::<bool>(), kind());
    let fault = fault.prop_map(|(x, y, wide, kind)| Fault { x, y, wide, kind });
    proptest::collection::vec(fault, 0..3).prop_map(move |faults| Case { faults, ..case.clone() })
}

/// Faults of each kind in a column, in one row and in all rows like it.
pub fn all_faults(x: u32, y: u32) -> Vec<Fault> {
    let kinds = (0..5).flat_map(|n| {
        let (port, later) = (PORTS[n], Affine::constant(40));
        let growth = [Affine::constant(1), Var::YOver(4).into(), Var::Y.into()].map(|by| Kind::Longer(n, by));
        let others =
            [Kind::More(n), Kind::NoRoute(n), Kind::From(n, port), Kind::To(n, port), Kind::Later(n, later)];
        growth.into_iter().chain(others)
    });
    let rest = [
        Kind::Smaller(11),
        Kind::Cut,
        Kind::Recolour(1, 5),
        Kind::Exit(Port::South),
        Kind::Exit(Port::North),
        Kind::Gone,
        Kind::Host(1),
    ];
    let both = |kind: Kind| [false, true].map(|wide| Fault { x, y, wide, kind: kind.clone() });
    kinds.chain(rest).flat_map(both).collect()
}

impl Case {
    /// Three columns and eleven rows in groups, with one fault.
    pub fn with(group: u32, fault: Fault) -> Self {
        let faults = vec![fault];
        Case { width: 3, height: 11, group, words: 2, passes: (1, 1), early: false, grows: None, faults }
    }

    /// Fifty columns and 25 rows, through all of which more and more words go down.
    pub fn long(faults: Vec<Fault>) -> Self {
        let (width, height) = (50, 25);
        Case { width, height, group: height, words: 2, passes: (1, 0), early: false, grows: Some(1), faults }
    }

    /// Whether it is right, and what grows down its rows is the same in all columns.
    pub fn is_told_by_few_rows(&self) -> bool {
        self.faults.is_empty() && self.grows.is_some()
    }

    /// The program; PEs that are alike share a class.
    pub fn program(&self) -> WaferProgram {
        let mut program = WaferProgram::new(self.width, self.height);
        program.tensor("w", 1 << 20);
        let mut classes: BTreeMap<([bool; 7], Vec<usize>), Class> = BTreeMap::new();
        for at in Region::rect(0, 0, self.width, self.height).pes().collect::<Vec<_>>() {
            let here = |f: &Fault| match f.wide {
                true => (f.x, f.y % self.group) == (at.x, at.y % self.group),
                false => (f.x, f.y) == (at.x, at.y),
            };
            let own = |f: &(usize, &Fault)| here(f.1) && !matches!(f.1.kind, Kind::Host(_));
            let faults: Vec<usize> = self.faults.iter().enumerate().filter(own).map(|(n, _)| n).collect();
            if faults.iter().any(|n| matches!(self.faults[*n].kind, Kind::Gone)) {
                continue;
            }
            let (last, inside) = (at.y + 1 == self.height, at.y % self.group);
            let column = [at.x == 0, at.x + 1 == self.width, at.x % 2 == 0];
            let row = [inside == 0, inside + 1 == self.group, at.y % 2 == 0, last];
            let place = [&column[..], &row].concat().try_into().unwrap();
            let class = classes.entry((place, faults.clone())).or_insert_with(|| {
                let mut class = self.member(at, last);
                class.name = format!("pe{}_{}", at.x, at.y);
                faults.iter().for_each(|n| self.faults[*n].kind.spoil(&mut class));
                class
            });
            class.regions.push(Region::pe(at.x, at.y));
        }
        program.classes = classes.into_values().collect();
        let more: i64 = self.faults.iter().map(|f| if let Kind::Host(n) = f.kind { n } else { 0 }).sum();
        let words = Affine::constant(self.passes.0 * i64::from(self.words) + more)
            .plus(Var::X, self.passes.1 * i64::from(self.words));
        program.host.push(stream("w", Direction::In, (0, self.width), Colour(0), words));
        for f in &self.faults {
            if let Kind::Exit(edge) = f.kind {
                let name = format!("exit{}{}", f.x, program.host.len());
                let stream = stream(&name, Direction::Out, (f.x, 1), EXIT, Affine::constant(2));
                program.host.push(HostStream { edge, ..stream });
            }
        }
        program
    }

    fn member(&self, at: Coord, bottom: bool) -> Class {
        let mut class = Class::default();
        class.buffers.insert("v".into(), Buffer::new(DType::F32, 40, 0));
        let down = if bottom { vec![Port::Ramp] } else { vec![Port::Ramp, Port::South] };
        class.routes.insert(Colour(0), Route::fixed(Port::North, &down));
        let passes = Affine::constant(self.passes.0).plus(Var::X, self.passes.1);
        let host = op(OpKind::Mov, memory(Affine::constant(0)), vec![input(0)], i64::from(self.words).into());
        let mut body = vec![Stmt::Loop { count: passes, body: vec![host] }];
        let (down, chain) = (self.step_down(&mut class, at, bottom), self.chain(&mut class, at));
        let both = if self.early { [chain, down] } else { [down, chain] };
        body.extend(both.into_iter().flatten());
        class.start("main", body);
        class
    }

    /// From a row of the group to the next: as many passes as the column has a number, or more and more.
    fn step_down(&self, class: &mut Class, at: Coord, bottom: bool) -> Vec<Stmt> {
        let (own, other) = (3 + (at.y % 2) as u8, 3 + ((at.y + 1) % 2) as u8);
        let words = i64::from(self.words);
        let passes = |row: i64| match self.grows {
            Some(by) => Affine::constant(if by < 0 { 30 } else { 1 } + by * row).plus(Var::Y, by),
            None => Affine::constant(1).plus(Var::X, 1),
        };
        let repeat = |row, op| Stmt::Loop { count: passes(row), body: vec![op] };
        let mut body = Vec::new();
        if !bottom && at.y % self.group + 1 < self.group {
            class.routes.insert(Colour(own), Route::fixed(Port::Ramp, &[Port::South]));
            body.push(repeat(0, op(OpKind::Mov, out(own), vec![from(Affine::constant(1))], words.into())));
        }
        if !at.y.is_multiple_of(self.group) {
            class.routes.insert(Colour(other), Route::fixed(Port::North, &[Port::Ramp]));
            let at =
                if self.grows.is_some() { Affine::constant(0) } else { Affine::term(Var::Loop(0), words) };
            body.push(repeat(-1, op(OpKind::Mov, memory(at), vec![input(other)], words.into())));
        }
        body
    }

    /// Sums to the east, longer by the number of the row in its group.
    fn chain(&self, class: &mut Class, at: Coord) -> Vec<Stmt> {
        let (own, other) = (1 + (at.x % 2) as u8, 1 + ((at.x + 1) % 2) as u8);
        let block = i64::from(self.group);
        let words =
            Affine::constant(i64::from(self.words)).plus(Var::Y, 1).plus(Var::YOver(self.group), -block);
        if at.x > 0 {
            class.routes.insert(Colour(other), Route::fixed(Port::West, &[Port::Ramp]));
        }
        if at.x + 1 < self.width {
            class.routes.insert(Colour(own), Route::fixed(Port::Ramp, &[Port::East]));
        }
        let here = || from(Affine::constant(0));
        let stmt = match (at.x, at.x + 1 == self.width) {
            (0, _) => op(OpKind::Mov, out(own), vec![here()], words),
            (_, true) => op(OpKind::Add, memory(Affine::constant(0)), vec![here(), input(other)], words),
            _ => op(OpKind::Add, out(own), vec![here(), input(other)], words),
        };
        vec![stmt]
    }
}

impl Kind {
    fn spoil(&self, class: &mut Class) {
        let body = &mut class.tasks[0].body;
        let count = class.routes.len();
        let colour = |n: usize| class.routes.keys().nth(n % count.max(1)).copied();
        match self {
            Kind::Longer(n, by) => with_op(body, *n, &mut |op| op.dims[0] = op.dims[0].clone() + by.clone()),
            Kind::Cut => drop(class.routes.insert(Colour(0), Route::fixed(Port::North, &[Port::Ramp]))),
            Kind::Recolour(old, new) => recolour(class, Colour(*old), Colour(*new)),
            Kind::Exit(edge) => {
                class.routes.insert(EXIT, Route::fixed(Port::Ramp, &[*edge]));
                body.push(op(OpKind::Mov, out(EXIT.0), vec![from(Affine::constant(0))], Affine::constant(2)));
            }
            Kind::Later(n, by) => with_op(body, *n, &mut |op| {
                if let Dest::Mem(slice) = &mut op.dst {
                    slice.at = slice.at.clone() + by.clone();
                }
            }),
            Kind::More(n) => {
                let loops = body
                    .iter_mut()
                    .filter_map(|s| if let Stmt::Loop { count, .. } = s { Some(count) } else { None });
                let mut loops: Vec<&mut Affine> = loops.collect();
                let all = loops.len();
                loops[n % all].base += 1;
            }
            Kind::NoRoute(n) => drop(colour(*n).and_then(|c| class.routes.remove(&c))),
            Kind::From(n, port) => {
                if let Some(route) = colour(*n).and_then(|c| class.routes.get_mut(&c)) {
                    route.positions[0].from = *port;
                }
            }
            Kind::To(n, port) => {
                if let Some(route) = colour(*n).and_then(|c| class.routes.get_mut(&c)) {
                    route.positions[0].to = vec![*port];
                }
            }
            Kind::Smaller(by) => class.buffers.values_mut().for_each(|b| b.elements -= by),
            Kind::Gone | Kind::Host(_) => {}
        }
    }
}

/// The colour that the host takes at the edges.
const EXIT: Colour = Colour(7);

fn recolour(class: &mut Class, old: Colour, new: Colour) {
    let Some(route) = class.routes.remove(&old) else { return };
    class.routes.insert(new, route);
    for n in 0..8 {
        with_op(&mut class.tasks[0].body, n, &mut |op| {
            let sent = if let Dest::Out { colour, .. } = &mut op.dst { Some(colour) } else { None };
            let read = op
                .src
                .iter_mut()
                .filter_map(|s| if let Operand::In { colour, .. } = s { Some(colour) } else { None });
            sent.into_iter().chain(read).filter(|c| **c == old).for_each(|c| *c = new);
        });
    }
}

/// Changes the `n`th op, counted in a circle.
fn with_op(body: &mut [Stmt], n: usize, change: &mut dyn FnMut(&mut VectorOp)) {
    let mut ops: Vec<&mut VectorOp> = Vec::new();
    for stmt in body {
        match stmt {
            Stmt::Op(op) => ops.push(op),
            Stmt::Loop { body, .. } => {
                ops.extend(
                    body.iter_mut().filter_map(|s| if let Stmt::Op(op) = s { Some(op) } else { None }),
                );
            }
            _ => {}
        }
    }
    let all = ops.len();
    change(ops[n % all]);
}

/// A stream of the host over some lanes of the north edge.
fn stream(name: &str, direction: Direction, lanes: (u32, u32), colour: Colour, words: Affine) -> HostStream {
    HostStream {
        name: name.into(),
        direction,
        edge: Port::North,
        first: lanes.0,
        lanes: lanes.1,
        step: 1,
        colour,
        wire: Wire::F32,
        tensor: "w".into(),
        dims: vec![words],
        index: Var::Dim(0).into(),
        then: None,
        interval: 1,
    }
}

fn op(kind: OpKind, dst: Dest, src: Vec<Operand>, words: Affine) -> Stmt {
    Stmt::Op(VectorOp { kind, dst, src, dims: vec![words] })
}

fn slice(at: Affine) -> Slice {
    Slice { buffer: "v".into(), at, strides: Vec::new() }
}

fn memory(at: Affine) -> Dest {
    Dest::Mem(slice(at))
}

fn from(at: Affine) -> Operand {
    Operand::Mem(slice(at))
}

fn input(colour: u8) -> Operand {
    Operand::In { colour: Colour(colour), wire: Wire::F32 }
}

fn out(colour: u8) -> Dest {
    Dest::Out { colour: Colour(colour), wire: Wire::F32 }
}
