//! Plans priced by the physical account: the run that trained Amber, what beats it, and what moves its time.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_planner::sensitivity::sensitivity;
use lapidary_planner::{Candidate, Degrees, Physical, Pins, PlanDocument, PlanRequest, Sharding, plan};

/// Tokens per second that arXiv 2312.06550, section 4.1.2, reports of 224 GPUs.
const AMBER: f64 = 582.4e3;

fn prices() -> Physical {
    Physical { offload: true, ..Physical::of("lightning-fabric").expect("a built-in stack") }
}

#[test]
fn the_run_that_trained_amber_is_predicted_and_beaten() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let pins = Pins::parse("tp=1,pp=1,mb=10,sharding=full,recompute=full").unwrap();
    let request = PlanRequest { global_batch: Some(2240), ..PlanRequest::new(&model, &cluster) };
    let pinned = PlanRequest { pins, ..request.clone() };
    let run = plan(&pinned, &prices()).unwrap();
    let found = run.chosen().and_then(|run| run.tokens_per_s).unwrap();
    assert!((found / AMBER - 1.0).abs() < 0.05, "{found}");
    assert!(run.pin_loss_pct.unwrap() > 5.0, "recomputing everything costs more than a twentieth");
    let best = plan(&request, &prices()).unwrap();
    let (first, fsdp) = (best.chosen().unwrap(), best.find("pure-fsdp").unwrap());
    assert!(first.step_time_s <= fsdp.step_time_s);
    let sum: f64 = first.terms_s.values().sum();
    assert!((sum / first.step_time_s.unwrap() - 1.0).abs() < 1e-9);
}

/// "Up to 15 %" (arXiv 2312.06550, section 4.1.2): what the same software gains by leaving full sharding for several
/// degrees. Shards within a node, which the paper does not speak of, gain more.
#[test]
fn a_plan_of_several_degrees_beats_full_sharding_by_what_the_paper_says() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let request = PlanRequest { global_batch: Some(2240), ..PlanRequest::new(&model, &cluster) };
    let document = plan(&request, &Physical::of("lightning-fabric").expect("a built-in stack")).unwrap();
    let fsdp = document.find("pure-fsdp").unwrap();
    let degrees = |candidate: &&Candidate| match candidate.degrees {
        Degrees::Gpu(plan) => plan,
        Degrees::Wafer(_) => panic!("a plan for GPUs"),
    };
    let several = document.candidates.iter().find(|one| degrees(one).tp * degrees(one).pp > 1).unwrap();
    let gain = |one: &Candidate| fsdp.step_time_s.unwrap() / one.step_time_s.unwrap() - 1.0;
    assert!((0.08..0.16).contains(&gain(several)), "{} {}", several.name, gain(several));
    let first = document.chosen().unwrap();
    assert_eq!(degrees(&first).sharding, Sharding::Hybrid, "{}", first.name);
    assert!((gain(several)..0.25).contains(&gain(first)), "{}", gain(first));
    // The gathers and what is computed again beside large micro-batches are what is gained, the all-reduces of tensor
    // parallelism what is paid.
    let more = |term: &str| fsdp.terms_s[term] - several.terms_s[term];
    assert!(more("dp_comm") + more("recompute") > 0.8 && more("tp_comm") < -0.4, "{:?}", fsdp.terms_s);
}

#[test]
fn every_number_that_matters_moves_the_step_the_right_way() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let request = PlanRequest { global_batch: Some(2240), ..PlanRequest::new(&model, &cluster) };
    let best = plan(&request, &prices()).unwrap();
    let Degrees::Gpu(degrees) = best.find("pure-fsdp").unwrap().degrees else { panic!("a GPU plan") };
    let list = sensitivity(&request, &prices(), &degrees).unwrap();
    let of = |name: &str| list.iter().find(|one| one.name == name).unwrap_or_else(|| panic!("{name}"));
    for rate in ["product-peak", "stream", "flash", "network.adapter-bandwidth"] {
        assert!(of(rate).smaller_pct > 0.0 && of(rate).larger_pct < 0.0, "{rate}");
    }
    assert!(of("software.pace").larger_pct > 0.0);
    assert!(list.windows(2).all(|pair| {
        let weight = |one: &lapidary_planner::sensitivity::Sensitivity| {
            one.smaller_pct.abs().max(one.larger_pct.abs())
        };
        weight(&pair[0]) >= weight(&pair[1])
    }));
}

#[test]
fn everybody_waits_for_the_slowest() {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let pins = Pins::parse("tp=1,pp=1,mb=5,sharding=full,recompute=none").unwrap();
    let request = PlanRequest { global_batch: Some(2240), pins, ..PlanRequest::new(&model, &cluster) };
    let slow = Physical::default().with_straggler(1.1);
    let (sound, late) = (plan(&request, &Physical::default()).unwrap(), plan(&request, &slow).unwrap());
    let terms = |document: &PlanDocument| document.chosen().unwrap().terms_s.clone();
    let (a, b) = (terms(&sound), terms(&late));
    assert!((b["matmul"] / a["matmul"] - 1.1).abs() < 0.01, "{} {}", b["matmul"], a["matmul"]);
    // The network is not slower, and has more to hide behind.
    assert!(b["dp_comm"] <= a["dp_comm"]);
    assert!(late.assumptions.iter().any(|one| one.name == "straggler-slowdown" && one.value == 1.1));
}

#[test]
fn faster_links_are_never_slower() {
    let model = support::amber();
    let slow = machine("amber-cluster").unwrap();
    let mut fast = slow.clone();
    let network = fast.network.as_mut().expect("a network");
    network.adapter_bandwidth = network.adapter_bandwidth * 4.0;
    let request = |machine| PlanRequest {
        global_batch: Some(2240),
        top: Some(400),
        ..PlanRequest::new(&model, machine)
    };
    let (a, b) = (plan(&request(&slow), &prices()).unwrap(), plan(&request(&fast), &prices()).unwrap());
    let mut compared = 0;
    for candidate in a.candidates.iter().filter(|candidate| candidate.step_time_s.is_some()) {
        let Some(same) = b.candidates.iter().find(|other| other.degrees == candidate.degrees) else {
            continue;
        };
        compared += 1;
        let (faster, slower) = (same.step_time_s.unwrap(), candidate.step_time_s.unwrap());
        assert!(faster <= slower * (1.0 + 1e-9), "{}: {faster} {slower}", candidate.name);
    }
    assert!(compared > 50, "{compared}");
}
