//! benches/gpu.sh without a GPU: its usage, what it says of a folder that is none, the exit code of a runner that finds no
//! driver, its end of a runner that does not stop, and the report that it makes of a document.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(args: &[&Path], seconds: &str) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/gpu.sh");
    let mut command = Command::new("sh");
    command.arg(path).args(args).env("GPU_SECONDS", seconds).env("CUDA_VISIBLE_DEVICES", "");
    command.output().expect("a shell")
}

/// A bundle whose runner is this text.
fn bundle(folder: &Path, runner: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let place = folder.join("bundle");
    std::fs::create_dir(&place).expect("a folder");
    let file = place.join("lapidary-gpu");
    std::fs::write(&file, runner).expect("a file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a program");
    place
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn usage_and_a_missing_bundle_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let (code, text) = told(&script(&[], "5"));
    assert!(code == Some(2) && text.contains("gpu.sh BUNDLE OUT"), "{text}");
    let (code, text) = told(&script(&[&folder.path().join("none"), &folder.path().join("out")], "5"));
    assert!(code == Some(3) && text.contains("make gpu-bundle"), "{text}");
}

/// The real runner, where there is no driver: it says so, and the script ends as it does.
#[test]
fn a_machine_without_a_driver_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let runner = format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_lapidary-gpu"));
    let place = bundle(folder.path(), &runner);
    let (code, text) = told(&script(&[&place, &folder.path().join("out")], "5"));
    assert!(code == Some(7), "{code:?} {text}");
    assert!(text.contains("driver") || text.contains("GPU") || text.contains("has no kernels"), "{text}");
}

#[test]
fn a_runner_that_does_not_stop_is_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    // The script waits 15 seconds longer than it tells the runner.
    let place = bundle(folder.path(), "#!/bin/sh\nexec sleep 600\n");
    let (code, text) = told(&script(&[&place, &folder.path().join("out")], "-14"));
    assert!(code == Some(124) && text.contains("was ended"), "{code:?} {text}");
}

#[test]
fn the_report_is_made_of_the_document() {
    let folder = tempfile::tempdir().expect("a folder");
    let document = r#"{"schema": "lapidary/gpu-run", "version": 1, "driver": "12.9", "arch": "sm_90a",
        "checks": [{"name": "amber", "difference": 1e-3, "tolerance": 3e-2, "ok": true}],
        "bench": {"schema": "lapidary/bench", "version": 1, "device": "H200", "date": "2026-11-22",
            "results": [{"kernel": "decode", "shape": {"batch": 1}, "dtype": "int8", "median_s": 2e-3, "spread_pct": 1.5,
                "achieved": 4e12, "unit": "B/s", "share_pct": 88.5, "tokens_per_s": 500.0, "form": "stream-4"}],
            "ceilings": {"copy_bytes_per_s": 4.1e12, "product_flops_per_s": 7e14},
            "skipped": [{"kernel": "prefill", "why": "the time is over"}]},
        "tunings": {"median_s": {}}, "roofline": "<svg/>"}"#;
    let runner = format!("#!/bin/sh\ncat <<'END'\n{document}\nEND\necho done >&2\nexit 6\n");
    let out = folder.path().join("out");
    let output = script(&[&bundle(folder.path(), &runner), &out], "5");
    assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    if !Command::new("python3").arg("--version").output().is_ok_and(|python| python.status.success()) {
        return;
    }
    let report = std::fs::read_to_string(out.join("report.txt")).expect("a report");
    for part in
        ["H200 (sm_90a", "1 of 1 agree", "decode int8", "stream-4", "500.0 tokens/s", "skipped prefill"]
    {
        assert!(report.contains(part), "{part} in {report}");
    }
    assert_eq!(std::fs::read_to_string(out.join("roofline.svg")).expect("a picture"), "<svg/>");
    assert!(out.join("bench.json").is_file() && out.join("tunings.json").is_file());
}
