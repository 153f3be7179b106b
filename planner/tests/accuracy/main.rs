//! The accuracy report on an excerpt of published runs (`rows.csv`, each row with its source), and the faults of tables.

use lapidary_planner::accuracy::{Document, Metric, Row, read, score};
use lapidary_planner::step::Physics;

const ROWS: &str = include_str!("rows.csv");

fn rows() -> Vec<Row> {
    read(ROWS, "rows.csv").unwrap_or_else(|error| panic!("{error}"))
}

fn document() -> Document {
    Document::new("a100-training", score(&rows(), &Physics::builtin(), |stack| stack.clone()))
}

fn faults(text: &str) -> String {
    read(text, "bad.csv").expect_err("a table with a fault is refused").to_string()
}

#[test]
fn every_row_is_predicted_near_its_measurement() {
    let document = document();
    assert_eq!((document.rows.len(), document.skipped.len()), (23, 0));
    for row in document.rows.iter().filter(|row| row.scored && row.unit != "fits") {
        let within = row.error_pct.abs();
        assert!(
            within < 20.0,
            "{}: {} {} measured, {} predicted",
            row.id,
            row.measured,
            row.unit,
            row.predicted
        );
        assert!(row.low < row.predicted && row.predicted < row.high);
    }
    assert!(document.mean_of_groups_pct < 6.0, "{}", document.mean_of_groups_pct);
    assert!(document.memory.mape_pct < 10.0, "{}", document.memory.mape_pct);
    assert_eq!(document.coverage_pct, 100.0);
}

#[test]
fn terms_of_a_step_sum_to_its_prediction() {
    for row in document().rows.iter().filter(|row| row.unit == "s") {
        let sum: f64 = row.terms_s.values().sum();
        assert!((sum / row.predicted - 1.0).abs() < 1e-9, "{}", row.id);
    }
}

#[test]
fn rows_of_quality_c_are_predicted_but_do_not_count() {
    let document = document();
    let zero_bubble = document.rows.iter().find(|row| row.id == "zb-ZB-2p-1.5B-m24").expect("the row");
    assert!(!zero_bubble.scored);
    let scored: usize = document.groups.values().map(|errors| errors.rows).sum();
    assert_eq!(scored, document.rows.iter().filter(|r| r.scored && matches!(r.unit, "s" | "ms")).count());
}

#[test]
fn inferred_recomputation_is_decided_by_the_runs_of_a_source_together() {
    let document = document();
    let row = document.rows.iter().find(|row| row.group == "vtrain-single").expect("the row");
    assert!(
        row.assumed.iter().any(|text| text.contains("every run of its source fits")),
        "{:?}",
        row.assumed
    );
    let multi = document.rows.iter().find(|row| row.group == "vtrain-multi").expect("the row");
    assert!(multi.assumed.iter().all(|text| !text.contains("recomputed")), "{:?}", multi.assumed);
}

#[test]
fn a_column_of_another_name_is_missed_and_guessed() {
    let message = faults(&ROWS.replacen("step_s_equiv", "step_ms_equiv", 1));
    assert!(message.contains("bad.csv:1:") && message.contains("is `step_ms_equiv` meant?"), "{message}");
}

#[test]
fn times_in_another_unit_are_refused_with_their_place() {
    let message = faults(&ROWS.replacen(",1.42,1.42,", ",1.42,1420,", 1));
    assert!(message.contains("step_s_equiv: 1420 s contradicts the iteration_s of 1.42"), "{message}");
}

#[test]
fn every_fault_is_listed() {
    let text = ROWS.replacen("iteration_s", "iteration_ms", 1).replacen("tokens_per_s", "tokens_per_min", 1);
    let message = faults(&text);
    assert_eq!(message.lines().count(), 2, "{message}");
    assert!(message.contains("`iteration_ms` is not a known metric"), "{message}");
    let (head, row) = ROWS.split_once('\n').expect("a header");
    let short = format!("{head}\n{}", row.lines().next().expect("a row").split_once(',').expect("cells").1);
    assert!(faults(&short).contains("cells, the header 34"));
    assert!(faults("").contains("empty"));
}

#[test]
fn metrics_have_units() {
    assert_eq!((Metric::Step.unit(), Metric::Memory.unit(), Metric::Fits.timed()), ("s", "GB", false));
}
