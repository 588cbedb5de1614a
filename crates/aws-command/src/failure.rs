//! What both commands say about a call to AWS that failed: what happened, where, and what to do.
//!
//! One line each, decided by the kind and the code of the failure. The service's own words are kept
//! and never searched. Does not decide whether something is tried again.

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

/// Returns the line for a failure that is tried again.
#[must_use]
pub fn retried(call: &FailedCall, place: &Place) -> String {
    retried_while(&format!("{} failed", call.action), call, place)
}

/// Returns the line for `what` went wrong because of a failure that is tried again.
#[must_use]
pub fn retried_while(what: &str, call: &FailedCall, place: &Place) -> String {
    let (place_of_call, hint) = (where_to(call, place), hint(call, place));
    format!("{what}, will try again on {place_of_call}: {}; hint: {hint}", words(call))
}

/// The service's words on one line, without control characters, which a terminal would obey.
fn words(call: &FailedCall) -> String {
    call.words().chars().filter(|c| !c.is_control()).collect()
}

/// A stream that was looked for by its name; a shard or a consumer is missing in another way.
fn is_missing_stream(call: &FailedCall) -> bool {
    let is_whole = call.resource.starts_with("stream ") && !call.resource.contains(", ");
    call.kind == ServiceErrorKind::Missing && is_whole
}

/// The lease table is not where the records are, and is named first.
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
        Kind::Key => "enable the KMS key that the message names, and allow these credentials \
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
             AWS_CA_BUNDLE names the authority of a proxy"
            .into(),
        // No code means that no reply came.
        Kind::Unavailable if call.code.is_none() => {
            "check the network, the region's name and the endpoint URL".into()
        }
        Kind::Unavailable | Kind::NotReady | Kind::Expired => {
            "none is needed if it passes; the AWS Health Dashboard tells of outages".into()
        }
        Kind::Invalid | _ => "change what the message names".into(),
    }
}

fn missing(call: &FailedCall, place: &Place) -> String {
    let Place { stream, region, .. } = place;
    if is_missing_stream(call) {
        return format!(
            "`aws kinesis list-streams --region {region}` shows what is there; create `{stream}` \
             with `producer --create-stream 1`, or name another stream with -stream or its region \
             with -region"
        );
    }
    format!("create what the message names, or name its region with -region if it is not {region}")
}

fn credentials(call: &FailedCall) -> &'static str {
    match call.code.as_deref() {
        None => {
            "run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        }
        Some("ExpiredToken" | "ExpiredTokenException") => {
            "the credentials have expired: renew them where they came from, such as with `aws sso login`"
        }
        Some(_) => "`aws sts get-caller-identity` shows whose they are; correct or renew them",
    }
}

fn denied(call: &FailedCall) -> String {
    let is_policy = |code: &str| code.starts_with("AccessDenied") || code == "NotAuthorized";
    match call.code.as_deref() {
        Some(code) if is_policy(code) => {
            let allow = format!("allow {} for these credentials, see deploy/iam", call.action);
            // Whose the credentials are is not known here.
            if !call.resource.contains("`arn:") {
                return allow;
            }
            format!(
                "{allow}; a stream of another account has to allow it too, by its resource policy"
            )
        }
        Some("OptInRequired" | "SubscriptionRequiredException") => {
            "enable the region and the service for this account".into()
        }
        _ => "look at what stands before the service, such as a proxy or an endpoint policy".into(),
    }
}

fn throttled(call: &FailedCall) -> &'static str {
    match call.action.as_str() {
        "kinesis:PutRecord" | "kinesis:PutRecords" => {
            "add shards to the stream or send more slowly; none is needed if it passes"
        }
        "kinesis:RegisterStreamConsumer" => {
            "a stream has at most 20 consumers: deregister one if it does not pass"
        }
        _ => "none is needed if it passes; other readers of the stream may use up its limits",
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
            ("HTTP403", "change what the message names"),
            ("KMSDisabledException", "enable the KMS key"),
            ("KMSNotFoundException", "enable the KMS key"),
            ("KMSOptInRequired", "enable the KMS key"),
            ("ExpiredTokenException", "aws sso login"),
            ("UnrecognizedClientException", "get-caller-identity"),
            ("RequestTimeTooSkewed", "set the clock"),
            ("ThrottlingException", "none is needed if it passes"),
            ("InternalFailure", "none is needed if it passes"),
            ("ValidationException", "change what the message names"),
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
             found; hint: `aws kinesis list-streams --region us-west-2` shows what is there; create \
             `wildrydes` with `producer --create-stream 1`, or name another stream with -stream or \
             its region with -region"
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
        assert!(line.ends_with("has to allow it too, by its resource policy"), "{line}");
    }

    #[test]
    fn what_is_transient_ends_a_command_only_by_its_timeout() {
        let line = explained(&call("kinesis:PutRecord", "InternalFailure", ""), &place());
        assert!(line.starts_with("kinesis:PutRecord kept failing until --timeout on"), "{line}");
    }
}
