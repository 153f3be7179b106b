//! Commands that run models, from outside: on the stored directories, on others of the same form, on bad input.

mod memorization;
mod ranks;
mod run;
mod training;
mod verify;
mod wafer;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// What a command left behind.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }
}

fn lapidary(args: &[&str]) -> Ended {
    lapidary_reading(args, "")
}

fn lapidary_reading(args: &[&str], stdin: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: status.code().expect("it exits by itself"), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs a command that has to fail with this exit code and say all of this.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let ended = lapidary(args);
    assert_eq!(ended.code, code, "{args:?}\n{}", ended.stderr);
    // Messages are broken into lines.
    let told = ended.stderr.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(told.contains(word), "{args:?}: no `{word}` in\n{}", ended.stderr);
    }
}

/// program.json and report.json of a compilation of a stored model.
fn compiled(name: &str, args: &[&str]) -> (serde_json::Value, serde_json::Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.lpd");
    let model = stored(name).join("config.json");
    let ended = lapidary(&[&["compile", text(&model), "-o", text(&out)], args].concat());
    assert_eq!(ended.code, 0, "{name} {args:?}: {}", ended.stderr);
    (read_json(&out.join("program.json")), read_json(&out.join("report.json")))
}

const STORED: [&str; 5] = ["amber-tiny", "crystal-tiny", "llama3-tiny", "llama32-tiny", "pythia-tiny"];

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A copy of a stored directory that may be changed.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(stored(name)).expect("a stored directory") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("readable");
        std::fs::write(folder.path().join(path.file_name().expect("a name")), bytes).expect("a copy");
    }
    folder
}

fn read_json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

fn ids(value: &serde_json::Value) -> Vec<u64> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id")).collect()
}

fn list(value: &serde_json::Value) -> String {
    ids(value).iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}
