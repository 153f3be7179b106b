//! Proves that a program cannot fault: indices, widths, forms, and that memory is read only while it holds what is meant.
//!
//! The memory rule is checked by running the steps with names in place of numbers: every slot remembers which buffer
//! was written to it last, and a buffer may be read only while its slot remembers it. A loop body is run twice, so that
//! the second iteration starts from what the first one left.

use crate::program::{
    Buffer, BufferId, Cache, CacheId, CacheKind, Collective, CpuProgram, Form, KeyOp, Rotation, RowFn, RowOp,
    Rows, SCHEMA, Sizes, Step, Target, VERSION,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error;

/// A program that passed its check.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<P>(pub(super) P);

impl<P> std::ops::Deref for Checked<P> {
    type Target = P;
    fn deref(&self) -> &P {
        &self.0
    }
}

impl<P> Checked<P> {
    /// The program itself.
    pub fn into_inner(self) -> P {
        self.0
    }
}

/// One thing that is wrong with a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFault {
    /// The step, buffer or parameter.
    pub place: String,
    /// What was found and what was expected.
    pub what: String,
}

impl fmt::Display for ProgramFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Everything that is wrong with a program.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ProgramFaults(pub Vec<ProgramFault>);

impl ProgramFaults {
    /// A single fault.
    pub fn one(place: impl Into<String>, what: impl Into<String>) -> ProgramFaults {
        ProgramFaults(vec![ProgramFault { place: place.into(), what: what.into() }])
    }
}

impl fmt::Display for ProgramFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Sizes {
    /// The sizes that no program can have.
    pub(super) fn faults(&self) -> Vec<ProgramFault> {
        let sizes = [("layers", self.layers), ("vocab", self.vocab), ("max_seq", self.max_seq)];
        let wrong = sizes.into_iter().filter(|(_, size)| !(1..=LIMIT).contains(size));
        let fault = |(name, size)| ProgramFault {
            place: "model".into(),
            what: format!("{name} is {size}, expected 1 to {LIMIT}"),
        };
        wrong.map(fault).collect()
    }
}

impl CpuProgram {
    /// Checks the program.
    ///
    /// # Errors
    /// Every fault that was found; references out of range hide the faults behind them.
    pub fn check(self) -> Result<Checked<CpuProgram>, ProgramFaults> {
        let mut checker = Checker { program: &self, faults: Vec::new() };
        checker.header();
        checker.parameters();
        checker.shapes();
        checker.steps(&self.body, false);
        if checker.faults.is_empty() {
            checker.memory();
        }
        match checker.faults {
            faults if faults.is_empty() => Ok(Checked(self)),
            faults => Err(ProgramFaults(faults)),
        }
    }
}

/// Largest width, length or count in a program: products of two stay far below 2^63.
const LIMIT: u64 = 1 << 31;

struct Checker<'p> {
    program: &'p CpuProgram,
    faults: Vec<ProgramFault>,
}

