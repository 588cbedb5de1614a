//! Mistakes of learners: each gives one clear line that says where the call failed and what to do.

use std::collections::BTreeSet;

use anyhow::Result;
use e2e::process::Process;
use e2e::server::Aws;
use e2e::workshop::Workshop;

/// The three ways to start a command.
const COMMANDS: [&str; 3] =
    ["./producer -interval 1ms", "./consumer", "./consumer --app wildrydes-tail"];

/// Waits for the end and checks its form: exit code 1, nothing on stdout except the producer's
/// summary, one line on stderr after the opening, with a hint. Returns that line.
async fn failure(mut process: Process) -> Result<String> {
    let code = process.ended().await?.code();
    let transcript = process.transcript();
    let stdout = String::from_utf8_lossy(&transcript.stdout);
    assert_eq!((code, stdout.as_ref()), (Some(1), ""), "{}", transcript.stderr);
    let lines: Vec<_> = transcript.stderr.lines().collect();
    let last = (*lines.last().unwrap()).to_owned();
    assert_eq!(lines.iter().filter(|line| line.contains("hint: ")).count(), 1, "{lines:#?}");
    for part in ["hint: ", "`wildrydes`"] {
        assert!(last.contains(part), "{part}: {lines:#?}");
    }
    assert!(last.len() < 500, "{last}");
    Ok(last)
}

#[tokio::test]
async fn a_missing_stream_and_a_wrong_region_name_where_it_was_searched() -> Result<()> {
    let workshop = Workshop::open().await?;
    workshop.aws.create_stream("another", 1).await?;
    for command in COMMANDS {
        for region in ["us-east-1", "eu-west-1"] {
            let process = workshop.run("learner", &format!("{command} -region {region}"))?;
            let line = failure(process).await?;
            assert!(line.contains(&format!("in region {region} (from -region")), "{line}");
            assert!(line.contains("not found") || line.contains("does not exist"), "{line}");
        }
    }
    let operations = workshop.aws.local.requests().operations("learner");
    assert!(!operations.contains("dynamodb:CreateTable"), "a wrong name leaves no table behind");
    Ok(())
}

#[tokio::test]
async fn no_credentials_are_reported_without_a_screenful() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for command in COMMANDS {
        let mut shell = workshop.shell("learner", &format!("exec {command} -region us-west-2"));
        shell.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        let line = failure(Process::start(command, shell)?).await?;
        for part in ["no AWS credentials", "us-west-2", "aws configure"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_named() -> Result<()> {
    let workshop = Workshop::open().await?;
    let nobody = Aws::start().await?;
    let url = nobody.endpoint_url();
    nobody.shutdown().await;
    let mut processes = Vec::new();
    for command in COMMANDS {
        let line = format!("{command} --endpoint-url {url} --timeout 1s");
        processes.push(workshop.run("learner", &line)?);
    }
    for process in processes {
        process.wait_for("the end", |t| t.is_complete().then_some(())).await?;
        let line = failure_after_retries(process).await?;
        for part in [url.as_str(), "us-east-1", "check the network"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    Ok(())
}

/// Does the same as [`failure`], but allows lines about attempts before the last.
async fn failure_after_retries(mut process: Process) -> Result<String> {
    let code = process.ended().await?.code();
    let transcript = process.transcript();
    assert_eq!((code, transcript.stdout.as_slice()), (Some(1), b"".as_slice()));
    let last = transcript.stderr.lines().last().unwrap();
    assert!(last.contains("hint: ") && last.contains("`wildrydes`"), "{}", transcript.stderr);
    Ok(last.to_owned())
}

#[tokio::test]
async fn the_region_of_the_environment_is_used_and_said() -> Result<()> {
    let workshop = Workshop::open().await?;
    for command in COMMANDS {
        let mut shell = workshop.shell("learner", &format!("exec {command}"));
        shell.env("AWS_REGION", "eu-central-1");
        let line = failure(Process::start(command, shell)?).await?;
        assert!(line.contains("eu-central-1 (from the environment"), "{line}");
    }
    Ok(())
}

/// An instance that continued would hold positions that no other instance knows.
#[tokio::test]
async fn a_lease_table_that_is_deleted_ends_the_group_with_one_line_each() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let line = "./consumer --app wildrydes-tail --failover 5s";
    let group = [workshop.run("one", line)?, workshop.run("two", line)?];
    // Until each instance holds one of the two shards.
    for scans in 1.. {
        let owners: BTreeSet<_> =
            workshop.aws.owners("wildrydes-tail").await.into_values().collect();
        if owners.len() == 2 {
            break;
        }
        workshop.aws.local.requests().wait_for("two", "Scan", scans).await;
    }
    workshop.aws.dynamo.delete_table().table_name("wildrydes-tail").send().await?;
    for mut member in group {
        assert_eq!(member.ended().await?.code(), Some(1), "{member:?}");
        let transcript = member.transcript();
        assert_eq!(transcript.stdout, b"");
        let last: Vec<_> =
            transcript.stderr.lines().filter(|it| it.contains("was deleted while")).collect();
        let [last] = last.as_slice() else { panic!("{}", transcript.stderr) };
        for part in ["`wildrydes-tail`", "restart the workers"] {
            assert!(last.contains(part), "{part}: {last}");
        }
    }
    Ok(())
}
