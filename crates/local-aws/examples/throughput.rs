//! Measures how many records a second one client puts and reads.
//!
//! Puts 500 records of 1 KiB per request for some seconds, then reads all of them, first over real
//! loopback HTTP and then, as the reference in the same run, in process without a socket. Prints
//! numbers and asserts none.
//!
//! `cargo run --release -p local-aws --example throughput -- [SECONDS] [SHARDS]`

use std::time::Duration;

use anyhow::Context;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, ShardIteratorType};
use local_aws::{LocalAws, REGION};
use tokio::time::Instant;

const BATCH: usize = 500;
const RECORD: usize = 1024;

/// Requests in flight at once, as a producer with a high throughput has them.
const IN_FLIGHT: usize = 4;

struct Rates {
    put: f64,
    get: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(5), |arg| arg.parse()).context("SECONDS")?;
    let shards: i32 = args.next().map_or(Ok(4), |arg| arg.parse()).context("SHARDS")?;
    let limit = Duration::from_secs(seconds);

    let local = LocalAws::builder().transition(Duration::ZERO).build()?;
    let server = local.serve().await?;
    let socket = measure(&over_http(&server.endpoint_url()), limit, shards).await?;
    server.shutdown().await;
    drop(local);
    let rss = peak_rss();
    let local = LocalAws::builder().transition(Duration::ZERO).build()?;
    let direct = measure(&local.sdk_config("throughput"), limit, shards).await?;

    report("loopback HTTP", &socket);
    report("in process", &direct);
    let (put, get) = (socket.put / direct.put, socket.get / direct.get);
    say(&format!("HTTP / in process: put {put:.2}, get {get:.2}"));
    if let Some(rss) = rss {
        say(&format!("peak memory of the loopback run, client included: {rss}"));
    }
    Ok(())
}

fn over_http(endpoint: &str) -> SdkConfig {
    let keys = Credentials::new("throughput", "not-a-secret", None, None, "example");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .endpoint_url(endpoint)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build()
}

async fn measure(config: &SdkConfig, limit: Duration, shards: i32) -> anyhow::Result<Rates> {
    let client = Client::new(config);
    client.create_stream().stream_name("s").shard_count(shards).send().await?;

    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..IN_FLIGHT {
        writers.spawn(put(client.clone(), writer, started + limit));
    }
    let mut put = 0;
    while let Some(written) = writers.join_next().await {
        put += written??;
    }
    let put_rate = rate(put, started);

    let started = Instant::now();
    let mut readers = tokio::task::JoinSet::new();
    for shard in client.list_shards().stream_name("s").send().await?.shards() {
        readers.spawn(get(client.clone(), shard.shard_id().to_owned()));
    }
    let mut got = 0;
    while let Some(read) = readers.join_next().await {
        got += read??;
    }
    anyhow::ensure!(got == put, "{put} records put, {got} got");
    Ok(Rates { put: put_rate, get: rate(got, started) })
}

async fn put(client: Client, writer: usize, until: Instant) -> anyhow::Result<usize> {
    let mut records = Vec::with_capacity(BATCH);
    for i in 0..BATCH {
        let record = PutRecordsRequestEntry::builder()
            .partition_key(format!("key-{writer}-{i}"))
            .data(Blob::new(vec![b'x'; RECORD]));
        records.push(record.build()?);
    }
    let mut written = 0;
    while Instant::now() < until {
        let put = client.put_records().stream_name("s").set_records(Some(records.clone()));
        let put = put.send().await?;
        anyhow::ensure!(put.failed_record_count() == Some(0), "records were refused");
        written += BATCH;
    }
    Ok(written)
}

async fn get(client: Client, shard: String) -> anyhow::Result<usize> {
    let iterator = client
        .get_shard_iterator()
        .stream_name("s")
        .shard_id(shard)
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let mut iterator = iterator.send().await?.shard_iterator.context("no iterator")?;
    let mut read = 0;
    loop {
        let reply = client.get_records().shard_iterator(iterator).send().await?;
        read += reply.records().len();
        if reply.millis_behind_latest() == Some(0) {
            return Ok(read);
        }
        iterator = reply.next_shard_iterator.context("the shard ended")?;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
fn rate(records: usize, started: Instant) -> f64 {
    records as f64 / started.elapsed().as_secs_f64()
}

fn report(way: &str, rates: &Rates) {
    say(&format!("{way}: put {:.0} records/s, get {:.0} records/s", rates.put, rates.get));
}

/// Returns the high-water mark of this process's memory, where the system reports it (Linux).
fn peak_rss() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().to_owned())
}

#[expect(clippy::print_stdout, reason = "numbers on stdout are what this program is for")]
fn say(line: &str) {
    println!("{line}");
}
