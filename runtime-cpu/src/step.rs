//! Walks over the steps of a program, once per call of a session.

use crate::attention::{Attention, Span};
use crate::cache::{KeyValues, Place};
use crate::matmul::{FEW_ROWS, RowsOf, Scratch, product_of_block, product_sharing_panels};
use crate::meeting::Meeting;
use crate::model::{Model, Planned};
use crate::peers::{PeerError, Peers};
use crate::program::{BufferId, ParameterId, RowFn, RowOp, Rows, Step, Target};
use crate::rotation::RotationTable;
use crate::rows::{Kernel, Sink, Source, pitch, rotations};
use crate::scores::ScoreRows;
use crate::session::{Observation, Watch};
use crate::store::Matrix;
use rayon::prelude::*;

/// Rows whose product one thread computes before their epilogue runs, 20 tiles: the product of a block stays in the
/// caches.
const BLOCK_ROWS: usize = 240;

/// Elements below which the rows of a function are not shared out: threads would take longer to wake up.
const SHARE_FROM: usize = 1 << 15;

/// The tokens of one call.
pub(crate) struct Pass {
    pub tokens: Vec<u32>,
    pub spans: Vec<Span>,
    pub places: Vec<Place>,
    /// Rows whose logits are wanted.
    pub last: Vec<usize>,
    /// Most keys of any sequence, the new ones included.
    pub keys: usize,
    pub layer: Option<usize>,
}

/// Who else is there while steps run.
#[derive(Default)]
pub(crate) struct Company<'c, 'w> {
    /// Sees every value.
    pub watch: Option<Watch<'w>>,
    /// The other ranks; there for a program of one rank.
    pub peers: Option<&'c mut dyn Peers>,
}

/// Everything that changes while steps run.
#[derive(Default)]
pub(crate) struct Memory {
    pub caches: Vec<KeyValues>,
    pub rotations: Vec<RotationTable>,
    pub slots: Vec<Vec<f32>>,
    /// The rotation tables' rows of the new tokens.
    turned: Vec<Vec<f32>>,
    threads: Vec<Thread>,
    product: Vec<f32>,
    tiles: Vec<f32>,
    stored: Vec<Vec<f32>>,
    /// Parts of all ranks.
    pub gathered: Vec<f32>,
}

/// Memory of one thread.
#[derive(Default)]
struct Thread {
    matmul: Scratch,
    product: Vec<f32>,
    rows: Vec<f32>,
}

/// Where the product of a linear step comes from.
#[derive(Clone, Copy)]
enum Product<'a> {
    /// There is none.
    None,
    /// It is computed: rows of this width.
    Ready(&'a [f32], usize),
    /// Each thread computes its own rows.
    ByBlocks(RowsOf<'a>, Matrix<'a>),
}

/// A source of a row function.
enum Read<'a> {
    Rows(Source<'a>),
    Gathered(Vec<f32>, usize),
    Product(usize),
}

impl Read<'_> {
    /// The source from row `first` on; the product begins at that row already.
    fn starting_at<'s>(&'s self, first: usize, product: &'s [f32], width: usize) -> Source<'s> {
        match self {
            Read::Rows(s) => Source { data: s.data.get(first * s.pitch..).unwrap_or(&[]), pitch: s.pitch },
            Read::Gathered(data, pitch) => Source { data: &data[first * pitch..], pitch: *pitch },
            Read::Product(column) => Source { data: &product[*column..], pitch: width },
        }
    }
}

impl Memory {
    /// Memory with empty slots.
    pub fn new(caches: Vec<KeyValues>, rotations: Vec<RotationTable>, slots: usize) -> Memory {
        Memory { caches, rotations, slots: vec![Vec::new(); slots], ..Memory::default() }
    }

    /// Looks up what depends on positions only.
    pub fn prepare(&mut self, pass: &Pass) {
        self.turned.resize(self.rotations.len(), Vec::new());
        for (rows, table) in self.turned.iter_mut().zip(&self.rotations) {
            rows.clear();
            pass.places.iter().for_each(|place| rows.extend_from_slice(table.row(place.position)));
        }
    }
}

impl Pass {
    /// Runs every step.
    ///
    /// # Errors
    /// [`PeerError`] when the other ranks cannot be met.
    pub fn run(
        &mut self,
        model: &Model,
        memory: &mut Memory,
        company: &mut Company,
    ) -> Result<(), PeerError> {
        self.steps(model, &model.program.body, &model.plan, memory, company)
    }

