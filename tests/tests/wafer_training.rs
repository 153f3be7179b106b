//! A whole training step as wafer programs, word by word on simulated PEs: loss and gradients of stored models against
//! those of a public implementation.

use lapidary_models::autodiff::labels::next_tokens;
use lapidary_models::autodiff::work::Phase;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::op::Backward;
use lapidary_models::{DType, Dims, Function, Op, builtin};
use lapidary_passes::cpu::TrainModule;
use lapidary_passes::wafer::{Generated, Kept, OpKind, TrainStage, WaferSpec, generate, place_training};
use lapidary_planner::wafer::ops::StepOps;
use lapidary_runtime_sim::{FabricSpec, check, event, flow};
use lapidary_tests::checkpoint::Stored;
use std::collections::{BTreeMap, BTreeSet};

type Tensors = BTreeMap<String, Vec<f32>>;

/// A training step of a stored model as programs.
struct Programs {
    stages: Vec<(TrainStage, Generated)>,
}

impl Programs {
    fn of(stored: &Stored, grid: (u32, u32), again: Recompute, kept: Kept) -> Programs {
        let mut spec = stored.spec.clone();
        (spec.dtype.params, spec.dtype.compute) = (DType::F32, DType::F32);
        let dims = Dims { batch: stored.ids.len() as u64, seq: stored.ids[0].len() as u64, cached: 0 };
        let training = training(&spec, dims, &Policy::Uniform(again)).unwrap();
        let module = TrainModule::unfused(&spec, &training);
        let machine = lapidary_hardware::builtin::machine("cs2").unwrap();
        let wafer = machine.wafer().unwrap();
        let place = WaferSpec::of(wafer, wafer.clock());
        let stages = place_training(&module.functions, &module.slots, grid, kept);
        let stages = stages.unwrap_or_else(|fault| panic!("{fault}"));
        let made = |stage: TrainStage| {
            let generated = generate(&stage.placed, &place);
            let generated = generated.unwrap_or_else(|fault| panic!("{}: {fault}", stage.name));
            (stage, generated)
        };
        Programs { stages: stages.into_iter().map(made).collect() }
    }

    fn stage(&self, name: &str) -> &(TrainStage, Generated) {
        self.stages.iter().find(|(stage, _)| stage.name == name).unwrap()
    }
}

/// What a step computes with.
struct Step<'a> {
    params: BTreeMap<String, Vec<f32>>,
    ids: Vec<i32>,
    labels: Vec<i32>,
    programs: &'a Programs,
    gradients: BTreeMap<String, Vec<f32>>,
}

impl Step<'_> {
    /// Runs a program of a layer, or of none, with what the programs before left; gives what it leaves.
    fn run(&mut self, name: &str, layer: Option<usize>, given: &Tensors) -> Tensors {
        let (_, generated) = self.programs.stage(name);
        let of = |name: &str| layer.map_or(name.to_owned(), |n| name.replacen('*', &n.to_string(), 1));
        let count = self.labels.iter().filter(|label| **label >= 0).count() as u64;
        let mut tensors = Tensors::new();
        for (name, data) in &generated.host {
            let parameter = |name: &str| self.params.get(&of(name)).map(Vec::as_slice);
            let values = data.values(parameter, &self.ids).or_else(|| data.label_values(&self.labels, count));
            tensors.extend(values.or_else(|| given.get(name).cloned()).map(|values| (name.clone(), values)));
        }
        let checked =
            check(&generated.program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
        let run = event::simulate(&checked, tensors).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        for (tensor, data) in &generated.host {
            if let Some(parameter) = data.gradient_of() {
                let name = of(&parameter.name);
                let elements = self.params[&name].len();
                let sums = self.gradients.entry(name).or_insert_with(|| vec![0.0; elements]);
                data.add_gradient(&run.tensors[tensor], &self.ids, sums).unwrap();
            }
        }
        run.tensors
    }

    /// The loss; gradients are left in `gradients`.
    fn whole(&mut self, layers: usize) -> f32 {
        let hand = |from: &Tensors| Tensors::from([("input".to_owned(), from["output"].clone())]);
        // Without an embedding that computes, its rows are what the first program loads.
        let mut stream = hand(&self.run("before", None, &Tensors::new()));
        let mut kept = Vec::new();
        for layer in 0..layers {
            let left = self.run("layer", Some(layer), &stream);
            stream = hand(&left);
            kept.push(left.into_iter().filter(|(name, _)| name.starts_with("kept.")).collect::<Tensors>());
        }
        let after = self.run("after", None, &stream);
        stream = hand(&after);
        for layer in (0..layers).rev() {
            stream.extend(kept[layer].clone());
            stream = hand(&self.run("layer_backward", Some(layer), &stream));
        }
        self.run("end", None, &stream);
        after["loss.sum"][0]
    }
}

