//! The checked command line: names, times, bounds.
//!
//! User input is checked here and nowhere else. Never reads the environment or a clock: the local
//! clock may be wrong, so the library compares a start time with the service's clock.

use std::time::Duration;

use aws_command::Target;
use jiff::{Span, SpanRelativeTo, Timestamp};
use kcl_lite::{InitialPosition, Retrieval, Settings};

use crate::cli::{Cli, Form};
use crate::format::Format;

/// DynamoDB's limits for the length of a table name. The table has the application's name.
const TABLE_NAME: std::ops::RangeInclusive<usize> = 3..=255;

/// More than a user can read in a message.
const MAX_WORKER_ID: usize = 256;

/// A checked command line.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) sharing: Sharing,
    pub(crate) settings: Settings,
    pub(crate) format: Format,
    pub(crate) verbosity: Verbosity,
}

/// Who shares the shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody; leases are kept in memory.
    Alone,
    /// All instances of the application; leases are in the table of that name.
    Group { application: String, worker_id: Option<String> },
}

/// How much is reported on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// What a user must know.
    Quiet,
    /// Also which shards start and stop.
    Verbose,
}

impl Options {
    /// Checks `cli`.
    ///
    /// # Errors
    ///
    /// A line that names the flag, its value and what is allowed.
    pub(crate) fn new(cli: Cli) -> Result<Self, String> {
        Ok(Self {
            settings: settings(&cli)?,
            target: Target::new(cli.stream, cli.region, cli.endpoint_url)?,
            sharing: sharing(cli.app, cli.worker_id)?,
            format: format(cli.output),
            verbosity: if cli.verbose { Verbosity::Verbose } else { Verbosity::Quiet },
        })
    }
}

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn settings(cli: &Cli) -> Result<Settings, String> {
    let mut settings = Settings {
        initial_position: start(&cli.from)?,
        // Waits visibly, until the user stops it.
        start_timeout: Duration::MAX,
        // At most one batch of each shard waits for stdout.
        max_unacknowledged: 1,
        ..Settings::default()
    };
    if let Some(text) = &cli.timeout {
        settings.start_timeout = duration("--timeout", text)?;
        in_bounds("--timeout", text, &settings)?;
    }
    if let Some(text) = &cli.failover {
        settings.lease_duration = duration("--failover", text)?;
        in_bounds("--failover", text, &settings)?;
    }
    if cli.fan_out {
        settings.retrieval = Retrieval::fan_out();
    }
    if let Some(text) = &cli.poll_interval {
        settings.poll_interval = duration("--poll-interval", text)?;
        in_bounds("--poll-interval", text, &settings)?;
    }
    if let Some(text) = &cli.callback_deadline {
        settings.callback_deadline = duration("--callback-deadline", text)?;
        in_bounds("--callback-deadline", text, &settings)?;
    }
    Ok(settings)
}

/// Returns an error that names the flag if `settings` are out of bounds. The bounds are the
/// library's.
fn in_bounds(flag: &str, text: &str, settings: &Settings) -> Result<(), String> {
    settings.validate().map_err(|error| format!("{flag} `{text}` is out of bounds: {error}"))
}

fn start(text: &str) -> Result<InitialPosition, String> {
    let word = text.to_ascii_lowercase().replace('_', "-");
    match word.as_str() {
        "latest" => return Ok(InitialPosition::Latest),
        "trim-horizon" => return Ok(InitialPosition::TrimHorizon),
        _ => {}
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        require(time >= Timestamp::UNIX_EPOCH, || {
            format!("--from `{text}` is before 1970, when no record was stored")
        })?;
        let time = kcl_lite::Timestamp::from_millis(time.as_millisecond());
        return Ok(InitialPosition::AtTimestamp(time));
    }
    let ago = how_long_ago(text).ok_or_else(|| {
        format!(
            "--from `{text}` is not a start: write latest, trim-horizon, \
             a time with its zone such as 2026-01-31T12:00:00Z, or how long ago, such as 5m"
        )
    })?;
    Ok(InitialPosition::Ago(ago))
}

/// Parses a duration; `5m` and `5m ago` are the same.
fn how_long_ago(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    let ago = span.abs().to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(ago).ok()
}

fn duration(flag: &str, text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("{flag} `{text}` is not a time; write 500ms, 10s or 1m"))
}

fn sharing(app: Option<String>, worker_id: Option<String>) -> Result<Sharing, String> {
    let Some(application) = app else { return Ok(Sharing::Alone) };
    require(TABLE_NAME.contains(&application.len()) && is_name(&application), || {
        format!(
            "--app `{application}` cannot name a DynamoDB table: \
             {} to {} letters, digits, `_`, `.` and `-`",
            TABLE_NAME.start(),
            TABLE_NAME.end()
        )
    })?;
    if let Some(id) = &worker_id {
        let printable = !id.is_empty() && !id.chars().any(|c| c.is_control() || c.is_whitespace());
        require(printable && id.len() <= MAX_WORKER_ID, || {
            format!("--worker-id `{id}` must be 1 to {MAX_WORKER_ID} bytes without white space")
        })?;
    }
    Ok(Sharing::Group { application, worker_id })
}

fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn format(form: Form) -> Format {
    match form {
        Form::Pretty => Format::Pretty,
        Form::Json => Format::Json,
        Form::Raw => Format::Raw,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_command::{Place, RegionSource};
    use clap::Parser;

    use super::*;

    pub(crate) fn options(flags: &[&str]) -> Result<Options, String> {
        let cli = Cli::try_parse_from(["consumer"].iter().chain(flags)).expect("parses");
        Options::new(cli)
    }

    pub(crate) fn place() -> Place {
        Place {
            stream: "wildrydes".into(),
            region: "us-west-2".into(),
            region_source: RegionSource::Flag,
            endpoint_url: Some("http://127.0.0.1:9".into()),
            table_endpoint_url: Some("http://127.0.0.1:9".into()),
        }
    }

    fn from(text: &str) -> Result<InitialPosition, String> {
        options(&["--from", text]).map(|options| options.settings.initial_position)
    }

    fn at(time: &str) -> InitialPosition {
        let time: Timestamp = time.parse().expect("a time");
        InitialPosition::AtTimestamp(kcl_lite::Timestamp::from_millis(time.as_millisecond()))
    }

    #[test]
    fn a_start_is_a_word_a_time_or_how_long_ago() {
        for word in ["trim-horizon", "TRIM_HORIZON"] {
            assert_eq!(from(word), Ok(InitialPosition::TrimHorizon));
        }
        assert_eq!(from("latest"), Ok(InitialPosition::Latest));
        for (text, time) in [
            ("2026-01-31T11:59:30.25Z", "2026-01-31T11:59:30.25Z"),
            ("2026-01-31T12:30:00+01:00", "2026-01-31T11:30:00Z"),
            // The service's clock decides whether the time is in the future.
            ("2999-01-01T00:00:00Z", "2999-01-01T00:00:00Z"),
        ] {
            assert_eq!(from(text), Ok(at(time)), "{text}");
        }
        for (text, seconds) in [
            ("5m", 300),
            ("5 minutes ago", 300),
            ("1h30m", 5_400),
            ("2d", 172_800),
            ("1w", 604_800),
            ("600000h", 2_160_000_000),
            ("0s", 0),
        ] {
            let ago = InitialPosition::Ago(Duration::from_secs(seconds));
            assert_eq!(from(text), Ok(ago), "{text}");
        }
    }

    #[test]
    fn a_start_that_no_record_can_have_is_refused() {
        for text in ["", "soon", "5", "m", "2026-01-31", "2026-01-31T11:00:00", "1mo"] {
            let message = from(text).unwrap_err();
            assert!(message.contains("such as 5m"), "{text}: {message}");
        }
        let message = from("1969-12-31T00:00:00Z").unwrap_err();
        assert!(message.contains("before 1970"), "{message}");
    }

    #[test]
    fn what_aws_or_the_library_would_refuse_is_refused_with_the_flags_name() {
        for (flags, named) in [
            (["--stream", ""], "--stream `` is not a stream name"),
            (["--stream", "wild rydes"], "not a stream name"),
            (["--region", "YOUR_REGION_HERE"], "us-west-2"),
            (["--endpoint-url", "localhost:4566"], "http://"),
            (["--app", "ab"], "3 to 255"),
            (["--app", "wild/rydes"], "cannot name a DynamoDB table"),
            (["--timeout", "soon"], "--timeout `soon` is not a time"),
            (["--timeout", "0s"], "--timeout `0s` is out of bounds"),
            (["--poll-interval", "1"], "--poll-interval `1` is not a time"),
            (["--poll-interval", "10ms"], "out of bounds: `poll_interval` is 10ms"),
        ] {
            let message = options(&flags).unwrap_err();
            assert!(message.contains(named), "{flags:?}: {message}");
        }
        for (flag, value, named) in [
            ("--failover", "500ms", "--failover `500ms` is out of bounds"),
            ("--failover", "6m", "must be from 1s to 300s"),
            ("--failover", "-5s", "not a time"),
            ("--worker-id", "", "--worker-id ``"),
            ("--worker-id", "a b", "white space"),
        ] {
            let message = options(&["--app", "tail", &format!("{flag}={value}")]).unwrap_err();
            assert!(message.contains(named), "{flag} {value}: {message}");
        }
    }

    #[test]
    fn an_application_shares_and_its_settings_are_taken() {
        let flags = ["--app", "tail", "--worker-id", "w1", "--failover", "3s"];
        let options = options(&flags).unwrap();
        let worker_id = Some("w1".to_owned());
        assert_eq!(options.sharing, Sharing::Group { application: "tail".into(), worker_id });
        assert_eq!(options.settings.lease_duration, Duration::from_secs(3));
    }

    #[test]
    fn without_an_application_nothing_is_shared() {
        assert_eq!(options(&[]).unwrap().sharing, Sharing::Alone);
    }
}
