//! What the host holds for a program, and in which order it enters and leaves.
//!
//! Weights of all layers share one colour; on each lane they come in the order of the ops, first biases, then weights in
//! the order `[output, input]` of the lane's own input features. Rows of the outputs of one layer are interleaved block
//! by block when the tensor is packed, so that what a block of columns owns comes together.

use super::channel::{Channel, Colours};
use super::error::WaferError;
use super::kernel::attention;
use super::kernel::scratch_name;
use super::placed::{Layout, Linear, Norm, OpKind, Path, Placed, PlacedOp, Segment};
use super::tile::{Tiles, progressions};
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, Colour, Direction, HostStream, Port, Var, Wire};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the host makes a tensor of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostData {
    /// Activations `[tokens, features]` of the caller.
    Activations {
        /// Number of elements.
        elements: u64,
    },
    /// Rows of parameters.
    Packed(Packing),
    /// `cos(frequency * (position + offset))` as `[positions, frequencies]`.
    Cosines(Angles),
    /// `sin(frequency * (position + offset))` as `[positions, frequencies]`.
    Sines(Angles),
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
    /// Name of the parameter.
    pub parameter: String,
    /// Rows.
    pub rows: u32,
    /// Factor folded in.
    pub scale: f64,
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
            HostData::Packed(packing) => packing.elements(),
            HostData::Cosines(angles) | HostData::Sines(angles) => {
                angles.frequencies.len() as u64 * u64::from(angles.positions)
            }
            HostData::Mask { tokens } => u64::from(*tokens) * u64::from(*tokens),
        }
    }

    /// The values, where `parameter` gives those of a parameter; `None` for activations and where a parameter is missing
    /// or too short.
    pub fn values<'a>(&self, parameter: impl Fn(&str) -> Option<&'a [f32]>) -> Option<Vec<f32>> {
        let table = |angles: &Angles, of: fn(f64) -> f64| {
            let row = |position: u32| {
                let at = (i64::from(position) + angles.offset) as f64;
                angles.frequencies.iter().map(move |f| of(f * at) as f32)
            };
            Some((0..angles.positions).flat_map(row).collect())
        };
        match self {
            HostData::Activations { .. } => None,
            HostData::Mask { tokens } => Some(attention::mask(*tokens)),
            HostData::Cosines(angles) => table(angles, f64::cos),
            HostData::Sines(angles) => table(angles, f64::sin),
            HostData::Packed(packing) => {
                let mut values = Vec::with_capacity(packing.elements() as usize);
                let columns = packing.columns as usize;
                for (part, row) in packing.rows() {
                    let source = parameter(&part.parameter)?;
                    let row = source.get(row as usize * columns..(row as usize + 1) * columns)?;
                    values.extend(row.iter().map(|value| (f64::from(*value) * part.scale) as f32));
                }
                Some(values)
            }
        }
    }
}

/// Tensors and streams of a program.
#[derive(Default)]
pub struct Host {
    /// By name in the program.
    pub tensors: BTreeMap<String, HostData>,
    /// In order.
    pub streams: Vec<HostStream>,
    /// The phase of each stream.
    pub phases: Vec<usize>,
}

/// Builds the host side of a placed computation; `bytes_per_cycle` enter and leave the wafer.
pub fn host(placed: &Placed, colours: &Colours, bytes_per_cycle: f64) -> Result<Host, WaferError> {
    let mut host = Host::default();
    for (phase, op) in placed.ops.iter().enumerate() {
        let feeder = Feeder { placed, colours, op, phase, bytes_per_cycle };
        match &op.kind {
            OpKind::Linear(linear) => feeder.linear(&mut host, linear)?,
            OpKind::Norm(norm) => feeder.norm(&mut host, norm)?,
            OpKind::Input { value, tensor, path } => {
                feeder.activations(&mut host, value, tensor, *path, Direction::In)?
            }
            OpKind::Output { value, tensor, path } => {
                feeder.activations(&mut host, value, tensor, *path, Direction::Out)?
            }
            OpKind::Rope(rope) => {
                let angles = Angles {
                    frequencies: rope.frequencies.clone(),
                    positions: placed.tokens.length,
                    offset: rope.offset,
                };
                host.tensors.insert(scratch_name(&op.name, "cos"), HostData::Cosines(angles.clone()));
                host.tensors.insert(scratch_name(&op.name, "sin"), HostData::Sines(angles));
            }
            OpKind::Attention(_) => {
                let tokens = attention::largest_block(placed);
                host.tensors.insert(attention::MASK.into(), HostData::Mask { tokens });
            }
            OpKind::Map(_) => {}
        }
    }
    Ok(host)
}

