//! The slow checker: every PE is walked through its code, every route is traced.

use crate::check::{memory, names};
use crate::fabric::FabricSpec;
use crate::flow;
use crate::lower::lower;
use crate::network::{HostLane, NOBODY, NONE, Network, Origin, Target};
use crate::program::*;
use std::collections::BTreeMap;

/// Whether a program is sound.
pub fn accepts(program: &WaferProgram, spec: &FabricSpec) -> bool {
    let classes = lower(program, spec);
    let bounds = |e: &crate::CheckError| matches!(e.fault, crate::check::Fault::Bounds { .. });
    if !names::check(program, spec, &Uses::of_pieces(program)).is_empty()
        || memory::check(program, spec, &classes).iter().any(|e| !bounds(e))
    {
        return false;
    }
    let Ok(net) = Network::build(program, spec) else { return false };
    let mut walks: BTreeMap<u32, Walk> = BTreeMap::new();
    for (pe, class) in net.class_of.iter().enumerate().filter(|(_, c)| **c != NOBODY) {
        let mut walk = Walk::default();
        let class = &program.classes[usize::from(*class)];
        for task in &class.tasks {
            walk.body(class, &task.body, net.coord(pe as u32), &mut Vec::new());
        }
        walks.insert(pe as u32, walk);
    }
    let sound =
        walks.values().all(|w| !w.outside) && equal(program, &net, &walks) && fed(program, &net, &walks);
    sound && flow::finishes(program, spec, &net, &classes).is_ok()
}

/// What a PE does.
#[derive(Default)]
struct Walk {
    sent: BTreeMap<Colour, u64>,
    read: BTreeMap<Colour, u64>,
    /// An access beyond a buffer.
    outside: bool,
}

impl Walk {
    fn body(&mut self, class: &Class, body: &[Stmt], at: Coord, loops: &mut Vec<i64>) {
        for stmt in body {
            match stmt {
                Stmt::Op(op) => self.op(class, op, at, loops),
                Stmt::Loop { count, body } => {
                    for i in 0..value(count, at, loops).max(0) {
                        loops.push(i);
                        self.body(class, body, at, loops);
                        loops.pop();
                    }
                }
                _ => unreachable!("not in these programs"),
            }
        }
    }

    fn op(&mut self, class: &Class, op: &VectorOp, at: Coord, loops: &[i64]) {
        let elements = value(&op.dims[0], at, loops).max(0);
        let slices = op.src.iter().filter_map(|s| if let Operand::Mem(s) = s { Some(s) } else { None });
        let stored = if let Dest::Mem(slice) = &op.dst { Some(slice) } else { None };
        for slice in slices.chain(stored) {
            let first = value(&slice.at, at, loops);
            let size = i64::from(class.buffers[&slice.buffer].elements);
            self.outside |= (first..first + elements).any(|n| n < 0 || n >= size);
        }
        for source in &op.src {
            if let Operand::In { colour, .. } = source {
                *self.read.entry(*colour).or_default() += elements as u64;
            }
        }
        if let Dest::Out { colour, .. } = &op.dst {
            *self.sent.entry(*colour).or_default() += elements as u64;
        }
    }
}

fn value(a: &Affine, at: Coord, loops: &[i64]) -> i64 {
    a.eval(|v| match v {
        Var::Loop(depth) => loops[usize::from(depth)],
        _ => v.at_place(at.x, at.y).unwrap_or(0),
    })
}

/// Words that pass a lane.
fn passed(program: &WaferProgram, lane: &HostLane) -> u64 {
    let words = |part: &u32| value(&program.host[*part as usize].dims[0], lane.at, &[]).max(0) as u64;
    lane.parts.iter().map(words).sum()
}

/// Whether every word sent is read wherever it arrives.
fn equal(program: &WaferProgram, net: &Network, walks: &BTreeMap<u32, Walk>) -> bool {
    (0..net.streams.len()).all(|index| {
        let stream = &net.streams[index];
        let sent = match stream.origin {
            Origin::Pe(pe) => walks[&pe].sent.get(&stream.colour).copied().unwrap_or(0),
            Origin::Host(lane) => passed(program, &net.host_in[lane as usize]),
            Origin::Switch(..) => unreachable!("not in these programs"),
        };
        net.ends_of(index as u32).iter().all(|end| match end.target {
            Target::Pe(pe) => walks[&pe].read.get(&stream.colour).copied().unwrap_or(0) == sent,
            Target::Host(lane) => passed(program, &net.host_out[lane as usize]) == sent,
            Target::Switch(..) => unreachable!("not in these programs"),
        })
    })
}

/// Whether every reader has a sender.
fn fed(program: &WaferProgram, net: &Network, walks: &BTreeMap<u32, Walk>) -> bool {
    let drained = net.host_out.iter().all(|lane| lane.link != NONE || passed(program, lane) == 0);
    let fed = walks.iter().all(|(pe, walk)| {
        let class = &program.classes[usize::from(net.class_of[*pe as usize])];
        let inputs = crate::lower::input_colours(class);
        walk.read.iter().filter(|(_, words)| **words > 0).all(|(colour, _)| {
            inputs.binary_search(colour).is_ok_and(|slot| net.input(*pe as usize, slot) != NONE)
        })
    });
    drained && fed
}
