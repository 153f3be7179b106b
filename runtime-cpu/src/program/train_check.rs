//! Whether a training program can run: indices, widths and layers fit, before any memory is touched.

use super::train::{Heads, Kept, KeyOp, Lookup, Product, SCHEMA, Side, TrainProgram, TrainStep, VERSION};
use crate::program::check::Checked;
use crate::program::{BufferId, Mask, PANEL, ParameterId, ProgramFault, ProgramFaults, RowFn, RowOp, Target};

/// Sizes beyond this are refused: products of a few of them still fit 64 bits.
const LARGEST: u64 = 1 << 28;

impl TrainProgram {
    /// Checks that no step reads or writes what is not there.
    ///
    /// # Errors
    /// Every fault that is found.
    pub fn check(self) -> Result<Checked<TrainProgram>, ProgramFaults> {
        let mut checker = Checker { program: &self, faults: Vec::new(), layers: None };
        checker.header();
        checker.share();
        checker.steps(&self.body);
        match checker.faults {
            faults if faults.is_empty() => Ok(Checked(self)),
            faults => Err(ProgramFaults(faults)),
        }
    }
}

pub(super) struct Checker<'p> {
    pub program: &'p TrainProgram,
    pub faults: Vec<ProgramFault>,
    /// The layers that the steps under check run for.
    pub layers: Option<Kept>,
}

