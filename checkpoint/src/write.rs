//! Lays out a checkpoint to be written: shards, headers, index. The elements come from the caller, in order.

use crate::element::Element;
use crate::safetensors::size;
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Size past which published checkpoints are cut into shards: 5 GB, as the hub's own programs do.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Headers end at a multiple of this, so that the elements of every type lie aligned in a mapped file.
const ALIGNMENT: usize = 8;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Published name.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Published shape.
    pub shape: Vec<u64>,
}

impl Planned {
    /// Size of its elements; none where that cannot be counted.
    pub fn bytes(&self) -> Option<u64> {
        size(self.element, &self.shape)
    }
}

/// One file: `header`, then the elements of `tensors` one after the other, without gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub file: String,
    /// Length and header, up to the first element.
    pub header: Vec<u8>,
    /// Which of the planned tensors it has.
    pub tensors: Range<usize>,
}

/// Files and, where there are several, the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In order.
    pub shards: Vec<Shard>,
    /// Name and text of the index.
    pub index: Option<(&'static str, String)>,
    /// Bytes of all elements.
    pub total_bytes: u64,
}

/// Lays out tensors in their order, with at most `limit` bytes of elements in a file (a larger tensor has a file of
/// its own). None where the sizes cannot be counted.
pub fn lay_out(tensors: &[Planned], limit: u64) -> Option<Layout> {
    let sizes: Vec<u64> = tensors.iter().map(Planned::bytes).collect::<Option<_>>()?;
    let total_bytes = sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size))?;
    let ranges = cut(&sizes, limit);
    let name = |i: usize| match ranges.len() {
        1 => "model.safetensors".to_string(),
        count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let shard = |(i, range): (usize, &Range<usize>)| Shard {
        file: name(i),
        header: header(&tensors[range.clone()], &sizes[range.clone()]),
        tensors: range.clone(),
    };
    let shards: Vec<Shard> = ranges.iter().enumerate().map(shard).collect();
    let index =
        (shards.len() > 1).then(|| ("model.safetensors.index.json", index(tensors, &shards, total_bytes)));
    Some(Layout { shards, index, total_bytes })
}

/// As many tensors in a file as fit, in order.
fn cut(sizes: &[u64], limit: u64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut held) = (0, 0u64);
    for (i, size) in sizes.iter().enumerate() {
        if i > start && held.saturating_add(*size) > limit {
            ranges.push(start..i);
            (start, held) = (i, 0);
        }
        held = held.saturating_add(*size);
    }
    ranges.push(start..sizes.len());
    ranges
}

fn header(tensors: &[Planned], sizes: &[u64]) -> Vec<u8> {
    let mut rows = Map::new();
    rows.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut begin = 0;
    for (tensor, size) in tensors.iter().zip(sizes) {
        let end = begin + size;
        let row =
            json!({"dtype": tensor.element.name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        rows.insert(tensor.name.clone(), row);
        begin = end;
    }
    let mut text = Value::Object(rows).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

fn index(tensors: &[Planned], shards: &[Shard], total_bytes: u64) -> String {
    let rows = shards.iter().flat_map(|shard| {
        tensors[shard.tensors.clone()].iter().map(|tensor| (tensor.name.clone(), json!(shard.file)))
    });
    let rows: Map<String, Value> = rows.collect();
    format!("{:#}\n", json!({"metadata": {"total_size": total_bytes}, "weight_map": rows}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, File, Index};

    fn planned(sizes: &[u64]) -> Vec<Planned> {
        let tensor = |(i, size): (usize, &u64)| Planned {
            name: format!("t{i}"),
            element: Element::Bf16,
            shape: vec![*size / 2],
        };
        sizes.iter().enumerate().map(tensor).collect()
    }

    #[test]
    fn a_file_holds_as_many_tensors_as_fit() {
        assert_eq!(cut(&[4, 4, 4], 8), [0..2, 2..3]);
        assert_eq!(cut(&[20, 4, 4], 8), [0..1, 1..3], "a larger tensor stands alone");
        assert_eq!(cut(&[4, 4], 100), std::iter::once(0..2).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_laid_out_reads_back() {
        let tensors = planned(&[8, 2, 6]);
        for (limit, files) in [(100, 1), (8, 2), (1, 3)] {
            let layout = lay_out(&tensors, limit).unwrap();
            assert_eq!((layout.shards.len(), layout.total_bytes), (files, 16));
            let bytes = layout.shards.iter().map(|shard| {
                let held: u64 = tensors[shard.tensors.clone()].iter().filter_map(Planned::bytes).sum();
                assert_eq!(shard.header.len() % ALIGNMENT, 0);
                [shard.header.clone(), vec![1; held as usize]].concat()
            });
            let bytes: Vec<Vec<u8>> = bytes.collect();
            let named = layout.shards.iter().zip(&bytes);
            let read: Vec<File<'_>> =
                named.map(|(shard, bytes)| File { name: shard.file.clone(), bytes }).collect();
            let index = layout.index.map(|(name, text)| Index::parse(&text, name).unwrap());
            assert_eq!(index.is_some(), files > 1);
            let checkpoint = Checkpoint::open(&read, index.as_ref()).unwrap();
            let names: Vec<&str> = checkpoint.tensors().iter().map(|stored| stored.name.as_str()).collect();
            assert_eq!(names, ["t0", "t1", "t2"]);
        }
    }

    #[test]
    fn sizes_that_cannot_be_counted_are_refused() {
        assert_eq!(lay_out(&planned(&[u64::MAX - 1, u64::MAX - 1]), 8), None);
    }
}
