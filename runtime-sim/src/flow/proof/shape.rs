//! What actors do, whatever their streams are: those of one shape do the same, each with streams of its own.

use super::pieces::Use;
use super::rehearse::{Actor, Op, Part, Unit, append, repeat};
use super::skeleton::{Item, Items};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What an actor does, with its streams numbered by first use.
#[derive(Debug)]
pub struct Shape {
    /// Shapes of one number are the same.
    pub number: u32,
    pub parts: Vec<Part>,
    /// By part: one time of it.
    pub turns: Vec<Turn>,
    /// Streams that are read at all, ascending.
    pub reads: Vec<u32>,
    /// Ops in all.
    pub ops: u64,
}

/// What a part does each time.
#[derive(Debug)]
pub struct Turn {
    /// Words read by stream, ascending.
    pub reads: Vec<(u32, u64)>,
    /// Streams that are written, ascending.
    pub writes: Vec<u32>,
    /// If it only hands words on: from where to where, and how many.
    pub passes: Option<(u32, u32, u64)>,
}

impl Shape {
    /// That of some parts.
    pub fn of(number: u32, parts: Vec<Part>) -> Shape {
        let turns: Vec<Turn> = parts.iter().map(|part| Turn::of(&part.unit)).collect();
        let mut reads: Vec<u32> = turns.iter().flat_map(|turn| &turn.reads).map(|(wire, _)| *wire).collect();
        reads.sort_unstable();
        reads.dedup();
        let ops = ops(&parts);
        Shape { number, parts, turns, reads, ops }
    }
}

impl Turn {
    fn of(unit: &Unit) -> Turn {
        let (mut reads, mut writes) = (BTreeMap::new(), Vec::new());
        add(unit, 1, &mut reads, &mut writes);
        writes.sort_unstable();
        writes.dedup();
        let passes = match unit {
            Unit::Ops(ops) => match &ops[..] {
                [Op { steps, reads, writes }] => match (&reads[..], &writes[..]) {
                    (&[(from, each)], &[(to, also)]) if each == also => Some((from, to, steps * each)),
                    _ => None,
                },
                _ => None,
            },
            Unit::Parts(_) => None,
        };
        Turn { reads: reads.into_iter().collect(), writes, passes }
    }
}

/// Adds words that are read, and streams that are written.
fn add(unit: &Unit, times: u64, read: &mut BTreeMap<u32, u64>, written: &mut Vec<u32>) {
    match unit {
        Unit::Parts(parts) => {
            parts.iter().for_each(|part| add(&part.unit, times.saturating_mul(part.times), read, written));
        }
        Unit::Ops(ops) => {
            for op in ops {
                for (wire, words) in &op.reads {
                    let sum = read.entry(*wire).or_default();
                    *sum = sum.saturating_add(times.saturating_mul(op.steps).saturating_mul(*words));
                }
                written.extend(op.writes.iter().map(|(wire, _)| *wire));
            }
        }
    }
}

/// Ops that parts consist of, in all turns.
fn ops(parts: &[Part]) -> u64 {
    let each = |part: &Part| {
        let once = match &part.unit {
            Unit::Ops(ops) => ops.len() as u64,
            Unit::Parts(parts) => ops(parts),
        };
        once.saturating_mul(part.times)
    };
    parts.iter().map(each).fold(0, u64::saturating_add)
}

/// All shapes that were met, each once.
#[derive(Default)]
pub struct Shapes {
    /// By items and what is done at them.
    known: BTreeMap<Vec<u64>, Rc<Shape>>,
    by_parts: BTreeMap<Vec<Part>, Rc<Shape>>,
    key: Vec<u64>,
}

impl Shapes {
    /// The actor that does something at items with its streams.
    pub fn of(&mut self, items: &Items, uses: &mut [Use]) -> Actor {
        uses.sort_unstable_by_key(|(item, out, wire, _)| (*item, *out, *wire));
        let mut wires: Vec<u32> = Vec::new();
        for used in uses.iter_mut() {
            let known = wires.iter().position(|wire| *wire == used.2);
            let own = known.unwrap_or(wires.len());
            if known.is_none() {
                wires.push(used.2);
            }
            used.2 = own as u32;
        }
        self.key.clear();
        self.key.push(items.number.into());
        for (item, out, wire, words) in uses.iter() {
            self.key.extend([*item as u64, u64::from(*wire) << 1 | u64::from(*out), *words]);
        }
        if let Some(shape) = self.known.get(&self.key) {
            return Actor { shape: Rc::clone(shape), wires };
        }
        let (parts, next) = (parts(&items.all, uses), self.by_parts.len() as u32);
        let new = || Rc::new(Shape::of(next, parts.clone()));
        let shape = Rc::clone(self.by_parts.entry(parts.clone()).or_insert_with(new));
        self.known.insert(self.key.clone(), Rc::clone(&shape));
        Actor { shape, wires }
    }
}

/// What an actor does that does something at items.
fn parts(items: &[Item], uses: &[Use]) -> Vec<Part> {
    let mut uses = uses.iter().peekable();
    let mut open: Vec<(u64, Vec<Part>)> = vec![(1, Vec::new())];
    let mut beside = 0;
    let mut side = Vec::new();
    for (at, item) in items.iter().enumerate() {
        match item {
            Item::Loop(times) => open.push((*times, Vec::new())),
            Item::Next => {
                if let Some((times, body)) = open.pop()
                    && times > 0
                    && let Some((_, outer)) = open.last_mut()
                {
                    repeat(outer, times, body);
                }
            }
            Item::Side(count) => beside = *count,
            Item::Op(steps) => {
                let mut op = Op { steps: *steps, reads: Vec::new(), writes: Vec::new() };
                while let Some((_, out, wire, words)) = uses.next_if(|used| used.0 == at) {
                    if *out { op.writes.push((*wire, *words)) } else { op.reads.push((*wire, *words)) }
                }
                let moves = *steps > 0 && !(op.reads.is_empty() && op.writes.is_empty());
                side.extend(moves.then_some(op));
                beside = beside.saturating_sub(1);
                if beside == 0
                    && let Some((_, parts)) = open.last_mut()
                {
                    append(parts, Part { times: 1, unit: Unit::Ops(std::mem::take(&mut side)) });
                }
            }
        }
    }
    open.pop().map(|(_, parts)| parts).unwrap_or_default()
}
