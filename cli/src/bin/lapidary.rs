//! The command `lapidary`.

fn main() -> std::process::ExitCode {
    lapidary_cli::main()
}
