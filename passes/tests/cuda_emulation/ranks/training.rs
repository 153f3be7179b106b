//! Training steps of ranks: micro-batches in turns, sums over groups, and weights that change as the whole model's do.
use super::*;
use lapidary_models::autodiff::{Recompute, differentiate};
use lapidary_models::shard::StateSharding;
use lapidary_passes::lower_to_cpu::Together;
use lapidary_passes::lower_to_cuda::emit_gpu_training_part;
use lapidary_passes::pipeline::{Pipeline, rank_training, training_text};
use lapidary_runtime_gpu::collectives::Peers;
use lapidary_runtime_gpu::execute::held;
use lapidary_runtime_gpu::program::{Buffer, PackForm};
use std::collections::BTreeMap;

mod sharing;

/// lr, beta1, beta2, eps, weight decay, clip, and the corrections of the first step. A large eps, so that a step shows the
/// size of the gradient and not only its sign.
const SETTINGS: [f32; 8] = [0.5, 0.9, 0.95, 0.01, 0.1, 0.5, 0.1, 0.05];
const RATES: [f32; 2] = [0.5, 2.0];
/// Sequences of a step.
const ALL: u64 = 4;

/// How a step is spread.
struct Spread {
    /// Tensor-parallel ranks, replicas, stages.
    degrees: [u64; 3],
    way: Way,
    micros: u64,
    policy: Recompute,
    sharding: StateSharding,
}

impl Spread {
    fn of(degrees: [u64; 3], micros: u64) -> Spread {
        let (way, policy, sharding) = (Way::default(), Recompute::Selective, StateSharding::None);
        Spread { degrees, way, micros, policy, sharding }
    }

    fn sharding(self, sharding: StateSharding) -> Spread {
        Spread { sharding, ..self }
    }

    fn rows(self) -> Spread {
        Spread { way: Way { sequence: true, ..self.way }, ..self }
    }
}

fn graph(spec: &ModelSpec, batch: u64) -> Graph {
    let dims = Dims { batch, seq: SEQ, cached: 0 };
    differentiate(&Graph::build(spec, Mode::Forward, dims).unwrap()).unwrap()
}

fn whole(spec: &ModelSpec) -> Lowered {
    let cx = IrContext::new();
    let mut module = import(&cx, &graph(spec, ALL)).unwrap();
    let text = training_text(Goal::Gpu, Recompute::Selective, &Fusion::On);
    run(&mut module, &Pipeline::parse(&text).unwrap(), Watch::default()).unwrap();
    lower(&module_spec(&module, "sm_80").unwrap(), &options()).unwrap_or_else(|error| panic!("{error}"))
}

fn rank(spec: &ModelSpec, spread: &Spread, place: Place) -> Lowered {
    let [tensor, replicas, pipeline] = spread.degrees;
    let cx = IrContext::new();
    let mut module = import(&cx, &graph(spec, ALL / replicas / spread.micros)).unwrap();
    let shard = shard_text(Degrees { tensor, pipeline }, spread.way, place);
    let passes = rank_training(Goal::Gpu, spread.policy, &Fusion::On, &shard).unwrap();
    let report = run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{error}"));
    let together = Together { replicas, sharding: spread.sharding, micros: spread.micros };
    let part = report.shard.expect("a part");
    emit_gpu_training_part(&module, "sm_80", &options(), &part, together)
        .unwrap_or_else(|error| panic!("{}: {error}", spec.name))
}

fn ids(spec: &ModelSpec, sequence: u64) -> Vec<u32> {
    (0..SEQ).map(|i| ((i * 37 + 11 + sequence * 5) % spec.vocab) as u32).collect()
}

/// The next token; the last of each sequence does not count.
fn labels(ids: &[u32]) -> Vec<i32> {
    ids[1..].iter().map(|id| *id as i32).chain([-1]).collect()
}

fn bytes<T: Copy>(values: impl IntoIterator<Item = T>, word: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.into_iter().flat_map(word).collect()
}

/// Loads a program, with its weights and the optimizer's settings.
fn load(device: &mut dyn Device, lowered: &Lowered, tensors: &dyn Tensors) -> Loaded {
    let program = lowered.program.clone().check().expect("a program that passes its check");
    let mut places = Places::new();
    load_weights(device, program.get(), tensors, &mut places).unwrap_or_else(|error| panic!("{error}"));
    let loaded =
        Loaded::new(device, &program, &texts(lowered), &places).unwrap_or_else(|error| panic!("{error}"));
    let settings = bytes(SETTINGS, f32::to_le_bytes);
    loaded.write(device, "optimizer", &settings).unwrap();
    for buffer in program.get().buffers.iter().filter(|buffer| buffer.name.starts_with("rates.")) {
        loaded.write(device, &buffer.name, &bytes(RATES, f32::to_le_bytes)).unwrap();
    }
    if program.get().buffer("counted").is_some() {
        let counted = (ALL * (SEQ - 1)) as f32;
        loaded.write(device, "counted", &counted.to_le_bytes()).unwrap();
    }
    loaded
}

