//! What follows a backward pass: the norm of all gradients, clipping, and AdamW on every parameter.
//!
//! The settings are the caller's, set before each run, so that one program serves a whole schedule:
//!
//! | input | values |
//! |---|---|
//! | `optimizer` | lr, beta1, beta2, eps, weight decay, clip (0 for none), 1 - beta1^t, 1 - beta2^t for step t from 1 |
//! | `rates.NAME` | factor of lr, factor of the weight decay |
//!
//! Gradients, moments (`mean.NAME`, `square.NAME`) and master weights (`master.NAME`, where weights are bf16) are f32. The
//! update leaves gradients at zero. Where replicas hold runs of the state, all of this is about a replica's run ([`super::sharding`]). `gradient_norm` holds the norm before clipping and the factor that clipped.
use super::buffers::{buffer, param_buffer};
use super::{Assembler, KernelSource};
use crate::cuda::CudaError;
use crate::cuda::source::{c_type, constants, opening};
use crate::cuda::spec::TensorType;
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, Group, Kernel, KernelKind, Launch, Packing, Step,
};
use std::fmt::Write as _;

const ROW: &str = include_str!("../device/row.cuh");
const SQUARES: &str = include_str!("../device/squares.cuh");
const CLIP: &str = include_str!("../device/clip.cuh");
const UPDATE: &str = include_str!("../device/update.cuh");

const THREADS: u64 = 256;
/// Most blocks that share the squares of one gradient: two for each processor of an A100.
const MOST_BLOCKS: u64 = 216;

/// One parameter: the weight's buffer and its gradient's.
struct Trained {
    name: String,
    weight: Buffer,
    gradient: Buffer,
    /// Runs of four values.
    runs: u64,
    /// Blocks that sum its squares; a multiple of four, so that every share begins on 16 bytes. None where another rank has
    /// the same gradient, and counts it.
    blocks: u64,
    /// Where its shares begin.
    first_part: u64,
}

