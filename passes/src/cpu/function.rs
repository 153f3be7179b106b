//! Emits steps: every part of a kernel becomes one, and values that pass between parts become buffers.

use crate::cpu::parameters::Parameters;
use crate::cpu::parts::{Chain, Part, Uses, left_operand, parts};
use crate::cpu::{HostFunction, HostModule, HostParam, LowerError, Options, slots};
use lapidary_models::op::{Cache as CacheHalf, Sharded};
use lapidary_models::spec::Rope;
use lapidary_models::{Node, Op, ValueId};
use lapidary_runtime_cpu::program::{
    Buffer, BufferId, Cache, CacheId, CacheKind, Collective, CpuProgram, KeyOp, Mask, PANEL, Rotation,
    RotationId, RowFn, RowOp, Rows, SCHEMA, Step, Target, VERSION, WeightType,
};
use std::collections::{BTreeMap, BTreeSet};

/// A program while it is emitted.
pub struct Emitter<'m> {
    module: &'m HostModule,
    parameters: Parameters,
    rotations: Vec<Rotation>,
    /// Element type of caches.
    cache: WeightType,
    caches: Vec<Cache>,
    buffers: Vec<Buffer>,
}

/// What a value of a function is to the steps.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Buffer(BufferId),
    Cache(CacheId),
}

/// A function while its steps are emitted.
struct Scope<'m> {
    host: &'m HostFunction,
    uses: Uses<'m>,
    held: BTreeMap<ValueId, Held>,
    rows: BTreeMap<ValueId, Rows>,
}

type Lowered<T> = Result<T, LowerError>;

fn unsupported<T>(node: &Node, what: impl Into<String>) -> Lowered<T> {
    Err(LowerError::Unsupported { node: node.name.clone(), what: what.into() })
}

