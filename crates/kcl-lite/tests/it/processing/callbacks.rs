//! The order of callbacks, in every way that a tenure can end.
//!
//! A seed decides what processors do: succeed, fail, panic, hang, drop tokens, keep them; meanwhile the
//! shard is split, the table goes down, the worker is stopped. The calls of each processor value are
//! checked against the contract.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::dead_letter::{DeadLetter, DeadLetterRecord};
use kcl_lite::{
    Ack, Batch, BoxError, Event, FailurePolicy, RecordProcessor, Settings, ShardContext, ShardId,
};

use super::{DEADLINE, eager, shard};
use crate::fleet::{Faults, Fleet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Well,
    Fails,
    Panics,
    Hangs,
}

/// The calls of all processor values, in order: shard, number of the value, callback or outcome.
type Log = Arc<Mutex<Vec<(ShardId, u32, &'static str)>>>;

struct Witness {
    log: Log,
    shard: ShardId,
    value: u32,
    rng: fastrand::Rng,
    held: Vec<Ack>,
}

impl Witness {
    fn note(&self, what: &'static str) {
        self.log.lock().push((self.shard.clone(), self.value, what));
    }

    /// Runs one callback with a random outcome. Its end is recorded even if it is dropped.
    async fn called(&mut self, callback: &'static str) -> Result<(), BoxError> {
        self.note(callback);
        let _end =
            Ended { log: Arc::clone(&self.log), shard: self.shard.clone(), value: self.value };
        let how = match self.rng.u8(..20) {
            0 | 1 => How::Fails,
            2 => How::Panics,
            3 => How::Hangs,
            _ => How::Well,
        };
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..300))).await;
        match how {
            How::Well => Ok(()),
            How::Fails => {
                self.note("failed");
                Err("by chance".into())
            }
            How::Panics => {
                self.note("panicked");
                panic!("by chance")
            }
            How::Hangs => std::future::pending().await,
        }
    }
}

struct Ended {
    log: Log,
    shard: ShardId,
    value: u32,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.log.lock().push((self.shard.clone(), self.value, "end"));
    }
}

impl RecordProcessor for Witness {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        match self.rng.u8(..6) {
            0 => self.held.push(batch.defer()),
            1 => drop(batch.defer()),
            _ => {}
        }
        self.called("process").await
    }

    async fn initialize(&mut self, _shard: &ShardContext) -> Result<(), BoxError> {
        self.called("initialize").await
    }

    async fn idle(&mut self) -> Result<(), BoxError> {
        self.held.drain(..).for_each(Ack::acknowledge);
        self.called("idle").await
    }

    async fn shard_ended(&mut self) {
        self.called("shard_ended").await.ok();
    }

    async fn shutdown_requested(&mut self) {
        self.called("shutdown_requested").await.ok();
    }

    async fn lease_lost(&mut self) {
        self.called("lease_lost").await.ok();
    }
}

#[derive(Debug)]
struct Bin;

impl DeadLetter for Bin {
    fn store<'a>(&'a self, _: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async { Ok(()) })
    }
}

const LAST: [&str; 3] = ["shard_ended", "shutdown_requested", "lease_lost"];

