//! The one public error: what happened, to what, and what the caller can do about it.
//!
//! Races between workers are outcomes, not errors, and never appear here.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// An error of a user's processor, or of anything else that is not ours.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What kind of failure it was, chosen by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Settings contradict each other or are out of bounds: correct the code or the file.
    Config,
    /// The stream or table does not exist, or was deleted: create it, or correct name or region.
    Missing,
    /// AWS refused the credentials or the action: correct the policy; the action is named.
    Denied,
    /// Throttled or unreachable after bounded retries: try again later.
    Unavailable,
    /// A user's processor failed and the policy was to stop: look at the source.
    Processor,
    /// Records aged out of the stream before they were read, and the policy was to stop: set
    /// `on_gap` to `Resume`, or move the lease.
    Gap,
    /// A lease row cannot be read: inspect it; its key is in the message.
    Data,
    /// The worker has already stopped: drop the handle.
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
    source: Option<BoxError>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, context: context.into(), source: None }))
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
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
}

/// What a failed call to a service means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceErrorKind {
    /// Too many requests: wait, then try again.
    Throttled,
    /// No answer, or a server error: try again.
    Unavailable,
    /// Refused: credentials, policy or key; trying again helps only after a change.
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
        Self { kind, context: context.into(), source: None }
    }

    /// The same error with the one below it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self.kind {
            ServiceErrorKind::Throttled
            | ServiceErrorKind::Unavailable
            | ServiceErrorKind::NotReady
            | ServiceErrorKind::Expired => true,
            ServiceErrorKind::Denied | ServiceErrorKind::Missing | ServiceErrorKind::Invalid => {
                false
            }
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
            | ServiceErrorKind::NotReady
            | ServiceErrorKind::Expired => ErrorKind::Unavailable,
            ServiceErrorKind::Denied => ErrorKind::Denied,
            ServiceErrorKind::Missing => ErrorKind::Missing,
            ServiceErrorKind::Invalid => ErrorKind::Data,
        };
        Self(Arc::new(Inner { kind, context: error.context, source: error.source }))
    }
}