    fn steps(
        &mut self,
        model: &Model,
        steps: &[Step],
        plan: &[Planned],
        memory: &mut Memory,
        company: &mut Company,
    ) -> Result<(), PeerError> {
        for (step, planned) in steps.iter().zip(plan) {
            match step {
                Step::Repeat { carried, yielded, body, .. } => {
                    let slot = |id: BufferId| model.program.buffers[id].slot;
                    for layer in 0..model.program.model.layers as usize {
                        self.layer = Some(layer);
                        self.steps(model, body, &planned.body, memory, company)?;
                        memory.slots.swap(slot(*carried), slot(*yielded));
                    }
                    self.layer = None;
                }
                Step::Rows { rows, function, .. } => {
                    if let Some(kernel) = &planned.kernel {
                        self.function(model, kernel, function, *rows, None, memory);
                    }
                }
                Step::Linear { rows, function, x, weight, .. } => {
                    if let Some(kernel) = &planned.kernel {
                        self.function(model, kernel, function, *rows, Some((*x, *weight)), memory);
                    }
                }
                Step::Collective { name, rows, op, x, out } => {
                    if let Some(peers) = company.peers.as_deref_mut() {
                        let meeting = Meeting { name, rows: self.rows(*rows), op: *op, x: *x, out: *out };
                        meeting.hold(model, memory, peers)?;
                    }
                }
                _ => self.attention(model, step, planned, memory),
            }
            if let Some(watch) = &mut company.watch {
                self.show(model, step, memory, watch);
            }
        }
        Ok(())
    }

    fn show(&self, model: &Model, step: &Step, memory: &Memory, watch: &mut Watch) {
        for id in step.writes() {
            let buffer = &model.program.buffers[id];
            let (rows, pitch) = (self.rows(buffer.rows), self.pitch(buffer));
            watch(Observation {
                layer: self.layer,
                step: step.name(),
                value: &buffer.name,
                rows,
                width: if buffer.per_key { pitch } else { buffer.width as usize },
                pitch,
                data: &memory.slots[buffer.slot][..rows * pitch],
            });
        }
    }

    fn layer_index(&self) -> usize {
        self.layer.unwrap_or(0)
    }

    fn attention(&self, model: &Model, step: &Step, planned: &Planned, memory: &mut Memory) {
        let buffer = |id: BufferId| &model.program.buffers[id];
        let layer = self.layer_index();
        let Some(out) = step.writes().first().copied().map(buffer) else { return };
        let mut result = std::mem::take(&mut memory.slots[out.slot]);
        let rows = |heads: u64| ScoreRows { spans: &self.spans, heads: heads as usize, keys: self.keys };
        let pitch = self.pitch(out);
        match step {
            Step::Attention { q, k, v, heads, scale, mask, .. } => {
                let mut tiles = std::mem::take(&mut memory.tiles);
                let attention = Attention {
                    isa: model.isa,
                    keys: &memory.caches[*k],
                    values: &memory.caches[*v],
                    layer,
                    heads: *heads as usize,
                    scale: *scale as f32,
                    mask: *mask,
                    slopes: &planned.slopes,
                };
                attention.run(&self.spans, &memory.slots[buffer(*q).slot], &mut result, pitch, &mut tiles);
                memory.tiles = tiles;
            }
            Step::Scores { q, k, heads, .. } => {
                let q = buffer(*q);
                rows(*heads).scores(
                    &memory.caches[*k],
                    layer,
                    &memory.slots[q.slot],
                    self.pitch(q),
                    &mut result,
                );
            }
            Step::Keys { x, heads, op, .. } => {
                rows(*heads).apply(op, &planned.slopes, &memory.slots[buffer(*x).slot], &mut result);
            }
            Step::Values { p, v, heads, .. } => {
                rows(*heads).values(
                    &memory.caches[*v],
                    layer,
                    &memory.slots[buffer(*p).slot],
                    &mut result,
                    pitch,
                );
            }
            Step::Rows { .. } | Step::Linear { .. } | Step::Repeat { .. } | Step::Collective { .. } => {}
        }
        memory.slots[out.slot] = result;
    }

