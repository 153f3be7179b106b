//! `@fmuls` on one PE: a vector times another, between two timestamps (pr0f3ss/SpMM_Cerebras, `src/fmacs_test`).

use super::*;

/// How the operands of the vector op lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Descriptors in registers, behind different ports.
    Apart,
    /// Descriptors in registers, behind one port.
    Together,
    /// Descriptors in memory; pairs of words aligned so that two elements are read at once.
    Paired,
}

/// A product of two vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiply {
    /// Elements.
    pub length: u32,
    /// How they lie.
    pub operands: Operands,
}

/// Instructions between the readings of two timestamps: the first stores its three parts, the second loads its own.
const TIMESTAMP: u32 = 5;

/// Instructions that load the three descriptors of a vector op whose addresses are computed: for each the address of the
/// matrix, the row, the length and the strides. The compiled length is not published; fitted on `fmuls_5124_2597`.
pub const DESCRIPTORS: u32 = 28;

impl Multiply {
    /// The program: `c = c * b`.
    pub fn program(&self) -> WaferProgram {
        let mut program = WaferProgram::new(1, 1);
        let mut class = class_at(0, 0);
        let words = self.length;
        let gap = match self.operands {
            Operands::Apart => 1,
            Operands::Together => 0,
            Operands::Paired => 2,
        };
        buffer(&mut class, "b", DType::F32, words, 0);
        buffer(&mut class, "c", DType::F32, words, 4 * (words.next_multiple_of(4) + gap));
        let (c, b) = (slice("c", 0, &[]), slice("b", 0, &[]));
        let source = vec![Operand::Mem(c.clone()), Operand::Mem(b)];
        let dims: &[u32] = &[words];
        let mut body = vec![code(TIMESTAMP)];
        if self.operands == Operands::Paired {
            body.push(code(DESCRIPTORS));
        }
        body.push(Stmt::Op(op(OpKind::Mul, Dest::Mem(c), source, dims)));
        class.start("main", body);
        program.classes.push(class);
        program
    }
}
