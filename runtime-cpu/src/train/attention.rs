//! Attention of a training step, forward and backward, without a matrix of scores in memory.
//!
//! A task is one key-value head of one sequence. Blocks of queries pass by; the scores of a block exist only while it
//! is there. The backward pass makes them again from queries and keys: with P the softmax of a block, and dO what comes
//! back,
//!
//! ```text
//! dV += Pᵀ dO        dP = dO Vᵀ        dS = scale · P ∘ (dP - Σ P ∘ dP)        dQ = dS K        dK += dSᵀ Q
//! ```
//! five products for the forward pass's two. Keys that the mask hides from every query of a block are left out.

use super::product::{Operand, Packing, Target, product};
use crate::program::Mask;
use crate::simd::{Isa, exp};
use rayon::prelude::*;
use std::ops::Range;

/// Queries that pass by at once.
const BLOCK: usize = 48;

/// What one attention is.
#[derive(Clone, Copy)]
pub struct Form<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores, before the mask.
    pub scale: f32,
    /// Which keys count.
    pub mask: Mask,
    /// ALiBi's slope of every head; empty without.
    pub slopes: &'a [f32],
}

/// Rows of a buffer: heads side by side, one row a token.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The first token of the first sequence begins at 0.
    pub data: &'a [f32],
    /// Elements from one token to the next.
    pub pitch: usize,
}

/// What one task computes: compact rows `[seq][heads of the group][head_dim]` or `[seq][head_dim]`.
struct Gradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// A block of queries of one head: scores become weights in place.
struct Block {
    rows: Range<usize>,
    keys: Range<usize>,
    weights: Vec<f32>,
}

