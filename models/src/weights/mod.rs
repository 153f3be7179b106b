//! Where each parameter stands in a published checkpoint: name, form and rows.
//!
//! Published tensors may be transposed (`[in, out]`), may hold queries, keys and values together, and may name
//! the gate of an MLP first or second; a [`Source`] says all of it for one canonical parameter, so a reader only
//! has to copy. Nothing here opens files.

mod names;

use crate::graph::{Dims, Graph, GraphError, Mode, Param};
use crate::spec::{GateHalf, ModelSpec, QkvLayout, WeightLayout};
use names::{SCHEMES, Scheme, Slot};
use std::ops::Range;
use thiserror::Error;

/// Names of the known naming schemes; `canonical` is the graph's own.
pub fn scheme_names() -> Vec<&'static str> {
    std::iter::once("canonical").chain(SCHEMES.iter().map(|scheme| scheme.name)).collect()
}

/// Rows of a published `[rows, columns]` tensor: `count` blocks of `len` rows, `stride` rows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First row of the first block.
    pub start: u64,
    /// Rows of a block.
    pub len: u64,
    /// Distance of the blocks' first rows.
    pub stride: u64,
    /// Number of blocks.
    pub count: u64,
}

/// Where one canonical parameter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Canonical name with the layer filled in, such as `layers.3.attn.q.weight`.
    pub canonical: String,
    /// Canonical shape, linears as `[out, in]`.
    pub shape: Vec<u64>,
    /// Name of the published tensor.
    pub published: String,
    /// Shape of the published tensor.
    pub published_shape: Vec<u64>,
    /// Whether the published tensor is `[in, out]`.
    pub transposed: bool,
    /// Which rows of it, counted after transposing.
    pub rows: Rows,
}

/// Why a model has no published form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WeightsError {
    /// The scheme has no name for a parameter.
    #[error("the naming scheme \"{scheme}\" has no name for {parameter}")]
    NoName {
        /// The scheme.
        scheme: String,
        /// The canonical name.
        parameter: String,
    },
    /// The specification has no graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// What a published tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds parameters.
    Parameter,
    /// Repeats another tensor (a tied head).
    Duplicate,
    /// A buffer of the publishing program.
    Ignored,
    /// Nothing that the model knows.
    Unknown,
}

/// The source of every parameter of every layer, in the graph's order.
///
/// # Errors
/// When the naming scheme has no place for a parameter, or the specification no graph.
pub fn sources(spec: &ModelSpec) -> Result<Vec<Source>, WeightsError> {
    let graph = Graph::build(spec, Mode::Forward, Dims { batch: 1, seq: 1, cached: 0 })?;
    let mut found = Vec::new();
    for param in &graph.params {
        let layers = if param.per_layer { spec.n_layers } else { 1 };
        for layer in 0..layers {
            found.push(source(spec, param, layer)?);
        }
    }
    Ok(found)
}

/// What the published tensor `name` is for, given the model's sources.
pub fn role(spec: &ModelSpec, sources: &[Source], name: &str) -> Role {
    let matches = |patterns: &[String]| patterns.iter().any(|pattern| matches_wildcard(pattern, name));
    if sources.iter().any(|source| source.published == name) {
        Role::Parameter
    } else if matches(&spec.weights.duplicates) {
        Role::Duplicate
    } else if matches(&spec.weights.ignore) {
        Role::Ignored
    } else {
        Role::Unknown
    }
}

impl Source {
    /// The canonical values out of the published ones.
    ///
    /// # Errors
    /// A sentence when the published tensor has another number of elements.
    pub fn extract<T: Copy>(&self, published: &[T]) -> Result<Vec<T>, String> {
        let wanted: u64 = self.published_shape.iter().product();
        if published.len() as u64 != wanted {
            return Err(format!("{}: expected {wanted} elements, found {}", self.published, published.len()));
        }
        Ok(if self.transposed { self.turned(published) } else { self.rows_of(published) })
    }

    /// Whole rows of the published tensor, one after the other.
    fn rows_of<T: Copy>(&self, published: &[T]) -> Vec<T> {
        let columns = self.columns();
        let mut values = Vec::with_capacity(self.shape.iter().product::<u64>() as usize);
        for row in self.rows.indices() {
            let start = row as usize * columns;
            values.extend_from_slice(&published[start..start + columns]);
        }
        values
    }

    /// Columns of the published tensor as rows, in tiles that stay in the cache.
    fn turned<T: Copy>(&self, published: &[T]) -> Vec<T> {
        const TILE: usize = 32;
        let columns = self.columns();
        let rows: Vec<usize> = self.rows.indices().map(|row| row as usize).collect();
        let all_rows = published.len() / columns.max(1);
        let Some(any) = published.first() else { return Vec::new() };
        let mut values = vec![*any; rows.len() * columns];
        for (tile, rows) in rows.chunks(TILE).enumerate() {
            let values = &mut values[tile * TILE * columns..];
            for first in (0..columns).step_by(TILE) {
                for (row, from) in rows.iter().enumerate() {
                    for column in first..columns.min(first + TILE) {
                        values[row * columns + column] = published[column * all_rows + from];
                    }
                }
            }
        }
        values
    }

