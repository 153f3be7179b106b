//! Buffers: where values, parameters and caches live, and the arena's plan.
use super::{Assembler, Round};
use crate::cuda::CudaError;
use crate::cuda::spec::{Backward, KernelOp, KernelSpec, TensorType};
use lapidary_runtime_gpu::program::memory::{ALIGNMENT, Interval, lifetimes, plan_memory};
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, GpuProgram, Layers, PackForm, Packing, RowOrder, SCHEMA, Step,
};

/// The buffer in which a rank adds up its part of the loss.
pub(super) const LOSS: &str = "loss.sum";

impl Assembler<'_> {
    /// Values that appends yield live in the cache of that name, one slice per round of the repeat around it.
    pub(super) fn claim_caches(
        &mut self,
        spec: &KernelSpec,
        results: &[usize],
        round: Option<Round>,
    ) -> Result<(), CudaError> {
        for (j, &value) in spec.outputs.iter().enumerate() {
            let Some(KernelOp::KvAppend { cache, .. }) = spec.op(value).map(|op| &op.op) else { continue };
            let name = match round {
                Some(_) => format!("cache.{cache}"),
                None => format!("cache.{cache}.{}", self.caches.len()),
            };
            if self.buffers.iter().any(|buffer| buffer.name == name) {
                return Err(
                    spec.unsupported(format!("two appends to `{name}`"), "one append per cache and layer")
                );
            }
            let ty = self.module.values[results[j]].ty.clone();
            self.buffers.push(buffer(&name, BufferKind::Cache, &ty, round.map(|round| round.times)));
            self.caches.insert(results[j], name);
        }
        Ok(())
    }

    /// What layers keep has its own memory, a slice for each of them.
    pub(super) fn claim_kept(&mut self) -> Result<(), CudaError> {
        let Some(training) = &self.module.training else { return Ok(()) };
        for kept in &training.kept {
            let name = format!("kept.{}", kept.name);
            self.buffers.push(buffer(&name, BufferKind::Kept, &kept.ty, Some(kept.times)));
        }
        for (value, slot) in &training.slots {
            self.exists(*value)?;
            let kept = training
                .kept
                .get(*slot)
                .ok_or_else(|| self.malformed(format!("nothing is kept as {slot}")))?;
            self.caches.insert(*value, format!("kept.{}", kept.name));
        }
        Ok(())
    }

    /// Sums that go into a gradient live in its buffer, one slice per layer of the model.
    pub(super) fn claim_gradients(&mut self, spec: &KernelSpec, results: &[usize]) -> Result<(), CudaError> {
        for (j, &value) in spec.outputs.iter().enumerate() {
            let Some(param) = spec.gradient(value) else { continue };
            let Some(training) = &self.module.training else {
                return Err(spec.unsupported("a gradient outside of training", "compile a training graph"));
            };
            let name = format!("gradient.{param}");
            if !self.buffers.iter().any(|buffer| buffer.name == name) {
                let layers = param.contains('*').then_some(training.layers);
                self.buffers.push(buffer(&name, BufferKind::State, spec.ty(value), layers));
            }
            self.caches.insert(results[j], name);
        }
        Ok(())
    }

    /// The slice of a buffer that a repeat begins with: its layers count from its own first one.
    fn first_slice(&self, buffer: &Buffer, round: Option<Round>) -> u64 {
        let Some(training) = &self.module.training else { return 0 };
        let kept = training.kept.iter().find(|kept| buffer.name.strip_prefix("kept.") == Some(&kept.name));
        let Some(round) = round else { return 0 };
        let own =
            kept.and_then(|kept| kept.firsts.iter().copied().filter(|first| *first <= round.first).max());
        round.first - own.unwrap_or(0)
    }

    /// A pointer to a buffer, or to the current layer's slice of it.
    pub(super) fn pointer(&self, name: &str, access: Access, round: Option<Round>) -> Result<Arg, CudaError> {
        let found = self.buffers.iter().find(|buffer| buffer.name == name);
        let buffer = found.ok_or_else(|| self.malformed(format!("no buffer `{name}`")))?;
        let slice = buffer.shape.iter().rev().skip(1).product::<u64>() * buffer.pitch * buffer.dtype.bytes();
        let layer_stride_bytes = buffer.layers.map_or(0, |layers| layers.stride_bytes);
        let offset_bytes = self.first_slice(buffer, round).saturating_mul(layer_stride_bytes);
        let buffer = name.to_string();
        Ok(Arg { buffer, access, offset_bytes, layer_stride_bytes, extent_bytes: slice, boxes: None })
    }

    /// The buffer of a value, made on first sight.
    pub(super) fn value_buffer(&mut self, value: usize, kind: BufferKind) -> String {
        if let Some(cache) = self.caches.get(&value) {
            return cache.clone();
        }
        let home = self.home[value];
        let name = self.module.values[home].name.clone();
        if !self.buffers.iter().any(|buffer| buffer.name == name) {
            self.buffers.push(buffer(&name, kind, &self.module.values[home].ty.clone(), None));
        }
        name
    }

    pub(super) fn position(&mut self) -> String {
        let name = "cached".to_string();
        if !self.buffers.iter().any(|buffer| buffer.name == name) {
            let ty = TensorType::new(Dtype::I32, &[1]);
            self.buffers.push(buffer(&name, BufferKind::Input, &ty, None));
        }
        name
    }

    /// The labels of all ranks and micro-batches that count.
    pub(super) fn counted(&mut self) -> String {
        let name = "counted".to_string();
        if !self.buffers.iter().any(|buffer| buffer.name == name) {
            self.buffers.push(buffer(&name, BufferKind::Input, &TensorType::new(Dtype::F32, &[1]), None));
        }
        name
    }

    /// A rank's part of a loss is added up over micro-batches, until the step ends.
    pub(super) fn claim_loss(&mut self, spec: &KernelSpec, results: &[usize]) {
        for (&value, &result) in spec.outputs.iter().zip(results) {
            let op = spec.op(value).map(|op| &op.op);
            if self.module.share.is_some() && op == Some(&KernelOp::Backward(Backward::CrossEntropy)) {
                self.loss_sum();
                self.caches.insert(result, LOSS.into());
            }
        }
    }

    /// Where losses are added up.
    pub(super) fn loss_sum(&mut self) {
        if !self.buffers.iter().any(|buffer| buffer.name == LOSS) {
            self.buffers.push(buffer(LOSS, BufferKind::State, &TensorType::new(Dtype::F32, &[1]), None));
        }
    }

    /// The device parameter of that recipe. Recipes that differ only in trailing padding rows share the larger one.
    pub(super) fn parameter(
        &mut self,
        spec: &KernelSpec,
        packing: &Packing,
        dtype: Dtype,
        round: Option<Round>,
    ) -> Result<String, CudaError> {
        let sources = packing.groups.iter().flat_map(|group| &group.sources);
        let names: Vec<&str> = sources.map(|source| source.name.as_str()).collect();
        let layered = names.iter().any(|name| name.contains('*'));
        let training = self.module.training.as_ref();
        if training.is_some()
            && packing.groups.iter().flat_map(|group| &group.sources).any(|s| s.scale != 1.0)
        {
            return Err(spec.unsupported(
                "a weight with a load-time factor in training",
                "keep the factor as an operation",
            ));
        }
        let times = match (layered, round) {
            (false, _) => None,
            (true, Some(round)) => Some(training.map_or(round.times, |training| training.layers)),
            (true, None) => return Err(spec.malformed("a parameter per layer outside of a repeat")),
        };
        let same = |known: &Packing| {
            known.groups == packing.groups
                && known.cols == packing.cols
                && known.pitch == packing.pitch
                && known.form == packing.form
        };
        let matches = |b: &&mut Buffer| b.dtype == dtype && b.packing.as_ref().is_some_and(same);
        if let Some(known) = self.buffers.iter_mut().find(matches) {
            let rows = known.packing.as_ref().map_or(0, |known| known.rows).max(packing.rows);
            let name = known.name.clone();
            let kind = known.kind;
            *known = param_buffer(&name, kind, Packing { rows, ..packing.clone() }, dtype, times);
            return Ok(name);
        }
        let mut name = names.join("+");
        name.push_str(match packing.form {
            PackForm::Values => "",
            PackForm::Int8 => ".int8",
            PackForm::Int8Scales => ".scales",
        });
        while self.buffers.iter().any(|buffer| buffer.name == name) {
            name.push('\'');
        }
        let kind = if training.is_some() { BufferKind::Weight } else { BufferKind::Param };
        self.buffers.push(param_buffer(&name, kind, packing.clone(), dtype, times));
        Ok(name)
    }

    /// The program: arena buffers get their places, permuted values their note.
    pub(super) fn program(&mut self, steps: Vec<Step>) -> Result<GpuProgram, CudaError> {
        for (value, order) in self.orders.clone().into_iter().enumerate() {
            let name = self.caches.get(&value).unwrap_or(&self.module.values[self.home[value]].name).clone();
            if let Some(buffer) = self.buffers.iter_mut().find(|b| b.name == name && !order.is_natural()) {
                buffer.column_order = order;
            }
        }
        // Where a value that leaves the module lives is known only now.
        for &output in &self.module.outputs {
            let name = self.place(output).to_string();
            let temporary = |b: &&mut Buffer| b.name == name && b.kind == BufferKind::Arena;
            if let Some(buffer) = self.buffers.iter_mut().find(temporary) {
                buffer.kind = BufferKind::Output;
            }
        }
        let share = self.micros(&steps)?;
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
            share,
        })
    }

    /// Parameters may have grown after their first use: reads the extents again.
    pub(super) fn refresh(&self, steps: &mut [Step]) -> Result<(), CudaError> {
        let again = |arg: &mut Arg| -> Result<(), CudaError> {
            let slices = arg.offset_bytes.checked_div(arg.layer_stride_bytes).unwrap_or(0);
            let fresh = self.pointer(&arg.buffer, arg.access, None)?;
            *arg = Arg { offset_bytes: slices * fresh.layer_stride_bytes, boxes: arg.boxes, ..fresh };
            Ok(())
        };
        for step in steps {
            match step {
                Step::Launch(launch) => launch.args.iter_mut().try_for_each(again)?,
                Step::Gemm(gemm) => again(&mut gemm.w)?,
                Step::Repeat { body, .. } => self.refresh(body)?,
                Step::Meet(_) | Step::Join => {}
            }
        }
        Ok(())
    }
}

