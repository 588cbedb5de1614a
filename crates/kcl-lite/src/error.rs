//! The public errors: [`Error`] of a worker, [`ServiceError`] of a call, and their kinds by remedy.
//!
//! Races between workers are outcomes, not errors, and never appear here.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::position::Position;
use crate::record::Record;

/// The type of the errors that user code returns.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A [`BoxError`] that can be shared.
pub(crate) type SharedError = Arc<dyn StdError + Send + Sync>;

/// The most errors of a chain that are inspected, a bound for chains that do not end.
const LINKS: usize = 16;

/// Formats an error and its sources, as in ``writing the order: service error: access denied``. A source
/// whose text the message already contains is left out.
pub(crate) fn words(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    for error in links(error).skip(1) {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
    }
    words
}

/// The error that rejects one record of a batch: a poison record, which can never be processed.
///
/// Return it from [`RecordProcessor::process`](crate::RecordProcessor::process), directly or as a source
/// of another error. The worker stores the record, with the error, in the sink of
/// [`WorkerBuilder::dead_letter`](crate::WorkerBuilder::dead_letter), counts it as acknowledged, and
/// immediately delivers the others again, except those that tokens have acknowledged. To reject records
/// without repeating the others, use [`Batch::split`](crate::Batch::split) and
/// [`Ack::reject`](crate::Ack::reject).
///
/// # Example: a record that cannot be parsed is rejected, one that cannot be stored is retried
/// ```
/// # use kcl_lite::{Batch, BoxError, PoisonRecord};
/// # async fn store(_: u64) -> Result<(), BoxError> { Ok(()) }
/// async fn process(batch: Batch) -> Result<(), BoxError> {
///     for record in batch.records() {
///         let text = std::str::from_utf8(&record.data);
///         let text = text.map_err(|error| PoisonRecord::new(record, error))?;
///         let order = text.parse::<u64>().map_err(|error| PoisonRecord::new(record, error))?;
///         store(order).await?;
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct PoisonRecord {
    position: Position,
    source: BoxError,
}

impl PoisonRecord {
    /// Creates an error that rejects `record`, which must be in the batch, because of `error`.
    #[must_use]
    pub fn new(record: &Record, error: impl Into<BoxError>) -> Self {
        Self { position: Position::of(record), source: error.into() }
    }

    /// Returns the position of the record.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }
}

impl fmt::Display for PoisonRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} cannot be processed", self.position)
    }
}

impl StdError for PoisonRecord {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

/// Returns an error and its sources.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Returns an error and its sources, at most [`LINKS`] of them.
fn links<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    chain(error).take(LINKS)
}

/// A failure of user code: an error or a panic.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The message, down to the first cause.
    pub(crate) text: String,
    /// The error; a panic has none.
    pub(crate) source: Option<SharedError>,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), source: None }
    }

    /// Returns the rejected record, if the error is or is caused by a [`PoisonRecord`].
    pub(crate) fn poison(&self) -> Option<&PoisonRecord> {
        links(self.source.as_deref()?).find_map(|error| error.downcast_ref())
    }

    /// Replaces the message and keeps the error.
    pub(crate) fn reworded(self, text: String) -> Self {
        Self { text, ..self }
    }
}

impl From<BoxError> for Failure {
    fn from(error: BoxError) -> Self {
        let source = SharedError::from(error);
        Self { text: words(&*source), source: Some(source) }
    }
}

impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Failure {}

/// The kind of an [`Error`], classified by remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Settings contradict each other or are out of bounds, or the endpoint's certificate is not
    /// trusted. Correct the code, the file or the endpoint.
    Config,
    /// The stream or table does not exist, or was deleted. Create it, or correct its name or region.
    Missing,
    /// The leases of this application belong to another stream, for instance to one that was deleted and
    /// re-created. Use another application name, or set `stream_recreated` to `Adopt` to start over at
    /// the beginning of the new stream.
    OtherStream,
    /// There are no AWS credentials, or AWS does not accept them. Configure them, or renew them if they
    /// have expired. A policy change does not help.
    Credentials,
    /// The credentials are valid but the action is not allowed, or the KMS key of the stream or table
    /// cannot be used. Correct the policy or the key. [`Error::call`] names the action.
    Denied,
    /// The service was throttling, unreachable or not ready until `Settings::start_timeout` had passed.
    /// Retry later.
    Unavailable,
    /// A processor failed and the failure policy is to stop. Its error is the
    /// [`source`](std::error::Error::source), unless it panicked.
    Processor,
    /// Records aged out of the stream before they were read, and the gap policy is to stop. Set `on_gap`
    /// to `Resume`, or move the lease.
    Gap,
    /// A lease row is unreadable. Inspect it; the message contains its key.
    Data,
    /// The worker is stopping or has ended, by a shutdown, an abort or the end of its runtime. Start
    /// another one.
    Stopped,
    /// An invariant of this library is broken. Please report it.
    Internal,
}

