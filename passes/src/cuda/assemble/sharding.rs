//! What each replica holds alone of weights, gradients and the optimizer's state, and what replicas tell each other for it.
//!
//! A replica has a run of every parameter: whole rows of a matrix, elements of a vector, as many for each replica and zeros
//! behind the end. Its buffers are those of any replica; only gathers and scattered sums know whose run is which.
//!
//! | buffer | optimizer (ZeRO-1) | full (FSDP) |
//! |---|---|---|
//! | weights that kernels read | `NAME`, gathered behind the update | `gatheredK.NAME` of one layer, gathered before its first use |
//! | gradients that they add to | `summand.NAME`, scattered beside the last backward pass | `summandK.NAME` of one layer, scattered behind its last use |
//! | the replica's run | `held.NAME`, `gradient.NAME`, `master.NAME`, `mean.NAME`, `square.NAME` | the same |
use super::arrange::Arrange;
use super::buffers::buffer;
use super::ranks::hears;
use super::{Assembler, KernelSource};
use crate::cuda::CudaError;
use crate::cuda::source::opening;
use crate::cuda::spec::TensorType;
use lapidary_models::shard::StateSharding;
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, Group, Kernel, KernelKind, Launch, Layers, Meeting, Packing,
    RowOrder, Said, Step,
};
use std::collections::BTreeMap;
use std::mem::take;

/// A vector's runs are a multiple of so many elements, which are 16 bytes of the narrowest type that is trained.
const VECTOR: u64 = 8;
const THREADS: u64 = 256;

/// A parameter of which every replica holds a run.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Canonical name.
    pub name: String,
    /// The whole weight.
    pub weight: Buffer,
    /// The whole gradient.
    gradient: Buffer,
    /// How the whole weight is packed, without rows that only fill tiles.
    packing: Packing,
    /// Rows and columns of a run.
    shape: [u64; 2],
    /// How many runs there are.
    replicas: u64,
}

impl Run {
    fn new(weight: Buffer, gradient: Buffer, name: String, replicas: u64) -> Option<Run> {
        // Rows that only fill tiles are nobody's: another stage with the same weight may have none.
        let rows = TensorType::new(Dtype::F32, &gradient.shape).rows();
        let packing = Packing { rows, ..weight.packing.clone()? };
        let shape = match rows {
            1 => [1, packing.cols.div_ceil(replicas).next_multiple_of(VECTOR)],
            rows => [rows.div_ceil(replicas), packing.cols],
        };
        Some(Run { name, weight, gradient, packing, shape, replicas })
    }

    /// One replica's run.
    fn ty(&self, dtype: Dtype) -> TensorType {
        TensorType::new(dtype, &self.shape)
    }

    /// Bytes of the runs of all replicas.
    fn all(&self, dtype: Dtype) -> u64 {
        self.ty(dtype).bytes().saturating_mul(self.replicas)
    }

    fn layers(&self) -> Option<u64> {
        self.weight.layers.map(|layers| layers.count)
    }

    /// The replica's run of the weight; loaded where it is a weight, else temporary.
    pub(super) fn own(&self, name: &str, kind: BufferKind, dtype: Dtype) -> Buffer {
        let ty = self.ty(dtype);
        let pitch = self.packing.cols.next_multiple_of(dtype.vector());
        let packing = (kind == BufferKind::Weight).then(|| Packing { pitch, ..self.packing.clone() });
        Buffer { per_replica: true, packing, ..buffer(name, kind, &ty, self.layers()) }
    }

    fn held(&self) -> String {
        format!("held.{}", self.name)
    }

    fn gradient(&self) -> String {
        format!("gradient.{}", self.name)
    }

    /// Room for the runs of all replicas in each slice.
    fn grown(&self, whole: &Buffer) -> Buffer {
        let slice = whole.slice_bytes().max(self.all(whole.dtype));
        match whole.layers {
            None => Buffer { bytes: slice, ..whole.clone() },
            Some(Layers { count, stride_bytes }) => {
                let stride_bytes = stride_bytes.max(slice.next_multiple_of(256));
                let layers = Some(Layers { count, stride_bytes });
                Buffer { bytes: count.saturating_mul(stride_bytes), layers, ..whole.clone() }
            }
        }
    }

    /// Memory of one layer's whole.
    fn temporary(&self, name: &str, whole: &Buffer) -> Buffer {
        let one = Buffer { layers: None, packing: None, kind: BufferKind::Arena, ..whole.clone() };
        Buffer { name: name.into(), column_order: RowOrder::Natural, ..self.grown(&one) }
    }
}

