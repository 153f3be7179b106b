//! The developer's tool: reads MLIR, runs a pipeline, prints MLIR.

fn main() -> std::process::ExitCode {
    lapidary_cli::opt_main()
}
