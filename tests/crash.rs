//! SIGKILL at any moment, under load: no acknowledged row is lost and none is there twice (I1, I3).
//!
//! A real process is driven over real OTLP, killed while it receives, flushes, merges or replays, and started again
//! on what it left. `GODSEYE_CRASH_CYCLES` says how often (20), `GODSEYE_CRASH_SEED` which moments. With the feature
//! `failpoints`, it also dies exactly at each fail point. Not here: power cuts, which take unsynced writes with them
//! (simulated in the store's own tests), and faults that do not kill (`faults.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what a run did, for whoever reads its output")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use common::oracle::{Load, Sending, Sent, check_ledger};
use common::{Server, Setup, came};
use fixtures::load::Protocol;
use fixtures::rng::Rng;

/// Flushes every second or megabyte and merges as soon as there are two segments, so that every cycle has both.
const RESTLESS: &str = "
storage:
  wal: { segment_bytes: 1MiB, min_free_bytes: 16MiB }
  memtable: { flush_bytes: 1MiB, flush_interval: 1s }
  compaction: { interval: 1s, min_segments: 2, target_bytes: 8MiB }
";

/// Cycles by default: the fewest the project promises.
const CYCLES: u64 = 20;

/// All runs and the ledger are checked every so many cycles, and at the end.
const CHECK_ALL_EVERY: u64 = 5;

/// A moment that does not come is not waited for longer than this; the kill comes all the same.
const MOMENT_WITHIN: Duration = Duration::from_secs(6);

/// When the process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After so many acknowledgements.
    Acks(usize),
    /// When so many new segments have appeared: the next thing is the truncation of the log.
    Flush(usize),
    /// When a segment has gone, replaced by a merge.
    Merge,
    /// While a segment is being written.
    Writing,
    /// So long after the start of the load.
    After(Duration),
}

impl Moment {
    /// The moment of a cycle. Kinds take turns, so that few cycles have them all.
    fn of(cycle: u64, rng: &mut Rng) -> Self {
        match cycle % 5 {
            0 => Self::Acks(rng.between(1, 600) as usize),
            1 => Self::Flush(rng.between(1, 3) as usize),
            2 => Self::Merge,
            3 => Self::Writing,
            _ => Self::After(Duration::from_millis(rng.between(0, 2_500))),
        }
    }

    /// Waits for the moment; tells whether it came.
    fn wait(self, server: &Server, load: &Load) -> bool {
        let before = segments(&server.data_dir());
        if let Self::After(time) = self {
            common::pause(time);
            return true;
        }
        came(MOMENT_WITHIN, || {
            let now = segments(&server.data_dir());
            let came = match self {
                Self::Acks(acks) => load.acked() >= acks,
                Self::Flush(count) => now.finished.difference(&before.finished).count() >= count,
                Self::Merge => before.finished.difference(&now.finished).next().is_some(),
                Self::Writing => now.unfinished > 0,
                Self::After(_) => true,
            };
            came.then_some(())
        })
        .is_some()
    }
}

/// The files of the segments.
#[derive(Debug, Default)]
struct Segments {
    finished: BTreeSet<String>,
    unfinished: usize,
}

fn segments(data_dir: &Path) -> Segments {
    let mut found = Segments::default();
    let mut folders = vec![data_dir.join("segments")];
    while let Some(folder) = folders.pop() {
        // A folder, or a file in it, may go while it is looked at.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                found.finished.insert(path.to_string_lossy().into_owned());
            } else {
                found.unfinished += 1;
            }
        }
    }
    found
}

fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: expected a whole number, found {text:?}")),
        Err(_) => default,
    }
}