/// Lanes whose tiles have one size.
struct Lanes {
    /// `(first lane, lanes, step)`.
    runs: Vec<(u32, u32, u32)>,
    features: u32,
    first: Affine,
}

struct Feeder<'a> {
    placed: &'a Placed,
    colours: &'a Colours,
    op: &'a PlacedOp,
    phase: usize,
    bytes_per_cycle: f64,
}

impl Feeder<'_> {
    fn wire(&self) -> Wire {
        match self.placed.dtype {
            DType::F16 => Wire::F16,
            DType::Bf16 => Wire::Bf16,
            DType::F32 | DType::I32 => Wire::F32,
        }
    }

    fn linear(&self, host: &mut Host, linear: &Linear) -> Result<(), WaferError> {
        let input = self.placed.layout(self.op, &linear.input)?;
        let columns = self.placed.features(input);
        let mut parts = Vec::new();
        let mut blocks = 1;
        for segment in &linear.outputs {
            let layout = self.placed.layout(self.op, &segment.value)?;
            blocks = match (layout, self.placed.heads) {
                (Layout::HeadTokens { .. }, Some(heads)) => heads.blocks,
                _ => self.placed.width,
            };
            let rows = self.placed.features(layout);
            parts.push(Part { parameter: segment.weight.clone(), rows, scale: segment.scale });
            self.bias(host, segment, layout, rows);
        }
        let rows: u32 = parts.iter().map(|part| part.rows).sum();
        let name = scratch_name(&self.op.name, "weight");
        host.tensors.insert(name.clone(), HostData::Packed(Packing { columns, blocks, parts }));
        for lanes in self.lanes(input) {
            let dims = vec![i64::from(rows).into(), i64::from(lanes.features).into()];
            let index = lanes.first.plus(Var::Dim(0), i64::from(columns)).plus(Var::Dim(1), 1);
            self.weights(host, &name, &lanes.runs, self.wire(), dims, index);
        }
        Ok(())
    }

    fn bias(&self, host: &mut Host, segment: &Segment, layout: Layout, rows: u32) {
        let Some(bias) = &segment.bias else { return };
        let part = Part { parameter: bias.clone(), rows, scale: segment.scale };
        let name = format!("{}.{}.bias", self.op.name, segment.value);
        host.tensors
            .insert(name.clone(), HostData::Packed(Packing { columns: 1, blocks: 1, parts: vec![part] }));
        self.vector(host, &name, layout);
    }

    fn norm(&self, host: &mut Host, norm: &Norm) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, &norm.input)?;
        let rows = self.placed.features(layout);
        for parameter in std::iter::once(&norm.weight).chain(&norm.bias) {
            let part = Part { parameter: parameter.clone(), rows, scale: 1.0 };
            let name = format!("{}.{parameter}", self.op.name);
            host.tensors
                .insert(name.clone(), HostData::Packed(Packing { columns: 1, blocks: 1, parts: vec![part] }));
            self.vector(host, &name, layout);
        }
        Ok(())
    }

    /// One f32 word per feature.
    fn vector(&self, host: &mut Host, tensor: &str, layout: Layout) {
        for lanes in self.lanes(layout) {
            let dims = vec![i64::from(lanes.features).into()];
            self.weights(host, tensor, &lanes.runs, Wire::F32, dims, lanes.first.plus(Var::Dim(0), 1));
        }
    }

    fn weights(
        &self,
        host: &mut Host,
        tensor: &str,
        runs: &[(u32, u32, u32)],
        wire: Wire,
        dims: Vec<Affine>,
        index: Affine,
    ) {
        let colour = self.colours.get(self.phase, Channel::Weights);
        for run in runs {
            self.stream(
                host,
                (Direction::In, Port::North, colour),
                tensor,
                *run,
                wire,
                dims.clone(),
                index.clone(),
            );
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a stream, each given once")]
    fn stream(
        &self,
        host: &mut Host,
        (direction, edge, colour): (Direction, Port, Colour),
        tensor: &str,
        (first, lanes, step): (u32, u32, u32),
        wire: Wire,
        dims: Vec<Affine>,
        index: Affine,
    ) {
        let name = format!("{}.{}", tensor, host.streams.len());
        let (tensor, interval) = (tensor.to_owned(), self.interval(wire));
        let stream = HostStream {
            name,
            direction,
            edge,
            first,
            lanes,
            step,
            colour,
            wire,
            tensor,
            dims,
            index,
            then: None,
            interval,
        };
        host.streams.push(stream);
        host.phases.push(self.phase);
    }

    /// Cycles between two words of a lane when all lanes share the links; narrow words cross the links at their own width.
    fn interval(&self, wire: Wire) -> u32 {
        let bytes = f64::from(self.placed.width) * wire.dtype().bytes() as f64;
        (bytes / self.bytes_per_cycle).ceil().max(1.0) as u32
    }

    fn activations(
        &self,
        host: &mut Host,
        value: &str,
        tensor: &str,
        path: Path,
        direction: Direction,
    ) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, value)?;
        let features = i64::from(self.placed.features(layout));
        let tokens = self.placed.tokens.total();
        host.tensors.insert(tensor.into(), HostData::Activations { elements: tokens * features as u64 });
        if path == Path::Resident {
            return Ok(());
        }
        let (edge, channel) = match direction {
            Direction::In => (Port::North, Channel::Enter(1)),
            Direction::Out => (Port::South, Channel::Leave(((self.placed.rows() - 1) % 2) as u8)),
        };
        let colour = self.colours.get(self.phase, channel);
        for lanes in self.all_lanes(layout) {
            let dims = vec![(tokens as i64).into(), i64::from(lanes.features).into()];
            let index = lanes.first.plus(Var::Dim(0), features).plus(Var::Dim(1), 1);
            for run in lanes.runs {
                self.stream(
                    host,
                    (direction, edge, colour),
                    tensor,
                    run,
                    self.wire(),
                    dims.clone(),
                    index.clone(),
                );
            }
        }
        Ok(())
    }

    /// The columns that hold features of a layout, by the size of their tile.
    fn lanes(&self, layout: Layout) -> Vec<Lanes> {
        self.all_lanes(layout).into_iter().filter(|lanes| lanes.features > 0).collect()
    }

    /// All columns, by the size of their tile.
    fn all_lanes(&self, layout: Layout) -> Vec<Lanes> {
        let x = || Affine::from(Var::X);
        match (layout, self.placed.heads) {
            (Layout::Columns { features }, _) => {
                let tiles = Tiles::new(features, self.placed.width);
                let columns: Vec<u32> = (0..self.placed.width).collect();
                let (large, small) = columns.split_at(tiles.extra() as usize);
                let lanes = |lines: &[u32]| lanes_of(tiles, lines, lines.first().copied(), x(), 0.into());
                [lanes(large), lanes(small)].into_iter().flatten().collect()
            }
            (Layout::HeadColumns, Some(heads)) => {
                let blocks = heads.column_blocks();
                let tiles = Tiles::new(heads.query_features(), heads.columns);
                let before = blocks.block_of_x() * i64::from(heads.query_features());
                let is_large = |x: &u32| tiles.is_large(blocks.local(*x));
                let (large, small): (Vec<u32>, Vec<u32>) = (0..blocks.lines()).partition(is_large);
                let lanes = |lines: &[u32]| {
                    let sample = lines.first().map(|x| blocks.local(*x));
                    lanes_of(tiles, lines, sample, blocks.local_x(), before.clone())
                };
                [lanes(&large), lanes(&small)].into_iter().flatten().collect()
            }
            (Layout::HeadTokens { queries }, Some(heads)) => {
                let features = if queries { heads.query_features() } else { heads.key_features() };
                let blocks = heads.column_blocks();
                let first = blocks.block_of_x() * i64::from(features);
                vec![Lanes { runs: vec![(0, blocks.lines(), 1)], features, first }]
            }
            (_, None) => vec![],
        }
    }
}

/// Lanes whose tiles are all as that of `sample`, which is one of them if there are any.
fn lanes_of(tiles: Tiles, lines: &[u32], sample: Option<u32>, part: Affine, before: Affine) -> Option<Lanes> {
    let sample = sample?;
    let features = tiles.size(sample);
    let first = before + tiles.start_at(part, sample);
    Some(Lanes { runs: progressions(lines), features, first })
}
