//! `chaos`: kills, pauses and stops worker processes during resharding, and proves that no record
//! was lost and no shard had two owners.
//!
//! local-aws is a process, and so is every worker; this one writes numbered records, follows a
//! schedule drawn from the seed, and at the end judges by the workers' journals. Exit code 1 on any
//! violation, with its timeline.
//!
//! ```text
//! main        arguments, the run from start to quiet end
//! schedule    the acts and their times                   pure
//! stage       the processes and the services
//! worker      a worker process (`chaos worker`)
//! journal     the journal of a worker
//! evidence    journals, stream and table, put together   pure
//! checks      the promises                               pure
//! summary     the table at the end, and the timeline
//! ```

mod checks;
mod evidence;
mod journal;
mod schedule;
mod stage;
mod summary;
mod worker;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use e2e::binaries::Binaries;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::evidence::{Evidence, StoredShard};
use crate::schedule::{Planned, SLOTS};
use crate::stage::{Log, Sample, Services, Slot, WorkerCommand, Written};

/// How long the workers may take after the schedule until every record is checkpointed. An idle
/// machine takes a few lease durations.
const PATIENCE: Duration = Duration::from_secs(120);

const AFTER_HELP: &str = "\
Needs no account and no network. The same seed gives the same schedule; its
execution differs from run to run.

Exit codes: 0 no violation, 1 a violation, 2 usage.";

/// Kill, pause, stop and restart workers during resharding, and lose no record
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos", version, max_term_width = 80, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Random seed of the schedule [default: random]
    #[arg(long)]
    seed: Option<u64>,

    /// Length of the schedule in minutes [default: 10]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: Option<u64>,

    /// Length of the schedule in seconds
    #[arg(long, conflicts_with = "minutes", value_parser = clap::value_parser!(u64).range(10..))]
    seconds: Option<u64>,

    /// Lease duration in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    lease: u64,

    /// Read by enhanced fan-out instead of polling
    #[arg(long)]
    fan_out: bool,

    /// Only reshard, minutes apart, with a processor that is slow now and then; kill, pause and stop
    /// no worker; no record may be repeated
    #[arg(long)]
    calm: bool,

    /// Keep the workers' journals in this directory [default: only on a violation]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// A worker process of a run
    #[command(hide = true)]
    Worker(worker::Args),
}

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) lease: Duration,
    /// The number of partition keys, each with one record per interval.
    pub(crate) keys: u32,
    pub(crate) interval: Duration,
    pub(crate) fan_out: bool,
    /// Whether no worker is killed, paused or stopped.
    pub(crate) calm: bool,
}

/// Prints a line on stdout. A closed stdout does not stop the run, whose verdict is the exit code.
pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").ok();
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the system grants threads, a timer and an event queue");
    let done = runtime.block_on(async {
        match cli.command {
            Some(Command::Worker(args)) => worker::run(args).await,
            None => Box::pin(run(&cli)).await,
        }
    });
    done.unwrap_or_else(|error| {
        writeln!(std::io::stderr().lock(), "error: {error:#}").ok();
        ExitCode::FAILURE
    })
}

async fn run(cli: &Cli) -> Result<ExitCode> {
    let minutes = cli.minutes.unwrap_or(10) * 60;
    let settings = Settings {
        seed: cli.seed.unwrap_or_else(|| fastrand::u64(..10_000)),
        length: Duration::from_secs(cli.seconds.unwrap_or(minutes)),
        lease: Duration::from_secs(cli.lease),
        keys: 12,
        interval: Duration::from_millis(200),
        fan_out: cli.fan_out,
        calm: cli.calm,
    };
    let plan = if settings.calm {
        schedule::calm(settings.seed, settings.length)
    } else {
        schedule::plan(settings.seed, settings.length, settings.lease)
    };
    announce(&settings, &plan);
    let temporary = tempfile::tempdir()?;
    let directory = match &cli.keep {
        Some(directory) => directory.clone(),
        None => temporary.path().to_owned(),
    };
    std::fs::create_dir_all(&directory)?;
    let log = Log::default();
    let evidence = Box::pin(play(settings, plan, &directory, &log)).await?;
    let findings = checks::findings(&evidence);
    summary::print(&evidence, &findings);
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    summary::print_timelines(&evidence, &findings);
    if cli.keep.is_none() {
        say(&format!("what the workers have written down: {}", temporary.keep().display()));
    }
    Ok(ExitCode::FAILURE)
}

