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
    assert!(faults(&format!("{head}\n")).contains("bad.csv:2:1: the table has no rows"));
}

#[test]
fn metrics_have_units() {
    assert_eq!((Metric::Step.unit(), Metric::Memory.unit(), Metric::Fits.timed()), ("s", "GB", false));
}

/// Runs that no constant was fitted to, of software that no fitted run used.
const UNSEEN: &str = include_str!("unseen.csv");

#[test]
fn runs_of_software_that_nothing_was_fitted_to_are_within_their_intervals() {
    let rows = read(UNSEEN, "unseen.csv").unwrap_or_else(|error| panic!("{error}"));
    let document = Document::new("a100-training", score(&rows, &Physics::builtin(), |stack| stack.clone()));
    assert_eq!((document.rows.len(), document.skipped.len()), (19, 0));
    for (group, most) in [("torchtitan", 6.0), ("ibm-fms", 9.0), ("tinyllama", 9.0)] {
        let errors = &document.groups[group];
        assert!(errors.mape_pct < most, "{group}: {}", errors.mape_pct);
        assert_eq!(errors.covered_pct, 100.0, "{group}");
    }
}

/// Runs of publications that constants were fitted to, of other models and layouts, which no fit has seen.
const OTHER: &str = include_str!("other-runs.csv");

#[test]
fn other_runs_of_the_fitted_publications_are_as_near() {
    let rows = read(OTHER, "other-runs.csv").unwrap_or_else(|error| panic!("{error}"));
    let document = Document::new("a100-training", score(&rows, &Physics::builtin(), |stack| stack.clone()));
    assert_eq!((document.rows.len(), document.skipped.len()), (374, 0));
    for (group, errors) in &document.groups {
        assert!(errors.mape_pct < 8.0, "{group}: {}", errors.mape_pct);
        assert!(errors.covered_pct >= 90.0, "{group}: {}", errors.covered_pct);
    }
    assert!(document.mean_of_groups_pct < 5.5 && document.p95_pct < 15.0);
    assert!(document.memory.mape_pct < 7.0, "{}", document.memory.mape_pct);
    assert_eq!(document.fits.wrong_fits, 0);
}

/// One layer's attention of Llama-3.1-8B over 65,536 tokens that eight A100 share: 10.6 forward and backward passes a
/// second (zhuzilin/ring-flash-attention, README at 01c8baf: zigzag_ring, 8xA100).
#[test]
fn attention_over_ranks_that_share_a_sequence_is_near_the_published_ring() {
    let row = ROWS.lines().next().expect("a header").to_string()
        + "\nring,ring-flash-attention,ring,Llama-3.1-8B,8.03,4096,1,32,8,14336,swiglu,128256,65536,A100-80-SXM,8,8,,1,1,1,1,1,1,ddp,none,False,FA2,bf16,FSDP cp=8,iteration_s,1,1,C,";
    let rows = read(&row, "ring.csv").unwrap_or_else(|error| panic!("{error}"));
    let report = score(&rows, &Physics::builtin(), |stack| stack.clone());
    let terms = &report.rows[0].terms_s;
    let (found, published) = (terms["attention"] + terms["cp_comm"], 1.0 / 10.6);
    assert!((found / published - 1.0).abs() < 0.12, "{found} s, published {published} s");
}

#[test]
fn columns_that_are_filled_in_oddly_mean_the_same() {
    let plain = UNSEEN.lines().take(2).collect::<Vec<_>>().join("\n");
    let odd = plain
        .replacen("A100-80-SXM", "NVIDIA A100-SXM4-80GB", 1)
        .replacen("fsdp-full", "FSDP full", 1)
        .replacen(",False,SDPA,", ",no,FA2,", 1);
    let step = |text: &str| {
        let rows = read(text, "odd.csv").unwrap_or_else(|error| panic!("{error}"));
        score(&rows, &Physics::builtin(), |stack| stack.clone()).rows[0].clone()
    };
    assert_eq!(step(&plain).predicted, step(&odd).predicted);
    let unknown = step(&plain.replacen("torchtitan (FSDP2)", "an abacus", 1));
    assert!(
        unknown.assumed.iter().any(|text| text.contains("`an abacus` is not known")),
        "{:?}",
        unknown.assumed
    );
    // What nobody measured has the spread of the measured software's pace on top.
    let width = |row: &lapidary_planner::accuracy::Prediction| (row.high - row.low) / row.predicted;
    assert!(width(&unknown) > 0.3, "{}", width(&unknown));
}

#[test]
fn degrees_that_do_not_divide_and_stages_without_layers_are_told() {
    let plain = UNSEEN.lines().take(2).collect::<Vec<_>>().join("\n");
    let why = |from: &str, to: &str| {
        let rows = read(&plain.replacen(from, to, 1), "odd.csv").unwrap_or_else(|error| panic!("{error}"));
        score(&rows, &Physics::builtin(), |stack| stack.clone()).skipped[0].why.clone()
    };
    assert_eq!(why(",1,1,1,64,fsdp", ",3,1,1,64,fsdp"), "tp 3 x pp 1 x cp 1 do not divide 64 GPUs");
    assert!(why(",1,1,1,64,fsdp", ",1,64,1,1,fsdp").contains("do not fit 64 GPUs and 32 layers"));
    assert_eq!(why("A100-80-SXM", "TPU v4"), "no machine file for `TPU v4`");
}
