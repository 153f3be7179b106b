//! Elements of a host stream or a tensor map at one place, in row-major order.

use crate::program::{Affine, Var};

/// The tensor indices of the elements of one lane or PE.
#[derive(Clone, Debug)]
pub struct Walk {
    lengths: [u64; 4],
    strides: [i64; 4],
    base: i64,
}

impl Walk {
    /// Walks `dims` at a place.
    pub fn new(dims: &[Affine], index: &Affine, x: u32, y: u32) -> Self {
        let at = |var: Var| var.at_place(x, y).unwrap_or(0);
        let (mut lengths, mut strides) = ([1; 4], [0; 4]);
        for (k, dim) in dims.iter().enumerate() {
            lengths[k.min(3)] = dim.eval(at).max(0) as u64;
        }
        for (var, c) in &index.terms {
            if let Var::Dim(k) = var
                && usize::from(*k) < dims.len().min(4)
            {
                strides[usize::from(*k)] = *c;
            }
        }
        Walk { lengths, strides, base: index.eval(at) }
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.lengths.iter().product()
    }

    /// Tensor index of element `n`.
    pub fn at(&self, n: u64) -> i64 {
        let (mut rest, mut index) = (n, self.base);
        for (length, stride) in self.lengths.iter().zip(&self.strides).rev() {
            if rest == 0 {
                break;
            }
            index = index.saturating_add(stride.saturating_mul((rest % length) as i64));
            rest /= length;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_in_row_major_order() {
        let index = Affine::constant(5).plus(Var::X, 100).plus(Var::Dim(0), 10).plus(Var::Dim(1), 1);
        let walk = Walk::new(&[Affine::constant(2), Affine::constant(3)], &index, 2, 0);
        let all: Vec<i64> = (0..walk.len()).map(|n| walk.at(n)).collect();
        assert_eq!(all, [205, 206, 207, 215, 216, 217]);
    }
}