fn number(device: &mut dyn Device, loaded: &Loaded, name: &str) -> f32 {
    let mut word = [0; 4];
    loaded.read(device, name, &mut word).unwrap();
    f32::from_le_bytes(word)
}

/// Weights after a step, by canonical name with the layer's number.
struct Stepped(BTreeMap<String, (Vec<u64>, Vec<f32>)>);

impl Tensors for Stepped {
    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (shape, values) = self.0.get(name)?;
        let read = move |first: u64, out: &mut [f32]| {
            out.copy_from_slice(&values[first as usize..first as usize + out.len()]);
        };
        Some(Tensor { shape: shape.clone(), read: Box::new(read) })
    }
}

fn weights(program: &GpuProgram) -> Vec<Buffer> {
    let trained = |b: &&Buffer| b.kind == BufferKind::Weight && !b.name.starts_with("master.");
    program.buffers.iter().filter(trained).cloned().collect()
}

fn slice(device: &mut dyn Device, loaded: &Loaded, buffer: &Buffer, layer: u64) -> Vec<f32> {
    let stride = buffer.layers.map_or(buffer.bytes, |layers| layers.stride_bytes);
    let mut bytes = vec![0; stride as usize];
    let at = loaded.address(&buffer.name).unwrap().after(layer * stride);
    device.read(at, &mut bytes).unwrap();
    decode(buffer.dtype, &bytes)
}

/// The whole model's loss, norm and weights after one step.
fn expected(spec: &ModelSpec, stock: &Stock) -> (f32, f32, Stepped) {
    let lowered = whole(spec);
    let mut device = Emulated::new();
    let loaded = load(&mut device, &lowered, stock);
    let all: Vec<Vec<u32>> = (0..ALL).map(|sequence| ids(spec, sequence)).collect();
    let given = bytes(all.iter().flatten().copied(), u32::to_le_bytes);
    loaded.write(&mut device, "ids", &given).unwrap();
    let given = bytes(all.iter().flat_map(|ids| labels(ids)), i32::to_le_bytes);
    loaded.write(&mut device, "labels", &given).unwrap();
    loaded.run(&mut device).unwrap_or_else(|error| panic!("{error}"));
    let loss =
        lowered.program.buffers.iter().find(|b| b.kind == BufferKind::Output && b.name != "gradient_norm");
    let loss = number(&mut device, &loaded, &loss.expect("a loss").name.clone());
    let norm = number(&mut device, &loaded, "gradient_norm");
    let mut stepped = BTreeMap::new();
    for buffer in weights(&lowered.program) {
        let packing = buffer.packing.clone().expect("a weight");
        assert_eq!(packing.form, PackForm::Values);
        for layer in 0..buffer.layers.map_or(1, |layers| layers.count) {
            let values = slice(&mut device, &loaded, &buffer, layer);
            let source = &packing.groups[0].sources[0];
            let name = source.name.replacen('*', &layer.to_string(), 1);
            let (rows, cols) = (source.rows as usize, packing.cols as usize);
            let pitch = packing.pitch as usize;
            let whole: Vec<f32> =
                (0..rows).flat_map(|row| values[row * pitch..row * pitch + cols].to_vec()).collect();
            let shape = stock.0.iter().find(|(known, _)| *known == name).expect("a parameter").1.clone();
            stepped.insert(name, (shape, whole));
        }
    }
    (loss, norm, Stepped(stepped))
}

/// One step of all ranks changes the weights as one step of the whole model does.
fn check(spec: &ModelSpec, spreads: &[Spread], tolerance: f32) -> Vec<Vec<GpuProgram>> {
    let stock = Stock::of(&graph(spec, ALL));
    let (loss, norm, stepped) = expected(spec, &stock);
    spreads.iter().map(|spread| check_one(spec, spread, &stock, (loss, norm, &stepped), tolerance)).collect()
}

