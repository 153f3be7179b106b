//! One file per verb.

mod accuracy;
mod bench;
mod calibrate;
mod check;
mod compile;
mod doctor;
mod explain;
mod init;
mod inspect;
mod machines;
mod memorization;
mod models;
mod plan;
mod report;
mod run;
mod serve;
mod simulate;
mod targets;
mod verify;

pub use bench::What;

use crate::args::{Cli, Command, Device, Global};
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
        Command::Report(args) => report::run(&args, global),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Accuracy(args) => accuracy::run(&args, global),
        Command::Simulate(args) => simulate::run(&args, global),
        Command::Run(args) => run::run(&args, global),
        Command::Memorization(args) => memorization::run(&args, global),
        Command::Bench(args) => bench::run(&args, global),
        Command::Verify(args) => verify::run(&args, global),
        Command::Models(verb) => models::run(verb, global),
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

/// Threads to use.
pub(crate) fn jobs(global: &Global) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    global.jobs.map_or_else(cores, usize::from)
}

/// Refuses devices that only `run` and `verify` know.
fn only_host(device: Device) -> Result<(), Failure> {
    let refused = |what: &str| {
        let what = format!("--device {}: {what}", device.name());
        Err(Failure::new(Exit::Unsupported, what).help("use --device cpu"))
    };
    match device {
        Device::Cpu => Ok(()),
        Device::Reference => refused("it is slow, and for `verify` only"),
        Device::Cuda | Device::WaferSim => refused("only `run` and `verify` know it"),
    }
}

/// Prints a document to stdout.
fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Exit::Internal, format!("no JSON form: {error}")))?;
    println!("{text}");
    Ok(())
}
