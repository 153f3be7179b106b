//! Programs that are right, spoilt in one place: each is refused by the checker, with a PE or a class and a cause, or
//! gives the right numbers. None hangs, none panics.

#[allow(dead_code, reason = "each test binary uses some of the programs")]
mod programs;

use lapidary_runtime_sim::collectives::{
    all_reduce_2d, chain_reduce, ring_all_reduce, tree_reduce, two_phase_reduce,
};
use lapidary_runtime_sim::program::*;
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{CheckError, FabricSpec, check, event};
use programs::{Linear, linear, rms_norm};
use std::collections::BTreeMap;

/// One way to spoil a program.
#[derive(Clone, Debug)]
enum Mutation {
    /// A class loses its `n`th route.
    NoRoute(usize, usize),
    /// A class takes the words of its `n`th route from another port.
    From(usize, usize, Port),
    /// A class sends the words of its `n`th route elsewhere.
    To(usize, usize, Port),
    /// A class exchanges the routes of two of its colours.
    Swap(usize, usize, usize),
    /// The `n`th op of a class that uses the fabric is longer by so many elements.
    Longer(usize, usize, i64),
    /// The `n`th loop of a class runs more often, or less.
    More(usize, usize, i64),
    /// A class is not there.
    Gone(usize),
    /// A class is one column farther east.
    Moved(usize),
    /// A stream of the host brings more words in each lane, or fewer.
    Host(usize, i64),
    /// A stream of the host has another colour.
    HostColour(usize, u8),
    /// A buffer of a class begins that many bytes later.
    Later(usize, usize, u32),
}

const PORTS: [Port; 5] = [Port::Ramp, Port::North, Port::East, Port::South, Port::West];

fn mutations(program: &WaferProgram) -> Vec<Mutation> {
    let mut all = Vec::new();
    for (c, class) in program.classes.iter().enumerate() {
        all.extend([Mutation::Gone(c), Mutation::Moved(c)]);
        let routes = class.routes.len();
        for n in 0..routes {
            all.push(Mutation::NoRoute(c, n));
            all.extend(PORTS.map(|port| Mutation::From(c, n, port)));
            all.extend(PORTS.map(|port| Mutation::To(c, n, port)));
            all.extend((n + 1..routes).map(|other| Mutation::Swap(c, n, other)));
        }
        let mut copy = class.clone();
        let (mut ops, mut loops) = (0, 0);
        visit(&mut copy, &mut |_| ops += 1, &mut |_| loops += 1);
        all.extend((0..ops).flat_map(|n| [-1, 1].map(|by| Mutation::Longer(c, n, by))));
        all.extend((0..loops).flat_map(|n| [-1, 1].map(|by| Mutation::More(c, n, by))));
        let apart = [1, 44_000, 60_000];
        all.extend((0..class.buffers.len()).flat_map(|n| apart.map(|by| Mutation::Later(c, n, by))));
    }
    for n in 0..program.host.len() {
        all.extend([-1, 1].map(|by| Mutation::Host(n, by)));
        all.extend([7, 23].map(|colour| Mutation::HostColour(n, colour)));
    }
    all
}

/// Visits the ops of a class that use the fabric, and its loops.
fn visit(class: &mut Class, ops: &mut dyn FnMut(&mut VectorOp), loops: &mut dyn FnMut(&mut Affine)) {
    fn body(stmts: &mut [Stmt], ops: &mut dyn FnMut(&mut VectorOp), loops: &mut dyn FnMut(&mut Affine)) {
        for stmt in stmts {
            match stmt {
                Stmt::Op(op) if uses_fabric(op) => ops(op),
                Stmt::Par(all) => all.iter_mut().filter(|op| uses_fabric(op)).for_each(&mut *ops),
                Stmt::Loop { count, body: inner } => {
                    loops(count);
                    body(inner, ops, loops);
                }
                _ => {}
            }
        }
    }
    class.tasks.iter_mut().for_each(|task| body(&mut task.body, ops, loops));
}

fn uses_fabric(op: &VectorOp) -> bool {
    let reads = op.src.iter().any(|s| matches!(s, Operand::In { .. }));
    reads || matches!(op.dst, Dest::Out { .. } | Dest::OutThen { .. })
}

