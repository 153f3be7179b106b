//! Spread models: every rank's program runs on an emulated GPU of its own, in threads that meet, and together they give what
//! the whole model gives on one.
use lapidary_ir::{IrContext, import::import};
use lapidary_models::shard::{Degrees, Place, Way};
use lapidary_models::spec::{DTypes, Position};
use lapidary_models::{DType, Dims, Graph, Mode, ModelSpec, builtin};
use lapidary_passes::cuda::{Lowered, Options, lower};
use lapidary_passes::lower_to_cuda::{emit_gpu_part, module_spec};
use lapidary_passes::pipeline::{Fusion, Goal, pipeline, rank_pipeline};
use lapidary_passes::shard::shard_text;
use lapidary_passes::{Mup, Watch, run};
use lapidary_runtime_gpu::collectives::Among;
use lapidary_runtime_gpu::compile::Source;
use lapidary_runtime_gpu::device::Device;
use lapidary_runtime_gpu::execute::{Loaded, Parts, Places, Tensor, Tensors, decode, load_weights};
use lapidary_runtime_gpu::program::{BufferKind, GpuProgram, Step, check_together};
use lapidary_tests::emulation::Emulated;
use lapidary_tests::emulation::peers::{Threads, ranks};
use std::sync::Mutex;

/// Long enough that attention goes in blocks, and keeps its sums for the backward pass.
const SEQ: u64 = 9;

/// A built-in model with sizes that divide by little.
fn small(name: &str, compute: DType) -> ModelSpec {
    let spec = builtin(name).unwrap();
    let kv = if spec.n_kv_heads < spec.n_heads { 2 } else { 4 };
    let mut spec = ModelSpec {
        vocab: 51,
        vocab_padded_to: None,
        d_model: 24,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: kv,
        head_dim: 8,
        d_ff: 37,
        max_seq: 16,
        dtype: DTypes { compute, params: compute, ..spec.dtype },
        ..spec
    };
    if let Position::Rope(rope) = &mut spec.pos {
        rope.rot_dims = rope.rot_dims.min(8);
    }
    spec
}

/// Weights of the whole model: the same name always has the same numbers.
pub struct Stock(Vec<(String, Vec<u64>)>);

impl Stock {
    pub fn of(graph: &Graph) -> Stock {
        let mut all = Vec::new();
        for param in &graph.params {
            let layers = if param.name.contains('*') { graph.n_layers } else { 1 };
            for layer in 0..layers {
                all.push((param.name.replace('*', &layer.to_string()), param.ty.shape.clone()));
            }
        }
        Stock(all)
    }
}

