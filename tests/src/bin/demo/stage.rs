//! The processes of the demo, and their observation.
//!
//! What each consumer prints comes from its stdout; the owners of shards come from the lease table.
//! Polls several times a second and prints one status line a second. The time of a record is when
//! its last byte was read, independent of the polling.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::account::RecordId;
use e2e::process::Process;
use e2e::server::Aws;
use e2e::workshop::Workshop;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::Settings;
use crate::screen::{Screen, WIDTH};

pub(crate) const STREAM: &str = "wildrydes";
pub(crate) const APPLICATION: &str = "wildrydes-tail";
pub(crate) const UNICORNS: [&str; 2] = ["Shadowfax", "Bucephalus"];
pub(crate) const LABELS: [&str; 2] = ["tail-1", "tail-2"];

/// The time between two polls, and the number of polls per status line.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOKS_PER_LINE: u32 = 5;

/// How long an act waits for something that should happen within seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The state of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Running,
    Killed,
    Stopped,
}

/// One consumer process.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) label: &'static str,
    pub(crate) fate: Fate,
    pub(crate) process: Process,
    /// The number of its records that status lines have counted.
    reported: usize,
}

impl Consumer {
    /// Returns the first record of one of `unicorns` that it printed after `since`.
    pub(crate) fn first_of(&self, unicorns: &BTreeSet<String>, since: Instant) -> Option<Instant> {
        let transcript = self.process.transcript();
        let mut documents = transcript.documents.iter().filter(|document| document.at > since);
        let of_theirs = |id: &RecordId| unicorns.contains(&id.unicorn);
        documents.find(|document| document.id.as_ref().is_some_and(of_theirs)).map(|d| d.at)
    }

    /// Returns when it printed its newest record of `unicorn`.
    pub(crate) fn last_of(&self, unicorn: &str) -> Option<Instant> {
        let transcript = self.process.transcript();
        let is_theirs = |id: &RecordId| id.unicorn == unicorn;
        let mut documents = transcript.documents.iter();
        let last = documents.rfind(|document| document.id.as_ref().is_some_and(is_theirs));
        last.map(|document| document.at)
    }

    /// Returns whether it printed a record after `since`.
    pub(crate) fn prints_since(&self, since: Instant) -> bool {
        self.process.transcript().documents.last().is_some_and(|document| document.at > since)
    }
}

/// The durations that the demo measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) failover: Option<Duration>,
    pub(crate) handover: Option<Duration>,
    pub(crate) reshard: Option<Duration>,
}

/// All processes and observations.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) settings: Settings,
    pub(crate) screen: Screen,
    pub(crate) workshop: Workshop,
    pub(crate) rng: fastrand::Rng,
    pub(crate) producers: Vec<Process>,
    /// All consumers that were ever started, in order.
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) measured: Measured,
    /// The owners of the shards at the last poll.
    pub(crate) owners: BTreeMap<String, String>,
    started: Instant,
    looks: u32,
}

impl Stage {
    pub(crate) async fn open(settings: Settings, screen: Screen) -> Result<Self> {
        screen.act("Kinesis and DynamoDB, in this process: no account, no network");
        let aws = Aws::with_transition(Duration::from_millis(100)).await?;
        screen.say(&format!("local-aws serves both at {}", aws.endpoint_url()));
        // Compiles nothing unless the commands have changed since the last build.
        let workshop = Workshop::with(aws)?;
        workshop.aws.create_stream(STREAM, 2).await?;
        screen.say(&format!("stream `{STREAM}` has 2 shards; seed {}", settings.seed));
        Ok(Self {
            settings,
            screen,
            workshop,
            rng: fastrand::Rng::with_seed(settings.seed),
            producers: Vec::new(),
            consumers: Vec::new(),
            measured: Measured::default(),
            owners: BTreeMap::new(),
            started: Instant::now(),
            looks: 0,
        })
    }

    pub(crate) fn start_producer(&mut self, unicorn: &str) -> Result<()> {
        let seed = self.settings.seed;
        let line = format!(
            "./producer -name {unicorn} -interval {}ms -seed {seed}",
            self.settings.interval.as_millis()
        );
        let process = self.workshop.run(unicorn, &line)?;
        self.screen.command(&line, &format!("process {}", process.id()));
        self.producers.push(process);
        Ok(())
    }

