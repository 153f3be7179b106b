//! Laws that hold for every program, on random programs: messages between PEs of a row, each on its own colour, sent
//! and added up in one global order.

use lapidary_models::dtype::DType;
use lapidary_runtime_sim::event::{Run, simulate};
use lapidary_runtime_sim::program::*;
use lapidary_runtime_sim::{FabricSpec, check, flow};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Longest message.
const WORDS: u32 = 24;

/// One message: the first `words` elements of `from` are added to those of `to`, then to itself `work` times there.
#[derive(Clone, Debug)]
struct Message {
    from: u32,
    to: u32,
    words: u32,
    work: i64,
}

#[derive(Clone, Debug)]
struct Case {
    pes: u32,
    messages: Vec<Message>,
}

fn case() -> impl Strategy<Value = Case> {
    (2u32..7).prop_flat_map(|pes| {
        let message = (0..pes, 1..pes, 1..=WORDS, 0i64..3);
        let message = message.prop_map(move |(from, by, words, work)| Message {
            from,
            to: (from + by) % pes,
            words,
            work,
        });
        proptest::collection::vec(message, 1..12).prop_map(move |messages| Case { pes, messages })
    })
}

fn stmt(kind: OpKind, dst: Dest, src: Vec<Operand>, words: u32) -> Stmt {
    Stmt::Op(VectorOp { kind, dst, src, dims: vec![Affine::constant(i64::from(words))] })
}

/// The program of a case, one class per PE.
fn program(case: &Case) -> WaferProgram {
    let mut program = WaferProgram::new(case.pes, 1);
    let all = u64::from(case.pes * WORDS);
    program.tensor("v", all).tensor("out", all);
    let index = Affine::term(Var::X, i64::from(WORDS)).plus(Var::Dim(0), 1);
    let map = |tensor: &str| {
        Some(TensorMap {
            tensor: tensor.into(),
            dims: vec![Affine::constant(i64::from(WORDS))],
            index: index.clone(),
        })
    };
    for x in 0..case.pes {
        let mut class = Class::new(format!("pe{x}"), Region::pe(x, 0));
        let buffer = Buffer { load: map("v"), store: map("out"), ..Buffer::new(DType::F32, WORDS, 0) };
        class.buffers.insert("v".into(), buffer);
        let slice = || Slice { buffer: "v".into(), at: Affine::constant(0), strides: Vec::new() };
        let mut body = Vec::new();
        for (colour, m) in (0..).map(Colour).zip(&case.messages) {
            let (ahead, back) =
                if m.to > m.from { (Port::East, Port::West) } else { (Port::West, Port::East) };
            let wire = Wire::F32;
            if x == m.from {
                class.routes.insert(colour, Route::fixed(Port::Ramp, &[ahead]));
                body.push(stmt(
                    OpKind::Mov,
                    Dest::Out { colour, wire },
                    vec![Operand::Mem(slice())],
                    m.words,
                ));
            } else if x == m.to {
                class.routes.insert(colour, Route::fixed(back, &[Port::Ramp]));
                let sum = vec![Operand::Mem(slice()), Operand::In { colour, wire }];
                body.push(stmt(OpKind::Add, Dest::Mem(slice()), sum, m.words));
                let twice = vec![Operand::Mem(slice()), Operand::Mem(slice())];
                let more = vec![stmt(OpKind::Add, Dest::Mem(slice()), twice, m.words)];
                body.push(Stmt::Loop { count: Affine::constant(m.work), body: more });
            } else if (m.from < x && x < m.to) || (m.to < x && x < m.from) {
                class.routes.insert(colour, Route::fixed(back, &[ahead]));
            }
        }
        class.start("main", body);
        program.classes.push(class);
    }
    program
}

/// What the messages do, one after the other.
fn expected(case: &Case, v: &[f32]) -> Vec<f32> {
    let mut v = v.to_vec();
    for m in &case.messages {
        for k in 0..m.words {
            let (from, to) = ((m.from * WORDS + k) as usize, (m.to * WORDS + k) as usize);
            v[to] = (v[to] + v[from]) * 2f32.powi(m.work as i32);
        }
    }
    v
}

fn run(program: &WaferProgram, spec: &FabricSpec) -> Run {
    let checked = check(program, spec).unwrap_or_else(|e| panic!("{e:#?}"));
    let count = program.tensors["v"].elements;
    let v = (0..count).map(|i| (i % 5) as f32).collect();
    simulate(&checked, BTreeMap::from([("v".to_string(), v)])).unwrap_or_else(|e| panic!("{e}"))
}

/// Cases without messages that cross the same link as one before them.
fn apart() -> impl Strategy<Value = Case> {
    case().prop_map(|case| {
        let pes = case.pes;
        let add = |messages: Vec<Message>, next: Message| {
            let more = Case { pes, messages: [&messages[..], &[next]].concat() };
            if shares_links(&more) { messages } else { more.messages }
        };
        Case { pes, messages: case.messages.into_iter().fold(Vec::new(), add) }
    })
}

/// Whether two messages cross the same link: order on it is decided by arbitration.
fn shares_links(case: &Case) -> bool {
    let span = |m: &Message| (m.from.min(m.to), m.from.max(m.to), m.to > m.from);
    let pairs = case
        .messages
        .iter()
        .enumerate()
        .flat_map(|(i, a)| case.messages[i + 1..].iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| (span(a), span(b))).any(|(a, b)| a.2 == b.2 && a.0 < b.1 && b.0 < a.1)
}