    /// Runs a row function, behind a product where there is one.
    fn function(
        &self,
        model: &Model,
        kernel: &Kernel,
        f: &RowFn,
        over: Rows,
        linear: Option<(BufferId, ParameterId)>,
        memory: &mut Memory,
    ) {
        let rows = self.rows(over);
        let mut threads = std::mem::take(&mut memory.threads);
        threads.resize_with(model.jobs, Thread::default);
        let mut product = std::mem::take(&mut memory.product);
        let mut outputs = self.take_outputs(model, f, rows, memory);
        {
            let ready = match linear {
                Some((x, weight)) => self.product(model, x, weight, memory, &mut threads[0], &mut product),
                None => Product::None,
            };
            let sources: Vec<Read> = self.sources(model, f, memory);
            let sinks: Vec<Sink> =
                outputs.iter_mut().map(|(data, pitch)| Sink { data, pitch: *pitch }).collect();
            let shares = match ready {
                Product::ByBlocks(..) => model.jobs,
                _ if rows * f.values.iter().map(|v| v.width as usize).sum::<usize>() < SHARE_FROM => 1,
                _ => model.jobs,
            };
            let work =
                |(share, thread): (Share, &mut Thread)| share.run(model, kernel, &sources, ready, thread);
            let mut parts = split(rows, shares, sinks).into_iter().zip(&mut threads);
            match shares {
                1 => parts.by_ref().for_each(work),
                _ => parts.collect::<Vec<_>>().into_par_iter().for_each(work),
            }
        }
        memory.threads = threads;
        memory.product = product;
        self.return_outputs(model, f, outputs, memory);
    }

    /// The buffers that a function writes, taken out of their slots, and rows for what goes into caches.
    fn take_outputs(
        &self,
        model: &Model,
        f: &RowFn,
        rows: usize,
        memory: &mut Memory,
    ) -> Vec<(Vec<f32>, usize)> {
        let mut take = |output: &crate::program::RowOutput| match output.to {
            Target::Buffer(id) => {
                let buffer = &model.program.buffers[id];
                (std::mem::take(&mut memory.slots[buffer.slot]), pitch(buffer.width))
            }
            Target::Cache(_) => {
                let pitch = pitch(f.values[output.value].width);
                let mut data = memory.stored.pop().unwrap_or_default();
                data.resize((rows * pitch).max(data.len()), 0.0);
                (data, pitch)
            }
        };
        f.outputs.iter().map(&mut take).collect()
    }

    fn return_outputs(&self, model: &Model, f: &RowFn, outputs: Vec<(Vec<f32>, usize)>, memory: &mut Memory) {
        for (output, (data, pitch)) in f.outputs.iter().zip(outputs) {
            match output.to {
                Target::Buffer(id) => memory.slots[model.program.buffers[id].slot] = data,
                Target::Cache(id) => {
                    memory.caches[id].store(self.layer_index(), &self.places, &data, pitch);
                    memory.stored.push(data);
                }
            }
        }
    }

    fn product<'a>(
        &self,
        model: &'a Model,
        x: BufferId,
        weight: ParameterId,
        memory: &'a Memory,
        thread: &mut Thread,
        into: &'a mut Vec<f32>,
    ) -> Product<'a> {
        let buffer = &model.program.buffers[x];
        let rows = self.rows(buffer.rows);
        let x = RowsOf { data: &memory.slots[buffer.slot], pitch: pitch(buffer.width), rows };
        let form = &model.program.parameters[weight].form;
        let w = model.store.matrix(form, weight, self.layer_index());
        if rows > FEW_ROWS {
            return Product::ByBlocks(x, w);
        }
        into.resize((rows * w.width()).max(into.len()), 0.0);
        product_sharing_panels(model.isa, model.jobs, x, w, &mut thread.matmul, into);
        Product::Ready(into, w.width())
    }

    fn sources<'a>(&self, model: &'a Model, f: &RowFn, memory: &'a Memory) -> Vec<Read<'a>> {
        let of = |value: &crate::program::RowValue| self.source(model, value.op, value.width, memory);
        let turned = rotations(f)
            .into_iter()
            .map(|r| Read::Rows(Source { data: &memory.turned[r], pitch: memory.rotations[r].width() }));
        f.values.iter().filter(|v| v.op.is_source()).map(of).chain(turned).collect()
    }

    fn source<'a>(&self, model: &'a Model, op: RowOp, width: u64, memory: &'a Memory) -> Read<'a> {
        let buffer = |id: BufferId| &memory.slots[model.program.buffers[id].slot];
        let pitch = pitch(width);
        let layer = self.layer_index();
        let table = |id: ParameterId| model.store.matrix(&model.program.parameters[id].form, id, layer);
        let gather = |rows: usize, fill: &mut dyn FnMut(usize, &mut [f32])| {
            let mut data = vec![0.0; rows * pitch];
            data.chunks_mut(pitch).enumerate().for_each(|(row, into)| fill(row, into));
            Read::Gathered(data, pitch)
        };
        match op {
            RowOp::Product { column } => Read::Product(column as usize),
            RowOp::Vector { parameter } => {
                Read::Rows(Source { data: model.store.vector(parameter, layer), pitch: 0 })
            }
            RowOp::Embedding { parameter, part } => {
                let table = table(parameter);
                gather(self.tokens.len(), &mut |row, into| {
                    let at = u64::from(self.tokens[row]).checked_sub(part.unwrap_or(0));
                    if let Some(at) = at.filter(|at| *at < table.rows() as u64) {
                        table.row(at as usize, into);
                    }
                })
            }
            RowOp::Position { parameter } => {
                let table = table(parameter);
                gather(self.places.len(), &mut |row, into| table.row(self.places[row].position, into))
            }
            RowOp::LastRow { buffer: id } => {
                let data = buffer(id);
                gather(self.last.len(), &mut |row, into| {
                    into.copy_from_slice(&data[self.last[row] * pitch..][..pitch])
                })
            }
            RowOp::Buffer { buffer: id } => Read::Rows(Source { data: buffer(id), pitch }),
            _ => Read::Rows(Source { data: &[], pitch: 0 }),
        }
    }
}

