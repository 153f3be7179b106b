//! One token after the other on a wafer that keeps parameters, keys and values: the prompt passes through the pipeline,
//! which leaves its keys and values behind; then every token takes one run of each stage.
//!
//! The pipeline and the programs of a token lie differently over the PEs. Keys and values that one leaves go out over the
//! wafer's links and come back to where the other finds them, at the rate of the links, both ways one after the other.

use super::{Forward, INPUT, OUTPUT, Simulator, proved};
use crate::failure::{Exit, Failure};
use lapidary_passes::wafer::{Decode, HostData, Shown};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{Checked, FabricSpec, event};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The programs of a token that passed their checks.
pub struct Decoder {
    stages: Vec<Stage>,
    capacity: usize,
    order: Vec<u32>,
}

struct Stage {
    name: String,
    times: usize,
    program: Checked<WaferProgram>,
    host: BTreeMap<String, HostData>,
}

/// The tensors of a layer's keys and values.
const CACHE: [&str; 2] = ["cache.keys", "cache.values"];

impl Decoder {
    /// Checks the programs.
    ///
    /// # Errors
    /// Exit 1 where the compiler is at fault.
    pub fn new(decode: Decode, fabric: &FabricSpec) -> Result<Decoder, Failure> {
        let Decode { stages, capacity, cache_order } = decode;
        let checked = stages.into_iter().map(|stage| {
            let program = proved(&stage.name, &stage.generated.program, fabric)?;
            let (name, host) = (stage.name, stage.generated.host);
            Ok(Stage { name, times: stage.times as usize, program, host })
        });
        let stages = checked.collect::<Result<_, Failure>>()?;
        Ok(Decoder { stages, capacity: capacity as usize, order: cache_order })
    }
}

/// A sequence under way.
pub struct Session<'s> {
    simulator: &'s Simulator,
    decoder: Rc<Decoder>,
    /// Keys and values by layer, `[slot, feature]`.
    cache: Vec<[Vec<f32>; 2]>,
    position: usize,
    /// Cycles so far.
    pub cycles: u64,
}

impl<'s> Session<'s> {
    /// Passes a prompt through the pipeline: a session with room for `capacity` tokens, and the logits of the last one.
    ///
    /// # Errors
    /// Exit 4 where prompt, parameters or cache have no room on the wafer.
    pub fn begin(
        simulator: &'s Simulator,
        prompt: &[u32],
        capacity: usize,
    ) -> Result<(Session<'s>, Vec<f32>), Failure> {
        let decoder = simulator.decoder(capacity)?;
        let shown = Shown { cache: true, ..Shown::default() };
        let Forward { logits, cache, cycles, .. } = simulator.pass(&[prompt.to_vec()], shown)?;
        let width = decoder.order.len();
        let moved: usize = cache.iter().flatten().map(Vec::len).sum();
        let cycles = cycles + simulator.through_links(2 * moved);
        let filled = |natural: &Vec<f32>| {
            let mut slots: Vec<f32> = natural
                .chunks_exact(width)
                .flat_map(|features| decoder.order.iter().map(|feature| features[*feature as usize]))
                .collect();
            slots.resize(decoder.capacity * width, 0.0);
            slots
        };
        let cache = cache.iter().map(|layer| layer.each_ref().map(filled)).collect();
        let vocab = logits.len() / prompt.len().max(1);
        let last = logits[logits.len() - vocab..].to_vec();
        Ok((Session { simulator, decoder, cache, position: prompt.len(), cycles }, last))
    }

    /// Takes the next token: the logits behind it.
    ///
    /// # Errors
    /// Exit 4 when the cache is full.
    pub fn next(&mut self, id: u32) -> Result<Vec<f32>, Failure> {
        if self.position >= self.decoder.capacity {
            let what = format!("the cache has room for {} tokens", self.decoder.capacity);
            return Err(Failure::new(Exit::DoesNotFit, what));
        }
        let decoder = Rc::clone(&self.decoder);
        let mut x = Vec::new();
        for stage in &decoder.stages {
            for layer in 0..stage.times {
                x = self.stage(stage, layer, id, x)?;
            }
        }
        self.position += 1;
        Ok(self.simulator.cut(&x, 1))
    }

    fn stage(&mut self, stage: &Stage, layer: usize, id: u32, x: Vec<f32>) -> Result<Vec<f32>, Failure> {
        let fault = |what: String| Failure::new(Exit::Internal, format!("stage {}: {what}", stage.name));
        let (number, position) = (layer.to_string(), self.position as u32);
        let params = &self.simulator.params;
        let parameter = |name: &str| params.get(&name.replacen('*', &number, 1)).map(|t| t.data.as_slice());
        let mut tensors = BTreeMap::new();
        for (name, data) in &stage.host {
            if matches!(data, HostData::Activations { .. }) {
                continue;
            }
            let values = data.at(position).values(parameter, &[id.cast_signed()]);
            let values = values.ok_or_else(|| fault(format!("tensor {name} has no values")))?;
            tensors.insert(name.clone(), values);
        }
        if stage.host.contains_key(INPUT) {
            tensors.insert(INPUT.into(), x);
        }
        let caches = stage.host.contains_key(CACHE[0]);
        if let Some(cache) = self.cache.get_mut(layer).filter(|_| caches) {
            for (name, values) in CACHE.into_iter().zip(cache) {
                tensors.insert(name.into(), std::mem::take(values));
            }
        }
        let mut run = event::simulate(&stage.program, tensors).map_err(|error| fault(error.to_string()))?;
        if let Some(cache) = self.cache.get_mut(layer).filter(|_| caches) {
            for (name, values) in CACHE.into_iter().zip(cache) {
                *values = run.tensors.remove(name).unwrap_or_default();
            }
        }
        self.cycles += run.report.cycles;
        run.tensors.remove(OUTPUT).ok_or_else(|| fault("leaves nothing behind".into()))
    }
}
