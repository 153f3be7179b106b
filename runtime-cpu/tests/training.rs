//! Training programs written by hand: what runs, what is refused, and that a step goes downhill.

use lapidary_models::DType;
use lapidary_models::optimizer::{AdamW, Decay, ParamUpdate};
use lapidary_models::shard::schedule::{Schedule, Turn};
use lapidary_runtime_cpu::program::train::{
    Kept, Lookup, Meeting, Product, SCHEMA, Side, TrainBuffer, TrainParameter, TrainProgram, TrainStep,
    VERSION,
};
use lapidary_runtime_cpu::program::{Member, RowFn, RowOp, Sizes, StateSharding, Target, TrainShare};
use lapidary_runtime_cpu::train::Trainer;
use lapidary_runtime_cpu::{Engine, LoadOptions, TensorView, WeightError, Weights};
use std::collections::{BTreeMap, BTreeSet};

/// Values between -1 and 1 for any tensor of the two below.
struct Some2;

impl Weights for Some2 {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let shape = match name {
            "embed.weight" => vec![5, 4],
            "head.weight" => vec![6, 4],
            _ => return Err(WeightError::Missing { name: name.into() }),
        };
        let values = (0..shape.iter().product::<u64>()).map(|i| ((i * 37 + 11) % 19) as f32 / 9.5 - 1.0);
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Ok(TensorView { dtype: DType::F32, shape, bytes: bytes.into() })
    }
}

fn function(width: u64, op: RowOp, to: usize) -> RowFn {
    let mut function = RowFn::default();
    let value = function.push(width, op);
    function.send(value, Target::Buffer(to));
    function
}

/// A table, a head and the loss: logits = table[id] headᵀ.
fn program() -> TrainProgram {
    let buffer = |name: &str, width: u64| TrainBuffer {
        name: name.into(),
        width,
        scores: false,
        run: false,
        kept: None,
    };
    let parameter = |name: &str, shape: [u64; 2]| TrainParameter {
        name: name.into(),
        per_layer: false,
        shape: shape.to_vec(),
    };
    let product = |x: usize, side: Side| vec![Product { x, weight: 1, side, column: 0 }];
    TrainProgram {
        schema: SCHEMA.into(),
        version: VERSION,
        model: Sizes { name: "by hand".into(), layers: 1, vocab: 5, max_seq: 8 },
        share: None,
        parameters: vec![parameter("embed.weight", [5, 4]), parameter("head.weight", [6, 4])],
        rotations: Vec::new(),
        buffers: vec![buffer("x", 4), buffer("logits", 6), buffer("dlogits", 6), buffer("dx", 4)],
        body: vec![
            TrainStep::Rows {
                name: "embed".into(),
                function: function(4, RowOp::Embedding { parameter: 0, part: None }, 0),
            },
            TrainStep::Linear {
                name: "head".into(),
                products: product(0, Side::Forward),
                function: function(6, RowOp::Product { column: 0 }, 1),
            },
            TrainStep::Loss { name: "loss".into(), logits: 1, gradient: 2 },
            TrainStep::Linear {
                name: "head.dx".into(),
                products: product(2, Side::Backward),
                function: function(4, RowOp::Product { column: 0 }, 3),
            },
            TrainStep::WeightGradient { name: "head.dw".into(), dy: 2, x: 0, parameter: 1 },
            TrainStep::TableGradient {
                name: "embed.dw".into(),
                dy: 3,
                parameter: 0,
                by: Lookup::Token,
                part: None,
            },
        ],
    }
}

fn trainer() -> Trainer {
    let checked = program().check().expect("a sound program");
    Trainer::load(
        checked,
        &Some2,
        LoadOptions { jobs: 1, engine: Engine::Compiled, ..LoadOptions::default() },
    )
    .expect("loads")
}

const IDS: &[u32] = &[0, 3, 1, 4];
const LABELS: &[i32] = &[3, 1, 4, -1];

#[test]
fn a_program_comes_back_from_its_text() {
    let text = program().to_json();
    assert_eq!(TrainProgram::from_json(&text).expect("reads back"), program());
    assert!(TrainProgram::from_json("{}").expect_err("empty").to_string().contains("missing field"));
}

