//! Which stream it is: two streams of one name are different if one was deleted before the other was
//! created.

use std::cmp::Ordering;
use std::fmt;

use crate::record::Timestamp;

/// Tells a stream from every other one. A stream that is deleted and re-created under its old name is
/// another stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamIdentity {
    /// The ARN.
    pub arn: String,
    /// When the stream was created.
    pub created: Timestamp,
}

impl StreamIdentity {
    /// Returns what `stream` is to this one, if it is another.
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

/// A stream that is not the one that is read, as it stands to that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Other {
    /// It was deleted, and the one that is read was created in its place.
    Former,
    /// It was created in the place of the one that is read, which has been deleted.
    Newer,
    /// It has another name, or is in another region or account.
    Unrelated,
}
