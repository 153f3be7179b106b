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

#[path = "ranks/training.rs"]
mod training;

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
