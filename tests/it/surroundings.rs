//! Faulty surroundings of the commands: the clock, the network at the start, the limit of open
//! files, and a stderr that is not a terminal.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::process::{PATIENCE, Process};
use e2e::server::Aws;
use e2e::workshop::Workshop;
use local_aws::{Effect, LocalAws, Rule};
use tokio::time::timeout;

use crate::{INT, STEADY};

const HOUR: Duration = Duration::from_secs(3600);

/// The local clock is an hour behind the services', then two.
#[tokio::test]
async fn a_wrong_clock_and_one_that_jumps_are_waited_out() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let local = &workshop.aws.local;
    local.clock().advance(HOUR);
    let dates = local.faults().add(Rule::new(Effect::CheckDate));
    let mut producer = workshop.run("p", "./producer -unicorns 4 -interval 20ms")?;
    let tail = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let mut consumer = workshop.run("c", &tail)?;
    consumer.wait_for_records(20).await?;
    local.clock().advance(HOUR);
    let printed = consumer.transcript().documents.len();
    consumer.wait_for_records(printed + 40).await?;
    assert!(local.faults().fired(dates) > 0);
    for process in [&mut producer, &mut consumer] {
        assert_eq!(process.stop(INT).await?, 0, "{}", process.transcript().stderr);
    }
    let reported = &producer.transcript().stderr;
    assert!(reported.contains("hint: set the clock of this machine"), "{reported}");
    Ok(())
}

/// No server listens yet. Both commands report that at once, in the same words, and continue when a
/// server starts.
#[tokio::test]
async fn a_network_that_is_down_at_the_start_is_waited_for_visibly() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let nobody = Aws::start().await?;
    let url = nobody.endpoint_url();
    nobody.shutdown().await;
    let producer = format!("./producer -interval 20ms --endpoint-url {url}");
    let mut producer = workshop.run("p", &producer)?;
    let consumer = format!("./consumer --from trim-horizon {STEADY} --endpoint-url {url}");
    let consumer = consumer.replace("--failover 30s", "");
    let mut consumer = workshop.run("c", &consumer)?;
    for process in [&producer, &consumer] {
        process.wait_for_stderr("check the network, the region's name and the endpoint").await?;
    }
    let address = url.strip_prefix("http://").context("a URL")?.parse()?;
    let late = LocalAws::in_memory();
    let create = aws_sdk_kinesis::Client::new(&late.sdk_config("harness")).create_stream();
    create.stream_name("wildrydes").shard_count(1).send().await?;
    let server = late.serve_on(address).await?;
    consumer.wait_for_records(3).await?;
    for process in [&mut producer, &mut consumer] {
        assert_eq!(process.stop(INT).await?, 0);
    }
    let said = |process: &Process| {
        let stderr = process.transcript().stderr.clone();
        let line = stderr.lines().find(|line| line.contains("hint: ")).unwrap_or_default();
        let (_, what) = line.split_once("failed, retrying on ").unwrap_or_default();
        what.to_owned()
    };
    assert!(!said(&producer).is_empty());
    assert_eq!(said(&producer), said(&consumer));
    server.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_timeout_ends_the_wait_of_a_script_with_the_last_reason() -> Result<()> {
    let workshop = Workshop::open().await?;
    let nobody = Aws::start().await?;
    let url = nobody.endpoint_url();
    nobody.shutdown().await;
    for command in ["producer", "consumer", "consumer --app wildrydes-tail"] {
        let line = format!("./{command} --timeout 1s --endpoint-url {url}");
        let mut process = workshop.run("script", &line)?;
        assert_eq!(process.ended().await?.code(), Some(1));
        let stderr = process.transcript().stderr.clone();
        let last = stderr.lines().last().unwrap();
        for part in ["kept failing until --timeout on stream `wildrydes`", &url, "hint: check the"]
        {
            assert!(last.contains(part), "{part}: {stderr}");
        }
    }
    Ok(())
}

