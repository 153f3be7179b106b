//! A GPU program as `cuda` ops, in place of the functions that it was made from.
//!
//! A `cuda.kernel` holds the region that it computes. Parameters appear as the model has them; in which device buffers
//! they lie packed is said in the kernel's `params`, as are the further launches of a region that takes two.

use crate::cuda::Lowered;
use crate::lower_to_cuda::kernel::Region;
use crate::lower_to_cuda::module::FusedModule;
use crate::lower_to_cuda::words::{anchor, dtype, extent, kind, parameter_name, symbol};
use crate::pass::PassError;
use lapidary_ir::cuda::{self, Buffer, BufferKind, Kernel};
use lapidary_ir::{At, Attribute, Block, IrContext, Op as IrOp, Value as IrValue, nn};
use lapidary_models::TensorType;
use lapidary_models::op::ScaleRole;
use lapidary_runtime_gpu::program::{KernelKind, Step};
use std::collections::BTreeMap;

/// Replaces the functions of a module by the program.
///
/// # Errors
/// [`PassError::Ir`] when the IR refuses an op.
pub fn program(module: IrOp<'_>, fused: &FusedModule<'_>, lowered: &Lowered) -> Result<(), PassError> {
    let Some(body) = module.region_block(0) else { return Ok(()) };
    let at = At::end_of(body).located(module.location());
    let program = &lowered.program;
    let (op, block) = cuda::program(at, &symbol(&program.name), &program.arch)?;
    op.set_attribute("arena_bytes", count(op.context(), program.arena_bytes));
    let mut writer = Writer { fused, lowered, block, memory: BTreeMap::new() };
    fused.regions.iter().try_for_each(|region| writer.kernel(region))?;
    writer.parameters()?;
    writer.buffers()?;
    writer.steps(&program.steps, block, None)?;
    let functions: Vec<IrOp<'_>> = module.functions();
    functions.into_iter().rev().try_for_each(|function| function.erase().map_err(PassError::from))
}

fn count(cx: &IrContext, value: u64) -> Attribute<'_> {
    cx.i64(i64::try_from(value).unwrap_or(i64::MAX))
}

struct Writer<'a, 'c> {
    fused: &'a FusedModule<'c>,
    lowered: &'a Lowered,
    block: Block<'c>,
    /// Values of buffers by name; parameters under the names of the model.
    memory: BTreeMap<String, IrValue<'c>>,
}

