//! What the emitters rely on, checked before they start: names, operands, shapes and attributes that agree.
use super::CudaError;
use super::spec::{KernelOp, KernelSpec, OpSpec, Rope, TensorType, ValueId};

/// Elements of the largest tensor that addresses are made for.
const MOST_ELEMENTS: u64 = 1 << 46;

impl KernelSpec {
    /// Checks the region; the first contradiction found is the error.
    pub(crate) fn validate(&self) -> Result<(), CudaError> {
        let identifier = self.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && self.name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !identifier {
            return Err(self.malformed("the name is not a C identifier"));
        }
        (0..self.results().start).try_for_each(|id| self.check_type(id))?;
        for id in self.results() {
            self.check_type(id)?;
            if let Some(op) = self.op(id) {
                self.check_operands(id, op)?;
                self.check_shapes(op)?;
            }
        }
        if let Some(bad) = self.outputs.iter().find(|&id| !self.results().contains(id)) {
            return Err(self.malformed(format!("output {bad} is not computed here")));
        }
        if self.outputs.is_empty() {
            return Err(self.malformed("there are no outputs"));
        }
        let mut positions = self.ops.iter().filter_map(|op| op.op.position());
        let first = positions.next();
        if positions.any(|position| Some(position) != first) {
            return Err(self.malformed("operations at different positions"));
        }
        Ok(())
    }

    fn check_type(&self, id: ValueId) -> Result<(), CudaError> {
        match fits(self.ty(id)) {
            true => Ok(()),
            false if self.ty(id).shape.contains(&0) => {
                Err(self.malformed(format!("value {id} has an empty dimension")))
            }
            false => {
                let what = format!("value {id} of shape {:?}", self.ty(id).shape);
                Err(self.unsupported(what, "split the model over more machines"))
            }
        }
    }

    fn check_operands(&self, id: ValueId, op: &OpSpec) -> Result<(), CudaError> {
        if let Some(late) = op.operands.iter().find(|&&operand| operand >= id) {
            return Err(self.malformed(format!("value {id} reads value {late}, which is not there yet")));
        }
        let wanted = operand_counts(&op.op);
        if !wanted.contains(&op.operands.len()) {
            let found = op.operands.len();
            return Err(self.malformed(format!("{} has {found} operands, not {wanted:?}", op.op.word())));
        }
        Ok(())
    }

    fn check_shapes(&self, op: &OpSpec) -> Result<(), CudaError> {
        let shape = |i: usize| self.ty(op.operands[i]).shape.as_slice();
        let (result, cols) = (op.ty.shape.as_slice(), op.ty.cols());
        let good = match &op.op {
            KernelOp::Add | KernelOp::Mul => shape(0) == result && shape(1) == result,
            KernelOp::Scale { .. } | KernelOp::Activation(_) | KernelOp::Softmax => shape(0) == result,
            KernelOp::Mask(_) => shape(0) == result && result.len() == 4,
            KernelOp::Bias => shape(0) == result && shape(1) == [cols],
            KernelOp::Norm { .. } => shape(0) == result && (1..op.operands.len()).all(|i| shape(i) == [cols]),
            KernelOp::Rope(rope) => shape(0) == result && result.len() == 3 && rotates(rope, cols),
            KernelOp::Embed | KernelOp::EmbedPart { .. } => {
                let rows = [shape(0), &[cols]].concat();
                shape(1).len() == 2 && shape(1)[1] == cols && rows == result
            }
            KernelOp::Position { offset } => {
                let long =
                    |table: &[u64]| table.len() == 2 && table[1] == cols && table[0] >= offset + result[1];
                shape(0) == result && result.len() == 3 && long(shape(1))
            }
            KernelOp::Linear => {
                let (x, w) = (shape(0), shape(1));
                let rows = x.len() == result.len() && x[..x.len() - 1] == result[..result.len() - 1];
                rows && w.len() == 2 && w[0] == cols && Some(&w[1]) == x.last()
            }
            KernelOp::KvAppend { cached, .. } => {
                let x = shape(0);
                let ranks = x.len() == 3 && result.len() == 3;
                ranks && x[0] == result[0] && x[2] == result[2] && result[1] >= cached + x[1]
            }
            KernelOp::LastToken => {
                let x = shape(0);
                x.len() == 3 && result == [x[0], 1, x[2]]
            }
            KernelOp::Scores { .. } => result.len() == 4 && shape(0).len() == 3 && shape(1).len() == 3,
            KernelOp::Values { .. } => result.len() == 3 && shape(0).len() == 4 && shape(1).len() == 3,
            KernelOp::Backward(kind) => {
                let shapes: Vec<&[u64]> = (0..op.operands.len()).map(shape).collect();
                kind.fits(&shapes, result)
            }
        };
        if good {
            return Ok(());
        }
        let shapes: Vec<&[u64]> = (0..op.operands.len()).map(shape).collect();
        Err(self.malformed(format!("{:?} of {shapes:?} cannot give {result:?}", op.op)))
    }
}

