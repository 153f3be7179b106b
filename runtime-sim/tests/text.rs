//! The `.wafer` text form: the first golden, errors with places, and the round trip.

use lapidary_models::dtype::DType;
use lapidary_runtime_sim::event::simulate;
use lapidary_runtime_sim::program::*;
use lapidary_runtime_sim::text::{parse, print};
use lapidary_runtime_sim::{FabricSpec, check};
use proptest::prelude::*;
use std::collections::BTreeMap;

const CHAIN: &str = "\
wafer 4 x 1
tensor v[32]
tensor sum[8]
class first at (0, 0) { buffer a: f32[8] @0 load v dims 8 at 8*x + d0
  route 0: ramp -> east  task main start { mov out(0) <- a len 8 } }
class odd at (1, 0) { buffer a: f32[8] @0 load v dims 8 at 8*x + d0
  route 0: west -> ramp  route 1: ramp -> east  task main start { add out(1) <- a, in(0) len 8 } }
class even at (2, 0) { buffer a: f32[8] @0 load v dims 8 at 8*x + d0
  route 1: west -> ramp  route 0: ramp -> east  task main start { add out(0) <- a, in(1) len 8 } }
class last at (3, 0) { buffer a: f32[8] @0 load v dims 8 at 8*x + d0 store sum dims 8 at d0
  route 0: west -> ramp  task main start { add a <- a, in(0) len 8 } }
";

#[test]
fn a_chain_reduce_written_by_hand_takes_the_expected_cycles() {
    let program = parse(CHAIN, "chain.wafer").unwrap();
    let checked = check(&program, &FabricSpec::wse2()).unwrap();
    let v: Vec<f32> = (0..32).map(|i| i as f32).collect();
    let run = simulate(&checked, BTreeMap::from([("v".to_string(), v)])).unwrap();
    let sum: Vec<f32> = (0..8).map(|i| (i + (i + 8) + (i + 16) + (i + 24)) as f32).collect();
    assert_eq!(run.tensors["sum"], sum);
    assert_eq!(run.report.cycles, 8 + 6 * 3);
    assert_eq!(parse(&print(&program), "again").as_ref(), Ok(&program));
}

#[test]
fn what_classes_have_in_common_is_written_once() {
    let text = "\
wafer 2 x 1
tensor v[16]
phase run
piece \"double.0\" {
  phase run
  add a[0] <- a[0], a[0] len 8
}
memory m0 {
  buffer a: f32[8] @0 load v dims 8 at 8*x + d0 store v dims 8 at 8*x + d0
}
class left at (0, 0) {
  memory m0
  task main start {
    do \"double.0\"
  }
}
class right at (1, 0) {
  memory m0
  task main start {
    do \"double.0\"
    add a[0] <- a[0], 1.0 len 8
  }
}
";
    let program = parse(text, "common").unwrap();
    assert_eq!(print(&program), text);
    let checked = check(&program, &FabricSpec::wse2()).unwrap();
    let v: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let run = simulate(&checked, BTreeMap::from([("v".to_string(), v)])).unwrap();
    let doubled: Vec<f32> = (0..16).map(|i| (2 * i + i / 8) as f32).collect();
    assert_eq!(run.tensors["v"], doubled);
    // What a piece names is looked up in each class that uses it.
    let lacking = text.replacen("  memory m0\n  task", "  task", 1);
    let faults = check(&parse(&lacking, "lacking").unwrap(), &FabricSpec::wse2()).unwrap_err();
    assert!(faults[0].to_string().contains("buffer `a`"), "{}", faults[0]);
    let inside = text.replace("    do \"double.0\"\n    add", "    loop 2 { do \"double.0\" }\n    add");
    let faults = check(&parse(&inside, "inside").unwrap(), &FabricSpec::wse2()).unwrap_err();
    assert!(faults[0].to_string().contains("inside of a loop"), "{}", faults[0]);
}

