//! Models with experts: what a rank holds and sends, what the search makes of it, and one published pair of runs.

use crate::support;
use lapidary_hardware::HardwareSpec;
use lapidary_hardware::builtin::machine;
use lapidary_models::spec::Experts;
use lapidary_models::{ModelSpec, builtin};
use lapidary_planner::launch::{Launcher, launch};
use lapidary_planner::{
    Candidate, Degrees, Physical, Pins, PlanDocument, PlanError, PlanRequest, explain, plan,
};

/// Mixtral 8x7B (arXiv 2401.04088, table 1) from the shape of LLaMA 7B.
fn mixtral() -> ModelSpec {
    let mut model = support::amber();
    (model.name, model.n_kv_heads, model.d_ff) = ("mixtral".to_string(), 8, 14336);
    model.experts = Some(Experts { count: 8, top_k: 2, capacity: None, every: 1 });
    model
}

fn dgx(devices: u64) -> HardwareSpec {
    machine("dgx-a100").unwrap().with_devices(devices).unwrap()
}

fn planned(model: &ModelSpec, machine: &HardwareSpec, pins: &str) -> PlanDocument {
    let request = PlanRequest {
        global_batch: Some(1024),
        pins: Pins::parse(pins).unwrap(),
        ..PlanRequest::new(model, machine)
    };
    plan(&request, &Physical::of("megatron-2022").unwrap()).unwrap_or_else(|error| panic!("{error}"))
}

fn best(model: &ModelSpec, machine: &HardwareSpec, pins: &str) -> Candidate {
    planned(model, machine, pins).chosen().unwrap_or_else(|| panic!("{pins} fits")).clone()
}

#[test]
fn expert_parallelism_is_chosen_where_experts_do_not_fit_elsewhere() {
    let (model, cluster) = (mixtral(), dgx(64));
    let document = planned(&model, &cluster, "");
    assert!(document.inputs.parameters > 46_000_000_000);
    let chosen = document.chosen().expect("a plan");
    let Degrees::Gpu(degrees) = chosen.degrees else { panic!("a plan for GPUs") };
    assert!(degrees.ep > 1 && 8 % degrees.ep == 0 && degrees.dp % degrees.ep == 0, "{}", chosen.name);
    assert!(chosen.name.contains(&format!("ep{}", degrees.ep)), "{}", chosen.name);
    assert!(chosen.terms_s["ep_comm"] > 0.0);
    assert!(
        document.warnings.iter().any(|warning| warning.contains("equal shares")),
        "{:?}",
        document.warnings
    );
    assert!(document.find("pure-fsdp").is_some() && document.find("megatron-default").is_some());
    // The explanation names the exchange where plans differ in it.
    let other = best(&model, &cluster, "ep=1");
    assert!(explain(chosen, &other).to_string().contains("ep_comm"));
}

#[test]
fn more_ranks_for_the_experts_hold_less_and_send_more() {
    let (model, cluster) = (mixtral(), dgx(64));
    let of = |ep: u64| {
        best(
            &model,
            &cluster,
            &format!(
                "tp=4,pp=4,dp=4,ep={ep},mb=1,sharding=none,recompute=full,sp=on,chunks=1,first-stage=8,last-stage=8"
            ),
        )
    };
    let states = [1, 2, 4].map(|ep| of(ep).memory_bytes["state"] as f64);
    assert!(states[0] > 1.8 * states[1] && states[1] > 1.7 * states[2], "{states:?}");
    let sent = [1, 2, 4].map(|ep| of(ep).terms_s["ep_comm"]);
    assert!(sent[0] == 0.0 && sent[0] < sent[1] && sent[1] < sent[2], "{sent:?}");
}

