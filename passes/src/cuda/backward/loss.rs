//! Mean cross entropy and its derivative by the logits: a block for each row, which reads it twice.
use super::{Made, input, natural};
use crate::cuda::source::{Signature, c_float, c_type, constants, opening};
use crate::cuda::spec::{Backward, KernelOp, KernelSpec, TensorType, ValueId};
use crate::cuda::{CudaError, Generated, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype};
use std::fmt::Write as _;

const ROW: &str = include_str!("../device/row.cuh");
const LOSS: &str = include_str!("../device/loss.cuh");

const THREADS: u64 = 512;
/// Columns of a run.
const WIDTH: u64 = 8;

/// The loss: rows, then their mean. Its derivative: one kernel, with the factors that follow it.
pub(super) fn lower(spec: &KernelSpec, spread: bool) -> Result<Generated, CudaError> {
    let region = Region { spec, logits: input(spec, 0)?, labels: input(spec, 1)?, spread };
    let parts = TensorType::new(Dtype::F32, &[1, spec.ty(region.logits).rows()]);
    if spec.ops[0].op == KernelOp::Backward(Backward::CrossEntropy) {
        if spec.ops.len() > 1 {
            return Err(spec.unsupported("operations behind a loss", "give them a region of their own"));
        }
        let kernels = vec![region.rows()?, region.mean()?];
        return Ok(natural(spec, kernels, vec![parts]));
    }
    Ok(natural(spec, vec![region.derivative()?], Vec::new()))
}

struct Region<'a> {
    spec: &'a KernelSpec,
    logits: ValueId,
    labels: ValueId,
    /// Whether the mean is over more labels than these: their number is given, and the loss is added up.
    spread: bool,
}

impl Region<'_> {
    fn text(&self, factor: f64) -> String {
        let ty = self.spec.ty(self.logits);
        let what = self.spec.op_words().join(", ");
        let mut source = opening(&format!(
            "{}: {what} of {} rows of {} logits. {}",
            self.spec.name,
            ty.rows(),
            ty.cols(),
            self.spec.reason
        ));
        source.push_str(&constants(&[
            ("ROWS", ty.rows()),
            ("COLS", ty.cols()),
            ("PITCH", ty.pitch()),
            ("THREADS", THREADS),
            ("W", WIDTH),
        ]));
        let _ = write!(
            source,
            "constexpr float FACTOR = {};\ntypedef {} Element;\n{ROW}{LOSS}\n",
            c_float(factor),
            c_type(ty.dtype)
        );
        source
    }

    /// The number of labels that count: the pointer's name, after its parameter was added.
    fn counted(&self, signature: &mut Signature) -> &'static str {
        if !self.spread {
            return "nullptr";
        }
        signature.read(Operand::Counted, Dtype::F32, "given");
        "given"
    }

    fn kernel(&self, name: String, signature: Signature, call: &str, (rows, factor): (u64, f64)) -> Made {
        let source = format!(
            "{}extern \"C\" __global__ void __launch_bounds__(THREADS) {name}({}) {{\n    {call};\n}}\n",
            self.text(factor),
            signature.parameters()
        );
        Made { name, source, grid: [rows, 1, 1], threads: THREADS, shared: [0, 128], args: signature.args }
    }

    fn rows(&self) -> Result<crate::cuda::GeneratedKernel, CudaError> {
        let ty = self.spec.ty(self.logits);
        let mut signature = Signature::default();
        signature.read(Operand::Input(self.logits), ty.dtype, "logits");
        signature.read(Operand::Input(self.labels), Dtype::I32, "labels");
        signature.write(Operand::Scratch(0), Access::Write, Dtype::F32, "parts");
        let made = self.kernel(
            self.spec.name.clone(),
            signature,
            "lp_loss_rows(logits, labels, parts)",
            (ty.rows(), 1.0),
        );
        made.finish(self.spec, true, "A block for each row of logits.")
    }

    fn mean(&self) -> Result<crate::cuda::GeneratedKernel, CudaError> {
        let mut signature = Signature::default();
        signature.read(Operand::Scratch(0), Dtype::F32, "parts");
        signature.read(Operand::Input(self.labels), Dtype::I32, "labels");
        let given = self.counted(&mut signature);
        let access = if self.spread { Access::Update } else { Access::Write };
        signature.write(Operand::Output(0), access, Dtype::F32, "out");
        let name = format!("{}_join", self.spec.name);
        let call = format!("lp_loss_mean(parts, labels, {given}, out)");
        let made = self.kernel(name, signature, &call, (1, 1.0));
        made.finish(self.spec, false, "The mean over the labels that count, in one order.")
    }

    fn derivative(&self) -> Result<crate::cuda::GeneratedKernel, CudaError> {
        let (spec, ty) = (self.spec, self.spec.ty(self.logits));
        let mut factor = 1.0;
        for op in &spec.ops[1..] {
            match op.op {
                KernelOp::Scale { by } => factor *= by,
                _ => {
                    return Err(
                        spec.unsupported("more than factors behind a loss's derivative", "split the region")
                    );
                }
            }
        }
        if spec.outputs != [spec.inputs.len() + spec.ops.len() - 1] {
            return Err(spec.unsupported("a loss's derivative that leaves twice", "split the region"));
        }
        let mut signature = Signature::default();
        signature.read(Operand::Input(self.logits), ty.dtype, "logits");
        signature.read(Operand::Input(self.labels), Dtype::I32, "labels");
        let given = self.counted(&mut signature);
        signature.write(Operand::Output(0), Access::Write, ty.dtype, "out");
        let call = format!("lp_loss_dx(logits, labels, {given}, out)");
        let made = self.kernel(spec.name.clone(), signature, &call, (ty.rows(), factor));
        made.finish(spec, true, "A block for each row of logits; it counts the labels itself.")
    }
}
