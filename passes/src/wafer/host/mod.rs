//! What the host holds for a program, and in which order it enters and leaves.
//!
//! Weights of all layers share one colour; on each lane they come in the order of the ops, first biases, then weights in
//! the order `[output, input]` of the lane's own input features. Rows of the outputs of one layer are interleaved block
//! by block when the tensor is packed, so that what a block of columns owns comes together.

mod gradients;
mod resident;

use super::channel::{Channel, Colours};
use super::data::{Angles, HostData, Packing, Part};
use super::error::WaferError;
use super::kernel::attention::{self, Scores};
use super::kernel::{scratch_name, stream};
use super::lanes::{Lanes, all_lanes, lanes};
use super::placed::{Layout, Linear, Norm, OpKind, Parameter, Path, Placed, PlacedOp, Rope, Source};
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, Direction, HostStream, Port, Var, Wire};
use std::collections::BTreeMap;

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
            OpKind::Gemv(linear) => feeder.gemv(&mut host, linear)?,
            OpKind::Turn(turn) => feeder.turn(&mut host, turn)?,
            OpKind::CachedAttention(attention) => feeder.cache(&mut host, attention)?,
            OpKind::Norm(norm) => feeder.norm(&mut host, norm)?,
            OpKind::Input { value, tensor, source, path } => {
                feeder.input(&mut host, value, tensor, source, *path)?
            }
            OpKind::Output { value, tensor, path } => feeder.output(&mut host, value, tensor, *path)?,
            OpKind::Keep { value, tensor } => {
                let columns = placed.features(placed.layout(op, value)?);
                let elements = feeder.tokens() * u64::from(columns);
                host.tensors.insert(tensor.clone(), HostData::Activations { elements });
            }
            OpKind::Rope(rope) => feeder.angles(&mut host, rope),
            OpKind::Attention(attention) => feeder.attention(&mut host, &attention.into()),
            OpKind::AttentionDx(attention) => feeder.attention(&mut host, &attention.into()),
            OpKind::NormDx(norm) => {
                let layout = placed.layout(op, &norm.input)?;
                feeder.vector(&mut host, "weight", &norm.weight, layout);
            }
            OpKind::Outer(outer) => feeder.products(&mut host, outer)?,
            OpKind::ColumnSum(sum) => feeder.sums(&mut host, &sum.input, &sum.result)?,
            OpKind::NormDw(norm) => feeder.sums(&mut host, &norm.input, &norm.result)?,
            OpKind::TableDw(table) => feeder.rows(&mut host, table)?,
            OpKind::Loss(loss) => feeder.loss(&mut host, loss)?,
            OpKind::LossDx(loss) => feeder.labels(&mut host, &loss.logits)?,
            OpKind::Map(_) | OpKind::Gather(_) => {}
        }
    }
    Ok(host)
}

struct Feeder<'a> {
    placed: &'a Placed,
    colours: &'a Colours,
    op: &'a PlacedOp,
    phase: usize,
    bytes_per_cycle: f64,
}

