//! The commands between a keyboard and a pipe.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::Result;
use e2e::account::{Account, first_disorder};
use e2e::process::{PATIENCE, Process};
use e2e::workshop::Workshop;
use local_aws::{Effect, Rule};
use rustix::process::{Pid, kill_process};
use tokio::time::timeout;

use crate::{INT, STEADY, TERM, stop_producers};

#[tokio::test]
async fn a_reader_that_leaves_ends_the_consumer_quietly() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut producer = workshop.run("p", "./producer -interval 20ms")?;
    for sharing in ["", "--app wildrydes-tail"] {
        let line = format!(
            "{{ ./consumer --poll-interval 200ms {sharing}; echo \"exit code $?\" >&2; }} | head -1"
        );
        let mut pipe = Process::start("the pipe", workshop.shell("c", &line))?;
        assert_eq!(pipe.ended().await?.code(), Some(0));
        let transcript = pipe.transcript();
        assert_eq!(transcript.stdout, b"{\n");
        let lines: Vec<_> = transcript.stderr.lines().collect();
        assert_eq!((lines.len(), lines[1]), (2, "exit code 0"), "{lines:#?}");
    }
    stop_producers([&mut producer]).await
}

#[tokio::test]
async fn stdout_has_records_only_also_when_much_is_reported() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 4 -interval 20ms")?;
    let line = format!("./consumer --app wildrydes-tail --output json -v {STEADY}");
    let mut consumer = workshop.run("c", &line)?;
    consumer.wait_for_records(20).await?;
    assert_eq!(consumer.stop(TERM).await?, 0);
    stop_producers([&mut producer]).await?;
    let transcript = consumer.transcript();
    assert!(transcript.documents.iter().all(|document| document.id.is_some()));
    assert_eq!(transcript.stdout.last(), Some(&b'\n'));
    let printed = format!("printed {} records", transcript.documents.len());
    for reported in ["reading stream `wildrydes`", "started shard", &printed] {
        assert!(transcript.stderr.contains(reported), "{reported}: {}", transcript.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_quiet_run_is_two_lines_on_stderr() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 4 -interval 20ms")?;
    let mut consumer = workshop.run("c", &format!("./consumer --app wildrydes-tail {STEADY}"))?;
    consumer.wait_for_records(20).await?;
    let (shard, ..) = workshop.aws.open_shards("wildrydes").await?.swap_remove(0);
    workshop.aws.split("wildrydes", &shard).await?;
    let printed = consumer.transcript().documents.len();
    consumer.wait_for_records(printed + 40).await?;
    assert_eq!(consumer.stop(INT).await?, 0);
    stop_producers([&mut producer]).await?;
    let stderr = consumer.transcript().stderr.clone();
    assert_eq!(stderr.lines().count(), 2, "neither a reshard nor a stop is news: {stderr}");
    Ok(())
}

/// The first Ctrl-C waits for a checkpoint that is never answered; the second does not.
#[tokio::test]
async fn a_second_ctrl_c_ends_at_once_with_130() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut producer = workshop.run("p", "./producer -interval 20ms")?;
    let mut consumer = workshop.run("c", &format!("./consumer --app wildrydes-tail {STEADY}"))?;
    consumer.wait_for_records(5).await?;
    workshop.aws.local.faults().add(Rule::new(Effect::Hang).client("c").operation("UpdateItem"));
    consumer.signal(INT)?;
    consumer.wait_for_stderr("press Ctrl-C again to exit now").await?;
    assert_eq!(consumer.stop(INT).await?, 130);
    stop_producers([&mut producer]).await
}

/// A pipe without a reader accepts a fraction of this number of records.
const MUCH: usize = 2_000;

/// Starts a consumer whose stdout is not read; returns when it has had time to fill the pipe.
async fn unread_consumer(workshop: &Workshop, line: &str) -> Result<Process> {
    let producer = format!("./producer -unicorns 4 -rate 1000 -count {MUCH}");
    assert_eq!(workshop.run("p", &producer)?.ended().await?.code(), Some(0));
    let shell = workshop.shell("c", &format!("exec {line}"));
    let consumer = Process::start_unread("the consumer", shell)?;
    let requests = workshop.aws.local.requests();
    requests.wait_for("c", "GetRecords", 2).await;
    // Two seconds of renewals.
    requests.wait_for("c", "UpdateItem", requests.count("c", "UpdateItem") + 6).await;
    Ok(consumer)
}