/// Whether addresses of the tensor fit the kernels' arithmetic: no empty or overlong dimension, not too many elements.
pub(crate) fn fits(ty: &TensorType) -> bool {
    let elements = ty.shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let dims = ty.shape.iter().all(|&dim| dim > 0 && dim < 1 << 31);
    dims && ty.cols() < 1 << 30 && elements.is_some_and(|n| n < MOST_ELEMENTS)
}

pub(crate) fn rotates(rope: &Rope, cols: u64) -> bool {
    let divides = rope.head_dim > 0 && cols.is_multiple_of(rope.head_dim);
    divides && rope.rot_dims.is_multiple_of(2) && rope.rot_dims <= rope.head_dim && rope.theta > 0.0
}

fn operand_counts(op: &KernelOp) -> &'static [usize] {
    match op {
        KernelOp::Embed | KernelOp::EmbedPart { .. } => &[2],
        KernelOp::Position { .. } | KernelOp::Linear | KernelOp::Bias => &[2],
        KernelOp::Add | KernelOp::Mul | KernelOp::Scores { .. } | KernelOp::Values { .. } => &[2],
        KernelOp::Norm { .. } => &[2, 3],
        KernelOp::Scale { .. } | KernelOp::Activation(_) | KernelOp::Rope(_) | KernelOp::KvAppend { .. } => {
            &[1]
        }
        KernelOp::Mask(_) | KernelOp::Softmax | KernelOp::LastToken => &[1],
        KernelOp::Backward(op) => op.operands(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Anchor, Input, Source};
    use super::*;
    use lapidary_runtime_gpu::program::Dtype;

    fn add(left: &[u64], right: &[u64]) -> KernelSpec {
        let input = |shape| Input { ty: TensorType::new(Dtype::Bf16, shape), source: Source::Activation };
        let ops =
            vec![OpSpec { op: KernelOp::Add, operands: vec![0, 1], ty: TensorType::new(Dtype::Bf16, left) }];
        let inputs = vec![input(left), input(right)];
        KernelSpec {
            name: "add".into(),
            anchor: Anchor::Elementwise,
            inputs,
            ops,
            outputs: vec![2],
            reason: String::new(),
        }
    }

    #[test]
    fn shapes_have_to_agree_and_to_fit() {
        assert_eq!(add(&[2, 3], &[2, 3]).validate(), Ok(()));
        let said = |spec: KernelSpec| spec.validate().map_err(|e| e.to_string()).unwrap_err();
        assert!(said(add(&[2, 3], &[3, 2])).contains("cannot give"));
        assert!(said(add(&[2, 1 << 40], &[2, 1 << 40])).contains("split the model"));
        assert!(said(add(&[0, 3], &[0, 3])).contains("empty"));
        assert!(said(KernelSpec { outputs: vec![0], ..add(&[1], &[1]) }).contains("not computed here"));
        assert!(said(KernelSpec { name: "a b".into(), ..add(&[1], &[1]) }).contains("identifier"));
    }
}
