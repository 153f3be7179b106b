//! The jobs of every kind run on an emulated GPU at small sizes, and the document is the one that `calibrate` reads.

use super::cases::{Size, kernels, large_products};
use super::compare::Comparison;
use super::models::{check, decode, prefill, train_step};
use super::{Goal, What};
use lapidary_hardware::calibrate::bench::{Bench, Unit};
use lapidary_models::{DType, ModelSpec, builtin};
use lapidary_runtime_gpu::bench::{self, Effort, Job, Jobs, Run, roofline};
use lapidary_tests::emulation::Emulated;

fn goal() -> Goal {
    Goal::new("sm_80", 4)
}

fn tiny() -> ModelSpec {
    let mut spec = ModelSpec {
        vocab: 61,
        vocab_padded_to: None,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 4,
        head_dim: 8,
        d_ff: 42,
        max_seq: 16,
        ..builtin("amber").expect("built in")
    };
    if let lapidary_models::spec::Position::Rope(rope) = &mut spec.pos {
        rope.rot_dims = rope.rot_dims.min(8);
    }
    spec
}

fn run(jobs: &Jobs) -> bench::Outcome {
    run_within(jobs, None, &mut Vec::new())
}

/// Every look at the clock takes a second.
fn run_within(jobs: &Jobs, budget_s: Option<f64>, told: &mut Vec<String>) -> bench::Outcome {
    let effort = Effort { samples: 2, warm_up: 1, most_s: 1.0, copied: 1 << 12, budget_s };
    let mut seconds = 0.0;
    let mut clock = || {
        seconds += 1.0;
        seconds
    };
    let mut device = Emulated::new();
    let mut told = |line: &str| told.push(line.to_string());
    bench::run(Run::new(&mut device, effort, &mut clock, &mut told), jobs, "2026-11-22").expect("runs")
}

#[test]
fn an_emulated_gpu_runs_every_job_and_calibrate_reads_what_comes_out() {
    let (spec, size, goal) = (tiny(), Size { batch: 1, seq: Some(16) }, goal());
    let mut jobs = Jobs { ceiling: large_products(32, &goal).expect("products"), ..Jobs::default() };
    for what in [What::Gemm, What::Attention, What::Norm, What::Swiglu, What::Rope, What::CrossEntropy] {
        jobs.jobs.extend(kernels(what, &spec, size, &goal).expect("kernels"));
    }
    // Emulation is slow: one form of each product, and of whole models what is measured where something is known.
    jobs.jobs.iter_mut().for_each(|job| job.candidates.clear());
    let goal = Goal { measured: [("another".into(), "single".into())].into(), ..goal };
    jobs.jobs.extend(decode(&spec, Some(16), &[1, 2], &goal).expect("decode"));
    jobs.jobs.extend(prefill(&spec, size, &goal).expect("prefill"));
    let mut step = train_step(&spec, size, &goal).expect("a training step");
    let backward = |job: &Job| job.ops.as_deref().is_some_and(|ops| ops.contains("linear_d"));
    assert!(step.iter().filter(|job| backward(job)).count() >= 8, "dX and dW of four products");
    jobs.jobs.extend(step.pop());
    let outcome = run(&jobs);
    assert!(outcome.bench.skipped.is_empty(), "{:?}", outcome.bench.skipped);
    let text = serde_json::to_string(&outcome.bench).expect("JSON");
    let read = Bench::read(&text, "bench.json").expect("the document that calibrate reads");
    assert_eq!(read, outcome.bench);
    let of = |kernel: &str| read.results.iter().filter(|one| one.kernel == kernel).collect::<Vec<_>>();
    assert!(of("gemm").len() >= 4, "qkv, out, gate and up, down");
    for kernel in ["attention", "norm", "swiglu", "rope", "cross-entropy", "prefill", "train-step"] {
        assert_eq!(of(kernel).len(), 1, "{kernel}");
    }
    let decoded = of("decode");
    assert_eq!(decoded.len(), 2);
    assert!(decoded.iter().all(|one| one.tokens_per_s.is_some_and(|rate| rate > 0.0)));
    assert!(read.results.iter().all(|one| one.median_s > 0.0 && one.share_pct.is_some()));
    assert!(of("norm")[0].unit == Unit::Bytes);
    let picture = roofline(&read).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.contains("train-step") && picture.contains("decode"));
    // Two inputs and two outputs of 16 rows by 32 columns, and the weight.
    assert_eq!(
        jobs.jobs.iter().find(|job| job.kernel == "norm").map(|job| job.bytes),
        Some(4 * 16 * 64 + 64)
    );
}

