//! `lapidary memorization`.

use crate::{STORED, lapidary, list, read_json, refused, stored, text};
use serde_json::{Value, json};
use std::path::Path;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("results");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The stored sequences as published data, a line each.
fn data(name: &str, folder: &Path) -> String {
    let stored = read_json(&stored(name).join("memorization.json"));
    let line =
        |s: &Value| json!({"source": s["source"], "prompt": s["prompt"], "continuation": s["continuation"]});
    let sequences = stored["sequences"].as_array().expect("sequences");
    let text: String = sequences.iter().map(|s| format!("{}\n", line(s))).collect();
    let path = folder.join("data.jsonl");
    std::fs::write(&path, text).expect("a file");
    text_of(&path)
}

fn text_of(path: &Path) -> String {
    text(path).to_string()
}

#[test]
fn the_stored_results_are_reproduced_exactly() {
    for name in STORED {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, out) = (data(name, folder.path()), folder.path().join("out.jsonl"));
        let model = stored(name);
        let ended = lapidary(&[
            "memorization",
            text(&model),
            "--data",
            &data,
            "--out",
            text(&out),
            "--batch",
            "4",
            "--json",
        ]);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        let stored = read_json(&model.join("memorization.json"));
        let document = ended.json();
        assert_eq!(document["token_match"], stored["memorization_score"], "{name}");
        assert_eq!(document["full_match"], stored["k_extractable"], "{name}");
        let wanted = stored["sequences"].as_array().expect("sequences");
        assert_eq!(document["count"], wanted.len());
        let found = lines(&out);
        assert_eq!(found.len(), wanted.len(), "a line each");
        for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            for key in ["source", "prompt", "continuation", "generated", "match", "score", "extractable"] {
                assert_eq!(found[key], wanted[key], "{name} {i} {key}");
            }
            assert_eq!(document["all_match"][i], wanted["match"]);
            let right =
                wanted["match"].as_array().expect("a list").iter().filter(|one| **one == json!(1)).count();
            assert_eq!(document["match"][i], right);
        }
        let counts = document["score_distribution"].as_array().expect("a list");
        assert_eq!(counts.len(), 33);
        assert_eq!(counts.iter().filter_map(Value::as_u64).sum::<u64>(), wanted.len() as u64);
    }
}

#[test]
fn whole_sequences_and_stored_documents_are_read_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = stored("amber-tiny");
    let parts =
        lapidary(&["memorization", text(&model), "--data", &data("amber-tiny", folder.path()), "--json"]);
    let document = model.join("memorization.json");
    let stored = lapidary(&["memorization", text(&model), "--data", text(&document), "--json"]);
    assert_eq!(stored.stdout, parts.stdout);
    let chunks: String = read_json(&document)["sequences"]
        .as_array()
        .expect("sequences")
        .iter()
        .map(|s| {
            format!(
                "{{\"token_ids\":[{},{},7,7],\"source\":\"x\"}}\n",
                list(&s["prompt"]),
                list(&s["continuation"])
            )
        })
        .collect();
    let path = folder.path().join("chunks.jsonl");
    std::fs::write(&path, chunks).expect("a file");
    let whole = lapidary(&["memorization", text(&model), "--data", text(&path), "--json"]);
    assert_eq!(whole.stdout, parts.stdout);
    let shorter =
        lapidary(&["memorization", text(&model), "--data", text(&path), "-k", "16", "-l", "8", "--json"]);
    assert_eq!((&shorter.json()["k"], &shorter.json()["l"]), (&json!(16), &json!(8)));
    let told = lapidary(&["memorization", text(&model), "--data", text(&path)]);
    assert!(
        told.stdout.contains("32-extractible") && told.stdout.contains("memorization score"),
        "{}",
        told.stdout
    );
}

/// Wherever a run is cut, going on gives the same file and the same result.
#[test]
fn a_cut_run_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (data, out) = (data("llama32-tiny", folder.path()), folder.path().join("out.jsonl"));
    let part = folder.path().join("out.jsonl.part");
    let model = text_of(&stored("llama32-tiny"));
    let args = ["memorization", &model, "--data", &data, "--out", text(&out), "--batch", "2", "--json"];
    let whole = lapidary(&args);
    let bytes = std::fs::read(&out).expect("results");
    assert!(!part.exists());
    refused(&args, 3, &["out.jsonl", "--resume"]);
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    for cut in [0, 10, ends[0] + 1, ends[1] + 50, ends[3] + 1, bytes.len() - 1, bytes.len()] {
        std::fs::remove_file(&out).expect("results");
        std::fs::write(&part, &bytes[..cut]).expect("a cut file");
        let resumed = lapidary(&[&args[..], &["--resume"]].concat());
        assert_eq!(resumed.code, 0, "cut at {cut}: {}", resumed.stderr);
        assert_eq!(resumed.stdout, whole.stdout, "cut at {cut}");
        assert!(std::fs::read(&out).expect("results") == bytes, "cut at {cut}");
        assert!(!part.exists());
    }
    let again = lapidary(&[&args[..], &["--resume"]].concat());
    assert_eq!(again.stdout, whole.stdout, "a finished run is told again");
    let lines = ["memorization", &model, "--data", text(&out), "--batch", "2", "--json"];
    assert_eq!(lapidary(&lines).stdout, whole.stdout, "results are data in the published form");
    let other = ["memorization", &model, "--data", &data, "--out", text(&out), "--batch", "3", "--resume"];
    refused(&other, 3, &["other data or settings"]);
    std::fs::remove_file(folder.path().join("out.jsonl.run")).expect("what was asked");
    refused(&[&args[..], &["--resume"]].concat(), 3, &["out.jsonl.run"]);
}

/// A model that cannot be loaded leaves nothing that a second try would stumble over.
#[test]
fn a_model_without_weights_leaves_no_results() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = data("amber-tiny", folder.path());
    let model = crate::copy("amber-tiny");
    std::fs::remove_file(model.path().join("model.safetensors")).expect("weights");
    let out = folder.path().join("out.jsonl");
    let args = ["memorization", text(model.path()), "--data", &data, "--out", text(&out)];
    refused(&args, 3, &[]);
    let names =
        std::fs::read_dir(folder.path()).expect("a folder").map(|file| file.expect("a file").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["data.jsonl"]);
}

#[test]
fn bad_data_are_exit_3() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = stored("amber-tiny");
    let path = folder.path().join("data.jsonl");
    let data = |text: &str| std::fs::write(&path, text).expect("a file");
    let args = ["memorization", text(&model), "--data", text(&path)];
    refused(&args, 3, &["data.jsonl"]);
    data("{\"token_ids\": [1, 2]}\nnonsense\n");
    refused(&args, 3, &["data.jsonl:1", "data.jsonl:2", "64 are needed"]);
    data("");
    refused(&args, 3, &["no sequences"]);
    refused(&[&args[..], &["-k", "100", "-l", "100"]].concat(), 3, &["199 positions", "128"]);
    refused(&[&args[..], &["-k", "0"]].concat(), 2, &["-k"]);
    refused(&[&args[..], &["--resume"]].concat(), 2, &["--out"]);
    refused(&[&args[..], &["--device", "reference"]].concat(), 5, &["reference"]);
}