impl Mutation {
    fn apply(&self, program: &WaferProgram) -> WaferProgram {
        let mut p = program.clone();
        let colour = |p: &WaferProgram, c: usize, n: usize| *p.classes[c].routes.keys().nth(n).unwrap();
        match *self {
            Mutation::NoRoute(c, n) => {
                let own = colour(&p, c, n);
                p.classes[c].routes.remove(&own);
            }
            Mutation::From(c, n, port) => {
                p.classes[c].routes.values_mut().nth(n).unwrap().positions[0].from = port;
            }
            Mutation::To(c, n, port) => {
                p.classes[c].routes.values_mut().nth(n).unwrap().positions[0].to = vec![port];
            }
            Mutation::Swap(c, n, m) => {
                let (a, b) = (colour(&p, c, n), colour(&p, c, m));
                let routes = &mut p.classes[c].routes;
                let (one, other) = (routes[&a].clone(), routes[&b].clone());
                routes.extend([(a, other), (b, one)]);
            }
            Mutation::Longer(c, n, by) => {
                let mut at = 0;
                let longer = &mut |op: &mut VectorOp| {
                    if at == n {
                        op.dims[0].base += by;
                    }
                    at += 1;
                };
                visit(&mut p.classes[c], longer, &mut |_| {});
            }
            Mutation::More(c, n, by) => {
                let mut at = 0;
                let more = &mut |count: &mut Affine| {
                    if at == n {
                        count.base += by;
                    }
                    at += 1;
                };
                visit(&mut p.classes[c], &mut |_| {}, more);
            }
            Mutation::Gone(c) => drop(p.classes.remove(c)),
            Mutation::Moved(c) => p.classes[c].regions.iter_mut().for_each(|region| region.x += 1),
            Mutation::Host(n, by) => p.host[n].dims.last_mut().unwrap().base += by,
            Mutation::HostColour(n, colour) => p.host[n].colour = Colour(colour),
            Mutation::Later(c, n, by) => {
                p.classes[c].buffers.values_mut().nth(n).unwrap().offset += by;
            }
        }
        p
    }
}

fn bases() -> Vec<(String, WaferProgram)> {
    let sizes = Linear { columns: 5, rows: 2, features: 2, tokens: 4, outputs: 2 };
    let texts = [("linear", linear(sizes, "f32")), ("norm", rms_norm(4, 3, 4))];
    let texts = texts.map(|(name, text)| (name, parse(&text, name).unwrap()));
    let data = [
        ("chain.wafer", include_str!("data/chain.wafer")),
        ("tasks.wafer", include_str!("data/tasks.wafer")),
    ];
    let data = data.map(|(name, text)| (name, parse(text, name).unwrap()));
    let built = [
        ("chain", chain_reduce(6, 4)),
        ("tree", tree_reduce(8, 3)),
        ("two-phase", two_phase_reduce(&[3, 3, 3], 4)),
        ("ring", ring_all_reduce(5, 10)),
        ("all-reduce", all_reduce_2d(4, 3, 5)),
    ];
    let all = built.into_iter().chain(texts).chain(data);
    all.map(|(name, program)| (name.to_string(), program)).collect()
}

fn numbers(program: &WaferProgram) -> BTreeMap<String, Vec<f32>> {
    let tensors = (0usize..).zip(&program.tensors);
    let values = |at: usize, n: u64| (0..n as usize).map(|i| ((i * 7 + at * 3) % 11) as f32 - 4.0).collect();
    tensors.map(|(at, (name, tensor))| (name.clone(), values(at, tensor.elements))).collect()
}

/// Whether the checker refuses a program, after a look at how it says so; `Err` where it accepts one that goes wrong.
fn verdict(
    mutant: &WaferProgram,
    right: &BTreeMap<String, Vec<f32>>,
    tensors: &BTreeMap<String, Vec<f32>>,
) -> Result<bool, String> {
    match check(mutant, &FabricSpec::wse2()) {
        Err(faults) if faults.is_empty() => Err("is refused without a cause".into()),
        Err(faults) => match faults.iter().map(CheckError::to_string).find(|told| !told.contains('(')) {
            Some(told) => Err(format!("has no hint: {told}")),
            None => Ok(true),
        },
        Ok(checked) => match event::simulate(&checked, tensors.clone()) {
            Err(fault) => Err(format!("passes its check and ends in: {fault}")),
            Ok(run) if &run.tensors == right => Ok(false),
            Ok(_) => Err("gives other numbers".into()),
        },
    }
}

#[test]
fn a_spoilt_program_is_refused_or_gives_the_right_numbers() {
    let (mut refused, mut right, mut wrong) = (0, 0, Vec::new());
    for (name, program) in bases() {
        let tensors = numbers(&program);
        let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let expected = event::simulate(&checked, tensors.clone()).unwrap().tensors;
        for mutation in mutations(&program) {
            let mutant = mutation.apply(&program);
            if mutant == program {
                continue;
            }
            match verdict(&mutant, &expected, &tensors) {
                Ok(true) => refused += 1,
                Ok(false) => right += 1,
                Err(what) => wrong.push(format!("{name}: {mutation:?} {what}")),
            }
        }
    }
    println!("{refused} mutants refused, {right} right, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(refused > 1000 && right * 4 < refused, "{refused} refused, {right} right");
}
