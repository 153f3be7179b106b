//! The key-value cache, laid out so that attention streams through it with the kernels of the matrix products.
//!
//! ```text
//! keys    per layer, sequence, head:  [blocks of 32 positions][head_dim][32]     a panel for q kᵀ
//! values  per layer, sequence, head:  [blocks of 32 columns][positions][32]     a panel for p v
//! ```

use crate::pack::allocate;
use crate::program::{Cache, CacheKind};
use crate::simd::COLUMNS;
use crate::weights::WeightError;
use memmap2::MmapMut;
use rayon::prelude::*;

/// Keys or values of every layer and sequence.
pub struct KeyValues {
    kind: CacheKind,
    /// Key-value heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    sequences: usize,
    /// Positions of a sequence, a multiple of 32.
    capacity: usize,
    data: MmapMut,
}

/// Rows to store: which sequence and position each belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Index of the sequence.
    pub sequence: usize,
    /// Position in it.
    pub position: usize,
}

impl KeyValues {
    /// An empty cache. Memory is touched only where tokens are stored, in small pages: huge ones would clear all of a
    /// long cache for the first token, and gave no measurable speed.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub fn new(
        cache: &Cache,
        layers: usize,
        sequences: usize,
        positions: usize,
    ) -> Result<KeyValues, WeightError> {
        let (heads, head_dim) = (cache.heads as usize, cache.head_dim as usize);
        let capacity = positions.next_multiple_of(COLUMNS);
        let head = head_size(cache.kind, capacity, head_dim) as u64;
        let count = (heads as u64).saturating_mul(sequences as u64).saturating_mul(layers as u64);
        let data = allocate("key-value cache", head.saturating_mul(count).saturating_mul(4))?;
        Ok(KeyValues { kind: cache.kind, heads, head_dim, sequences, capacity, data })
    }

    fn size(&self) -> usize {
        head_size(self.kind, self.capacity, self.head_dim)
    }

    /// One head of one sequence in one layer.
    pub fn head(&self, layer: usize, sequence: usize, head: usize) -> &[f32] {
        let at = (layer * self.sequences + sequence) * self.heads + head;
        &bytemuck::cast_slice(&self.data)[at * self.size()..][..self.size()]
    }

    /// The keys of positions `32 block..32 block + 32` as a panel `[head_dim][32]` of a key head.
    pub fn key_panel<'h>(&self, head: &'h [f32], block: usize) -> &'h [f32] {
        &head[block * self.head_dim * COLUMNS..][..self.head_dim * COLUMNS]
    }

    /// Columns `32 block..32 block + 32` of positions `from..to` as a panel `[to - from][32]` of a value head.
    pub fn value_panel<'h>(&self, head: &'h [f32], block: usize, from: usize, to: usize) -> &'h [f32] {
        &head[(block * self.capacity + from) * COLUMNS..(block * self.capacity + to) * COLUMNS]
    }

    /// Where one value lies in its head.
    pub fn index(&self, position: usize, column: usize) -> usize {
        index(self.kind, self.capacity, self.head_dim, position, column)
    }

    /// Stores rows of `heads * head_dim` values, `pitch` apart.
    pub fn store(&mut self, layer: usize, places: &[Place], rows: &[f32], pitch: usize) {
        let (kind, capacity, heads, head_dim) = (self.kind, self.capacity, self.heads, self.head_dim);
        let size = self.size();
        let layer_size = size * heads * self.sequences;
        let store = |(at, head): (usize, &mut [f32])| {
            let (sequence, column) = (at / heads, at % heads * head_dim);
            for (place, row) in places.iter().zip(rows.chunks(pitch)).filter(|(p, _)| p.sequence == sequence)
            {
                for (i, x) in row[column..column + head_dim].iter().enumerate() {
                    head[index(kind, capacity, head_dim, place.position, i)] = *x;
                }
            }
        };
        let data: &mut [f32] = bytemuck::cast_slice_mut(&mut self.data);
        let heads_of_layer = &mut data[layer * layer_size..][..layer_size];
        // Below this the threads would take longer to wake up than to store.
        match places.len() < 64 {
            true => heads_of_layer.chunks_mut(size).enumerate().for_each(store),
            false => heads_of_layer.par_chunks_mut(size).enumerate().for_each(store),
        }
    }
}

/// Elements of one head of one sequence.
fn head_size(kind: CacheKind, capacity: usize, head_dim: usize) -> usize {
    match kind {
        CacheKind::Key => capacity * head_dim,
        CacheKind::Value => capacity * head_dim.next_multiple_of(COLUMNS),
    }
}

/// Where one value lies in its head.
fn index(kind: CacheKind, capacity: usize, head_dim: usize, position: usize, column: usize) -> usize {
    match kind {
        CacheKind::Key => ((position / COLUMNS) * head_dim + column) * COLUMNS + position % COLUMNS,
        CacheKind::Value => ((column / COLUMNS) * capacity + position) * COLUMNS + column % COLUMNS,
    }
}
