//! What a piece of code needs of the class it stands in.

use super::{Colour, Dest, Operand, Stmt, VectorOp, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

/// Names and colours that some statements use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uses<'a> {
    /// Buffers.
    pub buffers: BTreeSet<&'a str>,
    /// Colours read.
    pub inputs: BTreeSet<Colour>,
    /// Colours sent on.
    pub outputs: BTreeSet<Colour>,
    /// Tasks activated.
    pub tasks: BTreeSet<&'a str>,
    /// Whether the word that triggered the task is read.
    pub trigger: bool,
}

impl<'a> Uses<'a> {
    /// Those of some statements.
    pub fn of(body: &'a [Stmt]) -> Self {
        let mut uses = Uses::default();
        uses.body(body);
        uses
    }

    /// Those of all pieces of a program, by where the piece lies.
    pub fn of_pieces(program: &'a WaferProgram) -> BTreeMap<usize, Self> {
        let mut known = BTreeMap::new();
        for stmt in program.classes.iter().flat_map(|class| &class.tasks).flat_map(|task| &task.body) {
            if let Stmt::Piece(piece) = stmt {
                known.entry(piece.address()).or_insert_with(|| Uses::of(&piece.body));
            }
        }
        known
    }

    fn body(&mut self, body: &'a [Stmt]) {
        for stmt in body {
            match stmt {
                Stmt::Op(op) => self.op(op),
                Stmt::Par(ops) => ops.iter().for_each(|op| self.op(op)),
                Stmt::Loop { body, .. } => self.body(body),
                Stmt::Control { colour, .. } => {
                    self.outputs.insert(*colour);
                }
                Stmt::Activate(task) => {
                    self.tasks.insert(task);
                }
                Stmt::Serial { .. } | Stmt::Phase(_) | Stmt::Piece(_) => {}
            }
        }
    }

    fn op(&mut self, op: &'a VectorOp) {
        match &op.dst {
            Dest::Mem(slice) => {
                self.buffers.insert(&slice.buffer);
            }
            Dest::Out { colour, .. } | Dest::OutThen { colour, .. } => {
                self.outputs.insert(*colour);
            }
        }
        for source in &op.src {
            match source {
                Operand::Mem(slice) => {
                    self.buffers.insert(&slice.buffer);
                }
                Operand::In { colour, .. } | Operand::Scalar { colour, .. } => {
                    self.inputs.insert(*colour);
                }
                Operand::Trigger => self.trigger = true,
                Operand::Const(_) => {}
            }
        }
    }
}
