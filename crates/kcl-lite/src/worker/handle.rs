//! What a user holds of a running worker, and where its control plane runs.
//!
//! Knows how the worker has ended, and adds that to what the coordinator says of itself. Decides nothing
//! about leases: dropping the handle only tells the coordinator that nobody is left to ask for a stop.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coordinator::Command;
use super::status::{Health, Report, Status, WorkerState};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::lease::balance::Explanation;
use crate::record::WorkerId;
use crate::settings::ControlPlane;

type Outcome = Result<Report, Error>;

/// A running worker: to look at it, and to stop it.
///
/// # Dropping the handle
///
/// Dropping the handle stops the worker gracefully in the background, as
/// [`shutdown`](Self::shutdown) does with a deadline of 30 seconds: no batch is delivered any more,
/// every processor gets `shutdown_requested`, checkpoints are stored, and the leases are released. The
/// drop itself does not wait, and works inside and outside of a runtime. Nobody learns the outcome, so
/// prefer `shutdown`, or [`Worker::run_until`](crate::Worker::run_until).
///
/// Therefore a worker whose handle is not kept stops right after its start: in
/// `worker.start(factory).await?;` the handle is a temporary that is dropped at the semicolon. The
/// compiler warns about that line.
///
/// The background needs something to run on. When the process exits first, for instance because `main`
/// returns, the leases expire as after a crash. When the runtime that `start` was called on shuts down
/// first, processors are dropped where they are. With [`ControlPlane::OwnThread`] the worker notices
/// that, stores what was acknowledged until then, releases its leases and ends with
/// [`ErrorKind::Stopped`]; with [`ControlPlane::Inline`] it is dropped with its runtime, and its leases
/// expire.
///
/// # Processors that get no last callback
///
/// A processor normally ends with exactly one of `shard_ended`, `shutdown_requested` and `lease_lost`.
/// It is dropped without any of them
///
/// - when a stop has reached its deadline: that of [`shutdown`](Self::shutdown), 30 seconds after the
///   handle was dropped, 10 seconds after the worker failed. A callback that is still running then is
///   dropped at its next `.await`, and its shard is released without a new checkpoint or expires;
/// - when [`abort`](Self::abort) is called, the runtime shuts down, or the process ends;
/// - when one of its callbacks has panicked, or its `initialize` has failed;
/// - when the last callback itself takes longer than
///   [`Settings::callback_deadline`](crate::Settings::callback_deadline): it is dropped half-way.
///
/// Release what must be released in `Drop`, and store what must not be lost before acknowledging it.
#[must_use = "dropping the handle stops the worker: keep it and call `shutdown`, or use \
              `Worker::run_until`"]
pub struct WorkerHandle {
    me: WorkerId,
    clock: Arc<dyn Clock>,
    /// The deadline of a stop. The coordinator takes it for a stop, too, when this is dropped.
    stop: watch::Sender<Option<Instant>>,
    status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
    outcome: watch::Receiver<Option<Outcome>>,
    abort: CancellationToken,
}