/// A call that can never succeed ends both commands at once, with the same message.
#[tokio::test]
async fn what_no_wait_changes_is_the_same_line_of_both_commands() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for (code, hint) in [
        ("KMSDisabledException", "enable the KMS key"),
        ("KMSOptInRequired", "enable the KMS key"),
        ("NotAuthorized", "for these credentials, see deploy/iam"),
        ("ExpiredTokenException", "aws sso login"),
        ("SomethingForbidden", "check a proxy or an endpoint policy"),
    ] {
        let effect = Effect::FailBefore { code: code.to_owned(), status: 403 };
        let rule = workshop.aws.local.faults().add(Rule::new(effect));
        let mut lines = Vec::new();
        for command in ["producer -interval 1ms", "consumer"] {
            let mut process = workshop.run("learner", &format!("./{command}"))?;
            assert_eq!(process.ended().await?.code(), Some(1));
            let stderr = process.transcript().stderr.clone();
            let (_, line) = stderr.lines().last().unwrap().split_once(" failed on ").unwrap();
            assert!(line.contains(&format!(": {code}: injected")), "{line}");
            assert!(line.contains(hint) && !line.contains("aws configure"), "{line}");
            // The commands make different calls, so the action differs.
            lines.push(line.replace("PutRecord", "").replace("ListShards", ""));
        }
        assert_eq!(lines[0], lines[1]);
        workshop.aws.local.faults().remove(rule);
    }
    Ok(())
}

/// The shell's soft limit is too low for the number of shards, and is raised.
#[tokio::test]
async fn fan_out_takes_a_connection_per_shard_and_few_for_the_table() -> Result<()> {
    const SHARDS: usize = 100;
    let workshop = Workshop::with_shards(100).await?;
    let line = "ulimit -Sn 64; exec ./consumer --app wildrydes-tail --fan-out -v";
    let mut consumer = Process::start("consumer", workshop.shell("c", line))?;
    let requests = workshop.aws.local.requests();
    let calls = async {
        requests.wait_for("c", "SubscribeToShard", SHARDS as u64).await;
        // Each lease is taken once, and all are renewed at the same times.
        requests.wait_for("c", "UpdateItem", 4 * SHARDS as u64).await;
    };
    timeout(PATIENCE, calls).await.context("all shards are read, and their leases renewed")?;
    let sockets = fs::read_dir(format!("/proc/{}/fd", consumer.id()))?
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count();
    let stderr = consumer.transcript().stderr.clone();
    assert!((SHARDS..SHARDS + 60).contains(&sockets), "{sockets} sockets: {stderr}");
    assert!(!stderr.contains("open files"), "{stderr}");
    assert_eq!(consumer.stop(INT).await?, 0);
    Ok(())
}

#[tokio::test]
async fn both_commands_raise_the_soft_limit_of_open_files() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for command in ["producer -interval 1ms", "consumer -v"] {
        let line = format!("ulimit -Sn 64; ulimit -Hn 128; exec ./{command}");
        let mut process = Process::start(command, workshop.shell("c", &line))?;
        // The limit is raised before this line is printed.
        process.wait_for_stderr("wildrydes").await?;
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.id()))?;
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let files: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
        assert_eq!(files, ["128", "128"], "soft and hard limit of {command}");
        assert_eq!(process.stop(INT).await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn too_few_open_files_are_named_and_not_the_network() -> Result<()> {
    let workshop = Workshop::with_shards(100).await?;
    let line = "ulimit -n 64; exec ./consumer --app wildrydes-tail --fan-out";
    let mut consumer = Process::start("consumer", workshop.shell("c", line))?;
    consumer.wait_for_stderr("hint: raise the limit of open files, with `ulimit -n 4096`").await?;
    assert!(!consumer.transcript().stderr.contains("check the network"));
    consumer.kill().await
}

#[tokio::test]
async fn a_stderr_that_is_no_terminal_gets_no_escape_sequences() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for (command, flags) in [("producer", "-count 30 -interval 1ms"), ("consumer", "-v")] {
        let line = format!("RUST_LOG=debug exec ./{command} {flags}");
        let mut process = Process::start(command, workshop.shell("c", &line))?;
        process.wait_for_stderr("DEBUG").await?;
        if command == "consumer" {
            process.stop(INT).await?;
        }
        process.ended().await?;
        assert!(!process.transcript().stderr.contains('\u{1b}'));
        let mut usage = workshop.run("c", &format!("./{command} -bogus"))?;
        assert_eq!(usage.ended().await?.code(), Some(2));
        assert!(!usage.transcript().stderr.contains('\u{1b}'));
    }
    Ok(())
}
