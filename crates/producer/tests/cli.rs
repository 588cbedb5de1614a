//! Tests of the real binary against local-aws over a socket: signals, exit codes, one line per
//! failure.
//!
//! What is stored and when is tested with the loop, on paused time; a test here waits for output, a
//! connection or the end of the process.

#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::client::Waiters;
use local_aws::{LocalAws, Server};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Only ends a test that hangs; no test takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns a `producer` with these flags, without AWS settings in its environment except dummy
/// keys.
fn producer(flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command.args(flags.split_whitespace()).env_clear();
    command.env("AWS_ACCESS_KEY_ID", "producer").env("AWS_SECRET_ACCESS_KEY", "not-a-secret");
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

struct Ended {
    code: Option<i32>,
    out: String,
    notes: String,
}

async fn ended(mut command: Command) -> Ended {
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), notes: text(output.stderr) }
}

/// Reads up to and including the `n`th `byte`.
async fn read_until(n: usize, byte: u8, from: &mut (impl AsyncRead + Unpin)) -> String {
    let mut read = Vec::new();
    let reading = async {
        while read.iter().filter(|b| **b == byte).count() < n {
            read.push(from.read_u8().await.expect("it goes on"));
        }
    };
    timeout(PATIENCE, reading).await.expect("it is written");
    String::from_utf8(read).unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id().expect("it runs")).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
}

async fn exit(mut child: Child) -> ExitStatus {
    timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap()
}

async fn served(stream: Option<&str>) -> (LocalAws, Server) {
    // ACTIVE immediately, because the SDK's waiter polls every ten seconds.
    let local = LocalAws::builder().transition(Duration::ZERO).build().unwrap();
    if let Some(stream) = stream {
        let client = Client::new(&local.sdk_config("test"));
        client.create_stream().stream_name(stream).shard_count(1).send().await.unwrap();
        let active = client.wait_until_stream_exists().stream_name(stream);
        active.wait(PATIENCE).await.unwrap();
    }
    let server = local.serve().await.unwrap();
    (local, server)
}

#[tokio::test]
async fn ctrl_c_and_sigterm_end_in_good_order() {
    let (local, server) = served(Some("wildrydes")).await;
    for stop in [Signal::INT, Signal::TERM] {
        let mut command = producer("-region us-west-2 -name Bucephalus -interval 20ms");
        command.env("AWS_ENDPOINT_URL", server.endpoint_url());
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut out = read_until(3, b'.', &mut stdout).await;
        signal(&child, stop);
        timeout(PATIENCE, stdout.read_to_string(&mut out)).await.unwrap().unwrap();
        assert_eq!(exit(child).await.code(), Some(0));
        let sent = out.matches('.').count();
        assert_eq!(out, format!("{}\nsent {sent} records\n", ".".repeat(sent)));
    }
    assert_eq!(
        local.requests().operations("producer").into_iter().collect::<Vec<_>>(),
        ["kinesis:PutRecord"]
    );
    server.shutdown().await;
}

