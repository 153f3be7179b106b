//! Plans for GPU clusters: laws of the ranking, reasons of rejection, pins, explanations.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_hardware::{Bytes, Device, HardwareSpec};
use lapidary_models::ModelSpec;
use lapidary_planner::{
    Degrees, Physical, Pins, PlanDocument, PlanError, PlanRequest, explain, plan, plan_until,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn amber_request<'a>(model: &'a ModelSpec, machine: &'a HardwareSpec) -> PlanRequest<'a> {
    PlanRequest { global_batch: Some(2240), ..PlanRequest::new(model, machine) }
}

fn run(request: &PlanRequest<'_>) -> PlanDocument {
    plan(request, &Physical::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn check_laws(document: &PlanDocument) {
    let mut names = BTreeSet::new();
    let mut last = 0.0;
    for candidate in &document.candidates {
        assert!(names.insert(candidate.name.clone()), "{} stands twice", candidate.name);
        let Degrees::Gpu(degrees) = candidate.degrees else { panic!("a GPU plan") };
        assert_eq!(degrees.world(), document.inputs.devices);
        let Some(time) = candidate.step_time_s else {
            assert!(candidate.rejected_by.is_some());
            continue;
        };
        let local = degrees.dp * degrees.micro_batch * degrees.accumulation;
        assert_eq!(local, document.inputs.global_batch);
        let terms: f64 = candidate.terms_s.values().sum();
        assert!((terms - time).abs() <= 1e-9 * time && candidate.terms_s.values().all(|term| *term >= 0.0));
        assert_eq!(candidate.memory_bytes.values().sum::<u64>(), candidate.memory_total_bytes);
        let over = candidate.memory_total_bytes > candidate.memory_capacity_bytes;
        assert_eq!(over, !candidate.feasible(), "{}", candidate.name);
        let bar = candidate.error_bar.as_ref().expect("a bar");
        assert!(bar.percent > 5.0 && bar.percent < 40.0 && bar.runs > 0 && bar.unmeasured_software);
        let mfu = candidate.mfu.unwrap();
        assert!(mfu > 0.0 && mfu < 1.0, "{}: {mfu}", candidate.name);
        if candidate.feasible() {
            assert!(time >= last * (1.0 - 1e-12));
            last = time;
        }
    }
}

#[test]
fn every_plan_of_amber_keeps_the_laws() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let document = run(&PlanRequest { top: Some(300), ..amber_request(&model, &cluster) });
    check_laws(&document);
    let counts = document.counts;
    assert!(counts.evaluated > 10_000 && counts.simulated < counts.evaluated / 4, "{counts:?}");
    assert_eq!(counts.feasible + counts.rejected, counts.evaluated);
    assert_eq!(document.chosen.as_deref(), Some(document.candidates[0].name.as_str()));
    assert!(document.find("pure-fsdp").is_some() && document.find("megatron-default").is_some());
    assert!(document.assumptions.iter().all(|a| !a.source.is_empty() && !a.unit.is_empty()));
    for name in ["network.efficiency", "outer-collective", "device.peak.bf16", "memory-room"] {
        assert!(document.assumptions.iter().any(|a| a.name == name), "{name}");
    }
}

#[test]
fn the_same_request_gives_the_same_bytes_and_reads_back() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let request = amber_request(&model, &cluster);
    let text = run(&request).to_json().unwrap();
    assert_eq!(text, run(&request).to_json().unwrap());
    assert!(text.starts_with(
        "{\n  \"schema\": \"lapidary/plan\",\n  \"version\": 1,\n  \"cost_model\": \"physical\""
    ));
    assert_eq!(PlanDocument::from_json(&text).unwrap().to_json().unwrap(), text);
    let error = PlanDocument::from_json(&text.replace("lapidary/plan", "lapidary/trace")).unwrap_err();
    assert!(error.to_string().contains("expected lapidary/plan version 1"), "{error}");
}

/// 39.64 GFLOP of matrix products and 1.61 of causal attention a token (facts of the paper's model).
#[test]
fn model_flops_are_those_of_the_paper() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let document = run(&amber_request(&model, &cluster));
    let candidate = document.chosen().unwrap();
    let time = candidate.step_time_s.unwrap();
    let model_flops = candidate.mfu.unwrap() * time * 312e12 * 224.0 / (2240.0 * 2048.0);
    assert!((model_flops / 41.25e9 - 1.0).abs() < 1e-3, "{model_flops}");
}

