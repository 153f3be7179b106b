//! Programs to text.

use crate::program::{
    Affine, Buffer, Class, Command, Dest, Direction, HostStream, Operand, Port, Region, Route, Shared, Slice,
    Stmt, Task, TensorMap, Trigger, VectorOp, WaferProgram, Wire,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Words that mean something where a name could stand.
const RESERVED: [&str; 6] = ["in", "out", "scalar", "trigger", "inf", "nan"];

/// The text form; [`super::parse`] reads it back.
pub fn print(program: &WaferProgram) -> String {
    let mut out = format!("wafer {} x {}\n", program.width, program.height);
    for (tensor, decl) in &program.tensors {
        line(&mut out, 0, &format!("tensor {}[{}]", name(tensor), decl.elements));
    }
    for phase in &program.phases {
        line(&mut out, 0, &format!("phase {}", name(phase)));
    }
    pieces(&mut out, program);
    let memories = Memories::of(program);
    memories.print(&mut out);
    program.classes.iter().zip(&memories.of_class).for_each(|(c, memory)| class(&mut out, c, *memory));
    program.host.iter().for_each(|h| line(&mut out, 0, &host(h)));
    out
}

/// Defines all pieces, each once, those that are used first before the others.
fn pieces(out: &mut String, program: &WaferProgram) {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for stmt in program.classes.iter().flat_map(|class| &class.tasks).flat_map(|task| &task.body) {
        if let Stmt::Piece(piece) = stmt
            && done.insert(&piece.name)
        {
            line(out, 0, &format!("piece {} {{", name(&piece.name)));
            body(out, &piece.body, 1);
            line(out, 0, "}");
        }
    }
}

/// A memory map.
type Map = Shared<BTreeMap<String, Buffer>>;

/// The memory maps that several classes have.
struct Memories<'a> {
    maps: Vec<&'a Map>,
    /// By class, in their order: its place in `maps`, unless nobody else has its map.
    of_class: Vec<Option<usize>>,
}

impl<'a> Memories<'a> {
    fn of(program: &'a WaferProgram) -> Self {
        let mut maps: Vec<(&Map, Vec<usize>)> = Vec::new();
        for (at, class) in program.classes.iter().enumerate().filter(|(_, class)| !class.buffers.is_empty()) {
            match maps.iter_mut().find(|(map, _)| **map == class.buffers) {
                Some((_, users)) => users.push(at),
                None => maps.push((&class.buffers, vec![at])),
            }
        }
        maps.retain(|(_, users)| users.len() > 1);
        let mut of_class = vec![None; program.classes.len()];
        for (number, (_, users)) in maps.iter().enumerate() {
            users.iter().for_each(|user| of_class[*user] = Some(number));
        }
        Memories { maps: maps.into_iter().map(|(map, _)| map).collect(), of_class }
    }

    fn print(&self, out: &mut String) {
        for (at, map) in self.maps.iter().enumerate() {
            line(out, 0, &format!("memory m{at} {{"));
            buffers(out, map);
            line(out, 0, "}");
        }
    }
}

fn buffers(out: &mut String, map: &BTreeMap<String, Buffer>) {
    for (label, b) in map {
        line(out, 1, &format!("buffer {}: {}", name(label), buffer(b)));
    }
}

fn line(out: &mut String, depth: usize, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:1$}{text}", "", 2 * depth);
}

/// A name, quoted unless it is a plain word.
fn name(text: &str) -> String {
    let start = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let plain =
        start && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !RESERVED.contains(&text);
    if plain { text.into() } else { format!("\"{text}\"") }
}

fn class(out: &mut String, class: &Class, memory: Option<usize>) {
    let regions: Vec<String> = class.regions.iter().map(region).collect();
    line(out, 0, &format!("class {} at {} {{", name(&class.name), regions.join(", ")));
    match memory {
        Some(at) => line(out, 1, &format!("memory m{at}")),
        None => buffers(out, &class.buffers),
    }
    for (colour, r) in &class.routes {
        line(out, 1, &format!("route {}: {}", colour.0, route(r)));
    }
    for task in &class.tasks {
        line(out, 1, &format!("task {} {} {{", name(&task.name), trigger(task)));
        body(out, &task.body, 2);
        line(out, 1, "}");
    }
    line(out, 0, "}");
}

fn region(r: &Region) -> String {
    let mut text = format!("({}, {})", r.x, r.y);
    if (r.columns, r.rows, r.step_x, r.step_y) != (1, 1, 1, 1) {
        text += &format!(" {} x {}", r.columns, r.rows);
    }
    if (r.step_x, r.step_y) != (1, 1) {
        text += &format!(" step {} x {}", r.step_x, r.step_y);
    }
    text
}