    /// Length of a canonical row.
    fn columns(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1) as usize
    }

    /// Puts canonical values where the published tensor has them: the inverse of [`Source::extract`].
    ///
    /// # Errors
    /// A sentence when either has another number of elements.
    pub fn place<T: Copy>(&self, values: &[T], published: &mut [T]) -> Result<(), String> {
        let wanted: (u64, u64) = (self.shape.iter().product(), self.published_shape.iter().product());
        let found = (values.len() as u64, published.len() as u64);
        if found != wanted {
            return Err(format!("{}: expected {wanted:?} elements, found {found:?}", self.published));
        }
        self.places().zip(values).for_each(|(place, value)| published[place] = *value);
        Ok(())
    }

    /// The published elements that are the parameter, where they lie together and in its order.
    pub fn contiguous(&self) -> Option<Range<u64>> {
        let together = self.rows.count == 1 || self.rows.len == self.rows.stride;
        let columns: u64 = self.shape.iter().skip(1).product();
        let start = self.rows.start * columns;
        (together && !self.transposed).then(|| start..start + self.shape.iter().product::<u64>())
    }

    /// Index into the canonical values of a published element; none where it is another parameter's.
    pub fn canonical_index(&self, published: u64) -> Option<u64> {
        let columns: u64 = self.shape.iter().skip(1).product::<u64>().max(1);
        let (row, column) = match self.transposed {
            true => {
                let all_rows = self.published_shape.last().copied().unwrap_or(1).max(1);
                (published % all_rows, published / all_rows)
            }
            false => (published / columns, published % columns),
        };
        let from_start = row.checked_sub(self.rows.start)?;
        let (block, within) = (from_start / self.rows.stride.max(1), from_start % self.rows.stride.max(1));
        let ours = block < self.rows.count && within < self.rows.len && column < columns;
        ours.then(|| (block * self.rows.len + within) * columns + column)
    }

    /// Index into the published values of each canonical value, in canonical order.
    fn places(&self) -> impl Iterator<Item = usize> {
        let columns = self.shape.get(1).copied().unwrap_or(1);
        let all_rows = self.published_shape.iter().product::<u64>() / columns.max(1);
        let transposed = self.transposed;
        let place = move |row: u64, column: u64| match transposed {
            true => (column * all_rows + row) as usize,
            false => (row * columns + column) as usize,
        };
        self.rows.indices().flat_map(move |row| (0..columns).map(move |column| place(row, column)))
    }
}

impl Rows {
    const fn range(start: u64, len: u64) -> Self {
        Rows { start, len, stride: len, count: 1 }
    }

    /// The row numbers in order.
    pub fn indices(self) -> impl Iterator<Item = u64> {
        (0..self.count)
            .flat_map(move |block| (0..self.len).map(move |row| self.start + block * self.stride + row))
    }
}

fn source(spec: &ModelSpec, param: &Param, layer: u64) -> Result<Source, WeightsError> {
    let canonical = param.name.replace('*', &layer.to_string());
    let shape = param.ty.shape.clone();
    if spec.weights.names == "canonical" {
        let rows = Rows::range(0, shape[0]);
        let (published, published_shape) = (canonical.clone(), shape.clone());
        return Ok(Source { canonical, shape, published, published_shape, transposed: false, rows });
    }
    let (stem, suffix) = param.name.rsplit_once('.').unwrap_or((&param.name, ""));
    let slot = slot(spec, stem.trim_start_matches("layers.*."));
    let pattern = SCHEMES
        .iter()
        .find(|scheme| scheme.name == spec.weights.names)
        .and_then(|scheme: &Scheme| slot.and_then(|slot| scheme.pattern(slot)))
        .ok_or_else(|| WeightsError::NoName {
            scheme: spec.weights.names.clone(),
            parameter: param.name.clone(),
        })?;
    let published = format!("{}.{suffix}", pattern.replace('*', &layer.to_string()));
    let (rows, all_rows) = rows(spec, stem, shape[0]);
    let mut published_shape = shape.clone();
    published_shape[0] = all_rows;
    let in_layer_linear = stem.contains(".attn.") || stem.contains(".mlp.");
    let transposed = shape.len() == 2 && in_layer_linear && spec.weights.layout == WeightLayout::InOut;
    if transposed {
        published_shape.reverse();
    }
    Ok(Source { canonical, shape, published, published_shape, transposed, rows })
}