/// A budget or Ctrl-C: the best so far, and the document says that it is no more than that.
#[test]
fn a_search_that_is_stopped_says_so() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let request = amber_request(&model, &cluster);
    let left = std::cell::Cell::new(5);
    let stop = || {
        left.set(left.get() - 1);
        left.get() < 0
    };
    let document = plan_until(&request, &Physical::default(), &stop).unwrap();
    assert!(!document.complete && document.chosen.is_some());
    let whole = run(&request);
    assert!(whole.complete);
    assert!(document.candidates[0].step_time_s >= whole.candidates[0].step_time_s);
    assert!(document.warnings.iter().any(|warning| warning.contains("stopped")), "{:?}", document.warnings);
}

#[test]
fn rejections_say_what_is_over_and_what_would_fit() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let pins = Pins::parse("tp=1,pp=1,mb=10,sharding=optimizer,recompute=none").unwrap();
    let document = run(&PlanRequest { pins, ..amber_request(&model, &cluster) });
    assert_eq!(document.chosen, None);
    let nearest = document.nearest.as_ref().unwrap();
    assert!(
        nearest.rejected_by.contains("GiB over the 79.25 GiB of a device; activations is the largest part")
    );
    assert!(nearest.would_fit.iter().any(|fit| fit.contains("without the pins")), "{nearest:?}");

    // GPT-3 without tensor parallelism on 16 stages: state alone is over, half of the layers a stage would do.
    let (model, dgx) = (support::gpt3(), machine("dgx-a100").unwrap());
    let request =
        PlanRequest { devices: Some(1024), global_batch: Some(1024), ..PlanRequest::new(&model, &dgx) };
    let pins = Pins::parse("sharding=optimizer").unwrap();
    let document = run(&PlanRequest { pins, ..request.clone() });
    let over = document.find("tp1pp16dp64").unwrap();
    assert!(
        over.rejected_by.as_ref().unwrap().contains("state is the largest part"),
        "{:?}",
        over.rejected_by
    );
    let change = over.smallest_change.as_deref().unwrap();
    assert!(change.starts_with("pp 32 instead of 16, dp 32 instead of 64"), "{change}");
    let pins = Pins::parse("pp=32,dp=32,tp=1").unwrap();
    assert!(run(&PlanRequest { pins, ..request }).chosen.is_some());
}

#[test]
fn degrees_that_do_not_divide_are_kept_with_the_reason() {
    let mut model = support::amber();
    (model.n_heads, model.n_kv_heads) = (40, 40);
    let dgx = machine("dgx-a100").unwrap();
    let document = run(&PlanRequest { devices: Some(16), ..PlanRequest::new(&model, &dgx) });
    let reason = |name: &str| document.find(name).unwrap().rejected_by.clone().unwrap();
    assert_eq!(reason("tp16pp1dp1"), "40 heads do not divide by tp 16");
    let request = PlanRequest { devices: Some(48), global_batch: Some(64), ..PlanRequest::new(&model, &dgx) };
    let document = run(&request);
    let reason = |name: &str| document.find(name).unwrap().rejected_by.clone().unwrap();
    assert_eq!(reason("tp1pp1dp48"), "a global batch of 64 does not divide by dp 48");
    assert_eq!(reason("pure-fsdp"), reason("tp1pp1dp48"));
    assert_eq!(reason("tp1pp48dp1"), "32 layers are fewer than 48 stages");
    let pins = Pins::parse("tp=3,sharding=full").unwrap();
    let document = run(&PlanRequest { pins, ..request });
    assert_eq!(document.chosen, None);
    let fits = document.nearest.unwrap().would_fit;
    // No number of devices makes 32 heads divide by 3.
    assert!(fits.len() == 1 && fits[0].ends_with("without the pins"), "{fits:?}");
}

#[test]
fn a_model_that_cannot_fit_gives_the_nearest_plan_and_more_devices() {
    let model = support::gpt3();
    let single = machine("a100-80gb").unwrap();
    let document = run(&PlanRequest { global_batch: Some(8), ..PlanRequest::new(&model, &single) });
    assert_eq!((document.chosen.as_deref(), document.counts.feasible), (None, 0));
    let nearest = document.nearest.unwrap();
    assert_eq!(nearest.name.as_deref(), Some("tp1pp1dp1"));
    assert!(nearest.would_fit[0].starts_with("a device with "), "{nearest:?}");

    let dgx = machine("dgx-a100").unwrap();
    let document = run(&PlanRequest { global_batch: Some(64), ..PlanRequest::new(&model, &dgx) });
    assert_eq!(document.chosen, None);
    let fits = document.nearest.unwrap().would_fit.pop().unwrap();
    assert!(fits.contains(" devices: tp"), "{fits}");
}

