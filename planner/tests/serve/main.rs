//! Inference plans: against published first tokens and times between tokens, and laws of the ranking.

use lapidary_hardware::builtin::machine;
use lapidary_models::ModelSpec;
use lapidary_planner::serve::{ServeCandidate, ServeRequest, serve};
use lapidary_planner::{Physical, PlanError};

/// LLaMA 2 of a size, as its configuration prints it.
fn llama(size: &str) -> ModelSpec {
    let mut model = lapidary_models::builtin("amber").unwrap();
    let (layers, width, heads, key_heads, inner) = match size {
        "7b" => (32, 4096, 32, 32, 11008),
        "13b" => (40, 5120, 40, 40, 13824),
        "70b" => (80, 8192, 64, 8, 28672),
        other => panic!("no LLaMA 2 of {other}"),
    };
    (model.n_layers, model.d_model, model.n_heads, model.n_kv_heads) = (layers, width, heads, key_heads);
    (model.head_dim, model.d_ff, model.vocab, model.max_seq) = (128, inner, 32000, 4096);
    model
}

fn request<'a>(model: &'a ModelSpec, machine: &'a lapidary_hardware::HardwareSpec) -> ServeRequest<'a> {
    ServeRequest {
        model,
        machine,
        devices: None,
        prompt: 512,
        output: 512,
        first_token_s: None,
        between_tokens_s: None,
        tp: None,
        batch: None,
    }
}

/// 28 published times, nothing fitted to them.
#[test]
fn published_latencies_are_met() {
    let dgx = machine("dgx-a100").unwrap();
    let mut errors = Vec::new();
    let text = include_str!("published.csv");
    for line in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |at: usize| cells[at].parse::<u64>().unwrap();
        let model = llama(cells[1]);
        let asked = ServeRequest {
            tp: Some(number(2)),
            batch: Some(number(3)),
            prompt: number(4),
            output: number(5),
            ..request(&model, &dgx)
        };
        let document = serve(&asked, &Physical::default()).unwrap();
        let found = &document.candidates[0];
        let predicted =
            if cells[6] == "first" { found.first_token_s } else { found.between_tokens_s }.unwrap();
        let measured: f64 = cells[7].parse().unwrap();
        let error = (predicted / measured - 1.0) * 100.0;
        println!("{line}: {predicted:.4} {error:+.0} %");
        errors.push((cells[6].to_string(), error));
    }
    let mean = |metric: &str| {
        let own: Vec<f64> = errors.iter().filter(|(name, _)| name == metric).map(|(_, e)| e.abs()).collect();
        own.iter().sum::<f64>() / own.len() as f64
    };
    println!("first token {:.1} %, between tokens {:.1} %", mean("first"), mean("between"));
    assert!(mean("between") < 10.0, "{}", mean("between"));
    assert!(mean("first") < 25.0, "{}", mean("first"));
}

#[test]
fn latencies_and_memory_bound_the_batch() {
    let (model, dgx) = (llama("13b"), machine("dgx-a100").unwrap());
    let free = serve(&request(&model, &dgx), &Physical::default()).unwrap();
    let best = &free.candidates[0];
    assert_eq!(free.chosen.as_deref(), Some(best.name.as_str()));
    assert_eq!(best.tp * best.replicas, 8);
    let tight =
        ServeRequest { between_tokens_s: Some(0.012), first_token_s: Some(2.0), ..request(&model, &dgx) };
    let tight = serve(&tight, &Physical::default()).unwrap();
    let chosen = &tight.candidates[0];
    assert!(chosen.between_last_tokens_s.unwrap() <= 0.012 && chosen.first_token_s.unwrap() <= 2.0);
    // One rank reads its weights for longer than that.
    assert!(chosen.tp > 1 && chosen.tokens_per_s < best.tokens_per_s, "{}", chosen.name);
    let refused = tight.candidates.iter().find(|one| one.tp == 1).unwrap();
    assert!(refused.rejected_by.as_ref().unwrap().starts_with("between tokens: "), "{refused:?}");
    // A latency that nothing reaches: the plan that is over it by the least is named.
    let hopeless = ServeRequest { between_tokens_s: Some(0.001), ..request(&model, &dgx) };
    let hopeless = serve(&hopeless, &Physical::default()).unwrap();
    let between = |one: &ServeCandidate| one.between_last_tokens_s.unwrap();
    let least = hopeless.candidates.iter().map(between).fold(f64::INFINITY, f64::min);
    assert_eq!((hopeless.chosen.as_deref(), between(hopeless.nearest().unwrap())), (None, least));
    // 70 billion parameters do not fit one device.
    let large = llama("70b");
    let document = serve(&request(&large, &dgx), &Physical::default()).unwrap();
    let one = document.candidates.iter().find(|one| one.tp == 1).unwrap();
    assert!(one.rejected_by.as_ref().unwrap().contains("weights is the largest part"), "{one:?}");
    for one in document.candidates.iter().filter(|one| one.rejected_by.is_none()) {
        assert!(one.memory_total_bytes <= one.memory_capacity_bytes);
        let terms: f64 = one.terms_s.values().sum();
        assert!((terms / one.between_tokens_s.unwrap() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn what_cannot_be_served_is_told() {
    let (model, dgx, wafer) = (llama("7b"), machine("dgx-a100").unwrap(), machine("cg1").unwrap());
    let refuse = |request: ServeRequest<'_>| serve(&request, &Physical::default()).unwrap_err();
    let long = refuse(ServeRequest { prompt: 4000, output: 97, ..request(&model, &dgx) });
    assert_eq!(long.to_string(), "output is 97, but must be from 1 to 96");
    assert!(matches!(refuse(ServeRequest { prompt: 0, ..request(&model, &dgx) }), PlanError::Size { .. }));
    assert!(matches!(refuse(request(&model, &wafer)), PlanError::Arithmetic { .. }));
    let pinned = refuse(ServeRequest { tp: Some(3), ..request(&model, &dgx) });
    assert_eq!(pinned.to_string(), "no plan has tp=3: tp divides the 8 devices of a node");
}
