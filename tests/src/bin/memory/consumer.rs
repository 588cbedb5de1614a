//! `memory consumer`: a worker process whose processors stall, and the resources that it takes.
//!
//! Each shard's first batch is held for a while; those of the last shards are held until all others
//! are done. Exits when every record was processed, and prints a [`Taken`]. Never judges.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kcl_lite::{Batch, BoxError, InitialPosition, RecordProcessor, Settings, ShardContext, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// The arguments of a consumer process.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) application: String,
    #[arg(long)]
    pub(crate) stream: String,
    #[arg(long)]
    pub(crate) shards: usize,
    /// The number of records in each shard.
    #[arg(long)]
    pub(crate) records: usize,
    #[arg(long)]
    pub(crate) budget: u64,
    #[arg(long)]
    pub(crate) stall_ms: u64,
    #[arg(long)]
    pub(crate) stuck: usize,
}

/// The resources that a consumer process has taken.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// The peak of the resident memory.
    pub(crate) peak_kib: u64,
    /// The most threads at the start of a shard or batch.
    pub(crate) threads: u64,
    pub(crate) records: usize,
    /// The longest time that a shard waited for its first batch, or for its next one.
    pub(crate) longest_wait_ms: u64,
}

/// The counts of all processors together.
#[derive(Debug, Default)]
struct Tally {
    finished: usize,
    records: usize,
    threads: u64,
    longest_wait: Duration,
}

/// Runs until every record of every shard was processed.
///
/// # Errors
///
/// The worker does not start, or has failed.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let settings = Settings {
        initial_position: InitialPosition::TrimHorizon,
        memory_budget: args.budget,
        // Without records the run only measures the shards themselves.
        poll_interval: Duration::from_secs(if args.records == 0 { 60 } else { 1 }),
        ..Settings::default()
    };
    let worker = Worker::builder(&args.application, &args.stream).settings(settings);
    let worker = worker.build().await?;
    let (tally, mut tallied) = watch::channel(Tally::default());
    let reported = args.clone();
    let tally = Arc::new(tally);
    let factory = move |shard: &ShardContext| {
        let number = shard.shard_id.as_str().trim_start_matches("shardId-").parse();
        Stalls {
            is_stuck: number.is_ok_and(|number: usize| number >= reported.shards - reported.stuck),
            args: reported.clone(),
            tally: Arc::clone(&tally),
            tallied: tally.subscribe(),
            records: 0,
            since: Instant::now(),
        }
    };
    let done = async {
        let is_done = |tally: &Tally| tally.finished == args.shards;
        // The sender lives as long as the worker.
        tallied.wait_for(is_done).await.map(drop).ok();
    };
    worker.run_until(factory, done).await?;
    let tally = tallied.borrow();
    let taken = Taken {
        peak_kib: of_this_process("VmHWM")?,
        threads: tally.threads,
        records: tally.records,
        longest_wait_ms: u64::try_from(tally.longest_wait.as_millis())?,
    };
    crate::say(&serde_json::to_string(&taken)?);
    Ok(ExitCode::SUCCESS)
}

/// Returns a number from the kernel's status of this process.
fn of_this_process(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("this is not Linux")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("the kernel reports no {name}"))?.parse()?)
}

/// A processor that stalls.
struct Stalls {
    args: Args,
    is_stuck: bool,
    tally: Arc<watch::Sender<Tally>>,
    tallied: watch::Receiver<Tally>,
    records: usize,
    /// Since when it has waited for a batch.
    since: Instant,
}

impl Stalls {
    fn count(&self, change: impl FnOnce(&mut Tally)) -> Result<(), BoxError> {
        let threads = of_this_process("Threads")?;
        self.tally.send_modify(|tally| {
            tally.threads = tally.threads.max(threads);
            change(tally);
        });
        Ok(())
    }

    async fn stall(&mut self) {
        if self.is_stuck {
            let others = self.args.shards - self.args.stuck;
            self.tallied.wait_for(|tally| tally.finished >= others).await.map(drop).ok();
        } else {
            sleep(Duration::from_millis(self.args.stall_ms)).await;
        }
    }
}

impl RecordProcessor for Stalls {
    async fn initialize(&mut self, _shard: &ShardContext) -> Result<(), BoxError> {
        self.since = Instant::now();
        let is_finished = self.args.records == 0;
        self.count(|tally| {
            tally.finished += usize::from(is_finished);
        })
    }

    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        let waited = self.since.elapsed();
        if self.records == 0 {
            self.stall().await;
        }
        let records = batch.records().len();
        self.records += records;
        let is_finished = self.records == self.args.records;
        self.count(|tally| {
            tally.longest_wait = tally.longest_wait.max(waited);
            tally.records += records;
            tally.finished += usize::from(is_finished);
        })?;
        self.since = Instant::now();
        Ok(())
    }
}
