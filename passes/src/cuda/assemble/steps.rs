//! Steps of single regions: launches and library products with their arguments.
use super::buffers::buffer;
use super::{Assembler, KernelSource, Round};
use crate::cuda::spec::{KernelOp, KernelSpec, Source, TensorType, ValueId};
use crate::cuda::{
    Choice, CudaError, GeneratedKernel, KernelArg, LibraryProduct, Operand, RightSide, lower_kernel,
};
use lapidary_runtime_gpu::program::{
    Access, Arg, BufferKind, Dtype, Gemm, Kernel, KernelKind, Launch, RowOrder, Step,
};
use std::collections::BTreeMap;

impl Assembler<'_> {
    /// The steps of one region.
    pub(super) fn kernel(
        &mut self,
        spec: &KernelSpec,
        args: &[usize],
        results: &[usize],
        round: Option<Round>,
    ) -> Result<Vec<Step>, CudaError> {
        let call = Call::of(spec, args, results)?;
        self.types_agree(spec, &call)?;
        let choice = lower_kernel(spec, self.options)?;
        self.claim_caches(spec, results, round)?;
        self.orders_agree(spec, &call)?;
        match choice {
            Choice::Generated(generated) => {
                let scratch = self.scratch(spec, &generated.scratch);
                for (&result, &order) in results.iter().zip(&generated.output_orders) {
                    self.orders[result] = order;
                    self.orders[self.home[result]] = order;
                }
                let kernels = generated.kernels.into_iter();
                kernels.map(|kernel| self.launch(spec, &call, kernel, &scratch, round)).collect()
            }
            Choice::Library(product) => Ok(vec![self.product(spec, &call, *product, round)?]),
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

    /// Values whose columns are permuted may only meet each other, in scores.
    fn orders_agree(&self, spec: &KernelSpec, call: &Call) -> Result<(), CudaError> {
        let order =
            |input: ValueId| call.inputs.get(&input).map_or(RowOrder::Natural, |&value| self.orders[value]);
        let scores = spec.ops.iter().find(|op| matches!(op.op, KernelOp::Scores { .. }));
        let pair = scores.map(|op| [op.operands[0], op.operands[1]]).unwrap_or_default();
        let matching = scores.is_some() && order(pair[0]) == order(pair[1]);
        for &input in call.inputs.keys() {
            let allowed = order(input).is_natural() || (matching && pair.contains(&input));
            if !allowed {
                let what =
                    "a rotated value whose pairs were made neighbours is used where that order matters";
                return Err(spec.unsupported(
                    what,
                    "rotate q and k both in the epilogue of their products, or both outside",
                ));
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
        round: Option<Round>,
    ) -> Result<Step, CudaError> {
        if self.kernels.iter().any(|known| known.name == kernel.name) {
            return Err(spec.malformed("two kernels have this name"));
        }
        let mut args = Vec::new();
        for arg in &kernel.args {
            args.push(self.argument(spec, call, arg, scratch, round)?);
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
            choice: kernel.choice,
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
        round: Option<Round>,
    ) -> Result<Arg, CudaError> {
        let name = match &arg.operand {
            Operand::Input(input) => {
                let value =
                    call.inputs.get(input).ok_or_else(|| spec.malformed("an input without a value"))?;
                self.value_buffer(*value, BufferKind::Arena)
            }
            Operand::Output(j) => self.value_buffer(call.results[*j], BufferKind::Arena),
            Operand::Scratch(i) => scratch[*i].clone(),
            Operand::Position => self.position(),
            Operand::Counted => self.counted(),
            Operand::Param(packing, dtype) => self.parameter(spec, packing, *dtype, round)?,
        };
        Ok(Arg { boxes: arg.boxes, ..self.pointer(&name, arg.access, round)? })
    }

    fn product(
        &mut self,
        spec: &KernelSpec,
        call: &Call,
        product: LibraryProduct,
        round: Option<Round>,
    ) -> Result<Step, CudaError> {
        let [m, n, k] = product.mnk;
        let value = |input: usize| {
            call.inputs.get(&input).copied().ok_or_else(|| spec.malformed("an input without a value"))
        };
        let a = self.value_buffer(value(product.a)?, BufferKind::Arena);
        let residual = match product.residual {
            Some(input) => Some(self.value_buffer(value(input)?, BufferKind::Arena)),
            None => None,
        };
        let out = self.value_buffer(call.results[0], BufferKind::Arena);
        let w = match &product.w {
            RightSide::Param(packing) => self.parameter(spec, packing, product.dtype, round)?,
            RightSide::Input(input) => self.value_buffer(value(*input)?, BufferKind::Arena),
        };
        let bias =
            product.bias.as_ref().map(|bias| self.parameter(spec, bias, product.dtype, round)).transpose()?;
        self.kernels.push(Kernel {
            name: spec.name.clone(),
            file: None,
            entry: "cublasLtMatmul".into(),
            kind: KernelKind::Library,
            anchor: spec.anchor.word().into(),
            ops: spec.op_words(),
            reason: format!("{} Library: {}.", spec.reason, product.reason).trim().to_string(),
            choice: product.choice.clone(),
            registers: None,
            shared_bytes: 0,
            spill_bytes: None,
            flops: product.flops,
            bytes: product.bytes,
        });
        let reading = |name: &String| self.pointer(name, Access::Read, round);
        let residual = residual.as_ref().or(product.adds.then_some(&out));
        Ok(Step::Gemm(Box::new(Gemm {
            kernel: spec.name.clone(),
            m,
            n,
            k,
            transpose_a: product.deep[0],
            transpose_w: !product.deep[1],
            lda: product.lda,
            ldw: product.ldw,
            ldo: spec.ty(spec.outputs[0]).pitch(),
            alpha: product.alpha,
            beta: if residual.is_some() { 1.0 } else { 0.0 },
            dtype: product.dtype,
            out_dtype: product.adds.then_some(Dtype::F32),
            a: reading(&a)?,
            w: reading(&w)?,
            residual: residual.map(reading).transpose()?,
            bias: bias.as_ref().map(reading).transpose()?,
            out: self.pointer(&out, if product.adds { Access::Update } else { Access::Write }, round)?,
        })))
    }
}

/// Which value stands for which input, and for which output.
pub(super) struct Call {
    inputs: BTreeMap<usize, usize>,
    results: Vec<usize>,
}

impl Call {
    pub(super) fn of(spec: &KernelSpec, args: &[usize], results: &[usize]) -> Result<Call, CudaError> {
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
