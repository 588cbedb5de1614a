//! What a failed call means: the service's error as a [`ServiceError`] with its remedy.
//!
//! Owns the list of error codes. Never retries, and never looks at what was being written.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::aws::is_clock_wrong;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::mutant;

/// The error of `operation` on `place`: kind, call, object, the service's words, the remedy.
pub(super) fn failed<E>(
    operation: &str,
    place: &str,
    error: SdkError<E, HttpResponse>,
) -> ServiceError
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let kind = kind_of(&error);
    let words = match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {}", message.trim_end_matches('.')),
        (Some(code), None) => code.to_owned(),
        (None, _) => format!("{error}: {}", root_cause(&error)),
    };
    let remedy = match kind {
        ServiceErrorKind::Denied if is_about_key(&error) => {
            "; check that the KMS key of the table is enabled, and allow `kms:Decrypt` on it"
                .to_owned()
        }
        ServiceErrorKind::Denied => {
            format!("; check the credentials, and allow `dynamodb:{operation}`")
        }
        ServiceErrorKind::Missing => "; create it, or correct its name or region".to_owned(),
        ServiceErrorKind::Throttled
        | ServiceErrorKind::Unavailable
        | ServiceErrorKind::NotReady
        | ServiceErrorKind::Expired
        | ServiceErrorKind::Invalid => String::new(),
    };
    let context = format!("{operation} on {place}: {words}{remedy}");
    ServiceError::new(kind, context).with_source(error)
}

fn kind_of<E>(error: &SdkError<E, HttpResponse>) -> ServiceErrorKind
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    use ServiceErrorKind::{Denied, Invalid, Missing, NotReady, Throttled, Unavailable};
    if let SdkError::ServiceError(reply) = error {
        return match error.code().unwrap_or_default() {
            "ProvisionedThroughputExceededException" if mutant::is("throttled-is-fatal") => Invalid,
            "ProvisionedThroughputExceededException"
            | "RequestLimitExceeded"
            | "LimitExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "KMSThrottlingException" => Throttled,
            "ResourceNotFoundException" | "TableNotFoundException" => Missing,
            // A table that is being created or deleted, or has no backups yet.
            "ResourceInUseException"
            | "TableInUseException"
            | "ContinuousBackupsUnavailableException" => NotReady,
            _ if is_clock_wrong(error) => Unavailable,
            "UnrecognizedClientException"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "InvalidSignatureException"
            | "IncompleteSignatureException"
            | "MissingAuthenticationTokenException"
            | "InvalidClientTokenId" => Denied,
            code if code.starts_with("AccessDenied") => Denied,
            // Raced by a transaction, or by a write in another region of a global table.
            "TransactionConflictException" | "ReplicatedWriteConflictException" => Unavailable,
            _ if reply.raw().status().is_success()
                && mutant::is("an-unreadable-reply-is-fatal") =>
            {
                Invalid
            }
            // A reply that should be good but cannot be read broke off, or came from elsewhere.
            _ if reply.raw().status().is_success() => Unavailable,
            _ if reply.raw().status().as_u16() >= 500 => Unavailable,
            _ if is_about_key(error) => Denied,
            _ => Invalid,
        };
    }
    // Without credentials no request is sent, and the SDK calls that a failed dispatch.
    let unfixed = |error: &CredentialsError| {
        matches!(
            error,
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)
        )
    };
    match error {
        SdkError::ConstructionFailure(_) => Invalid,
        _ if causes(error).filter_map(|cause| cause.downcast_ref()).any(unfixed) => Denied,
        // Timeouts, broken connections, replies that break off.
        SdkError::TimeoutError(_)
        | SdkError::DispatchFailure(_)
        | SdkError::ResponseError(_)
        | _ => Unavailable,
    }
}

/// Whether the key that encrypts the table is what could not be used. DynamoDB has no code for it: it
/// passes on the words of KMS, as `AccessDeniedException` or, of a key that is disabled or pending
/// deletion, as `ValidationException`.
fn is_about_key(error: &impl ProvideErrorMetadata) -> bool {
    let says = |text: Option<&str>| text.is_some_and(|text| text.contains("KMS"));
    says(error.code()) || says(error.message())
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    causes(error).last().expect("an error is among its causes")
}
