//! Attention over the cache: streaming softmax, so that no row of scores is ever whole.
//!
//! The rows of a tile are the queries of one sequence that share a key head (tokens times the heads of the group).
//! Blocks of keys pass by; each row keeps its running maximum and sum, and its output is rescaled when the maximum
//! grows. Both products are the panel kernels of the linear steps. Blocks that the mask hides from every row are left
//! out, so a causal prompt costs half and a window costs its width.

use crate::cache::KeyValues;
use crate::program::Mask;
use crate::simd::{COLUMNS, Isa, TILE_ROWS, Tile, pack, panel_product, softmax_step};
use lapidary_models::op::HeadRun;
use rayon::prelude::*;

/// Keys that pass by at once: four panels, 128 scores per row.
const BLOCK: usize = 4 * COLUMNS;

/// The new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Index of the sequence.
    pub sequence: usize,
    /// Its first row among all new tokens.
    pub first_row: usize,
    /// New tokens.
    pub tokens: usize,
    /// Tokens that were cached before.
    pub cached: usize,
}

/// One attention step of one layer.
pub struct Attention<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// Keys.
    pub keys: &'a KeyValues,
    /// Values.
    pub values: &'a KeyValues,
    /// Which layer's.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Which keys count.
    pub mask: Mask,
    /// ALiBi's slope of every head, the factor of the mask included; empty without ALiBi.
    pub slopes: &'a [f32],
}

/// Queries that share keys: rows `first..first + rows` of one key head of one sequence, a token's heads together.
#[derive(Clone, Copy)]
struct Task {
    span: Span,
    kv_head: usize,
    first: usize,
    rows: usize,
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    scaled: Vec<f32>,
    queries: Vec<u32>,
    scores: Vec<f32>,
    weights: Vec<u32>,
}

/// ALiBi's slope of each head: a geometric sequence from `2^(-8/n)` for the largest power of two `n` up to the number of
/// heads, and every other slope of the sequence for `2 n` for the heads that are left (Press et al., 2022).
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = if heads == 0 { 1 } else { 1 << heads.ilog2() };
    let slope = |n: usize, i: usize| 2f64.powf(-8.0 * i as f64 / n as f64) as f32;
    let own = (1..=power.min(heads)).map(|i| slope(power, i));
    own.chain((0..heads.saturating_sub(power)).map(|i| slope(2 * power, 2 * i + 1))).collect()
}

impl Mask {
    /// ALiBi's slopes of a number of heads, times its factor; none without ALiBi. Heads that only pad take the last slope.
    pub fn slopes(&self, heads: u64) -> Vec<f32> {
        let Some(factor) = self.alibi else { return Vec::new() };
        let run = self.heads.unwrap_or(HeadRun { first: 0, of: heads });
        let all = alibi_slopes(run.of as usize);
        let at = |head: u64| (run.first.saturating_add(head) as usize).min(all.len().saturating_sub(1));
        (0..heads).filter_map(|head| all.get(at(head))).map(|slope| slope * factor as f32).collect()
    }

    /// The keys that a query at `position` sees, of `keys` in all.
    pub fn visible(&self, position: usize, keys: usize) -> std::ops::Range<usize> {
        let end = if self.causal { keys.min(position + 1) } else { keys };
        let start = if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window as usize) };
        start.min(end)..end
    }
}

