//! A rank's share of training steps: micro-batches in the order of the schedule, gradients summed over ranks, weights
//! changed where they are held.

use super::TrainError;
use super::meet::{scatter, sum_summands};
use super::memory::{Form, Weight};
use super::pass::Batch;
use super::trainer::Trainer;
use crate::peers::{Group, PeerError, Peers};
use crate::program::train::{Meeting, TIED_LANE, TrainStep};
use crate::program::{StateSharding, TrainShare};
use crate::rows::pitch;
use lapidary_models::optimizer::{AdamW, ParamUpdate};
use lapidary_models::shard::{Part, numbered, part_of, whole_name};

/// The sequences of one micro-batch, and what should follow each of their tokens.
#[derive(Clone, Copy, Debug)]
pub struct Micro<'a> {
    /// Token ids.
    pub ids: &'a [&'a [u32]],
    /// Labels; a negative one does not count.
    pub labels: &'a [&'a [i32]],
}

/// A run of a rank's gradient of a parameter of the whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientPart {
    /// Canonical name in the whole model, with the layer's number.
    pub name: String,
    /// Shape of what the rank holds of the parameter.
    pub shape: Vec<u64>,
    /// Which part of the parameter that is; none for all of it.
    pub part: Option<Part>,
    /// First element of the run, row-major in `shape`.
    pub start: usize,
    /// The elements.
    pub values: Vec<f32>,
}

fn starred(name: &str) -> String {
    numbered(name).map_or_else(|| name.to_string(), |(_, rest)| format!("layers.*.{rest}"))
}

impl Trainer {
    fn share(&self) -> Result<TrainShare, TrainError> {
        let none = || TrainError::Batch("the program is no rank's part of a step".into());
        self.program.share.clone().ok_or_else(none)
    }

