//! What a checkpoint holds and where it goes, as a document.

use crate::weights::Files;
use lapidary_checkpoint::{Checkpoint, Entry, Fate, Fault, Map, Stored};
use lapidary_models::weights::Source;
use serde::Serialize;

/// The document of `inspect --json` for weights.
#[derive(Serialize)]
pub struct Inspection {
    schema: &'static str,
    version: u32,
    /// Name of the model; none where only tensors are listed.
    pub model: Option<String>,
    /// The prefix that the family's names have and this checkpoint's lack.
    pub without_prefix: Option<String>,
    /// Every file.
    pub files: Vec<FileRow>,
    /// Every tensor, file by file.
    pub tensors: Vec<TensorRow>,
    /// Sums.
    pub totals: Totals,
    /// Everything that does not fit.
    pub faults: Vec<Fault>,
}

/// A file.
#[derive(Serialize)]
pub struct FileRow {
    /// As messages call it.
    pub name: String,
    /// Its form.
    pub format: String,
    /// Its size.
    pub bytes: u64,
    /// How many tensors it has.
    pub tensors: usize,
}

/// A stored tensor.
#[derive(Clone, Serialize)]
pub struct TensorRow {
    /// Its name in the file.
    pub name: String,
    /// The file.
    pub file: String,
    /// Element type.
    pub dtype: &'static str,
    /// Stored shape.
    pub shape: Vec<u64>,
    /// Size of its elements.
    pub bytes: u64,
    /// What becomes of it; none where there is no model to compare with.
    pub fate: Option<FateRow>,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum FateRow {
    /// It holds parameters.
    Parameter {
        /// Which, and where in it.
        holds: Vec<Part>,
    },
    /// It repeats another tensor.
    Duplicate {
        /// The other's published name.
        of: String,
    },
    /// A buffer of the publishing program.
    Ignored {
        /// The pattern that names it.
        because: String,
    },
    /// The model has no place for it.
    Extra,
}

/// A parameter inside a stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Canonical name.
    pub parameter: String,
    /// Canonical shape.
    pub shape: Vec<u64>,
    /// Whether the stored tensor is `[in, out]`.
    pub transposed: bool,
    /// Its rows of the (turned) tensor as `first..end`, several where they lie apart; none for all of them.
    pub rows: Option<String>,
}

/// Sums over a checkpoint.
#[derive(Default, Serialize)]
pub struct Totals {
    /// Stored tensors.
    pub tensors: usize,
    /// Bytes of their elements.
    pub tensor_bytes: u64,
    /// Values that are parameters.
    pub parameters: u64,
    /// Bytes of those.
    pub parameter_bytes: u64,
    /// Bytes of duplicates and ignored buffers.
    pub passed_over_bytes: u64,
    /// What the index says the tensors take.
    pub index_bytes: Option<u64>,
}

impl Inspection {
    /// The tensors of a checkpoint, without a model.
    pub fn of_tensors(files: &Files, checkpoint: &Checkpoint<'_>) -> Self {
        let tensors = checkpoint.tensors().iter().map(|stored| row(checkpoint, stored, None)).collect();
        Inspection::new(files, checkpoint, tensors)
    }

    /// The map from a checkpoint to a model, and what does not fit.
    pub fn of_map(
        files: &Files,
        checkpoint: &Checkpoint<'_>,
        model: &str,
        map: &Map<'_, '_>,
        faults: Vec<Fault>,
    ) -> Self {
        let tensors =
            map.entries.iter().map(|entry| row(checkpoint, entry.stored, Some(fate(entry)))).collect();
        Inspection {
            model: Some(model.to_string()),
            without_prefix: map.without_prefix.clone(),
            faults,
            ..Inspection::new(files, checkpoint, tensors)
        }
    }

    fn new(files: &Files, checkpoint: &Checkpoint<'_>, tensors: Vec<TensorRow>) -> Self {
        let count = |name: &str| tensors.iter().filter(|row| row.file == name).count();
        let file = |file: &lapidary_checkpoint::FileInfo| FileRow {
            name: file.name.clone(),
            format: file.format.to_string(),
            bytes: file.bytes,
            tensors: count(&file.name),
        };
        Inspection {
            schema: "lapidary/inspect",
            version: 1,
            model: None,
            without_prefix: None,
            files: checkpoint.files().iter().map(file).collect(),
            totals: totals(files, &tensors),
            tensors,
            faults: Vec::new(),
        }
    }

