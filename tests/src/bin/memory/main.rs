//! `memory`: measures the resources that a worker process takes while its processors stall.
//!
//! local-aws is in this process and the worker in another one, so that the service's memory does
//! not count. Three runs: large replies against a budget, and one shard against many for the number
//! of threads. Exit code 1 if a bound does not hold.

mod consumer;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use clap::{Parser, Subcommand};
use consumer::Taken;
use e2e::process::Process;
use e2e::server::Aws;
use e2e::workshop::point;
use tokio::process::Command;

const MIB: u64 = 1 << 20;
/// The largest default record size: ten of them, with their keys, are a full reply.
const RECORD: usize = (1 << 20) - 64;
const RECORDS_PER_REPLY: usize = 10;
/// The longest time that a shard may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Ends a run that would otherwise never end.
const PATIENCE: Duration = Duration::from_secs(900);

const AFTER_HELP: &str = "\
Needs no account and no network.

Exit codes: 0 every bound holds, 1 one does not, 2 usage.";

/// Measure the memory and the threads of a worker whose processors stall
#[derive(Debug, Clone, Parser)]
#[command(name = "memory", version, max_term_width = 80, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,

    /// Shards with large replies
    #[arg(long, default_value_t = 200)]
    shards: usize,

    /// Replies of 10 MiB that each shard holds
    #[arg(long, default_value_t = 2)]
    replies: usize,

    /// The worker's memory budget, in MiB
    #[arg(long, default_value_t = 256)]
    budget: u64,

    /// How long each shard's first batch is held, in milliseconds
    #[arg(long, default_value_t = 4_000)]
    stall: u64,

    /// Shards whose first batch is held until all others are done
    #[arg(long, default_value_t = 10)]
    stuck: usize,

    /// Shards of the run that counts threads; 0 skips it
    #[arg(long, default_value_t = 2_000)]
    many: usize,
}

#[derive(Debug, Clone, Subcommand)]
enum Sub {
    /// A worker process; started by the run itself
    #[command(hide = true)]
    Consumer(consumer::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command.clone() {
        Some(Sub::Consumer(args)) => consumer::run(args).await,
        None => measure(&cli).await,
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Prints a line, unless stdout is closed.
fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

async fn measure(cli: &Cli) -> Result<ExitCode> {
    let large = run(cli, cli.shards, cli.replies * RECORDS_PER_REPLY).await?;
    let most = cli.budget * 13 / 10 + 64;
    let peak = large.peak_kib / 1024;
    let wait = large.longest_wait_ms;
    let expected = cli.shards * cli.replies * RECORDS_PER_REPLY;
    let mut rows = vec![
        row("peak memory, MiB", peak, most),
        row("longest wait of a shard, ms", wait, u64::try_from(LONGEST_WAIT.as_millis())?),
        row("records missing", expected.abs_diff(large.records) as u64, 0),
    ];
    if cli.many > 0 {
        let (one, many) = (run(cli, 1, 0).await?, run(cli, cli.many, 0).await?);
        rows.push(row(&format!("threads with {} shards", cli.many), many.threads, one.threads));
    }
    say(&format!(
        "{} shards, {} replies of 10 MiB each, a budget of {} MiB, batches held for {} ms, {} stuck",
        cli.shards, cli.replies, cli.budget, cli.stall, cli.stuck
    ));
    let mut holds = true;
    for (text, is_fine) in rows {
        say(&text);
        holds &= is_fine;
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(name: &str, measured: u64, most: u64) -> (String, bool) {
    let is_fine = measured <= most;
    let verdict = if is_fine { "" } else { "  TOO MUCH" };
    (format!("  {name:<32} {measured:>8}  at most {most:>8}{verdict}"), is_fine)
}

/// Runs one worker process on a new stream.
async fn run(cli: &Cli, shards: usize, records: usize) -> Result<Taken> {
    let aws = Aws::start().await?;
    aws.create_stream("memory", i32::try_from(shards)?).await?;
    if records > 0 {
        for (_, first_hash, _) in aws.open_shards("memory").await? {
            for _ in 0..records / RECORDS_PER_REPLY {
                put_reply(&aws, first_hash).await?;
            }
        }
    }
    let stuck = if records == 0 { 0 } else { cli.stuck };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["consumer", "--application", "memory", "--stream", "memory"]);
    for (name, value) in [
        ("--shards", shards as u64),
        ("--records", records as u64),
        ("--budget", cli.budget * MIB),
        ("--stall-ms", cli.stall),
        ("--stuck", stuck as u64),
    ] {
        command.arg(name).arg(value.to_string());
    }
    point(&mut command, &aws.endpoint_url(), "worker");
    command.env("AWS_REGION", local_aws::REGION);
    let mut process = Process::start("the consumer", command)?;
    process.ended_within(PATIENCE).await?;
    let transcript = process.transcript();
    let printed = String::from_utf8_lossy(&transcript.stdout);
    let taken = printed.lines().last().and_then(|line| serde_json::from_str(line).ok());
    taken.with_context(|| format!("the consumer has failed: {printed}{}", transcript.stderr))
}

/// Stores as much in a shard as one reply can contain.
async fn put_reply(aws: &Aws, hash: u128) -> Result<()> {
    let entry = PutRecordsRequestEntry::builder().partition_key("key");
    // The service stores repeated payloads once.
    let entry = entry.explicit_hash_key(hash.to_string()).data(Blob::new(vec![b'm'; RECORD]));
    let entries = vec![entry.build()?; RECORDS_PER_REPLY];
    let put = aws.kinesis.put_records().stream_name("memory").set_records(Some(entries));
    let failed = put.send().await?.failed_record_count.unwrap_or(0);
    anyhow::ensure!(failed == 0, "{failed} records were refused");
    Ok(())
}
