//! Runs the generated text of a region on the host and holds it against the reference.
use crate::reference::{Tensor, evaluate};
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Choice, Generated, GeneratedKernel, KernelArg, Operand, Options, lower_kernel};
use lapidary_runtime_gpu::compile::Source as Text;
use lapidary_runtime_gpu::device::{Address, Call, Device, Value};
use lapidary_runtime_gpu::execute::{Tensor as Loaded, Tensors, int8_scale, pack};
use lapidary_runtime_gpu::program::{Buffer, BufferKind, Dtype, PackForm, Packing, RowOrder};
use lapidary_tests::emulation::{Emulated, bf16_bits, get, set};
use std::collections::BTreeMap;

/// Numbers from a seed, about uniform in [-1, 1].
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    }
}

pub fn round(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::Bf16 => f32::from_bits(u32::from(bf16_bits(x)) << 16).into(),
        Dtype::F32 => (x as f32).into(),
        Dtype::I32 | Dtype::I8 => x.round(),
    }
}

/// The bytes of a row-major image; every element starts as NaN.
pub struct Image {
    pub dtype: Dtype,
    pub bytes: Vec<u8>,
}

impl Image {
    pub fn poisoned(dtype: Dtype, elements: u64) -> Image {
        Image { dtype, bytes: vec![0xff; (elements * dtype.bytes()) as usize] }
    }

    pub fn set(&mut self, at: usize, x: f64) {
        set(self.dtype, &mut self.bytes, at, x);
    }

    pub fn get(&self, at: usize) -> f64 {
        get(self.dtype, &self.bytes, at)
    }
}

pub fn activation_image(ty: &TensorType, tensor: &Tensor) -> Image {
    let (cols, pitch) = (ty.cols() as usize, ty.pitch() as usize);
    let mut image = Image::poisoned(ty.dtype, ty.rows() * ty.pitch());
    for (i, &x) in tensor.data.iter().enumerate() {
        image.set(i / cols * pitch + i % cols, x);
    }
    image
}

/// Tensors under the names that regions have, where the loader asks for those of layer 0.
struct Named<F>(F);

impl<F: Fn(&str) -> Tensor> Tensors for Named<F> {
    fn tensor(&self, name: &str) -> Option<Loaded<'_>> {
        let tensor = (self.0)(&name.replacen(".0.", ".*.", 1));
        let shape = tensor.shape.iter().map(|n| *n as u64).collect();
        let read = move |first: u64, out: &mut [f32]| {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = tensor.data[first as usize + i] as f32);
        };
        Some(Loaded { shape, read: Box::new(read) })
    }
}

/// Whole numbers or their scales, made by the loader itself.
fn quantised_image(packing: &Packing, dtype: Dtype, tensor: impl Fn(&str) -> Tensor) -> Image {
    let buffer = Buffer {
        name: "weights".into(),
        kind: BufferKind::Param,
        dtype,
        shape: vec![packing.rows, packing.cols],
        pitch: packing.pitch,
        bytes: packing.rows * packing.pitch * dtype.bytes(),
        offset: None,
        layers: None,
        packing: Some(packing.clone()),
        column_order: RowOrder::Natural,
        per_replica: false,
    };
    Image { dtype, bytes: pack(&buffer, 0, &Named(tensor)).expect("the tensors are there") }
}

/// A device parameter from canonical tensors, as a loader makes it.
pub fn packed_image(packing: &Packing, dtype: Dtype, tensor: impl Fn(&str) -> Tensor) -> Image {
    if packing.form != PackForm::Values {
        return quantised_image(packing, dtype, tensor);
    }
    let mut image = Image::poisoned(dtype, packing.rows * packing.pitch);
    (0..(packing.rows * packing.pitch) as usize).for_each(|i| image.set(i, 0.0));
    let names = packing.groups.iter().flat_map(|group| &group.sources).map(|source| source.name.as_str());
    let tensors: BTreeMap<&str, Tensor> = names.map(|name| (name, tensor(name))).collect();
    for row in 0..packing.rows {
        let Some((source, from)) = packing.source(row) else { continue };
        let tensor = &tensors[source.name.as_str()];
        for col in 0..packing.cols {
            let vector = tensor.shape.len() == 1;
            let at = if vector { source.order.source_row(col) } else { from * packing.cols + col };
            image.set((row * packing.pitch + col) as usize, tensor.data[at as usize] * source.scale);
        }
    }
    image
}

/// A region with its inputs, its caches and what should come out.
pub struct Case<'a> {
    spec: &'a KernelSpec,
    inputs: Vec<Tensor>,
    caches: Vec<(String, Tensor)>,
    values: Vec<Tensor>,
}

