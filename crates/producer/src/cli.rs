//! The command line as declared. Nothing is validated here.
//!
//! Flags are spelt as in the workshop (see `aws_command::args`); the last occurrence of a flag
//! wins. Defaults that depend on other flags, and all limits, are in `options`.

use clap::Parser;

const AFTER_HELP: &str = "\
Flags may be written with one dash or two, and with a space or `=`: -name X, --name=X.

A period on stdout is one request that stored records: one record by default, a batch with
--unicorns. At the end stdout gets a newline and `sent N records`; everything else goes to stderr.
The first Ctrl-C or SIGTERM shuts down gracefully; a second one exits immediately.
A lost reply can store a record twice; the records of one unicorn keep their order.

Exit codes: 0 done or stopped, 1 failed, 2 usage, 130 interrupted twice.";

/// Send a unicorn's sensor data to a Kinesis stream, once a second
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, args_override_self = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Name of the unicorn, and partition key of its records
    #[arg(long, value_name = "NAME", default_value = "Shadowfax")]
    pub(crate) name: String,

    /// Stream to send to, by its name or its ARN
    #[arg(long, value_name = "STREAM", default_value = "wildrydes")]
    pub(crate) stream: String,

    /// Region of the stream [default: AWS_REGION, AWS_DEFAULT_REGION, the profile's, us-east-1]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,

    /// Kinesis endpoint, such as http://127.0.0.1:4566 for local-aws [default: AWS_ENDPOINT_URL,
    /// the region's]
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,

    /// Create the stream with this many shards if it is missing, and wait for it
    #[arg(long, value_name = "SHARDS")]
    pub(crate) create_stream: Option<i32>,

    /// Stop after this many records [default: never]
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,

    /// Time between two measurements of a unicorn: 200ms, 1s, 1m, or a number of seconds
    #[arg(long, value_name = "TIME", default_value = "1s", conflicts_with = "rate")]
    pub(crate) interval: String,

    /// Number of unicorns: NAME, Shadowfax, Bucephalus, Rocinante, Unicorn-0004 and so on
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) unicorns: usize,

    /// Records per second over all unicorns, instead of --interval; a request contains at most one
    /// record of each unicorn, so high rates need many unicorns
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,

    /// Give up and exit with 1 if a transient failure, such as a network outage, throttling or a
    /// stream that is being created, blocks sending for this long [default: never]
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<String>,

    /// Pack records of one shard into one Kinesis record, in the format of the Kinesis Producer
    /// Library: at most 50 KiB, or the records of 100 ms
    #[arg(long)]
    pub(crate) aggregate: bool,

    /// Random seed; the same seed produces the same rides [default: random]
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,

    /// Direction of all rides in radians, counterclockwise from east
    #[arg(long, value_name = "RADIANS", hide = true, allow_negative_numbers = true)]
    pub(crate) bearing: Option<f64>,

    /// Magic and health points at the start
    #[arg(long, value_name = "POINTS", hide = true, allow_negative_numbers = true)]
    pub(crate) start_points: Option<i64>,
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use aws_command::args::with_two_dashes;
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        let args = line.split_whitespace().map(OsString::from);
        Cli::try_parse_from(with_two_dashes(&Cli::command(), args))
    }

    #[test]
    fn a_flag_takes_one_dash_or_two_and_a_space_or_an_equals_sign() {
        for flags in ["-name Silver", "-name=Silver", "--name Silver", "--name=Silver"] {
            let cli = parsed(&format!("producer {flags} -stream s -region us-west-2")).unwrap();
            assert_eq!(
                (cli.name.as_str(), cli.stream.as_str(), cli.region.as_deref()),
                ("Silver", "s", Some("us-west-2")),
                "{flags}"
            );
        }
    }

    #[test]
    fn a_longer_flag_and_a_negative_number_are_understood_with_one_dash() {
        let cli = parsed("producer -endpoint-url http://x -bearing -1.5 -start-points=-3").unwrap();
        assert_eq!(cli.endpoint_url.as_deref(), Some("http://x"));
        assert_eq!((cli.bearing, cli.start_points), (Some(-1.5), Some(-3)));
    }

    #[test]
    fn the_last_of_several_wins() {
        assert_eq!(parsed("producer -name A -name B").unwrap().name, "B");
    }

    #[test]
    fn without_flags_the_workshops_defaults_hold() {
        let cli = parsed("producer").unwrap();
        assert_eq!((cli.name.as_str(), cli.stream.as_str()), ("Shadowfax", "wildrydes"));
        assert_eq!((cli.region, cli.interval.as_str(), cli.unicorns), (None, "1s", 1));
    }

    #[test]
    fn every_spelling_of_help_is_help() {
        for spelling in ["-h", "-help", "--help"] {
            let error = parsed(&format!("producer {spelling}")).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{spelling}");
            assert_eq!(error.exit_code(), 0);
        }
    }

    #[test]
    fn unknown_flags_positionals_and_missing_values_are_usage_errors() {
        for (line, named) in [
            ("producer -bogus", "'--bogus'"),
            ("producer --bogus=1", "'--bogus'"),
            ("producer foo -name Z", "'foo'"),
            ("producer -name", "--name <NAME>"),
            ("producer -count many", "'many'"),
            ("producer -rate 5 -interval 1s", "--interval"),
            ("producer -- -name", "'-name'"),
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
        Send a unicorn's sensor data to a Kinesis stream, once a second

        Usage: producer [OPTIONS]

        Options:
              --name <NAME>             Name of the unicorn, and partition key of its records [default:
                                        Shadowfax]
              --stream <STREAM>         Stream to send to, by its name or its ARN [default: wildrydes]
              --region <REGION>         Region of the stream [default: AWS_REGION, AWS_DEFAULT_REGION, the
                                        profile's, us-east-1]
              --endpoint-url <URL>      Kinesis endpoint, such as http://127.0.0.1:4566 for local-aws
                                        [default: AWS_ENDPOINT_URL, the region's]
              --create-stream <SHARDS>  Create the stream with this many shards if it is missing, and wait
                                        for it
              --count <N>               Stop after this many records [default: never]
              --interval <TIME>         Time between two measurements of a unicorn: 200ms, 1s, 1m, or a
                                        number of seconds [default: 1s]
              --unicorns <N>            Number of unicorns: NAME, Shadowfax, Bucephalus, Rocinante,
                                        Unicorn-0004 and so on [default: 1]
              --rate <R>                Records per second over all unicorns, instead of --interval; a
                                        request contains at most one record of each unicorn, so high rates
                                        need many unicorns
              --timeout <TIME>          Give up and exit with 1 if a transient failure, such as a network
                                        outage, throttling or a stream that is being created, blocks sending
                                        for this long [default: never]
              --aggregate               Pack records of one shard into one Kinesis record, in the format of
                                        the Kinesis Producer Library: at most 50 KiB, or the records of 100
                                        ms
              --seed <SEED>             Random seed; the same seed produces the same rides [default: random]
          -h, --help                    Print help
          -V, --version                 Print version

        Flags may be written with one dash or two, and with a space or `=`: -name X, --name=X.

        A period on stdout is one request that stored records: one record by default, a batch with
        --unicorns. At the end stdout gets a newline and `sent N records`; everything else goes to stderr.
        The first Ctrl-C or SIGTERM shuts down gracefully; a second one exits immediately.
        A lost reply can store a record twice; the records of one unicorn keep their order.

        Exit codes: 0 done or stopped, 1 failed, 2 usage, 130 interrupted twice.
        ");
    }
}
