//! The code of a task as segments, which tasks of many classes may have in common.

use super::{Instr, Linear, LoweredClass};
use std::ops::{Index, Range};
use std::sync::{Arc, OnceLock};

/// Instructions that follow one another; no loop reaches beyond them.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Number among all different segments of a program, from 0.
    pub number: u32,
    /// The least number of a segment that does the same on the same memory, whatever buffers are called.
    pub like: u32,
    /// The instructions.
    pub instrs: Vec<Instr>,
    /// Names of the buffers that it uses.
    pub buffers: Vec<String>,
    placed: OnceLock<Vec<Linear>>,
}

impl Segment {
    /// Some instructions; its number is not known yet.
    pub fn new(instrs: Vec<Instr>, buffers: Vec<String>) -> Self {
        Segment { number: 0, like: 0, instrs, buffers, placed: OnceLock::new() }
    }

    /// The different counts and lengths that depend on the place.
    pub fn placed(&self) -> &[Linear] {
        self.placed.get_or_init(|| {
            let mut found: Vec<Linear> = Vec::new();
            let mut note = |length: &Linear| {
                let (x, y) = length.uses_place();
                if (x || y) && !found.contains(length) {
                    found.push(length.clone());
                }
            };
            for instr in &self.instrs {
                match instr {
                    Instr::Op(op) => op.dims.iter().for_each(&mut note),
                    Instr::Par(ops) => ops.iter().flat_map(|op| &op.dims).for_each(&mut note),
                    Instr::Loop { count, .. } => note(count),
                    Instr::Serial { times, .. } => note(times),
                    _ => {}
                }
            }
            found
        })
    }
}

/// Code: segments one after the other.
#[derive(Clone, Debug, Default)]
pub struct Code {
    /// Segments, each with the index of its first instruction.
    parts: Vec<(usize, Arc<Segment>)>,
    /// By instruction: its segment.
    part_of: Vec<u32>,
}

impl Code {
    /// Appends a segment.
    pub fn push(&mut self, segment: Arc<Segment>) {
        let (part, first) = (self.parts.len() as u32, self.part_of.len());
        self.part_of.resize(first + segment.instrs.len(), part);
        self.parts.push((first, segment));
    }

    /// Number of instructions.
    pub fn len(&self) -> usize {
        self.part_of.len()
    }

    /// All instructions in order.
    pub fn iter(&self) -> impl Iterator<Item = &Instr> {
        self.segments().flat_map(|segment| &segment.instrs)
    }

    /// All segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.parts.iter().map(|(_, segment)| &**segment)
    }

    /// All segments in order, each with the index of its first instruction.
    pub fn parts(&self) -> &[(usize, Arc<Segment>)] {
        &self.parts
    }

    /// All segments in order, to be put in place of others with as many instructions each.
    #[cfg(feature = "compiled")]
    pub fn segments_mut(&mut self) -> impl Iterator<Item = &mut Arc<Segment>> {
        self.parts.iter_mut().map(|(_, segment)| segment)
    }

    /// The number of the segment that holds an instruction, and the instruction's index in it.
    pub fn locate(&self, pc: usize) -> (usize, usize) {
        let (first, segment) = &self.parts[self.part_of[pc] as usize];
        (segment.number as usize, pc - first)
    }

    /// Instructions of one segment.
    pub fn within(&self, range: Range<usize>) -> &[Instr] {
        let Some(part) = self.part_of.get(range.start).filter(|_| !range.is_empty()) else { return &[] };
        let (first, segment) = &self.parts[*part as usize];
        &segment.instrs[range.start - first..range.end - first]
    }
}

impl Index<usize> for Code {
    type Output = Instr;

    fn index(&self, pc: usize) -> &Instr {
        let (first, segment) = &self.parts[self.part_of[pc] as usize];
        &segment.instrs[pc - first]
    }
}

impl From<Vec<Instr>> for Code {
    fn from(instrs: Vec<Instr>) -> Self {
        let mut code = Code::default();
        code.push(Arc::new(Segment::new(instrs, Vec::new())));
        code
    }
}

/// The different segments of some classes, by number.
pub fn segments(classes: &[LoweredClass]) -> Vec<&Arc<Segment>> {
    let mut found: Vec<Option<&Arc<Segment>>> = Vec::new();
    for (_, segment) in classes.iter().flat_map(|class| &class.tasks).flat_map(|task| task.code.parts()) {
        let number = segment.number as usize;
        if found.len() <= number {
            found.resize(number + 1, None);
        }
        found[number] = Some(segment);
    }
    found.into_iter().flatten().collect()
}
