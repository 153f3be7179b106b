//! `lapidary compile --train`.

use crate::{lapidary, refused, stored, text};
use serde_json::Value;

fn compiled(name: &str, target: &str, more: &[&str]) -> (Value, Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.lpd");
    let model = stored(name).join("config.json");
    let fixed = ["compile", text(&model), "--train", "--target", target, "--seq-len", "24", "--batch", "2"];
    let args: Vec<&str> =
        fixed.iter().copied().chain(["-o", text(&out)]).chain(more.iter().copied()).collect();
    let ended = lapidary(&args);
    assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
    let read = |file: &str| {
        let bytes = std::fs::read(out.join(file)).expect("a file of the artifact");
        serde_json::from_slice(&bytes).expect("a document")
    };
    (read("program.json"), read("report.json"))
}

#[test]
fn the_host_gets_a_training_step() {
    let (program, report) = compiled("crystal-tiny", "cpu", &[]);
    assert_eq!(program["schema"], "lapidary/cpu-train-program");
    assert_eq!(report["mode"], "train");
    assert_eq!(report["passes"][0]["name"], "recompute");
    assert!(
        report["recompute"]["segments"][0]["reason"].as_str().is_some_and(|why| why.contains("run again"))
    );
    assert!(report["memory_bytes"]["optimizer_state"].as_u64() > report["memory_bytes"]["weights"].as_u64());
}

#[test]
fn a_gpu_gets_every_kernel_of_a_training_step_without_spills() {
    let (program, report) = compiled("llama3-tiny", "a100", &["--recompute", "full"]);
    assert_eq!(program["schema"], "lapidary/gpu-program");
    let kernels = program["kernels"].as_array().expect("kernels");
    let ops: Vec<&str> =
        kernels.iter().flat_map(|k| k["ops"].as_array().expect("ops")).filter_map(Value::as_str).collect();
    for op in [
        "cross_entropy",
        "linear_dw",
        "norm_dx",
        "norm_dw",
        "embed_dw",
        "softmax_dx",
        "gradient",
        "adamw",
        "clip",
    ] {
        assert!(ops.contains(&op), "no kernel of {op}: {ops:?}");
    }
    for kernel in kernels.iter().filter(|kernel| !kernel["spill_bytes"].is_null()) {
        assert_eq!(kernel["spill_bytes"], 0, "{kernel}");
    }
    let kept = |report: &Value| report["memory_bytes"]["kept_activations"].as_u64().expect("bytes");
    let (_, none) = compiled("llama3-tiny", "a100", &["--recompute", "none", "--emit", "report"]);
    assert!(kept(&report) * 5 < kept(&none), "{} of {}", kept(&report), kept(&none));
}

#[test]
fn switches_of_training_need_training() {
    let model = stored("amber-tiny").join("config.json");
    refused(&["compile", text(&model), "--target", "cpu", "--recompute", "full"], 2, &["--train"]);
    refused(&["compile", text(&model), "--target", "cpu", "--train", "--mup", "on"], 2, &["--mup"]);
}
