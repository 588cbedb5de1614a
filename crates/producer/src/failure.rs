//! Why a call failed, and what a user can do about it.
//!
//! Translates the SDK's errors into a few kinds and one line each. Never retries: `session`
//! decides by kind.

use std::error::Error;
use std::iter::successors;

use aws_command::Place;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};

use crate::retry::MAX_ATTEMPTS;

/// What kind of thing went wrong, by what one does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No such stream in this region.
    Missing,
    /// The stream exists but is not in a state that allows the call.
    Busy,
    /// The stream is being deleted.
    Deleting,
    /// The stream did not become ACTIVE in time.
    NotActive,
    /// Too many records or calls.
    Throttled,
    /// The service answered that it is in trouble.
    Unavailable,
    /// No complete answer came.
    Unreachable,
    /// There is nobody to act as.
    NoCredentials,
    /// The access key or its signature is not accepted.
    BadCredentials,
    /// The action is not allowed.
    Denied,
    /// The service found the request wrong, or a quota is used up.
    Refused,
}

/// One failed call.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// The API operation.
    pub(crate) operation: &'static str,
    /// In the service's or the system's own words, on one line.
    pub(crate) reason: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, operation: &'static str, reason: &str) -> Self {
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { kind, operation, reason }
    }

    /// A failure that carries the service's error code.
    pub(crate) fn coded(operation: &'static str, code: &str, message: &str, status: u16) -> Self {
        Self::new(kind_of(code, status), operation, &format!("{code}: {message}"))
    }

    /// Translates what the SDK reports.
    pub(crate) fn from_sdk<E>(operation: &'static str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let SdkError::ServiceError(answer) = error {
            let status = answer.raw().status().as_u16();
            let code = error.code().map_or_else(|| format!("HTTP {status}"), str::to_owned);
            return Self::coded(operation, &code, error.message().unwrap_or(""), status);
        }
        if let Some(credentials) = with_sources(error).find_map(|error| error.downcast_ref()) {
            return Self::without_credentials(operation, credentials);
        }
        let kind = match error {
            SdkError::ConstructionFailure(_) => FailureKind::Refused,
            SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_)
            | SdkError::ResponseError(_)
            | SdkError::ServiceError(_)
            | _ => FailureKind::Unreachable,
        };
        Self::new(kind, operation, &in_plain_words(error))
    }

    fn without_credentials(operation: &'static str, error: &CredentialsError) -> Self {
        let reason = match error {
            // The error itself tells of every provider in turn, a screenful.
            CredentialsError::CredentialsNotLoaded(_) => {
                "none in the environment, the profile or the instance".to_owned()
            }
            CredentialsError::ProviderTimedOut(_)
            | CredentialsError::InvalidConfiguration(_)
            | CredentialsError::ProviderError(_)
            | CredentialsError::Unhandled(_)
            | _ => in_plain_words(error),
        };
        Self::new(FailureKind::NoCredentials, operation, &reason)
    }

    /// Whether the same call may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        use FailureKind as Kind;
        match self.kind {
            Kind::Throttled | Kind::Unavailable | Kind::Unreachable | Kind::Busy => true,
            Kind::Missing
            | Kind::Deleting
            | Kind::NotActive
            | Kind::NoCredentials
            | Kind::BadCredentials
            | Kind::Denied
            | Kind::Refused => false,
        }
    }

    /// The one line a user sees: what happened, where, and what to do.
    pub(crate) fn explained(&self, place: &Place) -> String {
        use FailureKind as Kind;
        let Self { kind, operation, reason } = self;
        let tried = format!("{MAX_ATTEMPTS} attempts without progress");
        match kind {
            Kind::Missing => format!(
                "{place} was not found; \
                 hint: create it with --create-stream 1, or name its region with -region"
            ),
            Kind::Deleting => {
                format!("{place} is being deleted; hint: try again in a minute")
            }
            Kind::NotActive => {
                format!("{place} is still {reason}; hint: look at it in the console and try again")
            }
            Kind::Busy => format!(
                "{place} refused {operation} ({tried}): {reason}; \
                 hint: wait until the stream is ACTIVE"
            ),
            Kind::Throttled => format!(
                "{place} kept throttling {operation} ({tried}): {reason}; \
                 hint: add shards to the stream or lower --rate"
            ),
            Kind::Unavailable => format!(
                "{place} could not answer {operation} ({tried}): {reason}; hint: try again later"
            ),
            Kind::Unreachable => format!(
                "{place} cannot be reached ({tried}): {reason}; \
                 hint: check the network, the region's name and the endpoint URL"
            ),
            Kind::NoCredentials => format!(
                "no AWS credentials for {place}: {reason}; \
                 hint: run `aws configure`, or set AWS_PROFILE, \
                 or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ),
            Kind::BadCredentials => format!(
                "{place} does not accept these AWS credentials: {reason}; \
                 hint: `aws sts get-caller-identity` shows whose they are; renew them if expired"
            ),
            Kind::Denied => format!(
                "{operation} on {place} is denied: {reason}; \
                 hint: allow kinesis:{operation} for these credentials, see deploy/iam"
            ),
            Kind::Refused => format!(
                "{place} refused {operation}: {reason}; hint: change what the message names"
            ),
        }
    }
}

