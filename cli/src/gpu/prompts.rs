//! Prompts continued on the device, those of one length together.

use super::lower::Made;
use super::{Gpu, failure};
use crate::failure::Failure;
use lapidary_models::{Dims, Mode};
use lapidary_runtime_cpu::{Finish, Generation, Sampling};
use lapidary_runtime_gpu::device::DeviceError;
use lapidary_runtime_gpu::generate::{Parts, Picking, Session, pieces};
use std::collections::{BTreeMap, BTreeSet};

/// Tokens that the device makes at once; while the host looks at them it makes as many more. What it makes behind a stop
/// token is dropped.
const AHEAD: usize = 8;

/// Fewest positions of a cache.
const LEAST_CAPACITY: u64 = 64;

/// Prompts and how they are to be continued.
pub struct Ask<'a> {
    /// Ids of each, at least one.
    pub prompts: &'a [Vec<u32>],
    /// How many, until where, how they are picked.
    pub generation: &'a Generation,
}

/// New ids of every prompt and why they end.
pub type Continued = Vec<(Vec<u32>, Finish)>;

impl Gpu<'_> {
    /// Continues every prompt; `on_token` sees the sequence and the token soon after it is known.
    ///
    /// # Errors
    /// Exit 4 when they do not fit into the device's memory, 7 for what else the device says.
    pub fn generate(
        &self,
        ask: &Ask<'_>,
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<Continued, Failure> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, prompt) in ask.prompts.iter().enumerate() {
            groups.entry(prompt.len()).or_default().push(index);
        }
        let mut made: Continued = vec![(Vec::new(), Finish::Length); ask.prompts.len()];
        for (length, group) in groups {
            self.group(ask, length, &group, &mut made, on_token)?;
        }
        Ok(made)
    }

    /// Prompts of one length.
    fn group(
        &self,
        ask: &Ask<'_>,
        length: usize,
        group: &[usize],
        made: &mut [(Vec<u32>, Finish)],
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<(), Failure> {
        let left = (self.spec.max_seq as usize + 1).saturating_sub(length);
        let most = left.min(ask.generation.max_new);
        let rest = if most < ask.generation.max_new { Finish::Room } else { Finish::Length };
        group.iter().for_each(|&index| made[index].1 = rest);
        if most == 0 {
            return Ok(());
        }
        let parts = self.parts(group.len() as u64, length as u64, most as u64)?;
        let weights = self.weights(parts.decode.program.get())?;
        let told = |error: DeviceError| failure(&error);
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        let mut session = Session::new(device, &parts, &weights).map_err(told)?;
        let prompts: Vec<&[u32]> = group.iter().map(|&index| ask.prompts[index].as_slice()).collect();
        session.begin(device, &prompts, picking(ask.generation.sampling)).map_err(told)?;
        let mut open: Vec<usize> = group.to_vec();
        let mut started = AHEAD.min(most);
        let mut under_way = Some(session.start(device, started).map_err(told)?);
        while let Some(now) = under_way.filter(|_| !open.is_empty()) {
            // The device goes on while the host reads and looks at what is there.
            let ahead = AHEAD.min(most - started);
            started += ahead;
            under_way = (ahead > 0).then(|| session.start(device, ahead)).transpose().map_err(told)?;
            for row in session.take(device, &now).map_err(told)? {
                for (index, token) in group.iter().zip(row) {
                    if !open.contains(index) {
                        continue;
                    }
                    on_token(*index, token);
                    made[*index].0.push(token);
                    if ask.generation.stop.contains(&token) {
                        made[*index].1 = Finish::Stop;
                        open.retain(|one| one != index);
                    }
                }
            }
        }
        session.release(device).map_err(told)
    }

    /// The programs for some prompts.
    fn parts(&self, batch: u64, prompt: u64, new: u64) -> Result<Parts, Failure> {
        let capacity = (prompt + new - 1).next_power_of_two().max(LEAST_CAPACITY).min(self.spec.max_seq);
        let program = |new: u64| -> Result<Made, Failure> {
            self.lower(Mode::Decode, Dims { batch, seq: new, cached: capacity - new })
        };
        let decode = program(1)?;
        let distinct: BTreeSet<u64> = pieces(prompt).into_iter().collect();
        let prefill = distinct.into_iter().map(|piece| Ok((piece, program(piece)?.part)));
        let prefill = prefill.collect::<Result<_, Failure>>()?;
        let sampler = self.sampler(&decode.logits, new)?;
        let (logits, batch, capacity) = (decode.logits.name, batch as usize, capacity as usize);
        Ok(Parts { decode: decode.part, prefill, sampler, logits, batch, capacity })
    }
}

fn picking(sampling: Sampling) -> Picking {
    Picking {
        temperature: sampling.temperature,
        top_k: u32::try_from(sampling.top_k).unwrap_or(u32::MAX),
        top_p: sampling.top_p,
        seed: sampling.seed,
    }
}