impl<'a> Case<'a> {
    /// Random inputs; ids below the table's rows, norm weights around one.
    pub fn new(spec: &'a KernelSpec, seed: u64) -> Case<'a> {
        let mut random = Random(seed);
        let inputs: Vec<Tensor> = (0..spec.inputs.len()).map(|i| input(spec, i, &mut random)).collect();
        let mut caches = Vec::new();
        for op in &spec.ops {
            if let KernelOp::KvAppend { cache, cached } = &op.op {
                let mut past = Tensor::zeros(&op.ty);
                let (d, l) = (past.cols(), past.shape[1]);
                let known = |i: usize| i / d % l < *cached as usize;
                for i in 0..past.data.len() {
                    past.data[i] = if known(i) { round(op.ty.dtype, random.next()) } else { f64::NAN };
                }
                caches.push((cache.clone(), past));
            }
        }
        let values = evaluate(spec, &inputs, &caches);
        Case { spec, inputs, caches, values }
    }

    /// The same with weights that are whole numbers times a scale for each row, which quantising leaves as they are.
    pub fn quantised(spec: &'a KernelSpec, seed: u64) -> Case<'a> {
        let mut case = Case::new(spec, seed);
        for op in spec.ops.iter().filter(|op| op.op == KernelOp::Linear) {
            let weight = &mut case.inputs[op.operands[1]];
            for row in weight.data.chunks_mut(*weight.shape.last().expect("a matrix")) {
                let values: Vec<f32> = row.iter().map(|x| *x as f32).collect();
                let scale = int8_scale(&values);
                row.iter_mut()
                    .zip(values)
                    .for_each(|(x, value)| *x = ((value / scale).round() * scale).into());
            }
        }
        case.values = evaluate(spec, &case.inputs, &case.caches);
        case
    }

    /// Lowers the region and runs its kernels, once with threads in order and once backwards.
    pub fn check(&self, options: &Options) -> Generated {
        self.check_changed(options, |text| text)
    }

    /// The same with a change to the kernels' texts.
    pub fn check_changed(&self, options: &Options, change: impl Fn(String) -> String) -> Generated {
        let choice = lower_kernel(self.spec, options).unwrap_or_else(|e| panic!("{e}"));
        let Choice::Generated(mut generated) = choice else {
            panic!("{} became a library call", self.spec.name)
        };
        generated
            .kernels
            .iter_mut()
            .for_each(|kernel| kernel.source = change(std::mem::take(&mut kernel.source)));
        let text = |kernel: &GeneratedKernel| Text { name: kernel.name.clone(), text: kernel.source.clone() };
        let texts: Vec<Text> = generated.kernels.iter().map(text).collect();
        for backwards in [false, true] {
            let mut device = Emulated::new();
            device.backwards = backwards;
            let ids = device.load(&texts).unwrap_or_else(|error| panic!("{error}"));
            let places = self.prepare(&generated, &mut device);
            for (kernel, id) in generated.kernels.iter().zip(ids) {
                let args = kernel.args.iter().enumerate().map(|(i, arg)| {
                    let at = places[&place(kernel, i, arg)];
                    arg.boxes.map_or(Value::Pointer(at), |boxes| Value::Boxes(at, boxes))
                });
                let (grid, block, shared_bytes) = (kernel.grid, kernel.block, kernel.shared_bytes);
                let call = Call { kernel: id, grid, block, shared_bytes, args: args.collect() };
                device.launch(&call).unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
            }
            for (j, &value) in self.spec.outputs.iter().enumerate() {
                let ty = self.spec.ty(value);
                let mut image = Image::poisoned(ty.dtype, ty.rows() * ty.pitch());
                device.read(places[&format!("output{j}")], &mut image.bytes).expect("the output");
                self.compare(value, generated.output_orders[j], &image);
            }
        }
        generated
    }

    /// Every array in its place, outputs and scratch poisoned.
    fn prepare(&self, generated: &Generated, device: &mut Emulated) -> BTreeMap<String, Address> {
        let mut places = BTreeMap::new();
        let mut write = |name: String, image: Image| {
            let at = device.allocate(image.bytes.len() as u64).expect("memory");
            device.write(at, &image.bytes).expect("memory");
            places.insert(name, at);
        };
        for (i, input) in self.spec.inputs.iter().enumerate() {
            if input.source == Source::Activation {
                write(format!("input{i}"), activation_image(&input.ty, &self.inputs[i]));
            }
        }
        for (j, &value) in self.spec.outputs.iter().enumerate() {
            let ty = self.spec.ty(value);
            let image = match self.spec.op(value).map(|op| &op.op) {
                Some(KernelOp::KvAppend { cache, .. }) => {
                    let past = &self.caches.iter().find(|(name, _)| name == cache).expect("a cache").1;
                    activation_image(ty, past)
                }
                _ if self.spec.gradient(value).is_some() => {
                    let mut old = Tensor::zeros(ty);
                    old.data.iter_mut().for_each(|x| *x = OLD);
                    activation_image(ty, &old)
                }
                _ => Image::poisoned(ty.dtype, ty.rows() * ty.pitch()),
            };
            write(format!("output{j}"), image);
        }
        for (i, ty) in generated.scratch.iter().enumerate() {
            write(format!("scratch{i}"), Image::poisoned(ty.dtype, ty.rows() * ty.pitch()));
        }
        let mut position = Image::poisoned(Dtype::I32, 1);
        position.set(0, self.spec.cached().unwrap_or(0) as f64);
        write("position".into(), position);
        for kernel in &generated.kernels {
            for (i, arg) in kernel.args.iter().enumerate() {
                if let Operand::Param(packing, dtype) = &arg.operand {
                    let image = packed_image(packing, *dtype, |name| self.param(name));
                    write(place(kernel, i, arg), image);
                }
            }
        }
        places
    }

    fn param(&self, wanted: &str) -> Tensor {
        let named = |input: &Input| matches!(&input.source, Source::Param { name, .. } if name == wanted);
        let index = self.spec.inputs.iter().position(named).expect("the packing names an input");
        self.inputs[index].clone()
    }

    /// Every element within 1 % of itself and of the tensor's size (bf16), 10^-4 for f32.
    fn compare(&self, value: usize, order: RowOrder, image: &Image) {
        let ty = self.spec.ty(value);
        let wanted = &self.values[value];
        let finite: Vec<f64> = wanted.data.iter().copied().filter(|x| x.is_finite()).collect();
        let rms = (finite.iter().map(|x| x * x).sum::<f64>() / finite.len().max(1) as f64).sqrt();
        // Derivatives by scores are rounded to bf16 before they are summed, and cancel.
        let cancels = self.spec.ops.iter().any(|op| op.op == KernelOp::Backward(Backward::SoftmaxDx));
        let tolerance = match ty.dtype {
            Dtype::F32 => 1e-4,
            _ if cancels => 4e-2,
            _ => 1e-2,
        };
        let (cols, pitch) = (ty.cols() as usize, ty.pitch() as usize);
        let cached = match self.spec.op(value).map(|op| &op.op) {
            Some(KernelOp::KvAppend { cached, .. }) => *cached as usize,
            _ => 0,
        };
        for row in 0..ty.rows() as usize {
            for col in 0..cols {
                let kept = cached > 0 && row % wanted.shape[1] < cached;
                let from = if kept { col } else { order.source_row(col as u64) as usize };
                let added = if self.spec.gradient(value).is_some() { OLD } else { 0.0 };
                let (found, right) = (image.get(row * pitch + col), wanted.data[row * cols + from] + added);
                let close = (found - right).abs() <= tolerance * (right.abs() + rms)
                    || (found.is_nan() && right.is_nan())
                    || found == right;
                assert!(close, "{}: value {value} [{row}, {col}] is {found}, not {right}", self.spec.name);
            }
        }
    }
}

/// The name of the array that argument `i` of a kernel points to.
fn place(kernel: &GeneratedKernel, i: usize, arg: &KernelArg) -> String {
    match &arg.operand {
        Operand::Input(i) => format!("input{i}"),
        Operand::Output(j) => format!("output{j}"),
        Operand::Scratch(s) => format!("scratch{s}"),
        Operand::Position => "position".into(),
        Operand::Counted => "counted".into(),
        Operand::Param(..) => format!("{}.param{i}", kernel.name),
    }
}

/// What every gradient holds before a kernel adds to it.
const OLD: f64 = 0.75;

fn input(spec: &KernelSpec, i: usize, random: &mut Random) -> Tensor {
    let ty = &spec.inputs[i].ty;
    let mut tensor = Tensor::zeros(ty);
    let table_rows = spec.ops.iter().find_map(|op| match op.op {
        KernelOp::Embed | KernelOp::EmbedPart { .. } if op.operands[0] == i => {
            Some(spec.ty(op.operands[1]).shape[0] as f64)
        }
        KernelOp::Backward(Backward::EmbedDw { .. }) if op.operands[0] == i => Some(op.ty.shape[0] as f64),
        _ => None,
    });
    let classes = spec.ops.iter().find_map(|op| match op.op {
        KernelOp::Backward(Backward::CrossEntropy | Backward::CrossEntropyDx) if op.operands[1] == i => {
            Some(spec.ty(op.operands[0]).cols() as f64)
        }
        _ => None,
    });
    // A softmax's result is what its derivative is given.
    let weights =
        spec.ops.iter().any(|op| op.op == KernelOp::Backward(Backward::SoftmaxDx) && op.operands[0] == i);
    let weight = spec.ops.iter().any(|op| matches!(op.op, KernelOp::Norm { .. }) && op.operands[1] == i);
    for x in &mut tensor.data {
        let raw = random.next();
        let value = match (table_rows, classes) {
            (None, Some(classes)) => ((raw + 1.0) / 2.0 * (classes + 1.0)).floor().min(classes) - 1.0,
            (Some(rows), _) => ((raw + 1.0) / 2.0 * rows).floor().clamp(0.0, rows - 1.0),
            (None, None) if weights => raw.abs(),
            (None, None) if weight => 1.0 + 0.5 * raw,
            (None, None) => raw,
        };
        *x = round(ty.dtype, value);
    }
    tensor
}
