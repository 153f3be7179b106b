//! Dense row-major tensors.

use super::Real;

/// A shape and its values, last axis fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// Length of every axis.
    pub shape: Vec<usize>,
    /// As many values as the product of the shape.
    pub data: Vec<T>,
}

impl<T: Real> Tensor<T> {
    /// A tensor; the number of values must be the product of the shape.
    pub fn new(shape: Vec<usize>, data: Vec<T>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Tensor { shape, data }
    }

    /// A value for every index of the shape, in order.
    pub fn build(shape: Vec<usize>, values: impl FnMut(usize) -> T) -> Self {
        let data = (0..shape.iter().product()).map(values).collect();
        Tensor { shape, data }
    }

    /// The tensor with every value changed.
    pub fn map(&self, change: impl Fn(T) -> T) -> Self {
        Tensor { shape: self.shape.clone(), data: self.data.iter().map(|x| change(*x)).collect() }
    }

    /// Length of the last axis.
    pub fn width(&self) -> usize {
        *self.shape.last().expect("tensors of a graph have axes")
    }

    /// The rows along the last axis.
    pub fn rows(&self) -> impl Iterator<Item = &[T]> {
        self.data.chunks_exact(self.width())
    }

    /// The tensor with every row along the last axis changed; rows may change their length to `width`.
    pub fn map_rows(&self, width: usize, change: impl Fn(&[T]) -> Vec<T>) -> Self {
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("tensors of a graph have axes") = width;
        Tensor::new(shape, self.rows().flat_map(change).collect())
    }

    /// Largest absolute difference to another tensor of the same shape.
    pub fn max_abs_diff(&self, other: &Tensor<impl Real>) -> f64 {
        assert_eq!(self.shape, other.shape);
        let pairs = self.data.iter().zip(&other.data);
        pairs
            .map(|(a, b)| (a.to_f64() - b.to_f64()).abs())
            .fold(0.0, |max, d| if d.is_nan() { d } else { max.max(d) })
    }
}