    /// One row for each kind of tensor: those of all layers together, with `*` for the layer, and how many.
    pub fn folded(&self) -> Vec<(TensorRow, usize)> {
        let mut folded: Vec<(TensorRow, usize)> = Vec::new();
        for row in &self.tensors {
            let pattern = pattern(row);
            let same = |other: &TensorRow| {
                (&other.name, other.dtype, &other.shape, &other.fate)
                    == (&pattern.name, pattern.dtype, &pattern.shape, &pattern.fate)
            };
            match folded.iter_mut().find(|(other, _)| same(other)) {
                Some((_, times)) => *times += 1,
                None => folded.push((pattern, 1)),
            }
        }
        folded
    }
}

fn totals(files: &Files, tensors: &[TensorRow]) -> Totals {
    let mut totals = Totals {
        tensors: tensors.len(),
        index_bytes: files.index().and_then(|index| index.total_bytes),
        ..Totals::default()
    };
    for row in tensors {
        totals.tensor_bytes += row.bytes;
        match &row.fate {
            Some(FateRow::Parameter { .. }) => {
                totals.parameters += row.shape.iter().product::<u64>();
                totals.parameter_bytes += row.bytes;
            }
            Some(FateRow::Duplicate { .. } | FateRow::Ignored { .. }) => {
                totals.passed_over_bytes += row.bytes
            }
            Some(FateRow::Extra) | None => {}
        }
    }
    totals
}

fn row(checkpoint: &Checkpoint<'_>, stored: &Stored<'_>, fate: Option<FateRow>) -> TensorRow {
    TensorRow {
        name: stored.name.clone(),
        file: checkpoint.file_name(stored).to_string(),
        dtype: stored.element.name(),
        shape: stored.shape.clone(),
        bytes: stored.size_bytes(),
        fate,
    }
}

fn fate(entry: &Entry<'_, '_>) -> FateRow {
    match &entry.fate {
        Fate::Parameters(sources) => FateRow::Parameter { holds: sources.iter().map(part).collect() },
        Fate::Repeats(of) => FateRow::Duplicate { of: of.clone() },
        Fate::Ignored(pattern) => FateRow::Ignored { because: pattern.clone() },
        Fate::Extra => FateRow::Extra,
    }
}

fn part(source: &Source) -> Part {
    let shape = source.shape.clone();
    Part { parameter: source.canonical.clone(), shape, transposed: source.transposed, rows: rows(source) }
}

/// `0..64`, or `0..16, 48..64, ..` where the rows lie apart; none where they are all.
fn rows(source: &Source) -> Option<String> {
    let rows = source.rows;
    let all = if source.transposed { source.published_shape.last() } else { source.published_shape.first() };
    if rows.count == 1 && all == Some(&rows.len) {
        return None;
    }
    let block =
        |i: u64| format!("{}..{}", rows.start + i * rows.stride, rows.start + i * rows.stride + rows.len);
    Some(match rows.count {
        0..=2 => (0..rows.count).map(block).collect::<Vec<_>>().join(", "),
        count => format!("{}, {}, .. {}", block(0), block(1), block(count - 1)),
    })
}

/// The row with `*` in place of the layer in its name and in those of its parameters.
fn pattern(row: &TensorRow) -> TensorRow {
    let mut row = TensorRow { name: starred(&row.name), ..row.clone() };
    if let Some(FateRow::Parameter { holds }) = &mut row.fate {
        for part in holds {
            part.parameter = starred(&part.parameter);
        }
    }
    row
}

/// A dotted name with `*` for its first part that is a number.
fn starred(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(at) = parts.iter().position(number) {
        parts[at] = "*";
    }
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_becomes_a_star() {
        assert_eq!(starred("transformer.h.12.attn.c_attn.weight"), "transformer.h.*.attn.c_attn.weight");
        assert_eq!(starred("lm_head.weight"), "lm_head.weight");
    }
}