fn assert_step(name: &'static str, grid: (u32, u32), again: Recompute, kept: Kept) {
    let stored = Stored::open(name);
    let programs = Programs::of(&stored, grid, again, kept);
    let params = stored.params::<f64>(&stored.spec);
    let narrow = |data: &[f64]| data.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let mut step = Step {
        params: params.iter().map(|(name, tensor)| (name.clone(), narrow(&tensor.data))).collect(),
        ids: stored.ids.iter().flatten().map(|id| *id as i32).collect(),
        labels: stored.ids.iter().flat_map(|ids| next_tokens(ids)).collect(),
        programs: &programs,
        gradients: BTreeMap::new(),
    };
    let loss = step.whole(stored.spec.n_layers as usize);
    let wanted = stored.json("meta.json")["loss"].as_f64().unwrap();
    assert!((f64::from(loss) - wanted).abs() < 2e-5 * wanted, "{name}: loss {loss} for {wanted}");
    let wanted = stored.gradients();
    let found: Vec<&String> = step.gradients.keys().collect();
    assert_eq!(found, wanted.keys().collect::<Vec<_>>(), "{name}");
    let mut worst = (0.0, "");
    for (parameter, wanted) in &wanted {
        let largest = wanted.data.iter().fold(0f64, |most, v| most.max(v.abs()));
        let pairs = step.gradients[parameter].iter().zip(&wanted.data);
        let apart = pairs.fold(0f64, |most, (a, b)| most.max((f64::from(*a) - b).abs())) / largest;
        if apart > worst.0 {
            worst = (apart, parameter);
        }
    }
    println!("{name} on {grid:?}: {worst:?}");
    assert!(worst.0 < 5e-5, "{name} on {grid:?}: {worst:?}");
}

#[test]
fn a_step_of_amber_gives_the_stored_gradients_with_kept_inputs_streamed() {
    assert_step("amber-tiny", (8, 8), Recompute::Full, Kept::Streamed);
}

#[test]
fn a_step_of_crystal_gives_the_stored_gradients_with_what_it_reads_kept() {
    assert_step("crystal-tiny", (7, 10), Recompute::Selective, Kept::Resident);
}

#[test]
fn shared_keys_come_out_right() {
    assert_step("llama3-tiny", (9, 7), Recompute::Full, Kept::Resident);
}

#[test]
fn biases_come_out_right() {
    assert_step("pythia-tiny", (8, 8), Recompute::Full, Kept::Streamed);
}

#[test]
fn backward_programs_take_the_same_time_at_both_levels() {
    let programs = Programs::of(&Stored::open("crystal-tiny"), (16, 16), Recompute::Full, Kept::Streamed);
    for name in ["layer", "after", "layer_backward"] {
        let (_, generated) = programs.stage(name);
        let checked = check(&generated.program, &FabricSpec::wse2()).unwrap();
        let flow = flow::time(&checked).unwrap().cycles;
        let event = event::simulate(&checked, BTreeMap::new()).unwrap().report.cycles;
        println!("{name}: flow {flow}, event {event}");
        assert!(flow.abs_diff(event) as f64 / (event as f64) < 0.05, "{name}: flow {flow}, event {event}");
    }
}

/// A node of a graph and why it runs.
type Named = (String, String);

/// Whether a node takes no time of its own: it is part of the kernel of a neighbour.
fn is_part(function: &Function, name: &str) -> bool {
    let node = function.nodes.iter().find(|node| node.name == name).unwrap();
    let scores = function.ty(node.output).shape.len() == 4;
    scores || matches!(node.op, Op::Backward(Backward::ValuesDv { .. } | Backward::Gradient { .. }))
}

/// The nodes of placed ops that the planner would name, with a look at each op that computes: it stands for at least one.
fn placed_nodes(graph: &lapidary_models::Graph, stages: &[TrainStage], layers: bool) -> BTreeSet<Named> {
    let mut found = BTreeSet::new();
    for stage in stages.iter().filter(|stage| stage.name.starts_with("layer") == layers) {
        let main = graph.functions.last().unwrap();
        let function = graph.functions.iter().find(|f| f.name == stage.name).unwrap_or(main);
        for (op, nodes) in stage.placed.ops.iter().zip(&stage.nodes) {
            let priced: Vec<&String> = nodes.iter().filter(|name| !is_part(function, name)).collect();
            let moves = match &op.kind {
                OpKind::Input { .. } | OpKind::Output { .. } | OpKind::Gather(_) => true,
                OpKind::Map(map) => map.steps.is_empty(),
                _ => false,
            };
            assert!(moves || !priced.is_empty(), "{}: {} stands for no priced op", stage.name, op.name);
            for name in priced {
                let node = function.nodes.iter().find(|node| &node.name == name).unwrap();
                let phase = format!("{:?}", Phase::of(graph, function, node));
                assert!(found.insert((name.clone(), phase)), "{name} is placed twice");
            }
        }
    }
    found
}

#[test]
fn the_planner_prices_the_ops_that_are_placed() {
    let spec = builtin("crystalcoder").unwrap();
    for again in [Recompute::Selective, Recompute::Full] {
        let priced = StepOps::new(&spec, 2048, again).unwrap();
        let dims = Dims { batch: 66, seq: 2048, cached: 0 };
        let training = training(&spec, dims, &Policy::Uniform(again)).unwrap();
        let module = TrainModule::unfused(&spec, &training);
        let stages = place_training(&module.functions, &module.slots, (750, 994), Kept::Resident).unwrap();
        for (ops, layers) in [(&priced.layer, true), (&priced.ends, false)] {
            let named = ops.iter().map(|op| (op.node.clone(), format!("{:?}", op.phase)));
            let wanted: BTreeSet<Named> = named.collect();
            assert_eq!(placed_nodes(&training.graph, &stages, layers), wanted, "{again:?}");
        }
    }
}
