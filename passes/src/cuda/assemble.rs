//! From a function of fused regions to a whole program: buffers, memory plan, parameters, steps.
//!
//! Decides where every value lives. The value that a repeat carries from round to round lives in one place: a round's last
//! kernel writes over its input where that is safe, else a copy does. Caches are written in place. What is left shares the
//! arena as the memory plan says.
use super::spec::{Anchor, Input, KernelOp, KernelSpec, OpSpec, Source, TensorType, ValueId};
use super::{Choice, CudaError, GeneratedKernel, KernelArg, LibraryProduct, Operand, Options, lower_kernel};
use lapidary_runtime_gpu::memory::{ALIGNMENT, Interval, lifetimes, plan_memory};
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, Gemm, GpuProgram, Kernel, KernelKind, Launch, Layers, Packing, RowOrder,
    SCHEMA, Step,
};
use std::collections::BTreeMap;

/// A function made of fused regions and repeats.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleSpec {
    /// What is computed, for people.
    pub name: String,
    /// Real architecture, such as `sm_80`.
    pub arch: String,
    /// Every value that lives in memory between kernels.
    pub values: Vec<ValueSpec>,
    /// Values that the caller provides (token ids).
    pub inputs: Vec<usize>,
    /// Values that the caller reads.
    pub outputs: Vec<usize>,
    /// What is done, in order.
    pub body: Vec<Node>,
}

/// A value in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueSpec {
    /// Name, unique in the module; the buffer is called so.
    pub name: String,
    /// Type.
    pub ty: TensorType,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A region. `args` are the values of its activation inputs in order, `results` those of its outputs.
    Kernel {
        /// The region.
        spec: KernelSpec,
        /// One value per activation input.
        args: Vec<usize>,
        /// One value per output.
        results: Vec<usize>,
    },
    /// The same body several times, each round with the next layer's parameters and caches.
    Repeat {
        /// Number of rounds.
        times: u64,
        /// The value that enters the first round.
        input: usize,
        /// Its name within the body.
        param: usize,
        /// One round.
        body: Vec<Node>,
        /// What a round hands to the next one.
        yielded: usize,
        /// What the last round leaves.
        result: usize,
    },
}

/// A program and the texts of its generated kernels.
#[derive(Debug, Clone, PartialEq)]
pub struct Lowered {
    /// Checked.
    pub program: GpuProgram,
    /// In the order of their first launch.
    pub sources: Vec<KernelSource>,
}

/// The text of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSource {
    /// Name and entry point.
    pub name: String,
    /// Place within the artifact.
    pub file: String,
    /// CUDA C++.
    pub text: String,
}

/// Lowers a module to a program that passes its check.
pub fn lower(module: &ModuleSpec, options: &Options) -> Result<Lowered, CudaError> {
    let mut assembler = Assembler::new(module, options)?;
    let steps = assembler.nodes(&module.body, None)?;
    let program = assembler.program(steps)?;
    let sources = assembler.sources;
    match program.check() {
        Ok(checked) => Ok(Lowered { program: checked.into_inner(), sources }),
        Err(faults) => Err(CudaError::Unchecked { faults: faults.iter().map(ToString::to_string).collect() }),
    }
}

struct Assembler<'a> {
    module: &'a ModuleSpec,
    options: &'a Options,
    /// The value whose buffer holds a value.
    home: Vec<usize>,
    /// Buffers of values that live in caches.
    caches: BTreeMap<usize, String>,
    orders: Vec<RowOrder>,
    buffers: Vec<Buffer>,
    kernels: Vec<Kernel>,
    sources: Vec<KernelSource>,
}