    pub(crate) fn start_consumer(&mut self, label: &'static str) -> Result<()> {
        let failover = self.settings.failover.as_secs();
        // From the oldest record on, so that records sent before the first consumer is ready count
        // too.
        let line = format!(
            "./consumer --app {APPLICATION} --from trim-horizon \
             --failover {failover}s --worker-id {label}"
        );
        let process = self.workshop.run(label, &line)?;
        let wrapped = line.replace(" --failover", " \\\n       --failover");
        self.screen.command(&wrapped, &format!("process {}", process.id()));
        self.consumers.push(Consumer { label, fate: Fate::Running, process, reported: 0 });
        Ok(())
    }

    /// Returns the running consumers.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Consumer> {
        self.consumers.iter().filter(|consumer| consumer.fate == Fate::Running)
    }

    /// Returns the running consumer with that label.
    pub(crate) fn consumer(&mut self, label: &str) -> Result<&mut Consumer> {
        let found = self.consumers.iter_mut().find(|c| c.label == label && c.fate == Fate::Running);
        found.with_context(|| format!("{label} is not running"))
    }

    /// Prints status lines until `found` returns a value, for at most `limit`.
    ///
    /// # Errors
    ///
    /// A process that should run has ended; the error contains its output.
    pub(crate) async fn show_until<T>(
        &mut self,
        limit: Duration,
        mut found: impl FnMut(&Self) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + limit;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look().await?;
            let found = found(self);
            if found.is_some() || Instant::now() >= deadline {
                return Ok(found);
            }
        }
    }

    /// Prints status lines until this fraction of the whole time has passed.
    pub(crate) async fn show_until_part(&mut self, part: f64) -> Result<()> {
        let mark = self.started + self.settings.length.mul_f64(part);
        let left = mark.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            self.show_until::<()>(left, |_| None).await?;
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<()> {
        self.owners = self.workshop.aws.owners(APPLICATION).await;
        for process in self.producers.iter().chain(self.running().map(|c| &c.process)) {
            let transcript = process.transcript();
            anyhow::ensure!(
                !transcript.is_complete(),
                "{} has ended:\n{}",
                process.name(),
                transcript.stderr
            );
        }
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_LINE) {
            let line = self.status();
            self.screen.status(&line);
        }
        Ok(())
    }

    /// `12s  tail-1 [0] Shadowfax 5            tail-2 [1] Bucephalus 5`
    fn status(&mut self) -> String {
        let clock = format!("{:>3}s", self.started.elapsed().as_secs());
        let cells = LABELS.map(|label| self.cell(label));
        let width = (WIDTH - clock.len()) / cells.len() - 2;
        format!("{clock}  {:<width$}  {}", cells[0], cells[1])
    }

    fn cell(&mut self, label: &str) -> String {
        let shards = self.owners.iter().filter(|(_, owner)| *owner == label);
        let shards: Vec<_> = shards.map(|(shard, _)| short(shard)).collect();
        let Some(consumer) = self.consumers.iter_mut().rfind(|c| c.label == label) else {
            return String::new();
        };
        match consumer.fate {
            Fate::Killed => return format!("{label} killed"),
            Fate::Stopped => return format!("{label} stopped"),
            Fate::Running => {}
        }
        let transcript = consumer.process.transcript();
        let new = transcript.documents.iter().skip(consumer.reported);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for id in new.filter_map(|document| document.id.as_ref()) {
            *counts.entry(&id.unicorn).or_default() += 1;
        }
        consumer.reported = transcript.documents.len();
        let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{label} [{}] {}", shards.join(","), counts.join(" "))
    }

    /// Kills the remaining processes and stops the services.
    pub(crate) async fn close(self) {
        drop((self.producers, self.consumers));
        self.workshop.aws.shutdown().await;
    }
}

/// Returns `shardId-000000000012` as `12`.
pub(crate) fn short(shard: &str) -> &str {
    let digits = shard.rsplit('-').next().unwrap_or(shard).trim_start_matches('0');
    if digits.is_empty() { "0" } else { digits }
}