/// The gradient of the head by hand: (softmax - label) xᵀ over three labelled positions.
#[test]
fn gradients_are_those_of_the_formula() {
    let mut trainer = trainer();
    trainer.accumulate(&[IDS], &[LABELS]).expect("runs");
    let all: Vec<(String, Vec<f32>, Vec<f32>)> =
        trainer.weights().map(|(name, w, g)| (name.to_string(), w.to_vec(), g.to_vec())).collect();
    let (table, head, gradient) = (&all[0].1, &all[1].1, &all[1].2);
    let mut wanted = [0f32; 24];
    for (id, label) in IDS.iter().zip(LABELS).filter(|(_, label)| **label >= 0) {
        let x = &table[*id as usize * 4..][..4];
        let logits: Vec<f32> =
            head.chunks(4).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>()).collect();
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        for (class, logit) in logits.iter().enumerate() {
            let hit = if class as i32 == *label { 1.0 } else { 0.0 };
            x.iter()
                .enumerate()
                .for_each(|(i, x)| wanted[class * 4 + i] += (logit.exp() / sum - hit) * x / 3.0);
        }
    }
    gradient.iter().zip(wanted).for_each(|(found, wanted)| assert!((found - wanted).abs() < 1e-6));
    // A second batch adds; clearing starts over.
    trainer.accumulate(&[IDS], &[LABELS]).expect("runs");
    let twice: Vec<f32> = trainer.weights().nth(1).map(|(_, _, g)| g.to_vec()).expect("a head");
    twice.iter().zip(wanted).for_each(|(found, wanted)| assert!((found - 2.0 * wanted).abs() < 1e-6));
    trainer.clear();
    assert_eq!(trainer.gradient_norm(), 0.0);
}

#[test]
fn steps_go_downhill() {
    let mut trainer = trainer();
    let settings = AdamW {
        lr: 0.05,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        clip: Some(1.0),
        decay: Decay::All,
    };
    let rule = |name: &str| ParamUpdate { name: name.into(), lr: 0.05, weight_decay: 0.0 };
    let updates = [rule("embed.weight"), rule("head.weight")];
    let mut losses = Vec::new();
    for _ in 0..30 {
        trainer.clear();
        losses.push(trainer.accumulate(&[IDS], &[LABELS]).expect("runs"));
        trainer.update(&settings, &updates).expect("has rules");
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]) && losses[29] < 0.3 * losses[0], "{losses:?}");
    let missing = trainer.update(&settings, &updates[..1]).expect_err("no rule");
    assert_eq!(missing.to_string(), "head.weight: no learning rate for this parameter");
}

#[test]
fn batches_that_are_none_are_refused() {
    let mut trainer = trainer();
    let mut why = |ids: &[&[u32]], labels: &[&[i32]]| {
        trainer.accumulate(ids, labels).expect_err("not a batch").to_string()
    };
    assert_eq!(why(&[], &[]), "batch: sequences of 0 tokens, expected 1 to 8");
    assert_eq!(why(&[&[0; 9]], &[&[0; 9]]), "batch: sequences of 9 tokens, expected 1 to 8");
    assert_eq!(
        why(&[&[0, 1], &[0]], &[&[0, 1], &[0]]),
        "batch: every sequence and its labels must have 2 tokens"
    );
    assert_eq!(why(&[&[5]], &[&[0]]), "batch: id 5 is outside of the vocabulary of 5");
    assert_eq!(why(&[&[0]], &[&[5]]), "batch: label 5 is outside of the vocabulary of 5");
}

