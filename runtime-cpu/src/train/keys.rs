//! Attention with its scores in memory, op by op: what a program without fusion runs, and what keeps the softmax for the
//! backward pass where nothing is computed again.

use super::attention::{Form, Heads};
use super::product::{Operand, Packing, Target, product};
use crate::program::Mask;
use crate::program::train::KeyOp;
use rayon::prelude::*;
use std::ops::Range;

impl Form<'_> {
    fn rows_of<'h>(&self, x: Heads<'h>, b: usize, head: usize) -> &'h [f32] {
        &x.data[b * self.seq * x.pitch + head * self.head_dim..]
    }

    /// The scores of one head of one sequence: `[seq][seq]`.
    fn of_head(&self, b: usize, head: usize) -> Range<usize> {
        let size = self.seq * self.seq;
        let at = (b * self.heads + head) * size;
        at..at + size
    }

    fn each_head(&self) -> impl Iterator<Item = (usize, usize)> {
        let heads = self.heads;
        (0..self.batch).flat_map(move |b| (0..heads).map(move |head| (b, head)))
    }

    /// `q kᵀ` for every head.
    pub fn scores(&self, q: Heads, k: Heads, out: &mut [f32]) {
        let (seq, group, mut packing) = (self.seq, self.heads / self.kv_heads, Packing::default());
        for (b, head) in self.each_head() {
            let left = Operand::rows(self.rows_of(q, b, head), seq, q.pitch);
            let right = Operand::rows(self.rows_of(k, b, head / group), seq, k.pitch);
            let target = Target { data: &mut out[self.of_head(b, head)], pitch: seq, accumulate: false };
            product(self.isa, left, right, self.head_dim, target, &mut packing);
        }
    }

    /// `p v` for every head, into rows `pitch` apart.
    pub fn values(&self, p: &[f32], v: Heads, out: &mut [f32], pitch: usize) {
        let (seq, group, mut packing) = (self.seq, self.heads / self.kv_heads, Packing::default());
        for (b, head) in self.each_head() {
            let left = Operand::rows(&p[self.of_head(b, head)], seq, seq);
            let right = Operand::columns(self.rows_of(v, b, head / group), self.head_dim, v.pitch);
            let data = &mut out[b * seq * pitch + head * self.head_dim..];
            product(self.isa, left, right, seq, Target { data, pitch, accumulate: false }, &mut packing);
        }
    }

    /// `pᵀ y`, summed over the heads that share a key-value head, into rows `pitch` apart.
    pub fn values_backward(&self, p: &[f32], y: Heads, out: &mut [f32], pitch: usize) {
        let (seq, group, mut packing) = (self.seq, self.heads / self.kv_heads, Packing::default());
        for (b, head) in self.each_head() {
            let left = Operand::columns(&p[self.of_head(b, head)], seq, seq);
            let right = Operand::columns(self.rows_of(y, b, head), self.head_dim, y.pitch);
            let data = &mut out[b * seq * pitch + head / group * self.head_dim..];
            let accumulate = !head.is_multiple_of(group);
            product(self.isa, left, right, seq, Target { data, pitch, accumulate }, &mut packing);
        }
    }
}

/// Scores of a batch, row by row.
#[derive(Clone, Copy)]
pub struct ScoreRows<'a> {
    /// Heads.
    pub heads: usize,
    /// Queries and keys.
    pub seq: usize,
    /// ALiBi's slope of every head; empty without.
    pub slopes: &'a [f32],
}

impl ScoreRows<'_> {
    /// Applies an op to every row of `x`; `other` is the second operand of an op that has one.
    pub fn apply(&self, op: &KeyOp, x: &[f32], other: &[f32], out: &mut [f32]) {
        let seq = self.seq;
        out.par_chunks_mut(seq).enumerate().for_each(|(at, out)| {
            let (query, head) = (at % seq, at / seq % self.heads);
            let x = &x[at * seq..][..seq];
            match op {
                KeyOp::Scale { by } => out.iter_mut().zip(x).for_each(|(o, x)| *o = x * *by as f32),
                KeyOp::Mask(mask) => {
                    out.copy_from_slice(x);
                    self.mask(mask, query, head, f32::NEG_INFINITY, out);
                }
                KeyOp::MaskDx(mask) => {
                    out.copy_from_slice(x);
                    let seen = mask.visible(query, seq);
                    out[..seen.start].fill(0.0);
                    out[seen.end..].fill(0.0);
                }
                KeyOp::Softmax => softmax(x, out),
                KeyOp::SoftmaxDx { .. } => {
                    let dp = &other[at * seq..][..seq];
                    let mean: f32 = x.iter().zip(dp).map(|(p, dp)| p * dp).sum();
                    out.iter_mut().zip(x.iter().zip(dp)).for_each(|(o, (p, dp))| *o = p * (dp - mean));
                }
            }
        });
    }

    fn mask(&self, mask: &Mask, query: usize, head: usize, hidden: f32, row: &mut [f32]) {
        let slope = self.slopes.get(head).copied().unwrap_or(0.0);
        let seen = mask.visible(query, self.seq);
        row[..seen.start].fill(hidden);
        row[seen.end..].fill(hidden);
        for (key, x) in seen.clone().zip(&mut row[seen]) {
            *x += slope * (key as f32 - query as f32);
        }
    }
}

fn softmax(x: &[f32], out: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.iter_mut().zip(x).for_each(|(o, x)| *o = (x - max).exp());
    let factor = 1.0 / out.iter().sum::<f32>();
    out.iter_mut().for_each(|o| *o *= factor);
}
