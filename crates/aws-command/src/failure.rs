//! The messages of both commands about a failed call to AWS: what happened, where, and what to do.
//!
//! Each is one line, decided by the kind and the code of the failure. The service's message is
//! quoted and never parsed. Never decides whether a call is retried.

use kcl_lite::{FailedCall, ServiceErrorKind};

use crate::place::Place;

/// Returns the last line of a command that ends because of this failure.
#[must_use]
pub fn explained(call: &FailedCall, place: &Place) -> String {
    let hint = hint(call, place);
    if is_missing_stream(call) {
        return format!("{place} was not found; hint: {hint}");
    }
    let failed = if call.kind.is_transient() { "kept failing until --timeout" } else { "failed" };
    format!("{} {failed} on {}: {}; hint: {hint}", call.action, where_to(call, place), words(call))
}

/// Returns the line for a failed call that is retried.
#[must_use]
pub fn retried(call: &FailedCall, place: &Place) -> String {
    retried_while(&format!("{} failed", call.action), call, place)
}

/// Returns the line for an operation, described by `what`, that is retried after a failed call.
#[must_use]
pub fn retried_while(what: &str, call: &FailedCall, place: &Place) -> String {
    let (place_of_call, hint) = (where_to(call, place), hint(call, place));
    format!("{what}, retrying on {place_of_call}: {}; hint: {hint}", words(call))
}

/// Returns the service's message on one line, without control characters, which a terminal would
/// interpret.
fn words(call: &FailedCall) -> String {
    call.words().chars().filter(|c| !c.is_control()).collect()
}

/// Returns whether a stream was not found by its name; a missing shard or consumer needs another
/// message.
fn is_missing_stream(call: &FailedCall) -> bool {
    let is_whole = call.resource.starts_with("stream ") && !call.resource.contains(", ");
    call.kind == ServiceErrorKind::Missing && is_whole
}

/// Returns the place of the call. The lease table is named first, because it is not where the
/// records are.
fn where_to(call: &FailedCall, place: &Place) -> String {
    if call.action.starts_with("dynamodb:") {
        format!("{}, for {place}", call.resource)
    } else {
        place.to_string()
    }
}

fn hint(call: &FailedCall, place: &Place) -> String {
    use ServiceErrorKind as Kind;
    match call.kind {
        Kind::Missing => missing(call, place),
        Kind::Credentials => credentials(call).into(),
        Kind::Denied => denied(call),
        Kind::Key => "enable the KMS key named above, and allow these credentials \
             kms:Decrypt to read and kms:GenerateDataKey to write"
            .into(),
        Kind::Throttled => throttled(call).into(),
        Kind::WrongClock => "set the clock of this machine".into(),
        Kind::FileLimit => {
            "raise the limit of open files, with `ulimit -n 4096` before the command \
             or LimitNOFILE= of its service"
                .into()
        }
        Kind::Tls => "check the certificate of the endpoint and the clock of this machine; \
             set AWS_CA_BUNDLE to the CA certificate of a proxy"
            .into(),
        // A call without a code got no reply.
        Kind::Unavailable if call.code.is_none() => {
            "check the network, the region's name and the endpoint URL".into()
        }
        Kind::Unavailable | Kind::NotReady | Kind::Expired => {
            "no action needed if it recovers; see the AWS Health Dashboard for outages".into()
        }
        Kind::Invalid | _ => "fix the setting named above".into(),
    }
}

fn missing(call: &FailedCall, place: &Place) -> String {
    let Place { stream, region, .. } = place;
    if is_missing_stream(call) {
        return format!(
            "`aws kinesis list-streams --region {region}` lists the streams; create `{stream}` with \
             `producer --create-stream 1`, or choose another stream with -stream or another region \
             with -region"
        );
    }
    format!("create the resource named above, or set its region with -region if it is not {region}")
}

fn credentials(call: &FailedCall) -> &'static str {
    match call.code.as_deref() {
        None => {
            "run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        }
        Some("ExpiredToken" | "ExpiredTokenException") => {
            "the credentials have expired: renew them, for example with `aws sso login`"
        }
        Some(_) => "check them with `aws sts get-caller-identity`; correct or renew them",
    }
}