impl Attention<'_> {
    /// Writes `out[row][heads * head_dim]` from queries of the same form.
    pub fn run(&self, spans: &[Span], q: &[f32], out: &mut [f32], pitch: usize, tiles: &mut Vec<f32>) {
        let group = self.heads / self.keys.heads;
        let tasks = self.tasks(spans, group);
        let size = TILE_ROWS * self.keys.head_dim.next_multiple_of(COLUMNS);
        tiles.resize((tasks.len() * size).max(tiles.len()), 0.0);
        let work: usize = spans.iter().map(|s| s.tokens * (s.cached + s.tokens)).sum::<usize>()
            * self.heads
            * self.keys.head_dim;
        let pairs = tiles[..tasks.len() * size].chunks_mut(size).zip(&tasks);
        // Below this the threads would take longer to wake up than to compute.
        match work < 1 << 16 {
            true => {
                let mut scratch = Scratch::default();
                pairs.for_each(|(tile, task)| self.tile(*task, q, pitch, tile, &mut scratch));
            }
            false => tiles[..tasks.len() * size]
                .par_chunks_mut(size)
                .zip(&tasks)
                .for_each_init(Scratch::default, |scratch, (tile, task)| {
                    self.tile(*task, q, pitch, tile, scratch)
                }),
        }
        for (tile, task) in tiles.chunks(size).zip(&tasks) {
            self.place(*task, tile, out, pitch);
        }
    }

    fn tasks(&self, spans: &[Span], group: usize) -> Vec<Task> {
        let of = |span: &Span, kv_head| {
            let (span, rows) = (*span, span.tokens * group);
            (0..rows).step_by(TILE_ROWS).map(move |first| Task {
                span,
                kv_head,
                first,
                rows: TILE_ROWS.min(rows - first),
            })
        };
        spans.iter().flat_map(|span| (0..self.keys.heads).flat_map(move |head| of(span, head))).collect()
    }

    /// Row and first column of a task's row among the queries.
    fn query(&self, task: Task, row: usize) -> (usize, usize) {
        let group = self.heads / self.keys.heads;
        let (token, member) = ((task.first + row) / group, (task.first + row) % group);
        (task.span.first_row + token, (task.kv_head * group + member) * self.keys.head_dim)
    }

    fn head(&self, task: Task, row: usize) -> usize {
        let group = self.heads / self.keys.heads;
        task.kv_head * group + (task.first + row) % group
    }

    fn position(&self, task: Task, row: usize) -> usize {
        task.span.cached + (task.first + row) / (self.heads / self.keys.heads)
    }

    fn place(&self, task: Task, tile: &[f32], out: &mut [f32], pitch: usize) {
        let d = self.keys.head_dim;
        for (row, values) in tile.chunks(d.next_multiple_of(COLUMNS)).take(task.rows).enumerate() {
            let (at, column) = self.query(task, row);
            out[at * pitch + column..][..d].copy_from_slice(&values[..d]);
        }
    }

    /// Computes `out [rows][head_dim padded]` of one task.
    fn tile(&self, task: Task, q: &[f32], pitch: usize, out: &mut [f32], scratch: &mut Scratch) {
        let (rows, d) = (task.rows, self.keys.head_dim);
        let total = task.span.cached + task.span.tokens;
        self.pack_queries(task, q, pitch, scratch);
        scratch.scores.resize(TILE_ROWS * BLOCK, 0.0);
        scratch.weights.resize(TILE_ROWS * BLOCK, 0);
        let keys = self.keys.head(self.layer, task.span.sequence, task.kv_head);
        let values = self.values.head(self.layer, task.span.sequence, task.kv_head);
        let seen: Vec<_> = (0..rows).map(|row| self.mask.visible(self.position(task, row), total)).collect();
        let start = seen.iter().map(|r| r.start).min().unwrap_or(0) / COLUMNS * COLUMNS;
        let end = seen.iter().map(|r| r.end).max().unwrap_or(0);
        let (mut max, mut sum) = ([f32::NEG_INFINITY; TILE_ROWS], [0f32; TILE_ROWS]);
        out.fill(0.0);
        for from in (start..end).step_by(BLOCK) {
            let to = end.min(from + BLOCK);
            self.scores(keys, from, to, rows, scratch);
            for row in 0..rows {
                let scores = &mut scratch.scores[row * BLOCK..][..to - from];
                self.masked(task, row, from, &seen[row], scores);
                let factor = softmax_step(self.isa, scores, &mut max[row], &mut sum[row]);
                if factor != 1.0 {
                    out[row * d.next_multiple_of(COLUMNS)..][..d].iter_mut().for_each(|o| *o *= factor);
                }
                pack(self.values.dtype, scores, scratch.weights[row..].iter_mut().step_by(rows));
            }
            self.weigh(values, from, to, rows, &scratch.weights, out);
        }
        for (out, sum) in out.chunks_mut(d.next_multiple_of(COLUMNS)).zip(&sum[..rows]) {
            out[..d].iter_mut().for_each(|o| *o /= sum);
        }
    }

    fn pack_queries(&self, task: Task, q: &[f32], pitch: usize, scratch: &mut Scratch) {
        let d = self.keys.head_dim;
        let Scratch { scaled, queries, .. } = scratch;
        queries.resize(task.rows * self.keys.dtype.words(d), 0);
        for row in 0..task.rows {
            let (at, column) = self.query(task, row);
            scaled.clear();
            scaled.extend(q[at * pitch + column..][..d].iter().map(|x| x * self.scale));
            pack(self.keys.dtype, scaled, queries[row..].iter_mut().step_by(task.rows));
        }
    }

    fn scores(&self, keys: &[u32], from: usize, to: usize, rows: usize, scratch: &mut Scratch) {
        let (dtype, steps) = (self.keys.dtype, self.keys.dtype.words(self.keys.head_dim));
        for at in (from..to).step_by(COLUMNS) {
            let panel = self.keys.key_panel(keys, at / COLUMNS);
            let tile = Tile { dtype, x: &scratch.queries, w: panel, rows, steps };
            panel_product(self.isa, tile, &mut scratch.scores[at - from..], BLOCK, false);
        }
    }

    fn masked(&self, task: Task, row: usize, from: usize, seen: &std::ops::Range<usize>, scores: &mut [f32]) {
        if let Some(slope) = self.slopes.get(self.head(task, row)) {
            let position = self.position(task, row) as f32;
            scores.iter_mut().enumerate().for_each(|(i, s)| *s += slope * ((from + i) as f32 - position));
        }
        let hidden = |at: usize| at.saturating_sub(from).min(scores.len());
        let (first, last) = (hidden(seen.start), hidden(seen.end));
        scores[..first].fill(f32::NEG_INFINITY);
        scores[last..].fill(f32::NEG_INFINITY);
    }

    fn weigh(&self, values: &[u32], from: usize, to: usize, rows: usize, weights: &[u32], out: &mut [f32]) {
        let padded = self.values.head_dim.next_multiple_of(COLUMNS);
        let (dtype, steps) = (self.values.dtype, self.values.dtype.words(to - from));
        for block in 0..padded / COLUMNS {
            let panel = self.values.value_panel(values, block, from, to);
            let tile = Tile { dtype, x: weights, w: panel, rows, steps };
            panel_product(self.isa, tile, &mut out[block * COLUMNS..], padded, true);
        }
    }
}
