//! Weights from outside: `inspect` shows the map and every fault, `models init` writes what reads back.

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

fn told(output: &Output) -> String {
    // miette breaks lines at the width of the terminal; what is told is the same.
    let text = String::from_utf8_lossy(&output.stderr).replace("\n  │ ", " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn shown(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles").join(name)
}

/// A copy of a stored directory's model that a test may spoil.
fn copied(name: &str) -> tempfile::TempDir {
    let copy = folder();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle(name).join(file), copy.path().join(file)).expect("copied");
    }
    copy
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

const TINY: &str = "vocab = 100\nd_model = 24\nn_layers = 3\nn_heads = 4\nd_ff = 52\nmax_seq = 32\nname = \"tiny\"\n\
    [norm]\nkind = \"rms\"\neps = 1e-6\n[mlp]\nact = \"silu\"\ngated = true\n\
    [pos]\nkind = \"rope\"\ntheta = 1e4\nrot_dims = 6\npairing = \"half\"\n";

#[test]
fn inspect_maps_every_stored_model() {
    let here = folder();
    for name in ["amber-tiny", "crystal-tiny", "llama3-tiny", "llama32-tiny", "pythia-tiny"] {
        let place = oracle(name);
        let output = lapidary(&["inspect", place.to_str().unwrap(), "--json"], here.path());
        let document = json(&output);
        assert!(output.status.success(), "{}", told(&output));
        assert_eq!(document["schema"], "lapidary/inspect");
        assert_eq!(document["faults"].as_array().map(Vec::len), Some(0), "{name}");
        let counted = json(&lapidary(&["check", place.to_str().unwrap(), "--json"], here.path()));
        assert_eq!(document["totals"]["parameters"], counted["parameters"], "{name}");
    }
    let text = shown(&lapidary(&["inspect", oracle("crystal-tiny").to_str().unwrap()], here.path()));
    assert!(text.contains("layers.*.attn.k.weight = rows 64..128, turned"), "{text}");
    assert!(text.contains("repeats transformer.wte.weight"), "{text}");
    assert!(text.contains("ignored: a buffer (transformer.h.*.attn.bias)"), "{text}");
    let lone = oracle("crystal-tiny").join("expected.safetensors");
    let text = shown(&lapidary(&["inspect", lone.to_str().unwrap()], here.path()));
    assert!(text.contains("logits"), "{text}");
}

