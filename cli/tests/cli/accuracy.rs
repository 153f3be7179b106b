//! `lapidary accuracy` from outside, on published rows that nobody looked at while the model was made.

use super::{code, folder, lapidary, stderr};

/// Runs of the SDK's simulator from the repositories that the model's rows come from: those that were not among them.
const UNSEEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime-sim/tests/data/microbench-unseen.csv");

#[test]
fn unseen_kernels_are_predicted_within_the_gates() {
    let folder = folder();
    let ended = lapidary(&["accuracy", "wafer-microbench", "--data", UNSEEN, "--json"], folder.path());
    assert_eq!(code(&ended), 0, "{}", stderr(&ended));
    let document: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    let rows = std::fs::read_to_string(UNSEEN).expect("the table").lines().count() as u64 - 1;
    assert_eq!(document["on_unseen"]["rows"], rows, "rows without a prediction, or fitted on");
    let percent = |key: &str| document["on_unseen"][key].as_f64().unwrap_or(f64::NAN);
    assert!(percent("median_pct") < 5.0, "{}", document["on_unseen"]);
    assert!(percent("p95_pct") < 15.0, "{}", document["on_unseen"]);
}
