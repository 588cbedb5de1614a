//! The command line as declared. Nothing is validated here.
//!
//! Flags are spelt as in the workshop (see `aws_command::args`); the last occurrence of a flag wins. Bounds
//! and formats are in `options`.

use clap::{Parser, ValueEnum};

const AFTER_HELP: &str = "\
Flags may be written with one dash or two, and with a space or `=`: -stream X, --stream=X.

Without --app, this process reads all shards and stores nothing: a restart begins at --from.
With --app, the instances of NAME share the shards, and a restart resumes from its checkpoints.

Stdout carries records only; everything else goes to stderr.
A record that is not JSON is printed unchanged.
A reader of stdout may be slow or pause: records wait for it, and this instance keeps their shards.
The first Ctrl-C or SIGTERM stores the checkpoints and exits; a second one exits immediately.
After a crash, the records since the last checkpoint are printed again; none is skipped.

Exit codes: 0 stopped, or stdout was closed; 1 failed; 2 usage; 130 interrupted twice.";

/// Print the records of a Kinesis stream as they arrive
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, args_override_self = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Stream to read, by its name or its ARN
    #[arg(long, value_name = "STREAM", default_value = "wildrydes")]
    pub(crate) stream: String,

    /// Region of the stream [default: AWS_REGION, AWS_DEFAULT_REGION, the profile's, us-east-1]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,

    /// Share the shards with all instances of application NAME; its checkpoints are in the DynamoDB
    /// table NAME, which is created if it is missing
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,

    /// Where to start: latest, trim-horizon, a time such as 2026-01-31T12:00:00Z, or how long ago,
    /// such as 5m, 2h or 1d, by the clock of Kinesis; with --app only for shards that have no
    /// checkpoint yet
    #[arg(long, value_name = "START", default_value = "latest")]
    pub(crate) from: String,

    /// Output format: pretty (JSON indented by four spaces), json (one line), raw (the bytes)
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Form::Pretty)]
    pub(crate) output: Form,

    /// Endpoint of Kinesis and DynamoDB, such as http://127.0.0.1:4566 for local-aws [default:
    /// AWS_ENDPOINT_URL, the region's]
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,

    /// Worker ID of this instance; must be unique among running instances [default: random]
    #[arg(long, value_name = "ID", requires = "app")]
    pub(crate) worker_id: Option<String>,

    /// How long an instance may be silent before the others take its shards, from 1s to 5m; must be
    /// the same for all instances [default: 10s]
    #[arg(long, value_name = "TIME", requires = "app")]
    pub(crate) failover: Option<String>,

    /// Give up and exit with 1 if a transient failure, such as a network outage or a stream that is
    /// being created, blocks the start for this long [default: never]
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<String>,

    /// Read by enhanced fan-out instead of polling, as the stream consumer NAME, which is
    /// registered if it is missing and incurs charges until it is deregistered
    #[arg(long, requires = "app")]
    pub(crate) fan_out: bool,

    /// Time between two reads of a shard at the tip, from 200ms to 1m
    #[arg(long, value_name = "TIME", hide = true)]
    pub(crate) poll_interval: Option<String>,

    /// How long a shard may make no progress before it is released
    #[arg(long, value_name = "TIME", hide = true)]
    pub(crate) callback_deadline: Option<String>,

    /// Report on stderr which shards start and stop, and why; RUST_LOG shows more
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

