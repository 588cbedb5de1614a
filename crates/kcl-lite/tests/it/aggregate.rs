//! The example `aggregate` on paused time: no minute is lost when a worker is killed or stopped, or when
//! rows cannot be written for a while.
//!
//! Two unicorns send a reading per second; the rows are compared with sums computed while sending.

#[path = "../../examples/aggregate/processor.rs"]
mod processor;
#[path = "../../examples/aggregate/window.rs"]
mod window;

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    BoxError, ControlPlane, Heartbeat, InitialPosition, Settings, Worker, WorkerHandle,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use self::processor::{Aggregate, RowSink};
use self::window::Row;

const SECOND: Duration = Duration::from_secs(1);
/// A limit on paused time, which only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// Distance by name and minute (in milliseconds since 1970).
type Sums = BTreeMap<(String, i64), f64>;

#[derive(Debug, Clone, Default)]
struct Rows(Arc<RowsInner>);

#[derive(Debug, Default)]
struct RowsInner {
    rows: Mutex<BTreeMap<(String, String), Row>>,
    refusing: Mutex<bool>,
    changed: Notify,
}

impl RowSink for Rows {
    async fn put(&self, rows: &[Row], _: &Heartbeat) -> Result<(), BoxError> {
        if *self.0.refusing.lock() {
            return Err("the table is away".into());
        }
        for row in rows {
            let key = (row.name.clone(), row.status_time.clone());
            let before = self.0.rows.lock().insert(key, row.clone());
            // A replay writes the same row: any other would replace a complete row by a partial one.
            assert!(before.is_none_or(|before| before == *row), "another row for {row:?}");
        }
        self.0.changed.notify_one();
        Ok(())
    }
}

impl Rows {
    fn refuse(&self, refuse: bool) {
        *self.0.refusing.lock() = refuse;
    }

    fn sums(&self) -> Sums {
        let rows = self.0.rows.lock();
        let minute = |row: &Row| {
            let time = row.status_time.replace(' ', "T") + "Z";
            time.parse::<jiff::Timestamp>().unwrap().as_millisecond()
        };
        rows.values().map(|row| ((row.name.clone(), minute(row)), row.distance)).collect()
    }

    async fn until(&self, expected: &Sums) {
        let complete = async {
            while self.sums().len() < expected.len() {
                self.0.changed.notified().await;
            }
        };
        timeout(PATIENCE, complete).await.expect("all rows come out");
        assert_eq!(self.sums(), *expected);
    }
}

struct Ride {
    stream: MemoryStream,
    store: MemoryStore,
    rows: Rows,
    sent: Sums,
    started: Instant,
}

impl Ride {
    fn new() -> Self {
        Self {
            // Small replies, so that some replies of a backlog span the end of a minute.
            stream: MemoryStream::new(1).with_read_limit(25),
            store: MemoryStore::new(),
            rows: Rows::default(),
            sent: Sums::new(),
            started: Instant::now(),
        }
    }

    async fn worker(&self, id: &str) -> WorkerHandle {
        let rows = self.rows.clone();
        let settings = Settings {
            control_plane: ControlPlane::Inline,
            initial_position: InitialPosition::TrimHorizon,
            seed: Some(7),
            ..Settings::default()
        };
        let worker = Worker::builder("aggregate", "wildrydes")
            .worker_id(id)
            .settings(settings)
            .lease_store(self.store.clone())
            .stream(self.stream.clone());
        let worker = worker.build().await.unwrap();
        worker.start(move |shard| Aggregate::new(rows.clone(), shard)).await.unwrap()
    }

    /// Both unicorns send a reading every second until `second` of the ride.
    async fn until_second(&mut self, second: u64) {
        let mut next = (Instant::now() - self.started).as_secs() + 1;
        while next <= second {
            sleep_until(self.started + SECOND * u32::try_from(next).unwrap()).await;
            for (name, distance) in [("Shadowfax", 100 + next % 20), ("Bucephalus", next)] {
                self.send(name, distance);
            }
            next += 1;
        }
    }

    fn send(&mut self, name: &str, distance: u64) {
        let reading = format!(
            r#"{{"Name":"{name}","StatusTime":"","Latitude":0.5,"Distance":{distance},"MagicPoints":1,"HealthPoints":2}}"#
        );
        self.stream.put(name, reading);
        let minute = self.stream.now().as_millis().div_euclid(60_000) * 60_000;
        *self.sent.entry((name.to_owned(), minute)).or_default() += distance as f64;
    }
}

/// Kills workers at many moments of a ride of five minutes. The next worker takes the expired lease, reads
/// the open minute again, and writes the row that the killed one would have written. The second worker
/// starts late, finds a backlog, and is killed soon after it has stored a position in it.
#[tokio::test(start_paused = true)]
async fn a_killed_worker_loses_no_minute() {
    for kill_at in (5..200).step_by(13) {
        let mut ride = Ride::new();
        let killed = ride.worker("killed").await;
        ride.until_second(kill_at).await;
        killed.abort();
        ride.until_second(kill_at + 45).await;
        let heir = ride.worker("heir").await;
        ride.until_second(kill_at + 60).await;
        heir.abort();
        let _last = ride.worker("last").await;
        ride.until_second(300).await;
        // The last minute has no record after it: silence closes it.
        ride.rows.until(&ride.sent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_worker_leaves_the_open_minute_to_the_next() {
    let mut ride = Ride::new();
    let stopped = ride.worker("stopped").await;
    ride.until_second(100).await;
    let asked = Instant::now();
    let report = stopped.shutdown(PATIENCE).await.unwrap();
    assert!(asked.elapsed() < 5 * SECOND, "the open minute must not hold up a stop");
    assert!(!report.shards.values().any(|shard| shard.drained), "{report:?}");
    let before = ride.rows.sums();
    assert!(!before.is_empty() && before.len() < ride.sent.len(), "{before:?}");
    let _heir = ride.worker("heir").await;
    ride.until_second(150).await;
    ride.rows.until(&ride.sent).await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_put_out_for_a_while_are_put_out_later_and_counted_once() {
    let mut ride = Ride::new();
    let _worker = ride.worker("worker").await;
    ride.until_second(30).await;
    ride.rows.refuse(true);
    ride.until_second(110).await;
    assert!(ride.rows.sums().is_empty());
    ride.rows.refuse(false);
    ride.until_second(200).await;
    ride.rows.until(&ride.sent).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_no_reading_does_not_hold_up_the_shard() {
    let mut ride = Ride::new();
    let _worker = ride.worker("worker").await;
    ride.until_second(10).await;
    ride.stream.put("Shadowfax", "not JSON");
    ride.until_second(100).await;
    ride.rows.until(&ride.sent).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_split_ends_when_its_last_minute_is_out() {
    let mut ride = Ride::new();
    let _worker = ride.worker("worker").await;
    ride.until_second(30).await;
    let parent = ride.stream.shard_of("Shadowfax");
    ride.stream.split(&parent);
    ride.rows.until(&ride.sent).await;
    ride.until_second(170).await;
    ride.rows.until(&ride.sent).await;
}
