//! A model of one layer written by hand: it runs, batches, caches, and every way to break it is noticed.

use lapidary_models::DType;
use lapidary_models::spec::{Activation, NormKind, Pairing, Rope, RopeScaling};
use lapidary_runtime_cpu::program::*;
use lapidary_runtime_cpu::store::Footprint;
use lapidary_runtime_cpu::weights::{Held, Owner};
use lapidary_runtime_cpu::{
    Finish, Generation, LoadOptions, Model, Prepared, RunError, Sampling, TensorView, WeightError, Weights,
    Which, generate,
};
use std::borrow::Cow;
use std::sync::Arc;

const D: u64 = 8;
const V: u64 = 40;

/// Every tensor of a shape that its name and the constants give, filled with numbers made from the name.
struct Numbers;

impl Weights for Numbers {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let shape = match name {
            "embed" | "head" => vec![V, D],
            "layers.0.norm" | "layers.1.norm" => vec![D],
            _ if name.starts_with("layers.") => vec![D, D],
            _ => return Err(WeightError::Missing { name: name.into() }),
        };
        let seed: u64 = name.bytes().map(u64::from).sum();
        let number = |i: u64| (((i + 1) * (2 * seed + 1) * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
        let bytes = (0..shape.iter().product()).flat_map(|i| number(i).to_le_bytes()).collect();
        Ok(TensorView { dtype: DType::F32, shape, bytes: Cow::Owned(bytes) })
    }
}

/// The same in one piece of memory, as a mapped file has them, the first one `shift` bytes behind its beginning.
struct Filed {
    file: Owner,
    shift: usize,
}

const NAMES: [&str; 12] = [
    "embed",
    "head",
    "layers.0.norm",
    "layers.1.norm",
    "layers.0.q",
    "layers.1.q",
    "layers.0.k",
    "layers.1.k",
    "layers.0.v",
    "layers.1.v",
    "layers.0.out",
    "layers.1.out",
];

impl Filed {
    fn new(shift: usize) -> Filed {
        let tensors =
            NAMES.iter().flat_map(|name| Numbers.tensor(name).expect("a tensor").bytes.into_owned());
        let file: Vec<u8> = vec![0; shift].into_iter().chain(tensors).collect();
        Filed { file: Arc::new(file), shift }
    }
}

impl Weights for Filed {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let size = |name: &&str| Numbers.tensor(name).map(|t| t.bytes.len());
        let missing = || WeightError::Missing { name: name.into() };
        let at = NAMES.iter().position(|known| *known == name).ok_or_else(missing)?;
        let start = NAMES[..at].iter().map(size).sum::<Result<usize, _>>()? + self.shift;
        let bytes = &self.file.as_ref().as_ref()[start..start + size(&name)?];
        Ok(TensorView { bytes: Cow::Borrowed(bytes), ..Numbers.tensor(name)? })
    }

    fn held(&self, bytes: &[u8]) -> Option<Held> {
        Held::of(&self.file, bytes)
    }
}

fn matrix(name: &str, per_layer: bool, tensors: &[(&str, u64)]) -> Parameter {
    let segment =
        |(tensor, rows): &(&str, u64)| Segment { tensor: (*tensor).into(), rows: *rows, scale: 1.0 };
    let form =
        Form::Matrix { dtype: WeightType::F32, columns: D, segments: tensors.iter().map(segment).collect() };
    Parameter { name: name.into(), per_layer, form }
}

fn buffer(name: &str, width: u64, rows: Rows, slot: usize) -> Buffer {
    Buffer { name: name.into(), width, rows, per_key: false, slot }
}