#[test]
fn kill_9_at_any_moment_loses_nothing_and_doubles_nothing() {
    let cycles = number_from_env("GODSEYE_CRASH_CYCLES", CYCLES);
    let seed = number_from_env("GODSEYE_CRASH_SEED", 1);
    let mut rng = Rng::of(&[seed]);
    let mut server = Setup::new().config(RESTLESS).start();
    let mut runs: Vec<Sent> = Vec::new();
    let mut came_by_kind = [0_u64; 5];
    for cycle in 0..cycles {
        let moment = Moment::of(cycle, &mut rng);
        let protocol = *rng.pick(&[Protocol::Grpc, Protocol::Grpc, Protocol::HttpProtobuf]);
        let load = Sending { protocol, ..Sending::new(&format!("cycle-{cycle}")) }.start(&server);
        let came = moment.wait(&server, &load);
        server.kill();
        let sent = load.stop();
        came_by_kind[(cycle % 5) as usize] += u64::from(came);
        eprintln!(
            "seed {seed} cycle {cycle}: killed at {moment:?}{}, {protocol:?}: {} acked, {} without an answer",
            if came { "" } else { " (did not come)" },
            sent.acked(),
            sent.unknown()
        );
        runs.push(sent);
        // A start that is killed too, while it replays.
        while rng.chance(0.3) {
            server.setup().start_and_kill(Duration::from_millis(rng.between(1, 150)));
        }
        server.restart();
        runs[runs.len() - 1].check(&server, &format!("seed {seed}, after cycle {cycle}"));
        if (cycle + 1) % CHECK_ALL_EVERY == 0 || cycle + 1 == cycles {
            for run in &runs {
                run.check(&server, &format!("seed {seed}, all runs after cycle {cycle}"));
            }
            check_ledger(&server, &format!("seed {seed}, after cycle {cycle}"));
        }
    }
    let acked: usize = runs.iter().map(Sent::acked).sum();
    let unknown: usize = runs.iter().map(Sent::unknown).sum();
    eprintln!(
        "{cycles} cycles, {acked} batches acked, {unknown} without an answer, moments that came: {came_by_kind:?}"
    );
    assert!(acked > 0 && unknown > 0, "the load was running when the process was killed");
    if cycles >= CYCLES {
        assert!(came_by_kind.iter().all(|came| *came > 0), "some kind of moment never came: {came_by_kind:?}");
    }
}

/// At fail points, the process must die as if it had been killed: at once, with nothing tidied up.
#[cfg(feature = "failpoints")]
mod fail_points {
    use super::*;

    /// How long a point may take to be reached: two flushes and a merge on a busy machine.
    const REACHED_WITHIN: Duration = Duration::from_secs(30);

    /// The fail points of the store at which a process can die, from its sources: those without an action of their
    /// own. New ones are tested without being listed anywhere.
    fn points() -> BTreeSet<String> {
        let mut points = BTreeSet::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("ingest/store/src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let text = std::fs::read_to_string(&path).unwrap();
                    for rest in text.split("fail_point!(\"").skip(1) {
                        let (name, rest) = rest.split_once('"').unwrap();
                        // A server that keeps its own segments has no sink to die before.
                        if rest.starts_with(')') && !name.ends_with("_before_sink") {
                            points.insert(name.to_owned());
                        }
                    }
                }
            }
        }
        points
    }

    /// Whether the process died at the point.
    fn died_at(point: &str, log: &[String]) -> bool {
        log.iter().any(|line| line.contains(&format!("failpoint {point} panic")))
    }

    #[test]
    fn death_at_every_fail_point_loses_nothing_and_doubles_nothing() {
        let points = points();
        assert!(points.len() >= 12, "the log and the store have fail points, found {points:?}");
        let seed = number_from_env("GODSEYE_CRASH_SEED", 1);
        let rounds = number_from_env("GODSEYE_CRASH_CYCLES", CYCLES).div_ceil(CYCLES);
        let mut rng = Rng::of(&[seed, 1]);
        // One directory for all points: each finds what the ones before left behind.
        let mut server = Setup::new().config(RESTLESS).start();
        let mut runs: Vec<Sent> = Vec::new();
        for round in 0..rounds {
            for point in &points {
                let pass = rng.below(4);
                server.kill();
                server.setup().set_env("FAILPOINTS", Some(&format!("{point}={pass}*off->panic")));
                // A start may reach the point too.
                let log = match server.try_restart() {
                    Err(ended) => ended.log,
                    Ok(()) => {
                        let load = Sending::new(&format!("{point}-{round}")).start(&server);
                        let died = came(REACHED_WITHIN, || died_at(point, &server.log()).then_some(()));
                        let log = server.log();
                        if died.is_some() {
                            // The panic is not to end in a process that limps on.
                            server.wait();
                        } else {
                            server.kill();
                        }
                        runs.push(load.stop());
                        log
                    }
                };
                assert!(
                    died_at(point, &log),
                    "fail point `{point}` (pass {pass}) was not reached; is FAILPOINTS read?"
                );
                server.setup().set_env("FAILPOINTS", None);
                server.restart();
                if let Some(run) = runs.last() {
                    run.check(&server, &format!("seed {seed}, after death at {point}"));
                }
                check_ledger(&server, &format!("seed {seed}, after death at {point}"));
            }
        }
        for run in &runs {
            run.check(&server, "at the end");
        }
        assert!(runs.iter().map(Sent::acked).sum::<usize>() > 0, "something was acknowledged before the deaths");
    }
}