/// Checks the calls of one processor value.
fn check(calls: &[&'static str]) -> Result<(), String> {
    let names: Vec<_> =
        calls.iter().filter(|call| !["end", "failed", "panicked"].contains(call)).collect();
    if names.first() != Some(&&"initialize") {
        return Err("begins with something else than initialize".to_owned());
    }
    if names[1..].contains(&&"initialize") {
        return Err("initialize comes twice".to_owned());
    }
    let mut is_in_a_call = false;
    for call in calls {
        match *call {
            "end" => is_in_a_call = false,
            "failed" | "panicked" => {}
            _ if is_in_a_call => return Err(format!("{call} overlaps another call")),
            _ => is_in_a_call = true,
        }
    }
    let place = |wanted: &dyn Fn(&str) -> bool| calls.iter().position(|call| wanted(call));
    let last = place(&|call| LAST.contains(&call));
    let first_end = place(&|call| call == "end").unwrap_or(calls.len());
    let never_started = calls[..first_end].contains(&"failed") || hung_in_initialize(calls);
    let panicked = place(&|call| call == "panicked");
    match (last, panicked) {
        (Some(last), _) if calls[last + 1..].iter().any(|call| names.contains(&call)) => {
            Err(format!("{} is not the last", calls[last]))
        }
        (Some(_), _) if never_started => Err("called after initialize failed".to_owned()),
        (Some(last), Some(panicked)) if panicked < last => Err("called after a panic".to_owned()),
        (None, None) if !never_started => Err("has no last callback".to_owned()),
        (Some(_) | None, _) => Ok(()),
    }
}

/// The only call was `initialize`, and it was dropped.
fn hung_in_initialize(calls: &[&'static str]) -> bool {
    calls == ["initialize", "end"]
}

async fn run(seed: u64) -> (Vec<(ShardId, u32, &'static str)>, Vec<(String, Event)>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let fleet = Fleet::new(1);
    let log = Log::default();
    let (noted, made) = (Arc::clone(&log), Arc::new(Mutex::new((0, rng.fork()))));
    let failures = match rng.u8(..3) {
        0 => FailurePolicy::Retry,
        1 => FailurePolicy::DeadLetter { attempts: 2 },
        _ => FailurePolicy::ReleaseShard { attempts: 2 },
    };
    let settings = Settings {
        failures,
        callback_deadline: Duration::from_secs(15),
        slow_after: Duration::from_secs(5),
        ..eager()
    };
    let builder = fleet.builder("a").settings(settings).dead_letter(Bin);
    let worker = builder.build().await.unwrap();
    let make = move |shard: &ShardContext| {
        let mut made = made.lock();
        made.0 += 1;
        let (value, rng) = (made.0, made.1.fork());
        let log = Arc::clone(&noted);
        Witness { log, shard: shard.shard_id.clone(), value, rng, held: Vec::new() }
    };
    let worker = worker.start(make).await.unwrap();
    let mut is_split = false;
    for number in 0..30 {
        let open = fleet.stream.shard_of(&number.to_string());
        fleet.stream.put_to(&open, "key", number.to_string());
        tokio::time::sleep(Duration::from_millis(rng.u64(..3_000))).await;
        match rng.u8(..25) {
            0 => {
                fleet.store.set(Faults::Down);
                tokio::time::sleep(Duration::from_secs(12)).await;
                fleet.store.set(Faults::None);
            }
            1 if !is_split => {
                is_split = true;
                fleet.stream.split(&shard());
            }
            _ => {}
        }
    }
    worker.shutdown(DEADLINE).await.unwrap();
    let log = log.lock().clone();
    (log, fleet.events())
}

#[tokio::test(start_paused = true)]
async fn e13_callbacks_come_in_the_order_of_the_contract_whatever_happens() {
    let mut seen = BTreeMap::<&str, u32>::new();
    for seed in 0..150 {
        let (log, events) = run(seed).await;
        let mut values = BTreeMap::<(&ShardId, u32), Vec<&'static str>>::new();
        for (shard, value, call) in &log {
            values.entry((shard, *value)).or_default().push(call);
            *seen.entry(call).or_default() += 1;
        }
        for ((shard, value), calls) in &values {
            if let Err(error) = check(calls) {
                panic!("seed {seed}, value {value} of {shard}: {error}: {calls:?}\n{events:#?}");
            }
        }
    }
    // The seeds reach every outcome.
    for call in ["initialize", "process", "idle", "failed", "panicked"].iter().chain(&LAST) {
        assert!(seen.get(call).is_some_and(|count| *count > 20), "{call}: {seen:?}");
    }
}