/// `x = embed; x += out(attention(norm(x))) twice; logits = head(silu(last(x)))`, two heads of four.
fn program() -> CpuProgram {
    let rope = Rope { theta: 100.0, rot_dims: 4, pairing: Pairing::Half, scaling: RopeScaling::None };
    let row = |ops: &[RowOp], value: usize, to: Target| RowFn {
        values: ops.iter().map(|op| RowValue { width: D, op: *op }).collect(),
        outputs: vec![RowOutput { value, to }],
    };
    let embed = row(&[RowOp::Embedding { parameter: 0, part: None }], 0, Target::Buffer(0));
    let norm = RowOp::Norm { x: 0, weight: 1, bias: None, kind: NormKind::Rms, eps: 1e-5 };
    let norm =
        row(&[RowOp::Buffer { buffer: 0 }, RowOp::Vector { parameter: 1 }, norm], 2, Target::Buffer(2));
    let mut qkv = RowFn::default();
    for (at, to) in [Target::Buffer(3), Target::Cache(0), Target::Cache(1)].into_iter().enumerate() {
        let mut value = qkv.push(D, RowOp::Product { column: 32 * at as u64 });
        if at < 2 {
            value = qkv.push(D, RowOp::Rotate { x: value, rotation: 0 });
        }
        qkv.send(value, to);
    }
    let sum = [RowOp::Product { column: 0 }, RowOp::Buffer { buffer: 0 }, RowOp::Add { a: 0, b: 1 }];
    let silu = RowOp::Activation { x: 0, function: Activation::Silu };
    let mut logits = RowFn::default();
    let value = logits.push(V, RowOp::Product { column: 0 });
    logits.send(value, Target::Buffer(6));
    let mask = Mask { causal: true, ..Mask::OPEN };
    let body = vec![
        Step::Rows { name: "norm".into(), rows: Rows::Tokens, function: norm },
        Step::Linear { name: "qkv".into(), rows: Rows::Tokens, x: 2, weight: 2, function: qkv },
        Step::Attention { name: "attention".into(), q: 3, k: 0, v: 1, out: 4, heads: 2, scale: 0.5, mask },
        Step::Linear {
            name: "out".into(),
            rows: Rows::Tokens,
            x: 4,
            weight: 3,
            function: row(&sum, 2, Target::Buffer(1)),
        },
    ];
    let last = row(&[RowOp::LastRow { buffer: 0 }, silu], 1, Target::Buffer(5));
    CpuProgram {
        schema: SCHEMA.into(),
        version: VERSION,
        model: Sizes { name: "by hand".into(), layers: 2, vocab: V, max_seq: 64 },
        parameters: vec![
            Parameter {
                name: "embed".into(),
                per_layer: false,
                form: Form::Table {
                    dtype: WeightType::F32,
                    columns: D,
                    segment: Segment { tensor: "embed".into(), rows: V, scale: 1.0 },
                },
            },
            Parameter {
                name: "norm".into(),
                per_layer: true,
                form: Form::Vector { tensor: "layers.*.norm".into(), length: D, scale: 1.0 },
            },
            matrix("qkv", true, &[("layers.*.q", D), ("layers.*.k", D), ("layers.*.v", D)]),
            matrix("out", true, &[("layers.*.out", D)]),
            matrix("head", false, &[("head", V)]),
        ],
        rotations: vec![Rotation { head_dim: 4, rope }],
        caches: [CacheKind::Key, CacheKind::Value]
            .map(|kind| Cache { kind, heads: 2, head_dim: 4, dtype: WeightType::F32 })
            .to_vec(),
        buffers: vec![
            buffer("x", D, Rows::Tokens, 0),
            buffer("y", D, Rows::Tokens, 1),
            buffer("normed", D, Rows::Tokens, 2),
            buffer("q", D, Rows::Tokens, 3),
            buffer("attended", D, Rows::Tokens, 2),
            buffer("last", D, Rows::Last, 1),
            buffer("logits", V, Rows::Last, 2),
        ],
        body: vec![
            Step::Rows { name: "embed".into(), rows: Rows::Tokens, function: embed },
            Step::Repeat { name: "layers".into(), carried: 0, yielded: 1, body },
            Step::Rows { name: "last".into(), rows: Rows::Last, function: last },
            Step::Linear { name: "head".into(), rows: Rows::Last, x: 5, weight: 4, function: logits },
        ],
        logits: 6,
        share: None,
    }
}

fn model(jobs: usize) -> Model {
    let checked = program().check().expect("a sound program");
    Model::load(checked, &Numbers, LoadOptions { jobs, ..LoadOptions::default() }).expect("loads")
}

#[test]
fn it_prints_and_reads_back() {
    let text = program().to_json();
    assert!(text.starts_with("{\n  \"schema\": \"lapidary/cpu-program\",\n  \"version\": 2,"));
    assert_eq!(CpuProgram::from_json(&text).expect("reads"), program());
    assert!(
        CpuProgram::from_json("{\"schema\": 3}")
            .expect_err("no program")
            .to_string()
            .contains("program.json")
    );
}