impl Assembler<'_> {
    /// The steps of the optimizer.
    ///
    /// # Errors
    /// [`CudaError::Malformed`] where a gradient belongs to no weight, or to several.
    pub(super) fn optimizer(&mut self) -> Result<Vec<Step>, CudaError> {
        let trained = self.trained()?;
        let parts: u64 = trained.iter().map(|one| one.blocks).sum();
        for (name, kind, length) in [
            ("optimizer", BufferKind::Input, 8),
            ("gradient_norm", BufferKind::Output, 2),
            ("optimizer.parts", BufferKind::Arena, parts),
        ] {
            self.buffers.push(buffer(name, kind, &TensorType::new(Dtype::F32, &[length]), None));
        }
        let mut steps = Vec::new();
        for one in trained.iter().filter(|one| one.blocks > 0) {
            steps.push(self.squares(one)?);
        }
        steps.extend(self.norm(parts)?);
        for one in &trained {
            if one.weight.kind == BufferKind::Arena && !one.weight.shape.ends_with(&[one.weight.pitch]) {
                // What is behind the rows goes to the other replicas with them.
                let whole = self.whole(&one.weight.name, Access::Write)?;
                steps.push(self.clear(whole));
            }
            steps.push(self.update(one)?);
        }
        Ok(steps)
    }

    fn trained(&self) -> Result<Vec<Trained>, CudaError> {
        let mut first_part = 0;
        let mut trained = Vec::new();
        for (name, gradient) in self.gradients() {
            let own = self.buffers.iter().find(|buffer| buffer.name == format!("held.{name}"));
            let weight = match own {
                Some(run) => run,
                None => self.weight_of(&name)?,
            };
            let ty = TensorType::new(Dtype::F32, &gradient.shape);
            let layers = gradient.layers.map_or(1, |layers| layers.count);
            let runs = layers * ty.rows() * ty.cols().div_ceil(4);
            let blocks = match self.counts(&name) {
                true => runs.div_ceil(THREADS).clamp(1, MOST_BLOCKS).next_multiple_of(4),
                false => 0,
            };
            let weight = weight.clone();
            trained.push(Trained { name, weight, gradient, runs, blocks, first_part });
            first_part += blocks;
        }
        Ok(trained)
    }

    /// The buffer of a parameter's weight.
    pub(super) fn weight_of(&self, name: &str) -> Result<&Buffer, CudaError> {
        let of = |packing: &Packing| {
            packing.groups.iter().flat_map(|group| &group.sources).any(|source| source.name == name)
        };
        let weights: Vec<&Buffer> =
            self.buffers.iter().filter(|buffer| buffer.packing.as_ref().is_some_and(of)).collect();
        let [weight] = weights[..] else {
            let found: Vec<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
            return Err(self.malformed(format!("`{name}` has a gradient and these weights: {found:?}")));
        };
        Ok(weight)
    }

    /// The norm of all gradients: of all ranks that hold different ones.
    fn norm(&mut self, parts: u64) -> Result<Vec<Step>, CudaError> {
        // Replicas that hold everything each have the same sum.
        let mut groups = vec![Group::Tensor, Group::Pipeline];
        groups.extend((!self.sharding().is_none()).then_some(Group::Data));
        groups.retain(|group| self.group(*group) > 1);
        if groups.is_empty() {
            return Ok(vec![self.clip(("optimizer.parts", parts))?]);
        }
        let ty = TensorType::new(Dtype::F32, &[1]);
        self.buffers.push(buffer("optimizer.squares", BufferKind::Arena, &ty, None));
        let text = format!(
            "{ROW}{CLIP}\nextern \"C\" __global__ void __launch_bounds__(THREADS) squares_total(const float* parts, float* out) \
             {{\n    lp_total(parts, out);\n}}\n"
        );
        let source = opening("squares_total: the sum of the squares that this rank has.")
            + &constants(&[("PARTS", parts), ("THREADS", THREADS)])
            + &text;
        let args = vec![
            self.whole("optimizer.parts", Access::Read)?,
            self.whole("optimizer.squares", Access::Write)?,
        ];
        self.add_kernel("squares_total", source, (parts, 4 * parts), "One number that ranks add up.");
        let mut steps = vec![launch("squares_total", 1, args)];
        let squares = Arg { extent_bytes: 4, ..self.whole("optimizer.squares", Access::Update)? };
        steps.extend(groups.into_iter().map(|group| self.sum("the norm of the gradients", group, &squares)));
        steps.push(self.clip(("optimizer.squares", 1))?);
        Ok(steps)
    }

    /// The whole of a buffer.
    pub(super) fn whole(&self, name: &str, access: Access) -> Result<Arg, CudaError> {
        let found = self.buffers.iter().find(|buffer| buffer.name == name);
        let extent_bytes =
            found.map(|buffer| buffer.bytes).ok_or_else(|| self.malformed(format!("no buffer `{name}`")))?;
        Ok(Arg {
            buffer: name.into(),
            access,
            offset_bytes: 0,
            layer_stride_bytes: 0,
            extent_bytes,
            boxes: None,
        })
    }

    fn squares(&mut self, one: &Trained) -> Result<Step, CudaError> {
        let text = format!(
            "{ROW}{SQUARES}\nextern \"C\" __global__ void __launch_bounds__(THREADS) @NAME@(const float* gradient, float* parts) \
             {{\n    lp_squares(gradient, parts);\n}}\n"
        );
        let gradient = self.whole(&one.gradient.name, Access::Read)?;
        let mut parts = self.whole("optimizer.parts", Access::Write)?;
        (parts.offset_bytes, parts.extent_bytes) = (4 * one.first_part, 4 * one.blocks);
        let source = one.constants() + &constants(&[("BLOCKS", one.blocks)]) + &text;
        let why = "Squares are added up block by block, in one order.";
        self.optimizer_kernel("squares", source, (one.blocks, [2, 4]), (one, why), vec![gradient, parts])
    }

    fn clip(&mut self, (squares, parts): (&str, u64)) -> Result<Step, CudaError> {
        let text = format!(
            "{ROW}{CLIP}\nextern \"C\" __global__ void __launch_bounds__(THREADS) clip(const float* parts, const float* settings, \
             float* scale) {{\n    lp_clip(parts, settings, scale);\n}}\n"
        );
        let source =
            opening("clip: the norm of all gradients and the factor that brings it down to the limit.")
                + &constants(&[("PARTS", parts), ("THREADS", THREADS)])
                + &text;
        let args = vec![
            self.whole(squares, Access::Read)?,
            self.whole("optimizer", Access::Read)?,
            self.whole("gradient_norm", Access::Write)?,
        ];
        self.add_kernel("clip", source, (2 * parts, 4 * parts), "One factor for all gradients.");
        Ok(launch("clip", 1, args))
    }

    fn update(&mut self, one: &Trained) -> Result<Step, CudaError> {
        let layers = one.gradient.layers.map(|layers| layers.count);
        let ty = TensorType::new(Dtype::F32, &one.gradient.shape);
        for prefix in ["mean", "square"] {
            self.buffers.push(buffer(&format!("{prefix}.{}", one.name), BufferKind::State, &ty, layers));
        }
        let rates = format!("rates.{}", one.name);
        self.buffers.push(buffer(&rates, BufferKind::Input, &TensorType::new(Dtype::F32, &[2]), None));
        let master = match one.weight.dtype {
            Dtype::F32 => one.weight.name.clone(),
            _ => self.master(one, layers),
        };
        let text = format!(
            "typedef {} Element;\n{UPDATE}\nextern \"C\" __global__ void __launch_bounds__(THREADS) @NAME@(float* gradient, \
             float* mean, float* square, float* master, Element* weight, const float* settings, const float* rates, \
             const float* scale) {{\n    lp_update(gradient, mean, square, master, weight, settings, rates, scale);\n}}\n",
            c_type(one.weight.dtype)
        );
        let slice = one.weight.layers.map_or(0, |layers| layers.stride_bytes / one.weight.dtype.bytes());
        let source = one.constants()
            + &constants(&[
                ("WEIGHT_PITCH", one.weight.pitch),
                ("OWN_MASTER", u64::from(one.weight.dtype == Dtype::F32)),
            ])
            + &long("WEIGHT_SLICE", slice)
            + &text;
        let temporary = one.weight.kind == BufferKind::Arena;
        let weight = if temporary { Access::Write } else { Access::Update };
        let mut args = Vec::new();
        let named = |prefix: &str| format!("{prefix}.{}", one.name);
        for (name, access) in [
            (one.gradient.name.clone(), Access::Update),
            (named("mean"), Access::Update),
            (named("square"), Access::Update),
            (master, Access::Update),
            (one.weight.name.clone(), weight),
            ("optimizer".into(), Access::Read),
            (rates, Access::Read),
            ("gradient_norm".into(), Access::Read),
        ] {
            args.push(self.whole(&name, access)?);
        }
        let why = "AdamW reads and writes every value once and leaves the gradient at zero.";
        self.optimizer_kernel("adamw", source, (one.runs.div_ceil(THREADS), [17, 32]), (one, why), args)
    }

    /// The f32 copy of a bf16 weight, which small updates do not leave as it was.
    fn master(&mut self, one: &Trained, layers: Option<u64>) -> String {
        let name = format!("master.{}", one.name);
        if let Some(run) = self.run_of(&one.name) {
            let master = run.own(&name, BufferKind::Weight, Dtype::F32);
            self.buffers.push(master);
        } else if let Some(packing) = &one.weight.packing {
            let pitch = packing.cols.next_multiple_of(Dtype::F32.vector());
            let rows = TensorType::new(Dtype::F32, &one.gradient.shape).rows();
            let packing = Packing { pitch, rows, ..packing.clone() };
            self.buffers.push(param_buffer(&name, BufferKind::Weight, packing, Dtype::F32, layers));
        }
        name
    }

    /// A kernel that parameters of one shape share.
    fn optimizer_kernel(
        &mut self,
        kind: &str,
        text: String,
        (blocks, [flops, bytes]): (u64, [u64; 2]),
        (one, why): (&Trained, &str),
        args: Vec<Arg>,
    ) -> Result<Step, CudaError> {
        if blocks >= 1 << 31 {
            return Err(self.malformed(format!("`{}` takes {blocks} blocks", one.name)));
        }
        let body = |name: &str| text.replace("@NAME@", name);
        let same = |source: &&KernelSource| {
            source.name.starts_with(kind) && source.text.ends_with(&body(&source.name))
        };
        let name = match self.sources.iter().find(same) {
            Some(known) => known.name.clone(),
            None => {
                let name =
                    format!("{kind}_{}", self.sources.iter().filter(|s| s.name.starts_with(kind)).count());
                let shape = &one.gradient.shape;
                let source = opening(&format!("{name}: parameters of shape {shape:?} in every layer. {why}"))
                    + &body(&name);
                let values = one.runs * 4;
                self.add_kernel(&name, source, (flops * values, bytes * values), why);
                name
            }
        };
        Ok(launch(&name, blocks as u32, args))
    }

    fn add_kernel(&mut self, name: &str, text: String, (flops, bytes): (u64, u64), reason: &str) {
        let file = format!("kernels/{name}.cu");
        self.kernels.push(Kernel {
            name: name.into(),
            file: Some(file.clone()),
            entry: name.into(),
            kind: KernelKind::Generated,
            anchor: "elementwise".into(),
            ops: vec![name.split('_').next().unwrap_or(name).into()],
            reason: reason.into(),
            choice: None,
            registers: None,
            shared_bytes: if name.starts_with("adamw") { 0 } else { 128 },
            spill_bytes: None,
            flops,
            bytes,
        });
        self.sources.push(KernelSource { name: name.into(), file, text });
    }
}

impl Trained {
    fn constants(&self) -> String {
        let ty = TensorType::new(Dtype::F32, &self.gradient.shape);
        let slice = self.gradient.layers.map_or(0, |layers| layers.stride_bytes / 4);
        constants(&[
            ("THREADS", THREADS),
            ("ROWS", ty.rows()),
            ("COLS", ty.cols()),
            ("PITCH", ty.pitch()),
            ("ROW_RUNS", ty.cols().div_ceil(4)),
        ]) + &long("RUNS", self.runs)
            + &long("SLICE", slice)
    }
}

fn long(name: &str, value: u64) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "constexpr unsigned long long {name} = {value};");
    text
}

fn launch(kernel: &str, blocks: u32, args: Vec<Arg>) -> Step {
    let block = [THREADS as u32, 1, 1];
    Step::Launch(Launch { kernel: kernel.into(), grid: [blocks, 1, 1], block, shared_bytes: 0, args })
}
