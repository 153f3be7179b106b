//! What ranks of a training step do together: sums of gradients over replicas beside the backward pass, sums over the
//! tensor-parallel group and over tied weights behind it, the loss of all, and the segments that micro-batches run.
use super::arrange::Arrange;
use super::buffers::{LOSS, buffer};
use super::{Assembler, RanksSpec};
use crate::cuda::CudaError;
use crate::cuda::source::opening;
use crate::cuda::spec::TensorType;
use lapidary_models::shard::{Part, StateSharding};
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, Group, Kernel, KernelKind, Launch, Meeting, Micros, Said, Share,
    Step,
};
use std::collections::{BTreeMap, BTreeSet};

/// The lane on which the first stage and the last tell each other gradients of a weight that both have.
const TIED_LANE: u64 = 32_767;

const GRADIENT: &str = "gradient.";

/// What ranks say of the slice of a buffer that steps add to, if anything.
type Word<'a> = dyn Fn(&Assembler<'a>, Arg) -> Result<Option<Step>, CudaError>;

impl<'a> Assembler<'a> {
    fn joint(&self) -> RanksSpec {
        self.module.training.as_ref().map(|training| training.ranks.clone()).unwrap_or_default()
    }

    /// Whether a parameter's gradient counts in the norm at this rank.
    pub(super) fn counts(&self, name: &str) -> bool {
        self.module.share.is_none() || !self.joint().elsewhere.contains(name)
    }

    /// Ranks of a group; one where nothing is spread.
    pub(super) fn group(&self, group: Group) -> u64 {
        self.module.share.as_ref().map_or(1, |share| share.ranks(group))
    }

    /// Gradients are summed over replicas beside the backward pass, and only in the last micro-batch.
    pub(super) fn sum_replicas(&mut self, steps: &mut Vec<Step>) -> Result<(), CudaError> {
        if self.group(Group::Data) < 2 {
            return Ok(());
        }
        self.beside_backward(steps, GRADIENT, &|_, arg| Ok(Some(beside(arg))))
    }

    /// Puts a word about what steps add to, by its prefix, beside the rest of the backward pass: of a layer at the end of its
    /// round, of others behind the last step that adds to them.
    pub(super) fn beside_backward(
        &self,
        steps: &mut Vec<Step>,
        prefix: &str,
        word: &Word<'a>,
    ) -> Result<(), CudaError> {
        let mut last: BTreeMap<String, (usize, Arg)> = BTreeMap::new();
        for (i, step) in steps.iter_mut().enumerate() {
            match step {
                Step::Repeat { body, .. } => {
                    let added: BTreeMap<String, Arg> =
                        added_to(body, prefix).into_iter().map(|arg| (arg.buffer.clone(), arg)).collect();
                    for arg in added.into_values() {
                        body.extend(word(self, arg)?);
                    }
                }
                _ => last.extend(
                    added_to(std::slice::from_ref(step), prefix)
                        .into_iter()
                        .map(|arg| (arg.buffer.clone(), (i, arg))),
                ),
            }
        }
        let mut behind: Vec<(usize, Arg)> = last.into_values().collect();
        behind.sort_by(|a, b| (b.0, &b.1.buffer).cmp(&(a.0, &a.1.buffer)));
        for (i, arg) in behind {
            word(self, arg)?.into_iter().for_each(|word| steps.insert(i + 1, word));
        }
        Ok(())
    }

    /// The sums behind all micro-batches.
    pub(super) fn together(&mut self) -> Result<Vec<Step>, CudaError> {
        if self.module.share.is_none() {
            return Ok(Vec::new());
        }
        let ranks = self.joint();
        let mut steps = Vec::new();
        let full = self.sharding() == StateSharding::Full;
        if self.group(Group::Data) > 1 && !full {
            steps.push(Step::Join);
        }
        if self.sharding() == StateSharding::Optimizer {
            steps.extend(self.scatter_summands()?);
        }
        for (name, gradient) in &self.gradients() {
            // What is laid in the whole was summed before replicas got their runs of it.
            if self.sums(name) && !(self.overlaps(name) && self.run_of(name).is_some()) {
                steps.extend(self.sum_summands(name, gradient)?);
            }
            if ranks.tied.contains(name) {
                steps.extend(self.sum_tied(name, gradient)?);
            }
        }
        steps.extend(self.loss()?);
        Ok(steps)
    }

    /// All gradients, by the parameter's name.
    pub(super) fn gradients(&self) -> Vec<(String, Buffer)> {
        let of = |buffer: &Buffer| buffer.name.strip_prefix(GRADIENT).map(str::to_string);
        self.buffers.iter().filter_map(|buffer| Some((of(buffer)?, buffer.clone()))).collect()
    }

    /// Whether a parameter's gradient is the sum over the tensor-parallel group.
    pub(super) fn sums(&self, name: &str) -> bool {
        self.group(Group::Tensor) > 1 && self.joint().summed.contains(name)
    }

