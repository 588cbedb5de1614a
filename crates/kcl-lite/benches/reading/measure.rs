//! One measurement: a process that reads one load in one way, and prints the cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_kinesis::Client;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use crate::{Result, bare, canned, say, worker};

/// The name of the stream.
pub(crate) const STREAM: &str = "reading";

/// The reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A bare loop of calls.
    Bare,
    /// A worker of this library.
    Worker,
}

/// The source of the records.
#[derive(Debug, Clone)]
pub(crate) enum Transport {
    Canned,
    /// An endpoint, and the way of reading.
    Served(String, Way),
}

/// The way of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Polling,
    FanOut,
}

/// The records to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) shards: usize,
    /// Bytes per record.
    pub(crate) size: usize,
    /// Records per shard.
    pub(crate) records: usize,
    /// Records per canned reply.
    pub(crate) per_reply: usize,
}

impl Load {
    /// Returns a load that takes a second or two.
    pub(crate) fn canned() -> Vec<Self> {
        let load = |shards, size, replies, per_reply| Self {
            shards,
            size,
            records: replies * per_reply,
            per_reply,
        };
        vec![
            load(1, 100, 50, 10_000),
            load(16, 100, 8, 10_000),
            load(256, 100, 1, 5_000),
            load(1, 1_024, 20, 5_000),
            load(16, 1_024, 2, 5_000),
            load(256, 1_024, 1, 1_000),
            load(1, 102_400, 20, 100),
            load(16, 102_400, 2, 100),
            load(256, 102_400, 1, 10),
        ]
    }

    /// Returns a load of some seconds per shard, with as many shards as fit into memory.
    pub(crate) fn served() -> Vec<Self> {
        let load = |shards, size, records| Self { shards, size, records, per_reply: 0 };
        vec![
            load(1, 100, 200_000),
            load(16, 100, 60_000),
            load(256, 100, 8_000),
            load(1, 1_024, 20_000),
            load(16, 1_024, 20_000),
            load(256, 1_024, 2_000),
            load(1, 102_400, 200),
            load(16, 102_400, 200),
            load(256, 102_400, 20),
        ]
    }

    fn total(&self) -> u64 {
        (self.shards * self.records) as u64
    }
}

/// The cost of a reader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) records: u64,
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    /// The peak resident memory, if the system reports it (Linux).
    pub(crate) peak_kib: Option<u64>,
}

impl Cost {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fields = text
            .split_whitespace()
            .map(str::parse)
            .collect::<std::result::Result<Vec<u64>, _>>()?;
        let [records, cpu, wall, peak] = fields[..] else {
            return Err(format!("a measurement said `{text}`").into());
        };
        let micros = Duration::from_micros;
        Ok(Self {
            records,
            cpu: micros(cpu),
            wall: micros(wall),
            peak_kib: (peak > 0).then_some(peak),
        })
    }
}

pub(crate) fn arguments(reader: Reader, load: &Load, transport: &Transport) -> Vec<String> {
    let reader = match reader {
        Reader::Bare => "bare",
        Reader::Worker => "worker",
    };
    let mut arguments = vec![reader.to_owned()];
    arguments
        .extend([load.shards, load.size, load.records, load.per_reply].map(|it| it.to_string()));
    if let Transport::Served(endpoint, way) = transport {
        arguments.extend([endpoint.clone(), format!("{way:?}")]);
    }
    arguments
}

/// Measures, and prints a [`Cost`].
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [reader, shards, size, records, per_reply, endpoint @ ..] = arguments else {
        return Err("a measurement needs five arguments".into());
    };
    let reader = if reader == "bare" { Reader::Bare } else { Reader::Worker };
    let load = Load {
        shards: shards.parse()?,
        size: size.parse()?,
        records: records.parse()?,
        per_reply: per_reply.parse()?,
    };
    let counted = match endpoint {
        [] => {
            let config = config(None, canned::http_client(&load));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()?;
            runtime.block_on(read(reader, &load, &config, Way::Polling, true))?
        }
        [endpoint, way, ..] => {
            let way = if way == "FanOut" { Way::FanOut } else { Way::Polling };
            let http = aws_smithy_http_client::Builder::new().build_http();
            let config = config(Some(endpoint), http);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(read(reader, &load, &config, way, false))?
        }
        [_] => return Err("an endpoint needs a way".into()),
    };
    let Cost { records, cpu, wall, peak_kib } = counted;
    say(&format!("{records} {} {} {}", cpu.as_micros(), wall.as_micros(), peak_kib.unwrap_or(0)));
    Ok(())
}

fn config(
    endpoint: Option<&String>,
    http: aws_smithy_runtime_api::client::http::SharedHttpClient,
) -> SdkConfig {
    let keys = Credentials::new("reading", "not-a-secret", None, None, "benchmark");
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(local_aws::REGION))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .http_client(http);
    config.set_endpoint_url(endpoint.cloned());
    config.build()
}

async fn read(
    reader: Reader,
    load: &Load,
    config: &SdkConfig,
    way: Way,
    is_paused: bool,
) -> Result<Cost> {
    let count = Arc::new(Count::default());
    let consumer = match way {
        Way::Polling => None,
        Way::FanOut => Some(register(config).await?),
    };
    let [cpu, wall] = clocks();
    match reader {
        Reader::Bare => bare::read(config, &count, load.total(), consumer).await?,
        Reader::Worker => worker::read(config, &count, load.total(), consumer, is_paused).await?,
    }
    let [cpu_end, wall_end] = clocks();
    Ok(Cost {
        records: count.records.load(Ordering::Relaxed),
        cpu: cpu_end - cpu,
        wall: wall_end - wall,
        peak_kib: peak_kib(),
    })
}

/// Registers a stream consumer for this process alone: the service protects a subscription for five
/// seconds, including that of the previous measurement.
async fn register(config: &SdkConfig) -> Result<String> {
    let client = Client::new(config);
    let stream = client.describe_stream_summary().stream_name(STREAM).send().await?;
    let stream = stream.stream_description_summary.ok_or("no description")?.stream_arn;
    let name = format!("reading-{}", std::process::id());
    let consumer = client.register_stream_consumer().stream_arn(stream).consumer_name(name);
    Ok(consumer.send().await?.consumer.ok_or("no consumer")?.consumer_arn)
}

/// Returns the CPU time of this process, and the monotonic time.
fn clocks() -> [Duration; 2] {
    [ClockId::ProcessCPUTime, ClockId::Monotonic]
        .map(|id| Duration::try_from(clock_gettime(id)).expect("these clocks start at zero"))
}

/// Returns the peak resident memory of this process.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The totals of all shards.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) records: AtomicU64,
    /// The payload bytes, so that every record is accessed.
    pub(crate) bytes: AtomicU64,
    changed: Notify,
}

impl Count {
    pub(crate) fn add(&self, records: u64, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.records.fetch_add(records, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Waits until this many records have been read.
    pub(crate) async fn reached(&self, total: u64) {
        while self.records.load(Ordering::Relaxed) < total {
            self.changed.notified().await;
        }
    }
}