impl Assembler<'_> {
    /// What replicas hold alone.
    pub(super) fn sharding(&self) -> StateSharding {
        let share = self.module.share.as_ref();
        share.map_or(StateSharding::None, |share| share.sharding)
    }

    /// The run of a parameter, where replicas hold runs.
    pub(super) fn run_of(&self, name: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name)
    }

    /// Leaves each replica its run, and makes steps work on what they gather.
    pub(super) fn shard_state(&mut self, steps: &mut Vec<Step>) -> Result<(), CudaError> {
        let replicas = self.group(Group::Data);
        for (name, gradient) in self.gradients() {
            let weight = self.weight_of(&name)?.clone();
            let pitch =
                weight.packing.as_ref().map(|packing| packing.cols.next_multiple_of(weight.dtype.vector()));
            let run = Run::new(weight.clone(), gradient, name.clone(), replicas);
            let run = run.filter(|_| pitch == Some(weight.pitch));
            self.runs.push(run.ok_or_else(|| self.malformed(format!("`{name}` does not lie in runs")))?);
        }
        let full = self.sharding() == StateSharding::Full;
        for run in self.runs.clone() {
            let dtype = run.weight.dtype;
            // Without a master in single precision the run itself stays.
            let stays = full || dtype == Dtype::F32;
            let kind = if stays { BufferKind::Weight } else { BufferKind::Arena };
            let gradient = buffer(&run.gradient(), BufferKind::State, &run.ty(Dtype::F32), run.layers());
            let own = [run.own(&run.held(), kind, dtype), Buffer { per_replica: true, ..gradient }];
            let replaced = [&run.weight.name, &run.gradient.name];
            self.buffers.retain(|buffer| !replaced.contains(&&buffer.name));
            if !full {
                let summand = Buffer { name: format!("summand.{}", run.name), ..run.gradient.clone() };
                self.buffers.extend([run.grown(&run.weight), run.grown(&summand)]);
            }
            self.buffers.extend(own);
        }
        if full {
            *steps = self.gather_before_use(take(steps), &mut 0)?;
            return Ok(());
        }
        self.widen(steps)?;
        self.beside_backward(steps, "summand.", &|this, arg| this.scatter_of(&arg))
    }

    /// Layers of what grew are farther apart.
    fn widen(&self, steps: &mut [Step]) -> Result<(), CudaError> {
        let renamed: BTreeMap<&str, String> = self
            .runs
            .iter()
            .flat_map(|run| {
                let weight = (run.weight.name.as_str(), run.weight.name.clone());
                [weight, (run.gradient.name.as_str(), format!("summand.{}", run.name))]
            })
            .collect();
        for step in steps {
            for arg in step.args_mut() {
                let Some(name) = renamed.get(arg.buffer.as_str()) else { continue };
                let boxes = arg.boxes;
                let extent_bytes = arg.extent_bytes;
                *arg = Arg { boxes, extent_bytes, ..self.same_slice(name, arg.access, arg)? };
            }
            if let Step::Repeat { body, .. } = step {
                self.widen(body)?;
            }
        }
        Ok(())
    }

    /// The slice of a buffer that an argument has of another one with as many.
    fn same_slice(&self, name: &str, access: Access, of: &Arg) -> Result<Arg, CudaError> {
        let slice = of.offset_bytes.checked_div(of.layer_stride_bytes);
        let one = self.pointer(name, access, None)?;
        let stride = slice.map_or(0, |_| one.layer_stride_bytes);
        Ok(Arg { offset_bytes: slice.unwrap_or(0) * stride, layer_stride_bytes: stride, ..one })
    }

    /// The scattered sum of a summand's slice, beside the backward pass and in the last micro-batch; none where the ranks of a
    /// tensor-parallel group add theirs up before.
    fn scatter_of(&self, summand: &Arg) -> Result<Option<Step>, CudaError> {
        let name = summand.buffer.strip_prefix("summand.").unwrap_or(&summand.buffer);
        let run = self.run_of(name).filter(|_| !self.overlaps(name));
        run.map(|run| self.scatter(run, summand, &run.gradient(), true)).transpose()
    }

    /// Whether ranks of a tensor-parallel group hold overlapping parts of a parameter, whose gradients are laid where they belong
    /// in the whole before they are summed: that cannot be done run by run.
    pub(super) fn overlaps(&self, name: &str) -> bool {
        let parts = self.module.share.as_ref().map(|share| &share.parts);
        self.sums(name) && parts.is_some_and(|parts| parts.contains_key(name))
    }

    fn scatter(&self, run: &Run, summand: &Arg, to: &str, beside: bool) -> Result<Step, CudaError> {
        let x = Arg { access: Access::Read, extent_bytes: run.all(Dtype::F32), ..summand.clone() };
        let out = self.same_slice(to, Access::Write, summand)?;
        Ok(among_replicas(&run.name, Said::SumScatter, Dtype::F32, (x, out), beside))
    }

    fn gather(&self, run: &Run, (x, out): (Arg, Arg)) -> Step {
        let out = Arg { extent_bytes: run.all(run.weight.dtype), boxes: None, ..out };
        among_replicas(&run.name, Said::Gather, run.weight.dtype, (x, out), false)
    }

    /// Behind the last micro-batch, where replicas hold the optimizer's state alone: sums that could not be formed beside the
    /// backward pass, and zeros for the next step.
    pub(super) fn scatter_summands(&mut self) -> Result<Vec<Step>, CudaError> {
        let mut steps = Vec::new();
        for run in self.runs.clone() {
            let name = format!("summand.{}", run.name);
            if self.overlaps(&run.name) {
                let slice = self.sliced(&name, Access::Update)?;
                let mut body = self.sum_laid(&run.name, &run.name, &run.gradient.shape, &slice)?;
                body.push(self.scatter(&run, &slice, &run.gradient(), false)?);
                steps.extend(repeated(body, run.layers()));
            }
            let whole = self.whole(&name, Access::Write)?;
            steps.push(self.clear(whole));
        }
        Ok(steps)
    }

    /// Where replicas hold the optimizer's state alone they tell each other the weights that they changed.
    pub(super) fn gather_changed(&self) -> Result<Vec<Step>, CudaError> {
        if self.sharding() != StateSharding::Optimizer {
            return Ok(Vec::new());
        }
        let gathered = |run: &Run| -> Result<Vec<Step>, CudaError> {
            let x = self.sliced(&run.held(), Access::Read)?;
            let out = self.sliced(&run.weight.name, Access::Write)?;
            Ok(repeated(vec![self.gather(run, (x, out))], run.layers()))
        };
        Ok(self.runs.iter().map(gathered).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// A pointer to a buffer, or to the slice of a round that begins with the first.
    fn sliced(&self, name: &str, access: Access) -> Result<Arg, CudaError> {
        self.pointer(name, access, None)
    }

    /// Weights are gathered before the steps that read them, and gradients scattered behind those that add to them: once in the
    /// body of a repeat, and once in every stretch of steps between repeats and what other stages send.
    fn gather_before_use(&mut self, steps: Vec<Step>, number: &mut usize) -> Result<Vec<Step>, CudaError> {
        let (mut done, mut stretch) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Repeat { times, reverse, body } => {
                    done.extend(self.stretch(take(&mut stretch), number)?);
                    let body = self.gather_before_use(body, number)?;
                    done.push(Step::Repeat { times, reverse, body });
                }
                step if hears(&step) => {
                    done.extend(self.stretch(take(&mut stretch), number)?);
                    stretch.push(step);
                }
                step => stretch.push(step),
            }
        }
        done.extend(self.stretch(stretch, number)?);
        Ok(done)
    }

    fn stretch(&mut self, mut steps: Vec<Step>, number: &mut usize) -> Result<Vec<Step>, CudaError> {
        *number += 1;
        let mut before: Vec<Vec<Step>> = vec![Vec::new(); steps.len()];
        let mut behind = before.clone();
        for run in self.runs.clone() {
            let gathered = run.temporary(&format!("gathered{number}.{}", run.name), &run.weight);
            if let Some(uses) = Uses::of(&mut steps, &run.weight.name, &gathered.name) {
                let out = Arg { access: Access::Write, ..uses.now };
                self.buffers.push(gathered);
                let x = self.same_slice(&run.held(), Access::Read, &uses.before)?;
                // What fills the last tile is zero.
                let all = run.all(run.weight.dtype);
                let rest = run.weight.slice_bytes().saturating_sub(all);
                if rest > 0 {
                    let rest = Arg { offset_bytes: all, extent_bytes: rest, boxes: None, ..out.clone() };
                    before[uses.first].push(self.clear(rest));
                }
                before[uses.first].push(self.gather(&run, (x, out)));
            }
            let summand = run.temporary(&format!("summand{number}.{}", run.name), &run.gradient);
            if let Some(uses) = Uses::of(&mut steps, &run.gradient.name, &summand.name) {
                self.buffers.push(summand);
                let whole = self.whole(&uses.now.buffer, Access::Write)?;
                before[uses.first].push(self.clear(whole));
                behind[uses.last] = self.scattered_at_once(&run, &uses, *number)?;
            }
        }
        let each = before.into_iter().zip(steps).zip(behind);
        Ok(each.flat_map(|((before, step), behind)| [before, vec![step], behind].concat()).collect())
    }

    /// One layer's gradient becomes a run of the sum of all replicas', which is added to what other micro-batches left.
    fn scattered_at_once(&mut self, run: &Run, uses: &Uses, number: usize) -> Result<Vec<Step>, CudaError> {
        let mut steps = Vec::new();
        if self.overlaps(&run.name) {
            let stem = format!("{}_{number}", run.name);
            steps.extend(self.sum_laid(&run.name, &stem, &run.gradient.shape, &uses.now)?);
        }
        let ty = run.ty(Dtype::F32);
        let scattered = self.temporary(&format!("scattered{number}.{}", run.name), &ty);
        steps.push(self.scatter(run, &uses.now, &scattered, false)?);
        let from = self.pointer(&scattered, Access::Read, None)?;
        let to = self.same_slice(&run.gradient(), Access::Update, &uses.before)?;
        let add = Arrange { adds: true, ..Arrange::of(&ty, &ty) };
        let why = "A replica's run of a gradient is added up over micro-batches.";
        steps.push(self.arrange(&format!("add_{}x{}", run.shape[0], run.shape[1]), add, (from, to), why));
        Ok(steps)
    }

    /// Fills memory with zeros, 16 bytes a thread.
    pub(super) fn clear(&mut self, out: Arg) -> Step {
        let runs = out.extent_bytes.div_ceil(16);
        let name = format!("clear_{runs}");
        if !self.kernels.iter().any(|known| known.name == name) {
            let text = opening(&format!("{name}: zeros in {runs} times 16 bytes."))
                + &format!(
                    "extern \"C\" __global__ void __launch_bounds__({THREADS}) {name}(float* out) {{\n    \
                     const unsigned long long run = (unsigned long long)(blockIdx.x) * {THREADS} + threadIdx.x;\n    \
                     const float zeros[4] = {{0.0f, 0.0f, 0.0f, 0.0f}};\n    \
                     if (run < {runs}ull) lp_store(out + 4 * run, 4, zeros);\n}}\n"
                );
            let file = format!("kernels/{name}.cu");
            self.kernels.push(Kernel {
                name: name.clone(),
                file: Some(file.clone()),
                entry: name.clone(),
                kind: KernelKind::Generated,
                anchor: "elementwise".into(),
                ops: vec!["clear".into()],
                reason: "Gradients are added up from zero.".into(),
                choice: None,
                registers: None,
                shared_bytes: 0,
                spill_bytes: None,
                flops: 0,
                bytes: 16 * runs,
            });
            self.sources.push(KernelSource { name: name.clone(), file, text });
        }
        let (grid, block) = ([runs.div_ceil(THREADS) as u32, 1, 1], [THREADS as u32, 1, 1]);
        Step::Launch(Launch { kernel: name, grid, block, shared_bytes: 0, args: vec![out] })
    }
}

