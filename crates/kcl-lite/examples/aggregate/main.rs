//! Module 3 of the workshop: one row per unicorn and minute, put to another stream or to stdout.
//!
//! ```text
//! cargo run -p kcl-lite --example aggregate -- --stream wildrydes --output-stream wildrydes-summary
//! ```
//!
//! (`wildrydes-aggregated` is the name in the workshop's first edition.) A worker that is killed
//! loses no minute: see `processor` for how, and `tests/it/aggregate.rs` for the proof.
//! Limits: when a shard is split or merged, its last minute comes as two rows, one of the parent
//! and one of the child; and a shard that could not be read for half a minute across the end of
//! a minute counts what it reads late in the minute after.

mod processor;
mod window;

use std::error::Error;
use std::io::{self, Write as _};
use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use clap::Parser;
use kcl_lite::{BoxError, Event, Heartbeat, Worker};
use tokio::task::spawn_blocking;

use processor::{Aggregate, RowSink};
use window::Row;

/// The service takes at most this many records in one request.
const MOST_RECORDS: usize = 500;

/// Sum up each unicorn's minute
#[derive(Debug, Parser)]
struct Options {
    /// Stream to read
    #[arg(long, default_value = "wildrydes")]
    stream: String,
    /// Application: the instances of one name share the shards; names the lease table
    #[arg(long, default_value = "wildrydes-aggregate")]
    app: String,
    /// Stream to put the rows to [default: stdout]
    #[arg(long, value_name = "STREAM")]
    output_stream: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(run());
    // Does not wait for a write to a pipe that nobody reads.
    runtime.shutdown_background();
    ended
}

async fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let config = kcl_lite::aws::config().load().await;
    let output = Arc::new(match options.output_stream {
        Some(stream) => Output::Stream { client: Client::new(&config), stream },
        None => Output::Stdout,
    });
    Worker::builder(options.app, options.stream)
        .aws_config(config)
        .on_event(tell)
        .build()
        .await?
        .run_until(move |shard| Aggregate::new(Arc::clone(&output), shard), tokio::signal::ctrl_c())
        .await?;
    Ok(())
}

/// Everything but the renewals, which come every few seconds.
fn tell(event: &Event) {
    if !matches!(event, Event::LeaseRenewed { .. }) {
        // If stderr is closed there is nobody to tell.
        writeln!(io::stderr(), "aggregate: {event}").ok();
    }
}

#[derive(Debug)]
enum Output {
    Stdout,
    Stream { client: Client, stream: String },
}

impl RowSink for Arc<Output> {
    async fn put(&self, rows: &[Row], heartbeat: &Heartbeat) -> Result<(), BoxError> {
        match self.as_ref() {
            Output::Stdout => {
                let mut text = Vec::new();
                for row in rows {
                    serde_json::to_writer(&mut text, row)?;
                    text.push(b'\n');
                }
                // Blocks for as long as the reader of a pipe pleases: on a thread of its own.
                Ok(heartbeat.during(spawn_blocking(move || print(&text))).await??)
            }
            Output::Stream { client, stream } => {
                for rows in rows.chunks(MOST_RECORDS) {
                    put_records(client, stream, rows).await?;
                    // Not during the call: one that is never answered must not be waited for.
                    heartbeat.beat();
                }
                Ok(())
            }
        }
    }
}

fn print(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// One request. If a part of it is refused, all of it is put again: rows replace their like.
async fn put_records(client: &Client, stream: &str, rows: &[Row]) -> Result<(), BoxError> {
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        // The newline is for Firehose, which puts records into files as they are.
        let data = serde_json::to_string(row)? + "\n";
        let entry = PutRecordsRequestEntry::builder().partition_key(&row.name);
        entries.push(entry.data(Blob::new(data)).build()?);
    }
    let call = client.put_records().stream_name(stream).set_records(Some(entries));
    let reply = call.send().await?;
    match reply.failed_record_count() {
        None | Some(0) => Ok(()),
        Some(refused) => Err(format!("`{stream}` refused {refused} of {} rows", rows.len()).into()),
    }
}
