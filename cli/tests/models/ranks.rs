//! Models spread over processes by `mpirun`: the same numbers as one process, and an end that says why when a rank is missing.

use super::{Ended, STORED, stored, text};
use std::process::{Command, Stdio};

/// `mpirun` for jobs of this machine alone, also for root and with more processes than cores.
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["--allow-run-as-root", "--oversubscribe", "--mca", "btl", "self,vader,tcp"])
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("mpirun is installed by `make setup`");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        code: output.status.code().expect("it exits by itself"),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

fn job(ranks: u64, args: &[&str]) -> Ended {
    ended(mpirun().args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_lapidary")]).args(args))
}

fn verified(name: &str, [tensor, pipeline, data]: [u64; 3]) {
    let plan = format!("tp{tensor}pp{pipeline}dp{data}");
    let directory = stored(name);
    let ended = job(tensor * pipeline * data, &["verify", text(&directory), "--plan", &plan, "--json"]);
    assert_eq!(ended.code, 0, "{name} {plan}\n{}", ended.stderr);
    let document = ended.json();
    assert_eq!(document["greedy_match"], true, "{name} {plan}");
    let checked: Vec<&str> = document["tensors"]
        .as_array()
        .expect("tensors")
        .iter()
        .map(|tensor| tensor["name"].as_str().expect("a name"))
        .collect();
    for wanted in ["hidden.0", "hidden.1", "hidden.2", "block0.norm1", "logits"] {
        assert!(checked.contains(&wanted), "{name} {plan}: {checked:?}");
    }
}

/// Forward, prefill and decode, each way of spreading alone and all together; heads, hidden features and vocabulary that do
/// not divide; key-value heads held by several ranks.
#[test]
fn every_stored_model_is_verified_on_eight_ranks() {
    for name in STORED {
        verified(name, [2, 2, 2]);
        verified(name, [8, 1, 1]);
    }
}

#[test]
fn every_way_to_spread_a_model_gives_its_numbers() {
    for degrees in [[1, 1, 2], [1, 3, 1], [3, 1, 1], [2, 3, 1], [4, 1, 2], [1, 2, 4], [7, 1, 1]] {
        verified("amber-tiny", degrees);
    }
    verified("crystal-tiny", [3, 2, 1]);
    verified("llama3-tiny", [5, 1, 1]);
}

/// Loss, gradients and AdamW steps of a training step in micro-batches, as one process has them.
fn trained(name: &str, ranks: u64, plan: &str, more: &[&str]) {
    let directory = stored(name);
    let args = [&["verify", text(&directory), "--grads", "--json", "--plan", plan], more].concat();
    let ended = job(ranks, &args);
    assert_eq!(ended.code, 0, "{name} {plan} {more:?}\n{}", ended.stderr);
    let document = ended.json();
    let checks = &document["gradients"][0];
    let tensors = checks["tensors"].as_array().expect("gradients");
    assert!(
        tensors.len() >= 20 && tensors.iter().all(|tensor| tensor["ok"] == true),
        "{name} {plan} {more:?}"
    );
    let steps = checks["steps"].as_array().expect("steps");
    assert!(steps.len() > 1 && steps.iter().all(|step| step["ok"] == true), "{name} {plan} {more:?}");
}

/// Each way of spreading a step alone: weights by rows and columns, with rows of norms or without; stages in 1F1B order and
/// interleaved; replicas that have everything, run the optimizer each for a part (ZeRO-1), or hold a part (FSDP).
#[test]
fn every_way_to_spread_a_step_gives_its_gradients() {
    trained("amber-tiny", 2, "tp2", &[]);
    trained("crystal-tiny", 3, "tp3", &["--sequence-parallel"]);
    trained("amber-tiny", 3, "pp3", &["--micro-batches", "5"]);
    trained("amber-tiny", 2, "pp2", &["--chunks", "2", "--micro-batches", "4"]);
    trained("amber-tiny", 2, "dp2", &[]);
    trained("llama3-tiny", 2, "dp2", &["--sharding", "optimizer"]);
    trained("llama3-tiny", 2, "dp2", &["--sharding", "full", "--recompute", "full"]);
}

/// All of them together on eight processes: tied weights at both ends of the pipeline, key-value heads that ranks share,
/// biases, norms of both kinds.
#[test]
fn every_way_together_gives_the_gradients_of_every_stored_model() {
    for name in STORED {
        trained(name, 8, "tp2pp2dp2", &["--sequence-parallel", "--sharding", "full", "--micro-batches", "2"]);
    }
    trained("llama3-tiny", 8, "tp8", &["--sequence-parallel"]);
    trained("crystal-tiny", 8, "tp2pp2dp2", &["--sharding", "optimizer", "--fuse", "off"]);
    trained(
        "amber-tiny",
        8,
        "tp2pp2dp2",
        &["--chunks", "2", "--sharding", "optimizer", "--recompute", "none"],
    );
}

#[test]
fn a_spread_model_generates_what_one_process_generates() {
    let directory = stored("llama3-tiny");
    let args = ["run", text(&directory), "--tokens", "5,17,3", "--tokens", "9", "-n", "12", "--json", "-q"];
    let alone = super::lapidary(&args);
    assert_eq!(alone.code, 0, "{}", alone.stderr);
    let spread = job(4, &[&args[..], &["--plan", "tp2pp2"]].concat());
    assert_eq!(spread.code, 0, "{}", spread.stderr);
    assert_eq!(spread.json(), alone.json());
    for plan in ["dp2", "tp2dp2", "dp4"] {
        let ranks = if plan == "dp2" { 2 } else { 4 };
        let shared = job(ranks, &[&args[..], &["--plan", plan]].concat());
        assert_eq!(shared.code, 0, "{plan}: {}", shared.stderr);
        assert_eq!(shared.json(), alone.json(), "{plan}");
    }
}

/// Variables of launchers, set as they set them and as nobody should.
#[test]
fn what_a_launcher_says_is_checked_before_anybody_is_waited_for() {
    let directory = stored("amber-tiny");
    let told = |variables: &[(&str, &str)], code: i32, word: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
        command.args(["verify", text(&directory), "--plan", "tp2", "--patience", "2"]);
        command.env("NO_COLOR", "1").envs(variables.iter().copied()).stdin(Stdio::null());
        let ended = ended(&mut command);
        assert_eq!(ended.code, code, "{variables:?}\n{}", ended.stderr);
        assert!(ended.stderr.contains(word), "{variables:?}: no `{word}` in\n{}", ended.stderr);
    };
    let torch = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")];
    told(&torch, 7, "torchrun starts processes that MPI cannot join");
    told(&[("RANK", "0")], 7, "RANK is set, as torchrun does it, but WORLD_SIZE is not");
    told(&[("RANK", "2"), ("WORLD_SIZE", "2")], 7, "RANK=2: expected a whole number below WORLD_SIZE=2");
    told(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")], 4, "has 2 ranks, but 4 processes were started");
}

fn refused(ranks: u64, args: &[&str], code: i32, words: &[&str]) {
    let ended = job(ranks, args);
    assert_eq!(ended.code, code, "{args:?}\n{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{args:?}: no `{word}` in\n{}", ended.stderr);
    }
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
}