impl<'a> Assembler<'a> {
    fn new(module: &'a ModuleSpec, options: &'a Options) -> Result<Assembler<'a>, CudaError> {
        let n = module.values.len();
        let mut assembler = Assembler {
            module,
            options,
            home: (0..n).collect(),
            caches: BTreeMap::new(),
            orders: vec![RowOrder::Natural; n],
            buffers: Vec::new(),
            kernels: Vec::new(),
            sources: Vec::new(),
        };
        assembler.values_exist(&module.body)?;
        for &value in module.inputs.iter().chain(&module.outputs) {
            assembler.exists(value)?;
        }
        for &value in &module.inputs {
            assembler.value_buffer(value, BufferKind::Input);
        }
        Ok(assembler)
    }

    fn malformed(&self, what: impl Into<String>) -> CudaError {
        CudaError::Malformed { kernel: self.module.name.clone(), what: what.into() }
    }

    fn exists(&self, value: usize) -> Result<(), CudaError> {
        let known = value < self.module.values.len();
        if known { Ok(()) } else { Err(self.malformed(format!("there is no value {value}"))) }
    }

    fn values_exist(&self, nodes: &[Node]) -> Result<(), CudaError> {
        for node in nodes {
            match node {
                Node::Kernel { args, results, .. } => {
                    args.iter().chain(results).try_for_each(|&value| self.exists(value))?
                }
                Node::Repeat { input, param, body, yielded, result, .. } => {
                    [input, param, yielded, result].into_iter().try_for_each(|&value| self.exists(value))?;
                    self.values_exist(body)?;
                }
            }
        }
        Ok(())
    }

    /// Steps of a list of nodes; `rounds` is set inside a repeat.
    fn nodes(&mut self, nodes: &[Node], rounds: Option<u64>) -> Result<Vec<Step>, CudaError> {
        let mut steps = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            match node {
                Node::Kernel { spec, args, results } => steps.extend(self.kernel(spec, args, results, rounds)?),
                Node::Repeat { times, input, param, body, yielded, result } => {
                    let used_later = nodes[i + 1..].iter().any(|node| reads(node, *input));
                    let kept = used_later || self.module.outputs.contains(input) || rounds.is_some();
                    let entering = kept || self.module.inputs.contains(input);
                    self.home[*result] = if entering { *result } else { self.home[*input] };
                    self.home[*param] = self.home[*result];
                    if entering {
                        steps.extend(self.copy(*input, *result)?);
                    }
                    let in_place = writes_over(body, *param, *yielded);
                    if in_place {
                        self.home[*yielded] = self.home[*param];
                    }
                    let mut round = self.nodes(body, Some(*times))?;
                    if !in_place && self.home[*yielded] != self.home[*param] {
                        round.extend(self.copy(*yielded, *param)?);
                    }
                    steps.push(Step::Repeat { times: *times, body: round });
                }
            }
        }
        Ok(steps)
    }

    /// An element-wise copy of one value to another's place.
    fn copy(&mut self, from: usize, to: usize) -> Result<Vec<Step>, CudaError> {
        let ty = self.module.values[from].ty.clone();
        let name = format!("copy_{}", self.kernels.len());
        let spec = KernelSpec {
            name,
            anchor: Anchor::Elementwise,
            inputs: vec![Input { ty: ty.clone(), source: Source::Activation }],
            ops: vec![OpSpec { op: KernelOp::Scale { by: 1.0 }, operands: vec![0], ty }],
            outputs: vec![1],
            reason: "A repeat keeps its value in one place.".into(),
        };
        self.kernel(&spec, &[from], &[to], None)
    }

    fn kernel(
        &mut self,
        spec: &KernelSpec,
        args: &[usize],
        results: &[usize],
        rounds: Option<u64>,
    ) -> Result<Vec<Step>, CudaError> {
        let call = Call::of(spec, args, results)?;
        self.types_agree(spec, &call)?;
        self.claim_caches(spec, results, rounds)?;
        let choice = lower_kernel(spec, self.options)?;
        self.orders_agree(spec, &call)?;
        match choice {
            Choice::Generated(generated) => {
                let scratch = self.scratch(spec, &generated.scratch);
                for (&result, &order) in results.iter().zip(&generated.output_orders) {
                    self.orders[result] = order;
                    self.orders[self.home[result]] = order;
                }
                let kernels = generated.kernels.into_iter();
                kernels.map(|kernel| self.launch(spec, &call, kernel, &scratch, rounds)).collect()
            }
            Choice::Library(product) => Ok(vec![self.product(spec, &call, *product, rounds)?]),
        }
    }

    fn types_agree(&self, spec: &KernelSpec, call: &Call) -> Result<(), CudaError> {
        let inputs = call.inputs.iter().map(|(&input, &value)| (&spec.inputs[input].ty, value));
        let outputs = call.results.iter().enumerate().map(|(j, &value)| (spec.ty(spec.outputs[j]), value));
        for (ty, value) in inputs.chain(outputs) {
            let found = &self.module.values[value];
            if *ty != found.ty {
                let what = format!("value `{}` is {:?}, the region says {ty:?}", found.name, found.ty);
                return Err(spec.malformed(what));
            }
        }
        Ok(())
    }

    /// Values that appends yield live in the cache of that name, one slice per round of the repeat around it.
    fn claim_caches(&mut self, spec: &KernelSpec, results: &[usize], rounds: Option<u64>) -> Result<(), CudaError> {
        for (j, &value) in spec.outputs.iter().enumerate() {
            let Some(KernelOp::KvAppend { cache, .. }) = spec.op(value).map(|op| &op.op) else { continue };
            let name = match rounds {
                Some(_) => format!("cache.{cache}"),
                None => format!("cache.{cache}.{}", self.caches.len()),
            };
            if self.buffers.iter().any(|buffer| buffer.name == name) {
                return Err(spec.unsupported(format!("two appends to `{name}`"), "one append per cache and layer"));
            }
            let ty = self.module.values[results[j]].ty.clone();
            self.buffers.push(buffer(&name, BufferKind::Cache, &ty, rounds));
            self.caches.insert(results[j], name);
        }
        Ok(())
    }

    /// Values whose columns are permuted may only meet each other, in scores.
    fn orders_agree(&self, spec: &KernelSpec, call: &Call) -> Result<(), CudaError> {
        let order = |input: ValueId| call.inputs.get(&input).map_or(RowOrder::Natural, |&value| self.orders[value]);
        let scores = spec.ops.iter().find(|op| matches!(op.op, KernelOp::Scores { .. }));
        let pair = scores.map(|op| [op.operands[0], op.operands[1]]).unwrap_or_default();
        let matching = scores.is_some() && order(pair[0]) == order(pair[1]);
        for &input in call.inputs.keys() {
            if !order(input).is_natural() && !(matching && pair.contains(&input)) {
                let what = "a rotated value whose pairs were made neighbours is used where that order matters";
                return Err(spec.unsupported(what, "rotate q and k both in the epilogue of their products, or both outside"));
            }
        }
        Ok(())
    }

    fn scratch(&mut self, spec: &KernelSpec, types: &[TensorType]) -> Vec<String> {
        let named = types.iter().enumerate().map(|(i, ty)| (format!("{}.scratch{i}", spec.name), ty));
        named
            .map(|(name, ty)| {
                self.buffers.push(buffer(&name, BufferKind::Arena, ty, None));
                name
            })
            .collect()
    }

    fn launch(
        &mut self,
        spec: &KernelSpec,
        call: &Call,
        kernel: GeneratedKernel,
        scratch: &[String],
        rounds: Option<u64>,
    ) -> Result<Step, CudaError> {
        if self.kernels.iter().any(|known| known.name == kernel.name) {
            return Err(spec.malformed("two kernels have this name"));
        }
        let mut args = Vec::new();
        for arg in &kernel.args {
            args.push(self.argument(spec, call, arg, scratch, rounds)?);
        }
        let file = format!("kernels/{}.cu", kernel.name);
        let ops = if kernel.name == spec.name { spec.op_words() } else { vec!["merge".into()] };
        self.kernels.push(Kernel {
            name: kernel.name.clone(),
            file: Some(file.clone()),
            entry: kernel.name.clone(),
            kind: KernelKind::Generated,
            anchor: spec.anchor.word().into(),
            ops,
            reason: kernel.reason,
            registers: None,
            shared_bytes: kernel.shared_bytes + kernel.static_shared_bytes,
            spill_bytes: None,
            flops: kernel.flops,
            bytes: kernel.bytes,
        });
        let (grid, block, shared_bytes) = (kernel.grid, kernel.block, kernel.shared_bytes);
        self.sources.push(KernelSource { name: kernel.name.clone(), file, text: kernel.source });
        Ok(Step::Launch(Launch { kernel: kernel.name, grid, block, shared_bytes, args }))
    }

    fn argument(
        &mut self,
        spec: &KernelSpec,
        call: &Call,
        arg: &KernelArg,
        scratch: &[String],
        rounds: Option<u64>,
    ) -> Result<Arg, CudaError> {
        let name = match &arg.operand {
            Operand::Input(input) => {
                let value = call.inputs.get(input).ok_or_else(|| spec.malformed("an input without a value"))?;
                self.value_buffer(*value, BufferKind::Arena)
            }
            Operand::Output(j) => self.value_buffer(call.results[*j], BufferKind::Arena),
            Operand::Scratch(i) => scratch[*i].clone(),
            Operand::Position => self.position(),
            Operand::Param(packing, dtype) => self.parameter(spec, packing, *dtype, rounds)?,
        };
        self.pointer(&name, arg.access)
    }

    /// A pointer to a buffer, or to the current layer's slice of it.
    fn pointer(&self, name: &str, access: Access) -> Result<Arg, CudaError> {
        let found = self.buffers.iter().find(|buffer| buffer.name == name);
        let buffer = found.ok_or_else(|| self.malformed(format!("no buffer `{name}`")))?;
        let slice = buffer.shape.iter().rev().skip(1).product::<u64>() * buffer.pitch * buffer.dtype.bytes();
        let layer_stride_bytes = buffer.layers.map_or(0, |layers| layers.stride_bytes);
        let buffer = name.to_string();
        Ok(Arg { buffer, access, offset_bytes: 0, layer_stride_bytes, extent_bytes: slice })
    }

    /// The buffer of a value, made on first sight.
    fn value_buffer(&mut self, value: usize, kind: BufferKind) -> String {
        if let Some(cache) = self.caches.get(&value) {
            return cache.clone();
        }
        let home = self.home[value];
        let name = self.module.values[home].name.clone();
        if !self.buffers.iter().any(|buffer| buffer.name == name) {
            let leaves = self.module.outputs.iter().any(|&output| self.home[output] == home);
            let kind = if leaves && kind == BufferKind::Arena { BufferKind::Output } else { kind };
            self.buffers.push(buffer(&name, kind, &self.module.values[home].ty.clone(), None));
        }
        name
    }

    fn position(&mut self) -> String {
        let name = "cached".to_string();
        if !self.buffers.iter().any(|buffer| buffer.name == name) {
            let ty = TensorType::new(Dtype::I32, &[1]);
            self.buffers.push(buffer(&name, BufferKind::Input, &ty, None));
        }
        name
    }

    /// The device parameter of that recipe. Recipes that differ only in trailing padding rows share the larger one.
    fn parameter(
        &mut self,
        spec: &KernelSpec,
        packing: &Packing,
        dtype: Dtype,
        rounds: Option<u64>,
    ) -> Result<String, CudaError> {
        let sources = packing.groups.iter().flat_map(|group| &group.sources);
        let names: Vec<&str> = sources.map(|source| source.name.as_str()).collect();
        let layered = names.iter().any(|name| name.contains('*'));
        let times = match (layered, rounds) {
            (false, _) => None,
            (true, Some(times)) => Some(times),
            (true, None) => return Err(spec.malformed("a parameter per layer outside of a repeat")),
        };
        let same = |known: &Packing| {
            known.groups == packing.groups && known.cols == packing.cols && known.pitch == packing.pitch
        };
        let matches = |b: &&mut Buffer| b.dtype == dtype && b.packing.as_ref().is_some_and(same);
        if let Some(known) = self.buffers.iter_mut().find(matches) {
            let rows = known.packing.as_ref().map_or(0, |known| known.rows).max(packing.rows);
            let name = known.name.clone();
            *known = param_buffer(&name, Packing { rows, ..packing.clone() }, dtype, times);
            return Ok(name);
        }
        let mut name = names.join("+");
        while self.buffers.iter().any(|buffer| buffer.name == name) {
            name.push('\'');
        }
        self.buffers.push(param_buffer(&name, packing.clone(), dtype, times));
        Ok(name)
    }

    fn product(
        &mut self,
        spec: &KernelSpec,
        call: &Call,
        product: LibraryProduct,
        rounds: Option<u64>,
    ) -> Result<Step, CudaError> {
        let [m, n, k] = product.mnk;
        let value = |input: usize| call.inputs.get(&input).copied().ok_or_else(|| spec.malformed("an input without a value"));
        let a = self.value_buffer(value(product.a)?, BufferKind::Arena);
        let residual = match product.residual {
            Some(input) => Some(self.value_buffer(value(input)?, BufferKind::Arena)),
            None => None,
        };
        let out = self.value_buffer(call.results[0], BufferKind::Arena);
        let w = self.parameter(spec, &product.w, product.dtype, rounds)?;
        let bias = product.bias.as_ref().map(|bias| self.parameter(spec, bias, product.dtype, rounds)).transpose()?;
        self.kernels.push(Kernel {
            name: spec.name.clone(),
            file: None,
            entry: "cublasLtMatmul".into(),
            kind: KernelKind::Library,
            anchor: spec.anchor.word().into(),
            ops: spec.op_words(),
            reason: format!("{} Library: {}.", spec.reason, product.reason).trim().to_string(),
            registers: None,
            shared_bytes: 0,
            spill_bytes: None,
            flops: product.flops,
            bytes: product.bytes,
        });
        let reading = |name: &String| self.pointer(name, Access::Read);
        Ok(Step::Gemm(Box::new(Gemm {
            kernel: spec.name.clone(),
            m,
            n,
            k,
            transpose_a: false,
            transpose_w: true,
            lda: spec.inputs[product.a].ty.pitch(),
            ldw: product.w.pitch,
            ldo: spec.ty(spec.outputs[0]).pitch(),
            alpha: product.alpha,
            beta: if residual.is_some() { 1.0 } else { 0.0 },
            dtype: product.dtype,
            a: reading(&a)?,
            w: reading(&w)?,
            residual: residual.as_ref().map(reading).transpose()?,
            bias: bias.as_ref().map(reading).transpose()?,
            out: self.pointer(&out, Access::Write)?,
        })))
    }

    /// The program: arena buffers get their places, permuted values their note.
    fn program(&mut self, steps: Vec<Step>) -> Result<GpuProgram, CudaError> {
        for (value, order) in self.orders.clone().into_iter().enumerate() {
            let name = self.caches.get(&value).unwrap_or(&self.module.values[self.home[value]].name).clone();
            if let Some(buffer) = self.buffers.iter_mut().find(|b| b.name == name && !order.is_natural()) {
                buffer.column_order = order;
            }
        }
        // Parameters may have grown after their first use: read the extents again.
        let mut steps = steps;
        self.refresh(&mut steps)?;
        let alive = lifetimes(&steps);
        let mut planned: Vec<usize> = (0..self.buffers.len()).collect();
        planned.retain(|&i| self.buffers[i].kind == BufferKind::Arena);
        let interval = |&i: &usize| {
            let (first, last) = alive.get(&self.buffers[i].name).copied().unwrap_or((0, 0));
            Interval { bytes: self.buffers[i].bytes, first, last }
        };
        let plan = plan_memory(&planned.iter().map(interval).collect::<Vec<_>>());
        for (&i, &offset) in planned.iter().zip(&plan.offsets) {
            self.buffers[i].offset = Some(offset);
        }
        Ok(GpuProgram {
            schema: SCHEMA.into(),
            version: 1,
            name: self.module.name.clone(),
            arch: self.module.arch.clone(),
            arena_bytes: plan.peak_bytes,
            arena_naive_bytes: plan.naive_bytes,
            buffers: std::mem::take(&mut self.buffers),
            kernels: std::mem::take(&mut self.kernels),
            steps,
        })
    }

    fn refresh(&self, steps: &mut [Step]) -> Result<(), CudaError> {
        let again = |arg: &mut Arg| -> Result<(), CudaError> {
            *arg = self.pointer(&arg.buffer, arg.access)?;
            Ok(())
        };
        for step in steps {
            match step {
                Step::Launch(launch) => launch.args.iter_mut().try_for_each(again)?,
                Step::Gemm(gemm) => again(&mut gemm.w)?,
                Step::Repeat { body, .. } => self.refresh(body)?,
            }
        }
        Ok(())
    }
}

