//! What the host holds for one token whose parameters stay on the wafer.

use super::{Feeder, Flow, Host};
use crate::wafer::channel::Channel;
use crate::wafer::data::{Angles, HostData, Picked};
use crate::wafer::error::WaferError;
use crate::wafer::kernel::cached::{CACHE, POSITION, SLOTS};
use crate::wafer::kernel::gemv::{bias_name, weight_name};
use crate::wafer::kernel::scratch_name;
use crate::wafer::lanes::{Lanes, pair_lanes};
use crate::wafer::placed::{CachedAttention, Layout, Linear, Turn};
use lapidary_runtime_sim::program::{Affine, Direction, Port, Var, Wire};

impl Feeder<'_> {
    /// Weights and biases in the order of the layouts that they meet.
    pub fn gemv(&self, host: &mut Host, linear: &Linear) -> Result<(), WaferError> {
        let columns = self.order(self.placed.layout(self.op, &linear.input)?);
        for (number, segment) in linear.outputs.iter().enumerate() {
            let rows = self.order(self.placed.layout(self.op, &segment.value)?);
            let weight =
                Picked { parameter: segment.weight.clone(), rows: rows.clone(), columns: columns.clone() };
            host.tensors.insert(scratch_name(&self.op.name, weight_name(number)), HostData::Picked(weight));
            if let Some(bias) = &segment.bias {
                let bias = Picked { parameter: bias.clone(), rows, columns: vec![0] };
                host.tensors.insert(scratch_name(&self.op.name, bias_name(number)), HostData::Picked(bias));
            }
        }
        Ok(())
    }

    /// Which feature of the model stands at each place of a layout.
    fn order(&self, layout: Layout) -> Vec<u32> {
        match layout {
            Layout::HeadRows { heads, queries } => heads.order(queries),
            _ => (0..self.placed.features(layout)).collect(),
        }
    }

    /// Cosines and sines of the token's position, along the rows of heads.
    pub fn turn(&self, host: &mut Host, turn: &Turn) -> Result<(), WaferError> {
        let Layout::HeadRows { heads, .. } = self.placed.layout(self.op, &turn.value)? else { return Ok(()) };
        let angles = || Angles { frequencies: turn.frequencies.clone(), positions: 1, offset: 0 };
        let tables = [("cos", HostData::Cosines(angles())), ("sin", HostData::Sines(angles()))];
        for (name, data) in tables {
            let tensor = scratch_name(&self.op.name, name);
            host.tensors.insert(tensor.clone(), data);
            for Lanes { runs, features, first } in pair_lanes(heads) {
                let (direction, edge, channel, wire) = (Direction::In, Port::West, Channel::Along, Wire::F32);
                let flow = Flow { tensor: &tensor, direction, edge, channel, wire };
                let lengths = [Affine::constant(features.into())];
                self.streams(host, &flow, &runs, &lengths, &first.plus(Var::Dim(0), 1));
            }
        }
        Ok(())
    }

    /// The cache, its slots, and the position of the token, one word to every column.
    pub fn cache(&self, host: &mut Host, attention: &CachedAttention) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, &attention.key)?;
        let elements = u64::from(attention.capacity) * u64::from(self.placed.features(layout));
        for tensor in CACHE {
            host.tensors.insert(tensor.into(), HostData::Activations { elements });
        }
        host.tensors.insert(SLOTS.into(), HostData::Count { elements: attention.capacity });
        if !attention.slopes.is_empty() {
            let values = attention.slopes.clone();
            host.tensors.insert(scratch_name(&self.op.name, "slopes"), HostData::Numbers { values });
        }
        host.tensors.insert(POSITION.into(), HostData::Position { position: 0 });
        let flow = self.weights(POSITION, Wire::F32);
        let runs = [(0, self.placed.width, 1)];
        self.streams(host, &flow, &runs, &[Affine::constant(1)], &Affine::constant(0));
        Ok(())
    }
}