    /// Adds the gradients of the micro-batches of a step, as many as the program's schedule has and all of one form, and
    /// returns the loss of the whole step over all ranks. `counted` is the number of labels of all replicas that the loss
    /// is the mean over.
    ///
    /// # Errors
    /// [`TrainError`] for micro-batches that are not those, and where other ranks cannot be met.
    pub fn accumulate_among(
        &mut self,
        peers: &mut dyn Peers,
        micros: &[Micro<'_>],
        counted: usize,
    ) -> Result<f64, TrainError> {
        let share = self.share()?;
        let (batch, seq) = self.check_micros(&share, micros)?;
        let run = (batch * seq).div_ceil(share.tensor.of as usize);
        let flights = share.schedule.flights as usize;
        self.buffers.prepare(&self.program, Form { batch, seq, run, flights });
        self.room(&share, batch * seq, peers)?;
        let batches: Vec<Batch> =
            micros.iter().map(|micro| Batch::new(micro.ids, micro.labels, Some(counted))).collect();
        let mut loss = 0.0;
        let mut peers = Some(peers);
        for turn in &share.schedule.turns {
            self.buffers.flight = turn.flight as usize;
            let steps = self.program.segment(turn.segment as usize);
            loss += self.run(&batches[turn.micro as usize], steps, seq, &mut peers)?;
        }
        let Some(peers) = peers else { return Ok(loss) };
        sum_everywhere(peers, "loss", loss, &[Group::Pipeline, Group::Data])
    }

    fn check_micros(&self, share: &TrainShare, micros: &[Micro<'_>]) -> Result<(usize, usize), TrainError> {
        let fault = |what: String| Err(TrainError::Batch(what));
        if micros.len() as u64 != share.schedule.micros {
            let (found, wanted) = (micros.len(), share.schedule.micros);
            return fault(format!("{found} micro-batches, but the schedule has {wanted}"));
        }
        let mut forms = micros
            .iter()
            .map(|micro| self.check_batch(micro.ids, micro.labels).map(|seq| (micro.ids.len(), seq)));
        let Some(first) = forms.next().transpose()? else { return fault("no micro-batches".into()) };
        for form in forms {
            let form = form?;
            if form != first {
                return fault(format!(
                    "micro-batches of {} x {} and {} x {} tokens: all must be of one form",
                    first.0, first.1, form.0, form.1
                ));
            }
        }
        Ok(first)
    }

    /// Room for what may be sent and not yet received: every message of the step at most. What a stage sent forwards and
    /// nobody has received is under way at this stage, what it sent backwards is so at the one before, and a stage of
    /// `c` ranges has at most `stages (c + 1)` micro-batches under way.
    fn room(&self, share: &TrainShare, rows: usize, peers: &mut dyn Peers) -> Result<(), PeerError> {
        let mut widest = 0;
        let mut sends = 0;
        for step in &self.program.body {
            if let TrainStep::Meet { op: Meeting::Send { .. }, out, .. } = step {
                widest = widest.max(pitch(self.program.buffers[*out].width));
                sends += 1;
            }
        }
        let tied = self.weights.list.iter().filter(|weight| share.tied.contains(&starred(&weight.name)));
        let tied = tied.map(|weight| weight.len).max().unwrap_or(0);
        let all = sends * share.schedule.micros as usize;
        let flying = share.stage.of as usize * (sends + 3);
        peers.room(all.min(flying) + share.tied.len(), (widest * rows).max(tied))
    }

    /// Sums gradients over all ranks, changes what the rank has of the weights, and returns the norm of all gradients
    /// together before clipping. Gradients stay until they are cleared; call it once for each step.
    ///
    /// # Errors
    /// As [`Trainer::accumulate_among`], and when a parameter has no rule.
    pub fn update_among(
        &mut self,
        peers: &mut dyn Peers,
        settings: &AdamW,
        updates: &[ParamUpdate],
    ) -> Result<f64, TrainError> {
        let share = self.share()?;
        let counts = |weight: &Weight| !share.elsewhere.contains(&starred(&weight.name));
        let mut groups = vec![Group::Tensor, Group::Pipeline];
        if self.replica.sharding != StateSharding::None {
            groups.push(Group::Data);
        }
        let squares = self.squares(&counts);
        let norm = sum_everywhere(peers, "the norm of the gradients", squares, &groups)?.sqrt();
        self.change(settings, updates, norm)?;
        if self.replica.sharding == StateSharding::Optimizer {
            for weight in &mut self.weights.list {
                gather_changed(weight, self.replica.of, peers)?;
            }
        }
        Ok(norm)
    }

    /// Sums the gradients of a step over all ranks: call it once behind [`Trainer::accumulate_among`] and before
    /// [`Trainer::update_among`].
    ///
    /// # Errors
    /// [`TrainError::Peers`] where other ranks cannot be met.
    pub fn reduce(&mut self, peers: &mut dyn Peers) -> Result<(), TrainError> {
        let share = self.share()?;
        for weight in &mut self.weights.list {
            let shape = &self.program.parameters[weight.parameter].shape;
            match self.replica.sharding {
                StateSharding::Full => {}
                StateSharding::Optimizer => {
                    sum_summands(weight, shape, &share, peers)?;
                    scatter(weight, &self.replica, peers)?;
                }
                StateSharding::None => {
                    sum_summands(weight, shape, &share, peers)?;
                    if self.replica.of > 1 {
                        let len = weight.len;
                        peers.all_reduce(Group::Data, &weight.name, &mut weight.gradient[..len])?;
                    }
                }
            }
            if share.tied.contains(&starred(&weight.name)) {
                sum_tied(weight, &share, peers)?;
            }
        }
        Ok(())
    }

    /// What this rank has of the gradients, once they are summed: together the ranks have every one once.
    ///
    /// # Errors
    /// [`TrainError`] for a program that is no rank's.
    pub fn gradient_parts(&self) -> Result<Vec<GradientPart>, TrainError> {
        let share = self.share()?;
        let own = |weight: &&Weight| {
            let again = self.replica.sharding == StateSharding::None && self.replica.index > 0;
            !again && !share.elsewhere.contains(&starred(&weight.name))
        };
        let part = |weight: &Weight| GradientPart {
            name: whole_name(&weight.name, &share.layers),
            shape: self.program.parameters[weight.parameter].shape.clone(),
            part: part_of(&share.parts, &weight.name),
            start: weight.own.start,
            values: weight.reduced().to_vec(),
        };
        Ok(self.weights.list.iter().filter(own).map(part).collect())
    }
}

/// The sum over groups of a number of each rank; what f32 leaves of it goes along.
fn sum_everywhere(peers: &mut dyn Peers, what: &str, own: f64, groups: &[Group]) -> Result<f64, TrainError> {
    let mut sum = own;
    for group in groups {
        let high = sum as f32;
        let mut told = [high, (sum - f64::from(high)) as f32];
        peers.all_reduce(*group, what, &mut told)?;
        sum = f64::from(told[0]) + f64::from(told[1]);
    }
    Ok(sum)
}

/// New values of all runs.
fn gather_changed(weight: &mut Weight, replicas: usize, peers: &mut dyn Peers) -> Result<(), PeerError> {
    let run = weight.len.div_ceil(replicas.max(1));
    let mut own = weight.values[weight.own.clone()].to_vec();
    own.resize(run, 0.0);
    let mut whole = vec![0.0; run * replicas];
    peers.all_gather(Group::Data, &weight.name, &own, &mut whole)?;
    weight.values[..weight.len].copy_from_slice(&whole[..weight.len]);
    Ok(())
}

/// The first stage and the last tell each other their gradients of a weight that both have; both form the same sum.
fn sum_tied(weight: &mut Weight, share: &TrainShare, peers: &mut dyn Peers) -> Result<(), PeerError> {
    let other = if share.stage.index == 0 { share.stage.of - 1 } else { 0 };
    let own = weight.own.len();
    let name = weight.name.clone();
    let gradient = match weight.scattered.is_empty() {
        true => &mut weight.gradient[weight.own.clone()],
        false => &mut weight.scattered[..own],
    };
    peers.send(&name, other, TIED_LANE, gradient)?;
    let mut heard = vec![0.0; own];
    peers.receive(&name, other, TIED_LANE, &mut heard)?;
    gradient.iter_mut().zip(&heard).for_each(|(sum, x)| *sum += x);
    Ok(())
}
