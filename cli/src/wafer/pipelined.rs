//! A model with every layer at a place of its own, and sequences that stream through it.

use super::{Forward, proved};
use crate::failure::{Exit, Failure};
use lapidary_passes::wafer::{Copies, HostData, Pipeline};
use lapidary_reference::Params;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{Checked, FabricSpec, event};
use std::collections::BTreeMap;

/// A pipeline that passed its check.
pub struct Pipelined {
    program: Checked<WaferProgram>,
    host: BTreeMap<String, HostData>,
    output: String,
    copies: Copies,
}

impl Pipelined {
    /// Checks a pipeline.
    ///
    /// # Errors
    /// Exit 1 where the compiler is at fault.
    pub fn new(pipeline: Pipeline, fabric: &FabricSpec) -> Result<Pipelined, Failure> {
        let program = proved("pipeline", &pipeline.program, fabric)?;
        let Pipeline { host, output, copies, .. } = pipeline;
        Ok(Pipelined { program, host, output, copies })
    }

    /// Runs the sequences `ids` through all layers: logits of every token, as wide as they are padded, and what is copied.
    ///
    /// # Errors
    /// Exit 1 where a parameter is missing or the simulator is at fault.
    pub fn run(&self, params: &Params<f32>, ids: &[i32]) -> Result<Forward, Failure> {
        let fault = |what: String| Failure::new(Exit::Internal, format!("pipeline: {what}"));
        let parameter = |name: &str| params.get(name).map(|t| t.data.as_slice());
        let mut tensors = BTreeMap::new();
        for (name, data) in self.host.iter().filter(|(_, data)| !matches!(data, HostData::Activations { .. }))
        {
            let values = data.values(parameter, ids);
            let values = values.ok_or_else(|| fault(format!("tensor {name} has no values")))?;
            tensors.insert(name.clone(), values);
        }
        let mut run = event::simulate(&self.program, tensors).map_err(|error| fault(error.to_string()))?;
        let mut take =
            |name: &String| run.tensors.remove(name).ok_or_else(|| fault(format!("leaves no {name} behind")));
        let logits = take(&self.output)?;
        let stream = self.copies.stream.iter().map(&mut take).collect::<Result<_, _>>()?;
        let mut layer = |names: &[String; 2]| -> Result<[Vec<f32>; 2], Failure> {
            Ok([take(&names[0])?, take(&names[1])?])
        };
        let cache = self.copies.cache.iter().map(&mut layer).collect::<Result<_, _>>()?;
        Ok(Forward { stream, logits, cache, cycles: run.report.cycles })
    }
}
