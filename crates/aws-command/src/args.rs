//! Translation of Go's flag syntax to clap's: a long flag may have one dash.
//!
//! The workshop writes `-region us-west-2`, which clap would read as a group of one-letter flags.
//! Knows nothing about the meaning of a flag.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Command, Parser};

/// Parses `args`, the program's name first, and checks the values with `check`.
///
/// # Errors
/// A usage error that `check` or clap words; also if help or the version was requested.
pub fn parsed<C: Parser, O>(
    args: impl IntoIterator<Item = OsString>,
    check: impl FnOnce(C) -> Result<O, String>,
) -> Result<O, clap::Error> {
    let cli = C::try_parse_from(with_two_dashes(&C::command(), args))?;
    check(cli).map_err(|message| C::command().error(ErrorKind::ValueValidation, message))
}

/// Returns `args` with `-flag` and `-flag=value` spelt `--flag`, for every flag of `command` and also for
/// unknown flags, so that the error message shows their full name.
///
/// One-letter flags, alone or combined (`-h`, `-vh`), negative numbers, and arguments after `--`
/// stay unchanged.
#[must_use]
pub fn with_two_dashes(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let letters = letters(command);
    let mut flags_ended = false;
    let two_dashes = |arg: OsString| {
        flags_ended |= arg == "--";
        match arg.to_str() {
            Some(text) if !flags_ended && is_long_with_one_dash(text, &letters) => {
                format!("-{text}").into()
            }
            _ => arg,
        }
    };
    args.into_iter().map(two_dashes).collect()
}

/// Returns the one-letter flags; clap adds the first two itself.
fn letters(command: &Command) -> Vec<char> {
    let own = command.get_arguments().filter_map(clap::Arg::get_short);
    ['h', 'V'].into_iter().chain(own).collect()
}

fn is_long_with_one_dash(arg: &str, letters: &[char]) -> bool {
    let Some(name) = arg.strip_prefix('-') else { return false };
    name.chars().nth(1).is_some()
        && name.starts_with(char::is_alphabetic)
        && !name.chars().all(|letter| letters.contains(&letter))
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn rewritten(line: &str) -> String {
        let command = Command::new("c")
            .arg(Arg::new("stream").long("stream"))
            .arg(Arg::new("verbose").long("verbose").short('v').action(ArgAction::SetTrue));
        let args = with_two_dashes(&command, line.split_whitespace().map(OsString::from));
        args.into_iter().map(|arg| arg.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_long_flag_with_one_dash_gets_a_second() {
        assert_eq!(rewritten("c -stream s -verbose"), "c --stream s --verbose");
        assert_eq!(rewritten("c -stream=s -help"), "c --stream=s --help");
        assert_eq!(rewritten("c -end-point x"), "c --end-point x");
    }

    #[test]
    fn what_has_two_dashes_or_one_letter_stays() {
        for line in ["c --stream s", "c -v -h -V", "c -vh", "c -5m -1.5 - x", "c stream"] {
            assert_eq!(rewritten(line), line);
        }
    }

    #[test]
    fn what_follows_two_dashes_alone_stays() {
        assert_eq!(rewritten("c -stream a -- -stream"), "c --stream a -- -stream");
    }
}