/// The service's error codes, by what one does about them.
fn kind_of(code: &str, status: u16) -> FailureKind {
    match code {
        "ResourceNotFoundException" => FailureKind::Missing,
        "ResourceInUseException" => FailureKind::Busy,
        "ProvisionedThroughputExceededException"
        | "KMSThrottlingException"
        | "ThrottlingException"
        | "Throttling"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => FailureKind::Throttled,
        "AccessDeniedException" | "AccessDenied" | "KMSAccessDeniedException" => {
            FailureKind::Denied
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationTokenException"
        | "ExpiredTokenException"
        | "ExpiredToken" => FailureKind::BadCredentials,
        // A record that failed inside PutRecords: the request as a whole was fine.
        "InternalFailure" => FailureKind::Unavailable,
        _ if status >= 500 => FailureKind::Unavailable,
        _ if status == 429 => FailureKind::Throttled,
        _ => FailureKind::Refused,
    }
}

/// An error, what caused it, what caused that, and so on.
fn with_sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (**error).source())
}

/// All messages of an error and its sources, without repetition and without the SDK's own labels.
fn in_plain_words(error: &(dyn Error + 'static)) -> String {
    const LABELS: [&str; 4] = ["dispatch failure", "other", "io error", "client error (Connect)"];
    let mut messages: Vec<String> = Vec::new();
    for message in with_sources(error).map(ToString::to_string) {
        if !LABELS.contains(&message.as_str())
            && !messages.iter().any(|said| said.contains(&message))
        {
            messages.push(message);
        }
    }
    messages.join(": ")
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_command::RegionSource;

    use super::*;

    pub(crate) fn place() -> Place {
        Place {
            stream: "wildrydes".into(),
            region: "us-west-2".into(),
            region_source: RegionSource::Flag,
            endpoint_url: None,
        }
    }

    #[test]
    fn a_missing_stream_names_stream_region_and_remedy() {
        let failure = Failure::coded("PutRecord", "ResourceNotFoundException", "no", 400);
        insta::assert_snapshot!(failure.explained(&place()), @"stream `wildrydes` in region us-west-2 (from -region) was not found; hint: create it with --create-stream 1, or name its region with -region");
    }

    #[test]
    fn every_kind_is_one_line_with_the_place_and_a_hint() {
        use FailureKind as Kind;
        for kind in [
            Kind::Missing,
            Kind::Busy,
            Kind::Deleting,
            Kind::NotActive,
            Kind::Throttled,
            Kind::Unavailable,
            Kind::Unreachable,
            Kind::NoCredentials,
            Kind::BadCredentials,
            Kind::Denied,
            Kind::Refused,
        ] {
            let place = Place { endpoint_url: Some("http://127.0.0.1:9".into()), ..place() };
            let line = Failure::new(kind, "PutRecord", "one\n\ttwo").explained(&place);
            for part in ["hint: ", "`wildrydes`", "us-west-2 (from -region, at http://127.0.0.1:9)"]
            {
                assert!(line.contains(part), "{kind:?} lacks {part}: {line}");
            }
            assert!(!line.contains(['\n', '\t']), "{line}");
        }
    }

    #[test]
    fn codes_are_sorted_by_what_one_does_about_them() {
        use FailureKind as Kind;
        for (code, status, kind, transient) in [
            ("ProvisionedThroughputExceededException", 400, Kind::Throttled, true),
            ("InternalFailure", 200, Kind::Unavailable, true),
            ("ServiceUnavailable", 503, Kind::Unavailable, true),
            ("HTTP 429", 429, Kind::Throttled, true),
            ("ResourceInUseException", 400, Kind::Busy, true),
            ("ResourceNotFoundException", 400, Kind::Missing, false),
            ("AccessDeniedException", 400, Kind::Denied, false),
            ("ExpiredTokenException", 400, Kind::BadCredentials, false),
            ("LimitExceededException", 400, Kind::Refused, false),
            ("ValidationException", 400, Kind::Refused, false),
        ] {
            let failure = Failure::coded("PutRecords", code, "", status);
            assert_eq!((failure.kind, failure.is_transient()), (kind, transient), "{code}");
        }
    }
}
