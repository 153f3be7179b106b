//! The cost model `roofline`: every kernel at its roof, every message at the rate of its link.
//!
//! Terms are functions in a list; a better one replaces one of the same name.

use super::{Bound, Cost, CostModel, GpuCase, compute, data, optimizer, pipeline, tensor};
use crate::assumption::Assumption;
use crate::backward::{ATTENTION_BACKWARD, TRAFFIC_BACKWARD};
use crate::wafer::memory::{CODE_BYTES, SERVER_BYTES};
use crate::wafer::{WaferCase, price};
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
        match machine.wafer() {
            Some(_) => wafer_backward_assumptions().into_iter().chain(wafer_assumptions()).collect(),
            None => gpu_assumptions(),
        }
    }

    fn gpu(&self, case: &GpuCase<'_>) -> Cost {
        let terms = self.terms.iter().map(|term| (term.name, (term.bound, (term.price)(case)))).collect();
        Cost { terms }
    }

    fn wafer(&self, case: &WaferCase<'_>) -> Cost {
        price::step(case)
    }
}

fn wafer_backward_assumptions() -> Vec<Assumption> {
    let flash = "FlashAttention-2 (arXiv 2307.08691): five contractions behind two";
    let rows = "reads input and gradient, writes one, and passes the residual's gradient on";
    vec![
        Assumption::new("matmul-backward", 2.0, "ratio", "gradients of input and of weight"),
        Assumption::new("attention-backward", ATTENTION_BACKWARD, "ratio", flash),
        Assumption::new("row-backward-traffic", TRAFFIC_BACKWARD, "ratio", rows),
    ]
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
    let account = "first-order account: broadcast, multiply-accumulate and chain reduce do not overlap";
    let attention = "no printed rate: attention at the peak of 16-bit products with 32-bit sums";
    let code = "assumed, until the placer counts it";
    let server = "weight, gradient and both moments in 32 bits";
    vec![
        Assumption::new("streamed-linear-overlap", 0.0, "ratio", account),
        Assumption::new("attention-of-peak", 1.0, "ratio", attention),
        Assumption::new("ingress-overlap", 1.0, "ratio", "weights of the next pass enter while one computes"),
        Assumption::new("release-factor", 1.0, "ratio", "no factor for a software release is applied"),
        Assumption::new("code-bytes", CODE_BYTES, "B/PE", code),
        Assumption::new("weight-server-bytes", SERVER_BYTES, "B/parameter", server),
    ]
}
