//! What went wrong with the worker, where, and what to do about it: one line each.
//!
//! Calls to AWS that failed are worded by `aws_command::failure`; here is what is not a call. Never
//! decides whether something is tried again.

use std::error::Error as StdError;
use std::io;

use aws_command::{Place, failure};
use kcl_lite::{Error, ErrorKind, FailedCall};

/// The line for a worker that cannot start, or stopped by itself.
pub(crate) fn explained(error: &Error, place: &Place) -> String {
    match error.call() {
        Some(call) => failure::explained(call, place),
        None => format!("cannot read {place}: {}; hint: {}", chain(error), hint(error.kind())),
    }
}

/// The line for something that the worker tries again.
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
    let hint = if transient { "none is needed if it passes; -v tells more" } else { LOOK };
    format!("{what}, will try again on {place}: {}; hint: {hint}", one_line(reason))
}

/// The line for a stdout that fails in another way than by being closed.
pub(crate) fn unwritable(error: &io::Error) -> String {
    format!("cannot write to stdout: {error}; hint: look at the disk or device it leads to")
}

const LOOK: &str = "look at what the message names; RUST_LOG=debug tells more";

fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Config => "change what the message names",
        ErrorKind::Missing => {
            "start it again; --from says where to begin where no checkpoint is left"
        }
        ErrorKind::OtherStream => {
            "choose another name with -app, or delete the DynamoDB table to give up its checkpoints"
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

/// All messages of an error on one line, outermost first, without repetition.
fn chain(error: &Error) -> String {
    let mut messages: Vec<String> = Vec::new();
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(error) = next {
        next = error.source();
        let message = one_line(&error.to_string());
        if !messages.iter().any(|said| said.contains(&message)) {
            messages.push(message);
        }
    }
    messages.join(": ")
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
        assert!(line.starts_with("printing shard-0 failed, will try again on stream `wildrydes`"));
        assert!(
            line.ends_with(
                "a credential expired; hint: look at what the message names; \
                                RUST_LOG=debug tells more"
            ),
            "{line}"
        );
    }
}
