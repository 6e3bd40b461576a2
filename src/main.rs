//! `godseye`: arguments in, an exit code out. What happens in between is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use godseye::cli::{Cli, run};

// Batches are allocated on one thread and freed on another all day long, which glibc's allocator
// answers with lock contention and memory that never comes back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run(Cli::parse())
}
