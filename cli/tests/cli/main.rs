//! The command line from outside: exit codes, messages, and that nothing half-written stays behind.

mod accuracy;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn lapidary(args: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exits by itself")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A valid model of a few thousand parameters.
const TINY: &str = r#"name = "tiny"
vocab = 288
d_model = 64
n_layers = 2
n_heads = 4
d_ff = 170
max_seq = 128

[norm]
kind = "rms"
eps = 1e-6

[mlp]
act = "silu"
gated = true

[pos]
kind = "rope"
theta = 10000.0
rot_dims = 16
pairing = "half"
"#;

fn with_model(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("model.toml");
    std::fs::write(&path, text).expect("a file is written");
    (folder, path)
}

/// Runs `lapidary args` on a model text; expects this exit code and every one of these fragments on stderr,
/// and no artifact, finished or not.
fn refused(text: &str, args: &[&str], exit: i32, fragments: &[&str]) {
    let (folder, _) = with_model(text);
    let output = lapidary(args, folder.path());
    let told = stderr(&output);
    assert_eq!(code(&output), exit, "{args:?}\n{told}");
    for fragment in fragments {
        assert!(told.contains(fragment), "{args:?}: no `{fragment}` in\n{told}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").filter_map(Result::ok).collect();
    assert_eq!(left.len(), 1, "only the model may remain: {left:?}");
}

#[test]
fn a_missing_file_is_named() {
    refused(TINY, &["check", "./nowhere.toml"], 3, &["nowhere.toml", "cannot read"]);
}

#[test]
fn every_fault_is_shown_at_once() {
    let text = TINY.replace("n_heads = 4", "n_heads = 5").replace("d_ff = 170", "d_ff = 0\nd_fff = 3");
    refused(
        &text,
        &["check", "model.toml"],
        3,
        &["model.toml:5", "n_heads", "d_ff", "d_fff", "did you mean"],
    );
}

#[test]
fn a_wrong_type_is_refused() {
    refused(
        &TINY.replace("vocab = 288", "vocab = \"many\""),
        &["check", "model.toml"],
        3,
        &["vocab", "model.toml:2"],
    );
}

#[test]
fn negative_and_huge_sizes_are_refused() {
    refused(&TINY.replace("d_model = 64", "d_model = -64"), &["check", "model.toml"], 3, &["d_model"]);
    let huge = TINY.replace("d_model = 64", "d_model = 1000000000000");
    refused(&huge, &["compile", "model.toml", "--target", "a100"], 3, &["d_model"]);
}

#[test]
fn an_unknown_target_is_a_usage_error() {
    refused(TINY, &["compile", "model.toml", "--target", "abacus"], 2, &["abacus", "a100", "cg1-sim"]);
}

#[test]
fn an_unknown_model_lists_what_is_near() {
    refused(TINY, &["check", "ambr"], 3, &["ambr", "amber"]);
}

#[test]
fn a_sequence_past_the_context_is_refused() {
    let args = ["compile", "model.toml", "--target", "a100", "--seq-len", "4096"];
    refused(TINY, &args, 3, &["seq", "4096", "128"]);
}

#[test]
fn zero_sequences_are_refused() {
    refused(TINY, &["compile", "model.toml", "--target", "a100", "--batch", "0"], 3, &["batch"]);
}

#[test]
fn an_unwritable_output_is_refused() {
    let args = ["compile", "model.toml", "--target", "cg1-sim", "-o", "/proc/out.lpd"];
    refused(TINY, &args, 3, &["/proc/out.lpd"]);
}

#[test]
fn a_folder_of_someone_else_is_not_replaced() {
    let (folder, _) = with_model(TINY);
    let place = folder.path().join("precious");
    std::fs::create_dir(&place).expect("a folder");
    std::fs::write(place.join("letter.txt"), "dear").expect("a file");
    let output = lapidary(&["compile", "model.toml", "--target", "cg1-sim", "-o", "precious"], folder.path());
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(place.join("letter.txt").is_file());
}

#[test]
fn a_model_that_cannot_fit_says_by_how_much() {
    let folder = folder();
    let output =
        lapidary(&["compile", "k2-65b", "--target", "a100", "-o", "k2.lpd", "--emit", "cuda"], folder.path());
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("GiB"), "{}", stderr(&output));
    assert!(folder.path().join("k2.lpd/report.json").is_file(), "the report is still written");
}

#[test]
fn sequences_that_the_wafer_does_not_hold_are_told_with_the_number_that_fits() {
    for (batch, words) in [("100000", "994 sequences at a time"), ("900", "batch of 142 at a time")] {
        let folder = folder();
        let args = ["compile", "crystalcoder", "--target", "cg1-sim", "--batch", batch, "-o", "cc.lpd"];
        let output = lapidary(&args, folder.path());
        assert_eq!(code(&output), 4, "{}", stderr(&output));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        let report = std::fs::read(folder.path().join("cc.lpd/report.json")).expect("the report is written");
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        assert!(report["smallest_change"].as_str().expect("a text").contains(words), "{report}");
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    for target in ["a100", "cg1-sim"] {
        let (folder, _) = with_model(TINY);
        for out in ["first.lpd", "second.lpd"] {
            let args = ["compile", "model.toml", "--target", target, "--seq-len", "32", "-o", out];
            let output = lapidary(&args, folder.path());
            assert_eq!(code(&output), 0, "{}", stderr(&output));
        }
        let (first, second) =
            (files(&folder.path().join("first.lpd")), files(&folder.path().join("second.lpd")));
        assert!(
            first.len() >= 4,
            "program, report and ir: {:?}",
            first.iter().map(|f| &f.0).collect::<Vec<_>>()
        );
        assert!(first == second, "{target}: two runs differ");
    }
}

/// One PE that counts for longer than anybody waits.
const ENDLESS: &str = "wafer 1 x 1
tensor y[1]
class counter at (0, 0) {
buffer y: f32[1] @0 store y dims 1 at d0
task main start { mov y <- 0.0 len 1 loop 1000000 { loop 1000000 { loop 1000000 { add y <- y, 1.0 len 1 } } } }
}
";

#[test]
fn ctrl_c_ends_a_simulation_with_130() {
    use std::io::{BufRead, BufReader};
    let folder = folder();
    std::fs::write(folder.path().join("endless.wafer"), ENDLESS).expect("a file is written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(["-v", "simulate", "endless.wafer", "--level", "event"])
        .current_dir(folder.path())
        .env("NO_COLOR", "1")
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut told = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let mut line = String::new();
    while !line.contains("Ctrl-C") {
        line.clear();
        assert!(
            told.read_line(&mut line).expect("text") > 0,
            "the command ended before it could be interrupted"
        );
    }
    let kill = format!("kill -INT {}", child.id());
    let kill = Command::new("sh").args(["-c", &kill]).status().expect("a shell runs");
    assert!(kill.success());
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut told, &mut rest).expect("text");
    assert!(rest.contains("interrupted with 0 of 1 stages"), "{rest}");
}

/// Relative path and bytes of every file, sorted.
fn files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let bytes = std::fs::read(&entry).expect("readable");
                found.push((entry.strip_prefix(root).expect("below the root").to_path_buf(), bytes));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_plan_for_amber_is_ranked_and_keeps_what_it_rejected() {
    let folder = folder();
    let output = lapidary(
        &["plan", "amber", "--machine", "amber-cluster", "--global-batch", "2240", "--json"],
        folder.path(),
    );
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(plan["schema"], "lapidary/plan");
    let candidates = plan["candidates"].as_array().expect("candidates");
    let rejected = candidates.iter().filter(|c| !c["rejected_by"].is_null()).count();
    assert!(rejected > 0 && rejected < candidates.len());
    assert!(plan["assumptions"].as_array().is_some_and(|a| a.iter().all(|a| a["source"].is_string())));
}

#[test]
fn a_plan_is_drawn_and_drawn_again_from_its_document() {
    let folder = folder();
    let asked = ["plan", "amber", "--machine", "amber-cluster", "--devices", "16", "--pin", "pp=4"];
    let pictures =
        ["--report", "a.html", "--trace", "t.json", "-o", "plan.json", "--budget", "60", "--straggler", "5"];
    let output = lapidary(&[&asked[..], &pictures].concat(), folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("± ") && stdout(&output).contains("left out by a bound"));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a file");
    let trace: serde_json::Value = serde_json::from_str(&read("t.json")).expect("JSON");
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 100));
    assert!(read("a.html").contains("\"timeline\":{"));
    std::fs::write(folder.path().join("plain"), "").expect("a file");
    let may = |name: &str| std::fs::metadata(folder.path().join(name)).expect("a file").permissions();
    assert_eq!(may("a.html"), may("plain"), "others may read what was asked for");
    let output = lapidary(&["report", "plan.json", "-o", "b.html"], folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(read("b.html").contains("\"timeline\":null"));
    let output = lapidary(&["report", "t.json", "-o", "c.html"], folder.path());
    assert_eq!(code(&output), 3);
    for meaningless in [["--straggler", "-1"], ["--top", "0"], ["--budget", "nan"], ["--budget", "0"]] {
        let output = lapidary(&[&asked[..], &meaningless].concat(), folder.path());
        assert_eq!(code(&output), 2, "{meaningless:?}: {}", stderr(&output));
    }
}

#[test]
fn a_simulation_is_seen_at_every_level() {
    let folder = folder();
    let text = "wafer 3 x 1 phase send phase take
class a at (0, 0) { buffer v: f32[40] @0 route 0: ramp -> east
  task t start { phase send mov out(0) <- v len 40 } }
class b at (1, 0) { buffer v: f32[40] @0 route 0: west -> ramp, east
  task t start { phase take loop 3 { mul v <- v, 2.0 len 40 } mov v <- in(0) len 40 } }
class c at (2, 0) { buffer v: f32[80] @0 route 0: west -> ramp
  task t start { phase take mov v <- in(0) len 40 } }";
    std::fs::write(folder.path().join("seen.wafer"), text).expect("a file");
    for level in ["event", "flow", "analytic"] {
        let asked = ["simulate", "seen.wafer", "--level", level, "--trace", "t.json"];
        let output = lapidary(&asked, folder.path());
        assert_eq!(code(&output), 0, "{level}: {}", stderr(&output));
        for part in
            ["hottest link: out of (0, 0) East, 40 words", "fullest PE 320 B (class c)", "cause, in the PE"]
        {
            assert!(stdout(&output).contains(part), "{level}: no `{part}` in {}", stdout(&output));
        }
        assert_eq!(stdout(&output).contains("cause, on the critical path"), level != "analytic");
        let trace = std::fs::read_to_string(folder.path().join("t.json")).expect("a file");
        let trace: serde_json::Value = serde_json::from_str(&trace).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let names: Vec<&str> = events.iter().filter_map(|event| event["args"]["name"].as_str()).collect();
        for part in ["phases", "PE classes", "links, words per cycle", "a (0, 0)", "c (2, 0)"] {
            assert!(names.iter().any(|name| name.contains(part)), "{level}: {part} in {names:?}");
        }
        let ports = events.iter().filter(|event| event["ph"] == "C" && event["name"] == "(0, 0) east");
        let rates: Vec<f64> = ports.filter_map(|event| event["args"]["words per cycle"].as_f64()).collect();
        assert!(rates.iter().sum::<f64>() > 0.0 && rates.last() == Some(&0.0), "{level}: {rates:?}");
        follows_the_trace_format(events);
        let output = lapidary(&[&asked[..4], &["--json"]].concat(), folder.path());
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        let cycles = |value: &serde_json::Value| {
            value.as_object().map(|all| all.values().filter_map(|v| v.as_u64()).sum())
        };
        assert_eq!(cycles(&report["terms"]), report["cycles"].as_u64(), "{level}");
        assert_eq!(report["heat"]["sram_bytes"], serde_json::json!([160, 160, 320]), "{level}");
        assert_eq!((&report["heat"]["width"], &report["heat"]["height"]), (&3.into(), &1.into()), "{level}");
        let told = cycles(&report["critical_path"]).filter(|_| level != "analytic");
        assert_eq!(told, report["cycles"].as_u64().filter(|_| level != "analytic"), "{level}");
        // The page of a simulation, of its document, and of the program.
        std::fs::write(folder.path().join("seen.json"), output.stdout).expect("a file");
        let asked = [&asked[..4], &["--report", "seen.html"]].concat();
        for asked in [&asked[..], &["report", "seen.json", "-o", "seen.html"]] {
            let output = lapidary(asked, folder.path());
            assert_eq!(code(&output), 0, "{level}: {}", stderr(&output));
            let page = std::fs::read_to_string(folder.path().join("seen.html")).expect("a page");
            let link = "The hottest link leaves (0, 0) to the east with 40 words";
            for part in [&format!("Stage program, level {level}"), "darkest 320 bytes", link] {
                assert!(page.contains(part), "{level}: no `{part}` in {page}");
            }
            assert_eq!(page.matches("viewBox=\"0 0 3 1\"").count(), 3, "{level}");
        }
    }
    let output = lapidary(&["report", "seen.wafer", "-o", "seen.html"], folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let page = std::fs::read_to_string(folder.path().join("seen.html")).expect("a page");
    assert!(page.contains("Stage program, level analytic"), "{page}");
    std::fs::write(folder.path().join("seen.json"), r#"{"schema": "lapidary/simulation", "version": 1}"#)
        .expect("a file");
    let output = lapidary(&["report", "seen.json", "-o", "none.html"], folder.path());
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("seen.json") && !folder.path().join("none.html").exists());
}

/// What the trace viewers ask of events: a name, a kind, a track and a time in microseconds; spans of a track one behind
/// the other.
fn follows_the_trace_format(events: &[serde_json::Value]) {
    let mut ends: std::collections::BTreeMap<(u64, u64), f64> = std::collections::BTreeMap::new();
    for event in events {
        let number = |key: &str| event[key].as_f64().unwrap_or_else(|| panic!("no {key} in {event}"));
        assert!(event["name"].as_str().is_some_and(|name| !name.is_empty()), "{event}");
        assert!(number("ts") >= 0.0 && event["args"].is_object(), "{event}");
        let track = (number("pid") as u64, number("tid") as u64);
        match event["ph"].as_str().expect("a kind") {
            "X" => {
                let (start, end) = (number("ts"), number("ts") + number("dur"));
                let before = ends.insert(track, end).unwrap_or(0.0);
                assert!(number("dur") >= 0.0 && start >= before - 1e-9, "{event}");
            }
            "C" => assert!(number("ts") >= 0.0),
            "M" => {
                assert!(["process_name", "thread_name"].contains(&event["name"].as_str().expect("a name")))
            }
            other => panic!("{other} in {event}"),
        }
    }
}

#[test]
fn inference_is_planned_within_its_latencies() {
    let folder = folder();
    let asked = ["plan", "amber", "--machine", "dgx-a100", "--serve", "--json"];
    let output = lapidary(&[&asked[..], &["--between-tokens-ms", "12"]].concat(), folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!((plan["schema"].as_str(), plan["version"].as_u64()), (Some("lapidary/serve-plan"), Some(1)));
    let first = &plan["candidates"][0];
    assert_eq!(plan["chosen"], first["name"]);
    assert!(first["between_last_tokens_s"].as_f64().is_some_and(|seconds| seconds <= 0.012));
    let output = lapidary(&[&asked[..], &["--between-tokens-ms", "0.1"]].concat(), folder.path());
    assert_eq!(code(&output), 4);
    let output = lapidary(&[&asked[..], &["--pin", "pp=2"]].concat(), folder.path());
    assert_eq!(code(&output), 2);
}

#[test]
fn a_site_is_calibrated_and_planned_for() {
    let folder = folder();
    let ranks: String = (0..4)
        .map(|rank| format!("#  Rank  {rank} Group  0 Pid 1 on host device  {rank} [0x07] A100\n"))
        .collect();
    let log = format!("{ranks}  1073741824 268435456 float sum -1 9000 1 180.0 0 9100 1 179.0 0\n");
    std::fs::write(folder.path().join("nccl.log"), log).expect("a log");
    let asked = ["calibrate", "--from", "nccl.log", "--machine", "amber-cluster", "-o", "site.toml"];
    let output = lapidary(&asked, folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output =
        lapidary(&["plan", "amber", "--machine", "./site.toml", "--devices", "4", "--json"], folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let efficiency = plan["assumptions"].as_array().expect("a list").iter();
    let mut efficiency = efficiency.filter(|one| one["name"] == "node.links.efficiency");
    let fact = efficiency.next().expect("the fact");
    assert_eq!(fact["value"], 0.9);
    assert!(fact["source"].as_str().is_some_and(|source| source.starts_with("nccl.log: ")));
    std::fs::write(folder.path().join("nccl.log"), "nothing").expect("a log");
    assert_eq!(code(&lapidary(&asked, folder.path())), 3);
}

fn names(folder: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_plan_is_started_by_scripts_beside_it() {
    let folder = folder();
    let asked = ["plan", "amber", "--machine", "amber-cluster", "--devices", "8", "--pin", "tp=2"];
    let emit = ["--emit", "torchrun,slurm,megatron", "-o", "plan.json"];
    let output = lapidary(&[&asked[..], &emit].concat(), folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(names(folder.path()), ["megatron.sh", "plan.json", "slurm.sbatch", "torchrun.sh"]);
    for script in ["megatron.sh", "slurm.sbatch", "torchrun.sh"] {
        let checked = Command::new("bash").args(["-n", script]).current_dir(folder.path()).status();
        assert!(checked.expect("bash runs").success(), "{script}");
    }
    let megatron = std::fs::read_to_string(folder.path().join("megatron.sh")).expect("a script");
    assert!(megatron.contains("--tensor-model-parallel-size 2") && megatron.contains("--num-layers 32"));
}

/// Megatron-LM knows no multipliers of muP: neither the plan nor the other script is written then.
#[test]
fn a_plan_that_a_launcher_cannot_start_leaves_nothing_behind() {
    let folder = folder();
    let asked = ["plan", "crystalcoder", "--machine", "amber-cluster", "--devices", "8", "-o", "plan.json"];
    let output = lapidary(&[&asked[..], &["--emit", "torchrun,megatron"]].concat(), folder.path());
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("muP"), "{}", stderr(&output));
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}

#[test]
fn measured_kernels_make_a_site_and_broken_ones_are_refused_by_key() {
    let folder = folder();
    let asked = ["calibrate", "--from", "bench.json", "--machine", "amber-cluster", "-o", "site.toml"];
    let run = |median: &str, achieved: &str| {
        let text = format!(
            r#"{{"schema": "lapidary/bench", "version": 1, "device": "A100-SXM4-80GB", "date": "2026-11-22", "results":
            [{{"kernel": "gemm", "shape": {{"m": 4096, "n": 4096, "k": 4096}}, "dtype": "bf16", "median_s": {median},
            "spread_pct": 1.0, "achieved": {achieved}, "unit": "FLOP/s"}}]}}"#
        );
        std::fs::write(folder.path().join("bench.json"), text).expect("a document");
        lapidary(&asked, folder.path())
    };
    let refusals = [
        ("0", "2.5e14", "median_s"),
        ("5.5e-4", "1e99", "peak"),
        ("\"x\"", "2.5e14", "line"),
        ("5.5e-4", "", "line"),
    ];
    for (median, achieved, told) in refusals {
        let output = run(median, achieved);
        assert_eq!(code(&output), 3, "{median} {achieved}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("bench.json") && stderr(&output).contains(told),
            "{}",
            stderr(&output)
        );
        assert_eq!(names(folder.path()), ["bench.json"]);
    }
    let output = run("5.5e-4", "2.5e14");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let site = std::fs::read_to_string(folder.path().join("site.toml")).expect("a machine file");
    assert!(site.contains("bench.json"), "{site}");
}

/// A model with experts is planned for GPUs, and refused where it would be compiled or planned for wafers.
#[test]
fn experts_are_planned_and_not_compiled() {
    let text = TINY.replace("[pos]", "[experts]\ncount = 4\ntop_k = 2\n\n[pos]");
    let (folder, _) = with_model(&text);
    let planned = ["plan", "model.toml", "--machine", "dgx-a100", "--pin", "ep=2", "--json"];
    let output = lapidary(&planned, folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(plan["chosen"].as_str().is_some_and(|name| name.contains("ep2")), "{}", plan["chosen"]);
    refused(&text, &["compile", "./model.toml", "--target", "cpu", "-o", "out"], 5, &["expert"]);
    refused(&text, &["plan", "./model.toml", "--machine", "cg1"], 5, &["expert"]);
    let none = text.replace("count = 4", "count = 0");
    refused(&none, &["check", "./model.toml"], 3, &["model.toml", "experts.count"]);
}

#[test]
fn models_show_counts_parameters_exactly() {
    let folder = folder();
    for (name, parameters) in [("amber", 6_738_415_616u64), ("crystalcoder", 6_575_278_720)] {
        let output = lapidary(&["models", "show", name, "--json"], folder.path());
        let shown: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(shown["parameters"], parameters);
        assert_eq!(shown["layers"], 32);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let script = format!("{} plan amber --machine amber-cluster | head -1", env!("CARGO_BIN_EXE_lapidary"));
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    assert!(stdout(&output).starts_with("amber"));
    assert_eq!(stderr(&output), "", "no panic");
}

#[test]
fn ptx_that_was_asked_for_and_cannot_be_made_is_exit_7() {
    let (folder, _) = with_model(TINY);
    let run = |emit: &str| {
        Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args(["compile", "model.toml", "--target", "a100", "--seq-len", "16", "--emit", emit])
            .current_dir(folder.path())
            .env("LAPIDARY_CUDA", folder.path())
            .output()
            .expect("the binary runs")
    };
    let output = run("ptx");
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    assert!(stderr(&output).contains("make setup"), "{}", stderr(&output));
    assert!(!folder.path().join("out.lpd").exists());
    assert_eq!(code(&run("cuda")), 0, "CUDA C++ needs no NVRTC");
    assert!(folder.path().join("out.lpd/kernels").is_dir());
}

/// Forms that were measured are taken, from the file that is named or from this machine's own, and the program says so.
#[test]
fn compile_takes_the_forms_that_were_measured() {
    let (folder, _) = with_model(TINY);
    let compile = |more: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args(["compile", "model.toml", "--target", "a100", "--seq-len", "16", "--emit", "cuda"])
            .args(more)
            .current_dir(folder.path())
            .env("LAPIDARY_CACHE", folder.path())
            .output();
        out.expect("the binary runs")
    };
    let read = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(folder.path().join("out.lpd").join(name)).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    };
    let choice = || {
        let program = read("program.json");
        let kernels = program["kernels"].as_array().expect("kernels");
        let chosen = kernels.iter().find(|kernel| kernel["name"] == "layer_mlp_down").expect("the product");
        chosen["choice"].clone()
    };
    assert_eq!(code(&compile(&[])), 0);
    let rule = choice();
    assert_eq!(rule["by"], "rule");
    assert!(read("report.json")["tunings"].is_null());
    let product = rule["product"].as_str().expect("a name");
    let tunings = |device: &str| {
        let times = serde_json::json!({ product: { "library": 2e-6, "tiles-64x128": 1e-6 } });
        serde_json::json!({
            "schema": "lapidary/gpu-tunings", "version": 1, "device": device, "driver": "12.9", "median_s": times,
        })
        .to_string()
    };
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("a file");
    write("other.json", tunings("NVIDIA H200"));
    let output = compile(&["--tunings", "other.json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("forms were measured on NVIDIA H200"), "{}", stdout(&output));
    assert_eq!(
        (choice()["by"].as_str(), choice()["form"].as_str()),
        (Some("measured"), Some("tiles-64x128"))
    );
    assert_eq!(read("report.json")["tunings"]["kernels"], 1);
    write("tunings-NVIDIA-A100-SXM4-80GB-12.9.json", tunings("NVIDIA A100-SXM4-80GB"));
    assert_eq!(code(&compile(&[])), 0);
    assert_eq!(choice()["by"], "measured");
    assert_eq!(code(&compile(&["--tunings", "off"])), 0);
    assert_eq!(choice(), rule);
    write("none.json", "{}".into());
    let output = compile(&["--tunings", "none.json"]);
    assert!(code(&output) == 3 && stderr(&output).contains("none.json"), "{}", stderr(&output));
}

#[test]
fn a_host_program_is_compiled_too() {
    let (folder, _) = with_model(TINY);
    let output = lapidary(&["compile", "model.toml", "--target", "cpu"], folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = std::fs::read_to_string(folder.path().join("out.lpd/program.json")).expect("a program");
    assert!(text.contains("lapidary/cpu-program"));
}

/// Where there is no GPU, whatever else there is, `--device cuda` says what is missing and what would help.
#[test]
fn a_machine_without_a_gpu_says_so() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles/amber-tiny");
    let stored = stored.to_str().expect("a path");
    let hidden = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args(args)
            .env("NO_COLOR", "1")
            .env("CUDA_VISIBLE_DEVICES", "")
            .output()
            .expect("the binary runs")
    };
    for args in [
        &["run", stored, "--tokens", "1,2", "--device", "cuda"][..],
        &["verify", stored, "--device", "cuda"],
        &["bench", "norm", "--seq-len", "8", "--json"],
    ] {
        let output = hidden(args);
        assert_eq!(code(&output), 7, "{}", stderr(&output));
        let told = stderr(&output);
        assert!(told.contains("--device cuda") && told.contains("help:"), "{told}");
        assert!(!told.contains("panic"), "{told}");
    }
    let output = hidden(&["verify", stored, "--device", "cuda", "--grads"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
}

/// A bundle is everything that a machine with a GPU needs: its jobs read back, pass their check, and each kernel's machine
/// code is there. Needs NVRTC.
#[test]
fn a_bundle_holds_jobs_and_machine_code() {
    use lapidary_runtime_gpu::bench::{Jobs, Text, sources};
    use lapidary_runtime_gpu::compile::{Compiler, Prebuilt};
    let (folder, _) = with_model(TINY);
    let output = lapidary(
        &[
            "bench",
            "norm",
            "--model",
            "model.toml",
            "--seq-len",
            "8",
            "--ceiling",
            "64",
            "--bundle",
            "out",
            "--arch",
            "sm_90a",
        ],
        folder.path(),
    );
    if code(&output) == 7 {
        return eprintln!("skipped: {}", stderr(&output));
    }
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let place = folder.path().join("out/sm_90a");
    let text = std::fs::read_to_string(place.join("jobs.json")).expect("the jobs");
    let jobs: Jobs = serde_json::from_str(&text).expect("a list of jobs");
    assert!(jobs.jobs.iter().any(|job| job.kernel == "norm") && jobs.ceiling.len() == 7);
    let mut code = Prebuilt::default();
    for file in std::fs::read_dir(&place).expect("a folder").map(|entry| entry.expect("a file").path()) {
        if file.extension().is_some_and(|e| e == "cubin") {
            let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
            code.0.insert(name, std::fs::read(&file).expect("a file"));
        }
    }
    for job in jobs.ceiling.iter().chain(&jobs.jobs) {
        job.program.clone().check().expect("a program that passes its check");
        let candidates = job.candidates.iter().flat_map(|candidate| &candidate.sources);
        let texts: Vec<Text> = job.sources.iter().chain(candidates).cloned().collect();
        for cubin in code.machine_code(&sources(&texts), "sm_90a") {
            assert!(cubin.expect("machine code").starts_with(b"\x7fELF"));
        }
    }
}

/// The artifact of a plan is whole: a program for every rank of a replica, kernels that they share, who runs what, and scripts.
#[test]
fn a_plan_is_compiled_to_the_programs_of_its_ranks() {
    let (folder, _) = with_model(TINY);
    let asked = [
        "compile",
        "model.toml",
        "--target",
        "a100",
        "--plan",
        "tp2pp2dp2",
        "--seq-len",
        "16",
        "--emit",
        "cuda",
    ];
    let output = lapidary(&asked, folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let artifact = folder.path().join("out.lpd");
    let read = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(artifact.join(name)).expect("a document");
        serde_json::from_str(&text).expect("JSON")
    };
    let launch = read("launch.json");
    assert_eq!((&launch["plan"], &launch["world"]), (&"tp2pp2dp2".into(), &8.into()));
    let ranks = launch["ranks"].as_array().expect("ranks");
    let place = |rank: &serde_json::Value| ["tensor", "replica", "stage"].map(|key| rank[key].as_u64());
    assert_eq!(place(&ranks[6]), [Some(0), Some(1), Some(1)]);
    for rank in ranks {
        let program = read(rank["program"].as_str().expect("a file"));
        assert_eq!(program["share"]["stage"]["index"], rank["stage"]);
        for kernel in program["kernels"].as_array().expect("kernels") {
            let file = kernel["file"].as_str();
            assert!(file.is_none_or(|file| artifact.join(file).is_file()), "{kernel}");
        }
    }
    for script in ["torchrun.sh", "mpirun.sh", "slurm.sbatch"] {
        let path = artifact.join("launch").join(script);
        let checked = Command::new("bash").arg("-n").arg(&path).status().expect("bash runs");
        assert!(checked.success(), "{script}");
    }
    // A training step of the same plan: segments in the order of the schedule.
    let step = ["--train", "--micro-batches", "4", "-o", "step.lpd"];
    let output = lapidary(&[&asked[..], &step].concat(), folder.path());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let path = folder.path().join("step.lpd/ranks/stage0-rank0/program.json");
    let program = std::fs::read_to_string(path).expect("a program");
    let program: serde_json::Value = serde_json::from_str(&program).expect("JSON");
    assert_eq!(program["share"]["micros"]["schedule"]["micros"], 4);
    assert_eq!(program["share"]["micros"]["segments"].as_array().map(Vec::len), Some(2));
    // Replicas hold the optimizer's state, or everything, in runs: what a device needs shrinks class by class.
    let classes = |sharding: &str| {
        let shared = ["--train", "--sharding", sharding, "--json", "-o", sharding];
        let output = lapidary(&[&asked[..], &shared].concat(), folder.path());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let path = folder.path().join(sharding).join("ranks/stage1-rank0/program.json");
        let program = std::fs::read_to_string(path).expect("a program");
        let program: serde_json::Value = serde_json::from_str(&program).expect("JSON");
        let said = program["share"]["sharding"].as_str().unwrap_or("none");
        assert_eq!(said, sharding);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        ["weights", "optimizer_state"].map(|class| report["memory_bytes"][class].as_u64().expect("bytes"))
    };
    let [none, optimizer, full] = ["none", "optimizer", "full"].map(classes);
    assert!(optimizer[1] < none[1] && full[1] < optimizer[1], "{none:?} {optimizer:?} {full:?}");
    assert!(full[0] < none[0], "{none:?} {full:?}");
    let again = lapidary(&[&asked[..], &["-o", "again.lpd"]].concat(), folder.path());
    assert_eq!(code(&again), 0, "{}", stderr(&again));
    let bytes =
        |artifact: &str| std::fs::read(folder.path().join(artifact).join("ranks/stage1-rank1/program.json"));
    assert_eq!(bytes("out.lpd").expect("a program"), bytes("again.lpd").expect("a program"));
}

#[test]
fn plans_that_programs_cannot_follow_are_refused() {
    let (folder, _) = with_model(TINY);
    let refused = |more: &[&str], exit: i32, told: &str| {
        let output = lapidary(&[&["compile", "model.toml", "--seq-len", "16"], more].concat(), folder.path());
        assert_eq!(code(&output), exit, "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{more:?}: {}", stderr(&output));
        assert!(!folder.path().join("out.lpd").exists());
    };
    refused(&["--target", "a100", "--plan", "pp3"], 4, "3 pipeline stages for the 2 layers");
    refused(&["--target", "cpu", "--plan", "tp2"], 5, "compiled for GPUs");
    refused(&["--target", "a100", "--plan", "tp2", "--passes", "cse"], 5, "--passes is not for");
    refused(&["--target", "a100", "--plan", "nowhere.json"], 3, "nowhere.json");
    let planned =
        ["plan", "amber", "--machine", "amber-cluster", "--devices", "8", "--pin", "tp=2", "-o", "plan.json"];
    assert_eq!(code(&lapidary(&planned, folder.path())), 0);
    refused(&["--target", "a100", "--plan", "plan.json"], 4, "a plan for amber, not for tiny");
}
