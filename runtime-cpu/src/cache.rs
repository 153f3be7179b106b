//! The key-value cache, laid out so that attention streams through it with the kernels of the matrix products.
//!
//! ```text
//! keys    per layer, sequence, head:  [blocks of 32 positions][head_dim][32]     a panel for q kᵀ
//! values  per layer, sequence, head:  [blocks of 32 columns][positions][32]     a panel for p v
//! ```

use crate::program::{Cache, CacheKind};
use crate::simd::COLUMNS;
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
    data: Vec<f32>,
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
    /// An empty cache. Memory is touched only where tokens are stored.
    pub fn new(cache: &Cache, layers: usize, sequences: usize, positions: usize) -> KeyValues {
        let (heads, head_dim) = (cache.heads as usize, cache.head_dim as usize);
        let capacity = positions.next_multiple_of(COLUMNS);
        let mut made = KeyValues { kind: cache.kind, heads, head_dim, sequences, capacity, data: Vec::new() };
        made.data = vec![0.0; made.head_size() * heads * sequences * layers];
        made
    }

    fn head_size(&self) -> usize {
        match self.kind {
            CacheKind::Key => self.capacity * self.head_dim,
            CacheKind::Value => self.capacity * self.head_dim.next_multiple_of(COLUMNS),
        }
    }

    /// One head of one sequence in one layer.
    pub fn head(&self, layer: usize, sequence: usize, head: usize) -> &[f32] {
        let at = (layer * self.sequences + sequence) * self.heads + head;
        &self.data[at * self.head_size()..][..self.head_size()]
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
        match self.kind {
            CacheKind::Key => ((position / COLUMNS) * self.head_dim + column) * COLUMNS + position % COLUMNS,
            CacheKind::Value => ((column / COLUMNS) * self.capacity + position) * COLUMNS + column % COLUMNS,
        }
    }

    /// Stores rows of `heads * head_dim` values, `pitch` apart.
    pub fn store(&mut self, layer: usize, places: &[Place], rows: &[f32], pitch: usize) {
        let (size, heads, head_dim) = (self.head_size(), self.heads, self.head_dim);
        let layer_size = size * heads * self.sequences;
        let mut data = std::mem::take(&mut self.data);
        let store = |(at, head): (usize, &mut [f32])| {
            let (sequence, column) = (at / heads, at % heads * head_dim);
            for (place, row) in places.iter().zip(rows.chunks(pitch)).filter(|(p, _)| p.sequence == sequence)
            {
                for (i, x) in row[column..column + head_dim].iter().enumerate() {
                    head[self.index(place.position, i)] = *x;
                }
            }
        };
        let heads_of_layer = &mut data[layer * layer_size..][..layer_size];
        // Below this the threads would take longer to wake up than to store.
        match places.len() < 64 {
            true => heads_of_layer.chunks_mut(size).enumerate().for_each(store),
            false => heads_of_layer.par_chunks_mut(size).enumerate().for_each(store),
        }
        self.data = data;
    }
}
