//! Holds the house against its plan: which crate may import which, and that every file says what it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Doors open one way: a crate and the workspace crates that it may use.
const DOORS: [(&str, &[&str]); 12] = [
    ("models", &[]),
    ("reference", &["models"]),
    ("checkpoint", &["models"]),
    ("hardware", &["models"]),
    ("planner", &["models", "hardware"]),
    ("ir", &["models"]),
    ("runtime-gpu", &["models", "hardware"]),
    ("runtime-sim", &["models", "hardware"]),
    ("runtime-cpu", &["models", "hardware"]),
    ("runtime-mpi", &["runtime-cpu"]),
    ("passes", &["ir", "models", "hardware", "runtime-gpu", "runtime-sim", "runtime-cpu"]),
    (
        "cli",
        &[
            "passes",
            "ir",
            "models",
            "checkpoint",
            "reference",
            "hardware",
            "planner",
            "runtime-gpu",
            "runtime-sim",
            "runtime-cpu",
            "runtime-mpi",
        ],
    ),
];

/// Crates that everything may use nothing of: they stand outside the house and look in.
const OUTSIDE: [&str; 2] = ["tests", "benches"];

/// Crates that may link MLIR.
const WITH_MLIR: [&str; 5] = ["ir", "passes", "cli", "tests", "benches"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// Dependencies of every workspace crate, without dev-dependencies, by short name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages.iter().map(|package| (short(&package["name"]), dependency_names(package))).collect()
}

fn dependency_names(package: &serde_json::Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().expect("dependencies");
    all.iter().filter(|d| d["kind"] != "dev").map(|d| short(&d["name"])).collect()
}

fn short(name: &serde_json::Value) -> String {
    let name = name.as_str().expect("a name");
    name.strip_prefix("lapidary-").unwrap_or(name).to_string()
}

#[test]
fn doors_open_one_way() {
    let found = dependencies();
    let rooms: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = DOORS.iter().map(|(room, _)| *room).chain(OUTSIDE).collect();
    assert_eq!(rooms, known, "a room was added or removed: update the table and ARCHITECTURE.md");
    for (room, doors) in DOORS {
        let used = found[room].iter().filter(|name| rooms.contains(name.as_str()));
        let forbidden: Vec<_> = used.filter(|name| !doors.contains(&name.as_str())).collect();
        assert!(forbidden.is_empty(), "{room} may not use {forbidden:?}");
    }
}

#[test]
fn only_the_compiler_links_mlir() {
    for (room, dependencies) in dependencies() {
        let mlir = dependencies.contains("melior") || dependencies.contains("mlir-sys");
        assert!(!mlir || room == "ir", "{room} uses MLIR directly; only ir may");
        let through = dependencies.contains("ir") || dependencies.contains("passes");
        assert!(!through || WITH_MLIR.contains(&room.as_str()), "{room} must build without MLIR");
    }
}

/// The passes see the runtimes' program definitions, and their text form, and nothing else of them.
#[test]
fn passes_know_only_the_programs_of_the_runtimes() {
    let sources = rust_files(&root().join("passes/src")).into_iter();
    for file in sources.filter(|file| !file.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(&file).expect("a source file");
        for runtime in ["lapidary_runtime_gpu::", "lapidary_runtime_sim::", "lapidary_runtime_cpu::"] {
            let mut uses = text.match_indices(runtime).map(|(at, _)| &text[at + runtime.len()..]);
            assert!(
                uses.all(|rest| ["program", "text"].iter().any(|m| rest.starts_with(m))
                    || inside_tests(&text, rest)),
                "{} uses {runtime} beyond its programs",
                file.display()
            );
        }
    }
}

/// Whether `rest` begins after the file's test module does.
fn inside_tests(text: &str, rest: &str) -> bool {
    text.find("#[cfg(test)]").is_some_and(|at| at < text.len() - rest.len())
}

/// Unsafe code stands in these files and nowhere else; each says why at its top and at each block.
const UNSAFE: [&str; 9] = [
    "cli/src/map.rs",
    "ir/src/raw.rs",
    "runtime-cpu/src/rows/entry.rs",
    "runtime-cpu/src/simd/x86.rs",
    "runtime-gpu/src/collectives/library.rs",
    "runtime-gpu/src/compile/nvrtc.rs",
    "runtime-gpu/src/device/blas.rs",
    "runtime-gpu/src/device/cuda.rs",
    "runtime-sim/src/event/jit.rs",
];

#[test]
fn unsafe_code_stands_where_the_plan_says() {
    let mut found = Vec::new();
    for (room, _) in dependencies() {
        for file in rust_files(&root().join(&room)) {
            let text = std::fs::read_to_string(&file).expect("a source file");
            if text.lines().any(|line| line.starts_with("#![allow(unsafe_code)]")) {
                let inside = file.strip_prefix(root()).expect("a file of the workspace");
                found.push(inside.to_string_lossy().into_owned());
                assert!(text.contains("// SAFETY: "), "{} gives no reason", file.display());
            }
            let loose = text.lines().any(|line| line.trim_start().starts_with("#[allow(unsafe_code)"));
            assert!(!loose, "{} allows unsafe code in a part of it", file.display());
        }
    }
    found.sort();
    assert_eq!(found, UNSAFE, "unsafe code was added or removed: update the table and ARCHITECTURE.md");
}

#[test]
fn every_file_says_what_it_is_for() {
    for (room, _) in dependencies() {
        for file in rust_files(&root().join(&room)) {
            let text = std::fs::read_to_string(&file).expect("a source file");
            assert!(text.starts_with("//!"), "{} has no module doc", file.display());
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs"));
    files.chain(folders.iter().flat_map(|folder| rust_files(folder))).collect()
}
