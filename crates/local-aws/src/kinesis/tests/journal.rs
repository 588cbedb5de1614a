//! Tests of the state after a kill, on a copy of the files taken while the service still runs.

use std::path::Path;

use super::*;

fn open(directory: &Path, now_ms: i64) -> Local {
    let clock = Clock::starting_at(now_ms);
    let kinesis = Kinesis::open(clock.clone(), KinesisOptions::default(), directory).unwrap();
    Local { clock, kinesis }
}

/// Copies the files as a killed process leaves them.
fn killed(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory).unwrap() {
        let file = file.unwrap();
        // The shared memory of a dead process is rebuilt from the log.
        if !file.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    copy
}

const NOW: i64 = 1_700_000_000_000;

#[tokio::test(start_paused = true)]
async fn everything_acknowledged_is_there_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let local = open(directory.path(), NOW);
    local.create(1);
    local.ok("AddTagsToStream", &json!({"StreamName": "s", "Tags": {"a": "1"}}));
    local.put("parent");
    local.split(0, 1 << 127);
    let records: Vec<_> =
        (0..20).map(|i| json!({"PartitionKey": format!("{i}"), "Data": base64("child")})).collect();
    local.ok("PutRecords", &json!({"StreamName": "s", "Records": records}));
    let last = local.put("last");
    let iterator = local.trim_horizon(0);

    let copy = killed(directory.path());
    let after = open(copy.path(), NOW);
    assert_eq!(after.shards(), local.shards());
    for shard in 0..3 {
        assert_eq!(
            after.get(&after.trim_horizon(shard))["Records"],
            local.get(&local.trim_horizon(shard))["Records"],
        );
    }
    assert_eq!(texts_of(&after.get(&iterator)), ["parent"], "iterators live on");
    assert!(after.put("next") > last, "numbers go on");
    assert_eq!(
        after.ok("DescribeStream", &json!({"StreamName": "s"})),
        local.ok("DescribeStream", &json!({"StreamName": "s"})),
    );
    assert_eq!(
        after.ok("ListTagsForStream", &json!({"StreamName": "s"})),
        local.ok("ListTagsForStream", &json!({"StreamName": "s"})),
    );
}

#[tokio::test(start_paused = true)]
async fn time_and_sequence_numbers_do_not_go_back_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let local = open(directory.path(), NOW);
    local.create(1);
    local.clock.advance(Duration::from_hours(1));
    let before = local.put("before");
    // After trimming, no record is left that shows the highest number issued.
    local.clock.advance(Duration::from_hours(25));
    assert_eq!(local.texts_from(local.trim_horizon(0)), Vec::<String>::new());

    let copy = killed(directory.path());
    let after = open(copy.path(), NOW);
    let answer = after.ok("DescribeStreamSummary", &json!({"StreamName": "s"}));
    assert_eq!(answer["StreamDescriptionSummary"]["StreamStatus"], "ACTIVE");
    after.settle();
    assert!(after.put("after") > before);
    assert_eq!(after.texts_from(after.trim_horizon(0)), ["after"], "what was trimmed stays away");
}

#[tokio::test(start_paused = true)]
async fn the_clock_starts_at_the_latest_stored_time() {
    let directory = tempfile::tempdir().unwrap();
    let local = open(directory.path(), NOW);
    local.create(1);
    local.clock.advance(Duration::from_hours(1));
    local.put("late");
    let written = local.clock.now_ms();
    let copy = killed(directory.path());
    let after = open(copy.path(), NOW);
    assert_eq!(after.clock.now_ms(), written);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_stream_stays_deleted_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let local = open(directory.path(), NOW);
    local.create(1);
    local.put("gone");
    local.ok("DeleteStream", &json!({"StreamName": "s"}));
    local.settle();
    assert_eq!(local.ok("ListStreams", &json!({}))["StreamNames"], json!([]));
    let copy = killed(directory.path());
    let file = rusqlite::Connection::open(copy.path().join("kinesis.sqlite3")).unwrap();
    let records: i64 =
        file.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
    assert_eq!(records, 0, "its records do not stay on the disk");
    let after = open(copy.path(), NOW);
    assert_eq!(after.ok("ListStreams", &json!({}))["StreamNames"], json!([]));
    after.create(1);
    assert_eq!(after.texts_from(after.trim_horizon(0)), Vec::<String>::new());
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("kinesis.sqlite3"), "not a database at all").unwrap();
    let options = KinesisOptions::default();
    assert!(Kinesis::open(Clock::new(), options, directory.path()).is_err());
}