#[test]
fn explanations_add_up() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let document = run(&amber_request(&model, &cluster));
    let (first, other) = (document.chosen().unwrap(), document.find("megatron-default").unwrap());
    let explanation = explain(first, other);
    let sum: f64 = explanation.terms_s.iter().map(|term| term.more()).sum();
    assert!((sum - explanation.step_time_s.as_ref().unwrap().more()).abs() < 1e-9);
    assert!(explanation.terms_s[0].more().abs() >= explanation.terms_s[1].more().abs());
    let text = explanation.to_string();
    assert!(text.contains("tp_comm") && text.contains(&other.name), "{text}");
    let impossible = document.find("tp7pp1dp32").unwrap();
    let text = explain(first, impossible).to_string();
    assert!(text.starts_with("tp7pp1dp32 cannot be built: 32 heads do not divide by tp 7"), "{text}");
}

#[test]
fn bad_inputs_are_refused_with_what_would_do() {
    let (model, dgx) = (support::amber(), machine("dgx-a100").unwrap());
    let refuse = |request: PlanRequest<'_>| plan(&request, &Physical::default()).unwrap_err().to_string();
    let request = || PlanRequest::new(&model, &dgx);
    assert_eq!(
        refuse(PlanRequest { seq_len: Some(4096), ..request() }),
        "seq-len is 4096, but must be from 1 to 2048"
    );
    assert_eq!(
        refuse(PlanRequest { global_batch: Some(0), ..request() }),
        "global-batch is 0, but must be from 1 to 4294967296"
    );
    assert!(refuse(PlanRequest { devices: Some(12), ..request() }).contains("8 or 16 would be whole nodes"));
    let pins = Pins::parse("tp=3").unwrap();
    assert!(
        refuse(PlanRequest { pins, ..request() })
            .starts_with("no plan has tp=3: tp, pp and dp multiply to 8")
    );
    let pins = Pins::parse("systems=3").unwrap();
    assert!(refuse(PlanRequest { pins, ..request() }).contains("is not decided on this machine"));
    let wrong = |text: &str| match Pins::parse(text) {
        Err(error @ PlanError::Pin { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(wrong("tp"), "pin `tp` is not of the form key=value");
    assert_eq!(wrong("tp=0"), "pin `tp=0` needs a whole number of at least 1");
    assert_eq!(wrong("recompute=some"), "pin `recompute=some` needs one of none, selective, full, partial");
    assert_eq!(wrong("tp=2,tp=4"), "pin `tp=4` is pinned twice");
    assert!(wrong("speed=9").contains("is not a decision"));
    assert!(Pins::parse("").unwrap().is_empty());
}

#[test]
fn long_sequences_are_shared() {
    let (mut model, dgx) = (support::amber(), machine("dgx-a100").unwrap());
    model.max_seq = 32768;
    let request = |pins: &str| PlanRequest {
        devices: Some(64),
        global_batch: Some(8),
        pins: Pins::parse(pins).unwrap(),
        ..PlanRequest::new(&model, &dgx)
    };
    let of = |pins: &str| run(&request(pins)).chosen().expect("a plan").clone();
    let same = "mb=1,recompute=full,sharding=optimizer,pp=1,sp=on";
    let (whole, shared) = (of(&format!("tp=8,cp=1,{same}")), of(&format!("tp=4,cp=4,dp=4,{same}")));
    assert_eq!(shared.name, "tp4cp4pp1dp4");
    let Degrees::Gpu(degrees) = shared.degrees else { panic!("a GPU plan") };
    assert_eq!((degrees.world(), degrees.dp * degrees.accumulation), (64, 8));
    // Half of the tokens in all on each rank: a quarter of each sequence, twice the features.
    let half = |class: &str| shared.memory_bytes[class] as f64 / whole.memory_bytes[class] as f64;
    assert!((half("activations") - 0.5).abs() < 1e-6, "{}", half("activations"));
    assert!(shared.terms_s["cp_comm"] >= 0.0 && whole.terms_s["cp_comm"] == 0.0);
    // Eight sequences and 64 devices: without sharing, tensor and pipeline parallelism must take the rest.
    let best = run(&request(""));
    assert!(best.chosen().unwrap().step_time_s <= shared.step_time_s);
    check_laws(&best);
    // Scores that go through memory are not passed round.
    let unfused = Physical::of("megatron-2021").unwrap();
    let error = plan(&request("cp=2"), &unfused).unwrap_err().to_string();
    assert!(error.starts_with("no plan has cp=2"), "{error}");
}

#[test]
fn sizes_that_do_not_divide_are_told() {
    let (model, dgx) = (support::amber(), machine("dgx-a100").unwrap());
    let request = |pins: &str| PlanRequest {
        devices: Some(64),
        global_batch: Some(64),
        pins: Pins::parse(pins).unwrap(),
        ..PlanRequest::new(&model, &dgx)
    };
    // Degrees that do not multiply to the devices, a micro-batch that does not divide: there is no such plan.
    for pins in ["tp=3", "dp=8,mb=3", "tp=8,pp=8,dp=8"] {
        let error = plan(&request(pins), &Physical::default()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("no plan has {}", Pins::parse(pins).unwrap())), "{error}");
        assert!(error.contains("tp, pp and dp multiply to 64 devices, and a micro-batch divides"), "{error}");
    }
    // Fewer layers than stages, a batch that does not divide: a plan that cannot be built, with what would do.
    let nearest = run(&request("pp=64")).nearest.unwrap();
    assert_eq!(nearest.rejected_by, "32 layers are fewer than 64 stages");
    assert!(nearest.would_fit[0].ends_with("without the pins"), "{nearest:?}");
    let odd = PlanRequest { global_batch: Some(63), ..request("dp=64") };
    assert_eq!(run(&odd).nearest.unwrap().rejected_by, "a global batch of 63 does not divide by dp 64");
    let ranks = support::crystalcoder();
    let odd = PlanRequest { model: &ranks, ..request("tp=4") };
    assert_eq!(run(&odd).nearest.unwrap().rejected_by, "10922 MLP features do not divide by tp 4");
}

#[test]
fn absurd_widths_are_rejected_with_the_tensor_that_is_too_large() {
    for width in [1 << 40, 1_000_000_000_000, u64::MAX / 4096] {
        let mut model = support::amber();
        (model.d_model, model.head_dim) = (width, width / 32);
        for name in ["dgx-a100", "cg1"] {
            let machine = machine(name).unwrap();
            let nearest = run(&PlanRequest::new(&model, &machine)).nearest.unwrap();
            assert!(nearest.rejected_by.contains("is larger than 1024 TiB"), "{nearest:?}");
        }
    }
}

fn best(model: &ModelSpec, machine: &HardwareSpec) -> f64 {
    let request = PlanRequest { global_batch: Some(64), ..PlanRequest::new(model, machine) };
    run(&request).candidates[0].step_time_s.unwrap_or(f64::INFINITY)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_better_machine_is_never_slower(
        links in 1.0f64..4.0, adapters in 1.0f64..4.0, memory in 1.0f64..2.0, capacity in 1.0f64..2.0,
        devices in prop::sample::select(vec![1u64, 4, 8, 16, 32]),
    ) {
        let model = support::amber();
        let base = machine("dgx-a100").unwrap().with_devices(devices).unwrap();
        let mut better = base.clone();
        if let Some(own) = better.node.links.as_mut() { own.bandwidth = own.bandwidth * links }
        if let Some(own) = better.network.as_mut() { own.adapter_bandwidth = own.adapter_bandwidth * adapters }
        if let Device::Gpu(gpu) = &mut better.device {
            gpu.memory.bandwidth = gpu.memory.bandwidth * memory;
            gpu.memory.capacity = Bytes(gpu.memory.capacity.0 * capacity);
        }
        prop_assert!(best(&model, &better) <= best(&model, &base) * (1.0 + 1e-12));
    }

    #[test]
    fn odd_models_and_batches_never_break_a_law(
        heads in 1u64..12, head_dim in 1u64..16, d_ff in 1u64..300, vocab in 1u64..500, layers in 1u64..7,
        global_batch in 1u64..40, seq_len in 1u64..64, devices in prop::sample::select(vec![1u64, 2, 8, 24]),
    ) {
        let mut model = support::amber();
        (model.n_heads, model.n_kv_heads, model.head_dim) = (heads, heads, head_dim * 2);
        (model.d_model, model.d_ff, model.vocab, model.n_layers) = (heads * head_dim * 2, d_ff, vocab, layers);
        if let lapidary_models::spec::Position::Rope(rope) = &mut model.pos { rope.rot_dims = head_dim * 2 }
        let dgx = machine("dgx-a100").unwrap();
        let request = PlanRequest {
            devices: Some(devices),
            global_batch: Some(global_batch),
            seq_len: Some(seq_len),
            top: Some(200),
            ..PlanRequest::new(&model, &dgx)
        };
        check_laws(&run(&request));
    }
}
