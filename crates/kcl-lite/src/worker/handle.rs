//! The handle of a running worker, and the thread of its control plane.
//!
//! Adds the outcome of the worker to the status that the coordinator publishes. Decides nothing about
//! leases: dropping the handle closes a channel, which the coordinator takes for a stop request.

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

/// The handle of a running worker, with which to observe and stop it.
///
/// # Dropping the handle
///
/// Dropping the handle starts a graceful shutdown in the background, as [`shutdown`](Self::shutdown) does
/// with a deadline of 30 seconds: no more batches are delivered, every processor gets
/// `shutdown_requested`, checkpoints are stored, and the leases are released. The drop does not wait, and
/// works inside and outside of a runtime. Its outcome is lost, so prefer `shutdown`, or
/// [`Worker::run_until`](crate::Worker::run_until).
///
/// Therefore a worker whose handle is not kept stops right after its start: in
/// `worker.start(factory).await?;` the handle is a temporary that is dropped at the semicolon. The
/// compiler warns about that line.
///
/// The background shutdown needs a runtime. If the process exits first, for instance because `main`
/// returns, the leases expire as after a crash. If the runtime that `start` was called on shuts down
/// first, processors are dropped at their current await point. With [`ControlPlane::OwnThread`] the worker
/// detects that, stores the checkpoints of what is acknowledged, releases its leases and ends with
/// [`ErrorKind::Stopped`]. With [`ControlPlane::Inline`] it is dropped with its runtime, and its leases
/// expire.
///
/// # Processors that get no last callback
///
/// A processor normally ends with exactly one of `shard_ended`, `shutdown_requested` and `lease_lost`.
/// It is dropped without any of them
///
/// - when a shutdown has reached its deadline: that of [`shutdown`](Self::shutdown), 30 seconds after the
///   handle was dropped, or 10 seconds after the worker failed. A callback that is still running then is
///   dropped at its next `.await`, and its lease is released without a new checkpoint or expires;
/// - when [`abort`](Self::abort) is called, the runtime shuts down, or the process ends;
/// - when one of its callbacks has panicked, or its `initialize` has failed;
/// - when the last callback itself takes longer than
///   [`Settings::callback_deadline`](crate::Settings::callback_deadline): it is dropped before it ends.
///
/// Release resources in `Drop`, and store results before acknowledging their records.
#[must_use = "dropping the handle stops the worker: keep it and call `shutdown`, or use \
              `Worker::run_until`"]
pub struct WorkerHandle {
    me: WorkerId,
    clock: Arc<dyn Clock>,
    /// The deadline of a shutdown. Dropping the sender also requests one.
    stop: watch::Sender<Option<Instant>>,
    status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
    outcome: watch::Receiver<Option<Outcome>>,
    abort: CancellationToken,
}

