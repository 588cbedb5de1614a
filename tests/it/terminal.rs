//! How the commands behave between a keyboard and a pipe.

use anyhow::Result;
use e2e::process::Process;
use e2e::workshop::Workshop;
use local_aws::{Effect, Rule};

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
async fn stdout_has_records_only_also_when_much_is_told() -> Result<()> {
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
    for told in ["reading stream `wildrydes`", "started shard", &printed] {
        assert!(transcript.stderr.contains(told), "{told}: {}", transcript.stderr);
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
    consumer.wait_for_stderr("Ctrl-C ends at once").await?;
    assert_eq!(consumer.stop(INT).await?, 130);
    stop_producers([&mut producer]).await
}
