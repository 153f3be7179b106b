//! Plans for wafers: what fits 48 KiB a processing element, what the ingress bounds, and laws.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_hardware::{BytesPerSecond, Device, HardwareSpec, Hertz};
use lapidary_models::ModelSpec;
use lapidary_planner::{Degrees, Physical, Pins, PlanDocument, PlanRequest, Recompute, WaferMode, plan};

fn request<'a>(model: &'a ModelSpec, machine: &'a HardwareSpec, pins: &str) -> PlanRequest<'a> {
    let pins = Pins::parse(pins).unwrap();
    PlanRequest { global_batch: Some(2112), pins, ..PlanRequest::new(model, machine) }
}

fn run(request: &PlanRequest<'_>) -> PlanDocument {
    plan(request, &Physical::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The run: 16 CS-2, 66 sequences a micro-batch, 2 micro-batches. Published whole-model rates of such models
/// are 1.07 to 2.02 PFLOP/s a CS-2.
#[test]
fn the_run_of_crystalcoder_fits_and_is_priced_in_the_published_range() {
    let (model, cg1) = (support::crystalcoder(), machine("cg1").unwrap());
    let document = run(&PlanRequest { devices: Some(16), ..request(&model, &cg1, "mb=66") });
    let chosen = document.chosen().unwrap();
    assert_eq!(chosen.name, "cs16mb66acc2");
    let Degrees::Wafer(degrees) = chosen.degrees else { panic!("a wafer plan") };
    assert_eq!((degrees.mode, degrees.recompute), (WaferMode::WeightStreaming, Recompute::Full));
    let rate = chosen.mfu.unwrap() * 745_500.0 * 2.0 * 2.0 * 1.1e9;
    println!("{:?} s, {:.2} PFLOP/s a CS-2", chosen.step_time_s, rate / 1e15);
    assert!(rate > 1.0e15 && rate < 2.02e15, "{rate}");
    assert_eq!(chosen.bound_by.as_deref(), Some("compute"));
}

#[test]
fn every_kept_plan_keeps_the_laws() {
    let (model, cg1) = (support::crystalcoder(), machine("cg1").unwrap());
    let document = run(&PlanRequest { top: None, ..request(&model, &cg1, "") });
    assert_eq!(document.counts.evaluated as usize, document.candidates.len());
    for candidate in document.candidates.iter().filter(|candidate| candidate.step_time_s.is_some()) {
        let Degrees::Wafer(degrees) = candidate.degrees else { panic!("a wafer plan") };
        assert_eq!(degrees.systems * degrees.micro_batch * degrees.accumulation, 2112);
        let time = candidate.step_time_s.unwrap();
        assert!((candidate.terms_s.values().sum::<f64>() - time).abs() <= 1e-9 * time);
        assert!(candidate.busy_share.is_some_and(|busy| busy > 0.0 && busy <= 1.0));
        let over = candidate.memory_total_bytes > candidate.memory_capacity_bytes;
        assert_eq!(over, !candidate.feasible());
    }
    assert_eq!(run(&request(&model, &cg1, "")), run(&request(&model, &cg1, "")));
    assert!(document.find("one-system").is_some());
}

#[test]
fn small_micro_batches_wait_for_weights() {
    let (model, cg1) = (support::crystalcoder(), machine("cg1").unwrap());
    let wait = |pins: &str| {
        let document = run(&request(&model, &cg1, pins));
        let chosen = document.chosen().unwrap();
        chosen.terms_s["ingress_wait"] / chosen.step_time_s.unwrap()
    };
    assert!(wait("systems=16,mb=1,recompute=none,mode=weight-streaming") > 0.1);
    assert_eq!(wait("systems=16,mb=66"), 0.0);
}

#[test]
fn a_layer_pipeline_of_seven_billion_parameters_does_not_fit() {
    let (model, cg1) = (support::crystalcoder(), machine("cg1").unwrap());
    let document = run(&request(&model, &cg1, "systems=16,mode=layer-pipelined"));
    assert_eq!(document.chosen, None);
    let nearest = document.nearest.unwrap();
    assert!(nearest.rejected_by.contains("optimizer is the largest part with 73.48 GiB"), "{nearest:?}");
    let mut small = support::crystalcoder();
    (small.n_layers, small.vocab) = (2, 1024);
    let document = run(&request(&small, &cg1, "systems=16,mode=layer-pipelined"));
    assert!(document.chosen.is_some());
}

#[test]
fn a_bare_wafer_and_a_batch_that_does_not_divide_are_told() {
    let (model, wse2) = (support::crystalcoder(), machine("wse2").unwrap());
    let document = run(&request(&model, &wse2, "mode=weight-streaming"));
    assert_eq!(document.nearest.unwrap().rejected_by, "wse2 states no [ingress] to stream weights through");
    let cg1 = machine("cg1").unwrap();
    let document = run(&PlanRequest { devices: Some(13), ..request(&model, &cg1, "") });
    assert_eq!(document.nearest.unwrap().rejected_by, "a global batch of 2112 does not divide by 13 systems");
}

#[test]
fn more_ingress_and_a_faster_clock_are_never_slower() {
    let (model, base) = (support::crystalcoder(), machine("cg1").unwrap());
    let mut fast = base.clone();
    if let Device::Wafer(wafer) = &mut fast.device {
        wafer.clocks[0].1 = Hertz(1.3e9);
        wafer.ingress.iter_mut().for_each(|ingress| ingress.link_bandwidth = BytesPerSecond(25e9));
    }
    for pins in ["mb=1", "mb=66,systems=16", "mb=11", "mode=weight-streaming,recompute=none,mb=3"] {
        let time = |machine| run(&request(&model, machine, pins)).candidates[0].step_time_s.unwrap();
        assert!(time(&fast) <= time(&base), "{pins}");
    }
}

/// Fewer links, a thinner tree and fewer systems are slower, and what then bounds a step has its name.
#[test]
fn every_part_of_the_cluster_moves_the_step_its_way() {
    let (model, base) = (support::crystalcoder(), machine("cg1").unwrap());
    let step = |machine: &HardwareSpec, pins: &str| {
        let found = run(&request(&model, machine, pins)).candidates.remove(0);
        (found.step_time_s.unwrap(), found.bound_by.unwrap())
    };
    let pins = "systems=64,mb=33";
    let links = |count: u64| {
        let mut few = base.clone();
        if let Device::Wafer(wafer) = &mut few.device {
            wafer.ingress.iter_mut().for_each(|ingress| ingress.links = count);
        }
        step(&few, pins)
    };
    let tree = |factor: f64| {
        let mut thin = base.clone();
        thin.weight_server.iter_mut().for_each(|server| server.tree_bandwidth.0 *= factor);
        step(&thin, pins)
    };
    let (whole, bound) = step(&base, pins);
    assert_eq!((bound.as_str(), links(12).0), ("compute", whole));
    assert!(links(1).0 >= links(6).0 && links(6).0 >= whole);
    assert_eq!(tree(100.0).0, whole, "the links of a system bind before the tree does");
    let (slow, slower) = (tree(1e-3), tree(1e-4));
    assert!(whole < slow.0 && slow.0 < slower.0, "{whole} {slow:?} {slower:?}");
    assert_eq!(slower.1, "network");
    let systems = [1, 2, 4, 8, 16, 32, 64].map(|n| step(&base, &format!("systems={n}")).0);
    assert!(systems.is_sorted_by(|few, many| few > many), "{systems:?}");
}