/// The same program `by` PEs further east and `down` further south on a larger grid.
fn shifted(program: &WaferProgram, by: u32, down: u32) -> WaferProgram {
    let mut moved = program.clone();
    moved.width += by + 1;
    moved.height += down + 1;
    for class in &mut moved.classes {
        for region in &mut class.regions {
            region.x += by;
            region.y += down;
        }
        for buffer in class.buffers.values_mut() {
            for map in [&mut buffer.load, &mut buffer.store].into_iter().flatten() {
                map.index.base -= map.index.terms[&Var::X] * i64::from(by);
            }
        }
    }
    moved
}

/// The same program seen in a mirror: east is west.
fn mirrored(program: &WaferProgram) -> WaferProgram {
    let flip = |port: &mut Port| {
        *port = match *port {
            Port::East => Port::West,
            Port::West => Port::East,
            other => other,
        }
    };
    let mut mirror = program.clone();
    for class in &mut mirror.classes {
        class.regions.iter_mut().for_each(|r| r.x = program.width - 1 - r.x);
        for position in class.routes.values_mut().flat_map(|r| &mut r.positions) {
            flip(&mut position.from);
            position.to.iter_mut().for_each(flip);
        }
    }
    mirror
}

proptest! {
    // As many cases as the environment says.
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn no_word_is_lost_and_numbers_are_right(case in case()) {
        let program = program(&case);
        let run = run(&program, &FabricSpec::wse2());
        prop_assert_eq!(&run.tensors["out"], &expected(&case, &run.tensors["v"]));
        let words: u64 = case.messages.iter().map(|m| u64::from(m.words)).sum();
        let hops: u64 = case.messages.iter().map(|m| u64::from(m.words * m.from.abs_diff(m.to))).sum();
        prop_assert_eq!((run.report.words, run.report.word_hops), (words, hops));
        let longest = case.messages.iter().map(|m| u64::from(m.words + m.from.abs_diff(m.to)) + 5).max().unwrap();
        prop_assert!(run.report.cycles >= longest, "faster than its longest message");
        let link = run.report.hottest_link.unwrap();
        prop_assert!(link.words <= run.report.cycles, "more than a word per cycle over a link");
    }

    #[test]
    fn a_better_machine_is_never_slower(case in apart()) {
        let program = program(&case);
        let base = FabricSpec::wse2();
        let small = FabricSpec { queue_in: 1, queue_out: 1, queue_hop: 1, ..base.clone() };
        let cycles = |spec: &FabricSpec| run(&program, spec).report.cycles;
        let reference = cycles(&base);
        prop_assert!(cycles(&small) >= reference);
        let better = [
            FabricSpec { queue_in: 64, queue_out: 64, queue_hop: 8, ..base.clone() },
            FabricSpec { simd_single: 2, ..base.clone() },
            FabricSpec { op_issue: 0, ..base.clone() },
            FabricSpec { ramp_cycles: 1, ..base.clone() },
            FabricSpec { link_words_per_cycle: 2, ..base.clone() },
        ];
        for spec in better {
            prop_assert!(cycles(&spec) <= reference, "{:?}", spec);
        }
    }

    #[test]
    fn place_and_classes_do_not_change_a_cycle(case in case(), by in 0u32..4, down in 0u32..3) {
        let program = program(&case);
        let spec = FabricSpec::wse2();
        let here = run(&program, &spec);
        let there = run(&shifted(&program, by, down), &spec);
        prop_assert_eq!(&there.tensors, &here.tensors);
        prop_assert_eq!(there.report.cycles, here.report.cycles);
        if !shares_links(&case) {
            prop_assert_eq!(run(&mirrored(&program), &spec).report.cycles, here.report.cycles);
        }
    }

    #[test]
    fn flow_holds_full_queues_and_shared_links(case in case()) {
        let program = program(&case);
        let event = run(&program, &FabricSpec::wse2()).report.cycles;
        let flow = flow::time(&check(&program, &FabricSpec::wse2()).unwrap()).unwrap();
        let off = flow.cycles.abs_diff(event);
        let told = !flow.limits.is_empty();
        prop_assert_eq!(flow.critical_path.values().sum::<u64>(), flow.cycles);
        prop_assert!(told || flow.critical_path["wait_data"] == 0, "{:?}", flow.critical_path);
        prop_assert!(told || off <= 2 || off as f64 <= 0.05 * event as f64, "flow {} event {event}", flow.cycles);
    }

    #[test]
    fn flow_is_event_without_queues_and_contention(case in case()) {
        let program = program(&case);
        let roomy = FabricSpec { queue_in: 4096, ..FabricSpec::wse2() };
        let event = run(&program, &roomy).report.cycles;
        let flow = flow::time(&check(&program, &roomy).unwrap()).unwrap().cycles;
        if shares_links(&case) {
            prop_assert!(flow <= event, "flow {} event {}", flow, event);
        } else {
            prop_assert_eq!(flow, event);
        }
    }
}

#[test]
fn classes_of_one_pe_give_the_same_cycles_as_large_classes() {
    use lapidary_runtime_sim::collectives::{all_reduce_2d, chain_reduce};
    for program in [chain_reduce(9, 7), all_reduce_2d(5, 4, 6)] {
        let mut split = program.clone();
        split.classes = Vec::new();
        for class in &program.classes {
            for at in class.regions.iter().flat_map(Region::pes) {
                let name = format!("{}_{}_{}", class.name, at.x, at.y);
                split.classes.push(Class { name, regions: vec![Region::pe(at.x, at.y)], ..class.clone() });
            }
        }
        let (large, small) = (run(&program, &FabricSpec::wse2()), run(&split, &FabricSpec::wse2()));
        assert_eq!(large.report.cycles, small.report.cycles);
        assert_eq!(large.tensors, small.tensors);
    }
}