fn denied(call: &FailedCall) -> String {
    let is_policy = |code: &str| code.starts_with("AccessDenied") || code == "NotAuthorized";
    match call.code.as_deref() {
        Some(code) if is_policy(code) => {
            let allow = format!("allow {} for these credentials, see deploy/iam", call.action);
            // The account of the credentials is not known here.
            if !call.resource.contains("`arn:") {
                return allow;
            }
            format!(
                "{allow}; a stream in another account must allow it too, in its resource policy"
            )
        }
        Some("OptInRequired" | "SubscriptionRequiredException") => {
            "enable the region and the service for this account".into()
        }
        _ => "check a proxy or an endpoint policy between this machine and the service".into(),
    }
}

fn throttled(call: &FailedCall) -> &'static str {
    match call.action.as_str() {
        "kinesis:PutRecord" | "kinesis:PutRecords" => {
            "add shards to the stream or send more slowly; no action needed if it recovers"
        }
        "kinesis:RegisterStreamConsumer" => {
            "a stream has at most 20 consumers: deregister one if it does not recover"
        }
        _ => "no action needed if it recovers; other readers of the stream may use up its limits",
    }
}

#[cfg(test)]
mod tests {
    use kcl_lite::aws::replied;

    use super::*;
    use crate::place::tests::place;

    fn call(action: &str, code: &str, message: &str) -> FailedCall {
        replied(action, "stream `wildrydes`", Some(code), message, 400)
    }

    #[test]
    fn every_code_has_its_own_hint_and_keeps_the_services_words() {
        for (code, hint) in [
            ("AccessDeniedException", "allow kinesis:GetRecords for these credentials"),
            ("NotAuthorized", "allow kinesis:GetRecords for these credentials"),
            ("OptInRequired", "enable the region"),
            ("HTTP403", "fix the setting named above"),
            ("KMSDisabledException", "enable the KMS key"),
            ("KMSNotFoundException", "enable the KMS key"),
            ("KMSOptInRequired", "enable the KMS key"),
            ("ExpiredTokenException", "aws sso login"),
            ("UnrecognizedClientException", "get-caller-identity"),
            ("RequestTimeTooSkewed", "set the clock"),
            ("ThrottlingException", "no action needed if it recovers"),
            ("InternalFailure", "no action needed if it recovers"),
            ("ValidationException", "fix the setting named above"),
        ] {
            let call = call("kinesis:GetRecords", code, "one\n\ttwo \u{1b}[31mcredential");
            for line in [explained(&call, &place()), retried(&call, &place())] {
                let (what, hinted) = line.split_once("; hint: ").expect("a hint");
                assert!(hinted.contains(hint), "{code}: {line}");
                assert!(!hinted.contains("aws configure"), "{line}");
                assert!(what.contains(&format!("{code}: one two [31mcredential")), "{line}");
                assert!(what.contains("stream `wildrydes` in region us-west-2"), "{line}");
                assert!(!line.contains(char::is_control), "{line}");
            }
        }
    }

    #[test]
    fn a_missing_stream_is_looked_for_in_the_region_that_was_searched() {
        let words = "Stream credential-KMS under account 0 not found.";
        let call = call("kinesis:ListShards", "ResourceNotFoundException", words);
        assert_eq!(
            explained(&call, &place()),
            "stream `wildrydes` in region us-west-2 (from -region, at http://127.0.0.1:9) was not \
             found; hint: `aws kinesis list-streams --region us-west-2` lists the streams; create \
             `wildrydes` with `producer --create-stream 1`, or choose another stream with -stream or \
             another region with -region"
        );
    }

    #[test]
    fn a_table_is_named_beside_the_stream() {
        let resource = "table `tail` in us-west-2";
        let call = replied("dynamodb:Scan", resource, Some("AccessDeniedException"), "no", 400);
        let line = explained(&call, &place());
        assert!(
            line.starts_with("dynamodb:Scan failed on table `tail` in us-west-2, for stream `wild"),
            "{line}"
        );
        assert!(line.contains("allow dynamodb:Scan for"), "{line}");
    }

    #[test]
    fn a_stream_that_may_be_another_accounts_may_lack_a_policy() {
        let stream = "stream `arn:aws:kinesis:us-west-2:123456789012:stream/wildrydes`";
        let action = "kinesis:ListShards";
        let call = replied(action, stream, Some("AccessDeniedException"), "no", 400);
        let line = explained(&call, &place());
        assert!(line.contains("allow kinesis:ListShards for"), "{line}");
        assert!(line.ends_with("must allow it too, in its resource policy"), "{line}");
    }

    #[test]
    fn what_is_transient_ends_a_command_only_by_its_timeout() {
        let line = explained(&call("kinesis:PutRecord", "InternalFailure", ""), &place());
        assert!(line.starts_with("kinesis:PutRecord kept failing until --timeout on"), "{line}");
    }
}
