//! The command `lapidary`.

/// Plans, proofs and simulations make many small things on all threads: a quarter of a simulation's time was the C library's
/// allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lapidary_cli::main()
}
