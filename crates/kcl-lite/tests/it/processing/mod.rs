//! The processing of records between reader and checkpoint, one field problem per test, on in-memory
//! services and paused time.

mod actor;
mod callbacks;
mod checkpoints;
mod failures;
mod heartbeats;
mod partial;
mod poison;
mod positions;
mod progress;
mod shelf;

use std::time::Duration;

use kcl_lite::{
    Checkpoint, CheckpointPolicy, Event, InitialPosition, Settings, ShardId, WorkerHandle,
};

use crate::fleet::{Fleet, Seen, settings};

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns settings that start at the oldest record and write a checkpoint for every batch.
fn eager() -> Settings {
    Settings {
        checkpoints: CheckpointPolicy::EveryBatch,
        initial_position: InitialPosition::TrimHorizon,
        ..settings()
    }
}

fn shard() -> ShardId {
    "shardId-000000000000".into()
}

fn numbers(range: impl Iterator<Item = u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// The record with number `n` gets the sequence number `n`, if it starts with 1 on a new stream.
fn put(fleet: &Fleet, range: impl Iterator<Item = u32>) {
    for number in range {
        fleet.stream.put("key", number.to_string());
    }
}

fn at(number: u64) -> Checkpoint {
    Checkpoint::parse(&number.to_string(), 0).unwrap()
}

/// Waits until the checkpoint in the row is at least `wanted`.
async fn until_stored(fleet: &Fleet, wanted: &Checkpoint) {
    let what = format!("checkpoint {wanted}");
    fleet.until(&what, |_| fleet.lease(&shard()).checkpoint >= *wanted).await;
}

/// Returns the first delivery of each record, in order.
fn once(mut delivered: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    delivered.retain(|payload| seen.insert(payload.clone()));
    delivered
}

/// Asserts that no stored checkpoint in the log covers a record that was not delivered before. Holds for
/// processors that acknowledge what they record.
fn no_checkpoint_ran_ahead(log: &[Seen]) {
    let mut delivered = 0;
    for seen in log {
        match seen {
            Seen::Record(_, _, payload) => {
                let number: u64 = payload.parse().unwrap();
                assert!(number <= delivered + 1, "{number} came after {delivered}");
                delivered = delivered.max(number);
            }
            Seen::Event(_, Event::LeaseRenewed { checkpoint: Checkpoint::At(position), .. }) => {
                let stored: u64 = position.sequence_number.as_str().parse().unwrap();
                assert!(stored <= delivered, "{stored} is stored, {delivered} delivered");
            }
            Seen::Event(..) | Seen::Callback(..) => {}
        }
    }
}

async fn start(fleet: &Fleet, name: &str, settings: Settings) -> WorkerHandle {
    fleet.start_with(name, settings).await
}
