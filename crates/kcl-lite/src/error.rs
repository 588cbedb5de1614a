//! The one public error: what happened, to what, and what the caller can do about it.
//!
//! Races between workers are outcomes, not errors, and never appear here.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::position::Position;
use crate::record::Record;

/// The error that user code returns, of any type.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The same, for several to hold.
pub(crate) type SharedError = Arc<dyn StdError + Send + Sync>;

/// The most links of a chain of errors that are looked at.
const LINKS: usize = 16;

/// An error and those below it, as in ``writing the order: service error: access denied``. What an
/// error says of the one below it is not said again.
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

/// An error that blames one record of a batch: a poison record, which can never be processed.
///
/// Return it from [`RecordProcessor::process`](crate::RecordProcessor::process), itself or as a source
/// of another error. The worker stores that record, with the error, where
/// [`WorkerBuilder::dead_letter`](crate::WorkerBuilder::dead_letter) says, counts it as acknowledged,
/// and delivers the others again at once, except those that tokens have acknowledged. To reject
/// records without a repeat of the others, use [`Batch::split`](crate::Batch::split) and
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
    /// Blames `record`, which must be one of the batch, because of `error`.
    #[must_use]
    pub fn new(record: &Record, error: impl Into<BoxError>) -> Self {
        Self { position: Position::of(record), source: error.into() }
    }

    /// The record.
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

/// An error and those below it.
fn links<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source()).take(LINKS)
}

/// What user code has failed with.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// In words, down to the first cause.
    pub(crate) text: String,
    /// The error itself; a panic has none.
    pub(crate) source: Option<SharedError>,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), source: None }
    }

    /// The record that the error blames, if it does.
    pub(crate) fn poison(&self) -> Option<&PoisonRecord> {
        links(self.source.as_deref()?).find_map(|error| error.downcast_ref())
    }

    /// The same error, in other words.
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

/// What kind of failure it was, chosen by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Settings contradict each other or are out of bounds, or the endpoint's certificate is not
    /// trusted: correct the code, the file or the endpoint.
    Config,
    /// The stream or table does not exist, or was deleted: create it, or correct name or region.
    Missing,
    /// The leases of this application were made for another stream, perhaps one of the same name that
    /// was deleted: use another application name, or set `stream_recreated` to `Adopt` to start over
    /// with the new stream from its beginning.
    OtherStream,
    /// There are no AWS credentials, or AWS does not accept them: configure them, or renew them if
    /// they have expired. No policy helps.
    Credentials,
    /// AWS knows the credentials and refuses the action, or the KMS key of the stream or table cannot
    /// be used: correct the policy or the key. [`Error::call`] names the action.
    Denied,
    /// Throttled, unreachable or not ready for as long as `Settings::start_timeout`: try again later.
    Unavailable,
    /// A processor failed and the policy was to stop: its own error is the
    /// [`source`](std::error::Error::source), unless it panicked.
    Processor,
    /// Records aged out of the stream before they were read, and the policy was to stop: set
    /// `on_gap` to `Resume`, or move the lease.
    Gap,
    /// A lease row cannot be read: inspect it; its key is in the message.
    Data,
    /// The worker is stopping or has ended, by a shutdown, an abort or the end of its runtime: start
    /// another one.
    Stopped,
    /// A broken invariant of this library: please report it.
    Internal,
}

/// Why a worker could not start, or stopped. Cheap to clone: everyone who waits gets it.
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

    /// The worker cannot go on without the runtime that it was started on.
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

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The call to AWS that failed, in parts: which action on what, and what the service said.
    ///
    /// `None` when the error is not the failure of a call, such as a setting that is out of bounds.
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

/// A failed call to the lease table or to the stream, before it is given a meaning.
///
/// A failed *write* is ambiguous: it may have been applied. Whoever sent it settles that by
/// reading the row back (see [`lease::store`](crate::lease::store)).
#[derive(Debug)]
pub struct ServiceError {
    /// What the caller can do about it.
    pub kind: ServiceErrorKind,
    /// The call and its object, such as ``UpdateItem on table `tail` ``, and the service's words.
    pub context: String,
    /// The error below it, if any.
    pub source: Option<BoxError>,
    /// The same in parts, if it is the failure of a call to AWS.
    pub call: Option<Box<FailedCall>>,
}

/// A call to AWS that failed, in the parts that decide what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedCall {
    /// The action as a policy names it, such as `kinesis:GetRecords`.
    pub action: String,
    /// What it was called on, such as ``stream `wildrydes` ``.
    pub resource: String,
    /// What the failure means.
    pub kind: ServiceErrorKind,
    /// The service's error code, such as `AccessDeniedException`, or the HTTP status of a reply without
    /// a code, such as `HTTP 403`. `None` when no reply came.
    pub code: Option<String>,
    /// The service's message, or why no reply came, on one line.
    pub message: String,
}

/// What a failed call to a service means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceErrorKind {
    /// Too many requests: wait, then try again.
    Throttled,
    /// No answer, or a server error: try again.
    Unavailable,
    /// The request was refused for its date, because this machine's clock is wrong. The SDK has learnt
    /// the service's time from the reply: try again.
    WrongClock,
    /// This process has as many files and connections open as it may: close some, or raise the limit.
    FileLimit,
    /// No secure connection: the certificate is not trusted, or the endpoint does not speak TLS.
    Tls,
    /// There are no credentials, or they are not accepted; trying again helps only after a change.
    Credentials,
    /// The KMS key of the stream or table cannot be used; trying again helps only after a change.
    Key,
    /// The action is not allowed; trying again helps only after a change.
    Denied,
    /// The stream, shard or table does not exist.
    Missing,
    /// It exists but is not ready (a stream that is being created).
    NotReady,
    /// The iterator, token or position is no longer valid: get a new one.
    Expired,
    /// The reply or row cannot be understood, or the request was wrong.
    Invalid,
}

impl ServiceError {
    /// An error of `kind` with what was being done.
    #[must_use]
    pub fn new(kind: ServiceErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None, call: None }
    }

    /// The failure of a call, with what was being done.
    pub(crate) fn of_call(context: String, call: FailedCall) -> Self {
        Self { kind: call.kind, context, source: None, call: Some(Box::new(call)) }
    }

    /// The same error with the one below it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }
}

impl ServiceErrorKind {
    /// Whether the same call may succeed later without anyone changing anything.
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

/// Returns an error and those below it.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that says what it was given, above another one.
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
