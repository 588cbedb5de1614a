//! The processes, the acts against them, and the observation of the services.
//!
//! local-aws and the workers are processes; this one writes the records, reads the lease table
//! several times a second and executes the schedule. Its actions and observations go into a
//! [`Log`]. Never judges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kinesis::config::{Credentials, SharedCredentialsProvider};
use e2e::process::Process;
use e2e::server::Clients;
use e2e::workshop::point;
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Settings;
use crate::journal::{Entry, What, now};
use crate::schedule::{Act, NextId, Planned};

pub(crate) const STREAM: &str = "chaos";
pub(crate) const APPLICATION: &str = "chaos-workers";
/// Any region works: local-aws serves every region.
const REGION: &str = "us-east-1";

/// The allowed number of open shards; fewer than workers, or many more, would test less.
const OPEN_SHARDS: std::ops::RangeInclusive<usize> = 2..=8;

/// The actions of this process for the timeline, and violations that it observed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Logged>>);

#[derive(Debug, Default)]
struct Logged {
    entries: Vec<Entry>,
    failures: Vec<Entry>,
}

impl Log {
    /// Notes an action.
    pub(crate) fn note(&self, text: String) {
        crate::say(&format!("  {text}"));
        self.0.lock().entries.push(entry(text));
    }

    /// Notes a violation.
    pub(crate) fn fail(&self, text: String) {
        let mut logged = self.0.lock();
        logged.failures.push(entry(text.clone()));
        drop(logged);
        self.note(text);
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.0.lock().entries.clone()
    }

    pub(crate) fn failures(&self) -> Vec<Entry> {
        self.0.lock().failures.clone()
    }
}

fn entry(text: String) -> Entry {
    Entry { at: now(), shard: None, what: What::Reported { text } }
}

/// The local-aws process.
#[derive(Debug)]
pub(crate) struct Services {
    process: Process,
    pub(crate) endpoint: String,
    pub(crate) clients: Clients,
}

impl Services {
    /// Starts it on a free port and creates the stream.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub(crate) async fn start(executable: &Path, shards: i32) -> Result<Self> {
        let mut command = Command::new(executable);
        command.args(["--port", "0"]).env_clear().env("RUST_LOG", "warn");
        let process = Process::start("local-aws", command)?;
        let endpoint = process.wait_for("its endpoint", |transcript| {
            let stdout = String::from_utf8_lossy(&transcript.stdout);
            let mut lines = stdout.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            lines.find_map(|line| {
                line.trim_end().strip_prefix("export AWS_ENDPOINT_URL=").map(str::to_owned)
            })
        });
        let endpoint = endpoint.await?;
        let keys = Credentials::new("chaos", "not-a-secret", None, None, "chaos");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            .endpoint_url(&endpoint)
            .http_client(kcl_lite::aws::https_client())
            .build();
        let clients = Clients::new(&config);
        clients.create_stream(STREAM, shards).await?;
        while clients.open_shards(STREAM).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { process, endpoint, clients })
    }

    /// Stops it.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.process.stop(Signal::TERM).await.map(drop)
    }

    /// Returns how often an operation succeeded, as the service counts.
    ///
    /// # Errors
    ///
    /// The service does not answer.
    pub(crate) async fn count(&self, operation: &str) -> Result<u64> {
        let address = self.endpoint.trim_start_matches("http://");
        let mut connection = TcpStream::connect(address).await?;
        let request = format!(
            "GET /_local-aws/requests HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        connection.read_to_string(&mut reply).await?;
        let (_, body) = reply.split_once("\r\n\r\n").context("a reply has a body")?;
        let counts: serde_json::Value = serde_json::from_str(body)?;
        let rows = counts["requests"].as_array().context("requests are a list")?.iter();
        let ours = rows.filter(|row| row["operation"] == operation && row["outcome"] == "ok");
        Ok(ours.filter_map(|row| row["count"].as_u64()).sum())
    }
}

/// The command line of every worker process.
#[derive(Debug, Clone)]
pub(crate) struct WorkerCommand {
    pub(crate) executable: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) directory: PathBuf,
    pub(crate) settings: Settings,
}

/// A slot in which a worker usually runs.
#[derive(Debug)]
pub(crate) struct Slot {
    number: usize,
    command: WorkerCommand,
    log: Log,
    process: Process,
    /// The numbers of ids used and of processes started.
    ids: u32,
    starts: u32,
}