impl<'m> Emitter<'m> {
    /// An empty program.
    pub fn new(module: &'m HostModule, options: &Options) -> Emitter<'m> {
        Emitter {
            module,
            parameters: Parameters::new(options.weights),
            cache: options.cache,
            rotations: Vec::new(),
            caches: Vec::new(),
            buffers: Vec::new(),
        }
    }

    /// The program of the module.
    ///
    /// # Errors
    /// Where an op has no place on the host.
    pub fn emit(mut self) -> Lowered<CpuProgram> {
        let mut scope = Scope::new(&self.module.main);
        let body = self.steps(&mut scope)?;
        let result = scope.uses.function.results.first().and_then(|id| scope.held.get(id));
        let Some(Held::Buffer(logits)) = result.copied() else {
            let node = &scope.uses.function.nodes[0];
            return unsupported(node, "main returns no activation");
        };
        slots::assign(&mut self.buffers, &body, logits);
        Ok(CpuProgram {
            schema: SCHEMA.into(),
            version: VERSION,
            model: self.module.model.clone(),
            parameters: self.parameters.list,
            rotations: self.rotations,
            caches: self.caches,
            buffers: self.buffers,
            body,
            logits,
            share: self.module.share.clone(),
        })
    }

    fn steps(&mut self, scope: &mut Scope<'m>) -> Lowered<Vec<Step>> {
        let mut steps = Vec::new();
        for kernel in &scope.host.kernels {
            let parts = parts(&scope.uses, kernel);
            let factors: BTreeSet<usize> = kernel.iter().copied().collect();
            for part in parts {
                steps.push(match part {
                    Part::Rows(nodes) => self.rows(scope, &nodes)?,
                    Part::Linear { x, linears, epilogue } => {
                        self.linear(scope, x, &linears, &epilogue, &factors)?
                    }
                    Part::Attention(chain) => self.attention(scope, &chain)?,
                    Part::Scores(n) => self.scores(scope, n)?,
                    Part::Repeat(n) => self.repeat(scope, n)?,
                    Part::Collective(n) => self.collective(scope, n)?,
                });
            }
        }
        Ok(steps)
    }

    fn buffer(&mut self, name: &str, width: u64, rows: Rows, per_key: bool) -> BufferId {
        self.buffers.push(Buffer { name: name.into(), width, rows, per_key, slot: 0 });
        self.buffers.len() - 1
    }

    /// A buffer for the result of a node, and the note that it is there.
    fn result(&mut self, scope: &mut Scope, node: &Node) -> BufferId {
        let shape = &scope.uses.function.ty(node.output).shape;
        let (width, per_key) = match shape[..] {
            [_, heads, _, _] => (heads, true),
            _ => (shape.last().copied().unwrap_or(1), false),
        };
        let rows = scope.rows_of(node);
        let id = self.buffer(&node.name, width, rows, per_key);
        scope.held.insert(node.output, Held::Buffer(id));
        scope.rows.insert(node.output, rows);
        id
    }

    fn repeat(&mut self, scope: &mut Scope, n: usize) -> Lowered<Step> {
        let node = scope.uses.node(n);
        let carried = scope.buffer_of(node, node.inputs[0])?;
        let alone = BTreeSet::from([n]);
        if scope.uses.escapes(node.inputs[0], &alone) {
            return unsupported(node, "its operand is needed after it, and the loop overwrites it");
        }
        let mut inner = Scope::new(&self.module.layer);
        let [argument] = inner.uses.function.arguments[..] else {
            return unsupported(node, "the layer function takes one activation");
        };
        inner.held.insert(argument, Held::Buffer(carried));
        let body = self.steps(&mut inner)?;
        let Some(Held::Buffer(yielded)) =
            inner.uses.function.results.first().and_then(|id| inner.held.get(id)).copied()
        else {
            return unsupported(node, "the layer function returns no activation");
        };
        scope.held.insert(node.output, Held::Buffer(carried));
        Ok(Step::Repeat { name: node.name.clone(), carried, yielded, body })
    }

    fn collective(&mut self, scope: &mut Scope, n: usize) -> Lowered<Step> {
        let node = scope.uses.node(n);
        let op = match node.op {
            Op::Sharded(Sharded::AllReduce) => Collective::AllReduce,
            Op::Sharded(Sharded::AllGather { .. }) => Collective::AllGather,
            Op::Sharded(Sharded::Send { stage, .. }) => Collective::Send { stage },
            Op::Sharded(Sharded::Receive { stage, .. }) => Collective::Receive { stage },
            _ => return unsupported(node, "ranks do not meet in this op"),
        };
        let x = node.inputs.first().map(|x| scope.buffer_of(node, *x)).transpose()?;
        let (name, rows) = (node.name.clone(), scope.rows_of(node));
        Ok(Step::Collective { name, rows, op, x, out: self.result(scope, node) })
    }

    fn rows(&mut self, scope: &mut Scope, nodes: &[usize]) -> Lowered<Step> {
        let first = scope.uses.node(nodes[0]);
        let rows = scope.rows_of(first);
        let function = self.function(scope, nodes, BTreeMap::new(), RowFn::default())?;
        let last = scope.uses.node(nodes[nodes.len() - 1]);
        Ok(Step::Rows { name: last.name.clone(), rows, function })
    }

    fn linear(
        &mut self,
        scope: &mut Scope,
        x: ValueId,
        linears: &[usize],
        epilogue: &[usize],
        kernel: &BTreeSet<usize>,
    ) -> Lowered<Step> {
        let first = scope.uses.node(linears[0]);
        let x_buffer = scope.buffer_of(first, x)?;
        let rows = scope.rows.get(&x).copied().unwrap_or(Rows::Tokens);
        let mut sources = Vec::new();
        for n in linears {
            let node = scope.uses.node(*n);
            sources.push((scope.param(node, 1)?.clone(), scope.uses.function.ty(node.inputs[1]).shape[0]));
        }
        let columns = scope.uses.function.ty(first.inputs[1]).shape[1];
        let weight = self.parameters.matrix(columns, &sources);
        let starts = self.parameters.list[weight].form.starts();
        debug_assert!(starts.iter().all(|start| start.is_multiple_of(PANEL)));
        let mut function = RowFn::default();
        let mut known = BTreeMap::new();
        for ((n, (_, width)), column) in linears.iter().zip(&sources).zip(starts) {
            let node = scope.uses.node(*n);
            let mut value = function.push(*width, RowOp::Product { column });
            let factor = left_operand(&scope.uses, *n, kernel).1;
            if factor != 1.0 {
                value = function.push(*width, RowOp::Scale { x: value, by: factor });
            }
            known.insert(node.output, value);
            scope.rows.insert(node.output, rows);
        }
        let nodes: Vec<usize> = linears.iter().chain(epilogue).copied().collect();
        let function = self.function(scope, &nodes, known, function)?;
        let last = scope.uses.node(nodes[nodes.len() - 1]);
        Ok(Step::Linear { name: last.name.clone(), rows, x: x_buffer, weight, function })
    }

    /// The function of a part's nodes; `known` are values that it starts from.
    fn function(
        &mut self,
        scope: &mut Scope,
        nodes: &[usize],
        mut known: BTreeMap<ValueId, usize>,
        mut function: RowFn,
    ) -> Lowered<RowFn> {
        let inside: BTreeSet<usize> = nodes.iter().copied().collect();
        for n in nodes {
            let node = scope.uses.node(*n);
            if let Op::KvAppend { cache, .. } = node.op {
                self.store(scope, node, cache, &mut known, &mut function)?;
                continue;
            }
            if node.op != Op::Linear {
                let op = self.row_op(scope, node, &mut known, &mut function)?;
                let width = scope.width(node.output);
                known.insert(node.output, function.push(width, op));
                let rows = scope.rows_of(node);
                scope.rows.insert(node.output, rows);
            }
            if scope.uses.escapes(node.output, &inside) {
                let to = Target::Buffer(self.result(scope, node));
                function.send(known[&node.output], to);
            }
        }
        Ok(function)
    }

    fn store(
        &mut self,
        scope: &mut Scope,
        node: &Node,
        half: CacheHalf,
        known: &mut BTreeMap<ValueId, usize>,
        function: &mut RowFn,
    ) -> Lowered<()> {
        let width = scope.width(node.inputs[0]);
        let Some(heads) = scope.kv_heads(node.output) else {
            return unsupported(node, "no attention reads this cache");
        };
        let kind = match half {
            CacheHalf::Key => CacheKind::Key,
            CacheHalf::Value => CacheKind::Value,
        };
        let cache = Cache { kind, heads, head_dim: width / heads.max(1), dtype: self.cache };
        let id = self.caches.iter().position(|c| *c == cache).unwrap_or_else(|| {
            self.caches.push(cache);
            self.caches.len() - 1
        });
        let value = self.operand(scope, node, 0, known, function)?;
        function.send(value, Target::Cache(id));
        scope.held.insert(node.output, Held::Cache(id));
        Ok(())
    }

    /// The value of an operand, read from memory if the function does not have it yet.
    fn operand(
        &mut self,
        scope: &Scope,
        node: &Node,
        at: usize,
        known: &mut BTreeMap<ValueId, usize>,
        function: &mut RowFn,
    ) -> Lowered<usize> {
        let id = node.inputs[at];
        if let Some(value) = known.get(&id) {
            return Ok(*value);
        }
        let width = scope.width(id);
        let op = match scope.param(node, at) {
            Ok(param) => RowOp::Vector { parameter: self.parameters.vector(param, width) },
            Err(_) => {
                let buffer = scope.buffer_of(node, id)?;
                match node.op {
                    Op::LastToken => RowOp::LastRow { buffer },
                    _ => RowOp::Buffer { buffer },
                }
            }
        };
        let value = function.push(width, op);
        known.insert(id, value);
        Ok(value)
    }

    fn row_op(
        &mut self,
        scope: &Scope,
        node: &Node,
        known: &mut BTreeMap<ValueId, usize>,
        function: &mut RowFn,
    ) -> Lowered<RowOp> {
        let mut operand = |emitter: &mut Self, at| emitter.operand(scope, node, at, known, function);
        Ok(match node.op {
            Op::Embed | Op::Sharded(Sharded::EmbedPart { .. }) => self.embedding(scope, node)?,
            Op::Position { .. } => {
                let a = operand(self, 0)?;
                let (param, shape) = (scope.param(node, 1)?, &scope.uses.function.ty(node.inputs[1]).shape);
                let parameter = self.parameters.table(shape[1], param, shape[0]);
                RowOp::Add { a, b: function.push(shape[1], RowOp::Position { parameter }) }
            }
            Op::Bias | Op::Add => RowOp::Add { a: operand(self, 0)?, b: operand(self, 1)? },
            Op::Mul => RowOp::Mul { a: operand(self, 0)?, b: operand(self, 1)? },
            Op::Scale { by, .. } => RowOp::Scale { x: operand(self, 0)?, by },
            Op::Activation(activation) => RowOp::Activation { x: operand(self, 0)?, function: activation },
            Op::Norm { kind, eps } => {
                let (x, weight) = (operand(self, 0)?, operand(self, 1)?);
                let bias = if node.inputs.len() > 2 { Some(operand(self, 2)?) } else { None };
                RowOp::Norm { x, weight, bias, kind, eps }
            }
            Op::Rope { head_dim, rot_dims, pairing, theta, scaling, .. } => {
                let rope = Rope { theta, rot_dims, pairing, scaling };
                RowOp::Rotate { x: operand(self, 0)?, rotation: self.rotation(Rotation { head_dim, rope }) }
            }
            // A function over last rows reads the last row; passing it on is a factor of one.
            Op::LastToken => RowOp::Scale { x: operand(self, 0)?, by: 1.0 },
            _ => return unsupported(node, "this op is no function of a row"),
        })
    }

    fn rotation(&mut self, rotation: Rotation) -> RotationId {
        self.rotations.iter().position(|known| *known == rotation).unwrap_or_else(|| {
            self.rotations.push(rotation);
            self.rotations.len() - 1
        })
    }

    /// A tied head lets the lookup read the head's packed matrix, so the table is in memory once.
    fn embedding(&mut self, scope: &Scope, node: &Node) -> Lowered<RowOp> {
        let table = scope.param(node, 1)?;
        let shape = &scope.uses.function.ty(node.inputs[1]).shape;
        let tied = |other: &Node| other.op == Op::Linear && scope.param(other, 1).is_ok_and(|p| p == table);
        let parameter = match scope.uses.function.nodes.iter().any(tied) {
            true => self.parameters.matrix(shape[1], &[(table.clone(), shape[0])]),
            false => self.parameters.table(shape[1], table, shape[0]),
        };
        let part = match node.op {
            Op::Sharded(Sharded::EmbedPart { first }) => Some(first),
            _ => None,
        };
        Ok(RowOp::Embedding { parameter, part })
    }

    fn attention(&mut self, scope: &mut Scope, chain: &Chain) -> Lowered<Step> {
        let (scores, values) = (scope.uses.node(chain.scores), scope.uses.node(chain.values));
        let (q, k) = (scope.buffer_of(scores, scores.inputs[0])?, scope.cache_of(scores, scores.inputs[1])?);
        let v = scope.cache_of(values, values.inputs[1])?;
        let Op::Scores { heads, .. } = scores.op else {
            return unsupported(scores, "is not the start of an attention");
        };
        let mut scale = 1.0;
        let mut mask = Mask::OPEN;
        for n in &chain.before {
            match scope.uses.node(*n).op {
                // Behind the mask a factor acts on ALiBi's bias too; what is hidden stays hidden.
                Op::Scale { by, .. } => {
                    scale *= by;
                    mask.alibi = mask.alibi.map(|slope| slope * by);
                }
                Op::Mask { causal, window, alibi, heads, .. } => mask = Mask { causal, window, alibi, heads },
                _ => {}
            }
        }
        let out = self.result(scope, values);
        Ok(Step::Attention { name: values.name.clone(), q, k, v, out, heads, scale, mask })
    }

    fn scores(&mut self, scope: &mut Scope, n: usize) -> Lowered<Step> {
        let node = scope.uses.node(n);
        let name = node.name.clone();
        let key_op = match node.op {
            Op::Scores { heads, .. } => {
                let (q, k) = (scope.buffer_of(node, node.inputs[0])?, scope.cache_of(node, node.inputs[1])?);
                return Ok(Step::Scores { name, q, k, out: self.result(scope, node), heads });
            }
            Op::Values { heads, .. } => {
                let (p, v) = (scope.buffer_of(node, node.inputs[0])?, scope.cache_of(node, node.inputs[1])?);
                return Ok(Step::Values { name, p, v, out: self.result(scope, node), heads });
            }
            Op::Scale { by, .. } => KeyOp::Scale { by },
            Op::Mask { causal, window, alibi, heads, .. } => {
                KeyOp::Mask(Mask { causal, window, alibi, heads })
            }
            Op::Softmax => KeyOp::Softmax,
            _ => return unsupported(node, "this op does not work on scores"),
        };
        let x = scope.buffer_of(node, node.inputs[0])?;
        let out = self.result(scope, node);
        Ok(Step::Keys { name, x, out, heads: self.buffers[out].width, op: key_op })
    }
}

impl<'m> Scope<'m> {
    fn new(host: &'m HostFunction) -> Scope<'m> {
        Scope { host, uses: Uses::new(&host.function), held: BTreeMap::new(), rows: BTreeMap::new() }
    }

    fn width(&self, value: ValueId) -> u64 {
        self.uses.function.ty(value).shape.last().copied().unwrap_or(1)
    }

    /// Which rows a node's result has: all tokens, or the last ones behind `last_token`.
    fn rows_of(&self, node: &Node) -> Rows {
        let last = |id: &ValueId| self.rows.get(id) == Some(&Rows::Last);
        if node.op == Op::LastToken || node.inputs.iter().any(last) { Rows::Last } else { Rows::Tokens }
    }

    fn buffer_of(&self, node: &Node, value: ValueId) -> Lowered<BufferId> {
        match self.held.get(&value) {
            Some(Held::Buffer(id)) => Ok(*id),
            Some(Held::Cache(_)) => unsupported(node, "reads a whole cache as an activation"),
            None => unsupported(node, "reads a value that no earlier kernel makes"),
        }
    }

    fn cache_of(&self, node: &Node, value: ValueId) -> Lowered<CacheId> {
        match self.held.get(&value) {
            Some(Held::Cache(id)) => Ok(*id),
            _ => unsupported(node, "its keys or values are not cached: lower a prefill or decode graph"),
        }
    }

    /// The parameter that an operand of a node is.
    fn param(&self, node: &Node, at: usize) -> Lowered<&HostParam> {
        let maker = node.inputs.get(at).and_then(|id| self.uses.maker(*id)).map(|n| &self.uses.node(n).op);
        match maker {
            Some(Op::Param { param }) if *param < self.host.params.len() => Ok(&self.host.params[*param]),
            _ => unsupported(node, format!("operand {at} is no parameter")),
        }
    }

    /// Key-value heads of the attention that reads a cache.
    fn kv_heads(&self, cache: ValueId) -> Option<u64> {
        self.uses.function.nodes.iter().find_map(|node| match node.op {
            Op::Scores { kv_heads, .. } | Op::Values { kv_heads, .. }
                if node.inputs.get(1) == Some(&cache) =>
            {
                Some(kv_heads)
            }
            _ => None,
        })
    }
}