#[test]
fn jobs_that_cannot_be_end_with_the_reason() {
    let directory = stored("amber-tiny");
    let verify = |plan: &'static str| ["verify", text(&directory), "--plan", plan].map(str::to_string);
    let refused = |ranks, plan, code, words: &[&str]| {
        let args = verify(plan);
        refused(ranks, &args.iter().map(String::as_str).collect::<Vec<_>>(), code, words);
    };
    refused(3, "tp2", 4, &["tp2pp1dp1 has 2 ranks, but 3 processes were started", "mpirun -n 2"]);
    refused(4, "pp4", 4, &["4 pipeline stages for the 3 layers"]);
    let uneven =
        ["verify", text(&directory), "--grads", "--plan", "pp2", "--chunks", "2", "--micro-batches", "3"];
    super::refused(&uneven, 4, &["2 ranks, but 1 processes"]);
    let ended = job(2, &uneven);
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    assert!(ended.stderr.contains("3 micro-batches do not divide among 2 stages"), "{}", ended.stderr);
    let many = ["verify", text(&directory), "--grads", "--plan", "pp2", "--chunks", "3"];
    let ended = job(2, &many);
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    assert!(ended.stderr.contains("--chunks 2 at most"), "{}", ended.stderr);
    super::refused(&["verify", text(&directory), "--plan", "tp2"], 4, &["2 ranks, but 1 processes"]);
    super::refused(&["verify", text(&directory), "--plan", "tp0"], 2, &["at least 1"]);
    super::refused(&["verify", text(&directory), "--plan", "2x2"], 2, &["named like tp2pp2dp2"]);
}

