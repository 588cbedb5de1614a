//! The bodies of replies.
//!
//! Owns the three shapes of a body on the wire: complete, cut in the middle, and an event stream
//! that ends when its client is partitioned. Never reads the content.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::faults::Faults;

/// The connection breaks at this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was broken on purpose")
    }
}

impl std::error::Error for Broken {}

/// The body of one reply.
pub(crate) struct ReplyBody(Shape);

enum Shape {
    Whole(Bytes),
    Half(Half),
    // The mutex is never locked: it makes the stream `Sync`, as the SDK's bodies must be.
    Stream(Mutex<BoxStream<'static, Result<Bytes, Broken>>>),
}

/// A body that promises `promised` bytes and breaks after `first`.
struct Half {
    first: Bytes,
    promised: u64,
    flushed: bool,
}

impl ReplyBody {
    pub(crate) fn whole(body: Bytes) -> Self {
        Self(Shape::Whole(body))
    }

    /// Streams frames to `client` until it is partitioned: later frames are lost, and when the
    /// partition heals, the connection turns out to be broken.
    pub(crate) fn stream(
        frames: BoxStream<'static, Bytes>,
        faults: Faults,
        client: String,
    ) -> Self {
        let state = Some((frames, faults, client));
        let guarded = stream::unfold(state, |state| async {
            let (mut frames, faults, client) = state?;
            let frame = frames.next().await?;
            // After the wait for the frame, during which a partition may have begun.
            if faults.is_partitioned(&client) {
                faults.healed(&client).await;
                return Some((Err(Broken), None));
            }
            Some((Ok(frame), Some((frames, faults, client))))
        });
        // A body may be polled after its end, but `unfold` must not be.
        Self(Shape::Stream(Mutex::new(guarded.fuse().boxed())))
    }

    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.0, Shape::Stream(_))
    }

    /// Returns the same event stream, which sends nothing after this many frames and does not end.
    pub(crate) fn silent_after(self, frames: usize) -> Self {
        match self.0 {
            Shape::Stream(stream) => {
                let stream = stream.into_inner();
                let silent = stream.take(frames).chain(stream::pending());
                Self(Shape::Stream(Mutex::new(silent.boxed())))
            }
            Shape::Whole(_) | Shape::Half(_) => self,
        }
    }

    /// Returns the same reply, broken in the middle; an event stream breaks in its first frame.
    pub(crate) fn cut_in_half(self) -> Self {
        match self.0 {
            Shape::Whole(body) => {
                let first = body.slice(..body.len() / 2);
                let promised = body.len() as u64;
                Self(Shape::Half(Half { first, promised, flushed: false }))
            }
            Shape::Stream(frames) => {
                let frames = frames.into_inner();
                let cut = frames.take(1).flat_map(|frame| {
                    let half = frame.map(|frame| frame.slice(..frame.len() / 2));
                    stream::iter([half, Err(Broken)])
                });
                Self(Shape::Stream(Mutex::new(cut.fuse().boxed())))
            }
            Shape::Half(_) => self,
        }
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyBody")
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.0 {
            Shape::Whole(body) if body.is_empty() => Poll::Ready(None),
            Shape::Whole(body) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(body))))),
            Shape::Half(half) => half.poll_frame(cx),
            Shape::Stream(frames) => {
                let frames = frames.get_mut();
                let frame = ready!(frames.as_mut().poll_next(cx));
                Poll::Ready(frame.map(|frame| frame.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Shape::Whole(body) if body.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Shape::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Shape::Half(half) => SizeHint::with_exact(half.promised),
            Shape::Stream(_) => SizeHint::default(),
        }
    }
}

impl Half {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        if !self.flushed {
            // Pending once, so that the server flushes what it has before the connection breaks.
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Broken)))
    }
}