#[test]
fn a_checkpoint_that_is_cut_off_is_exit_3() {
    let spoilt = copied("amber-tiny");
    let path = spoilt.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..700_000]).unwrap();
    let output = lapidary(&["inspect", "."], spoilt.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(
        told(&output).contains("./model.safetensors: tensor `model.norm.weight`: data_offsets"),
        "{}",
        told(&output)
    );
    std::fs::write(&path, b"").unwrap();
    let output = lapidary(&["inspect", "."], spoilt.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(told(&output).contains("expected at least 8 bytes"), "{}", told(&output));
    std::fs::remove_file(&path).unwrap();
    let output = lapidary(&["inspect", "."], spoilt.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(told(&output).contains("no checkpoint in this folder"), "{}", told(&output));
}

#[test]
fn an_index_that_points_outside_its_folder_is_exit_3() {
    let spoilt = copied("amber-tiny");
    std::fs::rename(spoilt.path().join("model.safetensors"), spoilt.path().join("x.safetensors")).unwrap();
    let index = |file: &str| format!("{{\"weight_map\": {{\"lm_head.weight\": \"{file}\"}}}}");
    for file in ["../x.safetensors", "/etc/passwd", ".."] {
        std::fs::write(spoilt.path().join("model.safetensors.index.json"), index(file)).unwrap();
        let output = lapidary(&["inspect", "."], spoilt.path());
        assert_eq!(output.status.code(), Some(3), "{file}");
        assert!(told(&output).contains("points outside the folder of the index"), "{}", told(&output));
    }
    std::fs::write(spoilt.path().join("model.safetensors.index.json"), index("gone.safetensors")).unwrap();
    let output = lapidary(&["inspect", "."], spoilt.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(told(&output).contains("./gone.safetensors: cannot read"), "{}", told(&output));
}

#[test]
fn what_does_not_fit_is_listed_at_once_behind_the_map() {
    let spoilt = copied("amber-tiny");
    let config = std::fs::read_to_string(spoilt.path().join("config.json")).unwrap();
    let config = config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    std::fs::write(spoilt.path().join("config.json"), config).unwrap();
    let output = lapidary(&["inspect", ".", "--json"], spoilt.path());
    assert_eq!(output.status.code(), Some(3));
    let missing =
        json(&output)["faults"].as_array().unwrap().iter().filter(|f| f["kind"] == "missing").count();
    assert_eq!(missing, 9, "the nine tensors of a layer");
    assert!(
        told(&output).contains("tensor `model.layers.3.mlp.up_proj.weight`: missing"),
        "{}",
        told(&output)
    );
}

#[test]
fn a_pickle_that_calls_something_is_exit_3_and_nothing_is_called() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoint/tests/data");
    let here = folder();
    let output = lapidary(&["inspect", data.join("whole-module.bin").to_str().unwrap()], here.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(told(&output).contains("refused: `torch.nn.modules.linear.Linear`"), "{}", told(&output));
    let text = shown(&lapidary(&["inspect", data.join("torch.bin").to_str().unwrap()], here.path()));
    assert!(text.contains("BF16"), "{text}");
}

#[test]
fn random_weights_of_a_tiny_model_read_back() {
    let here = folder();
    std::fs::write(here.path().join("tiny.toml"), TINY).unwrap();
    let made = |place: &str, more: &[&str]| {
        let args = [&["models", "init", "tiny.toml", "--seed", "7", "-o", place], more].concat();
        shown(&lapidary(&args, here.path()));
        here.path().join(place)
    };
    let first = made("a", &[]);
    assert_eq!(names(&first), ["config.json", "model.safetensors"]);
    let again = made("b", &["--jobs", "1"]);
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights(&first), weights(&again), "the same seed gives the same bytes");
    let other = here.path().join("c");
    let args = ["models", "init", "tiny.toml", "--seed", "8", "-o", "c"];
    shown(&lapidary(&args, here.path()));
    assert_ne!(weights(&first), weights(&other));
    let sharded = made("d", &["--shard-bytes", "10000", "--dtype", "f32"]);
    assert!(names(&sharded).contains(&"model.safetensors.index.json".to_string()));
    for place in ["a", "d"] {
        let checked = lapidary(&["check", place], here.path());
        assert!(shown(&checked).contains("parameters"));
        let document = json(&lapidary(&["inspect", place, "--json"], here.path()));
        assert_eq!(document["faults"].as_array().map(Vec::len), Some(0));
        assert_eq!(
            document["totals"]["parameters"],
            100 * 24 * 2 + 3 * (4 * 24 * 24 + 3 * 24 * 52 + 48) + 24
        );
    }
    let listing = names(here.path());
    assert!(!listing.iter().any(|name| name.starts_with(".lapidary")), "{listing:?}");
    let refused = lapidary(&["models", "init", "tiny.toml", "-o", "a"], here.path());
    assert_eq!(refused.status.code(), Some(3), "a folder with a checkpoint is not overwritten");
    assert!(told(&refused).contains("a: exists and is not an artifact"), "{}", told(&refused));
}

/// ALiBi with RMSNorm is no published family: our own names, and a model.toml beside the weights.
#[test]
fn a_model_of_no_family_is_written_with_its_own_description() {
    let here = folder();
    let text = TINY.split("[pos]").next().unwrap().to_string() + "[pos]\nkind = \"alibi\"\n";
    std::fs::write(here.path().join("own.toml"), text).unwrap();
    shown(&lapidary(&["models", "init", "own.toml", "-o", "own"], here.path()));
    assert_eq!(names(&here.path().join("own")), ["model.safetensors", "model.toml"]);
    let text = shown(&lapidary(&["inspect", "own"], here.path()));
    assert!(text.contains("layers.*.attn.q.weight"), "{text}");
}