impl Tensors for Stock {
    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (_, shape) = self.0.iter().find(|(known, _)| known == name)?;
        let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(1099511628211) ^ u64::from(byte));
        let base = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let size = if shape.len() == 1 { 0.3 } else { 1.5 / (shape[1] as f32).sqrt() };
        let read = move |first: u64, out: &mut [f32]| {
            for (i, x) in out.iter_mut().enumerate() {
                let mut bits = (seed ^ (first + i as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                bits = (bits ^ (bits >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                *x = base + size * (((bits >> 40) as f32) / (1u64 << 23) as f32 - 1.0);
            }
        };
        Some(Tensor { shape: shape.clone(), read: Box::new(read) })
    }
}

fn texts(lowered: &Lowered) -> Vec<Source> {
    lowered.sources.iter().map(|s| Source { name: s.name.clone(), text: s.text.clone() }).collect()
}

fn options() -> Options {
    Options { library: false, ..Options::default() }
}

fn whole(spec: &ModelSpec, graph: &Graph) -> Lowered {
    let cx = IrContext::new();
    let mut module = import(&cx, graph).unwrap();
    let passes = pipeline(Goal::Gpu, Mup::Fold, &Fusion::On).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{}: {error}", spec.name));
    lower(&module_spec(&module, "sm_80").unwrap(), &options()).unwrap_or_else(|error| panic!("{error}"))
}

/// The program of one rank.
fn part(graph: &Graph, degrees: Degrees, place: Place, replicas: u64) -> Lowered {
    let cx = IrContext::new();
    let mut module = import(&cx, graph).unwrap();
    let shard = shard_text(degrees, Way::default(), place);
    let passes = rank_pipeline(Goal::Gpu, Mup::Fold, &Fusion::On, &shard).unwrap();
    let report = run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{error}"));
    let part = report.shard.expect("a part");
    emit_gpu_part(&module, "sm_80", &options(), &part, replicas).unwrap_or_else(|error| panic!("{error}"))
}

/// Logits of a program on ids, run `times` times (from a graph where it is more than once).
fn logits(device: &mut dyn Device, lowered: &Lowered, stock: &Stock, ids: &[u32]) -> Vec<f32> {
    let program = lowered.program.clone().check().expect("a program that passes its check");
    let mut places = Places::new();
    let share = lowered.program.share.clone();
    match &share {
        Some(share) => load_weights(device, program.get(), &Parts::new(stock, share), &mut places),
        None => load_weights(device, program.get(), stock, &mut places),
    }
    .unwrap_or_else(|error| panic!("{error}"));
    let loaded = Loaded::new(device, &program, &texts(lowered), &places).unwrap_or_else(|e| panic!("{e}"));
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    if program.get().buffer("ids").is_some() {
        loaded.write(device, "ids", &bytes).unwrap();
    }
    if program.get().buffer("cached").is_some() {
        loaded.write(device, "cached", &0u32.to_le_bytes()).unwrap();
    }
    loaded.run(device).unwrap_or_else(|error| panic!("{error}"));
    let out = program.get().buffers.iter().find(|b| b.kind == BufferKind::Output).expect("an output");
    let first = read(device, &loaded, &out.name);
    // The same from a graph, which is cut where ranks meet.
    let graph = loaded.capture(device).unwrap_or_else(|error| panic!("{error}"));
    device.replay(graph).unwrap_or_else(|error| panic!("{error}"));
    let again = read(device, &loaded, &out.name);
    assert_eq!(first.1, again.1, "a graph gives the same");
    first.0
}

fn read(device: &mut dyn Device, loaded: &Loaded, name: &str) -> (Vec<f32>, Vec<u8>) {
    let out = loaded.program().buffer(name).expect("a buffer").clone();
    let mut bytes = vec![0; out.bytes as usize];
    loaded.read(device, name, &mut bytes).unwrap();
    let (pitch, width) = (out.pitch as usize, *out.shape.last().unwrap() as usize);
    let values = decode(out.dtype, &bytes);
    let rows: Vec<f32> = values.chunks(pitch).flat_map(|row| row[..width].to_vec()).collect();
    let used = out.dtype.bytes() as usize;
    let bytes = bytes.chunks(pitch * used).flat_map(|row| row[..width * used].to_vec()).collect();
    (rows, bytes)
}

/// All ranks of a plan give the logits of the whole model; returns the programs by rank.
fn check(
    spec: &ModelSpec,
    mode: Mode,
    [tensor, replicas, pipeline]: [u64; 3],
    tolerance: f32,
) -> Vec<GpuProgram> {
    let batch = 2;
    let dims = match mode {
        Mode::Decode => Dims { batch, seq: 1, cached: 7 },
        _ => Dims { batch, seq: SEQ, cached: 0 },
    };
    let graph = Graph::build(spec, mode, dims).unwrap();
    let stock = Stock::of(&graph);
    let ids = |replica: u64| -> Vec<u32> {
        (0..batch * dims.seq).map(|i| ((i * 37 + 11 + replica * 5) % spec.vocab) as u32).collect()
    };
    let one = whole(spec, &graph);
    let wanted: Vec<Vec<f32>> =
        (0..replicas).map(|replica| logits(&mut Emulated::new(), &one, &stock, &ids(replica))).collect();
    let degrees = Degrees { tensor, pipeline };
    let parts: Vec<Lowered> = (0..pipeline)
        .flat_map(|stage| (0..tensor).map(move |tensor| Place { tensor, stage }))
        .map(|place| part(&graph, degrees, place, replicas))
        .collect();
    let programs: Vec<&GpuProgram> = parts.iter().map(|part| &part.program).collect();
    check_together(&programs).unwrap_or_else(|faults| panic!("{faults:?}"));
    let seen = Mutex::new(0);
    ranks([tensor, replicas, pipeline], |peers: Threads| {
        let standing = lapidary_runtime_gpu::collectives::Peers::standing(&peers);
        let own = &parts[(standing.stage.index * tensor + standing.tensor.index) as usize];
        let mut device = Among::new(Box::new(Emulated::new()), peers);
        let found = logits(&mut device, own, &stock, &ids(standing.replica.index));
        let wanted = &wanted[standing.replica.index as usize];
        let size = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert_eq!(found.len(), wanted.len());
        for (i, (x, right)) in found.iter().zip(wanted).enumerate() {
            assert!((x - right).abs() <= tolerance * size, "{}: logit {i} is {x}, not {right}", spec.name);
        }
        *seen.lock().unwrap() += 1;
    });
    assert_eq!(*seen.lock().unwrap(), tensor * replicas * pipeline);
    parts.into_iter().map(|part| part.program).collect()
}

fn meetings(steps: &[Step]) -> usize {
    let of = |step: &Step| match step {
        Step::Meet(_) => 1,
        Step::Repeat { body, .. } => meetings(body),
        _ => 0,
    };
    steps.iter().map(of).sum()
}

#[test]
fn tensor_parallel_ranks_give_the_whole_models_logits() {
    let programs = check(&small("llama-3-8b", DType::F32), Mode::Forward, [2, 1, 1], 1e-5);
    // The table's rows, two sums a layer, and the parts of the logits.
    assert_eq!(meetings(&programs[0].steps), 4);
    check(&small("cerebras-gpt-111m", DType::F32), Mode::Decode, [3, 1, 1], 1e-5);
    check(&small("jais-13b", DType::Bf16), Mode::Prefill, [2, 1, 1], 0.02);
}

#[test]
fn stages_and_replicas_give_the_whole_models_logits() {
    check(&small("crystalcoder", DType::F32), Mode::Prefill, [1, 1, 2], 1e-5);
    let programs = check(&small("amber", DType::F32), Mode::Decode, [2, 2, 2], 1e-5);
    let stages: Vec<u64> = programs.iter().map(|p| p.share.as_ref().unwrap().layers.len() as u64).collect();
    assert_eq!(stages, [1, 1, 2, 2]);
    let weights: Vec<u64> = programs.iter().map(|program| program.bytes_of(BufferKind::Param)).collect();
    assert_eq!(weights[0], weights[1]);
}

/// One rank's program is nobody else's.
#[test]
fn another_rank_and_another_world_are_refused() {
    let graph =
        Graph::build(&small("amber", DType::F32), Mode::Forward, Dims { batch: 1, seq: 2, cached: 0 });
    let own = part(&graph.unwrap(), Degrees { tensor: 2, pipeline: 1 }, Place { tensor: 0, stage: 0 }, 1);
    let program = own.program.clone().check().expect("a program");
    let load = |device: &mut dyn Device| {
        let loaded = Loaded::new(device, &program, &texts(&own), &Places::new());
        loaded.map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        load(&mut Emulated::new()),
        "the program is rank 0 in stage 0 of tp2pp1dp1, but this process is alone"
    );
    let told = ranks([2, 2, 1], |peers| load(&mut Among::new(Box::new(Emulated::new()), peers)));
    assert!(told[1].ends_with("but this process is rank 1 in stage 0 of tp2pp1dp2"), "{}", told[1]);
}

/// Names of what ranks of a training step share.
mod training {
    use super::*;
    use lapidary_models::autodiff::{Recompute, differentiate};
    use lapidary_passes::lower_to_cpu::Together;
    use lapidary_passes::lower_to_cuda::emit_gpu_training_part;
    use lapidary_passes::pipeline::{Pipeline, rank_training, training_text};
    use lapidary_models::shard::StateSharding;
    use lapidary_runtime_gpu::collectives::Peers;
    use lapidary_runtime_gpu::execute::held;
    use lapidary_runtime_gpu::program::{Buffer, PackForm};
    use std::collections::BTreeMap;

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
        let loss = lowered
            .program
            .buffers
            .iter()
            .find(|b| b.kind == BufferKind::Output && b.name != "gradient_norm");
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
        spreads
            .iter()
            .map(|spread| check_one(spec, spread, &stock, (loss, norm, &stepped), tolerance))
            .collect()
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
                assert!(
                    (found - right).abs() <= tolerance * right.abs(),
                    "{plan}: {what} {found}, not {right}"
                );
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

    /// Bytes of what the program holds for weights and for gradients and moments, per rank.
    fn state(program: &GpuProgram) -> [u64; 2] {
        [BufferKind::Weight, BufferKind::State].map(|kind| program.bytes_of(kind))
    }

    /// Replicas that have the optimizer's state for a run each (ZeRO-1), or of everything a run alone (FSDP).
    #[test]
    fn replicas_that_share_their_state_train_as_the_whole_model() {
        use StateSharding::{Full, None, Optimizer};
        let spread = |degrees, micros, sharding| Spread::of(degrees, micros).sharding(sharding);
        let amber = small("amber", DType::F32);
        let programs = check(
            &amber,
            &[
                spread([1, 4, 1], 1, None),
                spread([1, 4, 1], 1, Optimizer),
                spread([1, 4, 1], 1, Full),
                spread([1, 2, 1], 2, Optimizer),
                spread([1, 2, 1], 2, Full),
            ],
            2e-4,
        );
        let of = |at: usize| state(&programs[at][0]);
        println!("{:?}", (0..5).map(of).collect::<Vec<_>>());
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
}