impl WorkerHandle {
    /// Returns the worker ID.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.me
    }

    /// Returns the worker's status, at most a second or two old. Once the worker has ended, the status
    /// immediately has no shards and the state `Stopped` or `Failed`.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.status.borrow().clone();
        if let Some(state) = self.ended() {
            status.shards.clear();
            status.health = Health { state, ..Health::default() };
        }
        status
    }

    /// Returns the worker's state and its problems, at most a second or two old. Suited for a health
    /// endpoint. A worker that has ended is not healthy; its state contains why it failed.
    #[must_use]
    pub fn health(&self) -> Health {
        self.status().health
    }

    /// Releases every shard gracefully and takes no other until [`resume`](Self::resume), but keeps
    /// running. Use it for maintenance. Returns when the worker has accepted the request, not when all
    /// shards are released.
    ///
    /// # Cancel safety
    /// If the future is dropped, the request may or may not take effect.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended: start another one.
    pub async fn drain(&self) -> Result<(), Error> {
        self.command(Command::Drain).await
    }

    /// Stops delivery until [`resume`](Self::resume), and keeps every lease. Use it while a sink is being
    /// repaired. Running callbacks continue to their end; `idle` is still called.
    ///
    /// # Cancel safety
    /// If the future is dropped, the request may or may not take effect.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended: start another one.
    pub async fn pause(&self) -> Result<(), Error> {
        self.command(Command::Pause).await
    }

    /// Resumes after [`drain`](Self::drain) or [`pause`](Self::pause).
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
    /// Dropping the future has no effect.
    ///
    /// # Errors
    /// Kind `Stopped` when the worker is stopping or has ended, and so would do nothing.
    pub async fn explain(&self) -> Result<Vec<Explanation>, Error> {
        self.command(Command::Explain).await
    }

    /// Sends a command and waits for the reply, whose sender the coordinator drops when it is stopping.
    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        // If this fails, the command and the sender of the reply in it are dropped.
        self.commands.send(command(answer)).await.ok();
        answered.await.map_err(|_| {
            let (me, state) = (&self.me, self.status().health.state);
            let context = format!("worker `{me}` accepts no requests ({state}): start another one");
            Error::new(ErrorKind::Stopped, context)
        })
    }

    /// Shuts the worker down gracefully: it takes no new shards, drains every shard, stores the
    /// checkpoints, and releases the leases. Shards that are not drained after `deadline` are abandoned
    /// without a new checkpoint, and their processors are dropped without another callback. May be called
    /// again; the first deadline counts.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the request.
    ///
    /// # Errors
    /// The error of [`stopped`](Self::stopped), if the worker had already ended because of one.
    pub async fn shutdown(&self, deadline: Duration) -> Outcome {
        let now = self.clock.now();
        // A caller may pass `Duration::MAX`, which would overflow the instant.
        let a_year = Duration::from_secs(365 * 24 * 3_600);
        let deadline = now + deadline.min(a_year);
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(deadline);
            first
        });
        self.stopped().await
    }

    /// Ends the worker immediately, as a crash of the process would: processors are dropped at their next
    /// `.await` without another callback, nothing is stored, and the leases expire. Use it to test a
    /// crash, and in a process that must not wait any longer.
    pub fn abort(&self) {
        self.abort.cancel();
    }

    /// Completes when the worker has ended: by [`shutdown`](Self::shutdown), by [`abort`](Self::abort), or
    /// because of an error.
    ///
    /// # Cancel safety
    /// The future may be dropped, and the method called again.
    ///
    /// # Errors
    /// The error that ended the worker; kind `Stopped` when it was aborted, or its runtime has shut down.
    pub async fn stopped(&self) -> Outcome {
        // Each call has a receiver of its own, so that several calls can wait at the same time.
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Error::runtime_gone())),
            // The control plane was dropped with its runtime, before it could set an outcome.
            Err(_) => Err(Error::runtime_gone()),
        }
    }

    /// Returns the final state of the worker, if it has ended.
    fn ended(&self) -> Option<WorkerState> {
        // Read before the outcome, which is set before the channel is closed: otherwise an outcome that is
        // set between the two reads would be missed.
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
    Error::new(ErrorKind::Stopped, "the worker was aborted; its leases expire")
}

fn panicked() -> Error {
    let context = "the worker's control plane panicked; please report it with the message above";
    Error::new(ErrorKind::Internal, context)
}

/// Spawns the control plane on its own thread or on this runtime. It continues after the handle is
/// dropped, until the worker has stopped.
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
            // An abort wins over an outcome that is ready at the same time.
            () = asked_to_abort.cancelled() => Err(aborted()),
            // A panic is caught, because it would otherwise look like the end of the runtime.
            result = AssertUnwindSafe(run).catch_unwind() => result.unwrap_or_else(|_| Err(panicked())),
        };
        done.send_replace(Some(result));
    };
    match place {
        ControlPlane::Inline => {
            let mut inline = JoinSet::new();
            inline.spawn(control);
            // The end is visible through `done`: its value, or the closed channel if the task is dropped.
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
    // Built before the thread starts, so that a failure is an error of the start.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // The thread is not joined: its end is visible through the outcome.
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
