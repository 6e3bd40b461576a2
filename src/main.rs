//! `godseye`: arguments in, an exit code out. What happens in between is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use godseye::cli::{Cli, run};

// Batches are allocated on one thread and freed on another all day long, which glibc's allocator
// answers with lock contention and memory that never comes back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = crash_points();
    run(Cli::parse())
}

/// Arms the crash points that `FAILPOINTS` names. A crash point panics, and a panic there is to be
/// the death of the process, as `kill -9` would be.
#[cfg(feature = "failpoints")]
fn crash_points() -> fail::FailScenario<'static> {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    fail::FailScenario::setup()
}
