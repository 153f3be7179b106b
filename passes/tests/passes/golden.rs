//! Runs the RUN lines of `tests/golden/*.mlir` through [`lapidary_passes::opt::run`] and LLVM's own FileCheck.

use lapidary_ir::Diagnostic;
use lapidary_passes::opt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn file_check() -> PathBuf {
    let prefix = std::env::var("MLIR_SYS_220_PREFIX").unwrap_or_else(|_| "/usr/lib/llvm-22".into());
    Path::new(&prefix).join("bin/FileCheck")
}

/// `[not] lapidary-opt %s [--pass-pipeline=X] [2>&1] | FileCheck %s [--check-prefix=Y]`.
struct Run {
    fails: bool,
    pipeline: String,
    check: Vec<String>,
}

fn runs(text: &str) -> Vec<Run> {
    text.lines().filter_map(|line| line.strip_prefix("// RUN: ")).map(read_run).collect()
}

fn read_run(line: &str) -> Run {
    let (left, right) = line.split_once('|').unwrap_or_else(|| panic!("no pipe in `{line}`"));
    let option = left.split_once("--pass-pipeline=").map(|(_, rest)| rest.trim());
    let option = option.map(|rest| rest.trim_end_matches("2>&1").trim().trim_matches('\''));
    Run {
        fails: left.starts_with("not "),
        pipeline: option.unwrap_or_default().to_string(),
        check: right.split_whitespace().filter(|word| word.starts_with("--")).map(String::from).collect(),
    }
}

fn output(name: &str, text: &str, run: &Run) -> Result<String, String> {
    let said = |diagnostics: &[Diagnostic]| diagnostics.iter().map(|d| format!("{d}\n")).collect::<String>();
    match (opt::run(text, name, &run.pipeline), run.fails) {
        (Ok(output), false) => Ok(output),
        (Err(diagnostics), true) => Ok(said(&diagnostics)),
        (Ok(output), true) => Err(format!("should fail, but prints\n{output}")),
        (Err(diagnostics), false) => Err(format!("fails:\n{}", said(&diagnostics))),
    }
}

fn checks(path: &Path, output: &str, options: &[String]) -> Result<(), String> {
    let mut child = Command::new(file_check())
        .arg(path)
        .args(options)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", file_check().display()))?;
    let fed = child.stdin.take().map(|mut stdin| stdin.write_all(output.as_bytes()));
    let done = child.wait_with_output().map_err(|error| error.to_string())?;
    match (done.status.success(), fed) {
        (true, Some(Ok(()))) => Ok(()),
        _ => Err(format!("{}\nfull output:\n{output}", String::from_utf8_lossy(&done.stderr))),
    }
}

#[test]
fn every_golden_file_holds() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "mlir"));
    files.sort();
    assert!(!files.is_empty());
    let mut faults = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for run in runs(&text) {
            let held = output(&name, &text, &run).and_then(|output| checks(&path, &output, &run.check));
            if let Err(fault) = held {
                faults.push(format!("{name}: {}\n{fault}", run.pipeline));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
