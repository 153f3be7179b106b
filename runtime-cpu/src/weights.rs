//! The door through which weights enter: canonical tensors by name, wherever they are stored.

use lapidary_models::DType;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// A tensor in canonical layout (linears `[out, in]`), row-major, little-endian.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Element type: f32, bf16 or f16.
    pub dtype: DType,
    /// Length of every axis, outermost first.
    pub shape: Vec<u64>,
    /// The elements: borrowed where the file has them in this order, owned where they had to be rearranged.
    pub bytes: Cow<'a, [u8]>,
}

/// Where weights come from. Called from several threads at once.
pub trait Weights: Sync {
    /// The tensor of a canonical name with the layer's number filled in, such as `layers.3.attn.q.weight`.
    ///
    /// # Errors
    /// When the tensor is missing or cannot be read.
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError>;

    /// The bytes that a view borrowed, to be read for as long as a model lives; none where they have no such owner.
    fn held(&self, bytes: &[u8]) -> Option<Held> {
        let _ = bytes;
        None
    }
}

/// What bytes belong to, such as a mapped file.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Part of something whose bytes do not move while it lives.
#[derive(Clone)]
pub struct Held {
    owner: Owner,
    range: Range<usize>,
}

impl Held {
    /// `bytes` as a part of its owner; none where they lie elsewhere.
    pub fn of(owner: &Owner, bytes: &[u8]) -> Option<Held> {
        let whole = owner.as_ref().as_ref();
        let start = (bytes.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
        let range = start..start.checked_add(bytes.len())?;
        (range.end <= whole.len()).then(|| Held { owner: owner.clone(), range })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.as_ref().as_ref()[self.range.clone()]
    }
}

/// Why a weight cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WeightError {
    /// There is no such tensor.
    #[error("{name}: no such tensor")]
    Missing {
        /// Canonical name.
        name: String,
    },
    /// The tensor has another shape.
    #[error("{name}: found shape {found:?}, expected {expected:?}")]
    Shape {
        /// Canonical name.
        name: String,
        /// What the weights have.
        found: Vec<u64>,
        /// What the program needs.
        expected: Vec<u64>,
    },
    /// The tensor's elements cannot be converted, or its bytes do not match its shape.
    #[error("{name}: {what}")]
    Content {
        /// Canonical name.
        name: String,
        /// What was found.
        what: String,
    },
    /// There is not enough memory for a copy.
    #[error("{name}: {bytes} bytes for a copy: {why}")]
    Memory {
        /// The parameter.
        name: String,
        /// Size asked for.
        bytes: u64,
        /// What the system said.
        why: String,
    },
}

impl TensorView<'_> {
    /// Checks shape and size against what a program expects.
    ///
    /// # Errors
    /// [`WeightError::Shape`] or [`WeightError::Content`].
    pub fn expect(&self, name: &str, expected: &[u64]) -> Result<(), WeightError> {
        if self.shape != expected {
            return Err(WeightError::Shape {
                name: name.into(),
                found: self.shape.clone(),
                expected: expected.into(),
            });
        }
        let content = |what: String| Err(WeightError::Content { name: name.into(), what });
        if self.dtype == DType::I32 {
            return content("found i32 elements, expected f32, bf16 or f16".into());
        }
        let bytes = expected.iter().product::<u64>().saturating_mul(self.dtype.bytes());
        match self.bytes.len() as u64 == bytes {
            true => Ok(()),
            false => content(format!("found {} bytes, expected {bytes}", self.bytes.len())),
        }
    }

    /// Elements `at..at + into.len()` as f32.
    pub fn read(&self, at: usize, into: &mut [f32]) {
        let size = self.dtype.bytes() as usize;
        let bytes = &self.bytes[at * size..(at + into.len()) * size];
        match self.dtype {
            DType::F32 => {
                for (x, b) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
            DType::Bf16 => {
                for (x, b) in into.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            DType::F16 => {
                for (x, b) in into.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = half::f16::from_le_bytes(*b).to_f32();
                }
            }
            DType::I32 => {}
        }
    }
}