impl Form<'_> {
    fn tasks(&self) -> Vec<(usize, usize)> {
        (0..self.batch).flat_map(|b| (0..self.kv_heads).map(move |head| (b, head))).collect()
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows `rows` of a head of a sequence, sums along the head.
    fn head<'h>(&self, x: Heads<'h>, b: usize, rows: &Range<usize>, head: usize) -> &'h [f32] {
        &x.data[(b * self.seq + rows.start) * x.pitch + head * self.head_dim..]
    }

    /// The softmax of a block of queries.
    fn block(
        &self,
        q: Heads,
        k: Heads,
        task: (usize, usize),
        head: usize,
        rows: Range<usize>,
        packing: &mut Packing,
    ) -> Block {
        let (b, kv) = task;
        let seen = |row| self.mask.visible(row, self.seq);
        let start = seen(rows.start).start;
        let keys = start..rows.clone().map(|row| seen(row).end).max().unwrap_or(start);
        let (n, width) = (rows.len(), keys.len());
        let mut weights = vec![0.0; n * width];
        let left = Operand::rows(self.head(q, b, &rows, head), n, q.pitch);
        let right = Operand::rows(self.head(k, b, &keys, kv), width, k.pitch);
        let target = Target { data: &mut weights, pitch: width, accumulate: false };
        product(self.isa, left, right, self.head_dim, target, packing);
        for (row, weights) in rows.clone().zip(weights.chunks_mut(width.max(1))) {
            self.softmax(head, row, seen(row), keys.start, weights);
        }
        Block { rows, keys, weights }
    }

    /// Scores of one query to weights; hidden keys get zero.
    fn softmax(&self, head: usize, row: usize, seen: Range<usize>, first: usize, scores: &mut [f32]) {
        let slope = self.slopes.get(head).copied().unwrap_or(0.0);
        let (from, to) = (seen.start - first, seen.end - first);
        scores[..from].fill(0.0);
        scores[to..].fill(0.0);
        let seen = &mut scores[from..to];
        for (key, x) in (from + first..).zip(seen.iter_mut()) {
            *x = *x * self.scale + slope * (key as f32 - row as f32);
        }
        let max = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        seen.iter_mut().for_each(|x| *x = exp(*x - max));
        let factor = 1.0 / seen.iter().sum::<f32>();
        seen.iter_mut().for_each(|x| *x *= factor);
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let seq = self.seq;
        (0..seq).step_by(BLOCK).map(move |first| first..(first + BLOCK).min(seq))
    }

    /// `out = softmax(mask(scale q kᵀ)) v`.
    pub fn forward(&self, q: Heads, k: Heads, v: Heads, out: &mut [f32], pitch: usize) {
        let (group, d) = (self.group(), self.head_dim);
        let compute = |packing: &mut Packing, task: &(usize, usize)| {
            let mut made = vec![0.0; self.seq * group * d];
            for member in 0..group {
                for rows in self.blocks() {
                    let block = self.block(q, k, *task, task.1 * group + member, rows, packing);
                    let right = Operand::columns(self.head(v, task.0, &block.keys, task.1), d, v.pitch);
                    let left = Operand::rows(&block.weights, block.rows.len(), block.keys.len());
                    let at = (block.rows.start * group + member) * d;
                    let target = Target { data: &mut made[at..], pitch: group * d, accumulate: false };
                    product(self.isa, left, right, block.keys.len(), target, packing);
                }
            }
            made
        };
        let tasks = self.tasks();
        let made: Vec<Vec<f32>> = tasks.par_iter().map_init(Packing::default, compute).collect();
        for ((b, kv), made) in tasks.iter().zip(&made) {
            self.place(*b, kv * group, made, group * d, out, pitch);
        }
    }

    /// Compact rows of a task into the rows of a buffer.
    fn place(&self, b: usize, head: usize, made: &[f32], width: usize, out: &mut [f32], pitch: usize) {
        for (token, row) in made.chunks_exact(width).enumerate() {
            out[(b * self.seq + token) * pitch + head * self.head_dim..][..width].copy_from_slice(row);
        }
    }

    /// Derivatives by queries, keys and values, each with the pitch of its operand.
    pub fn backward(&self, [q, k, v, dy]: [Heads; 4], [dq, dk, dv]: [&mut [f32]; 3]) {
        let (group, d) = (self.group(), self.head_dim);
        let tasks = self.tasks();
        let made: Vec<Gradients> = tasks
            .par_iter()
            .map_init(Packing::default, |packing, task| self.task([q, k, v, dy], *task, packing))
            .collect();
        for ((b, kv), made) in tasks.iter().zip(&made) {
            self.place(*b, kv * group, &made.q, group * d, dq, q.pitch);
            self.place(*b, *kv, &made.k, d, dk, k.pitch);
            self.place(*b, *kv, &made.v, d, dv, v.pitch);
        }
    }

    fn task(&self, [q, k, v, dy]: [Heads; 4], task: (usize, usize), packing: &mut Packing) -> Gradients {
        let (group, d, (b, kv)) = (self.group(), self.head_dim, task);
        let rows = |width: usize| vec![0.0; self.seq * width];
        let mut made = Gradients { q: rows(group * d), k: rows(d), v: rows(d) };
        for (member, rows) in (0..group).flat_map(|member| self.blocks().map(move |rows| (member, rows))) {
            let head = kv * group + member;
            let Block { rows, keys, weights } = self.block(q, k, task, head, rows, packing);
            let (n, width) = (rows.len(), keys.len());
            let mut run = |a, b, inner, data: &mut [f32], pitch, accumulate| {
                product(self.isa, a, b, inner, Target { data, pitch, accumulate }, packing);
            };
            let back = self.head(dy, b, &rows, head);
            let dv = &mut made.v[keys.start * d..];
            run(
                Operand::columns(&weights, width, width),
                Operand::columns(back, d, dy.pitch),
                n,
                dv,
                d,
                true,
            );
            let mut slopes = vec![0.0; n * width];
            let values = Operand::rows(self.head(v, b, &keys, kv), width, v.pitch);
            run(Operand::rows(back, n, dy.pitch), values, d, &mut slopes, width, false);
            self.softmax_backward(&weights, &mut slopes, width);
            let dq = &mut made.q[(rows.start * group + member) * d..];
            let by_key = Operand::columns(self.head(k, b, &keys, kv), d, k.pitch);
            run(Operand::rows(&slopes, n, width), by_key, width, dq, group * d, false);
            let dk = &mut made.k[keys.start * d..];
            let by_query = Operand::columns(self.head(q, b, &rows, head), d, q.pitch);
            run(Operand::columns(&slopes, width, width), by_query, n, dk, d, true);
        }
        made
    }

    /// Derivatives by the weights of a block become those by the scores before their factor.
    fn softmax_backward(&self, weights: &[f32], slopes: &mut [f32], width: usize) {
        for (p, dp) in weights.chunks(width.max(1)).zip(slopes.chunks_mut(width.max(1))) {
            let mean: f32 = p.iter().zip(dp.iter()).map(|(p, dp)| p * dp).sum();
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = self.scale * p * (*dp - mean));
        }
    }
}
