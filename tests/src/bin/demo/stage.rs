//! The processes on stage, and what one sees of them.
//!
//! Who prints what is read from the consumers' stdout; who holds what, from the lease table. Looks
//! several times a second and writes one line a second. Instants of records are those at which
//! their last byte was read, however seldom one looks.

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

/// Time between two looks, and looks to a line.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOKS_PER_LINE: u32 = 5;

/// What should happen within seconds is given up after this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a consumer is doing.
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
    /// How many of its records the status lines have told.
    told: usize,
}

impl Consumer {
    /// The first record of one of `unicorns` that it printed after `since`.
    pub(crate) fn first_of(&self, unicorns: &BTreeSet<String>, since: Instant) -> Option<Instant> {
        let transcript = self.process.transcript();
        let mut documents = transcript.documents.iter().filter(|document| document.at > since);
        let of_theirs = |id: &RecordId| unicorns.contains(&id.unicorn);
        documents.find(|document| document.id.as_ref().is_some_and(of_theirs)).map(|d| d.at)
    }

    /// When it printed its newest record of `unicorn`.
    pub(crate) fn last_of(&self, unicorn: &str) -> Option<Instant> {
        let transcript = self.process.transcript();
        let is_theirs = |id: &RecordId| id.unicorn == unicorn;
        let mut documents = transcript.documents.iter();
        let last = documents.rfind(|document| document.id.as_ref().is_some_and(is_theirs));
        last.map(|document| document.at)
    }

    /// Whether it printed anything after `since`.
    pub(crate) fn prints_since(&self, since: Instant) -> bool {
        self.process.transcript().documents.last().is_some_and(|document| document.at > since)
    }
}

/// What the story measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) failover: Option<Duration>,
    pub(crate) handover: Option<Duration>,
    pub(crate) reshard: Option<Duration>,
}

/// Everything that runs.
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
    /// Who holds which shard, at the last look.
    pub(crate) owners: BTreeMap<String, String>,
    started: Instant,
    looks: u32,
}

impl Stage {
    pub(crate) async fn open(settings: Settings, screen: Screen) -> Result<Self> {
        screen.act("Kinesis and DynamoDB, in this process: no account, no network");
        let aws = Aws::with_transition(Duration::from_millis(100)).await?;
        screen.say(&format!("local-aws serves both at {}", aws.endpoint_url()));
        // Nothing is compiled here unless the commands have changed since they were last built.
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
        // From the oldest record on, so that each one counts, also what is sent before the first
        // consumer is ready.
        let line = format!(
            "./consumer --app {APPLICATION} --from trim-horizon \
             --failover {failover}s --worker-id {label}"
        );
        let process = self.workshop.run(label, &line)?;
        let wrapped = line.replace(" --failover", " \\\n       --failover");
        self.screen.command(&wrapped, &format!("process {}", process.id()));
        self.consumers.push(Consumer { label, fate: Fate::Running, process, told: 0 });
        Ok(())
    }

    /// The consumers that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Consumer> {
        self.consumers.iter().filter(|consumer| consumer.fate == Fate::Running)
    }

    /// The running consumer of that label.
    pub(crate) fn consumer(&mut self, label: &str) -> Result<&mut Consumer> {
        let found = self.consumers.iter_mut().find(|c| c.label == label && c.fate == Fate::Running);
        found.with_context(|| format!("{label} does not run"))
    }

    /// Shows the picture until `found` finds what it looks for, for `limit` at most.
    ///
    /// # Errors
    ///
    /// A process that should run has ended; the error carries what it printed.
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

    /// Shows the picture until this part of the whole time has passed.
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
        let new = transcript.documents.iter().skip(consumer.told);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for id in new.filter_map(|document| document.id.as_ref()) {
            *counts.entry(&id.unicorn).or_default() += 1;
        }
        consumer.told = transcript.documents.len();
        let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{label} [{}] {}", shards.join(","), counts.join(" "))
    }

    /// Kills what still runs and ends the services.
    pub(crate) async fn close(self) {
        drop((self.producers, self.consumers));
        self.workshop.aws.shutdown().await;
    }
}

/// `shardId-000000000012` as `12`.
pub(crate) fn short(shard: &str) -> &str {
    let digits = shard.rsplit('-').next().unwrap_or(shard).trim_start_matches('0');
    if digits.is_empty() { "0" } else { digits }
}