pub(crate) fn buffer(name: &str, kind: BufferKind, ty: &TensorType, rounds: Option<u64>) -> Buffer {
    let stride_bytes = ty.bytes().next_multiple_of(ALIGNMENT);
    let layers = rounds.map(|count| Layers { count, stride_bytes });
    Buffer {
        name: name.into(),
        kind,
        dtype: ty.dtype,
        shape: ty.shape.clone(),
        pitch: ty.pitch(),
        bytes: layers.map_or(ty.bytes(), |layers| layers.count.saturating_mul(layers.stride_bytes)),
        offset: None,
        layers,
        packing: None,
        column_order: RowOrder::Natural,
        per_replica: false,
    }
}

pub(super) fn param_buffer(
    name: &str,
    kind: BufferKind,
    packing: Packing,
    dtype: Dtype,
    rounds: Option<u64>,
) -> Buffer {
    if packing.form == PackForm::Int8Scales {
        let ty = TensorType::new(dtype, &[1, packing.rows]);
        return Buffer { packing: Some(packing), ..buffer(name, kind, &ty, rounds) };
    }
    let ty = TensorType::new(dtype, &[packing.rows, packing.cols]);
    Buffer { pitch: packing.pitch, packing: Some(packing), ..buffer(name, kind, &ty, rounds) }
}
