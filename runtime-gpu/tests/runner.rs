//! The runner of bundles, on machines without a GPU: it says what is missing and how it ends.

use std::path::Path;
use std::process::{Command, Output};

fn runner(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary-gpu"))
        .args(args)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the binary runs")
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_missing_is_said_and_nothing_panics() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |path: &Path| path.to_str().expect("a path").to_string();
    let (code, text) = told(&runner(&[]));
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = told(&runner(&[&path(folder.path()), "many"]));
    assert_eq!(code, Some(2), "{text}");
    let nowhere = path(&folder.path().join("nowhere"));
    let (code, text) = told(&runner(&[&nowhere]));
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("nowhere"), "{text}");
    let (code, text) = told(&runner(&[&path(folder.path())]));
    assert_eq!(code, Some(7), "{text}");
    assert!(!text.contains("panic"), "{text}");
}