/// Words of one tensor through one edge.
struct Flow<'a> {
    tensor: &'a str,
    direction: Direction,
    edge: Port,
    channel: Channel,
    wire: Wire,
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
            let transposed = segment.transposed;
            parts.push(Part { parameter: segment.weight.clone(), rows, transposed });
            if let Some(bias) = &segment.bias {
                self.vector(host, &format!("{}.bias", segment.value), bias, layout);
            }
        }
        let rows: u32 = parts.iter().map(|part| part.rows).sum();
        let tensor = scratch_name(&self.op.name, "weight");
        host.tensors.insert(tensor.clone(), HostData::Packed(Packing { columns, blocks, parts }));
        self.matrix(
            host,
            self.weights(&tensor, self.wire()),
            lanes(self.placed, input),
            rows.into(),
            columns,
        );
        Ok(())
    }

    fn norm(&self, host: &mut Host, norm: &Norm) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, &norm.input)?;
        self.vector(host, "weight", &norm.weight, layout);
        if let Some(bias) = &norm.bias {
            self.vector(host, "bias", bias, layout);
        }
        Ok(())
    }

    fn angles(&self, host: &mut Host, rope: &Rope) {
        let (frequencies, positions, offset) =
            (rope.frequencies.clone(), self.placed.tokens.length, rope.offset);
        let mut angles = Angles { frequencies, positions, offset };
        host.tensors.insert(scratch_name(&self.op.name, "cos"), HostData::Cosines(angles.clone()));
        if rope.back {
            angles.frequencies.iter_mut().for_each(|frequency| *frequency = -*frequency);
        }
        host.tensors.insert(scratch_name(&self.op.name, "sin"), HostData::Sines(angles));
    }

    fn attention(&self, host: &mut Host, attention: &Scores) {
        let tokens = attention::largest_block(self.placed);
        host.tensors.insert(attention::MASK.into(), HostData::Mask { tokens });
        if attention::distance::is_needed(attention) {
            // First tokens of columns without any lie one past the last token of the row.
            let elements = self.placed.tokens.tiles().largest() + 1;
            host.tensors.insert(scratch_name(&self.op.name, "count"), HostData::Count { elements });
            let values = attention.slopes.to_vec();
            host.tensors.insert(scratch_name(&self.op.name, "slopes"), HostData::Numbers { values });
        }
    }

    /// A parameter with one f32 word per feature.
    fn vector(&self, host: &mut Host, name: &str, parameter: &Parameter, layout: Layout) {
        let tensor = scratch_name(&self.op.name, name);
        let rows = self.placed.features(layout);
        let parts = vec![Part { parameter: parameter.clone(), rows, transposed: false }];
        host.tensors.insert(tensor.clone(), HostData::Packed(Packing { columns: 1, blocks: 1, parts }));
        if !self.placed.resident {
            self.matrix(host, self.weights(&tensor, Wire::F32), lanes(self.placed, layout), 1, rows);
        }
    }

    fn input(
        &self,
        host: &mut Host,
        value: &str,
        tensor: &str,
        source: &Source,
        path: Path,
    ) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, value)?;
        let columns = self.placed.features(layout);
        let tokens = self.placed.tokens;
        let all = self.tokens();
        let data = match source.clone() {
            Source::Caller => HostData::Activations { elements: all * u64::from(columns) },
            Source::Lookup { table } => HostData::Lookup { table, columns, tokens: all },
            Source::Positions { table, offset } => {
                let (sequences, length) = (tokens.sequences * self.placed.micro_batches, tokens.length);
                HostData::Positions { table, columns, sequences, length, offset }
            }
        };
        host.tensors.insert(tensor.into(), data);
        if path == Path::Stream {
            let channel = Channel::Enter(1);
            let flow =
                Flow { tensor, direction: Direction::In, edge: Port::North, channel, wire: self.wire() };
            self.matrix(host, flow, all_lanes(self.placed, layout), all, columns);
        }
        if path == Path::Shared {
            let flow = self.weights(tensor, self.wire());
            self.matrix(host, flow, lanes(self.placed, layout), 1, columns);
        }
        Ok(())
    }

    /// Tokens of all micro-batches.
    fn tokens(&self) -> u64 {
        self.placed.tokens.total() * u64::from(self.placed.micro_batches)
    }

    fn output(&self, host: &mut Host, value: &str, tensor: &str, path: Path) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, value)?;
        let columns = self.placed.features(layout);
        let tokens = self.tokens();
        host.tensors.insert(tensor.into(), HostData::Activations { elements: tokens * u64::from(columns) });
        if path == Path::Stream {
            let channel = Channel::Leave(((self.placed.rows() - 1) % 2) as u8);
            let flow =
                Flow { tensor, direction: Direction::Out, edge: Port::South, channel, wire: self.wire() };
            self.matrix(host, flow, all_lanes(self.placed, layout), tokens, columns);
        }
        if path == Path::Shared {
            let (direction, edge, channel) = (Direction::Out, Port::East, stream::aside(self.placed, value));
            let flow = Flow { tensor, direction, edge, channel, wire: Wire::F32 };
            self.matrix(host, flow, lanes(self.placed, layout), 1, columns);
        }
        Ok(())
    }

    fn weights<'a>(&self, tensor: &'a str, wire: Wire) -> Flow<'a> {
        Flow { tensor, direction: Direction::In, edge: Port::North, channel: Channel::Weights, wire }
    }

    /// `rows` rows of a tensor with `columns` columns, each lane its own columns.
    fn matrix(&self, host: &mut Host, flow: Flow, lanes: Vec<Lanes>, rows: u64, columns: u32) {
        for Lanes { runs, features, first } in lanes {
            let mut dims = vec![Affine::constant(rows as i64), Affine::constant(features.into())];
            let again = flow.channel == Channel::Weights && self.placed.micro_batches > 1;
            if again {
                dims.insert(0, i64::from(self.placed.micro_batches).into());
            }
            let [row, column] = if again { [1, 2] } else { [0, 1] };
            let index = first.plus(Var::Dim(row), columns.into()).plus(Var::Dim(column), 1);
            self.streams(host, &flow, &runs, &dims, &index);
        }
    }

    /// The same words through every lane of `runs`.
    fn streams(
        &self,
        host: &mut Host,
        flow: &Flow,
        runs: &[(u32, u32, u32)],
        dims: &[Affine],
        index: &Affine,
    ) {
        for (first, lanes, step) in runs {
            host.phases.push(self.phase);
            host.streams.push(HostStream {
                name: format!("{}.{}", flow.tensor, host.streams.len()),
                direction: flow.direction,
                edge: flow.edge,
                first: *first,
                lanes: *lanes,
                step: *step,
                colour: self.colours.get(self.phase, flow.channel),
                wire: flow.wire,
                tensor: flow.tensor.into(),
                dims: dims.to_vec(),
                index: index.clone(),
                then: None,
                interval: self.interval(flow.wire),
            });
        }
    }

    /// Cycles between two words of a lane when all lanes share the links; narrow words cross the links at their own
    /// width.
    fn interval(&self, wire: Wire) -> u32 {
        let bytes = f64::from(self.placed.width) * wire.dtype().bytes() as f64;
        (bytes / self.bytes_per_cycle).ceil().max(1.0) as u32
    }
}