/// The output format, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    // No doc comments: they would make `-h` differ from `--help`.
    Pretty,
    Json,
    Raw,
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use aws_command::args::with_two_dashes;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        let args = line.split_whitespace().map(OsString::from);
        Cli::try_parse_from(with_two_dashes(&Cli::command(), args))
    }

    #[test]
    fn a_flag_takes_one_dash_or_two_and_a_space_or_an_equals_sign() {
        for flags in ["-stream s", "-stream=s", "--stream s", "--stream=s"] {
            let cli = parsed(&format!("consumer {flags} -region us-west-2 -v")).unwrap();
            assert_eq!((cli.stream.as_str(), cli.verbose), ("s", true), "{flags}");
            assert_eq!(cli.region.as_deref(), Some("us-west-2"), "{flags}");
        }
    }

    #[test]
    fn without_flags_the_workshops_defaults_hold() {
        let cli = parsed("consumer").unwrap();
        assert_eq!((cli.stream.as_str(), cli.from.as_str()), ("wildrydes", "latest"));
        assert_eq!((cli.region, cli.app, cli.output), (None, None, Form::Pretty));
    }

    #[test]
    fn the_last_of_several_wins() {
        assert_eq!(parsed("consumer -stream a -stream b -vv").unwrap().stream, "b");
    }

    #[test]
    fn every_spelling_of_help_is_help() {
        for spelling in ["-h", "-help", "--help"] {
            let error = parsed(&format!("consumer {spelling}")).unwrap_err();
            assert_eq!(
                (error.kind(), error.exit_code()),
                (ErrorKind::DisplayHelp, 0),
                "{spelling}"
            );
        }
    }

    #[test]
    fn unknown_flags_positionals_and_missing_values_are_usage_errors() {
        for (line, named) in [
            ("consumer -bogus", "'--bogus'"),
            ("consumer -name X", "'--name'"),
            ("consumer wildrydes", "'wildrydes'"),
            ("consumer -stream", "--stream <STREAM>"),
            ("consumer -output yaml", "pretty, json, raw"),
            ("consumer -worker-id w", "--app <NAME>"),
            ("consumer -failover 5s", "--app <NAME>"),
            ("consumer -fan-out", "--app <NAME>"),
        ] {
            let error = parsed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_text() {
        let help = Cli::command().term_width(100).render_help().to_string();
        insta::assert_snapshot!(help, @r"
        Print the records of a Kinesis stream as they arrive

        Usage: consumer [OPTIONS]

        Options:
              --stream <STREAM>     Stream to read, by its name or its ARN [default: wildrydes]
              --region <REGION>     Region of the stream [default: AWS_REGION, AWS_DEFAULT_REGION, the
                                    profile's, us-east-1]
              --app <NAME>          Share the shards with all instances of application NAME; its checkpoints
                                    are in the DynamoDB table NAME, which is created if it is missing
              --from <START>        Where to start: latest, trim-horizon, a time such as
                                    2026-01-31T12:00:00Z, or how long ago, such as 5m, 2h or 1d, by the
                                    clock of Kinesis; with --app only for shards that have no checkpoint yet
                                    [default: latest]
              --output <FORM>       Output format: pretty (JSON indented by four spaces), json (one line),
                                    raw (the bytes) [default: pretty] [possible values: pretty, json, raw]
              --endpoint-url <URL>  Endpoint of Kinesis and DynamoDB, such as http://127.0.0.1:4566 for
                                    local-aws [default: AWS_ENDPOINT_URL, the region's]
              --worker-id <ID>      Worker ID of this instance; must be unique among running instances
                                    [default: random]
              --failover <TIME>     How long an instance may be silent before the others take its shards,
                                    from 1s to 5m; must be the same for all instances [default: 10s]
              --timeout <TIME>      Give up and exit with 1 if a transient failure, such as a network outage
                                    or a stream that is being created, blocks the start for this long
                                    [default: never]
              --fan-out             Read by enhanced fan-out instead of polling, as the stream consumer
                                    NAME, which is registered if it is missing and incurs charges until it
                                    is deregistered
          -v, --verbose             Report on stderr which shards start and stop, and why; RUST_LOG shows
                                    more
          -h, --help                Print help
          -V, --version             Print version

        Flags may be written with one dash or two, and with a space or `=`: -stream X, --stream=X.

        Without --app, this process reads all shards and stores nothing: a restart begins at --from.
        With --app, the instances of NAME share the shards, and a restart resumes from its checkpoints.

        Stdout carries records only; everything else goes to stderr.
        A record that is not JSON is printed unchanged.
        A reader of stdout may be slow or pause: records wait for it, and this instance keeps their shards.
        The first Ctrl-C or SIGTERM stores the checkpoints and exits; a second one exits immediately.
        After a crash, the records since the last checkpoint are printed again; none is skipped.

        Exit codes: 0 stopped, or stdout was closed; 1 failed; 2 usage; 130 interrupted twice.
        ");
    }
}
