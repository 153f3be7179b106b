//! The cost model `roofline`: every kernel at its roof, every message at the rate of its link.
//!
//! Terms are functions in a list; a better one replaces one of the same name.

use super::{Bound, Cost, CostModel, GpuCase, compute, data, optimizer, pipeline, tensor};
use crate::assumption::Assumption;
use crate::wafer::memory::{CODE_BYTES, SERVER_BYTES};
use crate::wafer::{REPLICAS, WaferCase, price};
use lapidary_hardware::price::wafer::FUNCTION_CYCLES;
use lapidary_hardware::{HardwareSpec, Seconds};

/// A named part of a step on GPUs.
#[derive(Clone, Copy)]
pub struct Term {
    /// Its name in tables and JSON.
    pub name: &'static str,
    /// What it is about.
    pub bound: Bound,
    /// Seconds of a step.
    pub price: fn(&GpuCase<'_>) -> Seconds,
}

/// Sums its terms.
#[derive(Clone)]
pub struct Roofline {
    terms: Vec<Term>,
}

impl Default for Roofline {
    fn default() -> Self {
        let term = |name, bound, price| Term { name, bound, price };
        Roofline {
            terms: vec![
                term("matmul", Bound::Compute, compute::matmul),
                term("attention", Bound::Compute, compute::attention),
                term("memory_bound", Bound::Memory, compute::memory_bound),
                term("recompute", Bound::Compute, compute::recompute),
                term("tp_comm", Bound::Network, tensor::exposed),
                term("pp_bubble", Bound::Pipeline, pipeline::bubble),
                term("pp_comm", Bound::Network, pipeline::exposed),
                term("dp_comm", Bound::Network, data::exposed),
                term("optimizer", Bound::Memory, optimizer::step),
            ],
        }
    }
}

impl Roofline {
    /// The same with one term replaced by another of its name, or added at the end.
    pub fn with_term(mut self, term: Term) -> Roofline {
        match self.terms.iter_mut().find(|own| own.name == term.name) {
            Some(own) => *own = term,
            None => self.terms.push(term),
        }
        self
    }
}

impl CostModel for Roofline {
    fn name(&self) -> &'static str {
        "roofline"
    }

    fn assumptions(&self, machine: &HardwareSpec) -> Vec<Assumption> {
        if machine.wafer().is_some() { wafer_assumptions() } else { gpu_assumptions() }
    }

    fn gpu(&self, case: &GpuCase<'_>) -> Cost {
        let terms = self.terms.iter().map(|term| (term.name, (term.bound, (term.price)(case)))).collect();
        Cost { terms }
    }

    fn wafer(&self, case: &WaferCase<'_>) -> Cost {
        price::step(case)
    }
}

fn gpu_assumptions() -> Vec<Assumption> {
    let tensor = "Megatron-LM waits for the collectives of a layer (arXiv 1909.08053, section 3)";
    let pipeline = "1F1B without overlapped messages (arXiv 2104.04473, section 2.2)";
    let sequence = "row kernels and what they keep are split by tp (arXiv 2205.05198, section 4.2)";
    let launches = "launches are queued ahead: a kernel takes the longest of arithmetic, traffic and launch";
    vec![
        Assumption::new("tensor-parallel-overlap", 0.0, "ratio", tensor),
        Assumption::new("sequence-parallelism", 1.0, "ratio", sequence),
        Assumption::new("pipeline-overlap", 0.0, "ratio", pipeline),
        Assumption::new("launch-overlap", 1.0, "ratio", launches),
    ]
}

fn wafer_assumptions() -> Vec<Assumption> {
    let forms = "closed forms of this compiler's kernels, op by op of the differentiated graph";
    let functions = "assumed: no figure is printed for exp; log, sqrt and the like beside it";
    let floor =
        "fitted on usc_bert-b-128_128 and usc_bert-l-128_128 of wafer-training.csv (arXiv 2409.00287)";
    let replicas = "assumed: the fan-out of a weight; rows of narrow models in wafer-training.csv agree";
    let overlap = "an op's weights enter, its gradients leave while it computes; none are held in advance";
    let optimizer = "assumed: MemoryX updates a weight at the rate at which its gradient arrives";
    let tree = "assumed: SwarmX broadcasts and sums at the rate of a system's links";
    let outside =
        "activation servers take kept inputs over the same links (ALCF user guides, ai-testbed/cerebras)";
    let code = "assumed, as by the placer";
    let server = "weight, gradient and both moments in 32 bits";
    vec![
        Assumption::new("kernel-overlap", 0.0, "ratio", forms),
        Assumption::new("exp-cycles", f64::from(FUNCTION_CYCLES.exp), "cycles/element", functions),
        Assumption::new("pass-floor", price::PASS_FLOOR, "s/layer", floor),
        Assumption::new("replicas", REPLICAS[REPLICAS.len() - 1] as f64, "count", replicas),
        Assumption::new("ingress-overlap", 1.0, "ratio", overlap),
        Assumption::new("optimizer-overlap", 1.0, "ratio", optimizer),
        Assumption::new("swarmx-overlap", 1.0, "ratio", tree),
        Assumption::new("kept-outside", 1.0, "ratio", outside),
        Assumption::new("code-bytes", CODE_BYTES, "B/PE", code),
        Assumption::new("weight-server-bytes", SERVER_BYTES, "B/parameter", server),
    ]
}
