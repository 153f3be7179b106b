//! What a PE does with streams in a stretch of code, and nothing else: loops, and ops that read and write words.

use super::templates::Interned;
use crate::lower::{Code, Env, Instr, Linear, LoweredOp, Sink, Source};
use crate::program::Wire;
use std::ops::Range;
use std::rc::Rc;

/// What an op does with one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Operand {
    /// The input or output slot.
    slot: usize,
    /// Whether words are sent.
    out: bool,
    /// Words in each step.
    words: u64,
}

/// One thing of a skeleton, in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Bone {
    Loop(Linear),
    Next,
    /// So many ops side by side follow.
    Side(usize),
    /// Elements, how many are one step, and the first and the number of operands.
    Op {
        dims: Vec<Linear>,
        step: u64,
        one: bool,
        operands: (usize, usize),
    },
}

/// The skeleton of code, wherever it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Template {
    bones: Vec<Bone>,
    operands: Vec<Operand>,
    /// Lengths and counts that depend on the place.
    pub placed: Vec<Linear>,
    /// Lengths and counts that depend on the row.
    pub by_row: Vec<Linear>,
    /// Whether the words of no op depend on the row in more than one way.
    pub is_linear: bool,
}

/// Whether no stream is used twice.
fn apart(operands: &[Operand]) -> bool {
    let key = |o: &Operand| (o.slot, o.out);
    (0..operands.len())
        .all(|n| operands[n].words > 0 && operands[..n].iter().all(|o| key(o) != key(&operands[n])))
}

/// One thing of a skeleton at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A loop begins, of so many iterations.
    Loop(u64),
    /// A loop ends.
    Next,
    /// So many ops follow that run side by side.
    Side(usize),
    /// An op of so many steps.
    Op(u64),
}

/// Loops and ops at a place: those of one number are the same.
#[derive(Debug)]
pub struct Items {
    pub number: u32,
    /// The same number for items that differ in the steps of ops only.
    pub bare: u32,
    pub all: Vec<Item>,
    /// By item: how many steps it takes in all.
    pub totals: Vec<u64>,
}

/// A stream that a PE uses.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The input or output slot.
    pub slot: usize,
    /// Whether words are sent.
    pub out: bool,
    /// The first item that uses it.
    pub first: usize,
    /// Words in all, and the most in one step.
    pub words: u64,
    pub most: u64,
}

/// What an item does with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub item: usize,
    /// By index of the skeleton's ports.
    pub port: usize,
    /// Words in each step.
    pub words: u64,
}

/// The skeleton of code at a place.
#[derive(Debug)]
pub struct Skeleton {
    /// Loops and ops.
    pub items: Rc<Items>,
    /// Streams by first use; none of ops that never run.
    pub ports: Vec<Port>,
    /// What ops read and write, in order.
    pub uses: Vec<Use>,
}

impl Template {
    /// Of some instructions; none if they do what is not foreseen: lengths that vary with an iteration, scalars side by side
    /// with other ops, a stream used twice at once, control words.
    pub fn of(code: &Code, range: Range<usize>) -> Option<Template> {
        let mut template = Template::default();
        let mut open: Vec<usize> = Vec::new();
        for pc in range.start..range.end.min(code.len()) {
            match &code[pc] {
                Instr::Op(op) => template.side(std::slice::from_ref(op))?,
                Instr::Par(ops) => template.side(ops)?,
                Instr::Loop { count, .. } => {
                    open.push(template.bones.len());
                    template.bones.push(Bone::Loop(count.clone()));
                }
                Instr::Next { .. } => {
                    let begun = open.pop()?;
                    match begun + 1 == template.bones.len() {
                        true => drop(template.bones.pop()),
                        false => template.bones.push(Bone::Next),
                    }
                }
                Instr::Control { .. } | Instr::Activate(_) => return None,
                Instr::Serial { .. } | Instr::Phase(_) | Instr::End => {}
            }
        }
        template.finish()
    }

    /// Whether it uses no stream.
    pub fn is_silent(&self) -> bool {
        self.operands.is_empty()
    }

    /// Notes which lengths depend on the row; none if one depends on more than the place.
    fn finish(mut self) -> Option<Template> {
        self.is_linear = self.is_linear();
        let lengths = self.bones.iter().flat_map(|bone| match bone {
            Bone::Loop(count) => std::slice::from_ref(count),
            Bone::Op { dims, .. } => dims,
            Bone::Next | Bone::Side(_) => &[],
        });
        for length in lengths {
            if length.is_timed() {
                return None;
            }
            let (by_column, by_row) = length.uses_place();
            if (by_column || by_row) && !self.placed.contains(length) {
                self.placed.push(length.clone());
                self.by_row.extend(by_row.then(|| length.clone()));
            }
        }
        Some(self)
    }

