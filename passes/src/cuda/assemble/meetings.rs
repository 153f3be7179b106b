//! What ranks say to each other: a meeting over whole buffers, and a kernel where it is heard or told in another order.
//!
//! ```text
//! all_reduce      a sum, where possible in place              gather_rows    a gather of runs of rows, the padding dropped
//! all_gather      a gather of parts, then columns side by side  take, take_rows  a kernel; nothing is said
//! reduce_scatter  rows filled up, then a scattered sum        send, receive  messages; what is sent stays where it is
//! ```
use super::arrange::Arrange;
use super::{Assembler, Round, buffer};
use crate::cuda::CudaError;
use crate::cuda::spec::TensorType;
use lapidary_models::op::Sharded;
use lapidary_runtime_gpu::program::{Access, Arg, BufferKind, Group, Meeting, Said, Step};

/// Something that ranks say, or that they do to what was said.
#[derive(Debug, Clone, PartialEq)]
pub enum Talk {
    /// As the graph has it.
    Op(Sharded),
    /// The last stage's value for all stages: without an argument on the others.
    FromLastStage,
}

/// Elements of a value as they lie in memory.
fn held(ty: &TensorType) -> u64 {
    ty.rows().saturating_mul(ty.pitch())
}

impl Assembler<'_> {
    /// The steps of a talk.
    pub(super) fn talk(
        &mut self,
        (name, talk): (&str, &Talk),
        arg: Option<usize>,
        result: usize,
        round: Option<Round>,
    ) -> Result<Vec<Step>, CudaError> {
        let ty = self.module.values[result].ty.clone();
        let (op, x) = match (talk, arg) {
            (Talk::FromLastStage, arg) => return self.told_by_last_stage(name, arg, result),
            (Talk::Op(Sharded::Receive { stage, lane }), None) => {
                let out = self.value_pointer(result, Access::Write, round)?;
                let said = Said::Receive { stage: *stage, lane: *lane };
                return Ok(vec![self.meeting(name, said, held(&ty), (None, Some(out)))?]);
            }
            (Talk::Op(op), Some(arg)) => (op, arg),
            (Talk::Op(_), None) => return Err(self.malformed(format!("`{name}` says nothing"))),
        };
        let from = self.module.values[x].ty.clone();
        match *op {
            Sharded::AllReduce => {
                let told = self.value_pointer(x, Access::Read, round)?;
                let out = self.value_pointer(result, Access::Write, round)?;
                Ok(vec![self.meeting(name, Said::Sum, held(&ty), (Some(told), Some(out)))?])
            }
            Sharded::Send { stage, lane } => {
                let told = self.value_pointer(x, Access::Read, round)?;
                let said = Said::Send { stage, lane };
                Ok(vec![self.meeting(name, said, held(&from), (Some(told), None))?])
            }
            Sharded::AllGather { width } => self.side_by_side(name, (x, &from), (result, width), round),
            Sharded::ReduceScatter { ranks } => self.scattered(name, (x, &from), (result, ranks), round),
            Sharded::GatherRows { .. } => self.all_rows(name, (x, &from), (result, &ty), round),
            Sharded::TakeRows { first, .. } => {
                let arrange = Arrange { first_row: first as i64, ..Arrange::of(&from, &ty) };
                self.laid(name, arrange, x, result, round, "The rank's run of the rows.")
            }
            Sharded::Take { first, length, .. } => {
                let columns = [from.rows(), first + length];
                let arrange = Arrange { x: columns, first_col: first as i64, ..Arrange::of(&from, &ty) };
                self.laid(name, arrange, x, result, round, "The rank's run of the columns.")
            }
            Sharded::EmbedPart { .. } | Sharded::EmbedPartDw { .. } | Sharded::Receive { .. } => {
                Err(self.malformed(format!("`{name}` is said to nobody")))
            }
        }
    }

    /// Ranks of the tensor-parallel group.
    fn ranks(&self) -> Result<u64, CudaError> {
        let share = self.module.share.as_ref();
        share
            .map(|share| share.tensor.of)
            .ok_or_else(|| self.malformed("ranks meet in a module that is no rank's part"))
    }

    /// A meeting of the fitting group over whole values.
    pub(super) fn meeting(
        &self,
        name: &str,
        said: Said,
        count: u64,
        (x, out): (Option<Arg>, Option<Arg>),
    ) -> Result<Step, CudaError> {
        let group = match said {
            Said::Send { .. } | Said::Receive { .. } | Said::FromLastStage => Group::Pipeline,
            _ => Group::Tensor,
        };
        let dtype = x.iter().chain(&out).find_map(|arg| {
            self.buffers.iter().find(|buffer| buffer.name == arg.buffer).map(|buffer| buffer.dtype)
        });
        let dtype = dtype.ok_or_else(|| self.malformed(format!("`{name}` says nothing")))?;
        let (name, beside, last) = (name.to_string(), false, false);
        Ok(Step::Meet(Box::new(Meeting { name, said, group, dtype, count, x, out, beside, last })))
    }

    fn value_pointer(
        &mut self,
        value: usize,
        access: Access,
        round: Option<Round>,
    ) -> Result<Arg, CudaError> {
        let name = self.value_buffer(value, BufferKind::Arena);
        self.pointer(&name, access, round)
    }

    /// A temporary buffer of that type.
    pub(super) fn temporary(&mut self, name: &str, ty: &TensorType) -> String {
        let name = format!("{name}.scratch");
        self.buffers.push(buffer(&name, BufferKind::Arena, ty, None));
        name
    }

    fn laid(
        &mut self,
        name: &str,
        arrange: Arrange,
        x: usize,
        result: usize,
        round: Option<Round>,
        why: &str,
    ) -> Result<Vec<Step>, CudaError> {
        let from = self.value_pointer(x, Access::Read, round)?;
        let to = self.value_pointer(result, Access::Write, round)?;
        Ok(vec![self.arrange(name, arrange, (from, to), why)])
    }

    fn side_by_side(
        &mut self,
        name: &str,
        (x, from): (usize, &TensorType),
        (result, width): (usize, u64),
        round: Option<Round>,
    ) -> Result<Vec<Step>, CudaError> {
        let ranks = self.ranks()?;
        let parts = TensorType::new(from.dtype, &[ranks * from.rows(), from.cols()]);
        let scratch = self.temporary(name, &parts);
        let told = self.value_pointer(x, Access::Read, round)?;
        let heard = self.pointer(&scratch, Access::Write, None)?;
        let said = self.meeting(name, Said::Gather, held(from), (Some(told), Some(heard)))?;
        let arrange = Arrange {
            x: [from.rows(), width],
            part: from.cols(),
            part_stride: held(from),
            ..Arrange::of(from, &self.module.values[result].ty)
        };
        let from = self.pointer(&scratch, Access::Read, None)?;
        let to = self.value_pointer(result, Access::Write, round)?;
        Ok(vec![said, self.arrange(name, arrange, (from, to), "The parts of all ranks side by side.")])
    }

    fn scattered(
        &mut self,
        name: &str,
        (x, from): (usize, &TensorType),
        (result, ranks): (usize, u64),
        round: Option<Round>,
    ) -> Result<Vec<Step>, CudaError> {
        let ty = self.module.values[result].ty.clone();
        let mut steps = Vec::new();
        let told = match from.rows() == ty.rows() * ranks {
            true => self.value_pointer(x, Access::Read, round)?,
            false => {
                let filled = TensorType::new(from.dtype, &[ranks * ty.rows(), from.cols()]);
                let scratch = self.temporary(name, &filled);
                let given = self.value_pointer(x, Access::Read, round)?;
                let to = self.pointer(&scratch, Access::Write, None)?;
                let why = "Rows that do not divide by the ranks are filled up with zeros.";
                steps.push(self.arrange(name, Arrange::of(from, &filled), (given, to), why));
                self.pointer(&scratch, Access::Read, None)?
            }
        };
        let out = self.value_pointer(result, Access::Write, round)?;
        steps.push(self.meeting(name, Said::SumScatter, held(&ty), (Some(told), Some(out)))?);
        Ok(steps)
    }

    fn all_rows(
        &mut self,
        name: &str,
        (x, from): (usize, &TensorType),
        (result, ty): (usize, &TensorType),
        round: Option<Round>,
    ) -> Result<Vec<Step>, CudaError> {
        let ranks = self.ranks()?;
        let told = self.value_pointer(x, Access::Read, round)?;
        if from.rows() * ranks == ty.rows() {
            let out = self.value_pointer(result, Access::Write, round)?;
            return Ok(vec![self.meeting(name, Said::Gather, held(from), (Some(told), Some(out)))?]);
        }
        let all = TensorType::new(from.dtype, &[ranks * from.rows(), from.cols()]);
        let scratch = self.temporary(name, &all);
        let heard = self.pointer(&scratch, Access::Write, None)?;
        let said = self.meeting(name, Said::Gather, held(from), (Some(told), Some(heard)))?;
        let (given, to) =
            (self.pointer(&scratch, Access::Read, None)?, self.value_pointer(result, Access::Write, round)?);
        let why = "The rows of all ranks without the padding behind the last.";
        Ok(vec![said, self.arrange(name, Arrange::of(&all, ty), (given, to), why)])
    }

    /// On the last stage the value stays where it is; the others hear it.
    fn told_by_last_stage(
        &mut self,
        name: &str,
        arg: Option<usize>,
        result: usize,
    ) -> Result<Vec<Step>, CudaError> {
        let count = held(&self.module.values[result].ty);
        let operands = match arg {
            Some(x) => (Some(self.value_pointer(x, Access::Read, None)?), None),
            None => (None, Some(self.value_pointer(result, Access::Write, None)?)),
        };
        Ok(vec![self.meeting(name, Said::FromLastStage, count, operands)?])
    }

    /// Where a talk leaves its value: what is sent, or told by the last stage, is where it was; a sum over ranks is formed in
    /// place where its summand is not needed any more.
    pub(super) fn settle_talk(&mut self, talk: &Talk, arg: Option<usize>, result: usize, free: bool) {
        let stays = matches!(talk, Talk::Op(Sharded::Send { .. }) | Talk::FromLastStage);
        let in_place =
            free && matches!(talk, Talk::Op(Sharded::AllReduce)) && !self.caches.contains_key(&result);
        let Some(arg) = arg.filter(|_| stays || in_place) else { return };
        self.home[result] = self.home[arg];
        if let Some(cache) = self.caches.get(&arg).filter(|_| stays).cloned() {
            self.caches.insert(result, cache);
        }
    }
}
