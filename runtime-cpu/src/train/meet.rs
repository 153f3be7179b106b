//! Steps of a training program in which ranks meet, and weights that are gathered before they are used.

use super::memory::{Replica, Weight};
use super::pass::Pass;
use crate::meeting::side_by_side;
use crate::peers::{Group, PeerError, Peers};
use crate::program::train::Meeting;
use crate::program::{BufferId, ParameterId, TrainShare};
use crate::rows::pitch;
use lapidary_models::shard::part_of;
use std::ops::Range;

/// The rows of a batch that a rank of a group of `ranks` has where rows are split.
pub(super) fn own_run(rows: usize, ranks: usize, rank: usize) -> Range<usize> {
    let run = rows.div_ceil(ranks.max(1));
    (run * rank).min(rows)..(run * (rank + 1)).min(rows)
}

/// The other ranks; a program of one rank's part has nobody to meet without them.
fn others<'p>(peers: &'p mut Option<&mut dyn Peers>, what: &str) -> Result<&'p mut dyn Peers, PeerError> {
    match peers {
        Some(peers) => Ok(&mut **peers),
        None => Err(PeerError {
            what: what.into(),
            why: "the program is one rank's part, and there are no others".into(),
        }),
    }
}

impl Pass<'_> {
    /// Ranks of the tensor-parallel group, and which this is.
    fn tensor(&self) -> (usize, usize) {
        let share = self.program.share.as_ref();
        share.map_or((1, 0), |share| (share.tensor.of as usize, share.tensor.index as usize))
    }

    /// The rows that the rank has where rows are split.
    pub(super) fn own_run(&self) -> Range<usize> {
        let (ranks, rank) = self.tensor();
        own_run(self.rows(), ranks, rank)
    }

    /// One meeting. Buffers are of the forms that the program's check asks for.
    pub(super) fn meet(
        &mut self,
        name: &str,
        op: Meeting,
        x: Option<BufferId>,
        out: BufferId,
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<(), PeerError> {
        if let (Meeting::Send { stage, lane }, Some(x)) = (op, x) {
            let peers = others(peers, name)?;
            let told = &self.get(x)[..self.rows_of(x) * pitch(self.program.buffers[x].width)];
            return peers.send(name, stage, lane, told);
        }
        let mut heard = self.buffers.take(self.program, out, self.layer);
        let met = self.hear(name, op, x, out, &mut heard, peers);
        self.buffers.put(self.program, out, self.layer, heard);
        met
    }

    fn hear(
        &self,
        name: &str,
        op: Meeting,
        x: Option<BufferId>,
        out: BufferId,
        heard: &mut [f32],
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<(), PeerError> {
        let width = |id: BufferId| self.program.buffers[id].width as usize;
        let (ranks, _) = self.tensor();
        let step = pitch(width(out) as u64);
        let length = self.rows_of(out) * step;
        let (told, x_step) = match x {
            Some(x) => (&self.get(x)[..self.rows_of(x) * pitch(width(x) as u64)], pitch(width(x) as u64)),
            None => (&[][..], step),
        };
        // Runs of rows are exchanged at their full length, the last one filled up with zeros.
        let run = self.rows().div_ceil(ranks) * step;
        match op {
            Meeting::AllReduce => {
                heard[..length].copy_from_slice(told);
                others(peers, name)?.all_reduce(Group::Tensor, name, &mut heard[..length])?;
            }
            Meeting::AllGather => {
                let mut parts = vec![0.0; told.len() * ranks];
                others(peers, name)?.all_gather(Group::Tensor, name, told, &mut parts)?;
                side_by_side(&parts, (x_step, x.map_or(0, width)), &mut heard[..length], width(out));
            }
            Meeting::ReduceScatter => {
                let mut whole = told.to_vec();
                whole.resize(run * ranks, 0.0);
                others(peers, name)?.reduce_scatter(Group::Tensor, name, &whole, &mut heard[..run])?;
            }
            Meeting::GatherRows => {
                let mut part = told.to_vec();
                part.resize(run, 0.0);
                let mut whole = vec![0.0; run * ranks];
                others(peers, name)?.all_gather(Group::Tensor, name, &part, &mut whole)?;
                heard[..length].copy_from_slice(&whole[..length]);
            }
            Meeting::TakeRows => {
                let own = self.own_run();
                heard[..length].copy_from_slice(&told[own.start * step..own.end * step]);
            }
            Meeting::Take { first, length } => {
                let (first, length) = (first as usize, length as usize);
                heard.fill(0.0);
                for (row, into) in told.chunks(x_step).zip(heard.chunks_mut(step)) {
                    into[..length].copy_from_slice(&row[first..first + length]);
                }
            }
            Meeting::Receive { stage, lane } => {
                others(peers, name)?.receive(name, stage, lane, &mut heard[..length])?;
            }
            Meeting::Send { .. } => {}
        }
        Ok(())
    }

    /// The weights of this layer from their runs, and zeros for their gradients.
    pub(super) fn gather(
        &mut self,
        name: &str,
        parameters: &[ParameterId],
        gradients: &[ParameterId],
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<(), PeerError> {
        let peers = others(peers, name)?;
        for parameter in gradients {
            let place = self.weights.place(*parameter, self.layer);
            let weight = &mut self.weights.list[place];
            weight.gradient = vec![0.0; weight.room];
        }
        for parameter in parameters {
            let place = self.weights.place(*parameter, self.layer);
            let weight = &mut self.weights.list[place];
            let whole = weight.held.len() * self.replica.of;
            weight.values = vec![0.0; weight.room.max(whole)];
            let Weight { values, held, .. } = weight;
            peers.all_gather(Group::Data, &weight.name, held, &mut values[..whole])?;
            values.truncate(weight.room);
            values[weight.len..].fill(0.0);
        }
        Ok(())
    }

    /// Sums and scatters gradients, and gives the memory of weights back.
    pub(super) fn release(
        &mut self,
        name: &str,
        parameters: &[ParameterId],
        gradients: &[ParameterId],
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<(), PeerError> {
        let peers = others(peers, name)?;
        for parameter in gradients {
            let place = self.weights.place(*parameter, self.layer);
            let weight = &mut self.weights.list[place];
            if let Some(share) = &self.program.share {
                sum_summands(weight, &self.program.parameters[*parameter].shape, share, peers)?;
            }
            scatter(weight, &self.replica, peers)?;
        }
        for parameter in parameters.iter().chain(gradients) {
            let place = self.weights.place(*parameter, self.layer);
            let weight = &mut self.weights.list[place];
            (weight.values, weight.gradient) = (Vec::new(), Vec::new());
        }
        Ok(())
    }
}

/// Sums the gradient of a parameter over the tensor-parallel group where its ranks hold summands: what they hold in part
/// is laid where it belongs in the whole first.
pub(super) fn sum_summands(
    weight: &mut Weight,
    shape: &[u64],
    share: &TrainShare,
    peers: &mut dyn Peers,
) -> Result<(), PeerError> {
    let starred = lapidary_models::shard::numbered(&weight.name);
    let starred = starred.map_or_else(|| weight.name.clone(), |(_, rest)| format!("layers.*.{rest}"));
    if !share.summed.contains(&starred) || share.tensor.of < 2 {
        return Ok(());
    }
    let len = weight.len;
    let Some(part) = part_of(&share.parts, &weight.name) else {
        return peers.all_reduce(Group::Tensor, &weight.name, &mut weight.gradient[..len]);
    };
    let mut whole_shape = shape.to_vec();
    whole_shape.iter_mut().skip(part.axis).take(1).for_each(|n| *n = part.whole);
    let mut whole = vec![0.0; whole_shape.iter().product::<u64>() as usize];
    part.place(&whole_shape, &weight.gradient[..len], &mut whole);
    peers.all_reduce(Group::Tensor, &weight.name, &mut whole)?;
    let own = part.cut(&whole_shape, 1, &whole, 0.0);
    weight.gradient[..len].copy_from_slice(&own);
    Ok(())
}

/// Adds this rank's run of the sum of a gradient over the ranks that hold the same weight to what it has of it.
pub(super) fn scatter(
    weight: &mut Weight,
    replica: &Replica,
    peers: &mut dyn Peers,
) -> Result<(), PeerError> {
    let run = replica.run(weight.len);
    let mut whole = weight.gradient[..weight.len].to_vec();
    whole.resize(run * replica.of, 0.0);
    let mut part = vec![0.0; run];
    peers.reduce_scatter(Group::Data, &weight.name, &whole, &mut part)?;
    weight.scattered.iter_mut().zip(&part).for_each(|(sum, x)| *sum += x);
    Ok(())
}