    fn is_linear(&self) -> bool {
        let by_row = |length: &Linear| usize::from(length.uses_place().1);
        let mut around = vec![0];
        self.bones.iter().all(|bone| match bone {
            Bone::Loop(count) => {
                around.push(around[around.len() - 1] + by_row(count));
                true
            }
            Bone::Next => around.pop().is_some(),
            Bone::Side(_) => true,
            Bone::Op { dims, step, one, .. } => {
                let own: usize = dims.iter().map(by_row).sum();
                own + around[around.len() - 1] <= 1 && (own == 0 || (*step == 1 && !one))
            }
        })
    }

    fn side(&mut self, ops: &[LoweredOp]) -> Option<()> {
        let scalar = |op: &LoweredOp| op.src.iter().any(|source| matches!(source, Source::Scalar { .. }));
        let streaming = ops.iter().filter(|op| op.streams() || scalar(op)).count();
        match streaming {
            0 => return Some(()),
            1 => {}
            _ if ops.iter().any(scalar) => return None,
            _ => self.bones.push(Bone::Side(streaming)),
        }
        let first = self.operands.len();
        for op in ops {
            for source in &op.src {
                if let Source::Scalar { slot, .. } = source {
                    self.op(op, true, vec![Operand { slot: *slot, out: false, words: 1 }]);
                }
            }
            if op.streams() {
                let step = u64::from(op.price.step);
                let of = |slot: usize, out: bool, wire: Wire| Operand {
                    slot,
                    out,
                    words: step / u64::from(wire.lanes()),
                };
                let reads = op.src.iter().filter_map(Source::stream);
                let mut operands: Vec<Operand> = reads.map(|(slot, wire)| of(slot, false, wire)).collect();
                if let Sink::Out { slot, wire, .. } = &op.dst {
                    operands.push(of(*slot, true, *wire));
                }
                if !apart(&operands) {
                    return None;
                }
                self.op(op, false, operands);
            }
        }
        (streaming == 1 || apart(&self.operands[first..])).then_some(())
    }

    fn op(&mut self, op: &LoweredOp, one: bool, operands: Vec<Operand>) {
        let first = self.operands.len();
        self.operands.extend(operands);
        let (dims, step) = (op.dims.clone(), u64::from(op.price.step).max(1));
        self.bones.push(Bone::Op { dims, step, one, operands: (first, self.operands.len()) });
    }

    /// The skeleton at a place.
    pub fn at(&self, env: &Env, items: &mut Interned) -> Skeleton {
        let (mut all, mut ports, mut uses) = (Vec::with_capacity(self.bones.len()), Vec::new(), Vec::new());
        // Loops around, and those of them that never run.
        let mut open: Vec<bool> = Vec::new();
        for bone in &self.bones {
            let item = match bone {
                Bone::Loop(count) => {
                    let count = count.at(env).max(0) as u64;
                    open.push(count == 0);
                    Item::Loop(count)
                }
                Bone::Next => {
                    open.pop();
                    Item::Next
                }
                Bone::Side(ops) => Item::Side(*ops),
                Bone::Op { dims, step, one, operands } => {
                    let elements: u64 = dims.iter().map(|d| d.at(env).max(0) as u64).product();
                    let steps = if *one { elements.min(1) } else { elements / step };
                    if steps > 0 && !open.contains(&true) {
                        let used = &self.operands[operands.0..operands.1];
                        uses.extend(used.iter().map(|o| Use {
                            item: all.len(),
                            port: port(&mut ports, o, all.len()),
                            words: o.words,
                        }));
                    }
                    Item::Op(steps)
                }
            };
            all.push(item);
        }
        let items = items.of(all);
        for Use { item, port, words } in &uses {
            let (port, total) = (&mut ports[*port], items.totals[*item].saturating_mul(*words));
            (port.words, port.most) = (port.words.saturating_add(total), port.most.max(*words));
        }
        Skeleton { items, ports, uses }
    }
}
impl Skeleton {
    /// The port at a slot, if it is used.
    pub fn port(&self, slot: usize, out: bool) -> Option<usize> {
        self.ports.iter().position(|port| (port.slot, port.out) == (slot, out))
    }

    /// The items that use a port, with the words of each step.
    pub fn uses(&self, port: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.uses.iter().filter(move |used| used.port == port).map(|used| (used.item, used.words))
    }
}

/// The port that an operand uses at an item, by index.
fn port(ports: &mut Vec<Port>, operand: &Operand, first: usize) -> usize {
    let Operand { slot, out, .. } = *operand;
    let known = ports.iter().position(|port| (port.slot, port.out) == (slot, out));
    known.unwrap_or_else(|| {
        ports.push(Port { slot, out, first, words: 0, most: 0 });
        ports.len() - 1
    })
}

/// By item: how many steps it takes in all.
pub fn totals(items: &[Item]) -> Vec<u64> {
    let mut times = vec![1u64];
    let total = |item: &Item| {
        let now = times.last().copied().unwrap_or(1);
        match item {
            Item::Loop(count) => times.push(now.saturating_mul(*count)),
            Item::Next => drop(times.pop()),
            Item::Side(_) => {}
            Item::Op(steps) => return now.saturating_mul(*steps),
        }
        0
    };
    items.iter().map(total).collect()
}