/// Stdout blocks for longer than a callback without progress may take: each record is printed once
/// and in order, and the checkpoint follows.
#[tokio::test]
async fn a_reader_that_pauses_gets_each_record_once_and_in_order() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let flags = "--poll-interval 200ms --failover 1s --callback-deadline 3s";
    let line = format!("./consumer --app tail --from trim-horizon -v {flags}");
    let mut consumer = unread_consumer(&workshop, &line).await?;
    // Two shards, each renewed three times a second.
    let requests = workshop.aws.local.requests();
    requests.wait_for("c", "UpdateItem", requests.count("c", "UpdateItem") + 48).await;
    consumer.read_stdout();
    consumer.wait_for_records(MUCH).await?;
    assert_eq!(consumer.stop(INT).await?, 0);
    let sent = workshop.aws.sent("wildrydes").await?;
    let transcript = consumer.transcript();
    let seen: Vec<_> = transcript.ids().cloned().collect();
    assert_eq!((seen.len(), first_disorder(&seen)), (MUCH, None), "{}", transcript.stderr);
    let account = Account::of(&sent, &seen);
    assert_eq!((&account.lost, &account.unknown), (&vec![], &vec![]));
    for sign in ["(no progress)", "lost lease"] {
        assert!(!transcript.stderr.contains(sign), "{}", transcript.stderr);
    }
    drop(transcript);
    // Every record was checkpointed: the next instance begins with new records.
    workshop.aws.put("wildrydes", "last", b"last").await?;
    let mut next = workshop.run("next", "./consumer --app tail --output raw")?;
    next.wait_for_records(1).await?;
    assert_eq!(next.stop(INT).await?, 0);
    assert_eq!(next.transcript().stdout, b"last\n");
    Ok(())
}

/// The consumer waits for the reader for a while, and then leaves the records that the pipe has no
/// room for to the next instance.
#[tokio::test]
async fn a_first_ctrl_c_ends_in_time_while_nobody_reads_stdout_and_nothing_comes_twice()
-> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let line = "./consumer --app tail --from trim-horizon --failover 1s";
    let mut first = unread_consumer(&workshop, line).await?;
    first.signal(INT)?;
    first.wait_for_stderr("was not fully drained").await?;
    assert_eq!(first.ended().await?.code(), Some(0));
    assert!(workshop.aws.owners("tail").await.is_empty(), "every shard was released");
    let mut next = workshop.run("next", "./consumer --app tail --failover 1s")?;
    let printed = first.transcript().documents.len();
    assert!((1..MUCH).contains(&printed), "{printed}");
    next.wait_for_records(MUCH - printed).await?;
    assert_eq!(next.stop(INT).await?, 0);
    let sent = workshop.aws.sent("wildrydes").await?;
    let (first, next) = (first.transcript(), next.transcript());
    let seen: Vec<_> = first.ids().chain(next.ids()).cloned().collect();
    let account = Account::of(&sent, &seen);
    assert_eq!((account.seen, account.repeats, first_disorder(&seen)), (MUCH, 0, None));
    Ok(())
}

#[tokio::test]
async fn a_second_ctrl_c_ends_at_once_also_while_nobody_reads_stdout() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let line = "./consumer --app tail --from trim-horizon --failover 1s";
    let mut consumer = unread_consumer(&workshop, line).await?;
    consumer.signal(INT)?;
    consumer.wait_for_stderr("waiting for stdout").await?;
    consumer.signal(INT)?;
    let status = consumer.ended().await?;
    assert_eq!(status.code(), Some(130));
    Ok(())
}

/// Without records no write fails, so that the closed pipe must be detected itself.
#[tokio::test]
async fn a_reader_that_leaves_a_quiet_stream_ends_the_consumer_and_frees_its_shard() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for sharing in ["", "--app tail --failover 5m"] {
        let shell = workshop.shell("c", &format!("exec ./consumer -v {sharing}"));
        let mut consumer = Process::start_unread("the consumer", shell)?;
        consumer.wait_for_stderr("started shard").await?;
        consumer.close_stdout();
        assert_eq!(consumer.ended().await?.code(), Some(0));
    }
    assert!(workshop.aws.owners("tail").await.is_empty());
    Ok(())
}

/// The next period is an hour away.
#[tokio::test]
async fn a_reader_that_leaves_between_two_periods_ends_the_producer() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let shell = workshop.shell("p", "exec ./producer -interval 1h");
    let mut producer = Process::start_unread("the producer", shell)?;
    producer.wait_for_stderr("unicorn `Shadowfax`").await?;
    producer.close_stdout();
    assert_eq!(producer.ended().await?.code(), Some(0));
    Ok(())
}

/// A pipe that is full before the first period.
#[tokio::test]
async fn a_producer_hears_signals_while_nobody_reads_its_stdout() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    // Two different signals, because two equal ones may be merged.
    for (signals, code) in [(&[INT][..], 0), (&[INT, TERM], 130)] {
        let (unread, mut full) = std::io::pipe()?;
        full.write_all(&[b'x'; 1 << 16])?;
        let client = format!("p{code}");
        let mut shell = workshop.shell(&client, "exec ./producer -interval 10ms");
        shell.stdin(Stdio::null()).stdout(full).stderr(Stdio::null()).kill_on_drop(true);
        let mut producer = shell.spawn()?;
        let id = producer.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).unwrap();
        workshop.aws.local.requests().wait_for(&client, "PutRecord", 1).await;
        for signal in signals {
            kill_process(id, *signal)?;
        }
        let status = timeout(PATIENCE, producer.wait()).await??;
        assert_eq!(status.code(), Some(code));
        drop(unread);
    }
    Ok(())
}