impl<'c> Writer<'_, 'c> {
    fn cx(&self) -> &'c IrContext {
        self.block.context()
    }

    /// The kernel of a region, with a copy of its body.
    fn kernel(&self, region: &Region<'c>) -> Result<(), PassError> {
        let Some(source) = region.op.region_block(0) else { return Ok(()) };
        let made = self.lowered.program.kernel(&region.spec.name);
        let kernel = Kernel {
            name: region.spec.name.clone(),
            anchor: anchor(region.spec.anchor),
            library: made.is_some_and(|made| made.kind == KernelKind::Library),
            variant: made.map_or_else(|| "none".into(), |made| made.entry.clone()),
            params: self.params(region),
            reason: made.map_or_else(String::new, |made| made.reason.clone()),
        };
        let types: Vec<_> = source.arguments().into_iter().map(|value| value.ty()).collect();
        let at = At::end_of(self.block).located(region.op.location());
        let (_, body) = cuda::kernel(at, &kernel, &types)?;
        let mut inside: Vec<(IrValue<'c>, IrValue<'c>)> =
            source.arguments().into_iter().zip(body.arguments()).collect();
        for op in source.ops() {
            let find = |value: IrValue<'c>| {
                inside.iter().find(|(old, _)| *old == value).map_or(value, |(_, new)| *new)
            };
            let operands: Vec<IrValue<'c>> = op.operands().into_iter().map(find).collect();
            let copy = At::end_of(body).located(op.location()).copy(op, &operands);
            inside.extend(op.results().into_iter().zip(copy.results()));
        }
        Ok(())
    }

    /// Device buffers of packed parameters, and launches beside the first.
    fn params(&self, region: &Region<'c>) -> Vec<(String, Attribute<'c>)> {
        let (cx, program) = (self.cx(), &self.lowered.program);
        let steps: Vec<&Step> =
            program.flat_steps().into_iter().filter(|step| belongs(step, region)).collect();
        let args = steps.iter().flat_map(|step| step.args()).map(|arg| arg.buffer.as_str());
        let is_packed = |name: &&str| program.buffer(name).is_some_and(|buffer| buffer.packing.is_some());
        let packed: Vec<Attribute<'c>> = args.filter(is_packed).map(|name| cx.text(name)).collect();
        let then = steps.iter().skip(1).filter_map(|step| step.kernel()).map(|name| cx.text(name)).collect();
        let rows = [("parameters", packed), ("then", then)];
        let full = rows.into_iter().filter(|(_, texts)| !texts.is_empty());
        full.map(|(key, texts)| (key.to_string(), cx.array(&texts))).collect()
    }

    /// A buffer for each parameter that a kernel reads.
    fn parameters(&mut self) -> Result<(), PassError> {
        let read = self.fused.regions.iter().flat_map(|region| region.op.operands());
        for value in read.collect::<Vec<_>>() {
            let param = value.defining_op().filter(|op| op.is("nn.param"));
            let (Some(param), Some(ty)) = (param, value.tensor()) else { continue };
            let name = parameter_name(param);
            if !self.memory.contains_key(&name) {
                let layers = param.operand(0).and_then(|_| rounds(param));
                let bytes = ty.bytes().saturating_mul(layers.unwrap_or(1));
                self.buffer(Buffer { name, kind: BufferKind::Param, bytes, layers, ty })?;
            }
        }
        Ok(())
    }

    /// The buffers of values, caches and scratch, as the program has them.
    fn buffers(&mut self) -> Result<(), PassError> {
        for buffer in self.lowered.program.buffers.iter().filter(|buffer| buffer.packing.is_none()) {
            let Some(element) = dtype(buffer.dtype) else { continue };
            let value = self.buffer(Buffer {
                name: buffer.name.clone(),
                kind: kind(buffer.kind),
                bytes: buffer.bytes,
                layers: buffer.layers.map(|layers| layers.count),
                ty: TensorType::new(element, buffer.shape.clone()),
            })?;
            if let (Some(offset), Some(op)) = (buffer.offset, value.defining_op()) {
                op.set_attribute("offset", count(self.cx(), offset));
            }
        }
        Ok(())
    }

    fn buffer(&mut self, buffer: Buffer) -> Result<IrValue<'c>, PassError> {
        let value = cuda::buffer(At::end_of(self.block), &buffer)?;
        self.memory.insert(buffer.name, value);
        Ok(value)
    }

    /// Launches in order; `layer` is the layer's number inside a repeat.
    fn steps(&self, steps: &[Step], block: Block<'c>, layer: Option<IrValue<'c>>) -> Result<(), PassError> {
        for step in steps {
            if let Step::Repeat { times, body, .. } = step {
                let (_, inner) = cuda::repeat(At::end_of(block), *times)?;
                self.steps(body, inner, inner.argument(0))?;
                continue;
            }
            match self.fused.regions.iter().find(|region| step.kernel() == Some(&region.spec.name)) {
                Some(region) => self.launch(step, region, block, layer)?,
                None => self.copy(step, block)?,
            }
        }
        Ok(())
    }

    fn launch(
        &self,
        step: &Step,
        region: &Region<'c>,
        block: Block<'c>,
        layer: Option<IrValue<'c>>,
    ) -> Result<(), PassError> {
        let mut args = region.args.iter();
        let mut inputs = Vec::new();
        for outer in region.op.operands() {
            let found = match outer.defining_op().filter(|op| op.is("nn.param")) {
                Some(param) => self.memory.get(&parameter_name(param)).copied(),
                None if outer.shape().is_empty() => layer,
                None => args.next().and_then(|value| self.place(*value)),
            };
            inputs.extend(found);
        }
        let outputs: Vec<IrValue<'c>> =
            region.results.iter().filter_map(|value| self.place(*value)).collect();
        let at = At::end_of(block).located(region.op.location());
        cuda::launch(at, &region.spec.name, extent(step), &inputs, &outputs)?;
        Ok(())
    }

    /// The memory of a value of the plain data.
    fn place(&self, value: usize) -> Option<IrValue<'c>> {
        self.memory.get(self.lowered.places.get(value)?).copied()
    }

    /// A copy that keeps a repeat's value in one place. The second launch of a region has no op: its kernel names it.
    fn copy(&self, step: &Step, block: Block<'c>) -> Result<(), PassError> {
        let args = step.args();
        let (Some(name), [from, to]) = (step.kernel().filter(|name| name.starts_with("copy_")), &args[..])
        else {
            return Ok(());
        };
        let found = [from, to].map(|arg| self.memory.get(&arg.buffer).copied());
        let (Some(source), [Some(from), Some(to)]) = (self.lowered.program.buffer(&from.buffer), found)
        else {
            return Ok(());
        };
        let kernel = Kernel {
            name: name.to_string(),
            anchor: nn::Anchor::Elementwise,
            library: false,
            variant: "copy".into(),
            params: Vec::new(),
            reason: self
                .lowered
                .program
                .kernel(name)
                .map_or_else(String::new, |kernel| kernel.reason.clone()),
        };
        let Some(element) = dtype(source.dtype) else { return Ok(()) };
        let ty = self.cx().tensor(&TensorType::new(element, source.shape.clone()));
        let (_, body) = cuda::kernel(At::start_of(self.block), &kernel, &[ty])?;
        for argument in body.arguments() {
            let same = nn::scale(At::end_of(body), argument, 1.0, ScaleRole::Residual)?;
            nn::yield_values(At::end_of(body), &[same])?;
        }
        cuda::launch(At::end_of(block), name, extent(step), &[from], &[to])?;
        Ok(())
    }
}

/// Whether a step runs the kernel of a region, or a further launch of it.
fn belongs(step: &Step, region: &Region<'_>) -> bool {
    let rest = step.kernel().and_then(|name| name.strip_prefix(region.spec.name.as_str()));
    rest.is_some_and(|rest| matches!(rest, "" | "_merge" | "_join" | "_keys"))
}

/// How often the function that holds an op runs.
fn rounds(op: IrOp<'_>) -> Option<u64> {
    let function = op.parent()?;
    let calls = |call: &IrOp<'_>| call.is("nn.repeat") && call.symbol("body") == function.symbol_name();
    let repeat = function.parent()?.walk().into_iter().find(calls)?;
    repeat.i64("times").and_then(|times| u64::try_from(times).ok())
}
