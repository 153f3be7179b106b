//! What only the elements can tell: checksums, values that are no numbers, twins that differ.

use crate::element::Element;
use crate::fault::{Fault, FaultKind, printable};
use crate::map::{Entry, Fate, Map};
use crate::torch::Sum;
use half::{bf16, f16};
use rayon::prelude::*;

/// Whether the elements themselves are read and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Read every element: checksums, infinities, twins. Runs on the threads of rayon's current pool.
    Check,
    /// Look at names, shapes and types only.
    Trust,
}

/// Elements that one task looks at.
const CHUNK: usize = 1 << 20;

impl Values {
    pub(crate) fn faults(self, map: &Map<'_, '_>) -> Vec<Fault> {
        if self == Values::Trust {
            return Vec::new();
        }
        let sums = map.checkpoint.sums.par_iter().filter_map(|sum| damaged(map, sum));
        let values = map.entries.par_iter().flat_map_iter(|entry| {
            let weight = matches!(entry.fate, Fate::Parameters(_) | Fate::Repeats(_));
            let found = weight.then(|| (not_finite(map, entry), different(map, entry)));
            found.into_iter().flat_map(|(first, second)| first.into_iter().chain(second))
        });
        let mut faults: Vec<Fault> = sums.collect();
        faults.par_extend(values);
        faults
    }
}

fn damaged(map: &Map<'_, '_>, sum: &Sum<'_>) -> Option<Fault> {
    if sum.holds() {
        return None;
    }
    let file = map.checkpoint.files().get(sum.file).map_or("", |file| &file.name);
    let message = format!("the storage `{}` does not have its checksum", printable(&sum.entry));
    Some(
        Fault::new(FaultKind::Container, file, message)
            .hint("the file is damaged; copy or download it again"),
    )
}

fn not_finite(map: &Map<'_, '_>, entry: &Entry<'_, '_>) -> Option<Fault> {
    let bytes = entry.stored.row_major();
    let first = match entry.stored.element {
        Element::F32 => first(bytes.as_chunks().0, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Element::Bf16 => first(bytes.as_chunks().0, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Element::F16 => first(bytes.as_chunks().0, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        _ => None,
    }?;
    let value = value(entry.stored.element, &bytes, first);
    let message = format!("{value} at {:?}, expected finite values", place(first, &entry.stored.shape));
    let file = map.checkpoint.file_name(entry.stored);
    Some(Fault::new(FaultKind::NotFinite, file, message).tensor(&entry.stored.name))
}

/// Place of the first element with a property. A chunk is read whole, which vectorises, before it is searched.
fn first<const N: usize>(elements: &[[u8; N]], has: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    elements.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, elements)| {
        let any = elements.iter().fold(false, |any, element| any | has(*element));
        let at = any.then(|| elements.iter().position(|element| has(*element)))??;
        Some(chunk * CHUNK + at)
    })
}

/// Indices of an element of a row-major tensor.
fn place(at: usize, shape: &[u64]) -> Vec<u64> {
    let mut rest = at as u64;
    let mut place: Vec<u64> = shape
        .iter()
        .rev()
        .map(|length| {
            let index = rest % length;
            rest /= length;
            index
        })
        .collect();
    place.reverse();
    place
}

/// A repeated tensor that differs from the one it repeats. One of another shape has told its fault already.
fn different(map: &Map<'_, '_>, entry: &Entry<'_, '_>) -> Option<Fault> {
    let Fate::Repeats(twin) = &entry.fate else { return None };
    let twin = map.holder(twin)?.stored;
    let same_shape = twin.shape == entry.stored.shape;
    let (ours, theirs) = (entry.stored.row_major(), twin.row_major());
    let same_bytes = twin.element == entry.stored.element && ours == theirs;
    if same_bytes || !same_shape || twin.element.dtype().is_none() || entry.stored.element.dtype().is_none() {
        return None;
    }
    let at = (0..entry.stored.elements() as usize)
        .find(|at| value(entry.stored.element, &ours, *at) != value(twin.element, &theirs, *at))?;
    let (our, their) = (value(entry.stored.element, &ours, at), value(twin.element, &theirs, at));
    let place = place(at, &entry.stored.shape);
    let message = format!("repeats `{}` but differs at {place:?}: {our}, there {their}", twin.name);
    let file = map.checkpoint.file_name(entry.stored);
    let hint = "the model says that both are one table; is `head.tied` (tie_word_embeddings) right?";
    Some(Fault::new(FaultKind::Duplicate, file, message).tensor(&entry.stored.name).hint(hint))
}

/// One element of a float tensor. NaN equals nothing, so that a twin with NaN is told too.
fn value(element: Element, bytes: &[u8], at: usize) -> f32 {
    let none = f32::NAN;
    match element {
        Element::F32 => bytes.as_chunks().0.get(at).map_or(none, |b| f32::from_le_bytes(*b)),
        Element::Bf16 => bytes.as_chunks().0.get(at).map_or(none, |b| bf16::from_le_bytes(*b).to_f32()),
        Element::F16 => bytes.as_chunks().0.get(at).map_or(none, |b| f16::from_le_bytes(*b).to_f32()),
        _ => none,
    }
}
