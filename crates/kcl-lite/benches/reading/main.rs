//! The cost of reading compared with the bare SDK: `cargo bench -p kcl-lite --bench reading`.
//!
//! A bare loop of `GetRecords` calls and a worker read the same stream in turn, each in its own process;
//! the table shows the worker's CPU time per record, records per second and peak memory as ratios to
//! those of the bare loop in the same round (the median over the rounds).
//!
//! ```text
//! canned      prepared replies, without a service or a socket, on paused time: measures only the work of
//!             the SDK and of this library
//! polling     local-aws in the benchmark process, HTTP on the loopback, real time: both readers keep to
//!             five calls and 2 MB per second and shard
//! fan-out     the same with one `SubscribeToShard` per shard
//! ```
//!
//! `-- --rounds 1` is faster, `-- --only canned` (or `polling`, `fan-out`) runs one part.

mod bare;
mod canned;
mod measure;
mod report;
mod served;
mod worker;

use std::env;
use std::io::Write as _;
use std::process::{Command, ExitCode};

use measure::{Cost, Load, Reader, Transport, Way};

/// The default number of rounds, in each of which both readers read everything.
const ROUNDS: usize = 5;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let result = match arguments.iter().position(|argument| argument == "--measure") {
        Some(at) => measure::child(&arguments[at + 1..]),
        None => compare(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("reading: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs every load with every reader and prints the table.
fn compare(arguments: &[String]) -> Result<()> {
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = option("--rounds").map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let only = option("--only");
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    say(&report::head(rounds));
    if is_wanted("canned") {
        for load in Load::canned() {
            row("canned", &load, &Transport::Canned, rounds)?;
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for (part, way) in [("polling", Way::Polling), ("fan-out", Way::FanOut)] {
        for load in Load::served().iter().filter(|_| is_wanted(part)) {
            let served = runtime.block_on(served::Served::start(load))?;
            row(part, load, &Transport::Served(served.endpoint_url(), way), rounds)?;
            runtime.block_on(served.shutdown());
        }
    }
    Ok(())
}

fn row(part: &str, load: &Load, transport: &Transport, rounds: usize) -> Result<()> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let bare_first = round % 2 == 0;
        let first = spawn(if bare_first { Reader::Bare } else { Reader::Worker }, load, transport)?;
        let second =
            spawn(if bare_first { Reader::Worker } else { Reader::Bare }, load, transport)?;
        pairs.push(if bare_first { (first, second) } else { (second, first) });
    }
    say(&report::row(part, load, &pairs));
    Ok(())
}

/// Runs one measurement in its own process, so that its peak memory is separate, too.
fn spawn(reader: Reader, load: &Load, transport: &Transport) -> Result<Cost> {
    let output = Command::new(env::current_exe()?)
        .arg("--measure")
        .args(measure::arguments(reader, load, transport))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!(
            "{reader:?} {load:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Cost::parse(&text)
}

/// Writes a line to stdout; ignores a closed pipe.
fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").ok();
}
