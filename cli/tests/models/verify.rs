//! `lapidary verify`.

use crate::{STORED, copy, lapidary, read_json, refused, stored, text};
use lapidary_tests::directory::{Form, write};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn every_stored_directory_passes_with_every_switch() {
    for name in STORED {
        let ended = lapidary(&["verify", text(&stored(name)), "--all-switches", "--json"]);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        let document = ended.json();
        assert_eq!(document["schema"], "lapidary/verification");
        // 2 settings of muP; all fused, nothing fused, each of the 8 rules alone and left out; 2 more interpreted.
        assert_eq!(document["runs"].as_array().expect("runs").len(), 2 * (2 + 16 + 2));
        assert_eq!((&document["ok"], &document["greedy_match"]), (&json!(true), &json!(true)));
        let expected = read_json_tensors(&document);
        assert!(expected.iter().any(|name| name == "block0.mlp"), "{expected:?}");
        assert_eq!(document["not_checked"], json!([]), "everything that is stored is compared");
        for tensor in document["tensors"].as_array().expect("tensors") {
            assert!(tensor["max_abs"].as_f64().expect("a number") < 2e-4, "{tensor}");
            assert!(tensor["rel_l2"].as_f64().expect("a number") < 1e-5, "{tensor}");
        }
    }
}

fn read_json_tensors(document: &Value) -> Vec<String> {
    let tensors = document["tensors"].as_array().expect("tensors");
    tensors.iter().map(|t| t["name"].as_str().expect("a name").to_string()).collect()
}

#[test]
fn the_reference_passes_with_every_switch() {
    for name in STORED {
        let folder = stored(name);
        let args = ["verify", text(&folder), "--device", "reference", "--all-switches", "--json"];
        let ended = lapidary(&args);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        assert_eq!(ended.json()["runs"].as_array().expect("runs").len(), 4);
    }
}

/// Odd widths, vocabularies, lengths and head sizes in three families, made by the reference alone.
#[test]
fn directories_of_other_sizes_pass() {
    let llama = json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 35, "intermediate_size": 53,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10,
        "hidden_act": "silu", "max_position_embeddings": 37, "rms_norm_eps": 1e-5, "rope_theta": 12345.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    let neox = json!({
        "model_type": "gpt_neox", "vocab_size": 77, "hidden_size": 36, "intermediate_size": 50,
        "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_act": "gelu", "max_position_embeddings": 41,
        "layer_norm_eps": 1e-5, "rotary_pct": 0.5, "rotary_emb_base": 10000, "use_parallel_residual": true,
        "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0,
    });
    let crystal = read_json(&stored("crystal-tiny").join("config.json"));
    let crystal = changed(
        crystal,
        &[("vocab_size", 103), ("n_embd", 66), ("n_head", 3), ("n_inner", 91), ("n_layer", 2)],
    );
    for (config, seq) in [(&llama, 13), (&neox, 1), (&crystal, 17)] {
        for seed in [1, 5] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            write(folder.path(), config, Form { seed, batch: 3, seq, new: 9 });
            let ended = lapidary(&["verify", text(folder.path()), "--all-switches"]);
            assert_eq!(ended.code, 0, "{config} {seed}\n{}\n{}", ended.stdout, ended.stderr);
        }
    }
}

fn changed(mut config: Value, changes: &[(&str, u64)]) -> Value {
    changes.iter().for_each(|(key, value)| config[*key] = json!(value));
    config
}