/// Matrices and tables of a file are read where they lie, unless their words are not aligned there or the matrices are
/// few; vectors never are. What is said before a load is what the load does.
#[test]
fn weights_in_a_file_are_copied_where_they_are_few_and_change_nothing() {
    let tokens: Vec<u32> = (0..9).map(|i| i * 11 % V as u32).collect();
    let run = |weights: &dyn Weights, copy_at_most| {
        let checked = program().check().expect("a sound program");
        let options = LoadOptions { copy_at_most, ..LoadOptions::default() };
        let prepared = Prepared::new(checked, weights, options).expect("finds them");
        let Footprint { copied, mapped } = prepared.footprint();
        let model = prepared.load(weights).expect("loads");
        let read: usize = model.store().parts().map(<[u8]>::len).sum();
        assert!(copied >= model.store().copied() as u64 && copied % 4096 == 0, "whole pages");
        assert_eq!(mapped + model.store().copied() as u64, read as u64);
        let mut session = model.session(1, 64).expect("room");
        (model.store().copied() as u64, read, session.prefill(&[&tokens]).expect("runs").row(0).to_vec())
    };
    let (all, read, expected) = run(&Numbers, 0);
    let filed = Filed::new(0);
    let (vectors, read_there, found) = run(&filed, 0);
    assert_eq!((all as usize, vectors), (read, 2 * 16 * 4), "bytes copied");
    assert_eq!((read_there, found), (read, expected.clone()));
    let table = 4 * V * D;
    let matrices = all - vectors - table;
    assert_eq!(run(&filed, matrices - 1).0, vectors, "one byte too many");
    let (few, _, found) = run(&filed, matrices);
    assert_eq!((few, found), (all - table, expected.clone()), "all but the table");
    let (copied, _, found) = run(&Filed::new(2), 0);
    assert_eq!((copied, found), (all, expected));
    assert!(Held::of(&filed.file, &[1, 2, 3]).is_none(), "bytes that lie elsewhere");
}

#[test]
fn cached_tokens_and_batches_change_nothing() {
    let tokens: Vec<u32> = (0..50).map(|i| i * 11 % V as u32).collect();
    for jobs in [1, 3] {
        let model = model(jobs);
        let mut whole = model.session(1, 64).expect("room");
        let all: Vec<Vec<f32>> = {
            let logits = whole.extend(&[&tokens], Which::All).expect("runs");
            (0..logits.rows()).map(|row| logits.row(row).to_vec()).collect()
        };
        let mut pair = model.session(2, 64).expect("room");
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let logits = pair.prefill(&[&tokens[..7], &tokens[..33]]).expect("runs");
        assert!(near(logits.row(0), &all[6]) && near(logits.row(1), &all[32]));
        let logits = pair.decode(&[tokens[7], tokens[33]]).expect("runs");
        assert!(near(logits.row(0), &all[7]) && near(logits.row(1), &all[33]));
        let logits = pair.extend(&[&[], &tokens[34..36]], Which::Last).expect("runs");
        assert_eq!(logits.rows(), 1);
        assert!(near(logits.row(0), &all[35]));
        pair.truncate(1, 7);
        let logits = pair.prefill(&[&[], &tokens[7..8]]).expect("runs");
        assert!(near(logits.row(0), &all[7]));
        assert_eq!(pair.lengths(), [8, 8]);
    }
}