impl Slot {
    /// Starts the first worker of a slot.
    ///
    /// # Errors
    ///
    /// The system cannot start it.
    pub(crate) fn open(number: usize, command: WorkerCommand, log: Log) -> Result<Self> {
        let process = start(number, 1, 1, &command)?;
        log.note(format!("start {}", process.name()));
        Ok(Self { number, command, log, process, ids: 1, starts: 1 })
    }

    /// Executes the acts of this slot.
    ///
    /// # Errors
    ///
    /// A worker cannot be started, or does not die.
    pub(crate) async fn play(mut self, acts: Vec<Planned>, since: Instant) -> Result<Self> {
        for planned in acts {
            sleep_until(since + planned.at).await;
            self.look();
            match planned.act {
                Act::Kill { back_after, id, .. } => {
                    self.log.note(format!("kill -9 {}", self.process.name()));
                    self.process.kill().await?;
                    self.back(back_after, id).await?;
                }
                Act::Stop { back_after, id, .. } => {
                    self.stop().await?;
                    self.back(back_after, id).await?;
                }
                Act::Pause { lasts, .. } => {
                    self.log.note(format!("SIGSTOP {}", self.process.name()));
                    self.process.signal(Signal::STOP)?;
                    sleep(lasts).await;
                    self.log.note(format!("SIGCONT {}", self.process.name()));
                    self.process.signal(Signal::CONT)?;
                }
                Act::Reshard { .. } => {}
            }
        }
        Ok(self)
    }

    /// Stops the worker gracefully.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.log.note(format!("SIGTERM {}", self.process.name()));
        self.process.signal(Signal::TERM)?;
        let status = self.process.ended().await?;
        let stderr = self.process.transcript().stderr.clone();
        let name = self.process.name();
        // Before it opens its journal it does not handle the signal, and has done nothing.
        if status.success() || !journal_of(name, &self.command).exists() {
            self.log.note(format!("{name} has ended"));
        } else {
            self.log.fail(format!("{name} was told to stop and ended with {status}: {stderr}"));
        }
        Ok(())
    }

    /// Checks that the worker has not ended without being told to.
    pub(crate) fn look(&self) {
        let transcript = self.process.transcript();
        if transcript.is_complete() {
            let name = self.process.name();
            self.log.fail(format!("{name} has ended unexpectedly: {}", transcript.stderr));
        }
    }

    async fn back(&mut self, after: Duration, id: NextId) -> Result<()> {
        sleep(after).await;
        self.starts += 1;
        self.ids += u32::from(id == NextId::New);
        self.process = start(self.number, self.ids, self.starts, &self.command)?;
        self.log.note(format!("start {}", self.process.name()));
        Ok(())
    }
}

/// Returns the path of a worker process's journal.
fn journal_of(name: &str, with: &WorkerCommand) -> PathBuf {
    with.directory.join(format!("{name}.jsonl"))
}

/// Starts a worker process. In its name the first number is the slot, the second the id, the third
/// the process.
fn start(slot: usize, id: u32, starts: u32, with: &WorkerCommand) -> Result<Process> {
    let name = format!("worker-{slot}.{id}.{starts}");
    let journal = journal_of(&name, with);
    let mut command = Command::new(&with.executable);
    point(&mut command, &with.endpoint, &format!("worker-{slot}"));
    command.env("AWS_REGION", REGION);
    command.args(["worker", "--application", APPLICATION, "--stream", STREAM]);
    command.arg("--id").arg(format!("worker-{slot}.{id}"));
    command.arg("--lease-ms").arg(with.settings.lease.as_millis().to_string());
    command.arg("--seed").arg((with.settings.seed ^ u64::from(starts)).to_string());
    command.arg("--journal").arg(journal);
    if with.settings.fan_out {
        command.arg("--fan-out");
    }
    if with.settings.calm {
        command.arg("--slow");
    }
    Process::start(&name, command)
}

/// Splits and merges as scheduled. A request that the service refuses is skipped.
pub(crate) async fn reshard(clients: Clients, acts: Vec<Planned>, since: Instant, log: Log) {
    for planned in acts {
        let Act::Reshard { draw } = planned.act else { continue };
        sleep_until(since + planned.at).await;
        match reshard_once(&clients, draw).await {
            Ok(what) => log.note(what),
            Err(error) => log.note(format!("no reshard: {error:#}")),
        }
    }
}

