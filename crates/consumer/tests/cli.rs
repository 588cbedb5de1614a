//! The command line of the `consumer` binary: exit codes, and what goes to stdout and stderr.
//!
//! These tests use no network; runs with a stream are in package `e2e`.

use std::process::{Command, Output};

fn consumer(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(args)
        // Neither the developer's AWS profile nor a server that could be reached.
        .env_clear()
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_usage_error_exits_2_with_its_reason_on_stderr_only() {
    for (args, named) in [
        (["-bogus", "x"].as_slice(), "'--bogus'"),
        (&["wildrydes"], "'wildrydes'"),
        (&["-stream"], "--stream <STREAM>"),
        (&["-stream", "wild rydes"], "not a stream name"),
        (&["-region", "YOUR_REGION_HERE"], "us-west-2"),
        (&["-from", "yesterday"], "--from `yesterday` is not a start"),
        (&["-app=ab"], "3 to 255"),
        (&["-app", "tail", "-failover", "1ms"], "--failover `1ms` is out of bounds"),
        (&["-endpoint-url", "localhost"], "http://"),
    ] {
        let output = consumer(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(named), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn help_exits_0_on_stdout_and_documents_the_exit_codes() {
    for spelling in ["-h", "-help", "--help"] {
        let output = consumer(&[spelling]);
        assert_eq!(output.status.code(), Some(0), "{spelling}");
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(help.contains("Usage: consumer"), "{help}");
        assert!(help.contains("Exit codes: 0 stopped"), "{help}");
        assert!(output.stderr.is_empty(), "{spelling}");
    }
}
