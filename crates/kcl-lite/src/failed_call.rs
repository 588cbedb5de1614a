//! Classification of failed AWS calls: the only list of error codes, for both services and the commands.
//!
//! Classifies by the service's error code, otherwise by the HTTP status of the reply, otherwise by the type
//! of the error that prevented a reply; by the text of a message only where one code has two meanings.
//! Never retries, and does not know the purpose of the call.

use std::error::Error as StdError;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::aws::credentials;
use crate::error::{FailedCall, ServiceErrorKind, chain};

/// Classifies the failure of a call of `action`, such as `kinesis:PutRecord`, on `resource`.
#[must_use]
pub fn failed_call<E>(
    action: impl Into<String>,
    resource: impl Into<String>,
    error: &SdkError<E, HttpResponse>,
) -> FailedCall
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let (action, resource) = (action.into(), resource.into());
    if let SdkError::ServiceError(reply) = error {
        let status = reply.raw().status().as_u16();
        let (code, message) = (reply.err().code(), reply.err().message());
        return replied(action, resource, code, message.unwrap_or_default(), status);
    }
    let kind = match error {
        SdkError::ConstructionFailure(_) => ServiceErrorKind::Invalid,
        SdkError::DispatchFailure(_) => not_sent(error),
        // No reply in time, or a truncated one.
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) | SdkError::ServiceError(_) | _ => {
            ServiceErrorKind::Unavailable
        }
    };
    FailedCall { action, resource, kind, code: None, message: in_plain_words(error) }
}