#[test]
fn mistakes_are_shown_with_their_place_and_a_hint() {
    let cases = [
        ("wafer 4 x", 1, 10, "expected the height, found the end of the text"),
        (
            "wafer 4 x 1\nclass a at (0, 0) {\n  route 0: ramp > east }",
            3,
            17,
            "cannot read the character `>`",
        ),
        (
            "wafer 1 x 1\nclass a at (0, 0) { task t start { mul a <- a len 3 } }",
            2,
            47,
            "expected 2 operands of `mul`, found `len`",
        ),
        (
            "wafer 1 x 1\nclass a at (0, 0) { task t start { mov a[q] <- a len 3 } }",
            2,
            42,
            "expected a number or variable, found `q`",
        ),
        ("wafer 1 x 1\ntensor t[4]\ntensor t[8]", 3, 8, "the tensor `t` is declared twice"),
        (
            "wafer 1 x 1\nclass a at (0, 0) { route 3: west -> ramp route 3: east -> ramp }",
            2,
            49,
            "the route of colour 3 in class `a` is declared twice",
        ),
        (
            "wafer 1 x 1\nclass a at (0, 0) { buffer v: f32[4] @0 buffer v: f32[4] @16 }",
            2,
            48,
            "the buffer `v` of class `a` is declared twice",
        ),
        (
            "wafer 1 x 1\nclasp",
            2,
            1,
            "expected `tensor`, `phase`, `piece`, `memory`, `class` or `host`, found `clasp`",
        ),
        (
            "wafer 1 x 1\npiece p { phase a }\npiece p { phase b }",
            3,
            7,
            "expected the name of another piece, found `p`",
        ),
        (
            "wafer 1 x 1\npiece p { phase a }\npiece q { do p }",
            3,
            11,
            "expected a statement of its own, found `do`",
        ),
        ("wafer 1 x 1\nclass a at (0, 0) { task t start { do q } }", 2, 39, "expected a piece, found `q`"),
        ("wafer 1 x 1\nclass a at (0, 0) { memory m }", 2, 28, "expected a memory, found `m`"),
    ];
    for (text, line, column, message) in cases {
        let error = parse(text, "f.wafer").unwrap_err();
        assert_eq!((error.line, error.column, error.message.as_str()), (line, column, message));
        assert!(!error.hint.is_empty());
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z][a-z0-9_]{0,6}", Just("in".to_string()), Just("layers.*.attn.q".to_string())]
}

fn var() -> impl Strategy<Value = Var> {
    prop_oneof![
        Just(Var::X),
        Just(Var::Y),
        Just(Var::Turn),
        (1u32..99).prop_map(Var::XOver),
        (1u32..99).prop_map(Var::YOver),
        (0u8..6).prop_map(Var::Loop),
        (0u8..4).prop_map(Var::Dim),
    ]
}

fn affine() -> impl Strategy<Value = Affine> {
    let terms = proptest::collection::vec((var(), -99i64..99), 0..4);
    (-999i64..999, terms)
        .prop_map(|(base, terms)| terms.into_iter().fold(Affine::constant(base), |a, (v, c)| a.plus(v, c)))
}

fn dims() -> impl Strategy<Value = Vec<Affine>> {
    proptest::collection::vec(affine(), 1..4)
}

fn wire() -> impl Strategy<Value = Wire> {
    prop_oneof![Just(Wire::F32), Just(Wire::F16), Just(Wire::Bf16), Just(Wire::F16x2), Just(Wire::Bf16x2)]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![Just(Command::Advance), Just(Command::Reset), Just(Command::Nothing)]
}

fn colour() -> impl Strategy<Value = Colour> {
    (0u8..24).prop_map(Colour)
}

fn slice() -> impl Strategy<Value = Slice> {
    let strides = proptest::collection::vec(-9i64..9, 0..3);
    (name(), affine(), strides).prop_map(|(buffer, at, strides)| Slice { buffer, at, strides })
}