/// Rows that one thread works on.
struct Share<'a> {
    first: usize,
    rows: usize,
    sinks: Vec<Sink<'a>>,
}

/// Splits rows, and the sinks with them, into shares of about the same size.
fn split(rows: usize, shares: usize, sinks: Vec<Sink>) -> Vec<Share> {
    let size = rows.div_ceil(shares.max(1)).max(1);
    let mut rest = sinks;
    let mut made = Vec::new();
    for first in (0..rows).step_by(size) {
        let rows_here = size.min(rows - first);
        let mut mine = Vec::with_capacity(rest.len());
        let mut left = Vec::with_capacity(rest.len());
        for sink in rest {
            let at = (rows_here * sink.pitch).min(sink.data.len());
            let (head, tail) = sink.data.split_at_mut(at);
            mine.push(Sink { data: head, pitch: sink.pitch });
            left.push(Sink { data: tail, pitch: sink.pitch });
        }
        rest = left;
        made.push(Share { first, rows: rows_here, sinks: mine });
    }
    made
}

impl Share<'_> {
    fn run(
        mut self,
        model: &Model,
        kernel: &Kernel,
        sources: &[Read],
        product: Product,
        thread: &mut Thread,
    ) {
        let Thread { matmul, product: own, rows: scratch } = thread;
        match product {
            Product::None => self.rows(kernel, sources, 0..self.rows, (&[], 0), scratch),
            Product::Ready(data, width) => {
                self.rows(kernel, sources, 0..self.rows, (&data[self.first * width..], width), scratch);
            }
            Product::ByBlocks(x, w) => {
                let width = w.width();
                for from in (0..self.rows).step_by(BLOCK_ROWS) {
                    let rows = BLOCK_ROWS.min(self.rows - from);
                    let block =
                        RowsOf { data: &x.data[(self.first + from) * x.pitch..], pitch: x.pitch, rows };
                    own.resize((rows * width).max(own.len()), 0.0);
                    product_of_block(model.isa, block, w, matmul, own);
                    self.rows(kernel, sources, from..from + rows, (own, width), scratch);
                }
            }
        }
    }

    /// Runs the kernel over rows `at` of the share; the product's first row is that of `at.start`.
    fn rows(
        &mut self,
        kernel: &Kernel,
        sources: &[Read],
        at: std::ops::Range<usize>,
        (product, width): (&[f32], usize),
        scratch: &mut Vec<f32>,
    ) {
        let first = self.first + at.start;
        let sources: Vec<Source> =
            sources.iter().map(|read| read.starting_at(first, product, width)).collect();
        let mut sinks: Vec<Sink> = self
            .sinks
            .iter_mut()
            .map(|s| Sink { data: &mut s.data[at.start * s.pitch..], pitch: s.pitch })
            .collect();
        kernel.run(at.len(), &sources, &mut sinks, scratch);
    }
}
