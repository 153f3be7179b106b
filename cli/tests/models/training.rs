//! `lapidary compile --train`.

use crate::{compiled, refused, stored, text};
use serde_json::Value;

fn step(name: &str, target: &str, more: &[&str]) -> (Value, Value) {
    let fixed = ["--train", "--target", target, "--seq-len", "24", "--batch", "2"];
    compiled(name, &[&fixed[..], more].concat())
}

#[test]
fn the_host_gets_a_training_step() {
    let (program, report) = step("crystal-tiny", "cpu", &[]);
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
    let (program, report) = step("llama3-tiny", "a100", &["--recompute", "full"]);
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
    let (_, none) = step("llama3-tiny", "a100", &["--recompute", "none", "--emit", "report"]);
    assert!(kept(&report) * 5 < kept(&none), "{} of {}", kept(&report), kept(&none));
}

#[test]
fn switches_of_training_need_training() {
    let model = stored("amber-tiny").join("config.json");
    refused(&["compile", text(&model), "--target", "cpu", "--recompute", "full"], 2, &["--train"]);
    refused(&["compile", text(&model), "--target", "cpu", "--train", "--mup", "on"], 2, &["--mup"]);
}
