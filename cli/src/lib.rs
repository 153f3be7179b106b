//! The outer door: files, environment, clock, colours and progress bars. Everything else is told what to do.

mod args;
mod artifact;
mod commands;
mod failure;
mod gpu;
mod host;
mod input;
mod inspection;
mod interrupt;
pub mod map;
mod memory;
mod opt;
mod output;
mod pieces;
mod progress;
mod ranks;
mod show;
mod text;
mod toolchain;
mod training_step;
mod wafer;
mod wafer_artifact;
mod weights;

use args::{Cli, Color, Global};
use clap::Parser;
use failure::{Exit, Failure};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Runs the command `lapidary` and says how it ended.
pub fn main() -> ExitCode {
    leave_quietly_when_nobody_reads();
    let cli = Cli::parse();
    set_up(&cli.global);
    ended(std::panic::catch_unwind(|| commands::run(cli.command, &cli.global)))
}

/// Runs the command `lapidary-opt` and says how it ended.
pub fn opt_main() -> ExitCode {
    leave_quietly_when_nobody_reads();
    let args = opt::Opt::parse();
    ended(std::panic::catch_unwind(|| opt::run(&args)))
}

/// Exit code of a process whose reader has gone away: 128 + SIGPIPE, as shells report it.
const NOBODY_READS: i32 = 141;

/// `lapidary plan .. | head` ends without a word: the standard library would panic on the closed pipe.
fn leave_quietly_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(NOBODY_READS);
        }
        usual(info);
    }));
}

fn ended(outcome: std::thread::Result<Result<(), Failure>>) -> ExitCode {
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            failure.print();
            ExitCode::from(failure.exit as u8)
        }
        // The panic's own message is on stderr already.
        Err(_) => ExitCode::from(Exit::Internal as u8),
    }
}

fn set_up(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colours = colours(global.color);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    // Setting the hook fails only when one is set already, which leaves miette's default in place.
    let _ = miette::set_hook(Box::new(move |_| {
        let theme = match colours {
            true => miette::GraphicalTheme::unicode(),
            false => miette::GraphicalTheme::unicode_nocolor(),
        };
        Box::new(miette::GraphicalReportHandler::new_themed(theme).with_width(110))
    }));
}

/// Whether stderr takes colours.
fn colours(choice: Color) -> bool {
    match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal(),
    }
}