/// Which value stands for which input, and for which output.
struct Call {
    inputs: BTreeMap<usize, usize>,
    results: Vec<usize>,
}

impl Call {
    fn of(spec: &KernelSpec, args: &[usize], results: &[usize]) -> Result<Call, CudaError> {
        let active: Vec<usize> =
            (0..spec.inputs.len()).filter(|&i| spec.inputs[i].source == Source::Activation).collect();
        if active.len() != args.len() || spec.outputs.len() != results.len() {
            let found = format!("{} arguments and {} results", args.len(), results.len());
            let wanted = format!("{} and {}", active.len(), spec.outputs.len());
            return Err(spec.malformed(format!("{found}, the region has {wanted}")));
        }
        Ok(Call { inputs: active.into_iter().zip(args.iter().copied()).collect(), results: results.to_vec() })
    }
}

fn buffer(name: &str, kind: BufferKind, ty: &TensorType, rounds: Option<u64>) -> Buffer {
    let stride_bytes = ty.bytes().next_multiple_of(ALIGNMENT);
    let layers = rounds.map(|count| Layers { count, stride_bytes });
    Buffer {
        name: name.into(),
        kind,
        dtype: ty.dtype,
        shape: ty.shape.clone(),
        pitch: ty.pitch(),
        bytes: layers.map_or(ty.bytes(), |layers| layers.count * layers.stride_bytes),
        offset: None,
        layers,
        packing: None,
        column_order: RowOrder::Natural,
    }
}

