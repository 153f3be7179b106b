//! One batch on its way through the steps of a training program.

use super::attention::{Form, Heads as HeadRows};
use super::keys::ScoreRows;
use super::memory::{AllWeights, Buffers, Replica};
use super::product::{Operand, Packing, Target, product};
use super::trainer::Planned;
use crate::peers::{PeerError, Peers};
use crate::program::train::{Heads, Kept, KeyOp, Lookup, Product, Side, TrainProgram, TrainStep};
use crate::program::{BufferId, Mask, PANEL, RowFn, RowOp, Target as RowTarget};
use crate::rotation::RotationTable;
use crate::rows::{Sink, Source, pitch, rotations};
use crate::simd::Isa;
use rayon::prelude::*;

/// Rows that a thread takes at once: sums over rows are made share by share, so they do not depend on the threads.
const SHARE_ROWS: usize = 64;

/// Sequences of one length, one after the other.
pub(super) struct Batch {
    /// Ids.
    pub tokens: Vec<u32>,
    /// What should follow each.
    pub labels: Vec<i32>,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Labels that the loss is the mean over.
    pub counted: usize,
}

impl Batch {
    /// A batch; the loss is the mean over its own labels where nothing else is said.
    pub fn new(ids: &[&[u32]], labels: &[&[i32]], counted: Option<usize>) -> Batch {
        let (tokens, labels) = (ids.concat(), labels.concat());
        let own = labels.iter().filter(|label| **label >= 0).count();
        let seq = ids.first().map_or(0, |ids| ids.len());
        Batch { tokens, labels, batch: ids.len(), seq, counted: counted.unwrap_or(own).max(1) }
    }
}

/// One batch while it runs.
pub(super) struct Pass<'t> {
    /// The steps.
    pub program: &'t TrainProgram,
    /// Instruction set.
    pub isa: Isa,
    /// Threads; other ranks are met outside of them.
    pub pool: &'t rayon::ThreadPool,
    /// Weights and gradients.
    pub weights: &'t mut AllWeights,
    /// Activations.
    pub buffers: &'t mut Buffers,
    /// How weights are shared.
    pub replica: Replica,
    /// Rotations by position.
    pub tables: &'t [RotationTable],
    /// What is trained on.
    pub batch: &'t Batch,
    /// The layer whose steps run.
    pub layer: usize,
    /// Mean cross entropy.
    pub loss: f64,
    /// Packed operands.
    pub packing: Packing,
    /// Products before their function.
    pub products: Vec<f32>,
}

/// A source of a row function.
enum Read<'a> {
    Rows(Source<'a>),
    Gathered(Vec<f32>, usize),
    Product(usize),
}