impl Checker<'_> {
    fn fault(&mut self, place: &str, what: impl Into<String>) {
        self.faults.push(ProgramFault { place: place.into(), what: what.into() });
    }

    fn expect(&mut self, holds: bool, place: &str, what: impl FnOnce() -> String) {
        if !holds {
            self.fault(place, what());
        }
    }

    fn in_range(&mut self, place: &str, what: &str, value: u64) {
        self.expect((1..=LIMIT).contains(&value), place, || {
            format!("{what} is {value}, expected 1 to {LIMIT}")
        });
    }

    fn header(&mut self) {
        let p = self.program;
        self.expect(p.schema == SCHEMA, "schema", || format!("found `{}`, expected `{SCHEMA}`", p.schema));
        self.expect(p.version == VERSION, "version", || format!("found {}, expected {VERSION}", p.version));
        self.faults.extend(p.model.faults());
        if let Some(share) = &p.share {
            let whole = share.tensor.exists()
                && share.stage.exists()
                && share.stage.of <= LIMIT
                && share.tensor.of <= LIMIT;
            self.expect(whole, "share", || {
                format!("{:?} of stage {:?} does not exist", share.tensor, share.stage)
            });
            let fits = |part: &lapidary_models::shard::Part| {
                let end = part.start.saturating_add(part.length);
                part.axis < 2
                    && end <= part.whole
                    && part.length <= part.held
                    && part.held <= LIMIT
                    && part.whole <= LIMIT
            };
            let wrong = share.parts.iter().find(|(_, part)| !fits(part));
            self.expect(wrong.is_none(), "share", || format!("{wrong:?} is no part of a parameter"));
        }
        self.expect(p.logits < p.buffers.len(), "logits", || format!("there is no buffer {}", p.logits));
    }

    fn parameters(&mut self) {
        for p in &self.program.parameters {
            let star = |tensor: &str| tensor.contains('*') == p.per_layer;
            let tensors: Vec<(&str, u64, f64)> = match &p.form {
                Form::Matrix { segments, .. } => {
                    segments.iter().map(|s| (s.tensor.as_str(), s.rows, s.scale)).collect()
                }
                Form::Table { segment: s, .. } => vec![(&s.tensor, s.rows, s.scale)],
                Form::Vector { tensor, length, scale } => vec![(tensor, *length, *scale)],
            };
            self.expect(!tensors.is_empty(), &p.name, || "has no tensors".into());
            if let Form::Matrix { columns, .. } | Form::Table { columns, .. } = &p.form {
                self.in_range(&p.name, "columns", *columns);
            }
            for (tensor, rows, scale) in tensors {
                self.in_range(&p.name, "rows", rows);
                self.expect(scale.is_finite(), &p.name, || format!("scale of {tensor} is {scale}"));
                self.expect(star(tensor), &p.name, || format!("`*` in {tensor} does not fit per_layer"));
            }
        }
    }

    fn shapes(&mut self) {
        for b in &self.program.buffers {
            self.in_range(&b.name, "width", b.width);
            let slots = self.program.buffers.len();
            self.expect(b.slot < slots, &b.name, || format!("slot {} of at most {slots}", b.slot));
        }
        for c in &self.program.caches {
            self.in_range("cache", "heads", c.heads);
            self.in_range("cache", "head_dim", c.head_dim);
        }
        for Rotation { head_dim, rope } in &self.program.rotations {
            let fits = rope.rot_dims.is_multiple_of(2)
                && (2..=*head_dim).contains(&rope.rot_dims)
                && *head_dim <= LIMIT;
            self.expect(fits, "rotation", || format!("rotates {} of {head_dim} dimensions", rope.rot_dims));
        }
    }

    fn steps(&mut self, steps: &[Step], inside: bool) {
        for step in steps {
            match step {
                Step::Rows { name, rows, function } => self.function(name, *rows, function, None, inside),
                Step::Linear { name, rows, x, weight, function } => {
                    let product = self.product(name, *rows, *x, *weight, inside);
                    self.function(name, *rows, function, Some(product), inside);
                }
                Step::Attention { name, q, k, v, out, heads, scale, mask } => {
                    self.expect(scale.is_finite(), name, || format!("scale is {scale}"));
                    self.expect(mask.is_sound(), name, || format!("a mask for heads of {:?}", mask.heads));
                    self.heads(name, *k, CacheKind::Key, *q, *heads, inside);
                    self.heads(name, *v, CacheKind::Value, *out, *heads, inside);
                    let same = |c: &Cache| (c.heads, c.head_dim);
                    let (k, v) =
                        (self.program.caches.get(*k).map(same), self.program.caches.get(*v).map(same));
                    self.expect(k == v, name, || "keys and values have different heads".into());
                }
                Step::Scores { name, q, k, out, heads } => {
                    self.heads(name, *k, CacheKind::Key, *q, *heads, inside);
                    self.keyed(name, *out, *heads);
                }
                Step::Keys { name, x, out, heads, op } => {
                    self.keyed(name, *x, *heads);
                    self.keyed(name, *out, *heads);
                    match op {
                        KeyOp::Scale { by } => {
                            self.expect(by.is_finite(), name, || format!("scale is {by}"));
                        }
                        KeyOp::Mask(mask) => {
                            self.expect(mask.is_sound(), name, || {
                                format!("a mask for heads of {:?}", mask.heads)
                            });
                        }
                        KeyOp::Softmax => {}
                    }
                }
                Step::Values { name, p, v, out, heads } => {
                    self.keyed(name, *p, *heads);
                    self.heads(name, *v, CacheKind::Value, *out, *heads, inside);
                }
                Step::Repeat { name, carried, yielded, body } => {
                    self.repeat(name, *carried, *yielded, body, inside)
                }
                Step::Collective { name, rows, op, x, out } => self.collective(name, *rows, *op, *x, *out),
            }
        }
    }

    fn buffer(&mut self, place: &str, id: BufferId) -> Option<&Buffer> {
        let found = self.program.buffers.get(id);
        self.expect(found.is_some(), place, || format!("there is no buffer {id}"));
        found
    }

    /// A buffer with a plain width and the given rows.
    fn plain(&mut self, place: &str, id: BufferId, width: u64, rows: Rows) {
        let Some(b) = self.buffer(place, id).cloned() else { return };
        let fits = b.width == width && b.rows == rows && !b.per_key;
        self.expect(fits, place, || {
            format!("{} has width {} over {:?}, expected {width} over {rows:?}", b.name, b.width, b.rows)
        });
    }

    fn keyed(&mut self, place: &str, id: BufferId, heads: u64) {
        let Some(b) = self.buffer(place, id).cloned() else { return };
        let fits = b.width == heads && b.rows == Rows::Tokens && b.per_key;
        self.expect(fits, place, || format!("{} does not hold {heads} scores per token and key", b.name));
    }

    fn repeat(&mut self, name: &str, carried: BufferId, yielded: BufferId, body: &[Step], inside: bool) {
        self.expect(!inside, name, || "a repeat inside a repeat".into());
        let find = |id: BufferId| self.program.buffers.get(id);
        let same = match (find(carried), find(yielded)) {
            (Some(a), Some(b)) => {
                a.width == b.width && a.rows == b.rows && !a.per_key && !b.per_key && a.slot != b.slot
            }
            _ => false,
        };
        self.expect(same, name, || "carried and yielded must be alike and in different slots".into());
        self.steps(body, true);
    }

    fn collective(&mut self, name: &str, rows: Rows, op: Collective, x: Option<BufferId>, out: BufferId) {
        let Some(share) = &self.program.share else {
            return self.fault(name, "ranks meet in a program that is no rank's: it has no `share`");
        };
        let (tensor, stage) = (share.tensor, share.stage);
        let widths = [Some(out), x].map(|id| id.and_then(|id| self.program.buffers.get(id)).map(|b| b.width));
        let fits = match (op, widths) {
            (Collective::AllReduce, [Some(out), Some(x)]) => out == x,
            (Collective::AllGather, [Some(out), Some(x)]) => out <= x.saturating_mul(tensor.of) && x <= out,
            (Collective::Send { stage: to }, [Some(out), Some(x)]) => {
                out == x && to == stage.index + 1 && to < stage.of
            }
            (Collective::Receive { stage: from }, [Some(_), None]) => from + 1 == stage.index,
            _ => false,
        };
        self.expect(fits, name, || {
            format!(
                "{op:?} of buffer {x:?} into buffer {out} does not fit rank {tensor:?} of stage {stage:?}"
            )
        });
        for id in x.into_iter().chain([out]) {
            let Some(b) = self.buffer(name, id).cloned() else { continue };
            self.plain(name, id, b.width, rows);
        }
    }

    fn heads(
        &mut self,
        name: &str,
        cache: CacheId,
        kind: CacheKind,
        buffer: BufferId,
        heads: u64,
        inside: bool,
    ) {
        self.expect(inside, name, || "attention outside of the layers".into());
        self.in_range(name, "heads", heads);
        let Some(c) = self.program.caches.get(cache).copied() else {
            return self.fault(name, format!("there is no cache {cache}"));
        };
        self.expect(c.kind == kind, name, || format!("cache {cache} holds {:?}s", c.kind));
        self.expect(c.heads > 0 && heads.is_multiple_of(c.heads), name, || {
            format!("{heads} heads do not share {} key heads evenly", c.heads)
        });
        self.plain(name, buffer, heads.saturating_mul(c.head_dim), Rows::Tokens);
    }

    /// Width of the product of a linear step.
    fn product(&mut self, name: &str, rows: Rows, x: BufferId, weight: usize, inside: bool) -> u64 {
        let Some(parameter) = self.program.parameters.get(weight) else {
            self.fault(name, format!("there is no parameter {weight}"));
            return 0;
        };
        self.expect(inside || !parameter.per_layer, name, || {
            format!("{} belongs to a layer", parameter.name)
        });
        let Form::Matrix { columns, .. } = &parameter.form else {
            self.fault(name, format!("{} is not a matrix", parameter.name));
            return 0;
        };
        self.plain(name, x, *columns, rows);
        parameter.form.starts().last().copied().unwrap_or(0)
    }

    fn function(&mut self, name: &str, rows: Rows, f: &RowFn, product: Option<u64>, inside: bool) {
        for (at, value) in f.values.iter().enumerate() {
            self.in_range(name, "width", value.width);
            for operand in value.op.operands() {
                let fits = operand < at && f.values[operand].width == value.width;
                self.expect(fits, name, || {
                    format!("value {at} reads {operand}, which is later or of another width")
                });
            }
            self.value(name, rows, value.op, value.width, product, inside);
        }
        for output in &f.outputs {
            let Some(value) = f.values.get(output.value) else {
                return self.fault(name, format!("there is no value {}", output.value));
            };
            match output.to {
                Target::Buffer(id) => self.plain(name, id, value.width, rows),
                Target::Cache(id) => self.stores(name, id, value.width, rows, inside),
            }
        }
        self.expect(!f.outputs.is_empty(), name, || "has no outputs".into());
    }

    fn stores(&mut self, name: &str, id: CacheId, width: u64, rows: Rows, inside: bool) {
        let wanted = self.program.caches.get(id).map(|c| c.heads.saturating_mul(c.head_dim));
        let fits = wanted == Some(width) && rows == Rows::Tokens && inside;
        self.expect(fits, name, || format!("cannot store {width} values of {rows:?} into cache {id}"));
    }

    fn value(&mut self, name: &str, rows: Rows, op: RowOp, width: u64, product: Option<u64>, inside: bool) {
        match op {
            RowOp::Buffer { buffer } => self.plain(name, buffer, width, rows),
            RowOp::LastRow { buffer } => {
                self.expect(rows == Rows::Last, name, || "a last row among all tokens".into());
                self.plain(name, buffer, width, Rows::Tokens);
            }
            RowOp::Product { column } => {
                let end = column.saturating_add(width);
                let fits = product.is_some_and(|n| end <= n) && column.is_multiple_of(16);
                self.expect(fits, name, || format!("columns {column} to {end} of a product of {product:?}"));
            }
            RowOp::Vector { parameter }
            | RowOp::Embedding { parameter, .. }
            | RowOp::Position { parameter } => {
                self.constant(name, op, parameter, width, inside);
            }
            RowOp::Scale { by, .. } => self.expect(by.is_finite(), name, || format!("scale is {by}")),
            RowOp::Norm { eps, .. } | RowOp::NormDx { eps, .. } => {
                self.expect(eps.is_finite() && eps >= 0.0, name, || format!("eps is {eps}"))
            }
            RowOp::Rotate { rotation, .. } => {
                let head = self.program.rotations.get(rotation).map(|r| r.head_dim);
                let fits = head.is_some_and(|d| d > 0 && width.is_multiple_of(d)) && rows == Rows::Tokens;
                self.expect(fits, name, || format!("rotation {rotation} does not fit rows of {width}"));
            }
            RowOp::Add { .. } | RowOp::Mul { .. } | RowOp::Activation { .. } | RowOp::Slope { .. } => {}
        }
        let by_token = matches!(op, RowOp::Embedding { .. } | RowOp::Position { .. });
        self.expect(!by_token || rows == Rows::Tokens, name, || "looks up tokens among last rows".into());
    }

    fn constant(&mut self, name: &str, op: RowOp, parameter: usize, width: u64, inside: bool) {
        let Some(p) = self.program.parameters.get(parameter) else {
            return self.fault(name, format!("there is no parameter {parameter}"));
        };
        let (vocab, max_seq) = (self.program.model.vocab, self.program.model.max_seq);
        let fits = match (&p.form, op) {
            (Form::Vector { length, .. }, RowOp::Vector { .. }) => *length == width,
            (Form::Table { columns, segment, .. }, RowOp::Embedding { part, .. }) => {
                *columns == width && (part.is_some() || segment.rows >= vocab)
            }
            (Form::Table { columns, segment, .. }, RowOp::Position { .. }) => {
                *columns == width && segment.rows >= max_seq
            }
            (Form::Matrix { columns, segments, .. }, RowOp::Embedding { part, .. }) => {
                *columns == width && segments.first().is_some_and(|s| part.is_some() || s.rows >= vocab)
            }
            _ => false,
        };
        self.expect(fits, name, || format!("{} cannot be read so, with rows of {width}", p.name));
        self.expect(inside || !p.per_layer, name, || format!("{} belongs to a layer", p.name));
    }

    fn memory(&mut self) {
        let mut state = Memory { program: self.program, owner: BTreeMap::new(), stored: BTreeSet::new() };
        let done = state.run(&self.program.body).and_then(|()| state.read("logits", self.program.logits));
        if let Err(fault) = done {
            self.faults.push(fault);
        }
    }
}