impl Checker<'_> {
    pub fn expect(&mut self, holds: bool, place: &str, what: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(ProgramFault { place: place.to_string(), what: what() });
        }
    }

    fn header(&mut self) {
        let p = self.program;
        self.expect(p.schema == SCHEMA && p.version == VERSION, "schema", || {
            format!("expected {SCHEMA} {VERSION}, found {} {}", p.schema, p.version)
        });
        self.faults.extend(p.model.faults());
        for parameter in &p.parameters {
            let sound = (1..=2).contains(&parameter.shape.len())
                && parameter.shape.iter().all(|n| (1..=LARGEST).contains(n));
            self.expect(sound, &parameter.name, || {
                format!("shape {:?} is no matrix or vector", parameter.shape)
            });
        }
        for buffer in &p.buffers {
            self.expect((1..=LARGEST).contains(&buffer.width), &buffer.name, || {
                format!("width {} is out of range", buffer.width)
            });
            let fits = buffer.kept.is_none_or(|kept| kept.first.saturating_add(kept.times) <= p.model.layers);
            self.expect(fits, &buffer.name, || "is kept by layers that are not there".into());
        }
    }

    fn steps(&mut self, steps: &[TrainStep]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &TrainStep) {
        let name = step.name();
        match step {
            TrainStep::Rows { function, .. } => {
                self.function(name, function, 0);
                self.writes(name, function);
            }
            TrainStep::Linear { products, function, .. } => {
                let width = products.iter().map(|product| self.product(name, product)).max().unwrap_or(0);
                self.function(name, function, width);
                self.writes(name, function);
            }
            TrainStep::WeightGradient { dy, x, parameter, .. } => {
                let shape = self.shape(name, *parameter, 2);
                self.row(name, *dy, shape[0]);
                self.row(name, *x, shape[1]);
                self.same_rows(name, &[*dy, *x], None);
            }
            TrainStep::ColumnGradient { function, parameter, .. } => {
                let shape = self.shape(name, *parameter, 1);
                self.function(name, function, 0);
                let summed = function.outputs.first().and_then(|output| function.values.get(output.value));
                let fits = function.outputs.len() == 1 && summed.is_some_and(|value| value.width == shape[0]);
                self.expect(fits, name, || format!("does not sum one row of {}", shape[0]));
            }
            TrainStep::TableGradient { dy, parameter, by, part, .. } => {
                let shape = self.shape(name, *parameter, 2);
                self.row(name, *dy, shape[1]);
                self.same_rows(name, &[*dy], Some(false));
                self.table(name, *by, shape[0], part.is_some());
            }
            TrainStep::Attention { operands: [q, k, v], out, heads, mask, .. } => {
                self.mask(name, mask);
                self.attention(name, *heads, &[*q, *out], &[*k, *v]);
            }
            TrainStep::AttentionBackward {
                operands: [q, k, v, dy], out: [dq, dk, dv], heads, mask, ..
            } => {
                self.mask(name, mask);
                self.attention(name, *heads, &[*q, *dy, *dq], &[*k, *v, *dk, *dv]);
            }
            TrainStep::Scores { operands: [q, k], out, heads, .. } => {
                self.attention(name, *heads, &[*q], &[*k]);
                self.scores(name, *out, heads.heads);
            }
            TrainStep::Values { operands: [p, v], out, heads, .. } => {
                self.attention(name, *heads, &[*out], &[*v]);
                self.scores(name, *p, heads.heads);
            }
            TrainStep::ValuesBackward { operands: [p, y], out, heads, .. } => {
                self.attention(name, *heads, &[*y], &[*out]);
                self.scores(name, *p, heads.heads);
            }
            TrainStep::Keys { x, out, heads, op, .. } => {
                self.scores(name, *x, *heads);
                self.scores(name, *out, *heads);
                match op {
                    KeyOp::SoftmaxDx { other } => self.scores(name, *other, *heads),
                    KeyOp::Mask(mask) => self.mask(name, mask),
                    _ => {}
                }
            }
            TrainStep::Loss { logits, gradient, .. } => {
                let width = self.program.buffers.get(*logits).map_or(0, |buffer| buffer.width);
                self.expect(width >= self.program.model.vocab, name, || {
                    "the logits miss some of the vocabulary".into()
                });
                self.row(name, *logits, width);
                self.row(name, *gradient, width);
                self.same_rows(name, &[*logits, *gradient], Some(false));
            }
            TrainStep::Meet { op, x, out, .. } => self.meet(name, *op, *x, *out),
            TrainStep::Gather { parameters, gradients, .. }
            | TrainStep::Release { parameters, gradients, .. } => self.held(name, parameters, gradients),
            TrainStep::Repeat { layers, carried, yielded, body, .. } => {
                let fits = layers.first.saturating_add(layers.times) <= self.program.model.layers;
                self.expect(fits && self.layers.is_none(), name, || {
                    "repeats layers that are not there".into()
                });
                let width = self.program.buffers.get(*carried).map_or(0, |buffer| buffer.width);
                self.row(name, *carried, width);
                self.same_rows(name, &[*carried, *yielded], None);
                self.layers = Some(*layers);
                self.row(name, *yielded, width);
                self.steps(body);
                self.layers = None;
            }
        }
    }

    /// A buffer of rows of this width, there for every layer that the step runs for.
    pub fn row(&mut self, name: &str, id: BufferId, width: u64) {
        self.buffer(name, id, width, false);
    }

    fn scores(&mut self, name: &str, id: BufferId, heads: u64) {
        self.buffer(name, id, heads, true);
    }

    fn buffer(&mut self, name: &str, id: BufferId, width: u64, scores: bool) {
        let Some(buffer) = self.program.buffers.get(id) else {
            return self.expect(false, name, || format!("there is no buffer {id}"));
        };
        let same = buffer.width == width && buffer.scores == scores;
        self.expect(same, name, || format!("{} is {} wide, expected {width}", buffer.name, buffer.width));
        let (kept, layers) = (buffer.kept, self.layers);
        let there = kept.is_none_or(|kept| {
            layers.is_some_and(|now| {
                now.first >= kept.first
                    && now.first.saturating_add(now.times) <= kept.first.saturating_add(kept.times)
            })
        });
        self.expect(there, name, || format!("{} is not kept by every layer here", buffer.name));
    }

    /// Shape of a parameter of this rank; ones where it is another.
    fn shape(&mut self, name: &str, id: ParameterId, rank: usize) -> Vec<u64> {
        let found = self.program.parameters.get(id).filter(|parameter| parameter.shape.len() == rank);
        let inside = found.is_some_and(|parameter| !parameter.per_layer || self.layers.is_some());
        self.expect(inside, name, || format!("there is no parameter {id} of rank {rank} here"));
        found.map_or(vec![1; rank], |parameter| parameter.shape.clone())
    }

    /// A table has a row for every token or position, but where it is one rank's part.
    fn table(&mut self, name: &str, by: Lookup, rows: u64, part: bool) {
        if part && by == Lookup::Token && self.program.share.is_some() {
            return;
        }
        let needed = match by {
            Lookup::Token => self.program.model.vocab,
            Lookup::Position => self.program.model.max_seq,
        };
        self.expect(rows >= needed, name, || format!("{rows} rows of a table for {needed}"));
    }

    fn mask(&mut self, name: &str, mask: &Mask) {
        self.expect(mask.is_sound(), name, || format!("a mask for heads of a model of {:?}", mask.heads));
    }

    fn attention(&mut self, name: &str, heads: Heads, queries: &[BufferId], keys: &[BufferId]) {
        let Heads { heads, kv_heads } = heads;
        let fits = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
        self.expect(fits, name, || format!("{heads} heads do not share {kv_heads} key heads evenly"));
        let width = |id: &BufferId| self.program.buffers.get(*id).map_or(0, |buffer| buffer.width);
        let (q, k) = (queries.first().map_or(0, width), keys.first().map_or(0, width));
        let same = fits && q.is_multiple_of(heads) && k.is_multiple_of(kv_heads) && q / heads == k / kv_heads;
        self.expect(same, name, || format!("queries of {q} and keys of {k} have no common head width"));
        let all: Vec<BufferId> = queries.iter().chain(keys).copied().collect();
        self.same_rows(name, &all, Some(false));
        queries.iter().for_each(|id| self.row(name, *id, q));
        keys.iter().for_each(|id| self.row(name, *id, k));
    }

    /// Columns up to the end of a product.
    fn product(&mut self, name: &str, product: &Product) -> u64 {
        let shape = self.shape(name, product.weight, 2);
        let (inner, width) = match product.side {
            Side::Forward => (shape[1], shape[0]),
            Side::Backward => (shape[0], shape[1]),
        };
        self.row(name, product.x, inner);
        self.same_rows(name, &[product.x], Some(false));
        self.expect(product.column.is_multiple_of(PANEL), name, || "a product starts inside a panel".into());
        product.column.saturating_add(width)
    }

    fn writes(&mut self, name: &str, f: &RowFn) {
        self.expect(!f.outputs.is_empty(), name, || "has no outputs".into());
        for output in &f.outputs {
            let width = f.values.get(output.value).map_or(0, |value| value.width);
            match output.to {
                Target::Buffer(id) => {
                    self.row(name, id, width);
                    let read = f.values.iter().find_map(|value| match value.op {
                        RowOp::Buffer { buffer } => Some(buffer),
                        _ => None,
                    });
                    self.same_rows(name, &[[id], [read.unwrap_or(id)]].concat(), None);
                }
                Target::Cache(_) => self.expect(false, name, || "a training step has no cache".into()),
            }
        }
    }

    /// The buffers of a function have the same rows; those of tokens and positions are all of the batch's.
    fn rows_of_function(&mut self, name: &str, f: &RowFn, product: u64) {
        let mut ids = Vec::new();
        let mut whole = product > 0;
        for value in &f.values {
            match value.op {
                RowOp::Buffer { buffer } => ids.push(buffer),
                RowOp::Embedding { .. } | RowOp::Position { .. } | RowOp::Rotate { .. } => whole = true,
                _ => {}
            }
        }
        self.same_rows(name, &ids, whole.then_some(false));
    }

    fn function(&mut self, name: &str, f: &RowFn, product: u64) {
        self.rows_of_function(name, f, product);
        for (at, value) in f.values.iter().enumerate() {
            let width = value.width;
            for operand in value.op.operands() {
                let fits = operand < at && f.values[operand].width == width;
                self.expect(fits, name, || {
                    format!("value {at} reads {operand}, which is later or of another width")
                });
            }
            match value.op {
                RowOp::Buffer { buffer } => self.row(name, buffer, width),
                RowOp::Product { column } => {
                    let fits = column.saturating_add(width) <= product && column.is_multiple_of(PANEL);
                    self.expect(fits, name, || format!("columns from {column} on of a product of {product}"));
                }
                RowOp::Vector { parameter } => {
                    let shape = self.shape(name, parameter, 1);
                    self.expect(shape[0] == width, name, || format!("a vector of {} for {width}", shape[0]));
                }
                RowOp::Embedding { parameter, .. } | RowOp::Position { parameter } => {
                    let by = match value.op {
                        RowOp::Embedding { .. } => Lookup::Token,
                        _ => Lookup::Position,
                    };
                    let shape = self.shape(name, parameter, 2);
                    let part = matches!(value.op, RowOp::Embedding { part: Some(_), .. });
                    self.table(name, by, shape[0], part);
                    self.expect(shape[1] == width, name, || {
                        format!("table rows of {} for {width}", shape[1])
                    });
                }
                RowOp::Rotate { rotation, .. } => {
                    let head = self.program.rotations.get(rotation).map(|r| r.rotation.head_dim);
                    let fits = head.is_some_and(|d| d > 0 && width.is_multiple_of(d));
                    self.expect(fits, name, || format!("rotation {rotation} does not fit rows of {width}"));
                }
                RowOp::LastRow { .. } => self.expect(false, name, || "every row trains".into()),
                _ => {}
            }
        }
    }
}
