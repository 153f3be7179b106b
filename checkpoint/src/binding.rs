//! The parameters of a model, read out of a checkpoint by their canonical names.

use crate::map::{Fate, Map};
use crate::stored::Stored;
use lapidary_models::DType;
use lapidary_models::weights::Source;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A tensor in canonical layout (linears `[out, in]`), row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// f32, bf16 or f16.
    pub dtype: DType,
    /// Length of every axis, outermost first.
    pub shape: Vec<u64>,
    /// The elements: borrowed where the file has them in this order, owned where they had to be rearranged.
    pub bytes: Cow<'a, [u8]>,
}

/// A checkpoint that fits a model: every parameter is there, in the right shape and type.
#[derive(Clone, Debug)]
pub struct Binding<'c, 'a> {
    parameters: BTreeMap<String, (Source, &'c Stored<'a>, DType)>,
}

impl<'c, 'a> Binding<'c, 'a> {
    /// The parameters of a map without faults.
    pub(crate) fn new(map: &Map<'c, 'a>) -> Self {
        let mut parameters = BTreeMap::new();
        for entry in &map.entries {
            let (Fate::Parameters(sources), Some(dtype)) = (&entry.fate, entry.stored.element.dtype()) else {
                continue;
            };
            for source in sources {
                parameters.insert(source.canonical.clone(), (source.clone(), entry.stored, dtype));
            }
        }
        Binding { parameters }
    }

    /// The canonical names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// The element type that a parameter is stored in.
    pub fn dtype(&self, canonical: &str) -> Option<DType> {
        self.parameters.get(canonical).map(|(_, _, dtype)| *dtype)
    }

    /// The parameter of a canonical name with the layer filled in, such as `layers.3.attn.q.weight`; none where
    /// the model has no such parameter.
    pub fn tensor(&self, canonical: &str) -> Option<Tensor<'a>> {
        let (source, stored, dtype) = self.parameters.get(canonical)?;
        let bytes = match (source.contiguous(), stored.row_major()) {
            (Some(rows), Cow::Borrowed(bytes)) => Cow::Borrowed(bytes.get(byte_range(&rows, *dtype))?),
            (_, bytes) => Cow::Owned(extract(source, *dtype, &bytes)?),
        };
        Some(Tensor { dtype: *dtype, shape: source.shape.clone(), bytes })
    }
}

fn byte_range(elements: &std::ops::Range<u64>, dtype: DType) -> std::ops::Range<usize> {
    (elements.start * dtype.bytes()) as usize..(elements.end * dtype.bytes()) as usize
}

/// The canonical elements, rearranged. The shapes were compared, so that a difference cannot occur.
fn extract(source: &Source, dtype: DType, bytes: &[u8]) -> Option<Vec<u8>> {
    let extracted = match dtype.bytes() {
        2 => source.extract(bytes.as_chunks::<2>().0).map(Vec::into_flattened),
        _ => source.extract(bytes.as_chunks::<4>().0).map(Vec::into_flattened),
    };
    extracted.ok()
}
