//! Local products of pr0f3ss/SpMM_Cerebras on one PE: a tile of the left matrix times `columns` right sides.
//!
//! The dense one is a strided multiply-add over the rows of the tile for each of its columns and right sides, the sparse
//! one a multiply-add over the right sides for each stored value. Sums and destination share a register in both.

use super::*;

/// Instructions of an inner loop of the dense product (`src/gemm`): counter, address and base of the sums, one value of
/// the right matrix.
const DENSE_CALL: u32 = 8;

/// Of a stored value of the sparse product (`src/grid_csr`), whose integers have 32 bits: counter (6), index (2), its
/// address (3), column (2), value (5), the products and bases of two row addresses (9).
pub const SPARSE_CALL: u32 = 27;

/// Of a row of it: two row pointers, which the source subtracts as floating-point numbers, and the counter. The compiled
/// length is not published; fitted on `spmm_CSR_4`.
pub const SPARSE_ROW: u32 = 62;

/// Between the first timestamp and the loops.
const ENTRY: u32 = 20;

/// A dense product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Rows of the tile.
    pub rows: u32,
    /// Columns of the tile.
    pub inner: u32,
    /// Right sides.
    pub columns: u32,
}

impl Dense {
    /// The program: `c[:, j] += a[:, k] * b[k, j]` for every k and j.
    pub fn program(&self) -> WaferProgram {
        let Dense { rows, inner, columns } = *self;
        let mut program = WaferProgram::new(1, 1);
        let mut class = class_at(0, 0);
        let (a_words, b_words, c_words) = (rows * inner, inner * columns, rows * columns);
        buffer(&mut class, "a", DType::F32, a_words, 0);
        buffer(&mut class, "b", DType::F32, b_words, 4 * a_words);
        buffer(&mut class, "c", DType::F32, c_words, 4 * (a_words + b_words));
        let a = slice("a", Var::Loop(0), &[i64::from(inner)]);
        let b = slice("b", Affine::term(Var::Loop(0), i64::from(columns)).plus(Var::Loop(1), 1), &[0]);
        let c = slice("c", Var::Loop(1), &[i64::from(columns)]);
        let source = vec![Operand::Mem(a), Operand::Mem(b), Operand::Mem(c.clone())];
        let call = Stmt::Op(op(OpKind::Fmac, Dest::Mem(c), source, &[rows]));
        let calls = repeat(columns, vec![code(DENSE_CALL), call]);
        class.start("main", vec![code(ENTRY), repeat(inner, vec![calls])]);
        program.classes.push(class);
        program
    }
}

/// A product with a sparse matrix in compressed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Rows of the tile.
    pub rows: u32,
    /// Columns of the tile.
    pub inner: u32,
    /// Right sides.
    pub columns: u32,
    /// Stored values of the tile.
    pub values: u32,
}

impl Sparse {
    /// Words of a row of right sides: padded to whole groups of four with at least one to spare.
    fn padded(&self) -> u32 {
        (self.columns + 1).next_multiple_of(4)
    }

    /// The program; the values are spread evenly over the columns, one row of sums after the other.
    pub fn program(&self) -> WaferProgram {
        let row = self.padded();
        let mut program = WaferProgram::new(1, 1);
        let mut class = class_at(0, 0);
        buffer(&mut class, "b", DType::F32, self.inner * row, 0);
        // The sums are one word off the rows of the right matrix.
        buffer(&mut class, "c", DType::F32, row, 4 * (self.inner * row + 1));
        let c = slice("c", 0, &[]);
        let b = slice("b", 0, &[]);
        let source = vec![Operand::Mem(b), Operand::Const(0.5), Operand::Mem(c.clone())];
        let call = Stmt::Op(op(OpKind::Fmac, Dest::Mem(c), source, &[row]));
        let rows = repeat(self.rows, vec![code(SPARSE_ROW)]);
        let calls = repeat(self.values, vec![code(SPARSE_CALL), call]);
        class.start("main", vec![code(ENTRY), rows, calls]);
        program.classes.push(class);
        program
    }
}
