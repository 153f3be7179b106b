//! One file per verb.

mod accuracy;
mod check;
mod compile;
mod doctor;
mod explain;
mod inspect;
mod machines;
mod models;
mod plan;
mod simulate;
mod targets;

use crate::args::{Cli, Command, Global};
use crate::failure::{Exit, Failure};
use clap::CommandFactory;
use serde::Serialize;

/// Runs one verb.
///
/// # Errors
/// [`Failure`] with the exit code of the contract.
pub fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Compile(args) => compile::run(&args, global),
        Command::Plan(args) => plan::run(&args, global),
        Command::Explain(args) => explain::run(&args),
        Command::Accuracy(args) => accuracy::run(&args, global),
        Command::Simulate(args) => simulate::run(&args),
        Command::Models(verb) => models::run(verb),
        Command::Machines(verb) => machines::run(verb),
        Command::Check { model, json } => check::run(&model, json),
        Command::Inspect(args) => inspect::run(&args, global),
        Command::Targets => targets::run(),
        Command::Doctor => doctor::run(),
        Command::Schema { name } => schema(&name),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    clap_complete::generate(shell, &mut Cli::command(), "lapidary", &mut std::io::stdout());
    Ok(())
}

fn schema(name: &str) -> Result<(), Failure> {
    match name {
        "model" => print_json(&lapidary_models::model_schema()),
        _ => Err(Failure::new(Exit::Usage, format!("no schema is called `{name}`")).help("there is: model")),
    }
}

/// Prints a document to stdout.
fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Exit::Internal, format!("no JSON form: {error}")))?;
    println!("{text}");
    Ok(())
}
