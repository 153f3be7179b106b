//! How the host makes the tensors of a program from parameters and token ids.

mod gradient;

use super::kernel::attention;
use super::placed::Parameter;
use super::tile::Tiles;
use serde::{Deserialize, Serialize};

/// How the host makes a tensor of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostData {
    /// Activations `[tokens, features]` of the caller.
    Activations {
        /// Number of elements.
        elements: u64,
    },
    /// The row of a table for each token id.
    Lookup {
        /// The table.
        table: Parameter,
        /// Elements of a row.
        columns: u32,
        /// Number of tokens.
        tokens: u64,
    },
    /// The row of a table for each position of each sequence.
    Positions {
        /// The table.
        table: Parameter,
        /// Elements of a row.
        columns: u32,
        /// Number of sequences.
        sequences: u32,
        /// Tokens of a sequence.
        length: u32,
        /// Position of the first.
        offset: u64,
    },
    /// Rows of parameters.
    Packed(Packing),
    /// Picked rows and columns of a parameter.
    Picked(Picked),
    /// The position of the one token.
    Position {
        /// It.
        position: u32,
    },
    /// `cos(frequency * (position + offset))` as `[positions, frequencies]`.
    Cosines(Angles),
    /// `sin(frequency * (position + offset))` as `[positions, frequencies]`.
    Sines(Angles),
    /// These numbers.
    Numbers {
        /// The numbers.
        values: Vec<f64>,
    },
    /// 0, 1, 2 and so on.
    Count {
        /// How many numbers.
        elements: u32,
    },
    /// Labels of the tokens as numbers; -1 where there is none.
    Labels {
        /// Number of tokens.
        tokens: u64,
    },
    /// What each token counts in the loss: one over the number of labels, 0 where there is none.
    Shares {
        /// Number of tokens.
        tokens: u64,
    },
    /// The gradient of a parameter, laid out as it is: it leaves the wafer.
    Gradient {
        /// The parameter.
        parameter: Parameter,
        /// Number of elements.
        elements: u64,
    },
    /// The gradient of a row of a table for each token id: it leaves the wafer.
    LookupGradient {
        /// The table.
        table: Parameter,
        /// Elements of a row.
        columns: u32,
        /// Number of tokens.
        tokens: u64,
    },
    /// The gradient of a row of a table for each position of each sequence: it leaves the wafer.
    PositionsGradient {
        /// The table.
        table: Parameter,
        /// Elements of a row.
        columns: u32,
        /// Number of sequences.
        sequences: u32,
        /// Tokens of a sequence.
        length: u32,
        /// Position of the first.
        offset: u64,
    },
    /// The causal mask between the tokens of one PE.
    Mask {
        /// Tokens of the fullest PE.
        tokens: u32,
    },
}

/// Angles of a rotary embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Angles {
    /// Radians per position.
    pub frequencies: Vec<f64>,
    /// Number of positions.
    pub positions: u32,
    /// The first position.
    pub offset: i64,
}

/// A tensor made of rows of parameters: block by block the rows of each part in turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packing {
    /// Elements of a row.
    pub columns: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// The parameters.
    pub parts: Vec<Part>,
}

/// A parameter within a packed tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The parameter.
    pub parameter: Parameter,
    /// Rows.
    pub rows: u32,
    /// Whether these are columns of the parameter.
    pub transposed: bool,
}

/// Rows and columns of a parameter in an order of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picked {
    /// The parameter, with as many rows and columns.
    pub parameter: Parameter,
    /// Which row of it is at each place.
    pub rows: Vec<u32>,
    /// Which column of it is at each place.
    pub columns: Vec<u32>,
}

impl Picked {
    fn values<'a>(&self, parameter: impl Fn(&str) -> Option<&'a [f32]>) -> Option<Vec<f32>> {
        let all = parameter(&self.parameter.name)?;
        let width = self.columns.len();
        let mut values = Vec::with_capacity(self.rows.len() * width);
        for row in &self.rows {
            let row = all.get(*row as usize * width..)?.get(..width)?;
            for column in &self.columns {
                values.push((f64::from(*row.get(*column as usize)?) * self.parameter.scale) as f32);
            }
        }
        Some(values)
    }
}

impl Packing {
    /// Part and row of each row of the tensor.
    pub fn rows(&self) -> impl Iterator<Item = (&Part, u32)> {
        (0..self.blocks).flat_map(move |block| {
            self.parts.iter().flat_map(move |part| {
                let tiles = Tiles::new(part.rows, self.blocks);
                (0..tiles.size(block)).map(move |row| (part, tiles.start(block) + row))
            })
        })
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.rows)).sum::<u64>() * u64::from(self.columns)
    }
}

