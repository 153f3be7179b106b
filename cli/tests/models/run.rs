//! `lapidary run`.

use crate::{STORED, copy, ids, lapidary, lapidary_reading, list, read_json, refused, stored, text};
use lapidary_tests::tokenizers::{byte_fallback_json, byte_level_json};
use serde_json::{Value, json};
use tempfile::TempDir;

const SPECIAL: [&str; 7] = [
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|sys_start|>",
    "<|sys_end|>",
];

/// A stored model with a tokenizer of its own.
fn with_tokenizer() -> TempDir {
    let folder = copy("crystal-tiny");
    std::fs::write(folder.path().join("tokenizer.json"), byte_fallback_json(&SPECIAL)).expect("a file");
    folder
}

fn sequences(args: &[&str]) -> Vec<Value> {
    let ended = lapidary(args);
    assert_eq!(ended.code, 0, "{args:?}\n{}", ended.stderr);
    let document = ended.json();
    assert_eq!(document["schema"], "lapidary/run");
    document["sequences"].as_array().expect("sequences").clone()
}

/// The reference implementation's own continuations, one by one and as a batch.
#[test]
fn token_ids_are_continued_as_stored() {
    for name in STORED {
        let folder = stored(name);
        let greedy = read_json(&folder.join("greedy.json"));
        let cases = greedy["cases"].as_array().expect("cases");
        let prompts: Vec<String> = cases.iter().map(|case| list(&case["prompt"])).collect();
        let mut args = vec!["run", text(&folder), "-n", "32", "--ignore-eos", "--json"];
        for (prompt, case) in prompts.iter().zip(cases) {
            let alone = sequences(&[&args[..], &["--tokens", prompt]].concat());
            assert_eq!(ids(&alone[0]["tokens"]), ids(&case["continuation"]), "{name}");
            assert_eq!(alone[0]["finish"], "length");
        }
        prompts.iter().for_each(|prompt| args.extend(["--tokens", prompt.as_str()]));
        for (made, case) in sequences(&args).iter().zip(cases) {
            assert_eq!(ids(&made["tokens"]), ids(&case["continuation"]), "{name}, as a batch");
        }
    }
}

#[test]
fn ids_are_answered_in_ids() {
    let folder = stored("amber-tiny");
    let ended = lapidary(&["run", text(&folder), "--weights", text(&folder), "--tokens", "1", "-n", "4"]);
    assert_eq!(ended.stdout, "43,43,43,43\n");
    for word in ["load", "prefill 1 tokens", "decode 3 tokens", "tokens/s"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
    let quiet = lapidary(&["run", text(&folder), "--tokens", "1", "-n", "0", "-q"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("\n", ""));
}

#[test]
fn a_sequence_ends_with_eos() {
    let folder = copy("amber-tiny");
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).expect("a file");
    // After the prompt [1] follow seven times 43, then 237.
    std::fs::write(&path, config.replace("\"eos_token_id\": 2", "\"eos_token_id\": 237")).expect("a file");
    let args = ["run", text(folder.path()), "--tokens", "1", "--json"];
    let made = sequences(&args);
    assert_eq!((ids(&made[0]["tokens"]).len(), &made[0]["finish"]), (8, &json!("stop")));
    let made = sequences(&[&args[..], &["--ignore-eos", "-n", "20"]].concat());
    assert_eq!((ids(&made[0]["tokens"]).len(), &made[0]["finish"]), (20, &json!("length")));
    let made = sequences(&[&args[..], &["--stop", "43"]].concat());
    assert_eq!(ids(&made[0]["tokens"]), [43]);
}

#[test]
fn a_continuation_ends_where_the_context_does() {
    let made = sequences(&[
        "run",
        text(&stored("amber-tiny")),
        "--tokens",
        "1,2,3",
        "-n",
        "500",
        "--ignore-eos",
        "--json",
    ]);
    assert_eq!((ids(&made[0]["tokens"]).len(), &made[0]["finish"]), (126, &json!("room")));
}

/// Text streamed is text in JSON, whichever way the prompt comes in.
#[test]
fn text_goes_in_and_comes_out() {
    let folder = with_tokenizer();
    let run = ["run", text(folder.path()), "-n", "24", "--temperature", "1.2", "--seed", "5", "--ignore-eos"];
    let with = |more: &[&str], stdin: &str| {
        let ended = lapidary_reading(&[&run[..], more].concat(), stdin);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended
    };
    let plain = with(&["--prompt", "hello world"], "").stdout;
    let made = with(&["--prompt", "hello world", "--json"], "").json();
    assert_eq!(plain, format!("{}\n", made["sequences"][0]["text"].as_str().expect("text")));
    assert!(!plain.trim().is_empty());
    assert_eq!(with(&["--prompt-file", "-"], "hello world").stdout, plain);
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "hello world").expect("a file");
    assert_eq!(with(&["--prompt-file", text(&file)], "").stdout, plain);
    let both = with(&["--prompt", "hello world", "--prompt", "world"], "").stdout;
    assert!(both.starts_with(&format!("[1] {plain}[2] ")), "{both}");
}

