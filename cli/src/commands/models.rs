//! `lapidary models`: what is built in, and what a model file says.

use super::{init, print_json};
use crate::args::{Global, Models};
use crate::failure::{Exit, Failure};
use crate::{input, show};
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use serde::Serialize;

/// The document of `models show --json`.
#[derive(Serialize)]
struct Shown<'a> {
    schema: &'static str,
    version: u32,
    name: &'a str,
    parameters: u64,
    layers: u64,
    d_model: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    d_ff: u64,
    vocab: u64,
    max_seq: u64,
    weight_bytes: u64,
    forward_flops_per_token: u64,
    spec: &'a ModelSpec,
}

/// Runs the verb.
pub fn run(verb: Models, global: &Global) -> Result<(), Failure> {
    match verb {
        Models::List { json: true } => {
            let specs = built_in()?;
            let shown = specs.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
            print_json(&serde_json::json!({"schema": "lapidary/models", "version": 1, "models": shown}))
        }
        Models::List { json: false } => list(),
        Models::Show { name, json } => {
            let spec = input::model(&name)?.spec;
            if json { print_json(&shown(&spec)?) } else { print(&spec) }
        }
        Models::Init(args) => init::run(&args, global),
    }
}

fn built_in() -> Result<Vec<ModelSpec>, Failure> {
    lapidary_models::builtin_names()
        .map(|name| {
            lapidary_models::builtin(name)
                .map_err(|error| Failure::new(Exit::Internal, format!("built-in {name}: {error}")))
        })
        .collect()
}

fn list() -> Result<(), Failure> {
    let specs = built_in()?;
    let rows = specs.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    let header = ["name", "parameters", "layers", "d_model", "heads", "kv", "d_ff", "vocab", "max_seq"];
    println!("{}", show::table(&header, &[1, 2, 3, 4, 5, 6, 7, 8], rows));
    Ok(())
}

fn row(spec: &ModelSpec) -> Result<Vec<String>, Failure> {
    let numbers =
        [spec.n_layers, spec.d_model, spec.n_heads, spec.n_kv_heads, spec.d_ff, spec.vocab, spec.max_seq];
    let mut row = vec![spec.name.clone(), show::count(spec.parameters())];
    row.extend(numbers.iter().map(u64::to_string));
    Ok(row)
}

fn print(spec: &ModelSpec) -> Result<(), Failure> {
    println!("# {}: {} parameters", spec.name, show::count(spec.parameters()));
    println!("# {} a token at full length\n", show::flops(flops_per_token(spec)?));
    print!("{}", lapidary_models::to_toml(spec));
    Ok(())
}

fn shown(spec: &ModelSpec) -> Result<Shown<'_>, Failure> {
    let parameters = spec.parameters();
    Ok(Shown {
        schema: "lapidary/model",
        version: 1,
        name: &spec.name,
        parameters,
        layers: spec.n_layers,
        d_model: spec.d_model,
        heads: spec.n_heads,
        kv_heads: spec.n_kv_heads,
        head_dim: spec.head_dim,
        d_ff: spec.d_ff,
        vocab: spec.vocab,
        max_seq: spec.max_seq,
        weight_bytes: parameters * spec.dtype.compute.bytes(),
        forward_flops_per_token: flops_per_token(spec)?,
        spec,
    })
}

/// Operations of a token at full length; each expert that it goes to counts.
fn flops_per_token(spec: &ModelSpec) -> Result<u64, Failure> {
    let dims = Dims { batch: 1, seq: spec.max_seq, cached: 0 };
    let graph = Graph::build(&spec.dense(), Mode::Forward, dims)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", spec.name)))?;
    let more = spec.experts.map_or(0, |experts| {
        let layers = spec.n_layers / experts.every;
        2 * layers * ((experts.top_k - 1) * spec.mlp_parameters() + experts.count * spec.d_model)
    });
    Ok(graph.work().flops() / graph.dims.tokens() + more)
}
