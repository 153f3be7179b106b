//! One tensor of a file: its name, form and bytes.

use crate::element::Element;
use half::{bf16, f16};
use std::borrow::Cow;

/// A tensor as a file has it, little-endian.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// Its name in the file.
    pub name: String,
    /// Which of the checkpoint's files it stands in.
    pub file: usize,
    /// Type of its elements.
    pub element: Element,
    /// Length of every axis, outermost first; none for a scalar.
    pub shape: Vec<u64>,
    /// Elements from one index to the next along every axis; none where row-major.
    pub(crate) strides: Option<Vec<u64>>,
    /// From its first element to its last.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Number of elements. The border has checked that it does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Size of the elements.
    pub fn size_bytes(&self) -> u64 {
        self.elements() * self.element.bytes()
    }

    /// The elements in row-major order: borrowed, unless the file has them in another order.
    pub fn row_major(&self) -> Cow<'a, [u8]> {
        match &self.strides {
            None => Cow::Borrowed(self.bytes),
            Some(strides) => Cow::Owned(self.gather(strides)),
        }
    }

    fn gather(&self, strides: &[u64]) -> Vec<u8> {
        let size = self.element.bytes() as usize;
        let mut gathered = Vec::with_capacity(self.size_bytes() as usize);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.elements() {
            let at: u64 = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            let at = at as usize * size;
            gathered.extend_from_slice(&self.bytes[at..at + size]);
            next(&mut index, &self.shape);
        }
        gathered
    }

    /// The values of a float tensor as f32; none for other types. f64 is rounded.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let bytes = self.row_major();
        Some(match self.element {
            Element::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Element::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Element::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            _ => return None,
        })
    }

    /// The values of a tensor of whole numbers; none for other types and for values past i64.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let bytes = self.row_major();
        match self.element {
            Element::I64 => Some(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            Element::I32 => {
                Some(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect())
            }
            Element::U32 => {
                Some(bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect())
            }
            Element::U64 => {
                bytes.as_chunks().0.iter().map(|b| i64::try_from(u64::from_le_bytes(*b)).ok()).collect()
            }
            Element::U8 | Element::Bool => Some(bytes.iter().map(|b| i64::from(*b)).collect()),
            _ => None,
        }
    }
}

/// The index after `index` in row-major order.
fn next(index: &mut [u64], shape: &[u64]) {
    for (i, length) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < *length {
            return;
        }
        *i = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_is_read_in_row_major_order() {
        let bytes: Vec<u8> = [0u16, 1, 2, 3, 4, 5].iter().flat_map(|x| x.to_le_bytes()).collect();
        let stored = Stored {
            name: "t".into(),
            file: 0,
            element: Element::U16,
            shape: vec![3, 2],
            strides: Some(vec![1, 3]),
            bytes: &bytes,
        };
        let read: Vec<u16> =
            stored.row_major().as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        assert_eq!(read, [0, 3, 1, 4, 2, 5]);
    }

    fn one(element: Element, bytes: &[u8]) -> Stored<'_> {
        Stored { name: "t".into(), file: 0, element, shape: vec![1], strides: None, bytes }
    }

    #[test]
    fn values_come_back_from_every_float_type() {
        assert_eq!(one(Element::F32, &1.5f32.to_le_bytes()).floats(), Some(vec![1.5]));
        assert_eq!(one(Element::F64, &1.5f64.to_le_bytes()).floats(), Some(vec![1.5]));
        assert_eq!(one(Element::Bf16, &bf16::from_f32(1.5).to_le_bytes()).floats(), Some(vec![1.5]));
        assert_eq!(one(Element::F16, &f16::from_f32(1.5).to_le_bytes()).floats(), Some(vec![1.5]));
        assert_eq!(one(Element::I64, &(-3i64).to_le_bytes()).integers(), Some(vec![-3]));
        assert_eq!(one(Element::U64, &u64::MAX.to_le_bytes()).integers(), None);
        assert_eq!(one(Element::I64, &[0; 8]).floats(), None);
    }
}
