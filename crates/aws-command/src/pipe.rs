//! The watch on stdout: detects at once, and not at the next record, that its reader is gone.

use std::future::pending;

/// Completes when stdout is a pipe or a socket and its other end has been closed. Never completes
/// where that cannot be watched: a file, a terminal, Windows. There the next write fails.
///
/// # Cancel safety
/// Dropping the future has no effect.
pub async fn reader_is_gone() {
    #[cfg(unix)]
    if unix::other_end_is_closed(std::io::stdout()).await.is_ok() {
        return;
    }
    pending().await
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{self, ErrorKind};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt as _;

    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// # Errors
    ///
    /// The output cannot be watched.
    pub(super) async fn other_end_is_closed(output: impl AsFd) -> io::Result<()> {
        let output = File::from(output.as_fd().try_clone_to_owned()?);
        let kind = output.metadata()?.file_type();
        if !kind.is_fifo() && !kind.is_socket() {
            return Err(ErrorKind::Unsupported.into());
        }
        // The system reports the end of the reader whatever the interest is. Being writable, which
        // the interest selects, is ignored here.
        #[expect(deprecated, reason = "the successor is unsafe; a file owns its descriptor")]
        let output = AsyncFd::with_interest(output, Interest::WRITABLE)?;
        loop {
            let mut state = output.writable().await?;
            if state.ready().is_write_closed() {
                return Ok(());
            }
            state.clear_ready();
        }
    }

    #[cfg(test)]
    mod tests {
        use std::io::{Write as _, pipe};
        use std::os::unix::net::UnixStream;
        use std::time::Duration;

        use tokio::time::timeout;

        use super::*;

        #[tokio::test]
        async fn a_pipe_that_is_closed_by_its_reader_is_noticed_full_or_empty() {
            for bytes in [0, 1 << 16] {
                let (reader, mut writer) = pipe().unwrap();
                writer.write_all(&vec![0; bytes]).unwrap();
                let mut closed = Box::pin(other_end_is_closed(&writer));
                assert!(timeout(Duration::ZERO, closed.as_mut()).await.is_err());
                drop(reader);
                closed.await.unwrap();
            }
        }

        #[tokio::test]
        async fn a_socket_that_is_closed_is_noticed_and_a_file_is_not_watched() {
            let (near, far) = UnixStream::pair().unwrap();
            let mut closed = Box::pin(other_end_is_closed(&near));
            assert!(timeout(Duration::ZERO, closed.as_mut()).await.is_err());
            drop(far);
            closed.await.unwrap();
            let file = File::open(std::env::current_exe().unwrap()).unwrap();
            assert!(other_end_is_closed(&file).await.is_err());
        }
    }
}
