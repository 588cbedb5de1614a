//! How fast workers coordinate: `cargo bench -p kcl-lite --bench coordination`.
//!
//! The real worker on paused time, with services in memory that answer after 5 to 10 ms: what is
//! measured is the protocol, not the machine, and a run prints the same table everywhere. The last
//! column is the 99th percentile over the target.
//!
//! ```text
//! scenarios   what is measured
//! world       workers, records, and everything that happened
//! ports       lease table and stream, with latency and polling
//! report      rows and targets
//! ```
//!
//! `-- --runs 20` is quicker. Exit code 1 when a target is missed.

mod ports;
mod report;
mod scenarios;
mod world;

use std::env;
use std::io::Write as _;
use std::process::ExitCode;

use crate::report::Row;

/// Runs of the scenarios with few shards.
const RUNS: u64 = 200;
/// A run with 1,000 shards takes a hundred times as long as one with ten.
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

/// A line on stdout; a reader that leaves misses the rest.
fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").ok();
}