fn operand() -> impl Strategy<Value = Operand> {
    prop_oneof![
        slice().prop_map(Operand::Mem),
        (colour(), wire()).prop_map(|(colour, wire)| Operand::In { colour, wire }),
        (colour(), wire()).prop_map(|(colour, wire)| Operand::Scalar { colour, wire }),
        Just(Operand::Trigger),
        any::<f32>().prop_filter("numbers", |v| !v.is_nan()).prop_map(Operand::Const),
    ]
}

fn dest() -> impl Strategy<Value = Dest> {
    prop_oneof![
        slice().prop_map(Dest::Mem),
        (colour(), wire()).prop_map(|(colour, wire)| Dest::Out { colour, wire }),
        (colour(), wire(), command()).prop_map(|(colour, wire, then)| Dest::OutThen { colour, wire, then }),
    ]
}

fn op() -> impl Strategy<Value = VectorOp> {
    let parts = (0usize..OpKind::ALL.len(), dest(), proptest::collection::vec(operand(), 3), dims());
    parts.prop_map(|(kind, dst, mut src, dims)| {
        let kind = OpKind::ALL[kind];
        src.truncate(kind.arity());
        VectorOp { kind, dst, src, dims }
    })
}

fn stmt() -> impl Strategy<Value = Stmt> {
    let leaf = prop_oneof![
        op().prop_map(Stmt::Op),
        proptest::collection::vec(op(), 0..3).prop_map(Stmt::Par),
        (colour(), command()).prop_map(|(colour, command)| Stmt::Control { colour, command }),
        name().prop_map(Stmt::Activate),
        name().prop_map(Stmt::Phase),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        (affine(), proptest::collection::vec(inner, 0..3))
            .prop_map(|(count, body)| Stmt::Loop { count, body })
    })
}

fn task() -> impl Strategy<Value = Task> {
    let trigger = prop_oneof![
        Just(Trigger::Start),
        (colour(), wire()).prop_map(|(colour, wire)| Trigger::Data { colour, wire }),
        colour().prop_map(|colour| Trigger::Control { colour }),
        Just(Trigger::Local),
    ];
    let parts = (name(), trigger, affine(), proptest::collection::vec(stmt(), 0..4));
    parts.prop_map(|(name, trigger, times, body)| Task { name, trigger, times, body })
}

fn port() -> impl Strategy<Value = Port> {
    prop_oneof![Just(Port::Ramp), Just(Port::North), Just(Port::East), Just(Port::South), Just(Port::West)]
}

fn map() -> impl Strategy<Value = TensorMap> {
    (name(), dims(), affine()).prop_map(|(tensor, dims, index)| TensorMap { tensor, dims, index })
}

fn buffer() -> impl Strategy<Value = Buffer> {
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::Bf16)];
    let alive = proptest::option::of((name(), name()).prop_map(|(first, last)| Lifetime { first, last }));
    let (load, store) = (proptest::option::of(map()), proptest::option::of(map()));
    (dtype, 0u32..9999, 0u32..49152, alive, load, store).prop_map(
        |(dtype, elements, offset, alive, load, store)| Buffer {
            dtype,
            elements,
            offset,
            alive,
            load,
            store,
        },
    )
}

fn class() -> impl Strategy<Value = Class> {
    let region = (0u32..9, 0u32..9, 1u32..9, 1u32..9, 1u32..3, 1u32..3);
    let region = region.prop_map(|(x, y, columns, rows, step_x, step_y)| Region {
        x,
        y,
        columns,
        rows,
        step_x,
        step_y,
    });
    let position =
        (port(), proptest::collection::vec(port(), 1..4)).prop_map(|(from, to)| Position { from, to });
    let route = proptest::collection::vec(position, 1..4).prop_map(|positions| Route { positions });
    let routes = proptest::collection::btree_map(colour(), route, 0..3);
    let buffers = proptest::collection::btree_map(name(), buffer(), 0..3);
    let regions = proptest::collection::vec(region, 1..3);
    (name(), regions, buffers, proptest::collection::vec(task(), 0..3), routes).prop_map(
        |(name, regions, buffers, tasks, routes)| {
            let buffers = buffers.into();
            Class { name, regions, buffers, tasks, routes }
        },
    )
}