#[test]
fn gaps_and_chats_are_prompted_with_special_tokens() {
    let folder = with_tokenizer();
    let model = text(folder.path());
    // The vocabulary has 278 tokens; the special ones follow in the order of SPECIAL.
    let [prefix, middle, suffix, im_start, im_end, sys_start, sys_end] = [278, 279, 280, 281, 282, 283, 284];
    let args = ["run", model, "--fim-prefix", "hello", "--fim-suffix", "world", "-n", "2", "--json"];
    let gap = ids(&sequences(&args)[0]["prompt"]);
    assert_eq!((gap[0], *gap.last().expect("an end")), (prefix, middle));
    assert_eq!(gap.iter().filter(|id| **id == suffix).count(), 1);
    let args = ["run", model, "--chat", "--system", "hello", "--prompt", "world", "-n", "2", "--json"];
    let chat = ids(&sequences(&args)[0]["prompt"]);
    let marks: Vec<u64> = chat.iter().copied().filter(|id| *id == 1 || *id >= 278).collect();
    assert_eq!(marks, [1, sys_start, sys_end, im_start, im_end]);
}

#[test]
fn samples_follow_their_seed() {
    let model = stored("crystal-tiny");
    let tokens = |more: &[&str]| {
        let args = ["run", text(&model), "--tokens", "5,6,7", "-n", "40", "--ignore-eos", "--json"];
        ids(&sequences(&[&args[..], more].concat())[0]["tokens"])
    };
    let hot = ["--temperature", "1.5", "--seed", "3"];
    assert_eq!(tokens(&hot), tokens(&hot));
    assert_ne!(tokens(&hot), tokens(&["--temperature", "1.5", "--seed", "4"]));
    assert_eq!(tokens(&[]), tokens(&["--temperature", "1.5", "--top-k", "1"]));
    assert_eq!(tokens(&[]), tokens(&["--top-p", "0.000001"]));
    assert_ne!(tokens(&[]), tokens(&["--top-p", "0.99"]), "a cut alone samples at temperature 1");
}

#[test]
fn weights_are_packed_as_asked() {
    let model = stored("amber-tiny");
    let args = ["run", text(&model), "--tokens", "1,27,186", "-n", "8", "--json"];
    let stored = sequences(&args);
    assert_eq!(stored, sequences(&[&args[..], &["--dtype", "f32"]].concat()));
    assert_eq!(sequences(&[&args[..], &["--dtype", "bf16"]].concat())[0]["finish"], "length");
}