    /// A sum over a group in place.
    pub(super) fn sum(&self, name: &str, group: Group, arg: &Arg) -> Step {
        let (x, out) =
            (Arg { access: Access::Read, ..arg.clone() }, Arg { access: Access::Update, ..arg.clone() });
        let (name, dtype, count) = (name.to_string(), Dtype::F32, arg.extent_bytes / 4);
        let (said, x, out) = (Said::Sum, Some(x), Some(out));
        Step::Meet(Box::new(Meeting { name, said, group, dtype, count, x, out, beside: false, last: false }))
    }

    /// A gradient's sum over the tensor-parallel group.
    fn sum_summands(&mut self, name: &str, gradient: &Buffer) -> Result<Vec<Step>, CudaError> {
        if !self.overlaps(name) {
            let whole = self.whole(&gradient.name, Access::Update)?;
            return Ok(vec![self.sum(name, Group::Tensor, &whole)]);
        }
        let slice = self.pointer(&gradient.name, Access::Update, None)?;
        let body = self.sum_laid(name, name, &gradient.shape, &slice)?;
        match gradient.layers {
            Some(layers) => Ok(vec![Step::Repeat { times: layers.count, reverse: false, body }]),
            None => Ok(body),
        }
    }

    /// What ranks hold in part is laid where it belongs in the whole before it is summed, and cut out behind.
    pub(super) fn sum_laid(
        &mut self,
        name: &str,
        stem: &str,
        shape: &[u64],
        slice: &Arg,
    ) -> Result<Vec<Step>, CudaError> {
        let part = self.module.share.as_ref().and_then(|share| share.parts.get(name).copied());
        let part = part.ok_or_else(|| self.malformed(format!("`{name}` is whole")))?;
        let ty = TensorType::new(Dtype::F32, shape);
        let rows = ty.shape.len() > 1 && part.axis == 0;
        let mut shape = ty.shape.clone();
        shape[part.axis] = part.whole;
        let whole = TensorType::new(Dtype::F32, &shape);
        let stem: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let scratch = self.temporary(&format!("{stem}.sum"), &whole);
        let Part { start, length, .. } = part;
        let used = if rows { [length, ty.cols()] } else { [ty.rows(), length] };
        let (row, col) = if rows { (start as i64, 0) } else { (0, start as i64) };
        let lay = Arrange { x: used, first_row: -row, first_col: -col, ..Arrange::of(&ty, &whole) };
        let end = if rows { [start + length, whole.cols()] } else { [whole.rows(), start + length] };
        let cut = Arrange { x: end, first_row: row, first_col: col, ..Arrange::of(&whole, &ty) };
        let own = Arg { access: Access::Read, ..slice.clone() };
        let back = Arg { access: Access::Write, ..slice.clone() };
        let laid = self.pointer(&scratch, Access::Write, None)?;
        let why = "A gradient whose weight several ranks hold is summed where it belongs in the whole.";
        let first = self.arrange(&format!("lay_{stem}"), lay, (own, laid.clone()), why);
        let met = self.sum(name, Group::Tensor, &laid);
        let from = self.pointer(&scratch, Access::Read, None)?;
        Ok(vec![first, met, self.arrange(&format!("cut_{stem}"), cut, (from, back), why)])
    }

    /// The first stage and the last tell each other their gradients; both form the same sum.
    fn sum_tied(&mut self, name: &str, gradient: &Buffer) -> Result<Vec<Step>, CudaError> {
        let Some(share) = self.module.share.clone().filter(|share| share.stage.of > 1) else {
            return Ok(Vec::new());
        };
        let stage = if share.stage.index == 0 { share.stage.of - 1 } else { 0 };
        let ty = TensorType::new(Dtype::F32, &gradient.shape);
        let stem: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let scratch = self.temporary(&format!("{stem}.heard"), &ty);
        let told = self.pointer(&gradient.name, Access::Read, None)?;
        let heard = self.pointer(&scratch, Access::Write, None)?;
        let count = told.extent_bytes / 4;
        let send = self.meeting(name, Said::Send { stage, lane: TIED_LANE }, count, (Some(told), None))?;
        let receive =
            self.meeting(name, Said::Receive { stage, lane: TIED_LANE }, count, (None, Some(heard)))?;
        let (from, to) = (
            self.pointer(&scratch, Access::Read, None)?,
            self.pointer(&gradient.name, Access::Update, None)?,
        );
        let add = Arrange { adds: true, ..Arrange::of(&ty, &ty) };
        let why = "A weight that two stages hold has the sum of both gradients.";
        Ok(vec![send, receive, self.arrange(&format!("tie_{stem}"), add, (from, to), why)])
    }

