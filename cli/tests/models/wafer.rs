//! `lapidary compile --target cg1-sim`: modes of wafers, and what a training step computes again.

use crate::{compiled, lapidary, read_json, refused, stored, text};
use lapidary_planner::request::Batch;
use lapidary_planner::wafer::memory::Feeders;
use lapidary_planner::wafer::release::OWN;
use lapidary_planner::wafer::{WaferCase, WaferWork};
use lapidary_planner::{Recipe, Recompute, WaferMode, WaferPlan};
use serde_json::{Value, json};

fn on_wafer(name: &str, more: &[&str]) -> (Value, Value) {
    compiled(name, &[&["--target", "cg1-sim", "--seq-len", "16"], more].concat())
}

#[test]
fn layers_get_rows_of_their_own_and_a_token_gets_all_of_them() {
    let (program, report) = on_wafer("amber-tiny", &["--mode", "layer-pipelined", "--batch", "3"]);
    let stages = |program: &Value| -> Vec<String> {
        let list = program["stages"].as_array().expect("stages").iter();
        list.map(|stage| stage["name"].as_str().expect("a name").to_string()).collect()
    };
    assert_eq!(stages(&program), ["pipeline"]);
    assert_eq!((&program["tokens"], &report["batch"]), (&json!(48), &json!(3)));
    let regions = report["placement"]["regions"].as_array().expect("regions");
    let names: Vec<&Value> = regions.iter().map(|region| &region["name"]).collect();
    assert_eq!(names, ["layer0", "layer1", "layer2", "after"]);
    assert!(regions.iter().all(|region| region["feeder_rows"].as_u64() > Some(0)));

    let (program, report) = on_wafer("amber-tiny", &["--mode", "decode,layer-pipelined"]);
    assert_eq!(stages(&program), ["before", "layer", "after"]);
    let layer = &report["placement"]["stages"][1]["placement"];
    let sums = layer["sums"].as_array().expect("sums");
    assert!(sums.iter().any(|sum| sum["picked"] == "tree"), "{sums:?}");
    for sum in sums {
        let picked = sum["cycles"][sum["picked"].as_str().expect("a way")].as_u64();
        let least = sum["cycles"].as_object().expect("ways").values().all(|other| other.as_u64() >= picked);
        let why = sum["why"].as_str().expect("a reason");
        assert!(least == (why == "takes least") && (least || why.contains("not enough colours")), "{sum}");
    }

    let streamed = on_wafer("amber-tiny", &["--mode", "weight-streaming"]);
    assert_eq!(streamed, on_wafer("amber-tiny", &[]));
}

/// The planner's closed form against the rows that the placed program has, head included: of one row in every layer, and
/// of several for the vocabulary.
#[test]
fn the_planner_knows_the_rows_that_hold_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.lpd");
    let args = ["compile", "cerebras-gpt-111m", "--target", "cg1-sim", "--seq-len", "16", "--batch", "2"];
    let ended = lapidary(&[&args[..], &["--mode", "layer-pipelined", "-o", text(&out)]].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = read_json(&out.join("report.json"));
    let rows = |name: &str| {
        let regions = report["placement"]["regions"].as_array().expect("regions");
        regions.iter().find(|region| region["name"] == name).expect("a region")["feeder_rows"].as_u64()
    };
    let model = lapidary_models::builtin("cerebras-gpt-111m").expect("a model");
    let machine = lapidary_hardware::builtin::machine("cg1").expect("a machine");
    let work = WaferWork::new(&model, 16).expect("its work");
    let case = WaferCase {
        machine: &machine,
        wafer: machine.wafer().expect("a wafer"),
        model: &model,
        batch: Batch { global: 2, seq_len: 16 },
        plan: WaferPlan {
            systems: 1,
            micro_batch: 1,
            accumulation: 2,
            mode: WaferMode::LayerPipelined,
            recompute: Recompute::None,
            checkpoint_every: 1,
            replicas: 1,
            outside: false,
        },
        work: &work,
        recipe: &Recipe { weights: model.dtype.compute.bytes() as f64, gradients: 0.0, optimizer: 0.0 },
        release: OWN,
        row: None,
    };
    let Feeders { layer, ends } = Feeders::of(&case);
    assert_eq!((Some(layer), Some(ends)), (rows("layer0"), rows("after")));
    assert!(ends > layer && case.area().rows == case.wafer.fabric.usable.height - 10 * layer - ends);
}