#[test]
fn a_prompt_shared_out_by_rows_is_the_same() {
    let model = model(2);
    let tokens: Vec<u32> = (0..60).map(|i| i * 7 % V as u32).collect();
    let mut many = model.session(4, 64).expect("room");
    let mut one = model.session(1, 64).expect("room");
    let expected = one.prefill(&[&tokens]).expect("runs").row(0).to_vec();
    // 240 rows are above the number up to which threads share panels.
    let logits = many.prefill(&[tokens.as_slice(); 4]).expect("runs");
    for row in 0..4 {
        assert!(logits.row(row).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn generation_stops_where_it_should() {
    let model = model(1);
    let ask = |max_new, stop: Vec<u32>| Generation { max_new, stop, sampling: Sampling::GREEDY };
    let run = |ask: &Generation, positions| {
        let mut session = model.session(2, positions).expect("room");
        let mut seen = 0;
        let made = generate(&mut session, &[&[1, 2, 3], &[4]], ask, |_, _| seen += 1).expect("runs");
        assert_eq!(seen, made.iter().map(|(tokens, _)| tokens.len()).sum::<usize>());
        made
    };
    let free = run(&ask(6, vec![]), 64);
    assert!(free.iter().all(|(tokens, finish)| tokens.len() == 6 && *finish == Finish::Length));
    let first = free[0].0[0];
    let stopped = run(&ask(6, vec![first]), 64);
    assert_eq!(stopped[0], (vec![first], Finish::Stop));
    let full = run(&ask(20, vec![]), 8);
    assert_eq!((full[0].0.len(), full[0].1), (6, Finish::Room));
    let alone = generate(&mut model.session(1, 64).expect("room"), &[&[4]], &ask(6, vec![]), |_, _| {})
        .expect("runs");
    assert_eq!(alone[0], free[1]);
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let model = model(1);
    assert!(matches!(model.session(1, 65), Err(RunError::Session { .. })));
    let mut session = model.session(2, 4).expect("room");
    let refused = |session: &mut lapidary_runtime_cpu::Session, tokens: &[&[u32]]| {
        session.prefill(tokens).map(|_| ()).expect_err("refused")
    };
    assert_eq!(refused(&mut session, &[&[1]]), RunError::Batch { found: 1, expected: 2 });
    assert_eq!(refused(&mut session, &[&[], &[]]), RunError::Nothing);
    assert_eq!(refused(&mut session, &[&[1], &[40]]), RunError::Token { sequence: 1, token: 40, vocab: V });
    assert_eq!(refused(&mut session, &[&[1; 5], &[]]), RunError::Room { sequence: 0, length: 5, room: 4 });
    assert_eq!(session.lengths(), [0, 0]);
}

/// The faults of the program after a change.
fn faults(change: impl FnOnce(&mut CpuProgram)) -> String {
    let mut broken = program();
    change(&mut broken);
    broken.check().expect_err("a fault").to_string()
}

fn layer(program: &mut CpuProgram) -> &mut Vec<Step> {
    match &mut program.body[1] {
        Step::Repeat { body, .. } => body,
        _ => unreachable!("the layers"),
    }
}

#[test]
fn every_way_to_break_it_is_noticed() {
    let cases: [(&str, String); 12] = [
        ("schema", faults(|p| p.schema = "other".into())),
        ("its slot holds", faults(|p| drop(p.body.remove(2)))),
        ("over memory it uses", faults(|p| p.buffers[4].slot = 3)),
        ("before this layer stored it", faults(|p| layer(p).swap(1, 2))),
        ("different slots", faults(|p| p.buffers[1].slot = 0)),
        ("is not a matrix", faults(|p| p.parameters[3].form = p.parameters[1].form.clone())),
        ("cannot be read so", faults(|p| p.model.vocab = 41)),
        ("belongs to a layer", faults(|p| p.body.push(layer(&mut p.clone())[3].clone()))),
        ("does not fit per_layer", faults(|p| p.parameters[3].per_layer = false)),
        ("different heads", faults(|p| p.caches[1] = Cache { heads: 1, ..p.caches[1] })),
        ("there is no buffer 9", faults(|p| p.logits = 9).replace("logits: there", "there")),
        (
            "of a product of",
            faults(|p| {
                if let Step::Linear { function, .. } = &mut p.body[3] {
                    function.values[0].op = RowOp::Product { column: 32 };
                }
            }),
        ),
    ];
    for (expected, found) in cases {
        assert!(found.contains(expected), "expected `{expected}` in:\n{found}");
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let load = |change: fn(&mut CpuProgram)| {
        let mut changed = program();
        change(&mut changed);
        let checked = changed.check().expect("a sound program");
        Model::load(checked, &Numbers, LoadOptions::default()).err().expect("refused").to_string()
    };
    let rename = |p: &mut CpuProgram| p.parameters[4] = matrix("head", false, &[("heads", V)]);
    assert_eq!(load(rename), "heads: no such tensor");
    let resize = |p: &mut CpuProgram| p.parameters[4] = matrix("head", false, &[("head", V + 1)]);
    assert_eq!(load(resize), "head: found shape [40, 8], expected [41, 8]");
}
