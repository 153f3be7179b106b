//! A model with every layer at a place of its own, and sequences that stream through it.

use super::proved;
use crate::failure::{Exit, Failure};
use lapidary_passes::wafer::{HostData, Pipeline};
use lapidary_reference::Params;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{Checked, FabricSpec, event};
use std::collections::BTreeMap;

/// A pipeline that passed its check.
pub struct Pipelined {
    program: Checked<WaferProgram>,
    host: BTreeMap<String, HostData>,
    output: String,
}

impl Pipelined {
    /// Checks a pipeline.
    ///
    /// # Errors
    /// Exit 1 where the compiler is at fault.
    pub fn new(pipeline: Pipeline, fabric: &FabricSpec) -> Result<Pipelined, Failure> {
        let program = proved("pipeline", &pipeline.program, fabric)?;
        Ok(Pipelined { program, host: pipeline.host, output: pipeline.output })
    }

    /// Runs the sequences `ids` through all layers: the cycles, and the logits of every token.
    ///
    /// # Errors
    /// Exit 1 where a parameter is missing or the simulator is at fault.
    pub fn run(&self, params: &Params<f32>, ids: &[i32]) -> Result<(u64, Vec<f32>), Failure> {
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
        let logits = run.tensors.remove(&self.output);
        let logits = logits.ok_or_else(|| fault("leaves nothing behind".into()))?;
        Ok((run.report.cycles, logits))
    }
}