fn check_one(
    spec: &ModelSpec,
    spread: &Spread,
    stock: &Stock,
    (loss, norm, stepped): (f32, f32, &Stepped),
    tolerance: f32,
) -> Vec<GpuProgram> {
    let [tensor, replicas, pipeline] = spread.degrees;
    let parts: Vec<Lowered> = (0..pipeline)
        .flat_map(|stage| (0..tensor).map(move |tensor| Place { tensor, stage }))
        .map(|place| rank(spec, spread, place))
        .collect();
    let programs: Vec<&GpuProgram> = parts.iter().map(|part| &part.program).collect();
    check_together(&programs).unwrap_or_else(|faults| panic!("{faults:?}"));
    let each = ALL / replicas / spread.micros;
    ranks(spread.degrees, |peers: Threads| {
        let standing = peers.standing();
        let own = &parts[(standing.stage.index * tensor + standing.tensor.index) as usize];
        let share = own.program.share.clone().expect("a share");
        let mut device = Among::new(Box::new(Emulated::new()), peers);
        let device: &mut dyn Device = &mut device;
        let loaded = load(device, own, &Parts::new(stock, &share));
        let first = standing.replica.index * (ALL / replicas);
        let told = loaded.run_micros(device, &mut |device, micro, places| {
            let sequences = first + micro * each..first + (micro + 1) * each;
            let all: Vec<Vec<u32>> = sequences.map(|sequence| ids(spec, sequence)).collect();
            if let Some(at) = places.get("ids") {
                device.write(*at, &bytes(all.iter().flatten().copied(), u32::to_le_bytes))?;
            }
            match places.get("labels") {
                Some(at) => {
                    device.write(*at, &bytes(all.iter().flat_map(|ids| labels(ids)), i32::to_le_bytes))
                }
                None => Ok(()),
            }
        });
        told.and_then(|()| loaded.finish(device)).unwrap_or_else(|error| panic!("{error}"));
        let near = |what: &str, found: f32, right: f32| {
            let plan = share.plan();
            assert!((found - right).abs() <= tolerance * right.abs(), "{plan}: {what} {found}, not {right}");
        };
        near("loss", number(device, &loaded, "loss"), loss);
        near("norm", number(device, &loaded, "gradient_norm"), norm);
        let own_part = Parts::new(stepped, &share);
        let before = Parts::new(stock, &share);
        for buffer in weights(&own.program) {
            for layer in 0..buffer.layers.map_or(1, |layers| layers.count) {
                let replica = standing.replica.index;
                let packed = |tensors| decode(buffer.dtype, &held(&buffer, layer, replica, tensors).unwrap());
                let (wanted, old) = (packed(&own_part), packed(&before));
                let found = slice(device, &loaded, &buffer, layer);
                let moved = wanted.iter().zip(&old).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                for (i, (x, right)) in found.iter().zip(&wanted).enumerate() {
                    // Steps are at most lr x rate: what differs is a share of the largest change.
                    assert!(
                        (x - right).abs() <= 20.0 * tolerance * moved.max(0.01),
                        "{} {}: {}.{layer} [{i}] is {x}, not {right}; it was {}",
                        spec.name,
                        share.plan(),
                        buffer.name,
                        old[i]
                    );
                }
            }
        }
    });
    parts.into_iter().map(|part| part.program).collect()
}

#[test]
fn tensor_parallel_ranks_and_replicas_train_as_the_whole_model() {
    let programs = check(
        &small("llama-3-8b", DType::F32),
        &[Spread::of([2, 1, 1], 2).rows(), Spread::of([1, 2, 1], 2)],
        2e-4,
    );
    // Gradients of layers are summed over replicas beside the rest of the backward pass.
    let beside = programs[1][0]
        .flat_steps()
        .into_iter()
        .filter(|step| matches!(step, Step::Meet(meeting) if meeting.beside && meeting.last));
    assert_eq!(beside.count(), 12);
}

#[test]
fn stages_train_as_the_whole_model() {
    let amber = small("amber", DType::F32);
    let chunks = Spread { way: Way { chunks: 2, sequence: false }, ..Spread::of([1, 1, 2], 4) };
    check(&amber, &[Spread::of([2, 1, 2], 2), chunks], 2e-4);
    let chunks = Spread { way: Way { chunks: 2, sequence: false }, ..Spread::of([1, 1, 2], 4) };
    let programs = check(&small("amber", DType::Bf16), &[chunks], 0.02);
    let sums = |program: &GpuProgram| program.buffers.iter().any(|b| b.name.ends_with("log_sums"));
    assert!(programs[0].iter().all(sums));
    // Embedding and head are one weight, which the first stage and the last hold.
    check(&small("cerebras-gpt-111m", DType::F32), &[Spread::of([1, 2, 2], 2)], 2e-4);
}
