//! How a device parameter is assembled from the model's tensors when the weights are loaded.
//!
//! A device parameter is a row-major matrix `[rows, pitch]`. Its rows are those of one or several canonical tensors,
//! one after another (`concat`: q, k, v) or alternating (`interleave`: gate and up), each tensor's rows optionally
//! permuted within heads so that the two values a rotation mixes are neighbours. Vectors (biases, norm weights) are packed
//! as `[1, n]`, their order acting on columns.
use serde::{Deserialize, Serialize};

/// The recipe of one device parameter. Rows and columns that no tensor fills are zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Packing {
    /// Groups of tensors, one below the other, each starting at its `first_row`.
    pub groups: Vec<PackGroup>,
    /// Rows in all.
    pub rows: u64,
    /// Columns used.
    pub cols: u64,
    /// Columns stored: `cols` rounded up to 16 bytes.
    pub pitch: u64,
    /// What is stored of the matrix.
    #[serde(default, skip_serializing_if = "PackForm::is_values")]
    pub form: PackForm,
}

/// What a device parameter holds of its matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackForm {
    /// The values.
    #[default]
    Values,
    /// Whole numbers from -127 to 127, each row divided by its scale and rounded to the nearest: a value is off by at most
    /// half a scale. Within each 16 columns bytes `4 j ..` hold columns `2 j, 2 j + 1, 2 j + 8, 2 j + 9`, which is how tensor
    /// cores take them.
    Int8,
    /// The scales of those rows, one f32 each: the largest absolute value of the row over 127.
    Int8Scales,
}

impl PackForm {
    /// Whether the values themselves are stored.
    pub fn is_values(&self) -> bool {
        matches!(self, PackForm::Values)
    }

    /// The column that byte `at` of a row of [`PackForm::Int8`] holds.
    pub fn int8_column(at: u64) -> u64 {
        let (group, byte) = (at / 16 * 16, at % 16);
        group + byte / 4 * 2 + byte % 2 + byte / 2 % 2 * 8
    }
}

/// One tensor, or several whose rows alternate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackGroup {
    /// Row of the packed matrix at which the group starts.
    pub first_row: u64,
    /// Source `i` of `n` fills rows `first_row + n * j + i`.
    pub sources: Vec<PackSource>,
}

/// A canonical tensor and what happens to it on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackSource {
    /// Canonical name; `*` stands for the layer number.
    pub name: String,
    /// Rows taken (for a vector: its length is in the packing's `cols`, and this is 1).
    pub rows: u64,
    /// Multiplied in, in f32, before rounding to the buffer's type.
    pub scale: f64,
    /// Order of the rows (of the columns, for a vector).
    #[serde(default, skip_serializing_if = "RowOrder::is_natural")]
    pub order: RowOrder,
}

/// Order of the rows within each head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum RowOrder {
    /// As the model has them.
    #[default]
    Natural,
    /// Half-split rotary pairs made neighbours: packed row `2 i` of a head is the model's row `i`, packed row `2 i + 1`
    /// is `i + rot_dims / 2`, for `i < rot_dims / 2`; the rows from `rot_dims` on stay.
    RotaryPairs {
        /// Rows of a head.
        head_dim: u64,
        /// Rotated rows of a head, even.
        rot_dims: u64,
    },
}

impl RowOrder {
    /// Whether nothing is permuted.
    pub fn is_natural(&self) -> bool {
        matches!(self, RowOrder::Natural)
    }

    /// The model's row that packed row `row` takes.
    pub fn source_row(self, row: u64) -> u64 {
        match self {
            RowOrder::Natural => row,
            RowOrder::RotaryPairs { head_dim, rot_dims } => {
                let (head, at) = (row / head_dim, row % head_dim);
                let within = if at < rot_dims { at / 2 + (at % 2) * (rot_dims / 2) } else { at };
                head * head_dim + within
            }
        }
    }
}

impl Packing {
    /// The same matrix with something else of it stored.
    pub fn with(self, form: PackForm) -> Packing {
        Packing { form, ..self }
    }

    /// Where packed row `row` comes from: the source and the row of that tensor, or none for padding.
    pub fn source(&self, row: u64) -> Option<(&PackSource, u64)> {
        let group = self.groups.iter().rev().find(|group| group.first_row <= row)?;
        let n = group.sources.len() as u64;
        let source = group.sources.get(((row - group.first_row) % n) as usize)?;
        let at = (row - group.first_row) / n;
        (at < source.rows).then(|| (source, source.order.source_row(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, rows: u64, order: RowOrder) -> PackSource {
        PackSource { name: name.into(), rows, scale: 1.0, order }
    }

    #[test]
    fn rotary_pairs_are_neighbours_and_a_permutation() {
        let order = RowOrder::RotaryPairs { head_dim: 8, rot_dims: 4 };
        let rows: Vec<u64> = (0..16).map(|r| order.source_row(r)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn columns_of_whole_numbers_are_a_permutation_of_sixteen() {
        let columns: Vec<u64> = (16..32).map(PackForm::int8_column).collect();
        assert_eq!(columns, [16, 17, 24, 25, 18, 19, 26, 27, 20, 21, 28, 29, 22, 23, 30, 31]);
    }

    #[test]
    fn groups_follow_each_other_and_sources_alternate() {
        let packing = Packing {
            groups: vec![
                PackGroup { first_row: 0, sources: vec![source("q", 3, RowOrder::Natural)] },
                PackGroup {
                    first_row: 4,
                    sources: vec![source("g", 2, RowOrder::Natural), source("u", 2, RowOrder::Natural)],
                },
            ],
            rows: 8,
            cols: 5,
            pitch: 8,
            form: PackForm::Values,
        };
        let names: Vec<_> = (0..8).map(|r| packing.source(r).map(|(s, at)| (s.name.as_str(), at))).collect();
        let expected = [
            Some(("q", 0)),
            Some(("q", 1)),
            Some(("q", 2)),
            None,
            Some(("g", 0)),
            Some(("u", 0)),
            Some(("g", 1)),
            Some(("u", 1)),
        ];
        assert_eq!(names, expected);
    }
}
