//! What leaves a training step: sums over all rows at the south edge, in the order in which the kernels make them, and
//! what the loss needs.

use super::{Feeder, Flow, Host};
use crate::wafer::channel::Channel;
use crate::wafer::data::HostData;
use crate::wafer::error::WaferError;
use crate::wafer::kernel::{loss, outer, tour};
use crate::wafer::lanes::{Lanes, all_lanes, lanes};
use crate::wafer::placed::{Gradient, Loss, Outer, Source, TableDw};
use crate::wafer::tile::progressions;
use lapidary_runtime_sim::program::{Affine, Direction, Port, Var, Wire};

impl Feeder<'_> {
    /// Sums in f32 through the south edge.
    fn leaving<'a>(&self, tensor: &'a str) -> Flow<'a> {
        let channel = Channel::Leave(((self.placed.rows() - 1) % 2) as u8);
        Flow { tensor, direction: Direction::Out, edge: Port::South, channel, wire: Wire::F32 }
    }

    fn gradient(&self, host: &mut Host, gradient: &Gradient, elements: u64) {
        let parameter = gradient.parameter.clone();
        host.tensors.insert(gradient.tensor.clone(), HostData::Gradient { parameter, elements });
    }

    /// One sum per feature of a value.
    pub fn sums(&self, host: &mut Host, value: &str, result: &Gradient) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, value)?;
        let features = self.placed.features(layout);
        self.gradient(host, result, features.into());
        let lanes = lanes(self.placed, layout);
        self.silent(host, &result.tensor, &runs(&lanes));
        self.matrix(host, self.leaving(&result.tensor), lanes, 1, features);
        Ok(())
    }

    /// The products of a weight's gradient: on each lane those of the own features with the blocks that come by, block by
    /// block in the order of the tour.
    pub fn products(&self, host: &mut Host, product: &Outer) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, &product.resident)?;
        let (stays, tiles) = (self.placed.features(layout), outer::tiles(self.placed, self.op, product)?);
        self.gradient(host, &product.result, u64::from(stays) * u64::from(tiles.items));
        // Elements from one feature to the next: of what stays, and of what travels.
        let (own, visiting) =
            if product.travels_dy { (1, i64::from(stays)) } else { (i64::from(tiles.items), 1) };
        let lanes = lanes(self.placed, layout);
        self.silent(host, &product.result.tensor, &runs(&lanes));
        for of_size in lanes {
            for part in of_size.split_at(tiles.extra()) {
                let Some((sample, ..)) = part.runs.first().copied() else { continue };
                let x = || Affine::from(Var::X);
                let first = tiles.start_at(x(), sample);
                let mut stretches = vec![(Affine::constant(1), i64::from(tiles.size(sample)), first)];
                let others = tour::before(tiles, x(), sample).into_iter();
                for stretch in others.chain(tour::after(tiles, x(), sample)) {
                    let first = stretch.start(tiles, Var::Dim(0));
                    stretches.push((stretch.count.clone(), stretch.size(tiles), first));
                }
                for (count, size, first) in stretches {
                    if size == 0 || count.as_constant() == Some(0) {
                        continue;
                    }
                    let index = (part.first.clone() * own + first * visiting)
                        .plus(Var::Dim(1), own)
                        .plus(Var::Dim(2), visiting);
                    let dims = [count, i64::from(part.features).into(), size.into()];
                    self.streams(host, &self.leaving(&product.result.tensor), &part.runs, &dims, &index);
                }
            }
        }
        Ok(())
    }

    /// Gradients of rows, token by token.
    pub fn rows(&self, host: &mut Host, table: &TableDw) -> Result<(), WaferError> {
        let layout = self.placed.layout(self.op, &table.value)?;
        let (columns, all) = (self.placed.features(layout), self.placed.tokens);
        let tokens = all.total();
        let data = match table.source.clone() {
            Source::Caller => HostData::Activations { elements: tokens * u64::from(columns) },
            Source::Lookup { table } => HostData::LookupGradient { table, columns, tokens },
            Source::Positions { table, offset } => {
                let (sequences, length) = (all.sequences, all.length);
                HostData::PositionsGradient { table, columns, sequences, length, offset }
            }
        };
        host.tensors.insert(table.tensor.clone(), data);
        let flow = Flow { wire: self.wire(), ..self.leaving(&table.tensor) };
        self.matrix(host, flow, all_lanes(self.placed, layout), tokens, columns);
        Ok(())
    }

    /// The loss leaves at the last column.
    pub fn loss(&self, host: &mut Host, of: &Loss) -> Result<(), WaferError> {
        host.tensors.insert(of.tensor.clone(), HostData::Activations { elements: 1 });
        let last = [(self.placed.width - 1, 1, 1)];
        self.silent(host, &of.tensor, &last);
        self.streams(host, &self.leaving(&of.tensor), &last, &[1.into()], &0.into());
        self.labels(host, &of.logits)
    }

    /// Lanes beside `sending`: their routes lead out too, and no word comes.
    fn silent(&self, host: &mut Host, tensor: &str, sending: &[(u32, u32, u32)]) {
        let sends = |x: &u32| {
            sending.iter().any(|(first, lanes, step)| {
                x.checked_sub(*first).is_some_and(|far| far % step == 0 && far / step < *lanes)
            })
        };
        let others: Vec<u32> = (0..self.placed.width).filter(|x| !sends(x)).collect();
        let flow = self.leaving(tensor);
        self.streams(host, &flow, &progressions(&others), &[0.into()], &0.into());
    }

    /// What every PE knows of the labels of its tokens.
    pub fn labels(&self, host: &mut Host, logits: &str) -> Result<(), WaferError> {
        let tokens = self.placed.tokens.total();
        let elements = self.placed.features(self.placed.layout(self.op, logits)?);
        host.tensors.insert(loss::LABELS.into(), HostData::Labels { tokens });
        host.tensors.insert(loss::SHARES.into(), HostData::Shares { tokens });
        host.tensors.insert(loss::ROWS.into(), HostData::Count { elements });
        Ok(())
    }
}

/// All lanes of a value.
fn runs(lanes: &[Lanes]) -> Vec<(u32, u32, u32)> {
    lanes.iter().flat_map(|lanes| lanes.runs.iter().copied()).collect()
}