#[test]
fn what_is_not_there_is_named_as_not_checked() {
    let folder = copy("amber-tiny");
    for file in ["greedy.json", "memorization.json", "meta.json"] {
        std::fs::remove_file(folder.path().join(file)).expect("a file");
    }
    let ended = lapidary(&["verify", text(folder.path()), "--json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let document = ended.json();
    assert_eq!((&document["greedy_match"], &document["loss"]), (&Value::Null, &Value::Null));
    let skipped: Vec<&str> = document["not_checked"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|s| s["what"].as_str())
        .collect();
    assert_eq!(skipped, ["greedy.json", "memorization.json", "meta.json"]);
    let ended = lapidary(&["verify", text(folder.path())]);
    assert!(ended.stdout.contains("not checked: greedy.json"), "{}", ended.stdout);
}

/// Adds one to a weight in the published file.
fn spoil(folder: &Path, tensor: &str) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("a file");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let table: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let at = 8 + header + table[tensor]["data_offsets"][0].as_u64().expect("an offset") as usize;
    let value = f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) + 1.0;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn a_spoilt_weight_is_exit_6_and_the_first_tensor_is_named() {
    let folder = copy("amber-tiny");
    spoil(folder.path(), "model.layers.1.post_attention_layernorm.weight");
    let ended = lapidary(&["verify", text(folder.path()), "--json", "--bisect"]);
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    let document = ended.json();
    assert_eq!(document["ok"], false);
    assert_eq!(document["first_difference"]["name"], "hidden.2");
    assert_eq!(document["first_difference"]["node"], "layers.1.mlp.residual");
    assert_eq!(document["first_difference"]["op"], "add");
    assert!(document["bisection"]["verdict"].as_str().expect("a verdict").contains("hidden.2"));
    refused(&["verify", text(folder.path())], 6, &["hidden.2", "layers.1.mlp.residual", "--bisect"]);
}

#[test]
fn another_continuation_is_exit_6() {
    let folder = copy("llama3-tiny");
    let path = folder.path().join("greedy.json");
    let mut greedy = read_json(&path);
    let id = greedy["cases"][1]["continuation"][5].as_u64().expect("an id");
    greedy["cases"][1]["continuation"][5] = json!((id + 1) % 320);
    std::fs::write(&path, greedy.to_string()).expect("a file");
    let ended = lapidary(&["verify", text(folder.path()), "--json"]);
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    let document = ended.json();
    assert_eq!((&document["greedy_match"], &document["memorization_match"]), (&json!(false), &json!(true)));
    assert_eq!(document["greedy"][1]["differs"], json!([5, (id + 1) % 320, id]));
    assert_eq!(document["first_difference"], Value::Null);
}

#[test]
fn bad_directories_are_exit_3() {
    refused(&["verify", "/nowhere"], 3, &["/nowhere", "no folder"]);
    let spoilt = |file: &str, bytes: &[u8], words: &[&str]| {
        let folder = copy("amber-tiny");
        std::fs::write(folder.path().join(file), bytes).expect("a file");
        refused(&["verify", text(folder.path())], 3, &[&[file], words].concat());
    };
    let expected = std::fs::read(stored("amber-tiny").join("expected.safetensors")).expect("a file");
    spoilt("expected.safetensors", &expected[..expected.len() / 2], &[]);
    spoilt("expected.safetensors", b"", &[]);
    spoilt("model.safetensors", b"no tensors", &[]);
    spoilt("greedy.json", b"{\"cases\": [{\"prompt\": [1]}]}", &["continuation", "line 1"]);
    spoilt("greedy.json", b"{\"cases\": [{\"prompt\": [1, \"x\"]}]}", &["cases[0].prompt[1]", "line 1"]);
    spoilt("greedy.json", b"{\"cases\": [{\"prompt\": [999], \"continuation\": [1]}]}", &["999", "256"]);
    spoilt("greedy.json", b"{\"cases\": [{\"prompt\": [], \"continuation\": [1]}]}", &["no ids"]);
    let long = format!("{{\"cases\": [{{\"prompt\": [1], \"continuation\": {:?}}}]}}", vec![1; 200]);
    spoilt("greedy.json", long.as_bytes(), &["200 positions", "128"]);
    spoilt("meta.json", b"{\"loss\": \"high\"}", &["expected f64", "column 15"]);
    for missing in ["config.json", "model.safetensors", "expected.safetensors"] {
        let folder = copy("amber-tiny");
        std::fs::remove_file(folder.path().join(missing)).expect("a file");
        refused(&["verify", text(folder.path())], 3, &[]);
    }
}

#[test]
fn what_does_not_fit_into_memory_is_exit_4() {
    let folder = copy("amber-tiny");
    let config = changed(
        read_json(&folder.path().join("config.json")),
        &[("num_hidden_layers", 4096), ("intermediate_size", 1_000_000)],
    );
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
    refused(&["verify", text(folder.path())], 4, &["weights", "kv_cache", "GiB", "too much"]);
    refused(
        &["verify", text(folder.path()), "--device", "reference"],
        4,
        &["reference", "weights", "too much"],
    );
}

/// `expected.safetensors` of another model.
#[test]
fn tensors_of_another_shape_are_exit_3() {
    let folder = copy("amber-tiny");
    std::fs::copy(
        stored("llama3-tiny").join("expected.safetensors"),
        folder.path().join("expected.safetensors"),
    )
    .expect("a copy");
    refused(&["verify", text(folder.path())], 3, &["expected.safetensors"]);
}

#[test]
fn devices_and_switches_that_are_none_are_refused() {
    let amber = stored("amber-tiny");
    refused(&["verify", text(&amber), "--device", "cuda"], 7, &["cuda", "cpu"]);
    for what in ["--grads", "--bisect"] {
        refused(&["verify", text(&amber), "--device", "wafer-sim", what], 5, &["wafer-sim", what]);
    }
    refused(&["verify", text(&amber), "--precision", "f16"], 2, &["f16", "cpu, cuda: f32, bf16"]);
    refused(&["verify", text(&amber), "--device", "wafer-sim", "--precision", "f64"], 2, &["f64"]);
    refused(&["verify", text(&amber), "--device", "wafer-sim", "--grid", "0x8"], 2, &["0x8"]);
    refused(&["verify", text(&amber), "--fuse", "magic"], 2, &["magic", "epilogue"]);
    refused(&["verify", text(&amber), "--device", "abacus"], 2, &["abacus"]);
}

#[test]
fn stored_gradients_and_steps_pass_on_both_devices() {
    for name in STORED {
        for device in ["cpu", "reference"] {
            let folder = stored(name);
            let ended = lapidary(&["verify", text(&folder), "--device", device, "--grads", "--json"]);
            assert_eq!(ended.code, 0, "{name} on {device}: {}", ended.stderr);
            let document = ended.json();
            let checks = &document["gradients"][0];
            assert_eq!((&checks["ok"], &checks["recompute"]), (&json!(true), &json!("selective")));
            assert_eq!(checks["steps"].as_array().expect("steps").len(), 6, "{name}");
            for tensor in checks["tensors"].as_array().expect("gradients") {
                assert!(tensor["of_largest"].as_f64().expect("a number") < 1e-4, "{tensor}");
            }
        }
    }
    let ended = lapidary(&["verify", text(&stored("pythia-tiny")), "--grads", "--all-switches", "--json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.json()["gradients"].as_array().expect("gradients").len(), 6, "3 policies, fused or not");
}

/// Models of `tools/stored.py`: sizes that divide nothing, a window, learned positions, a base width that is not whole.
#[test]
fn models_of_odd_sizes_agree_with_other_implementations() {
    for name in ["crystal-odd", "gpt2-inner", "mistral-window"] {
        let folder = stored("..").join("odd").join(name);
        let ended = lapidary(&["verify", text(&folder), "--all-switches"]);
        assert_eq!(ended.code, 0, "{name}: {}\n{}", ended.stdout, ended.stderr);
        for device in ["cpu", "reference"] {
            let ended = lapidary(&["verify", text(&folder), "--device", device, "--grads", "--json"]);
            assert_eq!(ended.code, 0, "{name} on {device}: {}", ended.stderr);
            let document = ended.json();
            assert_eq!(document["gradients"][0]["steps"].as_array().expect("steps").len(), 6, "{name}");
            assert_eq!(document["greedy_match"], json!(true), "{name} on {device}");
        }
    }
}

#[test]
fn a_wrong_gradient_fails_and_a_missing_one_is_said() {
    let folder = copy("llama32-tiny");
    let path = folder.path().join("grads.safetensors");
    let mut bytes = std::fs::read(&path).expect("stored gradients");
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&1e3f32.to_le_bytes());
    std::fs::write(&path, bytes).expect("written");
    refused(&["verify", text(folder.path()), "--grads"], 6, &["the gradient of", "differs"]);
    std::fs::remove_file(&path).expect("removed");
    refused(&["verify", text(folder.path()), "--grads"], 3, &["there are no gradients to compare"]);
    refused(&["verify", text(folder.path()), "--recompute", "full"], 2, &["--grads"]);
}

/// Weights stream through one layer's program again and again; rows and columns of PEs need not divide anything.
#[test]
fn stored_models_pass_on_simulated_wafers() {
    let cases = [
        ("crystal-tiny", "8x8", "keep", "weight-streaming"),
        ("amber-tiny", "12x7", "fold", "weight-streaming"),
        ("crystal-tiny", "12x12", "fold", "layer-pipelined"),
    ];
    for (name, grid, mup, mode) in cases {
        let folder = stored(name);
        let folder = text(&folder);
        let args = ["verify", folder, "--device", "wafer-sim", "--grid", grid, "--mup", mup, "--mode", mode];
        let ended = lapidary(&[&args[..], &["--json"]].concat());
        assert_eq!(ended.code, 0, "{name} {mode}: {}", ended.stderr);
        let document = ended.json();
        assert_eq!(document["greedy_match"], json!(true), "{name}");
        assert_eq!(document["memorization_match"], json!(true), "{name}");
        let names = read_json_tensors(&document);
        for layer in 0..=3 {
            assert!(names.contains(&format!("hidden.{layer}")), "{name}: {names:?}");
        }
    }
}

/// Short numbers are judged by what the stored implementation says of its own, and a wrong model is not let through.
#[test]
fn short_numbers_pass_within_the_stored_noise() {
    let folder = stored("amber-tiny");
    let pipelined = ["--mode", "layer-pipelined"];
    let cases: [(&str, &str, &[&str]); 5] = [
        ("wafer-sim", "f16", &[]),
        ("wafer-sim", "bf16", &[]),
        ("wafer-sim", "f16", &pipelined),
        ("wafer-sim", "bf16", &pipelined),
        ("cpu", "bf16", &[]),
    ];
    for (device, precision, more) in cases {
        let args = ["verify", text(&folder), "--device", device, "--precision", precision, "--json"];
        let ended = lapidary(&[&args[..], more].concat());
        assert_eq!(ended.code, 0, "{device} {precision}: {}", ended.stderr);
        let document = ended.json();
        assert!(document["argmax_agreement"].as_f64().expect("a share") > 0.9);
        let off = |tensor: &Value| tensor["max_abs"].as_f64().expect("a number");
        let tensors = document["tensors"].as_array().expect("tensors");
        assert!(tensors.iter().any(|tensor| off(tensor) > 2e-4), "{device} {precision} rounds nothing");
    }
    let folder = copy("amber-tiny");
    let config = std::fs::read_to_string(folder.path().join("config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["rope_theta"] = json!(500.0);
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    for precision in ["bf16", "f16"] {
        let device = if precision == "f16" { "wafer-sim" } else { "cpu" };
        let args = ["verify", text(folder.path()), "--device", device, "--precision", precision];
        assert_eq!(lapidary(&args).code, 6, "{precision}");
    }
}
