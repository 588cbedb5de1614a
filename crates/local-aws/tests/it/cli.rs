//! The `local-aws` binary: its output, its errors, its exit.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A running `local-aws`; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) endpoint: String,
    pub(crate) printed: Vec<String>,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-aws"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    for flag in ["PORT", "DATA", "ENFORCE_LIMITS", "SEED"] {
        command.env_remove(format!("LOCAL_AWS_{flag}"));
    }
    command
}

impl Running {
    pub(crate) async fn start(args: &[&str]) -> Self {
        let mut child = command(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut printed = Vec::new();
        while printed.len() < 5 {
            printed.push(lines.next_line().await.unwrap().expect("five lines come first"));
        }
        let endpoint =
            printed[1].strip_prefix("export AWS_ENDPOINT_URL=").expect("line 2").to_owned();
        Self { child, endpoint, printed }
    }

    pub(crate) async fn with_data(dir: &Path) -> Self {
        Self::start(&["--port", "0", "--data", dir.to_str().unwrap()]).await
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    pub(crate) async fn kill_9(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().await.unwrap();
    }
}

#[tokio::test]
async fn it_prints_the_four_exports_and_ends_by_either_signal_with_code_0() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = Running::start(&["--port", "0"]).await;
        let endpoint = running.endpoint.clone();
        assert!(endpoint.starts_with("http://127.0.0.1:"), "{endpoint}");
        let expected = [
            format!("# local-aws serves Kinesis and DynamoDB at {endpoint}"),
            format!("export AWS_ENDPOINT_URL={endpoint}"),
            "export AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1".to_owned(),
            "export AWS_ACCESS_KEY_ID=local".to_owned(),
            "export AWS_SECRET_ACCESS_KEY=local".to_owned(),
        ];
        assert_eq!(running.printed, expected);
        running.signal(signal);
        assert_eq!(running.child.wait().await.unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = command(&["--port", &port]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(lines[0].starts_with(&format!("error: 127.0.0.1:{port} cannot be listened on")));
    assert!(lines[1].starts_with("hint: ") && lines[1].contains("--port 0"), "{error}");
}

#[tokio::test]
async fn a_data_directory_serves_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Running::with_data(dir.path()).await;
    let args = ["--port", "0", "--data", dir.path().to_str().unwrap()];
    let mut second = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(second.stdout.take().unwrap()).lines();
    assert_eq!(printed.next_line().await.unwrap(), None, "it must not serve");
    let output = second.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("is in use by another local-aws"), "{error}");
}

#[tokio::test]
async fn an_unknown_flag_is_a_usage_error() {
    let output = command(&["--prot", "1"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn the_help_is_this() {
    let output = command(&["--help"]).env("COLUMNS", "100").output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(help.join("\n"), @r"
    Kinesis and DynamoDB on one loopback port, without an account.

    Prints four `export` lines that point any AWS SDK or CLI at it, and runs until Ctrl-C.

    Usage: local-aws [OPTIONS]

    Options:
          --port <PORT>
              Port of 127.0.0.1 to listen on; 0 picks a free one

              [env: LOCAL_AWS_PORT=]
              [default: 4566]

          --data <DIR>
              Keep streams and tables in this directory, also across kill -9 [default: in memory]

              [env: LOCAL_AWS_DATA=]

          --enforce-limits
              Enforce the limits of Kinesis: reads and writes per shard and second

              [env: LOCAL_AWS_ENFORCE_LIMITS=]

          --seed <N>
              Random seed

              [env: LOCAL_AWS_SEED=]
              [default: 0]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version
    ");
}