fn host() -> impl Strategy<Value = HostStream> {
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out)];
    let edge = prop_oneof![Just(Port::North), Just(Port::East), Just(Port::South), Just(Port::West)];
    let lanes = (0u32..9, 1u32..9, 1u32..3, 1u32..5);
    (name(), direction, edge, lanes, colour(), wire(), map(), proptest::option::of(command())).prop_map(
        |(name, direction, edge, (first, lanes, step, interval), colour, wire, map, then)| {
            let TensorMap { tensor, dims, index } = map;
            HostStream {
                name,
                direction,
                edge,
                first,
                lanes,
                step,
                colour,
                wire,
                tensor,
                dims,
                index,
                then,
                interval,
            }
        },
    )
}

fn program() -> impl Strategy<Value = WaferProgram> {
    let tensors = proptest::collection::btree_map(
        name(),
        (0u64..999).prop_map(|elements| TensorDecl { elements }),
        0..3,
    );
    let phases = proptest::collection::vec(name(), 0..3);
    let classes = (proptest::collection::vec(class(), 0..3), shared()).prop_map(share);
    let hosts = proptest::collection::vec(host(), 0..3);
    (1u32..99, 1u32..99, tensors, phases, classes, hosts).prop_map(
        |(width, height, tensors, phases, classes, host)| WaferProgram {
            width,
            height,
            tensors,
            phases,
            classes,
            host,
        },
    )
}

/// Pieces, a memory map, and who uses them: by class, the piece at the end of its tasks, and whether it has the map.
type Common = (Vec<Vec<Stmt>>, BTreeMap<String, Buffer>, Vec<(usize, bool)>);

fn shared() -> impl Strategy<Value = Common> {
    let pieces = proptest::collection::vec(proptest::collection::vec(stmt(), 0..3), 2);
    let map = proptest::collection::btree_map(name(), buffer(), 1..3);
    (pieces, map, proptest::collection::vec((0usize..3, any::<bool>()), 3))
}

fn share((mut classes, (pieces, map, users)): (Vec<Class>, Common)) -> Vec<Class> {
    let named = |(n, body)| Shared::from(Piece { name: format!("piece {n}"), body });
    let pieces: Vec<Shared<Piece>> = pieces.into_iter().enumerate().map(named).collect();
    let map = Shared::from(map);
    for (n, (class, (piece, has_map))) in classes.iter_mut().zip(users).enumerate() {
        // The name of a class says which memory it has.
        class.name = format!("class {n}");
        if let Some(piece) = pieces.get(piece) {
            class.tasks.iter_mut().for_each(|task| task.body.push(Stmt::Piece(piece.clone())));
        }
        if has_map {
            class.buffers = map.clone();
        }
    }
    classes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn programs_read_back_as_they_were(program in program()) {
        let text = print(&program);
        prop_assert_eq!(parse(&text, "printed"), Ok(program), "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_fail_hard(text in "[ \\n(){}\\[\\]a-z0-9*+:;,<>\"|.-]{0,200}") {
        let _ = parse(&text, "noise");
        let _ = parse(&format!("wafer 2 x 2\nclass a at (0, 0) {{ {text}"), "noise");
    }
}

/// Found by fuzzing: classes of one name, of which two share their memory map, and one has its own.
#[test]
fn classes_of_one_name_keep_their_own_memories() {
    let text = "wafer 3 x 1
class a at (0, 0) { buffer v: f32[8] @0 }
class b at (1, 0) { buffer v: f32[8] @0 }
class a at (2, 0) { buffer w: f32[4] @16 }
";
    let program = parse(text, "twins.wafer").unwrap();
    assert_eq!(parse(&print(&program), "again.wafer"), Ok(program));
}