#[test]
fn a_training_step_computes_again_what_the_flag_says_or_else_the_plan() {
    let train = ["--train", "--global-batch", "64", "--systems", "16", "--batch", "2"];
    let of = |more: &[&str]| on_wafer("llama3-tiny", &[&train[..], more].concat()).1;
    let way = |report: &Value| report["placement"]["training"].clone();
    let planned = of(&[]);
    let plan = &planned["training"]["plan"]["name"];
    let why = way(&planned)["why"].as_str().expect("a reason").to_string();
    assert!(why.contains(plan.as_str().expect("a name")), "{why}");
    for (word, plan) in [("full", "full"), ("selective", "none")] {
        let report = of(&["--recompute", word]);
        assert_eq!(way(&report)["recompute"], *word);
        assert_eq!(way(&report)["why"], json!(format!("--recompute {word}")));
        let degrees = &report["training"]["plan"]["degrees"];
        assert_eq!(degrees["recompute"], *plan, "{degrees}");
    }
}

#[test]
fn a_whole_training_step_is_simulated() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.lpd");
    let model = stored("llama3-tiny").join("config.json");
    let fixed =
        ["compile", text(&model), "--target", "cg1-sim", "--seq-len", "16", "-o", text(&out), "--train"];
    let ended =
        lapidary(&[&fixed[..], &["--global-batch", "64", "--systems", "16", "--batch", "2"]].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for level in ["analytic", "flow"] {
        let found = lapidary(&["simulate", text(&out), "--level", level, "--json"]);
        let found: Value = serde_json::from_str(&found.stdout).expect("JSON");
        let step = &found["step"];
        assert_eq!((&step["systems"], &step["accumulation"]), (&json!(16), &json!(2)), "{step}");
        assert_eq!(step["tokens"], 64 * 16);
        let number = |value: &Value| value.as_f64().expect("a number");
        let programs = found["stages"].as_array().expect("stages");
        let names: Vec<&str> = programs.iter().filter_map(|stage| stage["stage"].as_str()).collect();
        assert_eq!(names, ["before", "layer", "after", "layer_backward", "end"]);
        let seconds = |stage: &Value| {
            let report = &stage["report"];
            assert_eq!(report["level"], level);
            let cycles = number(&report["cycles"]).max(number(&report["host_cycles"]));
            number(&stage["times"]) * cycles / number(&report["clock_hz"])
        };
        let whole = 2.0 * programs.iter().map(seconds).sum::<f64>();
        assert!((number(&step["step_time_s"]) / whole - 1.0).abs() < 1e-9, "{step} {whole}");
        let terms = step["terms_s"].as_object().expect("terms").values().map(number).sum::<f64>();
        assert!((terms / whole - 1.0).abs() < 1e-9, "{step}");
        assert!(number(&step["links_s"]["memoryx_weights"]) > 0.0, "{step}");
        assert!(number(&step["links_s"]["swarmx_gradients"]) > 0.0, "{step}");
    }
    let told = lapidary(&["simulate", text(&out), "--level", "analytic"]).stdout;
    for part in [
        "a training step on 16 systems, 2 micro-batches each",
        "memoryx_weights",
        "swarmx_gradients",
        "assumed: SwarmX",
    ] {
        assert!(told.contains(part), "no `{part}` in {told}");
    }
}

#[test]
fn modes_that_are_none_are_refused() {
    let model = stored("amber-tiny").join("config.json");
    let mode = |target: &str, more: &[&str], code: i32, told: &[&str]| {
        let fixed = ["compile", text(&model), "--target", target, "--seq-len", "16"];
        refused(&[&fixed[..], more].concat(), code, told);
    };
    mode("cg1-sim", &["--mode", "forward,decode"], 2, &["two words of one kind"]);
    mode("cg1-sim", &["--mode", "magic"], 2, &["magic", "layer-pipelined"]);
    mode("cpu", &["--mode", "layer-pipelined"], 2, &["layer-pipelined", "cg1-sim"]);
    mode("cg1-sim", &["--mode", "decode", "--train"], 2, &["--train"]);
    mode("cg1-sim", &["--mode", "layer-pipelined", "--train"], 5, &["streamed weights"]);
    mode("cg1-sim", &["--mode", "decode,layer-pipelined", "--batch", "2"], 5, &["one sequence"]);
    mode("cg1-sim", &["--train", "--recompute", "none"], 5, &["--recompute none", "selective"]);
}
