//! The messages about a failed worker: what went wrong, where, and what to do about it, in one line
//! each.
//!
//! Failed calls to AWS are described by `aws_command::failure`; this module describes all other
//! failures. Never decides whether something is retried.

use std::io;

use aws_command::{Place, failure};
use kcl_lite::aws::in_plain_words;
use kcl_lite::{Error, ErrorKind, FailedCall};

/// Returns the line for a worker that cannot start, or that has failed.
pub(crate) fn explained(error: &Error, place: &Place) -> String {
    match error.call() {
        Some(call) => failure::explained(call, place),
        None => {
            format!("cannot read {place}: {}; hint: {}", in_plain_words(error), hint(error.kind()))
        }
    }
}

/// Returns the line for an operation that the worker retries.
pub(crate) fn trouble(
    what: &str,
    reason: &str,
    transient: bool,
    call: Option<&FailedCall>,
    place: &Place,
) -> String {
    if let Some(call) = call {
        return failure::retried_while(what, call, place);
    }
    let hint = if transient { "no action needed if it recovers; -v shows more" } else { LOOK };
    format!("{what}, retrying on {place}: {}; hint: {hint}", one_line(reason))
}

/// Returns the line for a stdout that cannot be written for a reason other than a closed pipe.
pub(crate) fn unwritable(error: &io::Error) -> String {
    format!("cannot write to stdout: {error}; hint: check the disk or device it leads to")
}

const LOOK: &str = "check the resource named above; RUST_LOG=debug shows more";

fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Config => "fix the setting named above",
        ErrorKind::Missing => {
            "start it again; --from decides where shards without a checkpoint begin"
        }
        ErrorKind::OtherStream => {
            "choose another name with -app, or delete the DynamoDB table to discard its checkpoints"
        }
        ErrorKind::Unavailable => "check the network, the region's name and the endpoint URL",
        ErrorKind::Credentials
        | ErrorKind::Denied
        | ErrorKind::Processor
        | ErrorKind::Gap
        | ErrorKind::Data
        | ErrorKind::Stopped
        | ErrorKind::Internal
        | _ => LOOK,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::place;

    #[test]
    fn what_is_no_call_is_one_line_with_the_place_and_a_hint_that_its_words_do_not_decide() {
        let line =
            trouble("printing shard-0 failed", "a credential\n\texpired", false, None, &place());
        assert!(line.starts_with("printing shard-0 failed, retrying on stream `wildrydes`"));
        assert!(
            line.ends_with(
                "a credential expired; hint: check the resource named above; \
                                RUST_LOG=debug shows more"
            ),
            "{line}"
        );
    }
}
