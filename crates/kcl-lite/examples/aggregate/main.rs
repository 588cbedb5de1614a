//! Module 3 of the workshop: one row per unicorn and minute, written to another stream or to stdout.
//!
//! ```text
//! cargo run -p kcl-lite --example aggregate -- --stream wildrydes --output-stream wildrydes-summary
//! ```
//!
//! (`wildrydes-aggregated` is the name in the workshop's first edition.) A killed worker loses no minute:
//! `processor` explains why, and `tests/it/aggregate.rs` tests it.
//! Limits: when a shard is split or merged, its last minute results in two rows, one of the parent and one
//! of the child; and if a shard cannot be read for half a minute across the end of a minute, its late
//! records count in the next minute.

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

/// The service accepts at most this many records in one request.
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
    // Does not wait for a blocked write to a pipe.
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

/// Logs all events except renewals, which come every few seconds.
fn tell(event: &Event) {
    if !matches!(event, Event::LeaseRenewed { .. }) {
        // A closed stderr is ignored.
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
                // Blocks for as long as the reader of a pipe does not read, hence on a separate thread.
                Ok(heartbeat.during(spawn_blocking(move || print(&text))).await??)
            }
            Output::Stream { client, stream } => {
                for rows in rows.chunks(MOST_RECORDS) {
                    put_records(client, stream, rows).await?;
                    // Not during the call: a call without a reply must run into the callback deadline.
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

/// Sends one request. If a part is refused, it fails as a whole and all rows are sent again: a row replaces
/// one of the same key.
async fn put_records(client: &Client, stream: &str, rows: &[Row]) -> Result<(), BoxError> {
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        // The newline is for Firehose, which concatenates records into files unchanged.
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
