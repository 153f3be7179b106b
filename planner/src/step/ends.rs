//! What stands outside the layers: embedding, final norm, head and loss, of one micro-batch on one rank.

use super::job::Job;
use super::layer::Pass;
use super::rates::Rates;
use super::work::PassWork;

/// Forward and backward passes of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct End {
    /// Forward.
    pub forward: Pass,
    /// Backward.
    pub backward: Pass,
}

/// The embedding: lookup, positions and dropout, and an all-reduce where the table is split.
pub fn embedding(job: &Job<'_>, rates: &Rates<'_>) -> End {
    let (forward, backward) = &job.work.embedding;
    let launches = job.stack.launches.micro_batch / 4.0;
    let pass = |work: &PassWork, tensor: f64| Pass {
        rows: rows(job, rates, work),
        tensor,
        launches,
        ..Pass::default()
    };
    let summed = rates.tensor_all_reduce(2.0 * job.tokens() * job.shape.width);
    End { forward: pass(forward, summed), backward: pass(backward, 0.0) }
}

/// Final norm, head and cross entropy. Where the loss is taken of gathered logits, every rank gathers all of them and
/// works on the whole vocabulary.
pub fn head(job: &Job<'_>, rates: &Rates<'_>) -> End {
    let (forward, backward) = &job.work.head;
    let launches = job.stack.launches.micro_batch / 4.0;
    let gathers = job.stack.memory.gathers_logits && job.layout.tensor > 1;
    let whole = |work: &PassWork| match gathers {
        true => PassWork { split_bytes: work.split_bytes * job.tp(), ..work.clone() },
        false => work.clone(),
    };
    let pass = |work: &PassWork, tensor: f64| Pass {
        products: rates.linears(&work.linears, job.tokens()),
        rows: rows(job, rates, &whole(work)),
        tensor,
        launches,
        ..Pass::default()
    };
    let shared = match gathers {
        true => rates.all_gather(job.layout.tensor, 1, 2.0 * job.tokens() * job.vocab_rows() * job.tp()),
        false => 3.0 * rates.tensor_all_reduce(4.0 * job.tokens()),
    };
    let summed = rates.tensor_all_reduce(2.0 * job.tokens() * job.shape.width);
    End { forward: pass(forward, shared), backward: pass(backward, summed) }
}

fn rows(job: &Job<'_>, rates: &Rates<'_>, work: &PassWork) -> f64 {
    rates
        .stream((work.stream_bytes / job.row_split() + work.split_bytes + work.inner_bytes) * job.sequences())
}