fn buffer(b: &Buffer) -> String {
    let mut text = format!("{}[{}] @{}", b.dtype.name(), b.elements, b.offset);
    if let Some(alive) = &b.alive {
        text += &format!(" alive {}..{}", name(&alive.first), name(&alive.last));
    }
    for (word, map) in [("load", &b.load), ("store", &b.store)] {
        if let Some(map) = map {
            text += &format!(" {word} {}", tensor_map(map));
        }
    }
    text
}

fn tensor_map(map: &TensorMap) -> String {
    format!("{} dims {} at {}", name(&map.tensor), list(&map.dims), map.index)
}

fn list(dims: &[Affine]) -> String {
    dims.iter().map(Affine::to_string).collect::<Vec<_>>().join(", ")
}

fn route(route: &Route) -> String {
    let ports = |to: &[Port]| to.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    let positions = route.positions.iter().map(|p| format!("{} -> {}", p.from.name(), ports(&p.to)));
    positions.collect::<Vec<_>>().join(" | ")
}

fn trigger(task: &Task) -> String {
    let times = &task.times;
    match task.trigger {
        Trigger::Start if *times == Affine::constant(1) => "start".into(),
        Trigger::Start => format!("start times {times}"),
        Trigger::Data { colour, wire } => format!("data({}{}) times {times}", colour.0, suffix(wire)),
        Trigger::Control { colour } => format!("control({}) times {times}", colour.0),
        Trigger::Local => format!("local times {times}"),
    }
}

fn suffix(wire: Wire) -> String {
    if wire == Wire::F32 { String::new() } else { format!(": {}", wire.name()) }
}

fn body(out: &mut String, stmts: &[Stmt], depth: usize) {
    for stmt in stmts {
        match stmt {
            Stmt::Op(o) => line(out, depth, &op(o)),
            Stmt::Par(ops) => {
                line(out, depth, "par {");
                ops.iter().for_each(|o| line(out, depth + 1, &op(o)));
                line(out, depth, "}");
            }
            Stmt::Loop { count, body: inner } => {
                line(out, depth, &format!("loop {count} {{"));
                body(out, inner, depth + 1);
                line(out, depth, "}");
            }
            Stmt::Control { colour, command: c } => {
                line(out, depth, &format!("control {} {}", colour.0, command(*c)));
            }
            Stmt::Activate(task) => line(out, depth, &format!("activate {}", name(task))),
            Stmt::Serial { what, times } => line(out, depth, &format!("{} {times}", what.name())),
            Stmt::Phase(phase) => line(out, depth, &format!("phase {}", name(phase))),
            Stmt::Piece(piece) => line(out, depth, &format!("do {}", name(&piece.name))),
        }
    }
}

/// The word for a command.
pub fn command(command: Command) -> &'static str {
    match command {
        Command::Advance => "advance",
        Command::Reset => "reset",
        Command::Nothing => "nothing",
    }
}

fn op(op: &VectorOp) -> String {
    let src: Vec<String> = op.src.iter().map(operand).collect();
    format!("{} {} <- {} len {}", op.kind.name(), dest(&op.dst), src.join(", "), list(&op.dims))
}

fn dest(dst: &Dest) -> String {
    match dst {
        Dest::Mem(s) => slice(s),
        Dest::Out { colour, wire } => format!("out({}{})", colour.0, suffix(*wire)),
        Dest::OutThen { colour, wire, then } => {
            format!("out({}{}, {})", colour.0, suffix(*wire), command(*then))
        }
    }
}

fn operand(operand: &Operand) -> String {
    match operand {
        Operand::Mem(s) => slice(s),
        Operand::In { colour, wire } => format!("in({}{})", colour.0, suffix(*wire)),
        Operand::Scalar { colour, wire } => format!("scalar({}{})", colour.0, suffix(*wire)),
        Operand::Trigger => "trigger".into(),
        Operand::Const(v) if v.is_nan() => "nan".into(),
        Operand::Const(v) if v.is_infinite() => if *v > 0.0 { "inf" } else { "-inf" }.into(),
        Operand::Const(v) => format!("{v:?}"),
    }
}

fn slice(s: &Slice) -> String {
    let strides: Vec<String> = s.strides.iter().map(i64::to_string).collect();
    let strides = if strides.is_empty() { String::new() } else { format!("; {}", strides.join(", ")) };
    format!("{}[{}{strides}]", name(&s.buffer), s.at)
}

fn host(h: &HostStream) -> String {
    let direction = if h.direction == Direction::In { "in" } else { "out" };
    let mut text =
        format!("host {} {direction} {} lanes {} .. {}", name(&h.name), h.edge.name(), h.first, h.lanes);
    text += &format!(" step {} colour {}: {}", h.step, h.colour.0, h.wire.name());
    text += &format!(" tensor {} dims {} at {}", name(&h.tensor), list(&h.dims), h.index);
    text += &format!(" interval {}", h.interval);
    if let Some(then) = h.then {
        text += &format!(" then {}", command(then));
    }
    text
}
