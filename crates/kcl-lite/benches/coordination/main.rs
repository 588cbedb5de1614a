//! The coordination benchmark: `cargo bench -p kcl-lite --bench coordination`.
//!
//! Runs real workers on paused time, with in-memory services that reply after 5 to 10 ms. It measures the
//! protocol, not the machine, so a run prints the same table everywhere. The last column is the 99th
//! percentile divided by the target.
//!
//! ```text
//! scenarios   the measurements
//! world       workers, records, and the log
//! ports       lease table and stream, with latency and polling
//! report      rows and targets
//! ```
//!
//! `-- --runs 20` is faster. Exits with code 1 if a target is missed.

mod ports;
mod report;
mod scenarios;
mod world;

use std::env;
use std::io::Write as _;
use std::process::ExitCode;

use crate::report::Row;

/// The default number of runs of the scenarios with few shards.
const RUNS: u64 = 200;
/// The divisor of that number for scenarios with 1,000 shards, which take a hundred times as long as ones
/// with ten.
const PER_LARGE_RUN: u64 = 40;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().collect();
    let runs = arguments.iter().position(|argument| argument == "--runs");
    let runs = runs.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(RUNS);
    let [least, most] = [ports::LATENCY_MS.start(), ports::LATENCY_MS.end()];
    say(&format!("virtual time, {runs} runs; calls take {least} to {most} ms, leases 10 s\n"));
    say(&report::head());
    let mut missed = 0;
    let mut print = |rows: Vec<Row>| {
        for row in rows {
            missed += usize::from(row.is_missed());
            say(&row.to_string());
        }
    };
    print(scenarios::start(runs));
    print(scenarios::takeover(runs));
    print(scenarios::reshard(runs));
    print(scenarios::join(runs.div_ceil(PER_LARGE_RUN)));
    print(scenarios::cost());
    print(scenarios::quiet_hour());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes a line to stdout; ignores a closed pipe.
fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").ok();
}