/// Starts a producer against a port that accepts a request and never answers: the put is in flight,
/// whatever the load of the machine.
async fn hung_put(flags: &str) -> (Child, tokio::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let child = producer(flags).env("AWS_ENDPOINT_URL", url).spawn().unwrap();
    let (mut connection, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    connection.read_u8().await.unwrap();
    (child, connection)
}

#[tokio::test]
async fn a_second_signal_ends_at_once_with_130() {
    let (child, _connection) = hung_put("-interval 1ms").await;
    signal(&child, Signal::INT);
    signal(&child, Signal::TERM);
    assert_eq!(exit(child).await.code(), Some(130));
}

#[tokio::test]
async fn a_put_without_an_answer_does_not_hold_up_the_end() {
    let (mut child, _connection) = hung_put("-interval 1ms").await;
    signal(&child, Signal::INT);
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!((out.as_str(), exit(child).await.code()), ("\nsent 0 records\n", Some(0)));
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_ride_quietly() {
    let (_local, server) = served(Some("wildrydes")).await;
    let mut command = producer("-interval 1ms");
    let mut child = command.env("AWS_ENDPOINT_URL", server.endpoint_url()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    read_until(1, b'.', &mut stdout).await;
    drop(stdout);
    let mut notes = String::new();
    child.stderr.take().unwrap().read_to_string(&mut notes).await.unwrap();
    assert_eq!((notes.lines().count(), exit(child).await.code()), (1, Some(0)), "{notes}");
}

#[tokio::test]
async fn count_unicorns_and_create_stream_work_together() {
    let (local, server) = served(None).await;
    let url = server.endpoint_url();
    let flags = "--stream herd --create-stream 2 --unicorns 4 --count 8 --interval 10ms";
    let ended = ended(producer(&format!("{flags} --endpoint-url {url}"))).await;
    assert_eq!((ended.out.as_str(), ended.code), ("..\nsent 8 records\n", Some(0)));
    assert!(ended.notes.contains("records/s, 0 failures"), "{}", ended.notes);
    assert_eq!(local.requests().count("producer", "PutRecords"), 2);
}

#[tokio::test]
async fn a_missing_stream_is_one_line_with_stream_region_and_hint() {
    let (_local, server) = served(Some("wildrydes")).await;
    let url = server.endpoint_url();
    let flags = format!("-stream wild-rides -region eu-west-1 -interval 1ms -endpoint-url {url}");
    let ended = ended(producer(&flags)).await;
    assert_eq!((ended.out.as_str(), ended.code), ("", Some(1)));
    let lines = ended.notes.lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), 2, "the opening and the failure: {}", ended.notes);
    for part in ["`wild-rides`", "eu-west-1 (from -region", "was not found", "--create-stream 1"] {
        assert!(lines[1].contains(part), "{part}: {}", lines[1]);
    }
}

#[tokio::test]
async fn without_credentials_one_line_says_so() {
    let mut command = producer("-interval 1ms -endpoint-url http://127.0.0.1:9");
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let ended = ended(command).await;
    assert_eq!(ended.code, Some(1));
    let last = ended.notes.lines().last().unwrap();
    assert!(last.contains("no AWS credentials") && last.contains("hint: run `aws configure`"));
    assert!(last.len() < 400 && ended.notes.lines().count() == 2, "{}", ended.notes);
}

#[tokio::test]
async fn the_region_comes_from_the_flag_then_the_environment_then_the_profile() {
    let (_local, server) = served(None).await;
    let file = format!("{}/aws-config", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&file, "[default]\nregion = ap-south-1\n").unwrap();
    for (flags, environment, expected) in [
        ("-region us-west-2", vec![("AWS_REGION", "eu-west-1")], "us-west-2 (from -region"),
        ("", vec![("AWS_REGION", "eu-west-1")], "eu-west-1 (from the environment"),
        ("", vec![("AWS_DEFAULT_REGION", "eu-west-2")], "eu-west-2 (from the environment"),
        ("", vec![("AWS_CONFIG_FILE", file.as_str())], "ap-south-1 (from the AWS profile"),
        ("", vec![], "us-east-1 (the default"),
    ] {
        let mut command = producer(&format!("{flags} -interval 1ms"));
        command.env("AWS_ENDPOINT_URL", server.endpoint_url()).envs(environment);
        let ended = ended(command).await;
        let opening = ended.notes.lines().next().unwrap();
        assert!(opening.contains(&format!("in region {expected}")), "{expected}: {opening}");
    }
}

#[tokio::test]
async fn usage_errors_exit_with_2_and_help_with_0() {
    for (flags, code) in [
        ("-bogus", 2),
        ("foo -name Z", 2),
        ("-name", 2),
        ("-interval never", 2),
        ("-region YOUR_REGION_HERE", 2),
        ("-h", 0),
        ("-help", 0),
        ("--version", 0),
    ] {
        let ended = ended(producer(flags)).await;
        assert_eq!((ended.code, ended.out.is_empty()), (Some(code), code == 2), "{flags}");
    }
}