    /// The loss of all ranks and micro-batches, told by the last stage; what was added up is zero again.
    fn loss(&mut self) -> Result<Vec<Step>, CudaError> {
        let Some(share) = self.module.share.clone() else { return Ok(Vec::new()) };
        self.loss_sum();
        let ty = TensorType::new(Dtype::F32, &[1]);
        self.buffers.push(buffer("loss", BufferKind::Output, &ty, None));
        let one = |this: &Self, name: &str, access| -> Result<Arg, CudaError> {
            Ok(Arg { extent_bytes: 4, ..this.pointer(name, access, None)? })
        };
        let mut steps = Vec::new();
        let last = share.stage.index + 1 == share.stage.of;
        if share.replicas > 1 && last {
            steps.push(self.sum("loss", Group::Data, &one(self, LOSS, Access::Update)?));
        }
        if share.stage.of > 1 {
            let operands = match last {
                true => (Some(one(self, LOSS, Access::Read)?), None),
                false => (None, Some(one(self, LOSS, Access::Update)?)),
            };
            steps.push(self.meeting("loss", Said::FromLastStage, 1, operands)?);
        }
        let args = vec![one(self, LOSS, Access::Update)?, one(self, "loss", Access::Write)?];
        let text = opening("tell_loss: the loss of the step; what was added up begins anew.")
            + "extern \"C\" __global__ void __launch_bounds__(32) tell_loss(float* sum, float* loss) {\n    \
               if (threadIdx.x != 0) return;\n    loss[0] = sum[0];\n    sum[0] = 0.0f;\n}\n";
        steps.push(self.single("tell_loss", text, args, "One number of all ranks."));
        Ok(steps)
    }

    /// A kernel of one warp and its launch.
    fn single(&mut self, name: &str, text: String, args: Vec<Arg>, why: &str) -> Step {
        let file = format!("kernels/{name}.cu");
        self.kernels.push(Kernel {
            name: name.into(),
            file: Some(file.clone()),
            entry: name.into(),
            kind: KernelKind::Generated,
            anchor: "elementwise".into(),
            ops: vec![name.into()],
            reason: why.into(),
            choice: None,
            registers: None,
            shared_bytes: 0,
            spill_bytes: None,
            flops: 0,
            bytes: 8,
        });
        self.sources.push(super::KernelSource { name: name.into(), file, text });
        let (grid, block) = ([1, 1, 1], [32, 1, 1]);
        Step::Launch(Launch { kernel: name.into(), grid, block, shared_bytes: 0, args })
    }

    /// The rank's share with the segments of its steps. What one segment leaves for another is kept, for each micro-batch
    /// that is under way.
    pub(super) fn micros(&mut self, steps: &[Step]) -> Result<Option<Share>, CudaError> {
        let Some(mut share) = self.module.share.clone() else { return Ok(None) };
        let Some(schedule) = self.joint().schedule else { return Ok(Some(share)) };
        let mut segments: Vec<usize> = (0..self.finish).filter(|i| hears(&steps[*i])).collect();
        // The first stage begins with the ids, the others with what they hear.
        match share.stage.index {
            0 => segments.insert(0, 0),
            _ => segments.iter_mut().take(1).for_each(|first| *first = 0),
        }
        if segments.is_empty() {
            segments.push(0);
        }
        let bounds: Vec<usize> = segments.iter().copied().chain([self.finish, steps.len()]).collect();
        let mut seen: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (segment, range) in bounds.windows(2).enumerate() {
            for name in names(&steps[range[0]..range[1]]) {
                seen.entry(name).or_default().insert(segment);
            }
        }
        for buffer in &mut self.buffers {
            let crosses = seen.get(&buffer.name).is_some_and(|segments| segments.len() > 1);
            if buffer.kind == BufferKind::Arena && crosses {
                buffer.kind = BufferKind::Kept;
            }
        }
        let segments = segments.into_iter().map(|at| at as u64).collect();
        share.micros = Some(Micros { segments, finish: self.finish as u64, schedule });
        Ok(Some(share))
    }
}

/// Whether a step hears what another stage sent.
pub(super) fn hears(step: &Step) -> bool {
    matches!(step, Step::Meet(meeting) if matches!(meeting.said, Said::Receive { .. }))
}

/// A sum over replicas that work goes on beside, in the last micro-batch.
fn beside(arg: Arg) -> Step {
    let name = arg.buffer.clone();
    let (x, out) = (Arg { access: Access::Read, ..arg.clone() }, Arg { access: Access::Update, ..arg });
    let (dtype, count, group) = (Dtype::F32, x.extent_bytes / 4, Group::Data);
    let (said, x, out) = (Said::Sum, Some(x), Some(out));
    Step::Meet(Box::new(Meeting { name, said, group, dtype, count, x, out, beside: true, last: true }))
}

/// The buffers with that prefix that steps add to, as they write them.
fn added_to(steps: &[Step], prefix: &str) -> Vec<Arg> {
    let written = |arg: &&Arg| arg.access != Access::Read && arg.buffer.starts_with(prefix);
    steps
        .iter()
        .flat_map(|step| step.args().into_iter().filter(written).cloned().collect::<Vec<_>>())
        .collect()
}

/// The buffers that steps touch.
fn names(steps: &[Step]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for step in steps {
        match step {
            Step::Repeat { body, .. } => found.extend(names(body)),
            _ => found.extend(step.args().into_iter().map(|arg| arg.buffer.clone())),
        }
    }
    found
}