impl Pass<'_> {
    /// Rows of the batch.
    pub(super) fn rows(&self) -> usize {
        self.batch.batch * self.batch.seq
    }

    /// Rows of a buffer that count.
    pub(super) fn rows_of(&self, id: BufferId) -> usize {
        if self.program.buffers[id].run { self.own_run().len() } else { self.rows() }
    }

    /// Rows of the products and functions of a step.
    fn rows_made(&self, f: &RowFn) -> usize {
        let made = f.outputs.iter().find_map(|output| match output.to {
            RowTarget::Buffer(id) => Some(id),
            RowTarget::Cache(_) => None,
        });
        made.map_or(self.rows(), |id| self.rows_of(id))
    }

    /// Runs steps in order; the ranks of a spread model meet in some of them.
    pub fn steps(
        &mut self,
        steps: &[TrainStep],
        plan: &[Planned],
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<(), PeerError> {
        for (step, planned) in steps.iter().zip(plan) {
            match step {
                TrainStep::Repeat { layers, reverse, carried, yielded, body, .. } => {
                    self.repeat(*layers, *reverse, (*carried, *yielded), body, &planned.body, peers)?;
                }
                TrainStep::Meet { name, op, x, out } => self.meet(name, *op, *x, *out, peers)?,
                TrainStep::Gather { name, parameters, gradients } => {
                    self.gather(name, parameters, gradients, peers)?;
                }
                TrainStep::Release { name, parameters, gradients } => {
                    self.release(name, parameters, gradients, peers)?;
                }
                _ => {
                    let pool = self.pool;
                    pool.install(|| self.step(step, planned));
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &TrainStep, planned: &Planned) {
        match step {
            TrainStep::Rows { function, .. } => self.function(planned, function, &[]),
            TrainStep::Linear { products, function, .. } => self.function(planned, function, products),
            TrainStep::ColumnGradient { function, parameter, .. } => {
                self.column_gradient(planned, function, *parameter);
            }
            TrainStep::WeightGradient { dy, x, parameter, .. } => self.weight_gradient(*dy, *x, *parameter),
            TrainStep::TableGradient { dy, parameter, by, part, .. } => {
                self.table_gradient(*dy, *parameter, *by, *part);
            }
            TrainStep::Loss { logits, gradient, .. } => self.cross_entropy(*logits, *gradient),
            _ => self.attention(step, planned),
        }
    }

    fn repeat(
        &mut self,
        layers: Kept,
        reverse: bool,
        (carried, yielded): (BufferId, BufferId),
        body: &[TrainStep],
        plan: &[Planned],
        peers: &mut Option<&mut dyn Peers>,
    ) -> Result<(), PeerError> {
        for turn in 0..layers.times {
            let layer = if reverse { layers.times - 1 - turn } else { turn };
            self.layer = (layers.first + layer) as usize;
            self.steps(body, plan, peers)?;
            let mut next = self.buffers.take(self.program, carried, self.layer);
            next.copy_from_slice(self.buffers.get(self.program, yielded, self.layer));
            self.buffers.put(self.program, carried, self.layer, next);
        }
        self.layer = 0;
        Ok(())
    }

    fn heads(&self, id: BufferId) -> HeadRows<'_> {
        let width = self.program.buffers[id].width;
        HeadRows { data: self.buffers.get(self.program, id, self.layer), pitch: pitch(width) }
    }

    /// A buffer as the layer sees it.
    pub(super) fn get(&self, id: BufferId) -> &[f32] {
        self.buffers.get(self.program, id, self.layer)
    }

    fn form<'s>(&self, heads: Heads, query: BufferId, mask: Mask, scale: f64, slopes: &'s [f32]) -> Form<'s> {
        let (of, kv_heads) = (heads.heads as usize, heads.kv_heads as usize);
        let head_dim = self.program.buffers[query].width as usize / of;
        let (isa, batch, seq) = (self.isa, self.batch.batch, self.batch.seq);
        Form { isa, batch, seq, heads: of, kv_heads, head_dim, scale: scale as f32, mask, slopes }
    }

    fn attention(&mut self, step: &TrainStep, planned: &Planned) {
        let width = |id: BufferId| pitch(self.program.buffers[id].width);
        match step {
            TrainStep::Attention { operands: [q, k, v], out, heads, scale, mask, .. } => {
                let mut made = self.buffers.take(self.program, *out, self.layer);
                let form = self.form(*heads, *q, *mask, *scale, &planned.slopes);
                form.forward(self.heads(*q), self.heads(*k), self.heads(*v), &mut made, width(*out));
                self.buffers.put(self.program, *out, self.layer, made);
            }
            TrainStep::AttentionBackward { operands, out, heads, scale, mask, .. } => {
                let mut made = out.map(|id| self.buffers.take(self.program, id, self.layer));
                let form = self.form(*heads, operands[0], *mask, *scale, &planned.slopes);
                let [dq, dk, dv] = &mut made;
                form.backward(operands.map(|id| self.heads(id)), [dq, dk, dv]);
                out.iter()
                    .zip(made)
                    .for_each(|(id, made)| self.buffers.put(self.program, *id, self.layer, made));
            }
            TrainStep::Scores { operands: [q, k], out, heads, .. } => {
                let mut made = self.buffers.take(self.program, *out, self.layer);
                self.form(*heads, *q, Mask::OPEN, 1.0, &[]).scores(self.heads(*q), self.heads(*k), &mut made);
                self.buffers.put(self.program, *out, self.layer, made);
            }
            TrainStep::Values { operands: [p, v], out, heads, .. } => {
                let mut made = self.buffers.take(self.program, *out, self.layer);
                let form = self.form(*heads, *out, Mask::OPEN, 1.0, &[]);
                form.values(self.get(*p), self.heads(*v), &mut made, width(*out));
                self.buffers.put(self.program, *out, self.layer, made);
            }
            TrainStep::ValuesBackward { operands: [p, y], out, heads, .. } => {
                let mut made = self.buffers.take(self.program, *out, self.layer);
                let form = self.form(*heads, *y, Mask::OPEN, 1.0, &[]);
                form.values_backward(self.get(*p), self.heads(*y), &mut made, width(*out));
                self.buffers.put(self.program, *out, self.layer, made);
            }
            TrainStep::Keys { x, out, heads, op, .. } => {
                let mut made = self.buffers.take(self.program, *out, self.layer);
                let rows = ScoreRows { heads: *heads as usize, seq: self.batch.seq, slopes: &planned.slopes };
                let other = match op {
                    KeyOp::SoftmaxDx { other } => self.get(*other),
                    _ => &[],
                };
                rows.apply(op, self.get(*x), other, &mut made);
                self.buffers.put(self.program, *out, self.layer, made);
            }
            _ => {}
        }
    }

    /// Runs products and a row function over every row.
    fn function(&mut self, planned: &Planned, f: &RowFn, products: &[Product]) {
        let Some(kernel) = &planned.kernel else { return };
        let rows = self.rows_made(f);
        let (made, width) = self.products(products, rows);
        let layer = self.layer;
        let buffer = |output: &crate::program::RowOutput| match output.to {
            RowTarget::Buffer(id) => Some((id, pitch(f.values[output.value].width))),
            RowTarget::Cache(_) => None,
        };
        let targets: Vec<(BufferId, usize)> = f.outputs.iter().filter_map(buffer).collect();
        let mut outputs: Vec<(Vec<f32>, usize)> = Vec::new();
        for (id, pitch) in &targets {
            outputs.push((self.buffers.take(self.program, *id, layer), *pitch));
        }
        {
            let reads = self.reads(f);
            let mut sinks: Vec<Vec<Sink>> = (0..rows.div_ceil(SHARE_ROWS)).map(|_| Vec::new()).collect();
            for (data, pitch) in &mut outputs {
                let parts = data[..rows * *pitch].chunks_mut(SHARE_ROWS * *pitch);
                sinks
                    .iter_mut()
                    .zip(parts)
                    .for_each(|(sinks, data)| sinks.push(Sink { data, pitch: *pitch }));
            }
            sinks.par_iter_mut().enumerate().for_each_init(Vec::new, |scratch, (share, sinks)| {
                let first = share * SHARE_ROWS;
                let count = SHARE_ROWS.min(rows - first);
                let sources: Vec<Source> = reads.iter().map(|read| read.from(first, &made, width)).collect();
                kernel.run(count, &sources, sinks, scratch);
            });
        }
        self.products = made;
        for ((id, _), (data, _)) in targets.into_iter().zip(outputs) {
            self.buffers.put(self.program, id, layer, data);
        }
    }

    /// The products of a step side by side, and the width of their rows.
    fn products(&mut self, products: &[Product], rows: usize) -> (Vec<f32>, usize) {
        let mut made = std::mem::take(&mut self.products);
        let shape = |product: &Product| &self.program.parameters[product.weight].shape;
        let size = |product: &Product| match product.side {
            Side::Forward => shape(product)[0],
            Side::Backward => shape(product)[1],
        };
        let end = |product: &Product| (product.column + size(product)).next_multiple_of(PANEL) as usize;
        let width = products.iter().map(end).max().unwrap_or(0);
        let mut packing = std::mem::take(&mut self.packing);
        made.resize((rows * width + PANEL as usize).max(made.len()), 0.0);
        for p in products {
            let (n, k) = (shape(p)[0] as usize, shape(p)[1] as usize);
            let w = &self.weights.get(p.weight, self.layer).values;
            let x = self.heads(p.x);
            let left = Operand::rows(x.data, rows, x.pitch);
            let (right, inner) = match p.side {
                Side::Forward => (Operand::rows(w, n, k), k),
                Side::Backward => (Operand::columns(w, k, k), n),
            };
            let target = Target { data: &mut made[p.column as usize..], pitch: width, accumulate: false };
            product(self.isa, left, right, inner, target, &mut packing);
        }
        self.packing = packing;
        (made, width)
    }

    fn reads(&self, f: &RowFn) -> Vec<Read<'_>> {
        let sources = f.values.iter().filter(|v| v.op.is_source()).map(|v| self.read(v.op, v.width));
        sources.chain(rotations(f).into_iter().map(|r| self.turned(r))).collect()
    }

    /// The rotation table's rows of every token.
    fn turned(&self, rotation: usize) -> Read<'_> {
        let table = &self.tables[rotation];
        let mut data = Vec::with_capacity(self.rows() * table.width());
        (0..self.rows()).for_each(|row| data.extend_from_slice(table.row(row % self.batch.seq)));
        Read::Gathered(data, table.width())
    }

    fn read(&self, op: RowOp, width: u64) -> Read<'_> {
        let gather = |parameter: usize, row_of: &dyn Fn(usize) -> Option<usize>| {
            let (pitch, width) = (pitch(width), width as usize);
            let table = &self.weights.get(parameter, self.layer).values;
            let mut data = vec![0.0; self.rows() * pitch];
            for (row, into) in data.chunks_mut(pitch).enumerate() {
                if let Some(found) = row_of(row).and_then(|at| table.get(at * width..(at + 1) * width)) {
                    into[..width].copy_from_slice(found);
                }
            }
            Read::Gathered(data, pitch)
        };
        match op {
            RowOp::Product { column } => Read::Product(column as usize),
            RowOp::Vector { parameter } => {
                Read::Rows(Source { data: &self.weights.get(parameter, self.layer).values, pitch: 0 })
            }
            RowOp::Embedding { parameter, part } => {
                let rows = self.program.parameters[parameter].shape[0];
                gather(parameter, &|row| row_of_token(self.batch.tokens[row], part, rows))
            }
            RowOp::Position { parameter } => gather(parameter, &|row| Some(row % self.batch.seq)),
            RowOp::Buffer { buffer } => {
                let rows = self.heads(buffer);
                Read::Rows(Source { data: rows.data, pitch: rows.pitch })
            }
            _ => Read::Rows(Source { data: &[], pitch: 0 }),
        }
    }

    fn weight_gradient(&mut self, dy: BufferId, x: BufferId, parameter: usize) {
        let shape = &self.program.parameters[parameter].shape;
        let (n, k) = (shape[0] as usize, shape[1] as usize);
        let place = self.weights.place(parameter, self.layer);
        let mut gradient = std::mem::take(&mut self.weights.list[place].gradient);
        let mut packing = std::mem::take(&mut self.packing);
        let rows = self.rows_of(dy);
        let (dy, x) = (self.heads(dy), self.heads(x));
        let (left, right) = (Operand::columns(dy.data, n, dy.pitch), Operand::columns(x.data, k, x.pitch));
        let target = Target { data: &mut gradient, pitch: k, accumulate: true };
        product(self.isa, left, right, rows, target, &mut packing);
        self.packing = packing;
        self.weights.list[place].gradient = gradient;
    }

    fn column_gradient(&mut self, planned: &Planned, f: &RowFn, parameter: usize) {
        let Some(kernel) = &planned.kernel else { return };
        let source = f.values.iter().find_map(|value| match value.op {
            RowOp::Buffer { buffer } => Some(buffer),
            _ => None,
        });
        let rows = source.map_or(self.rows(), |id| self.rows_of(id));
        let width = self.program.parameters[parameter].shape[0];
        let sums: Vec<Vec<f32>> = {
            let reads = self.reads(f);
            let share = |scratch: &mut Vec<f32>, share: usize| {
                let (first, pitch) = (share * SHARE_ROWS, pitch(width));
                let count = SHARE_ROWS.min(rows - first);
                let mut data = vec![0.0; count * pitch];
                let sources: Vec<Source> = reads.iter().map(|read| read.from(first, &[], 0)).collect();
                kernel.run(count, &sources, &mut [Sink { data: &mut data, pitch }], scratch);
                let (sum, rest) = data.split_at_mut(pitch);
                rest.chunks(pitch).for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
                data.truncate(pitch);
                data
            };
            (0..rows.div_ceil(SHARE_ROWS)).into_par_iter().map_init(Vec::new, share).collect()
        };
        let gradient = self.weights.gradient(parameter, self.layer);
        for sum in &sums {
            gradient[..width as usize].iter_mut().zip(sum).for_each(|(gradient, x)| *gradient += x);
        }
    }

    fn table_gradient(&mut self, dy: BufferId, parameter: usize, by: Lookup, part: Option<u64>) {
        let shape = &self.program.parameters[parameter].shape;
        let (rows, width) = (shape[0], shape[1] as usize);
        let place = self.weights.place(parameter, self.layer);
        let mut gradient = std::mem::take(&mut self.weights.list[place].gradient);
        let dy = self.heads(dy);
        for row in 0..self.rows() {
            let at = match by {
                Lookup::Token => row_of_token(self.batch.tokens[row], part, rows),
                Lookup::Position => Some(row % self.batch.seq),
            };
            let Some(at) = at else { continue };
            let source = &dy.data[row * dy.pitch..][..width];
            gradient[at * width..][..width].iter_mut().zip(source).for_each(|(sum, x)| *sum += x);
        }
        self.weights.list[place].gradient = gradient;
    }

    /// Mean cross entropy and its derivative, row by row; both zero without any label.
    fn cross_entropy(&mut self, logits: BufferId, gradient: BufferId) {
        let width = self.program.buffers[logits].width as usize;
        let mut made = self.buffers.take(self.program, gradient, self.layer);
        let rows = self.heads(logits);
        let count = self.batch.counted as f32;
        let labels = &self.batch.labels;
        let row = |(at, out): (usize, &mut [f32])| -> f64 {
            let Ok(label) = usize::try_from(labels[at]) else {
                out.fill(0.0);
                return 0.0;
            };
            let x = &rows.data[at * rows.pitch..][..width];
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            out.iter_mut().zip(x).for_each(|(o, x)| *o = crate::simd::exp(x - max));
            let sum = out[..width].iter().map(|o| f64::from(*o)).sum::<f64>();
            let factor = 1.0 / (sum as f32 * count);
            out[..width].iter_mut().for_each(|o| *o *= factor);
            out[label] -= 1.0 / count;
            f64::from(max) + sum.ln() - f64::from(x[label])
        };
        let used = &mut made[..labels.len() * rows.pitch];
        let losses: Vec<f64> = used.par_chunks_mut(rows.pitch).enumerate().map(row).collect();
        self.loss = losses.iter().sum::<f64>() / f64::from(count);
        self.buffers.put(self.program, gradient, self.layer, made);
    }
}

/// The row of a table that an id picks; none where it is not among the rows that are held.
fn row_of_token(id: u32, part: Option<u64>, rows: u64) -> Option<usize> {
    let at = u64::from(id).checked_sub(part.unwrap_or(0)).filter(|at| *at < rows)?;
    usize::try_from(at).ok()
}

impl Read<'_> {
    /// The source from a row on.
    fn from<'s>(&'s self, first: usize, product: &'s [f32], width: usize) -> Source<'s> {
        match self {
            Read::Rows(s) => Source { data: s.data.get(first * s.pitch..).unwrap_or(&[]), pitch: s.pitch },
            Read::Gathered(data, pitch) => Source { data: &data[first * pitch..], pitch: *pitch },
            Read::Product(column) => Source { data: &product[first * width + column..], pitch: width },
        }
    }
}
