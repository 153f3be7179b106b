//! Layers whose MLP is a set of experts: each token is sent to the ranks of its experts, worked on there and sent back.
//!
//! Experts are taken to get equal shares of the tokens. Everything here is of one layer in the mean over the layers, of
//! which only some may have experts.

use super::job::Job;
use super::rates::{Product, Rates};
use super::work::{Linear, PassWork, Side};

/// Kernels of a pass around the experts: scores of the router, its softmax and choice, counting and sorting of the
/// rows, and weighing of what comes back.
const ROUTING_LAUNCHES: f64 = 16.0;
/// Bytes an element of the residual stream for each routed row: it is read and written on the way out, and read on the
/// way back; and once for the sum that is written.
const ROUTED_BYTES: f64 = 6.0;
const SUMMED_BYTES: f64 = 2.0;
/// Bytes of a score of the router: 32 bits, written, read by the softmax, written and read by the choice.
const SCORE_BYTES: f64 = 16.0;

/// Experts of a layer on this rank.
fn local(job: &Job<'_>) -> f64 {
    job.shape.experts.map_or(0.0, |experts| experts.count as f64 / job.layout.expert as f64)
}

/// Rows that a token makes, over the layers that have experts.
fn rows_of_token(job: &Job<'_>) -> f64 {
    job.shape.experts.map_or(0.0, |experts| experts.rows())
}

/// Products of a layer with experts: those of each local expert over its share of the rows of all ranks that send to it,
/// and the router's.
pub fn products(job: &Job<'_>, rates: &Rates<'_>, mlp: &[Linear]) -> f64 {
    let rows = job.tokens() * rows_of_token(job) / local(job);
    let router = mlp.first().map(|linear| Linear {
        side: linear.side,
        inputs: job.shape.width,
        outputs: job.shape.experts.map_or(0.0, |experts| experts.count as f64),
        mlp: false,
    });
    let router = router.map_or(0.0, |router| rates.linears(&[router], job.tokens()));
    let backward = mlp.iter().any(|linear| linear.side != Side::Forward);
    local(job) * rates.linears(mlp, rows) + router + one_hot(job, rates, backward)
}

/// Sorting by products, where the software does so: tokens to places and back; backward the same for what travels, and
/// once more for the weights of what comes back.
fn one_hot(job: &Job<'_>, rates: &Rates<'_>, backward: bool) -> f64 {
    if !job.stack.one_hot_routing {
        return 0.0;
    }
    let (tokens, places) = (job.tokens(), job.tokens() * rows_of_token(job));
    let sorted = rates.product(Product { m: places, n: job.shape.width, k: tokens });
    let returned = rates.product(Product { m: tokens, n: job.shape.width, k: places });
    let weights = rates.product(Product { m: tokens, n: places, k: job.shape.width });
    sorted + returned + if backward { weights } else { 0.0 }
}

/// Row kernels around the experts.
pub fn rows(job: &Job<'_>, rates: &Rates<'_>) -> f64 {
    let Some(experts) = job.shape.experts else { return 0.0 };
    let routed = (ROUTED_BYTES * experts.rows() + SUMMED_BYTES) * job.shape.width;
    let bytes = routed + SCORE_BYTES * experts.count as f64;
    job.shape.expert_layers() * rates.stream(bytes * job.tokens() / job.row_split())
}

/// Tokens to the ranks of their experts and back. Sequence parallelism leaves each rank its own part of them to send.
pub fn exchange(job: &Job<'_>, rates: &Rates<'_>) -> f64 {
    if job.layout.expert <= 1 {
        return 0.0;
    }
    let bytes = 2.0 * job.tokens() * rows_of_token(job) * job.shape.width / job.row_split();
    job.shape.expert_layers() * 2.0 * rates.all_to_all(job.layout.expert, job.layout.tensor, bytes)
}

/// Launches more than those of one MLP: of each local expert, and around them.
pub fn launches(job: &Job<'_>, work: &PassWork) -> f64 {
    let mlp = work.linears.iter().filter(|linear| linear.mlp).count() as f64;
    job.shape.expert_layers() * (ROUTING_LAUNCHES + (local(job) - 1.0) * mlp)
}

/// Meetings of the ranks that share experts.
pub fn meetings(job: &Job<'_>) -> f64 {
    if job.layout.expert > 1 { 2.0 * job.shape.expert_layers() } else { 0.0 }
}
