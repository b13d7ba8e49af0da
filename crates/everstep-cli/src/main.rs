//! The `everstep` binary.

use std::process::ExitCode;

/// Messages, rows and tasks are small and short-lived; this allocator is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    everstep_cli::main(std::env::args_os())
}
