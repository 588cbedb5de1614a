//! What went wrong, where, and what to do about it: one line each.
//!
//! The library says what happened; here it gets the place and a hint. Never decides whether
//! something is tried again.

use std::error::Error as StdError;
use std::io;

use aws_command::Place;
use kcl_lite::{Error, ErrorKind};

/// The line for a worker that cannot start, or stopped by itself.
pub(crate) fn explained(error: &Error, place: &Place) -> String {
    let reason = chain(error);
    let remedy = Remedy::from_words(&reason).unwrap_or_else(|| Remedy::from_kind(error.kind()));
    if remedy == Remedy::Create && NOT_FOUND.iter().any(|words| reason.contains(words)) {
        return format!("{place} was not found; hint: {}", remedy.hint(place));
    }
    line("cannot read", &reason, remedy, place)
}

/// The line for something that the worker tries again.
pub(crate) fn trouble(what: &str, reason: &str, passing: bool, place: &Place) -> String {
    let otherwise = if passing { Remedy::Wait } else { Remedy::Look };
    let remedy = Remedy::from_words(reason).unwrap_or(otherwise);
    line(&format!("{what}, will try again on"), &one_line(reason), remedy, place)
}

/// The line for a stdout that fails in another way than by being closed.
pub(crate) fn unwritable(error: &io::Error) -> String {
    format!("cannot write to stdout: {error}; hint: look at the disk or device it leads to")
}

fn line(what: &str, reason: &str, remedy: Remedy, place: &Place) -> String {
    let hint = remedy.hint(place);
    let reason = if remedy == Remedy::FindCredentials && reason.len() > LONGEST_TALE {
        "no AWS credentials in the environment, the profile or the instance"
    } else {
        reason
    };
    format!("{what} {place}: {reason}; hint: {hint}")
}

/// The service's code when there is no such stream, in these words in the library's message.
const NOT_FOUND: [&str; 2] =
    ["DescribeStreamSummary: ResourceNotFoundException", "ListShards: ResourceNotFoundException"];

/// Without any credentials the SDK tells of every provider in turn, a screenful.
const LONGEST_TALE: usize = 160;

/// What a user can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    FindCredentials,
    RenewCredentials,
    Allow,
    Create,
    Reach,
    Correct,
    Wait,
    Look,
}

impl Remedy {
    /// The service's error codes say more than a kind does.
    fn from_words(reason: &str) -> Option<Self> {
        const WORDS: [(&str, Remedy); 12] = [
            ("AccessDenied", Remedy::Allow),
            ("ExpiredToken", Remedy::RenewCredentials),
            ("UnrecognizedClient", Remedy::RenewCredentials),
            ("InvalidClientTokenId", Remedy::RenewCredentials),
            ("InvalidSignature", Remedy::RenewCredentials),
            ("SignatureDoesNotMatch", Remedy::RenewCredentials),
            ("IncompleteSignature", Remedy::RenewCredentials),
            ("MissingAuthenticationToken", Remedy::RenewCredentials),
            ("credential", Remedy::FindCredentials),
            ("error sending request", Remedy::Reach),
            ("dispatch failure", Remedy::Reach),
            ("onnection refused", Remedy::Reach),
        ];
        WORDS.iter().find(|(word, _)| reason.contains(word)).map(|(_, remedy)| *remedy)
    }

    fn from_kind(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Config => Self::Correct,
            ErrorKind::Missing => Self::Create,
            ErrorKind::Denied => Self::Allow,
            ErrorKind::Unavailable => Self::Reach,
            ErrorKind::Processor
            | ErrorKind::Data
            | ErrorKind::Stopped
            | ErrorKind::Internal
            | _ => Self::Look,
        }
    }

    fn hint(self, place: &Place) -> String {
        let Place { stream, region, .. } = place;
        match self {
            Self::FindCredentials => "run `aws configure`, or set AWS_PROFILE, \
                 or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .into(),
            Self::RenewCredentials => {
                "`aws sts get-caller-identity` shows whose they are; renew them if expired".into()
            }
            Self::Allow => {
                "allow the action that is named for these credentials, see deploy/iam".into()
            }
            Self::Create => format!(
                "`aws kinesis list-streams --region {region}` shows what is there; create \
                 `{stream}`, or name another stream with -stream or its region with -region"
            ),
            Self::Reach => "check the network, the region's name and the endpoint URL".into(),
            Self::Correct => "change what the message names".into(),
            Self::Wait => "none is needed if it passes; -v tells more".into(),
            Self::Look => "look at what the message names; RUST_LOG=debug tells more".into(),
        }
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
    one_line(&messages.join(": "))
}

/// One line, without the SDK's own labels, which say nothing to a user.
fn one_line(text: &str) -> String {
    const LABELS: [&str; 5] = [
        "dispatch failure: ",
        "other: ",
        "io error: ",
        "client error (Connect): ",
        ": service error",
    ];
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    LABELS.iter().fold(line, |line, label| line.replace(label, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::place;

    #[test]
    fn every_line_names_the_place_and_a_remedy() {
        for (reason, hint) in [
            ("GetRecords: AccessDeniedException: no", "deploy/iam"),
            ("GetRecords: ExpiredTokenException: old", "renew them"),
            ("no credentials in the chain", "aws configure"),
            ("dispatch failure: Connection refused", "endpoint URL"),
            ("something\n\telse", "RUST_LOG"),
        ] {
            let line = trouble("cannot read shard-0", reason, false, &place());
            let (what, hinted) = line.split_once("; hint: ").expect("a hint");
            assert!(what.starts_with("cannot read shard-0, will try again on stream `wildrydes`"));
            assert!(hinted.contains(hint), "{line}");
            assert!(!line.contains(['\n', '\t']), "{line}");
        }
    }

    #[test]
    fn a_tale_of_credentials_providers_is_cut_short() {
        let tale = format!("no credentials. Attempted: {}", "a provider, ".repeat(40));
        let line = trouble("cannot list shards", &tale, false, &place());
        assert!(line.contains(": no AWS credentials in the environment"), "{line}");
        assert!(!line.contains("Attempted"), "{line}");
    }

    #[test]
    fn a_missing_stream_is_looked_for_in_the_region_that_was_searched() {
        let hint = Remedy::from_kind(ErrorKind::Missing).hint(&place());
        insta::assert_snapshot!(hint, @"`aws kinesis list-streams --region us-west-2` shows what is there; create `wildrydes`, or name another stream with -stream or its region with -region");
    }
}
