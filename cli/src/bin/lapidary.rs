//! The command `lapidary`.

/// Plans, proofs and simulations make many small things on all threads, which the C library's allocator makes wait for each
/// other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lapidary_cli::main()
}