/// Classifies the failure of an event stream; `code` is that of the exception that ended it, if any.
pub(crate) fn broken_events(
    action: String,
    resource: String,
    code: Option<&str>,
    error: &(dyn StdError + 'static),
) -> FailedCall {
    let message = in_plain_words(error);
    match code {
        // An exception in an event stream has no HTTP status; 500 makes an unknown code transient.
        Some(code) => replied(action, resource, Some(code), &message, 500),
        // The connection broke, or a frame cannot be parsed.
        None => {
            let kind = ServiceErrorKind::Unavailable;
            FailedCall { action, resource, kind, code: None, message }
        }
    }
}

/// Classifies an error reply, or an error in the reply to a batch, by its code and status.
#[must_use]
pub fn replied(
    action: impl Into<String>,
    resource: impl Into<String>,
    code: Option<&str>,
    message: &str,
    status: u16,
) -> FailedCall {
    let (action, resource) = (action.into(), resource.into());
    let kind = kind_of_reply(&action, code.unwrap_or_default(), message, status);
    let code = code.map_or_else(|| format!("HTTP {status}"), str::to_owned);
    let message = one_line(message).trim_end_matches('.').to_owned();
    FailedCall { action, resource, kind, code: Some(code), message }
}

impl FailedCall {
    /// Returns the code and the message, as far as they exist.
    #[must_use]
    pub fn words(&self) -> String {
        match &self.code {
            Some(code) if self.message.is_empty() => code.clone(),
            Some(code) => format!("{code}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl FailedCall {
    /// Returns the remedy, to be appended to the service's message. Empty for transient failures, and
    /// where the message contains it.
    pub(crate) fn remedy(&self) -> String {
        match self.kind {
            ServiceErrorKind::Denied => format!("; allow `{}` for these credentials", self.action),
            ServiceErrorKind::Credentials => {
                "; check the credentials: renew them if they have expired".to_owned()
            }
            ServiceErrorKind::Key => {
                "; check that the KMS key is enabled, and allow `kms:Decrypt` on it".to_owned()
            }
            ServiceErrorKind::Missing => "; create it, or correct its name or region".to_owned(),
            ServiceErrorKind::WrongClock => "; set the clock of this machine".to_owned(),
            ServiceErrorKind::FileLimit => "; raise the limit of open files".to_owned(),
            ServiceErrorKind::Tls => {
                "; check the certificate of the endpoint and of any proxy in front of it".to_owned()
            }
            ServiceErrorKind::Throttled
            | ServiceErrorKind::Unavailable
            | ServiceErrorKind::NotReady
            | ServiceErrorKind::Expired
            | ServiceErrorKind::Invalid => String::new(),
        }
    }
}

/// Classifies an error reply by its code, or by its status when the code is unknown.
fn kind_of_reply(action: &str, code: &str, message: &str, status: u16) -> ServiceErrorKind {
    use ServiceErrorKind::{
        Credentials, Denied, Expired, Invalid, Key, Missing, NotReady, Throttled, Unavailable,
        WrongClock,
    };
    match code {
        // The quota of shards or streams is exhausted, which is not transient.
        "LimitExceededException" if action.ends_with(":CreateStream") => Invalid,
        "ProvisionedThroughputExceededException"
        | "KMSThrottlingException"
        | "LimitExceededException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException" => Throttled,
        "ResourceNotFoundException" | "TableNotFoundException" => Missing,
        // A stream or table that is being created or deleted, or has no backups yet.
        "ResourceInUseException"
        | "TableInUseException"
        | "ContinuousBackupsUnavailableException" => NotReady,
        "ExpiredIteratorException" | "ExpiredNextTokenException" => Expired,
        "RequestExpired" | "RequestInTheFuture" | "RequestTimeTooSkewed" => WrongClock,
        "InvalidSignatureException" | "SignatureDoesNotMatch" if is_about_date(message) => {
            WrongClock
        }
        "AuthFailure"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => Credentials,
        // DynamoDB forwards messages of KMS under codes that have other meanings too.
        "AccessDeniedException" | "ValidationException" if is_about_key(action, message) => Key,
        // `KMSThrottlingException`, which is transient, has matched above.
        key if key.starts_with("KMS") => Key,
        "NotAuthorized" | "OptInRequired" | "SubscriptionRequiredException" => Denied,
        denied if denied.starts_with("AccessDenied") => Denied,
        // A conflict with a transaction, or with a write in another region of a global table.
        "TransactionConflictException" | "ReplicatedWriteConflictException" => Unavailable,
        // Also occurs for single records in the reply to a batch, whose HTTP status is 200.
        "InternalFailure" | "InternalServerError" | "ServiceUnavailable" => Unavailable,
        _ => kind_of_status(status),
    }
}

fn kind_of_status(status: u16) -> ServiceErrorKind {
    match status {
        // A successful reply that cannot be parsed is truncated, or another server sent it.
        200..300 | 408 | 500.. => ServiceErrorKind::Unavailable,
        429 => ServiceErrorKind::Throttled,
        401 | 407 => ServiceErrorKind::Credentials,
        403 => ServiceErrorKind::Denied,
        _ => ServiceErrorKind::Invalid,
    }
}

/// Returns whether the message is about the date: a wrong date and a wrong secret have the same code.
fn is_about_date(message: &str) -> bool {
    message.starts_with("Signature expired") || message.starts_with("Signature not yet current")
}

/// Returns whether the message is about a KMS key: DynamoDB has no code for a key that cannot be used.
fn is_about_key(action: &str, message: &str) -> bool {
    action.starts_with("dynamodb:") && message.contains("KMS")
}

/// Classifies a request that was not sent, by the types of the errors in the chain.
fn not_sent(error: &(dyn StdError + 'static)) -> ServiceErrorKind {
    if let Some(credentials) = chain(error).find_map(|error| error.downcast_ref()) {
        return without_credentials(credentials);
    }
    chain(error)
        .find_map(|error| error.downcast_ref::<io::Error>().and_then(kind_of_io))
        .unwrap_or(ServiceErrorKind::Unavailable)
}

/// Classifies missing credentials, which the SDK reports as a failed dispatch.
fn without_credentials(error: &CredentialsError) -> ServiceErrorKind {
    match credentials::unfixed(error) {
        Some(_) => ServiceErrorKind::Credentials,
        // The credentials provider did not answer.
        None => ServiceErrorKind::Unavailable,
    }
}

fn kind_of_io(error: &io::Error) -> Option<ServiceErrorKind> {
    // POSIX: too many open files in this process, and in the system.
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    if cfg!(unix) && matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) {
        return Some(ServiceErrorKind::FileLimit);
    }
    // rustls reports an untrusted certificate, or a reply that is not TLS, as invalid data.
    (error.kind() == io::ErrorKind::InvalidData).then_some(ServiceErrorKind::Tls)
}

/// Formats an error and its sources on one line, outermost first, without repetition and without the
/// labels of the SDK, which mean nothing to a user.
#[must_use]
pub fn in_plain_words(error: &(dyn StdError + 'static)) -> String {
    const LABELS: [&str; 5] =
        ["dispatch failure", "other", "io error", "service error", "client error (Connect)"];
    if let Some(no_credentials) = credentials::missing(error) {
        // The text of the error lists every provider in turn and fills a screen.
        return no_credentials.to_string();
    }
    let mut messages: Vec<String> = Vec::new();
    for message in chain(error).map(|error| one_line(&error.to_string())) {
        let is_new = !messages.iter().any(|said| said.contains(&message));
        if is_new && !LABELS.contains(&message.as_str()) {
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

    fn kind(action: &str, code: &str, message: &str, status: u16) -> ServiceErrorKind {
        replied(action, "it", (!code.is_empty()).then_some(code), message, status).kind
    }

    #[test]
    fn an_error_reply_has_a_meaning_by_code_and_else_by_status() {
        use ServiceErrorKind::*;
        for (code, status, expected) in [
            ("ProvisionedThroughputExceededException", 400, Throttled),
            ("KMSThrottlingException", 400, Throttled),
            ("LimitExceededException", 400, Throttled),
            ("KMSDisabledException", 400, Key),
            ("KMSInvalidStateException", 400, Key),
            ("KMSNotFoundException", 400, Key),
            ("KMSOptInRequired", 403, Key),
            ("KMSAccessDeniedException", 400, Key),
            ("UnrecognizedClientException", 400, Credentials),
            ("ExpiredTokenException", 400, Credentials),
            ("InvalidSignatureException", 400, Credentials),
            ("RequestTimeTooSkewed", 403, WrongClock),
            ("ExpiredNextTokenException", 400, Expired),
            ("ResourceInUseException", 400, NotReady),
            ("ResourceNotFoundException", 400, Missing),
            ("AccessDeniedException", 400, Denied),
            ("AccessDenied", 403, Denied),
            ("NotAuthorized", 400, Denied),
            ("OptInRequired", 403, Denied),
            ("InvalidArgumentException", 400, Invalid),
            ("TransactionConflictException", 400, Unavailable),
            ("InternalFailure", 200, Unavailable),
            ("InternalFailure", 500, Unavailable),
            ("", 429, Throttled),
            ("", 401, Credentials),
            ("", 403, Denied),
            ("", 503, Unavailable),
            ("", 200, Unavailable),
            ("", 400, Invalid),
        ] {
            assert_eq!(kind("kinesis:GetRecords", code, "", status), expected, "{code} {status}");
        }
    }

    #[test]
    fn words_decide_only_where_one_code_has_two_meanings() {
        use ServiceErrorKind::*;
        let signature = "InvalidSignatureException";
        for (action, code, message, expected) in [
            ("kinesis:PutRecord", signature, "Signature expired: 20260131T1200", WrongClock),
            ("kinesis:PutRecord", signature, "Signature not yet current: 2026", WrongClock),
            ("kinesis:PutRecord", signature, "The request signature we calculated", Credentials),
            ("dynamodb:Scan", "ValidationException", "The KMS key is disabled", Key),
            ("dynamodb:Scan", "ValidationException", "Signature expired", Invalid),
            ("kinesis:CreateStream", "LimitExceededException", "", Invalid),
            // Messages contain names that users choose.
            ("kinesis:ListShards", "ResourceNotFoundException", "credential KMS expired", Missing),
            ("kinesis:GetRecords", "AccessDeniedException", "on stream KMS-credentials", Denied),
        ] {
            assert_eq!(kind(action, code, message, 400), expected, "{action} {code} {message}");
        }
    }

    #[test]
    fn what_keeps_a_request_from_being_sent_has_a_meaning_by_its_type() {
        let open_files = io::Error::from_raw_os_error(24);
        let certificate = io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(not_sent(&open_files), ServiceErrorKind::FileLimit);
        assert_eq!(not_sent(&certificate), ServiceErrorKind::Tls);
        assert_eq!(not_sent(&refused), ServiceErrorKind::Unavailable);
        let nobody = CredentialsError::not_loaded("looked everywhere");
        assert_eq!(not_sent(&nobody), ServiceErrorKind::Credentials);
        assert!(!in_plain_words(&nobody).contains("everywhere"));
    }
}