#[test]
fn one_expert_that_every_token_goes_to_is_an_mlp() {
    let (mut dense, cluster) = (support::amber(), dgx(8));
    dense.n_layers = 8;
    let mut twice = dense.clone();
    // Two experts that every token goes to do what an MLP of twice the width does; one of them is the dense model.
    twice.experts = Some(Experts { count: 2, top_k: 2, capacity: None, every: 1 });
    let mut wide = dense.clone();
    wide.d_ff *= 2;
    let pins = "tp=1,pp=1,mb=1,sharding=optimizer,recompute=none,ep=1";
    let (a, b) = (best(&twice, &cluster, pins), best(&wide, &cluster, pins));
    let close = |a: f64, b: f64, within: f64| (a / b - 1.0).abs() < within;
    assert!(close(a.terms_s["matmul"], b.terms_s["matmul"], 0.06), "{:?} {:?}", a.terms_s, b.terms_s);
    assert!(close(a.memory_bytes["state"] as f64, b.memory_bytes["state"] as f64, 0.01));
    assert!(a.terms_s["memory_bound"] > b.terms_s["memory_bound"], "routing moves every token");
}

#[test]
fn room_for_more_rows_costs_their_time() {
    let cluster = dgx(8);
    let of = |capacity: Option<f64>| {
        let mut model = mixtral();
        model.n_layers = 4;
        model.experts = Some(Experts { count: 8, top_k: 2, capacity, every: 1 });
        let document = planned(&model, &cluster, "tp=1,pp=1,ep=8,mb=1");
        let uneven = document.warnings.iter().any(|warning| warning.contains("equal shares"));
        (document.chosen().expect("a plan").terms_s.clone(), uneven)
    };
    let ((plain, told), (roomy, padded)) = (of(None), of(Some(1.5)));
    assert!(told && !padded);
    for term in ["matmul", "ep_comm"] {
        assert!(roomy[term] > 1.2 * plain[term] && roomy[term] < 1.6 * plain[term], "{term}");
    }
}

#[test]
fn experts_are_for_gpus_and_for_training() {
    let (model, wafers) = (mixtral(), machine("cg1").unwrap());
    let refused = plan(&PlanRequest::new(&model, &wafers), &Physical::default()).unwrap_err();
    assert!(matches!(refused, PlanError::Experts { .. }), "{refused}");
}

#[test]
fn megatron_is_told_of_the_experts() {
    let (model, cluster) = (mixtral(), dgx(64));
    let script = launch(&planned(&model, &cluster, "ep=8"), &model, Launcher::Megatron).unwrap();
    for flag in ["--num-experts 8", "--moe-router-topk 2", "--expert-model-parallel-size 8"] {
        assert!(script.text.contains(flag), "{flag}: {}", script.text);
    }
}

/// DeepSpeed-MoE (arXiv 2201.05596, table 3): a model of 1.3 B parameters with 128 experts in every other layer, each token
/// to one of them, trains 372 samples of 2,048 tokens a second on 128 A100. Data and expert parallelism are printed; batch,
/// micro-batch, recomputation and capacity are those of the authors' example (microsoft/Megatron-DeepSpeed,
/// examples_deepspeed/MoE).
#[test]
fn deepspeed_moe_is_near_its_published_rate() {
    let cluster = dgx(128);
    let mut model = builtin("gpt3-1.3b").unwrap();
    (model.n_heads, model.n_kv_heads, model.head_dim) = (16, 16, 128);
    model.experts = Some(Experts { count: 128, top_k: 1, capacity: Some(1.0), every: 2 });
    let pins = Pins::parse("tp=1,pp=1,cp=1,ep=128,mb=4,sharding=optimizer,recompute=full").unwrap();
    let request = PlanRequest { global_batch: Some(512), pins, ..PlanRequest::new(&model, &cluster) };
    let document = plan(&request, &Physical::of("megatron-deepspeed").unwrap()).unwrap();
    let rate = 512.0 / document.chosen().expect("it fits").step_time_s.unwrap();
    assert!((372.0 / 1.35..372.0 * 1.35).contains(&rate), "{rate} samples a second");
}
