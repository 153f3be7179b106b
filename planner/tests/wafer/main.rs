//! Published runs on wafers (`training.csv`, each row with its source) against the prices of plans.

use lapidary_planner::wafer::published::{Document, Prediction, Table, training};

const TRAINING: &str = include_str!("training.csv");

fn document(text: &str) -> Document {
    let table =
        Table::read(text, "training.csv", &training::COLUMNS).unwrap_or_else(|error| panic!("{error}"));
    let outcomes = table.rows.iter().map(training::predict).collect();
    Document::new("wafer-training", outcomes, training::LIMITS, training::fitted())
}

fn find<'d>(document: &'d Document, id: &str) -> &'d Prediction {
    document.rows.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("{id} is predicted"))
}

/// One row of the sixteen is missed: BERT base with 16384 samples a batch ran a quarter slower than with 2048, which no
/// larger model does and nothing in the account explains.
#[test]
fn published_training_runs_are_predicted_within_ten_percent() {
    let document = document(TRAINING);
    assert_eq!((document.rows.len(), document.skipped.len()), (16, 6));
    for row in document.rows.iter().filter(|row| row.id != "usc_bert-b-128_16384") {
        println!(
            "{:22} {:9.2} {:9.2} {:+6.1} % {}",
            row.id, row.measured, row.predicted, row.error_pct, row.by
        );
        assert!(row.error_pct.abs() < 10.0, "{} {:.1} % by {}", row.id, row.error_pct, row.by);
        assert!(row.by.contains("release R"), "{}", row.by);
    }
    assert!(find(&document, "usc_bert-b-128_16384").error_pct < -10.0);
    assert!(!document.passed() && document.median_pct < 5.0);
}

#[test]
fn rows_that_nothing_was_fitted_on_are_as_good() {
    let document = document(TRAINING);
    let free = document.rows.iter().filter(|row| !row.fitted && row.id != "usc_bert-b-128_16384");
    let errors: Vec<f64> = free.map(|row| row.error_pct.abs()).collect();
    assert_eq!(errors.len(), 4);
    assert!(errors.iter().sum::<f64>() / 4.0 < 7.0, "{errors:?}");
}

#[test]
fn what_cannot_be_predicted_says_why() {
    let document = document(TRAINING);
    let why =
        |id: &str| document.skipped.iter().find(|row| row.id == id).map(|row| row.why.as_str()).unwrap();
    assert_eq!(why("bertL_pipe1"), "global_batch is not given");
    assert!(why("rep_gpt2").contains("not a measurement"));
    assert!(why("crystalcoder").contains("321,836 steps"));
    let unknown = TRAINING.replacen("R1.7,", "R9.9,", 1);
    let unknown = self::document(&unknown);
    let row = unknown.skipped.iter().find(|row| row.id == "gptj_r17").unwrap();
    assert_eq!(row.why, "there is no factor for software release `R9.9`, and none is made up for one row");
}
