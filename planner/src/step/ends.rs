//! What stands outside the layers: embedding, final norm, head and loss, of one micro-batch on one rank.

use super::job::Job;
use super::layer::Pass;
use super::rates::Rates;

/// Forward and backward passes of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct End {
    /// Forward.
    pub forward: Pass,
    /// Backward.
    pub backward: Pass,
}

/// Bytes an element of a lookup, forward, and of its scattered gradient, backward.
const LOOKUP: (f64, f64) = (8.0, 16.0);

/// The embedding: lookup, positions and dropout, and an all-reduce where the table is split.
pub fn embedding(job: &Job<'_>, rates: &Rates<'_>) -> End {
    let elements = job.tokens() * job.shape.width;
    let launches = job.stack.launches.micro_batch / 2.0;
    End {
        forward: Pass {
            rows: rates.stream(LOOKUP.0 * elements),
            tensor: rates.tensor_all_reduce(2.0 * elements),
            launches: launches / 2.0,
            ..Pass::default()
        },
        backward: Pass {
            rows: rates.stream(LOOKUP.1 * elements),
            launches: launches / 2.0,
            ..Pass::default()
        },
    }
}

/// Final norm, head and cross entropy.
pub fn head(job: &Job<'_>, rates: &Rates<'_>) -> End {
    let (tokens, width, rows) = (job.tokens(), job.shape.width, job.vocab_rows());
    let (forward, backward) = rates.linear(tokens, width, rows);
    let loss = job.stack.rows.loss;
    let norm = job.stack.rows.norm;
    let launches = job.stack.launches.micro_batch / 2.0;
    End {
        forward: Pass {
            products: forward,
            rows: rates
                .stream(loss.forward * tokens * rows + norm.forward * tokens * width / job.row_split()),
            tensor: 3.0 * rates.tensor_all_reduce(4.0 * tokens),
            launches: launches / 2.0,
            ..Pass::default()
        },
        backward: Pass {
            products: backward,
            rows: rates
                .stream(loss.backward * tokens * rows + norm.backward * tokens * width / job.row_split()),
            tensor: rates.tensor_all_reduce(2.0 * tokens * width),
            launches: launches / 2.0,
            ..Pass::default()
        },
    }
}