async fn reshard_once(clients: &Clients, draw: u64) -> Result<String> {
    let mut open = clients.open_shards(STREAM).await?;
    open.sort_by_key(|(_, first, _)| *first);
    let mut rng = fastrand::Rng::with_seed(draw);
    let may_split = open.len() < *OPEN_SHARDS.end();
    let must_split = open.len() <= *OPEN_SHARDS.start();
    if must_split || may_split && rng.bool() {
        let (shard, ..) = &open[rng.usize(..open.len())];
        clients.split(STREAM, shard).await?;
        return Ok(format!("split {shard}"));
    }
    let left = rng.usize(..open.len() - 1);
    let ((one, ..), (other, ..)) = (&open[left], &open[left + 1]);
    clients.merge(STREAM, one, other).await?;
    Ok(format!("merge {one} and {other}"))
}

/// When the service confirmed a record, by shard and sequence number.
pub(crate) type Written = BTreeMap<(String, String), Duration>;

/// Writes one record of each key, repeatedly, until `until`.
///
/// # Errors
///
/// The service refuses the request.
pub(crate) async fn write(clients: Clients, settings: Settings, until: Instant) -> Result<Written> {
    let mut written = Written::new();
    let mut round = Instant::now();
    for number in 0_u64.. {
        if Instant::now() >= until {
            break;
        }
        let mut left: Vec<_> = (0..settings.keys).map(|key| format!("key-{key}")).collect();
        while !left.is_empty() {
            left = put(&clients, left, number, &mut written).await?;
        }
        round += settings.interval;
        sleep_until(round).await;
    }
    Ok(written)
}

/// Puts a record of each key; returns the keys that the service refused.
async fn put(
    clients: &Clients,
    keys: Vec<String>,
    number: u64,
    written: &mut Written,
) -> Result<Vec<String>> {
    use aws_sdk_kinesis::primitives::Blob;
    use aws_sdk_kinesis::types::PutRecordsRequestEntry;
    let mut put = clients.kinesis.put_records().stream_name(STREAM);
    for key in &keys {
        let entry = PutRecordsRequestEntry::builder().partition_key(key);
        put = put.records(entry.data(Blob::new(number.to_string())).build()?);
    }
    let reply = put.send().await.context("the records cannot be written")?;
    let at = now();
    let mut left = Vec::new();
    for (key, result) in keys.into_iter().zip(reply.records()) {
        match (result.shard_id(), result.sequence_number()) {
            (Some(shard), Some(sequence)) => {
                written.insert((shard.to_owned(), sequence.to_owned()), at);
            }
            _ => left.push(key),
        }
    }
    Ok(left)
}

/// The lease table as one scan returned it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// When the scan was sent, and when its reply arrived.
    pub(crate) sent: Duration,
    pub(crate) at: Duration,
    pub(crate) rows: BTreeMap<String, Row>,
}

/// A lease row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) owner: Option<String>,
    pub(crate) counter: u64,
    pub(crate) checkpoint: String,
}

/// Samples the table until dropped.
pub(crate) async fn sample(clients: Clients, samples: Arc<Mutex<Vec<Sample>>>) {
    loop {
        // Before the table exists there is nothing to sample.
        if let Ok(sample) = sample_once(&clients).await {
            samples.lock().push(sample);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Scans the table once.
///
/// # Errors
///
/// The service refuses the request, or a row is not a lease row.
pub(crate) async fn sample_once(clients: &Clients) -> Result<Sample> {
    let sent = now();
    let scan = clients.dynamo.scan().table_name(APPLICATION).consistent_read(true).send().await?;
    let at = now();
    let row = |row: &std::collections::HashMap<String, aws_sdk_dynamodb::types::AttributeValue>| {
        let text = |name: &str| row.get(name)?.as_s().ok().cloned();
        let counter = row.get("leaseCounter")?.as_n().ok()?.parse().ok()?;
        let checkpoint = text("checkpoint")?;
        Some((text("leaseKey")?, Row { owner: text("leaseOwner"), counter, checkpoint }))
    };
    let rows = scan.items().iter().map(|item| row(item).context("a row is not a lease"));
    Ok(Sample { sent, at, rows: rows.collect::<Result<_>>()? })
}