/// Where a stretch of steps uses a buffer.
struct Uses {
    first: usize,
    last: usize,
    /// The first argument as it was.
    before: Arg,
    /// What became of it.
    now: Arg,
}

impl Uses {
    /// Turns every argument of one buffer into one of another, which holds one slice; none where there is no such argument.
    fn of(steps: &mut [Step], name: &str, into: &str) -> Option<Uses> {
        let mut uses: Option<Uses> = None;
        for (at, step) in steps.iter_mut().enumerate() {
            for arg in step.args_mut().into_iter().filter(|arg| arg.buffer == name) {
                let before = arg.clone();
                *arg = Arg { buffer: into.into(), offset_bytes: 0, layer_stride_bytes: 0, ..before.clone() };
                let now = arg.clone();
                uses.get_or_insert(Uses { first: at, last: at, before, now }).last = at;
            }
        }
        uses
    }
}

/// A meeting of the replicas.
fn among_replicas(name: &str, said: Said, dtype: Dtype, (x, out): (Arg, Arg), beside: bool) -> Step {
    let part = if said == Said::Gather { &x } else { &out };
    let count = part.extent_bytes / dtype.bytes();
    let (name, group, x, out) = (name.to_string(), Group::Data, Some(x), Some(out));
    Step::Meet(Box::new(Meeting { name, said, group, dtype, count, x, out, beside, last: beside }))
}

/// Steps for every layer, or once.
fn repeated(body: Vec<Step>, layers: Option<u64>) -> Vec<Step> {
    match layers {
        Some(times) => vec![Step::Repeat { times, reverse: false, body }],
        None => body,
    }
}