#[test]
fn a_tokenizer_of_another_model_is_exit_3() {
    let folder = copy("llama3-tiny");
    let file = folder.path().join("tokenizer.json");
    let model = text(folder.path());
    let many: Vec<String> = (0..100).map(|i| format!("<|more_{i}|>")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    std::fs::write(&file, byte_fallback_json(&many)).expect("a file");
    refused(&["run", model, "--prompt", "hello"], 3, &["tokenizer.json", "377", "320"]);
    std::fs::write(&file, "{\"model\": 3}").expect("a file");
    refused(&["run", model, "--prompt", "hello"], 3, &["tokenizer.json"]);
    std::fs::write(&file, byte_level_json()).expect("a file");
    assert_eq!(lapidary(&["run", model, "--prompt", "hello", "-n", "2"]).code, 0);
    refused(&["run", model, "--fim-prefix", "a"], 3, &["fim_prefix"]);
    refused(&["run", model, "--chat", "--prompt", "a"], 3, &["im_start"]);
}

#[test]
fn bad_prompts_and_settings_are_refused() {
    let folder = stored("amber-tiny");
    let model = text(&folder);
    refused(&["run", model], 2, &["--prompt"]);
    refused(&["run", model, "--prompt", "hello"], 3, &["tokenizer.json", "--tokens"]);
    refused(&["run", model, "--tokens", "1,x"], 2, &["`x`"]);
    refused(&["run", model, "--tokens", "1,256"], 3, &["256", "vocabulary"]);
    let long = vec!["1"; 129].join(",");
    refused(&["run", model, "--tokens", &long], 3, &["129 tokens", "128 positions"]);
    refused(&["run", model, "--tokens", "1", "--temperature", "-1"], 2, &["--temperature", "-1"]);
    refused(&["run", model, "--tokens", "1", "--top-p", "0"], 2, &["--top-p"]);
    refused(&["run", model, "--tokens", "1", "--top-k", "0"], 2, &["--top-k"]);
    refused(&["run", model, "--tokens", "1", "--weights", "/nowhere"], 3, &["/nowhere"]);
    refused(&["run", "amber", "--tokens", "1"], 2, &["--weights"]);
    refused(&["run", model, "--tokens", "1", "--device", "cuda"], 7, &["cuda"]);
    refused(&["run", model, "--tokens", "1", "--device", "wafer-sim", "--grid", "4"], 2, &["WIDTHxHEIGHT"]);
    refused(&["run", "amber", "--tokens", "1", "--device", "wafer-sim"], 2, &["--weights"]);
    refused(&["run", model, "--prompt-file", "/nowhere"], 3, &["/nowhere"]);
}

#[test]
fn weights_of_another_model_are_exit_3() {
    let (llama, amber) = (stored("llama3-tiny"), stored("amber-tiny"));
    refused(&["run", text(&llama), "--weights", text(&amber), "--tokens", "1"], 3, &["model.safetensors"]);
}

/// Caches of 18 GiB for each of 256 prompts: refused before the folder's (empty) weights are looked for, which may stay in
/// their files and so do not count.
#[test]
fn what_does_not_fit_into_memory_is_exit_4() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut args = vec!["run", "gpt3-175b", "--weights", text(folder.path()), "--dtype", "f32", "-n", "2000"];
    (0..256).for_each(|_| args.extend(["--tokens", "1"]));
    refused(&args, 4, &["weights 0 B", "kv_cache", "activations", "too much"]);
    refused(
        &args[..6].iter().copied().chain(["--tokens", "1", "-n", "1"]).collect::<Vec<_>>(),
        3,
        &["no checkpoint in this folder"],
    );
}

#[test]
fn a_simulated_wafer_continues_prompts_as_the_host_does() {
    let folder = stored("crystal-tiny");
    let on = |device: &str, more: &[&str]| {
        let prompts = ["--tokens", "5,17,3", "--tokens", "250"];
        let asked = ["-n", "3", "--device", device, "--json"];
        let args = [&["run", text(&folder)], &prompts[..], &asked, more].concat();
        let ended = lapidary(&args);
        assert_eq!(ended.code, 0, "{device}: {}", ended.stderr);
        (ended.json()["sequences"].clone(), ended.stderr)
    };
    let (wafer, told) = on("wafer-sim", &[]);
    assert_eq!(wafer, on("cpu", &[]).0);
    let (cached, of_cache) = on("wafer-sim", &["--mode", "layer-pipelined"]);
    assert_eq!(cached, wafer);
    assert!(of_cache.contains("cycles on 16x16 PEs"), "{of_cache}");
    assert!(told.contains("cycles on 16x16 PEs"), "{told}");
}
