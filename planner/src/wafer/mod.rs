//! Plans for wafers: what a wafer computes for one micro-batch, its memory and its time.

pub mod memory;
pub mod price;

use crate::backward::{Kept, kept};
use crate::kernels::kernels;
use crate::memory::Memory;
use crate::plan::WaferPlan;
use crate::recipe::Recipe;
use crate::request::Batch;
use lapidary_hardware::price::wafer::StreamedLinear;
use lapidary_hardware::{HardwareSpec, Wafer};
use lapidary_models::op::Op;
use lapidary_models::{Dims, Function, Graph, Mode, ModelSpec};

/// Work of one micro-batch on one wafer.
#[derive(Clone, Debug)]
pub struct WaferWork {
    /// One layer.
    pub layer: Part,
    /// Embedding, final norm, head and loss.
    pub ends: Part,
    /// What one layer keeps.
    pub kept: Kept,
    /// Parameters of the model.
    pub parameters: f64,
}

/// Forward work of a part of the model.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Linears.
    pub linears: Vec<StreamedLinear>,
    /// Operations of attention; hidden keys are not counted.
    pub attention_flops: f64,
    /// Elements of row and pointwise ops.
    pub vector_elements: f64,
    /// Parameters that stream in for it.
    pub parameters: f64,
}

impl WaferWork {
    /// The work of `micro_batch` sequences.
    ///
    /// # Errors
    /// The dimension that a graph refuses, as a sentence.
    pub fn new(spec: &ModelSpec, micro_batch: u64, seq_len: u64) -> Result<WaferWork, String> {
        let dims = Dims { batch: micro_batch, seq: seq_len, cached: 0 };
        let graph = Graph::build(spec, Mode::Forward, dims).map_err(|error| error.to_string())?;
        let layer_kernels = kernels(&graph, graph.layer());
        let mut layer = part(&graph, graph.layer());
        let mut ends = part(&graph, graph.main());
        for param in &graph.params {
            let elements = param.ty.elements() as f64;
            if param.per_layer { layer.parameters += elements } else { ends.parameters += elements }
        }
        let logits: u64 = graph.main().results.iter().map(|value| graph.main().ty(*value).elements()).sum();
        ends.vector_elements += 3.0 * logits as f64;
        Ok(WaferWork {
            kept: kept(&graph, graph.layer(), &layer_kernels),
            parameters: graph.parameters() as f64,
            layer,
            ends,
        })
    }
}

fn part(graph: &Graph, function: &Function) -> Part {
    let attention = kernels(graph, function);
    let attention = attention.iter().filter(|kernel| kernel.anchor == crate::kernels::Anchor::Attention);
    let mut part = Part { attention_flops: attention.map(|kernel| kernel.flops).sum(), ..Part::default() };
    for node in &function.nodes {
        match node.op {
            Op::Linear => {
                let weight = function.ty(node.inputs[1]);
                part.linears.push(StreamedLinear {
                    inputs: weight.shape[1],
                    outputs: weight.shape[0],
                    tokens: graph.dims.tokens(),
                });
            }
            Op::Repeat { .. } => {}
            _ => part.vector_elements += function.node_work(node, graph).vector_flops as f64,
        }
    }
    part
}

/// A wafer plan with everything a price may ask for.
#[derive(Clone, Copy, Debug)]
pub struct WaferCase<'a> {
    /// The machine.
    pub machine: &'a HardwareSpec,
    /// Its wafer.
    pub wafer: &'a Wafer,
    /// The model.
    pub model: &'a ModelSpec,
    /// The work of a step.
    pub batch: Batch,
    /// The decisions.
    pub plan: WaferPlan,
    /// Work of one micro-batch.
    pub work: &'a WaferWork,
    /// Bytes a parameter.
    pub recipe: &'a Recipe,
}

impl WaferCase<'_> {
    /// Memory of one wafer by class.
    pub fn memory(&self) -> Memory {
        memory::memory(self)
    }
}