/// Which buffer each slot holds, and which caches the current layer has stored.
struct Memory<'p> {
    program: &'p CpuProgram,
    owner: BTreeMap<usize, BufferId>,
    stored: BTreeSet<CacheId>,
}

impl Memory<'_> {
    fn run(&mut self, steps: &[Step]) -> Result<(), ProgramFault> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<(), ProgramFault> {
        let name = step.name();
        match step {
            Step::Rows { function, .. } => self.function(name, function, None),
            Step::Linear { x, function, .. } => self.function(name, function, Some(*x)),
            Step::Attention { q, k, v, out, .. } => {
                self.cached(name, *k)?;
                self.cached(name, *v)?;
                self.move_through(name, &[*q], &[*out])
            }
            Step::Scores { q, k, out, .. } => {
                self.cached(name, *k)?;
                self.move_through(name, &[*q], &[*out])
            }
            Step::Keys { x, out, .. } => self.move_through(name, &[*x], &[*out]),
            Step::Values { p, v, out, .. } => {
                self.cached(name, *v)?;
                self.move_through(name, &[*p], &[*out])
            }
            Step::Collective { x, out, .. } => self.move_through(name, x.as_slice(), &[*out]),
            Step::Repeat { carried, yielded, body, .. } => {
                for _ in 0..2 {
                    self.stored.clear();
                    self.run(body)?;
                    self.read(name, *yielded)?;
                    self.owner.insert(self.slot(*carried), *carried);
                    self.owner.remove(&self.slot(*yielded));
                }
                self.stored.clear();
                Ok(())
            }
        }
    }

    fn function(&mut self, name: &str, f: &RowFn, x: Option<BufferId>) -> Result<(), ProgramFault> {
        let sources = f.values.iter().filter_map(|v| match v.op {
            RowOp::Buffer { buffer } | RowOp::LastRow { buffer } => Some(buffer),
            _ => None,
        });
        let reads: Vec<BufferId> = sources.chain(x).collect();
        let mut writes = Vec::new();
        for output in &f.outputs {
            match output.to {
                Target::Buffer(id) => writes.push(id),
                Target::Cache(id) => {
                    self.stored.insert(id);
                }
            }
        }
        self.move_through(name, &reads, &writes)
    }

    fn slot(&self, id: BufferId) -> usize {
        self.program.buffers[id].slot
    }

    fn read(&self, name: &str, id: BufferId) -> Result<(), ProgramFault> {
        match self.owner.get(&self.slot(id)) {
            Some(owner) if *owner == id => Ok(()),
            found => {
                let held = found.map_or("nothing", |b| self.program.buffers[*b].name.as_str());
                let what = format!("reads {}, but its slot holds {held}", self.program.buffers[id].name);
                Err(ProgramFault { place: name.into(), what })
            }
        }
    }

    fn cached(&self, name: &str, id: CacheId) -> Result<(), ProgramFault> {
        match self.stored.contains(&id) {
            true => Ok(()),
            false => Err(ProgramFault {
                place: name.into(),
                what: format!("reads cache {id} before this layer stored it"),
            }),
        }
    }

    /// Reads, then writes; no slot may be on both sides, nor twice on the right.
    fn move_through(
        &mut self,
        name: &str,
        reads: &[BufferId],
        writes: &[BufferId],
    ) -> Result<(), ProgramFault> {
        reads.iter().try_for_each(|id| self.read(name, *id))?;
        let mut taken: BTreeSet<usize> = reads.iter().map(|id| self.slot(*id)).collect();
        for id in writes {
            if !taken.insert(self.slot(*id)) {
                let what = format!("writes {} over memory it uses", self.program.buffers[*id].name);
                return Err(ProgramFault { place: name.into(), what });
            }
            self.owner.insert(self.slot(*id), *id);
        }
        Ok(())
    }
}