impl WorkerHandle {
    /// Returns this worker's id.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.me
    }

    /// Returns what the worker holds, as of a second or two ago at most. Once it has ended, it holds
    /// no shard and its state is `Stopped` or `Failed` at once.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.status.borrow().clone();
        if let Some(state) = self.ended() {
            status.shards.clear();
            status.health = Health { state, ..Health::default() };
        }
        status
    }

    /// Returns the state of the worker, and what is wrong, as of a second or two ago at most: for a
    /// health endpoint, and for people. A worker that has ended is not well, and says why it failed.
    #[must_use]
    pub fn health(&self) -> Health {
        self.status().health
    }

    /// Releases every shard gracefully and takes no other, but keeps running: for maintenance. Returns
    /// when the worker has accepted that, not when all shards are released;
    /// [`resume`](Self::resume) ends it.
    ///
    /// # Cancel safety
    /// If the future is dropped, the request may or may not take effect.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended: start another one.
    pub async fn drain(&self) -> Result<(), Error> {
        self.command(Command::Drain).await
    }

    /// Delivers nothing more until [`resume`](Self::resume), and keeps every lease: for a sink that is
    /// being repaired. What is being processed goes on to its end; `idle` is still called.
    ///
    /// # Cancel safety
    /// If the future is dropped, the request may or may not take effect.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended: start another one.
    pub async fn pause(&self) -> Result<(), Error> {
        self.command(Command::Pause).await
    }

    /// Goes on after [`drain`](Self::drain) or [`pause`](Self::pause).
    ///
    /// # Cancel safety
    /// If the future is dropped, the request may or may not take effect.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended: start another one.
    pub async fn resume(&self) -> Result<(), Error> {
        self.command(Command::Resume).await
    }

    /// Returns what this worker would do now with every lease, and why.
    ///
    /// # Cancel safety
    /// May be dropped.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended: it would do nothing.
    pub async fn explain(&self) -> Result<Vec<Explanation>, Error> {
        self.command(Command::Explain).await
    }

    /// Sends a command and waits for the answer, which the coordinator drops when it is stopping.
    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        // Where this fails, the command and with it the answer's sender are dropped.
        self.commands.send(command(answer)).await.ok();
        answered.await.map_err(|_| {
            let (me, state) = (&self.me, self.status().health.state);
            let context = format!("worker `{me}` takes no requests ({state}): start another one");
            Error::new(ErrorKind::Stopped, context)
        })
    }

    /// Stops gracefully: takes no new shards, drains every shard and stores its checkpoint, and releases
    /// the leases. What is not done after `deadline` is abandoned without a checkpoint: its processor
    /// is dropped without another callback. May be called again; the first deadline counts.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// Why the worker had stopped by itself before, if it had.
    pub async fn shutdown(&self, deadline: Duration) -> Outcome {
        let now = self.clock.now();
        let a_year = Duration::from_secs(365 * 24 * 3_600);
        let deadline = now + deadline.min(a_year);
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(deadline);
            first
        });
        self.stopped().await
    }

    /// Ends the worker at once, as a crash of the process would: processors are dropped at their next
    /// `.await` without another callback, nothing is stored, and the leases are left to expire. For
    /// tests of exactly that, and for a process that must not wait any longer.
    pub fn abort(&self) {
        self.abort.cancel();
    }

    /// Completes when the worker has ended: by [`shutdown`](Self::shutdown), by
    /// [`abort`](Self::abort), or by itself.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    ///
    /// # Errors
    /// Why it stopped by itself; kind `Stopped` when it was aborted, or when its runtime has shut down.
    pub async fn stopped(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Error::runtime_gone())),
            Err(_) => Err(Error::runtime_gone()),
        }
    }

    /// How the worker has ended, if it has.
    fn ended(&self) -> Option<WorkerState> {
        // First, because the outcome is set before the channel is closed.
        let is_closed = self.outcome.has_changed().is_err();
        let failed = |error: &Error| WorkerState::Failed { reason: error.to_string() };
        match &*self.outcome.borrow() {
            Some(Ok(_)) => Some(WorkerState::Stopped),
            Some(Err(error)) => Some(failed(error)),
            None if is_closed => Some(failed(&Error::runtime_gone())),
            None => None,
        }
    }
}

fn aborted() -> Error {
    Error::new(ErrorKind::Stopped, "the worker was aborted: its leases expire")
}

fn panicked() -> Error {
    let context = "the worker's control plane panicked; please report it with the message above";
    Error::new(ErrorKind::Internal, context)
}

/// Runs the control plane where the settings say. It goes on when the handle is dropped, until it has
/// stopped.
pub(super) fn spawn(
    place: ControlPlane,
    me: WorkerId,
    clock: Arc<dyn Clock>,
    stop: watch::Sender<Option<Instant>>,
    status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
    run: impl Future<Output = Outcome> + Send + 'static,
) -> Result<WorkerHandle, Error> {
    let abort = CancellationToken::new();
    let (done, outcome) = watch::channel(None);
    let asked_to_abort = abort.clone();
    let control = async move {
        let result = tokio::select! {
            biased;
            () = asked_to_abort.cancelled() => Err(aborted()),
            result = AssertUnwindSafe(run).catch_unwind() => result.unwrap_or_else(|_| Err(panicked())),
        };
        done.send_replace(Some(result));
    };
    match place {
        ControlPlane::Inline => {
            let mut inline = JoinSet::new();
            inline.spawn(control);
            // `done` tells whoever has the handle when it ends, also when it is dropped.
            inline.detach_all();
        }
        ControlPlane::OwnThread => on_own_thread(control)?,
    }
    Ok(WorkerHandle { me, clock, stop, status, commands, outcome, abort })
}

fn on_own_thread(control: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Internal, format!("the control thread could not start: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::Builder::new()
        .name("kcl-lite-control".to_owned())
        .spawn(move || runtime.block_on(control))
        .map_err(failed)?;
    Ok(())
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("id", &self.me).finish_non_exhaustive()
    }
}
