//! `chaos worker`: a worker process that writes everything it receives to a journal.
//!
//! A record counts as processed when its line is in the journal. Never judges: the process that
//! started it does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kcl_lite::{
    Batch, BoxError, Event, InitialPosition, RecordProcessor, Retrieval, Settings, ShardContext,
    Worker,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::journal::{Journal, What};

/// The longest duration of a batch, so that signals arrive in the middle of some.
const LONGEST_BATCH: Duration = Duration::from_millis(30);

/// A slow processor: one batch in this many takes this long.
const SLOW_EVERY: usize = 1_500;
const SLOWEST_BATCH: Duration = Duration::from_secs(30);

/// The arguments of a worker process.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) application: String,
    #[arg(long)]
    pub(crate) stream: String,
    #[arg(long)]
    pub(crate) id: String,
    #[arg(long)]
    pub(crate) lease_ms: u64,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) journal: PathBuf,
    #[arg(long)]
    pub(crate) fan_out: bool,
    #[arg(long)]
    pub(crate) slow: bool,
}

/// Runs until SIGTERM, then shuts down gracefully.
///
/// # Errors
///
/// The worker does not start, or has failed.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let journal = Journal::open(&args.journal)?;
    let settings = Settings {
        lease_duration: Duration::from_millis(args.lease_ms),
        initial_position: InitialPosition::TrimHorizon,
        poll_interval: Duration::from_millis(200),
        audit_interval: Duration::from_secs(10),
        seed: Some(args.seed),
        retrieval: if args.fan_out { Retrieval::fan_out() } else { Retrieval::Polling },
        ..Settings::default()
    };
    let reported = journal.clone();
    let worker = Worker::builder(args.application, args.stream)
        .worker_id(args.id)
        .settings(settings)
        .on_event(move |event| tell(&reported, event))
        .build()
        .await?;
    let (journals, seed, is_slow) = (journal.clone(), args.seed, args.slow);
    let factory = move |shard: &ShardContext| Notary {
        journal: journals.clone(),
        shard: shard.shard_id.to_string(),
        token: shard.fencing_token,
        rng: fastrand::Rng::with_seed(seed ^ shard.fencing_token),
        is_slow,
    };
    let report = worker.run_until(factory, terminate.recv()).await?;
    let shards = report.shards.iter();
    let left: Vec<_> = shards.map(|(key, shard)| format!("{key} {}", shard.drained)).collect();
    journal.note(None, What::Reported { text: format!("ended; drained: {left:?}") })?;
    Ok(ExitCode::SUCCESS)
}

/// Writes an event to the journal. If that fails, only the timeline lacks it.
fn tell(journal: &Journal, event: &Event) {
    let reported = |shard: Option<&str>, what: What| journal.note(shard, what).ok();
    let text = || What::Reported { text: event.to_string() };
    // Events that the library adds later are written too.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the timeline shows every event alike")]
    match event {
        Event::LeaseTaken { shard, reason, .. } => {
            reported(Some(shard.as_str()), What::Taken { reason: format!("{reason:?}") });
            reported(Some(shard.as_str()), text())
        }
        Event::LeaseRenewed { shard, checkpoint, advanced: true } => {
            reported(Some(shard.as_str()), What::Stored { checkpoint: checkpoint.to_string() })
        }
        // Once a second per shard: they would hide the rest.
        Event::LeaseRenewed { advanced: false, .. } => None,
        Event::LeaseReleased { shard, checkpoint } => {
            reported(Some(shard.as_str()), What::Released { checkpoint: checkpoint.to_string() })
        }
        Event::HandoffRequested { shard, .. }
        | Event::LeaseLost { shard, .. }
        | Event::ShardEnded { shard, .. }
        | Event::ReadFailed { shard, .. } => reported(Some(shard.as_str()), text()),
        _ => reported(None, text()),
    };
}

/// A processor that writes every record to the journal.
struct Notary {
    journal: Journal,
    shard: String,
    token: u64,
    rng: fastrand::Rng,
    is_slow: bool,
}

impl Notary {
    fn note(&self, what: What) -> Result<()> {
        self.journal.note(Some(&self.shard), what)
    }

    fn reported(&self, text: &str) {
        let text = format!("{text} (token {})", self.token);
        // If it is missing, only the timeline lacks it.
        self.note(What::Reported { text }).ok();
    }
}

impl RecordProcessor for Notary {
    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), BoxError> {
        let checkpoint = shard.checkpoint.to_string();
        Ok(self.note(What::Begun { token: self.token, checkpoint })?)
    }

    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        let (token, records) = (self.token, batch.records());
        self.note(What::Batch { token, records: records.len() })?;
        let pauses_at = self.rng.usize(..records.len());
        let is_slow = self.is_slow && self.rng.usize(..SLOW_EVERY) == 0;
        let longest = if is_slow { SLOWEST_BATCH } else { LONGEST_BATCH };
        for (index, record) in records.iter().enumerate() {
            if index == pauses_at {
                tokio::time::sleep(longest.mul_f64(self.rng.f64())).await;
            }
            let sequence_number = record.sequence_number.to_string();
            self.note(What::Record { token, sequence_number })?;
        }
        Ok(())
    }

    async fn shard_ended(&mut self) {
        self.reported("shard ended");
    }

    async fn shutdown_requested(&mut self) {
        self.reported("shutdown requested");
    }

    async fn lease_lost(&mut self) {
        self.reported("lease lost");
    }
}