fn slot(spec: &ModelSpec, stem: &str) -> Option<Slot> {
    let gate_first = spec.mlp.gate == GateHalf::First;
    let fused = spec.weights.qkv != QkvLayout::Split;
    Some(match stem {
        "embed" => Slot::Embed,
        "position" => Slot::Position,
        "attn_norm" => Slot::AttnNorm,
        "attn.q" | "attn.k" | "attn.v" if fused => Slot::Qkv,
        "attn.q" => Slot::Query,
        "attn.k" => Slot::Key,
        "attn.v" => Slot::Value,
        "attn.out" => Slot::AttnOut,
        "mlp_norm" => Slot::MlpNorm,
        "mlp.gate" if gate_first => Slot::MlpFirst,
        "mlp.gate" => Slot::MlpSecond,
        "mlp.up" if spec.mlp.gated && gate_first => Slot::MlpSecond,
        "mlp.up" => Slot::MlpFirst,
        "mlp.down" => Slot::MlpDown,
        "final_norm" => Slot::FinalNorm,
        "head" => Slot::Head,
        _ => return None,
    })
}

/// The rows of a parameter in its published tensor, and how many rows that has in all.
fn rows(spec: &ModelSpec, stem: &str, own: u64) -> (Rows, u64) {
    let (q, kv, d) = (spec.q_width(), spec.kv_width(), spec.head_dim);
    let third = match stem.rsplit_once("attn.").map(|(_, which)| which) {
        Some("q") => 0,
        Some("k") => 1,
        Some("v") => 2,
        _ => return (Rows::range(0, own), own),
    };
    let all = q.saturating_add(kv.saturating_mul(2));
    match spec.weights.qkv {
        QkvLayout::Split => (Rows::range(0, own), own),
        QkvLayout::Concat => (Rows::range([0, q, q.saturating_add(kv)][third as usize], own), all),
        QkvLayout::PerHead => {
            (Rows { start: third * d, len: d, stride: d.saturating_mul(3), count: spec.n_heads }, all)
        }
    }
}

/// Whether `name` has the form of `pattern`, in which `*` stands for any characters.
pub fn matches_wildcard(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_any_characters() {
        assert!(matches_wildcard("transformer.h.*.attn.bias", "transformer.h.12.attn.bias"));
        assert!(!matches_wildcard("transformer.h.*.attn.bias", "transformer.h.12.attn.masked_bias"));
        assert!(matches_wildcard("lm_head.weight", "lm_head.weight"));
        assert!(!matches_wildcard("lm_head", "lm_head.weight"));
        assert!(matches_wildcard("*inv_freq", "model.rotary_emb.inv_freq"));
    }

    #[test]
    fn blocks_of_rows_are_taken_in_order() {
        let rows = Rows { start: 2, len: 2, stride: 6, count: 2 };
        assert_eq!(rows.indices().collect::<Vec<_>>(), [2, 3, 8, 9]);
    }

    #[test]
    fn a_transposed_tensor_is_turned_before_rows_are_counted() {
        let source = Source {
            canonical: "q".into(),
            shape: vec![2, 2],
            published: "c_attn".into(),
            published_shape: vec![2, 3],
            transposed: true,
            rows: Rows::range(1, 2),
        };
        // published [in 2, out 3] = [[0, 1, 2], [10, 11, 12]]: output rows 1 and 2.
        assert_eq!(source.extract(&[0, 1, 2, 10, 11, 12]).unwrap(), [1, 11, 2, 12]);
        assert!(source.extract(&[0, 1]).is_err());
        let canonical: Vec<Option<u64>> = (0..6).map(|at| source.canonical_index(at)).collect();
        assert_eq!(canonical, [None, Some(0), Some(2), None, Some(1), Some(3)]);
    }

    /// Larger than a tile on both axes and no multiple of it, whole, in thirds and in heads.
    #[test]
    fn tiles_give_what_places_give() {
        let (out, columns) = (105u64, 70u64);
        let heads = Rows { start: 5, len: 5, stride: 15, count: 7 };
        for rows in [Rows::range(0, out), Rows::range(35, 35), heads] {
            for transposed in [false, true] {
                let published_shape = if transposed { vec![columns, out] } else { vec![out, columns] };
                let shape = vec![rows.len * rows.count, columns];
                let (canonical, published) = ("a".into(), "b".into());
                let source = Source { canonical, shape, published, published_shape, transposed, rows };
                let stored: Vec<u64> = (0..out * columns).collect();
                let expected: Vec<u64> = source.places().map(|place| stored[place]).collect();
                assert_eq!(source.extract(&stored).unwrap(), expected, "{rows:?} {transposed}");
                let back = |(at, place): (usize, &u64)| source.canonical_index(*place) == Some(at as u64);
                assert!(expected.iter().enumerate().all(back));
            }
        }
    }
}