#[test]
fn programs_that_do_not_fit_are_refused_with_every_fault() {
    let faults = |change: fn(&mut TrainProgram)| {
        let mut program = program();
        change(&mut program);
        program.check().expect_err("faulty").to_string()
    };
    assert_eq!(
        faults(|p| p.buffers[3].width = 5),
        "head.dx: dx is 5 wide, expected 4\nembed.dw: dx is 5 wide, expected 4"
    );
    assert_eq!(
        faults(|p| p.model.vocab = 6),
        "embed: 5 rows of a table for 6\nembed.dw: 5 rows of a table for 6"
    );
    assert_eq!(faults(|p| p.parameters[1].per_layer = true).lines().count(), 3);
    assert_eq!(faults(|p| p.buffers[0].kept = Some(Kept { first: 0, times: 1 })).lines().count(), 3);
    assert!(faults(|p| p.version = 9).contains("expected lapidary/cpu-train-program 3"));
    let outside = faults(|p| p.body[5] = TrainStep::Loss { name: "loss".into(), logits: 9, gradient: 9 });
    assert!(outside.contains("loss: there is no buffer 9"), "{outside}");
    let caches = faults(|p| {
        if let TrainStep::Rows { function, .. } = &mut p.body[0] {
            function.outputs[0].to = Target::Cache(0);
        }
    });
    assert_eq!(caches, "embed: a training step has no cache");
}

/// The second of two ranks, for two micro-batches.
fn share(p: &mut TrainProgram) -> &mut TrainShare {
    let turn = |micro| Turn { segment: 0, micro, flight: 0 };
    p.share.insert(TrainShare {
        tensor: Member { index: 1, of: 2 },
        stage: Member { index: 0, of: 1 },
        replicas: 1,
        layers: vec![0],
        parts: BTreeMap::new(),
        summed: BTreeSet::new(),
        tied: BTreeSet::new(),
        elsewhere: BTreeSet::new(),
        sharding: StateSharding::None,
        segments: vec![0],
        schedule: Schedule { micros: 2, flights: 1, turns: vec![turn(0), turn(1)] },
    })
}

/// What a program says of being one rank's part is checked like its steps.
#[test]
fn a_rank_that_cannot_meet_others_is_found() {
    let faults = |change: &dyn Fn(&mut TrainProgram)| {
        let mut program = program();
        change(&mut program);
        program.check().map(drop).map_err(|faults| faults.to_string())
    };
    let meet = |op, x, out| TrainStep::Meet { name: "meet".into(), op, x, out };
    let with = |op, x, out| {
        faults(&|p| {
            share(p);
            p.body.insert(1, meet(op, x, out));
        })
    };
    assert_eq!(with(Meeting::AllReduce, Some(0), 3), Ok(()));
    assert_eq!(with(Meeting::Take { first: 1, length: 2 }, Some(0), 3), Ok(()));
    for (op, x, out) in [
        (Meeting::AllReduce, Some(0), 1),
        (Meeting::AllReduce, None, 0),
        (Meeting::GatherRows, Some(0), 3),
        (Meeting::Take { first: 3, length: 2 }, Some(0), 3),
        (Meeting::Receive { stage: 1, lane: 0 }, None, 0),
        (Meeting::Send { stage: 0, lane: 0 }, Some(0), 0),
    ] {
        let why = with(op, x, out).expect_err("faulty");
        assert!(why.contains("does not fit its buffers or the other ranks"), "{op:?}: {why}");
    }
    let alone = faults(&|p| p.body.insert(1, meet(Meeting::AllReduce, Some(0), 3)));
    assert_eq!(alone, Err("meet: meets others in a program of no rank".into()));
    let wrong = |change: &dyn Fn(&mut TrainShare)| faults(&|p| change(share(p))).expect_err("faulty");
    assert!(wrong(&|s| s.tensor.index = 2).starts_with("share: a rank of a group"));
    assert!(wrong(&|s| s.layers.clear()).starts_with("share.layers: 0 layers"));
    assert!(wrong(&|s| s.segments = vec![0, 99]).contains("are no runs of steps"));
    assert!(wrong(&|s| s.schedule.turns[1].micro = 2).contains("that is not there"));
    assert!(wrong(&|s| s.schedule.turns.truncate(1)).contains("one turn for each micro-batch"));
    let gather = |p: &mut TrainProgram| {
        share(p);
        let (name, parameters) = ("gather".into(), vec![0]);
        p.body.insert(0, TrainStep::Gather { name, parameters, gradients: Vec::new() });
    };
    assert_eq!(faults(&gather), Err("gather: gathers weights that every rank has".into()));
}
