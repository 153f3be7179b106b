//! `lapidary plan --serve`: the ranked table of inference plans, and the document.

use super::plan::refused;
use super::print_json;
use crate::args::Plan;
use crate::failure::{Exit, Failure};
use crate::{output, show};
use lapidary_hardware::HardwareSpec;
use lapidary_models::ModelSpec;
use lapidary_planner::serve::{ServeCandidate, ServeDocument, ServeRequest, serve};
use lapidary_planner::{Physical, Pins};

/// Runs the verb. No plan that keeps to the latencies and fits is exit 4; the table is printed all the same.
pub fn run(args: &Plan, model: &ModelSpec, machine: &HardwareSpec, prices: &Physical) -> Result<(), Failure> {
    let pins = Pins::parse(&args.pin.join(",")).map_err(refused)?;
    if args.pin.iter().any(|pin| !pin.trim().starts_with("tp=")) {
        return Err(Failure::new(Exit::Usage, "--serve decides tp and the batch; only tp can be pinned"));
    }
    let seconds = |milliseconds: Option<f64>| milliseconds.map(|value| value * 1e-3);
    let request = ServeRequest {
        model,
        machine,
        devices: args.devices,
        prompt: args.prompt_tokens,
        output: args.output_tokens,
        first_token_s: seconds(args.first_token_ms),
        between_tokens_s: seconds(args.between_tokens_ms),
        tp: pins.get("tp").and_then(|tp| tp.parse().ok()),
        batch: None,
    };
    let document = serve(&request, prices).map_err(refused)?;
    if let Some(path) = &args.output {
        let text = serde_json::to_string_pretty(&document);
        let text = text.map_err(|error| Failure::new(Exit::Internal, format!("plan: {error}")))?;
        output::file(path, &(text + "\n"))?;
    }
    match args.json {
        true => print_json(&document)?,
        false => print(&document, args.top),
    }
    match (&document.chosen, document.nearest()) {
        (None, Some(nearest)) => {
            let reason = nearest.rejected_by.as_deref().unwrap_or_default();
            Err(Failure::new(
                Exit::DoesNotFit,
                format!("no plan stands; nearest is {}: {reason}", nearest.name),
            ))
        }
        _ => Ok(()),
    }
}

fn print(document: &ServeDocument, top: usize) {
    let asked = &document.inputs;
    println!(
        "{} on {}: {} x {}; {} tokens behind prompts of {}\n",
        asked.model, asked.machine, asked.devices, asked.device, asked.output, asked.prompt
    );
    let header = ["plan", "first token", "between", "last ones", "tokens/s", "memory", "bound by"];
    let standing = document.candidates.iter().filter(|one| one.rejected_by.is_none());
    println!("{}", show::table(&header, &[1, 2, 3, 4, 5], standing.take(top).map(row)));
    for one in document.candidates.iter().filter(|one| one.rejected_by.is_some()) {
        println!("  ✗ {}: {}", one.name, one.rejected_by.as_deref().unwrap_or_default());
    }
}

fn row(one: &ServeCandidate) -> Vec<String> {
    let time = |seconds: Option<f64>| seconds.map(show::seconds).unwrap_or_default();
    vec![
        one.name.clone(),
        time(one.first_token_s),
        time(one.between_tokens_s),
        time(one.between_last_tokens_s),
        one.tokens_per_s.map(|rate| show::count(rate.round() as u64)).unwrap_or_default(),
        format!("{} of {}", show::bytes(one.memory_total_bytes), show::bytes(one.memory_capacity_bytes)),
        one.bound_by.clone().unwrap_or_default(),
    ]
}