fn announce(settings: &Settings, plan: &[Planned]) {
    let Settings { seed, length, lease, .. } = settings;
    let (length, lease) = (length.as_secs(), lease.as_secs());
    say(&format!("seed {seed}, {length} s, {SLOTS} workers, leases of {lease} s; the schedule:"));
    for planned in plan {
        say(&planned.to_string());
    }
    say("");
}

/// Executes the whole run: the schedule, a quiet time until everything is processed, and a graceful
/// shutdown.
async fn play(
    settings: Settings,
    plan: Vec<Planned>,
    directory: &Path,
    log: &Log,
) -> Result<Evidence> {
    let services = Services::start(&Binaries::built()?.path("local-aws"), 3).await?;
    let clients = services.clients.clone();
    let samples = Arc::new(Mutex::new(Vec::new()));
    let mut sampler = JoinSet::new();
    sampler.spawn(stage::sample(clients.clone(), Arc::clone(&samples)));

    let command = WorkerCommand {
        executable: std::env::current_exe().context("this program's own path is not known")?,
        endpoint: services.endpoint.clone(),
        directory: directory.to_owned(),
        settings,
    };
    let (mut slots, written) = storm(settings, plan, &services, command, log).await?;
    log.note("quiet: no writes, no faults".to_owned());
    let quiet = journal::now();
    let stored = stored(&services, &written).await?;
    if !settled(&services, &stored).await {
        log.fail(format!("not every record is checkpointed after {PATIENCE:?} of quiet"));
    }
    log.note(format!("settled after {:.1} s", (journal::now() - quiet).as_secs_f64()));
    for slot in &mut slots {
        slot.look();
        slot.stop().await?;
    }
    sampler.shutdown().await;
    let last = stage::sample_once(&services.clients).await?;
    for (shard, row) in &last.rows {
        if let Some(owner) = &row.owner {
            log.fail(format!("all workers have stopped, and {shard} still belongs to {owner}"));
        }
    }
    let subscriptions = services.count("SubscribeToShard").await?;
    if settings.fan_out {
        say(&format!("subscriptions that were accepted: {subscriptions}"));
    }
    services.stop().await?;
    let mut samples: Vec<Sample> = std::mem::take(&mut *samples.lock());
    samples.push(last);
    Evidence::gather(directory, settings, stored, samples, log)
}

/// Executes the schedule while a writer runs.
async fn storm(
    settings: Settings,
    plan: Vec<Planned>,
    services: &Services,
    command: WorkerCommand,
    log: &Log,
) -> Result<(Vec<Slot>, Written)> {
    let since = Instant::now();
    let clients = &services.clients;
    let mut playing = JoinSet::new();
    for number in 0..SLOTS {
        let slot = Slot::open(number, command.clone(), log.clone())?;
        let acts = plan.iter().filter(|planned| planned.act.slot() == Some(number));
        playing.spawn(slot.play(acts.copied().collect(), since));
    }
    let mut writing = JoinSet::new();
    writing.spawn(stage::write(clients.clone(), settings, since + settings.length));
    let mut resharding = JoinSet::new();
    resharding.spawn(stage::reshard(clients.clone(), plan, since, log.clone()));

    let written = writing.join_next().await.context("one task was spawned")???;
    resharding.join_all().await;
    let slots = playing.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    Ok((slots, written))
}

/// Reads the stream, to which all observations are compared.
async fn stored(services: &Services, written: &Written) -> Result<Vec<StoredShard>> {
    let mut stored = Vec::new();
    for shard in services.clients.shards(stage::STREAM).await? {
        let records = services.clients.records_of(stage::STREAM, shard.shard_id()).await?;
        stored.push(StoredShard::of(&shard, &records, written)?);
    }
    Ok(stored)
}

/// Waits until the lease table shows that every record was processed.
async fn settled(services: &Services, stored: &[StoredShard]) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let rows = stage::sample_once(&services.clients).await.map(|sample| sample.rows);
        if rows.is_ok_and(|rows| stored.iter().all(|shard| shard.is_done(rows.get(&shard.id)))) {
            return true;
        }
        sleep(Duration::from_millis(200)).await;
    }
    false
}