fn param_buffer(name: &str, packing: Packing, dtype: Dtype, rounds: Option<u64>) -> Buffer {
    let ty = TensorType::new(dtype, &[packing.rows, packing.cols]);
    Buffer { pitch: packing.pitch, packing: Some(packing), ..buffer(name, BufferKind::Param, &ty, rounds) }
}

/// Whether a node reads a value.
fn reads(node: &Node, value: usize) -> bool {
    match node {
        Node::Kernel { args, .. } => args.contains(&value),
        Node::Repeat { input, body, .. } => *input == value || body.iter().any(|node| reads(node, value)),
    }
}

/// Whether the kernel that makes `yielded` may write it over `param`: nothing later reads `param`, and the kernel itself
/// reads it, if at all, only element by element at the place it writes.
fn writes_over(body: &[Node], param: usize, yielded: usize) -> bool {
    let maker = body.iter().position(|node| matches!(node, Node::Kernel { results, .. } if results.contains(&yielded)));
    let Some(at) = maker else { return false };
    if body[at + 1..].iter().any(|node| reads(node, param)) {
        return false;
    }
    let Node::Kernel { spec, args, .. } = &body[at] else { return false };
    let inputs = (0..spec.inputs.len()).filter(|&i| spec.inputs[i].source == Source::Activation);
    inputs.zip(args).filter(|(_, value)| **value == param).all(|(input, _)| only_in_place(spec, input))
}

/// Whether a region reads an input only where it writes: through element-wise operations of the same rows.
fn only_in_place(spec: &KernelSpec, input: ValueId) -> bool {
    // Outside of products, a half-split rotation computes its operand a second time at other columns.
    let looks_aside = spec.anchor != Anchor::Matmul && spec.ops.iter().any(|op| matches!(op.op, KernelOp::Rope(_)));
    !looks_aside && spec.users(input).iter().all(|&user| {
        spec.op(user).is_some_and(|op| match op.op {
            KernelOp::Add | KernelOp::Mul | KernelOp::Scale { .. } | KernelOp::Activation(_) => true,
            KernelOp::Bias | KernelOp::Position { .. } | KernelOp::Norm { .. } => true,
            _ => false,
        })
    })
}