/// A process that is killed takes the job with it, at once and with a code that is not 0.
#[test]
fn a_rank_that_dies_ends_the_others() {
    let directory = stored("amber-tiny");
    let script = format!(
        "if [ \"$OMPI_COMM_WORLD_RANK\" = 1 ]; then kill -9 $$; fi; exec {} verify {} --plan tp2",
        env!("CARGO_BIN_EXE_lapidary"),
        text(&directory)
    );
    let ended = ended(mpirun().args(["-n", "2", "sh", "-c", &script]));
    assert_ne!(ended.code, 0);
    // The launcher tells it: of the signal, or under load at times only that the job was ended for a process's sake.
    let told = ended.stderr.contains("signal 9") || ended.stderr.contains("the job has been aborted");
    assert!(told && ended.stdout.is_empty(), "{}\n{}", ended.stdout, ended.stderr);
}

/// A process that never joins: the others say so when their patience ends.
#[test]
fn a_rank_that_never_comes_is_not_waited_for() {
    let directory = stored("amber-tiny");
    let rank =
        [env!("CARGO_BIN_EXE_lapidary"), "verify", text(&directory), "--plan", "tp2", "--patience", "2"];
    let ended = ended(mpirun().args(["-n", "1"]).args(rank).args([":", "-n", "1", "sleep", "600"]));
    assert_eq!(ended.code, 7, "{}", ended.stderr);
    assert!(ended.stderr.contains("waited 2 s for the other ranks in joining the job"), "{}", ended.stderr);
}

/// A process that a launcher says is one of several, on a machine without GPUs.
fn as_rank(environment: &[(&str, &str)], args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(args).env("NO_COLOR", "1").env("LD_LIBRARY_PATH", "").stdin(Stdio::null());
    for launcher in ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK", "WORLD_SIZE", "SLURM_PROCID"] {
        command.env_remove(launcher);
    }
    ended(command.envs(environment.iter().copied()))
}

/// What is missing on GPUs is told before anybody is waited for: ranks, where they meet, and here NCCL or the driver.
#[test]
fn jobs_on_gpus_say_what_is_missing() {
    let directory = stored("amber-tiny");
    let asked = ["verify", text(&directory), "--device", "cuda", "--plan", "tp2", "--patience", "5"];
    super::refused(&asked, 4, &["tp2pp1dp1 has 2 ranks, but 1 processes"]);
    let torch = |world| {
        [
            ("RANK", "0"),
            ("WORLD_SIZE", world),
            ("LOCAL_RANK", "0"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", "4"),
        ]
    };
    let ended = as_rank(&torch("3"), &asked);
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    assert!(ended.stderr.contains("but 3 processes were started"), "{}", ended.stderr);
    if !std::path::Path::new("/dev/nvidia0").exists() {
        let ended = as_rank(&torch("2"), &asked);
        assert_eq!(ended.code, 7, "{}", ended.stderr);
        let told = ["no NCCL", "no NVIDIA driver"].iter().any(|what| ended.stderr.contains(what));
        assert!(told && ended.stdout.is_empty(), "{}", ended.stderr);
    }
    let open =
        [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")];
    let ended = as_rank(&open, &asked);
    assert_eq!(ended.code, 7, "{}", ended.stderr);
    assert!(ended.stderr.contains("set MASTER_ADDR"), "{}", ended.stderr);
}