/// Why a worker could not start, or why it stopped. Cheap to clone, because every waiter gets it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    source: Option<SharedError>,
    call: Option<Box<FailedCall>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, context: context.into(), source: None, call: None }))
    }

    /// Creates the error of a worker whose runtime has shut down: it cannot continue without it.
    pub(crate) fn runtime_gone() -> Self {
        let context = "the runtime that the worker was started on has shut down: keep it until \
                       `WorkerHandle::shutdown` has returned";
        Self::new(ErrorKind::Stopped, context)
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        context: impl Into<String>,
        source: Option<SharedError>,
    ) -> Self {
        Self(Arc::new(Inner { kind, context: context.into(), source, call: None }))
    }

    /// Returns the kind, which determines the remedy.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the failed call to AWS: the action, the resource, and the service's code and message.
    ///
    /// `None` when no call failed, for instance when a setting is out of bounds.
    #[must_use]
    pub fn call(&self) -> Option<&FailedCall> {
        self.0.call.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// A failed call to the lease table or to the stream.
///
/// A failed *write* is ambiguous: it may have been applied. The sender resolves that by reading the row
/// (see [`lease::store`](crate::lease::store)).
#[derive(Debug)]
pub struct ServiceError {
    /// The kind, which determines the remedy.
    pub kind: ServiceErrorKind,
    /// The call and its resource, such as ``UpdateItem on table `tail` ``, and the service's message.
    pub context: String,
    /// The cause, if known.
    pub source: Option<BoxError>,
    /// The parts of the call, if it is a call to AWS.
    pub call: Option<Box<FailedCall>>,
}

/// A failed call to AWS, in the parts that determine the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedCall {
    /// The action as in an IAM policy, such as `kinesis:GetRecords`.
    pub action: String,
    /// The resource, such as ``stream `wildrydes` ``.
    pub resource: String,
    /// The kind of the failure.
    pub kind: ServiceErrorKind,
    /// The service's error code, such as `AccessDeniedException`, or the HTTP status of a reply without
    /// a code, such as `HTTP 403`. `None` when no reply came.
    pub code: Option<String>,
    /// The service's message, or why no reply came, on one line.
    pub message: String,
}

/// The kind of a failed call to a service, classified by remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceErrorKind {
    /// The service throttles requests. Retry with backoff.
    Throttled,
    /// There was no reply, or the server failed. Retry.
    Unavailable,
    /// The service rejected the date of the request, because this machine's clock is wrong. The SDK has
    /// learned the service's time from the reply. Retry.
    WrongClock,
    /// This process has reached its limit of open files and connections. Close some, or raise the limit.
    FileLimit,
    /// No secure connection is possible: the certificate is not trusted, or the endpoint does not speak
    /// TLS.
    Tls,
    /// There are no credentials, or they are not accepted. A retry helps only after a change.
    Credentials,
    /// The KMS key of the stream or table cannot be used. A retry helps only after a change.
    Key,
    /// The action is not allowed. A retry helps only after a change.
    Denied,
    /// The stream, shard or table does not exist.
    Missing,
    /// The resource exists but is not ready, for instance a stream that is being created.
    NotReady,
    /// The iterator, token or position is no longer valid. Get a new one.
    Expired,
    /// The reply or row cannot be parsed, or the request is invalid.
    Invalid,
}

impl ServiceError {
    /// Creates an error of `kind`; `context` names the failed operation.
    #[must_use]
    pub fn new(kind: ServiceErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None, call: None }
    }

    /// Creates the error of a failed call to AWS; `context` names the failed operation.
    pub(crate) fn of_call(context: String, call: FailedCall) -> Self {
        Self { kind: call.kind, context, source: None, call: Some(Box::new(call)) }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns whether a retry can succeed without intervention.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }
}

impl ServiceErrorKind {
    /// Returns whether a retry can succeed without intervention.
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Self::Throttled
            | Self::Unavailable
            | Self::WrongClock
            | Self::FileLimit
            | Self::NotReady
            | Self::Expired => true,
            Self::Tls
            | Self::Credentials
            | Self::Key
            | Self::Denied
            | Self::Missing
            | Self::Invalid => false,
        }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}
impl StdError for ServiceError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<ServiceError> for Error {
    fn from(error: ServiceError) -> Self {
        let kind = match error.kind {
            ServiceErrorKind::Throttled
            | ServiceErrorKind::Unavailable
            | ServiceErrorKind::WrongClock
            | ServiceErrorKind::FileLimit
            | ServiceErrorKind::NotReady
            | ServiceErrorKind::Expired => ErrorKind::Unavailable,
            ServiceErrorKind::Tls => ErrorKind::Config,
            ServiceErrorKind::Credentials => ErrorKind::Credentials,
            ServiceErrorKind::Key | ServiceErrorKind::Denied => ErrorKind::Denied,
            ServiceErrorKind::Missing => ErrorKind::Missing,
            ServiceErrorKind::Invalid => ErrorKind::Data,
        };
        let ServiceError { context, source, call, .. } = error;
        let source = source.map(SharedError::from);
        Self(Arc::new(Inner { kind, context, source, call }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error with a fixed message and an optional source.
    #[derive(Debug)]
    struct Link(&'static str, Option<Box<Self>>);

    impl fmt::Display for Link {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Link {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.1.as_deref().map(|link| link as &(dyn StdError + 'static))
        }
    }

    fn chain(texts: &[&'static str]) -> Link {
        let (first, rest) = texts.split_first().unwrap();
        Link(first, (!rest.is_empty()).then(|| Box::new(chain(rest))))
    }

    #[test]
    fn the_words_of_an_error_go_down_to_the_first_cause_and_repeat_nothing() {
        let words = |texts: &[&'static str]| words(&chain(texts));
        assert_eq!(words(&["alone"]), "alone");
        let expected = "service error: access denied: no policy allows it";
        assert_eq!(words(&["service error", "access denied", "no policy allows it"]), expected);
        // Some errors print their source themselves.
        assert_eq!(
            words(&["put: denied: no policy", "denied: no policy", "no policy"]),
            "put: denied: no policy"
        );
        assert_eq!(words(&["again"; 3]), "again");
        let failure = Failure::from(BoxError::from(chain(&["outer", "inner"])));
        assert_eq!(failure.text, "outer: inner");
        assert!(failure.source.unwrap().downcast_ref::<Link>().is_some());
    }
}
