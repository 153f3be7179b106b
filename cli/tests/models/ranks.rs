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
    for wanted in ["hidden.0", "hidden.1", "hidden.2", "logits"] {
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

#[test]
fn a_spread_model_generates_what_one_process_generates() {
    let directory = stored("llama3-tiny");
    let args = ["run", text(&directory), "--tokens", "5,17,3", "--tokens", "9", "-n", "12", "--json", "-q"];
    let alone = super::lapidary(&args);
    assert_eq!(alone.code, 0, "{}", alone.stderr);
    let spread = job(4, &[&args[..], &["--plan", "tp2pp2"]].concat());
    assert_eq!(spread.code, 0, "{}", spread.stderr);
    assert_eq!(spread.json(), alone.json());
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
    assert!(
        ended.stderr.contains("signal 9") && ended.stdout.is_empty(),
        "{}\n{}",
        ended.stdout,
        ended.stderr
    );
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