impl HostData {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        match self {
            HostData::Activations { elements } => *elements,
            HostData::Lookup { columns, tokens, .. } => u64::from(*columns) * tokens,
            HostData::Positions { columns, sequences, length, .. } => {
                u64::from(*columns) * u64::from(*sequences) * u64::from(*length)
            }
            HostData::Packed(packing) => packing.elements(),
            HostData::Picked(picked) => picked.rows.len() as u64 * picked.columns.len() as u64,
            HostData::Position { .. } => 1,
            HostData::Cosines(angles) | HostData::Sines(angles) => {
                angles.frequencies.len() as u64 * u64::from(angles.positions)
            }
            HostData::Mask { tokens } => u64::from(*tokens) * u64::from(*tokens),
            HostData::Numbers { values } => values.len() as u64,
            HostData::Count { elements } => u64::from(*elements),
            HostData::Labels { tokens } | HostData::Shares { tokens } => *tokens,
            HostData::Gradient { elements, .. } => *elements,
            HostData::LookupGradient { columns, tokens, .. } => u64::from(*columns) * tokens,
            HostData::PositionsGradient { columns, sequences, length, .. } => {
                u64::from(*columns) * u64::from(*sequences) * u64::from(*length)
            }
        }
    }

    /// The same so many positions later.
    pub fn at(&self, token: u32) -> HostData {
        let mut moved = self.clone();
        match &mut moved {
            HostData::Position { position } => *position += token,
            HostData::Positions { offset, .. } => *offset += u64::from(token),
            HostData::Cosines(angles) | HostData::Sines(angles) => angles.offset += i64::from(token),
            _ => {}
        }
        moved
    }

    /// The values, where `parameter` gives those of a parameter and `ids` are the token ids; `None` for activations of
    /// the caller, labels and gradients, and where a parameter is missing or too short.
    pub fn values<'a>(&self, parameter: impl Fn(&str) -> Option<&'a [f32]>, ids: &[i32]) -> Option<Vec<f32>> {
        let rows = Rows { parameter };
        match self {
            HostData::Activations { .. }
            | HostData::Labels { .. }
            | HostData::Shares { .. }
            | HostData::Gradient { .. }
            | HostData::LookupGradient { .. }
            | HostData::PositionsGradient { .. } => None,
            HostData::Mask { tokens } => Some(attention::mask(*tokens)),
            HostData::Numbers { values } => Some(values.iter().map(|value| *value as f32).collect()),
            HostData::Count { elements } => Some((0..*elements).map(|n| n as f32).collect()),
            HostData::Picked(picked) => picked.values(rows.parameter),
            HostData::Position { position } => Some(vec![*position as f32]),
            HostData::Cosines(angles) => Some(angles.table(f64::cos)),
            HostData::Sines(angles) => Some(angles.table(f64::sin)),
            HostData::Packed(packing) => {
                let all = packing.rows().map(|(part, row)| {
                    let step = if part.transposed { part.rows } else { 1 };
                    let first = if part.transposed { 1 } else { packing.columns };
                    (&part.parameter, u64::from(row) * u64::from(first), step)
                });
                rows.collect(packing.columns, packing.elements(), all)
            }
            HostData::Lookup { table, columns, tokens } => {
                let ids = ids.iter().take(usize::try_from(*tokens).ok()?);
                let row = |id: &i32| u64::try_from(*id).unwrap_or(u64::MAX).saturating_mul((*columns).into());
                let all = ids.map(|id| (table, row(id), 1));
                rows.collect(*columns, self.elements(), all)
            }
            HostData::Positions { table, columns, sequences, length, offset } => {
                let row = |position: u32| (u64::from(position) + offset) * u64::from(*columns);
                let sequence = || (0..*length).map(|position| (table, row(position), 1));
                rows.collect(*columns, self.elements(), (0..*sequences).flat_map(|_| sequence()))
            }
        }
    }
}

impl Angles {
    fn table(&self, of: fn(f64) -> f64) -> Vec<f32> {
        let row = |position: u32| {
            let at = (i64::from(position) + self.offset) as f64;
            self.frequencies.iter().map(move |f| of(f * at) as f32)
        };
        (0..self.positions).flat_map(row).collect()
    }
}

/// Rows of parameters.
struct Rows<F> {
    parameter: F,
}

impl<'a, F: Fn(&str) -> Option<&'a [f32]>> Rows<F> {
    /// The rows one after the other, `elements` in all: of each the parameter, its first element and the distance
    /// between two.
    fn collect<'b>(
        &self,
        columns: u32,
        elements: u64,
        rows: impl Iterator<Item = (&'b Parameter, u64, u32)>,
    ) -> Option<Vec<f32>> {
        let columns = columns as usize;
        let mut values = Vec::with_capacity(usize::try_from(elements).ok()?);
        for (parameter, first, step) in rows {
            let (first, step) = (usize::try_from(first).ok()?, step.max(1) as usize);
            let row = (self.parameter)(&parameter.name)?.get(first..)?;
            let row = row.iter().step_by(step).take(columns);
            values.extend(row.map(|value| (f64::from(*value) * parameter.scale) as f32));
        }
        (values.len() as u64 == elements).then_some(values)
    }
}
