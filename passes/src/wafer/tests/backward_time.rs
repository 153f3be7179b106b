//! Backward kernels at all three levels: event is the judge, flow within 5 %, level analytic and the closed forms within 15 %.

use super::*;
use crate::cpu::TrainModule;
use crate::wafer::common::write_out;
use crate::wafer::{Kept, TrainStage, analytic, place_training};
use lapidary_hardware::builtin::machine;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::{Dims, ModelSpec, builtin};
use lapidary_runtime_sim::program::{Stmt, WaferProgram};

/// Event, flow, analytic and closed form of a program, and by op the closed form beside what the phase took.
fn levels(placed: &Placed) -> [f64; 4] {
    let cs2 = machine("cs2").unwrap();
    let wafer = cs2.wafer().unwrap();
    let spec = WaferSpec::of(wafer, wafer.clock());
    let program = generate(placed, &spec).unwrap_or_else(|fault| panic!("{fault}")).program;
    let checked =
        check_program(&program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let event = event::simulate(&checked, BTreeMap::new()).unwrap_or_else(|fault| panic!("{fault}")).report;
    let flow = flow::time(&checked).unwrap().cycles;
    let ops = analytic::cycles(placed, wafer).unwrap();
    for op in &ops {
        let phase = event.phases.iter().find(|phase| phase.name == op.name);
        println!("  {:24} {:12} {:8} {:?}", op.name, op.kind, op.cycles, phase.map(|p| (p.start, p.end)));
    }
    let closed: u64 = ops.iter().map(|op| op.cycles).sum();
    let analytic = closed_form::time(&checked).unwrap().cycles;
    println!("event {}, flow {flow}, analytic {analytic}, closed form {closed}", event.cycles);
    [event.cycles, flow, analytic, closed].map(|cycles| cycles as f64)
}

fn assert_levels(what: &str, placed: &Placed) {
    println!("{what}");
    let [event, flow, analytic, closed] = levels(placed);
    assert!((flow / event - 1.0).abs() < 0.05, "{what}: flow {flow}, event {event}");
    assert!((analytic / event - 1.0).abs() < 0.15, "{what}: analytic {analytic}, event {event}");
    assert!((closed / event - 1.0).abs() < 0.15, "{what}: closed form {closed}, event {event}");
}

/// One op on values of these features that lie there.
fn alone((width, height): (u32, u32), length: u32, values: &[(&str, u32)], kind: OpKind) -> Placed {
    let mut ops: Vec<PlacedOp> = values
        .iter()
        .map(|(value, _)| {
            let (tensor, source, path) = ((*value).to_owned(), Source::Caller, Path::Resident);
            op(&format!("load.{value}"), OpKind::Input { value: (*value).into(), tensor, source, path })
        })
        .collect();
    ops.push(op("op", kind));
    let values: Vec<(&str, Layout)> = values.iter().map(|(value, n)| (*value, columns(*n))).collect();
    Placed { dtype: DType::Bf16, ..placed(width, height, tokens(length, height), &values, ops) }
}

fn gradient(name: &str) -> Gradient {
    Gradient { tensor: format!("d.{name}"), parameter: Parameter::plain(name) }
}

#[test]
fn each_backward_kernel_takes_what_its_closed_form_says() {
    for grid in [(16, 12), (8, 24), (23, 7)] {
        let length = 20 * grid.1;
        let names = || ["x", "dy"].map(str::to_owned);
        for travels_dy in [false, true] {
            let [x, dy] = names();
            let (travelling, resident) = if travels_dy { (dy, x) } else { (x, dy) };
            let outer = Outer { travelling, resident, travels_dy, result: gradient("w") };
            let placed = alone(grid, length, &[("x", 172), ("dy", 64)], OpKind::Outer(outer));
            assert_levels(&format!("linear_dw {grid:?} {travels_dy}"), &placed);
        }
        let sum = ColumnSum { input: "x".into(), result: gradient("b") };
        assert_levels("column_sum", &alone(grid, length, &[("x", 172)], OpKind::ColumnSum(sum)));
        for kind in [NormKind::Rms, NormKind::Layer] {
            let [input, of] = names();
            let eps = 1e-5;
            let dw = NormDw { input: input.clone(), gradient: of.clone(), kind, eps, result: gradient("w") };
            let weight = Parameter::plain("w");
            let dx = NormDx { input, gradient: of.clone(), output: of, kind, eps, weight };
            let values = [("x", 128), ("dy", 128)];
            assert_levels(&format!("norm_dw {kind:?}"), &alone(grid, length, &values, OpKind::NormDw(dw)));
            assert_levels(&format!("norm_dx {kind:?}"), &alone(grid, length, &values, OpKind::NormDx(dx)));
        }
        let logits = || "z".to_owned();
        let loss = OpKind::Loss(Loss { logits: logits(), tensor: "loss".into() });
        assert_levels("loss", &alone(grid, length, &[("z", 300)], loss));
        let loss = OpKind::LossDx(LossDx { logits: logits(), output: logits() });
        assert_levels("loss_dx", &alone(grid, length, &[("z", 300)], loss));
    }
}

/// A built-in model made small; head widths stay even for its rotation.
fn small(name: &str, heads: u64, dim: u64, ffn: u64) -> ModelSpec {
    let base = builtin(name).unwrap();
    let mut model = ModelSpec { d_model: heads * dim, n_heads: heads, head_dim: dim, d_ff: ffn, ..base };
    model.n_kv_heads = heads / (model.n_heads / model.n_kv_heads.min(heads)).max(1);
    model.vocab = 200;
    model.vocab_padded_to = None;
    if let lapidary_models::spec::Position::Rope(rope) = &mut model.pos {
        rope.rot_dims = rope.rot_dims.min(dim);
    }
    model
}

fn stages(model: &ModelSpec, grid: (u32, u32), batch: u64, seq: u64, again: Recompute) -> Vec<TrainStage> {
    let dims = Dims { batch, seq, cached: 0 };
    let found = training(model, dims, &Policy::Uniform(again)).unwrap();
    let module = TrainModule::unfused(model, &found);
    place_training(&module.functions, &module.slots, grid, Kept::Resident)
        .unwrap_or_else(|fault| panic!("{fault}"))
}

#[test]
fn backward_programs_of_layers_take_the_same_time_at_all_levels() {
    let cases = [
        (small("crystalcoder", 4, 16, 172), (16, 12), 2, 96, Recompute::Full),
        (small("llama-2-7b", 4, 16, 160), (12, 8), 1, 128, Recompute::Selective),
        (small("gpt3-1.3b", 2, 32, 256), (8, 8), 2, 64, Recompute::Selective),
        // Fewer tokens in a row than a head has columns, and rows of unequal length.
        (small("crystalcoder", 4, 16, 172), (24, 16), 1, 40, Recompute::Full),
    ];
    for (model, grid, batch, seq, again) in cases {
        for stage in stages(&model, grid, batch, seq, again) {
            if ["layer_backward", "after"].contains(&stage.name.as_str()) {
                assert_levels(&format!("{} {}", model.name, stage.name), &stage.placed);
            }
        }
    }
}

/// How often tasks use pieces.
fn uses_of_pieces(program: &WaferProgram) -> usize {
    let tasks = program.classes.iter().flat_map(|class| &class.tasks);
    tasks.flat_map(|task| &task.body).filter(|stmt| matches!(stmt, Stmt::Piece(_))).count()
}

#[test]
fn pieces_that_classes_share_change_no_cycle_of_a_backward_layer() {
    let model = small("crystalcoder", 4, 16, 172);
    let cs2 = machine("cs2").unwrap();
    let spec = WaferSpec::of(cs2.wafer().unwrap(), cs2.wafer().unwrap().clock());
    for stage in stages(&model, (16, 12), 2, 96, Recompute::Full) {
        let shared = generate(&stage.placed, &spec).unwrap_or_else(|fault| panic!("{fault}")).program;
        let mut alone = shared.clone();
        write_out(&mut alone.classes, &|_| true);
        for class in &mut alone.classes {
            class.buffers =
                class.buffers.iter().map(|(n, b)| (n.clone(), b.clone())).collect::<BTreeMap<_, _>>().into();
        }
        let text = lapidary_runtime_sim::text::print(&shared);
        assert_eq!(lapidary_runtime_sim::text::parse(&text, "shared").as_ref(), Ok(&shared));
        assert_eq!(uses_of_pieces(&alone), 0);
        if stage.name == "layer_backward" {
            let in_full = lapidary_runtime_sim::text::print(&alone).len();
            let uses = uses_of_pieces(&shared);
            assert!(
                uses > 100 && 2 * text.len() < in_full,
                "{uses} uses, {} and {in_full} bytes",
                text.len()
            );
        }
        let [shared, alone] = [shared, alone].map(|program| {
            let checked =
                check_program(&program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
            let event = event::simulate(&checked, BTreeMap::new()).unwrap_or_else(|fault| panic!("{fault}"));
            (flow::time(&checked).unwrap(), event.report)
        });
        assert_eq!(shared, alone, "{}", stage.name);
    }
}