/// All forms of a product are timed; the fastest is told, kept, and taken by the next compilation.
#[test]
fn the_fastest_form_of_a_product_is_kept_and_taken() {
    let (spec, size) = (tiny(), Size { batch: 1, seq: Some(16) });
    let products = kernels(What::Gemm, &spec, size, &goal()).expect("kernels");
    let plain =
        products.iter().position(|job| job.ops.as_deref() == Some("linear")).expect("a plain product");
    let jobs = Jobs { jobs: products[plain..=plain].to_vec(), ..Jobs::default() };
    let outcome = run(&jobs);
    let (product, forms) = outcome.tunings.median_s.first_key_value().expect("a product");
    assert!(forms.contains_key("library") && forms.contains_key("tiles-64x64"), "{forms:?}");
    let told = outcome.bench.results[0].form.clone().expect("a form");
    assert_eq!(forms[&told], forms.values().copied().fold(f64::INFINITY, f64::min));
    // The emulation counts pieces of work, so all forms are alike: another one is made the fastest by hand.
    let mut tunings = outcome.tunings.clone();
    tunings.note(product, "tiles-64x128", 1e-9);
    let again = Goal { measured: tunings.fastest(), ..goal() };
    let made = prefill(&spec, size, &again).expect("prefill").remove(0);
    assert!(made.candidates.is_empty());
    let taken = kernels(What::Gemm, &spec, size, &goal()).expect("kernels")[plain].product.clone();
    assert_eq!(taken.as_ref(), Some(product));
}

#[test]
fn what_the_time_does_not_suffice_for_is_left_out_and_told() {
    let (spec, size, goal) = (tiny(), Size { batch: 1, seq: Some(16) }, goal());
    let mut jobs = Jobs { ceiling: large_products(32, &goal).expect("products"), ..Jobs::default() };
    for what in [What::Norm, What::Swiglu, What::Rope] {
        jobs.jobs.extend(kernels(what, &spec, size, &goal).expect("kernels"));
    }
    let mut told = Vec::new();
    let outcome = run_within(&jobs, Some(6.0), &mut told);
    assert!(outcome.bench.results.len() < 3, "{:?}", outcome.bench.results);
    let left = outcome.bench.skipped.iter().filter(|one| one.why.contains("is over")).count();
    assert!(left > 0 && told.iter().filter(|line| line.contains("is over")).count() == left, "{told:?}");
}

#[test]
fn an_emulated_gpu_passes_the_checks_and_a_wrong_kernel_does_not() {
    let mut jobs = Jobs::default();
    for (name, dtype) in [("crystalcoder", DType::Bf16), ("amber", DType::F32)] {
        jobs.checks.push(check(name, [1, 9, 43, 67], dtype, &goal()).expect("a check"));
    }
    let mut wrong = jobs.checks[1].clone();
    wrong.name = "wrong".into();
    wrong.expected[5] += 1.0;
    jobs.checks.push(wrong);
    let outcome = run(&jobs);
    let verdicts: Vec<bool> = outcome.checks.iter().map(|check| check.ok).collect();
    assert_eq!(verdicts, [true, true, false], "{:?}", outcome.checks);
}

#[test]
fn only_what_is_slower_than_runs_differ_is_told() {
    let (spec, size) = (tiny(), Size { batch: 1, seq: Some(4) });
    let jobs = Jobs { jobs: kernels(What::Norm, &spec, size, &goal()).expect("kernels"), ..Jobs::default() };
    let before = run(&jobs).bench;
    let mut now = before.clone();
    now.results[0].median_s *= 1.04;
    assert_eq!(Comparison::new(&now, &before, 5.0).slower().count(), 0);
    now.results[0].median_s *= 1.04;
    assert_eq!(Comparison::new(&now, &before, 5.0).slower().count(), 1);
    now.results[0].kernel = "other".into();
    let told = Comparison::new(&now, &before, 5.0).to_string();
    assert_eq!(told, "0 compared, 1 new, 1 only in the baseline\n");
}
