//! The identity of a stream: a re-created stream is another stream, although it has the same name.
//!
//! Pure: compares identities and never calls the service.

use std::cmp::Ordering;
use std::fmt;

use crate::record::Timestamp;

/// Identifies a stream. A re-created stream has another identity, although it has the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamIdentity {
    /// The ARN.
    pub arn: String,
    /// When the stream was created.
    pub created: Timestamp,
}

impl StreamIdentity {
    /// Returns how `stream` relates to this one, or `None` if they are the same stream.
    pub(crate) fn other(&self, stream: &Self) -> Option<Other> {
        if stream.arn != self.arn {
            return Some(Other::Unrelated);
        }
        match stream.created.cmp(&self.created) {
            Ordering::Less => Some(Other::Former),
            Ordering::Equal => None,
            Ordering::Greater => Some(Other::Newer),
        }
    }
}

impl fmt::Display for StreamIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (created at {} ms)", self.arn, self.created.as_millis())
    }
}

/// How another stream relates to the one that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Other {
    /// It was deleted, and the one that is read was re-created under its name.
    Former,
    /// The one that is read was deleted, and this one was re-created under its name.
    Newer,
    /// It has another name, or is in another region or account.
    Unrelated,
}
