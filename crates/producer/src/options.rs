//! The checked command line: limits, defaults that depend on other flags, names of the unicorns.
//!
//! User input is checked here and nowhere else. Never reads the environment; the only random value
//! drawn here is a seed if none was given.

use std::time::Duration;

use aws_command::Target;
use jiff::SignedDuration;

use crate::cli::Cli;
use crate::pace::Pace;
use crate::unicorn::{RESTED, Temper, herd_names};

/// Kinesis limits a partition key to 256 characters.
const MAX_NAME: usize = 256;

/// Enough for any demonstration, and about 20 MB of memory.
const MAX_UNICORNS: usize = 100_000;

/// More than one process can send over one connection.
const MAX_RATE: f64 = 100_000.0;

/// The resolution of the timer.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// A longer interval is a typing error.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The largest absolute value of the start points: far from where addition would overflow.
const MAX_POINTS: u64 = 1_000_000_000;

/// A checked command line.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) create_shards: Option<i32>,
    pub(crate) names: Vec<String>,
    pub(crate) pace: Pace,
    pub(crate) count: Option<u64>,
    pub(crate) seed: u64,
    pub(crate) temper: Temper,
    pub(crate) aggregate: bool,
    /// How long transient failures are waited out; `None` waits without a limit.
    pub(crate) timeout: Option<Duration>,
}

impl TryFrom<Cli> for Options {
    type Error = String;

    fn try_from(cli: Cli) -> Result<Self, String> {
        let pace = match cli.rate {
            Some(rate) => Pace::PerSecond(checked_rate(rate)?),
            None => Pace::Every(duration("--interval", &cli.interval)?),
        };
        require(cli.count != Some(0), "--count must be at least 1")?;
        require(cli.create_stream.is_none_or(|n| n >= 1), "--create-stream needs 1 shard or more")?;
        let target = Target::new(cli.stream, cli.region, cli.endpoint_url)?;
        require(
            cli.create_stream.is_none() || !target.is_arn(),
            "--create-stream needs the stream's name in --stream, not its ARN",
        )?;
        require(
            (1..=MAX_UNICORNS).contains(&cli.unicorns),
            &format!("--unicorns must be 1 to {MAX_UNICORNS}"),
        )?;
        Ok(Self {
            names: herd_names(&checked_name(cli.name)?, cli.unicorns),
            target,
            create_shards: cli.create_stream,
            aggregate: cli.aggregate,
            timeout: cli.timeout.map(|text| duration("--timeout", &text)).transpose()?,
            pace,
            count: cli.count,
            seed: cli.seed.unwrap_or_else(|| fastrand::u64(..)),
            temper: temper(cli.bearing, cli.start_points)?,
        })
    }
}

fn require(holds: bool, message: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message.to_owned()) }
}

fn checked_name(name: String) -> Result<String, String> {
    require(!name.is_empty(), "--name must not be empty: it is the partition key")?;
    require(
        name.chars().count() <= MAX_NAME,
        &format!("--name must be {MAX_NAME} characters at most: it is the partition key"),
    )?;
    Ok(name)
}

fn checked_rate(rate: f64) -> Result<f64, String> {
    // Less than one record a day is a typing error, as for the interval.
    let slowest = 1.0 / LONGEST_INTERVAL.as_secs_f64();
    require(
        (slowest..=MAX_RATE).contains(&rate),
        &format!("--rate `{rate}` must be above 0 and at most {MAX_RATE} records a second"),
    )?;
    Ok(rate)
}

/// Parses a duration; a plain number counts seconds.
fn duration(flag: &str, text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    let friendly = || text.parse::<SignedDuration>().ok().and_then(|d| d.try_into().ok());
    let duration = seconds
        .or_else(friendly)
        .ok_or_else(|| format!("{flag} `{text}` is not a time; write 200ms, 1s, 1m or 0.5"))?;
    require(
        (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&duration),
        &format!("{flag} `{text}` must be 1ms to 24h"),
    )?;
    Ok(duration)
}

fn temper(bearing: Option<f64>, points: Option<i64>) -> Result<Temper, String> {
    let points = points.unwrap_or(RESTED);
    require(bearing.is_none_or(f64::is_finite), "--bearing must be a number of radians")?;
    require(
        points.unsigned_abs() <= MAX_POINTS,
        &format!("--start-points must be within {MAX_POINTS} of 0"),
    )?;
    Ok(Temper { bearing, points })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn options(flags: &[&str]) -> Result<Options, String> {
        let cli = Cli::try_parse_from(["producer"].iter().chain(flags)).expect("parses");
        Options::try_from(cli)
    }

    #[test]
    fn an_interval_is_a_friendly_duration_or_a_number_of_seconds() {
        for (text, millis) in [
            ("1s", 1000),
            ("200ms", 200),
            ("1m", 60_000),
            ("2", 2000),
            ("0.25", 250),
            ("1.5s", 1500),
        ] {
            assert_eq!(duration("--interval", text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "soon", "0", "0s", "-1s", "-1", "25h", "NaN", "inf"] {
            assert!(duration("--interval", text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_kinesis_would_refuse_is_refused_before_it_is_sent() {
        let long = "x".repeat(257);
        for (flags, named) in [
            (["--name", ""], "partition key"),
            (["--name", &long], "256 characters"),
            (["--stream", ""], "not a stream name"),
            (["--stream", "wild rydes"], "not a stream name"),
            (["--region", "YOUR_REGION_HERE"], "us-west-2"),
            (["--region", ""], "us-west-2"),
            (["--endpoint-url", "localhost:4566"], "http://"),
            (["--timeout", "soon"], "--timeout `soon` is not a time"),
            (["--timeout", "0s"], "--timeout `0s` must be 1ms"),
            (["--count", "0"], "at least 1"),
            (["--unicorns", "0"], "1 to 100000"),
            (["--unicorns", "100001"], "1 to 100000"),
            (["--rate", "0"], "above 0"),
            (["--rate", "NaN"], "above 0"),
            (["--rate", "100001"], "at most 100000"),
            (["--create-stream", "0"], "1 shard"),
            (["--bearing", "inf"], "radians"),
            (["--start-points", "1000000001"], "within"),
        ] {
            let message = options(&flags).unwrap_err();
            assert!(message.contains(named), "{flags:?}: {message}");
        }
    }

    #[test]
    fn a_stream_that_is_given_by_its_arn_is_not_created() {
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/wildrydes";
        assert_eq!(options(&["--stream", arn]).unwrap().target.stream(), arn);
        let refused = options(&["--stream", arn, "--create-stream", "1"]).unwrap_err();
        assert!(refused.contains("not its ARN"), "{refused}");
    }

    #[test]
    fn a_name_of_256_characters_of_any_script_is_a_name() {
        assert!(options(&["--name", &"é".repeat(256)]).is_ok());
    }

    #[test]
    fn a_seed_is_drawn_when_none_is_given() {
        assert_eq!(options(&["--seed", "7"]).unwrap().seed, 7);
        assert_ne!(options(&[]).unwrap().seed, options(&[]).unwrap().seed);
    }
}
