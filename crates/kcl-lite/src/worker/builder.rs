//! The builder of a worker, and the start of its control plane.
//!
//! `build` checks the settings and creates the components that were not passed in; `start` hands all of
//! them to the coordinator.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::JoinMap;

use super::context::ControlContext;
use super::coordinator::{Command, Coordinator};
use super::handle::{self, WorkerHandle};
use super::service_clock::ServiceClock;
use super::shard_task::{PackingFaults, ShardTaskContext};
use super::start::GivenStream;
use super::state::State;
use super::{Report, Status, start};
use crate::aws;
use crate::budget::Budget;
use crate::clock::{Clock, LeaseClock, TokioClock, is_paused};
use crate::dead_letter::DeadLetter;
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Events, Sink};
use crate::lease::dynamo::DynamoStore;
use crate::lease::store::LeaseStore;
use crate::lease::timing::STOP_DEADLINE;
use crate::position::InitialPosition;
use crate::processor::{ErasedProcessor, Factory, RecordProcessor, ShardContext};
use crate::record::WorkerId;
use crate::settings::{ControlPlane, FailurePolicy, Settings, StreamConsumer};
use crate::stream::Stream;
use crate::stream::kinesis::{KinesisOptions, KinesisStream};

/// One of the streams of a worker.
#[derive(Debug, Clone)]
pub struct StreamSource {
    name_or_arn: Arc<str>,
    position: Option<InitialPosition>,
    aws_config: Option<aws_config::SdkConfig>,
    stream: Option<Arc<dyn Stream>>,
}

impl StreamSource {
    /// Creates a source from the name or ARN of a Kinesis stream.
    #[must_use]
    pub fn new(name_or_arn: impl Into<Arc<str>>) -> Self {
        Self { name_or_arn: name_or_arn.into(), position: None, aws_config: None, stream: None }
    }

    /// Sets the initial position of this stream, in place of that of the settings.
    #[must_use]
    pub fn initial_position(mut self, position: InitialPosition) -> Self {
        self.position = Some(position);
        self
    }

    /// Sets the region, credentials and endpoint of this stream, in place of the worker's.
    #[must_use]
    pub fn aws_config(mut self, config: aws_config::SdkConfig) -> Self {
        self.aws_config = Some(config);
        self
    }

    /// Sets an implementation to read from, in place of the Kinesis stream of that name.
    #[must_use]
    pub fn stream(mut self, stream: impl Stream + 'static) -> Self {
        self.stream = Some(Arc::new(stream));
        self
    }
}

impl StreamSource {
    /// Checks that the ARN is in the region of the configuration: a service knows only the streams of its
    /// own region, and reports other ARNs as malformed.
    fn is_in_region_of(&self, config: &aws_config::SdkConfig) -> Result<(), Error> {
        let config = self.aws_config.as_ref().unwrap_or(config);
        let of_arn = self.name_or_arn.strip_prefix("arn:").and_then(|arn| arn.split(':').nth(2));
        match (of_arn, config.region()) {
            (Some(of_arn), Some(region)) if self.stream.is_none() && of_arn != region.as_ref() => {
                let stream = &self.name_or_arn;
                let context = format!(
                    "stream `{stream}` is in region `{of_arn}`, but its configuration has region \
                     `{region}`: set one with the stream's region by `StreamSource::aws_config`"
                );
                Err(Error::new(ErrorKind::Config, context))
            }
            _ => Ok(()),
        }
    }
}

impl From<&str> for StreamSource {
    fn from(name_or_arn: &str) -> Self {
        Self::new(name_or_arn)
    }
}
impl From<String> for StreamSource {
    fn from(name_or_arn: String) -> Self {
        Self::new(name_or_arn)
    }
}
impl From<&String> for StreamSource {
    fn from(name_or_arn: &String) -> Self {
        Self::new(name_or_arn.as_str())
    }
}

/// A builder of a [`Worker`] from names, settings and components.
#[must_use]
pub struct WorkerBuilder {
    application: String,
    streams: Vec<StreamSource>,
    worker_id: Option<WorkerId>,
    settings: Settings,
    aws_config: Option<aws_config::SdkConfig>,
    lease_aws_config: Option<aws_config::SdkConfig>,
    store: Option<Arc<dyn LeaseStore>>,
    clock: Arc<dyn Clock>,
    sink: Option<Sink>,
    dead_letter: Option<Arc<dyn DeadLetter>>,
}

/// One instance of an application, ready to start.
pub struct Worker {
    me: WorkerId,
    settings: Settings,
    store: Arc<dyn LeaseStore>,
    streams: Vec<GivenStream>,
    clock: Arc<dyn Clock>,
    events: Events,
    dead_letter: Option<Arc<dyn DeadLetter>>,
    rng: fastrand::Rng,
    /// Distinguishes this incarnation from every other, even with the same ID and seed. Part of the
    /// write IDs.
    nonce: u64,
}

impl WorkerBuilder {
    /// Sets the worker ID, in place of a random one. Two running workers must not share an ID.
    pub fn worker_id(mut self, id: impl Into<WorkerId>) -> Self {
        self.worker_id = Some(id.into());
        self
    }

    /// Sets all settings.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets region, credentials and endpoints. Without it the shared AWS configuration is loaded.
    ///
    /// The HTTP client of `config` is used for the lease table too. If your processors block whole
    /// threads, do not use the same client for DynamoDB calls of your own: see `DESIGN.md`.
    pub fn aws_config(mut self, config: aws_config::SdkConfig) -> Self {
        self.aws_config = Some(config);
        self
    }

    /// Sets region, credentials and endpoint of the lease table, in place of those of the streams.
    pub fn lease_aws_config(mut self, config: aws_config::SdkConfig) -> Self {
        self.lease_aws_config = Some(config);
        self
    }

    /// Adds a stream. All streams share the lease table and the workers; the lease keys then contain the
    /// stream, as in the Java KCL.
    pub fn and_stream(mut self, stream: impl Into<StreamSource>) -> Self {
        self.streams.push(stream.into());
        self
    }

    /// Sets the lease store, in place of the DynamoDB table that is named after the application.
    pub fn lease_store(mut self, store: impl LeaseStore + 'static) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Sets an implementation of the first stream, in place of the Kinesis stream of that name.
    pub fn stream(mut self, stream: impl Stream + 'static) -> Self {
        self.streams[0].stream = Some(Arc::new(stream));
        self
    }

    /// Sets the clock, in place of tokio's.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Registers the callback that receives the events. It runs on the worker's tasks and must not block.
    pub fn on_event(mut self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Sets the sink for records that the processor rejects ([`Ack::reject`](crate::Ack::reject),
    /// [`PoisonRecord`](crate::PoisonRecord)), and for those that keep failing if the policy is
    /// [`FailurePolicy::DeadLetter`](crate::FailurePolicy::DeadLetter).
    pub fn dead_letter(mut self, sink: impl DeadLetter + 'static) -> Self {
        self.dead_letter = Some(Arc::new(sink));
        self
    }

    /// Checks the settings and creates the components that were not set.
    ///
    /// # Errors
    /// Kind `Config` when settings are out of bounds, a stream is added twice, the failure policy is
    /// `DeadLetter` without a [`dead_letter`](Self::dead_letter) sink, or a configuration has no region,
    /// a malformed one, or another than the ARN of its stream. Without
    /// [`aws_config`](Self::aws_config), also the errors of [`Lookup::load`](aws::Lookup::load) about
    /// environment and profile.
    pub async fn build(mut self) -> Result<Worker, Error> {
        // Before `validate`, because not every application name is a valid consumer name.
        self.settings.retrieval.name_consumer(&self.application);
        self.settings.validate()?;
        self.no_stream_twice()?;
        self.one_stream_for_a_consumer_arn()?;
        self.a_place_for_dead_letters()?;
        let needs_no_service = self.needs_no_service();
        // The only randomness in the library that is not seeded: IDs must differ between processes.
        let nonce = fastrand::u64(..);
        let me = self.worker_id.unwrap_or_else(|| format!("worker-{nonce:016x}").into());
        let seed = self.settings.seed.unwrap_or(nonce);
        let settings = Settings { seed: Some(seed), ..self.settings };
        let own = self.streams.iter().filter_map(|source| source.aws_config.as_ref());
        own.chain(&self.lease_aws_config).try_for_each(aws::check)?;
        let (config, lease_config) = match self.aws_config {
            Some(config) => {
                // A configuration that nothing uses need not be complete.
                if !needs_no_service {
                    aws::check(&config)?;
                }
                (config.clone(), config)
            }
            None if needs_no_service => {
                // Loading reads the environment and can fail, although nothing would use the
                // result.
                let none = aws_config::SdkConfig::builder().build();
                (none.clone(), none)
            }
            None => {
                // Boxed, because it is large and would be part of every caller's future.
                let config = Box::pin(aws::Lookup::new().load()).await?.config;
                // The runtime that opened a connection drives it. Renewals get their own connections, so
                // that a processor that blocks the user's runtime cannot delay them.
                let own = config.to_builder().http_client(aws::https_client()).build();
                (config, own)
            }
        };
        self.streams.iter().try_for_each(|source| source.is_in_region_of(&config))?;
        let lease_config = self.lease_aws_config.unwrap_or(lease_config);
        let store = self.store.unwrap_or_else(|| {
            Arc::new(DynamoStore::new(&lease_config, self.application, settings.table.clone()))
        });
        let given = |source: StreamSource| GivenStream {
            stream: source.stream.unwrap_or_else(|| {
                let clock = Arc::clone(&self.clock);
                let options = KinesisOptions {
                    poll_interval: settings.poll_interval,
                    reads_per_second: settings.reads_per_second,
                    clock,
                    seed,
                    retrieval: settings.retrieval.clone(),
                };
                let config = source.aws_config.as_ref().unwrap_or(&config);
                Arc::new(KinesisStream::new(config, &*source.name_or_arn, options))
            }),
            name: source.name_or_arn,
            position: source.position.unwrap_or(settings.initial_position),
        };
        let streams = self.streams.into_iter().map(given).collect();
        Ok(Worker {
            events: Events::new(me.clone(), self.sink),
            me,
            settings,
            store,
            streams,
            clock: self.clock,
            dead_letter: self.dead_letter,
            rng: fastrand::Rng::with_seed(seed),
            nonce,
        })
    }
}

impl WorkerBuilder {
    fn needs_no_service(&self) -> bool {
        self.store.is_some() && self.streams.iter().all(|source| source.stream.is_some())
    }

    fn a_place_for_dead_letters(&self) -> Result<(), Error> {
        let puts_aside = matches!(self.settings.failures, FailurePolicy::DeadLetter { .. });
        if puts_aside && self.dead_letter.is_none() {
            return Err(Error::new(
                ErrorKind::Config,
                "`failures` is `DeadLetter`, but there is no sink: set one with \
                 `WorkerBuilder::dead_letter`",
            ));
        }
        Ok(())
    }

    fn one_stream_for_a_consumer_arn(&self) -> Result<(), Error> {
        let consumer = self.settings.retrieval.consumer();
        if self.streams.len() > 1 && matches!(consumer, Some(StreamConsumer::Arn(_))) {
            return Err(Error::new(
                ErrorKind::Config,
                "the consumer of `retrieval` is set by its ARN, which belongs to one stream, but the \
                 worker has several: set it by its name",
            ));
        }
        Ok(())
    }

    fn no_stream_twice(&self) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        match self.streams.iter().find(|source| !names.insert(&source.name_or_arn)) {
            None => Ok(()),
            Some(twice) => Err(Error::new(
                ErrorKind::Config,
                format!("stream `{}` is given twice", twice.name_or_arn),
            )),
        }
    }
}

impl Worker {
    /// Returns a builder of a worker of `application`, which is also the name of the lease table, for
    /// `stream` (name or ARN).
    pub fn builder(
        application: impl Into<String>,
        stream: impl Into<StreamSource>,
    ) -> WorkerBuilder {
        WorkerBuilder {
            application: application.into(),
            streams: vec![stream.into()],
            worker_id: None,
            settings: Settings::default(),
            aws_config: None,
            lease_aws_config: None,
            store: None,
            clock: Arc::new(TokioClock),
            sink: None,
            dead_letter: None,
        }
    }

    /// Returns the worker ID.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.me
    }

    /// Starts the worker and returns when it is ready: the stream and the table exist and the shards
    /// have leases. Waits out transient failures, such as a stream that is being created, throttling, or
    /// an unreachable service, up to `Settings::start_timeout`, and reports them as events.
    ///
    /// The worker runs as long as the handle is kept: [dropping it](WorkerHandle#dropping-the-handle)
    /// stops the worker.
    ///
    /// # Cancel safety
    /// Dropping the future stops the worker.
    ///
    /// # Errors
    /// Immediately `Missing` (the stream, or a table that may not be created), `OtherStream`,
    /// `Credentials`, `Denied` or `Config`; `Unavailable` with the last reason after
    /// `Settings::start_timeout`. The message names the call and its resource. `Config` also when tokio's
    /// time is paused and
    /// [`Settings::control_plane`](crate::Settings::control_plane) is not
    /// [`ControlPlane::Inline`](crate::ControlPlane::Inline).
    pub async fn start<P, F>(self, factory: F) -> Result<WorkerHandle, Error>
    where
        P: RecordProcessor,
        F: Fn(&ShardContext) -> P + Send + Sync + 'static,
    {
        let factory: Factory =
            Arc::new(move |shard| -> Box<dyn ErasedProcessor> { Box::new(factory(shard)) });
        let (ready, is_ready) = oneshot::channel();
        let (stop, asked) = watch::channel(None);
        let (status, seen) = watch::channel(Status::default());
        // One place is enough, because every caller waits for the reply to its command.
        let (commands, asked_for) = mpsc::channel(1);
        let me = self.me.clone();
        let control = self.settings.control_plane;
        let clock = Arc::clone(&self.clock);
        if control == ControlPlane::OwnThread && is_paused(&*clock) {
            return Err(paused_time());
        }
        // Boxed, because it is large and would be part of the caller's future.
        let run = Box::pin(self.run(factory, Handle::current(), ready, asked, asked_for, status));
        let handle = handle::spawn(control, me, clock, stop, seen, commands, run)?;
        match is_ready.await {
            Ok(()) => Ok(handle),
            Err(_) => Err(handle.stopped().await.err().unwrap_or_else(Error::runtime_gone)),
        }
    }

    /// Starts the worker, runs it until `shutdown` completes, and then stops it gracefully within 30
    /// seconds.
    ///
    /// # Cancel safety
    /// Dropping the future stops the worker in the background, as
    /// [dropping a handle](WorkerHandle#dropping-the-handle) does.
    ///
    /// # Errors
    /// The errors of [`start`](Self::start) and of [`WorkerHandle::stopped`], such as `Missing` when the
    /// stream is deleted while the worker runs.
    pub async fn run_until<P, F>(self, factory: F, shutdown: impl Future) -> Result<Report, Error>
    where
        P: RecordProcessor,
        F: Fn(&ShardContext) -> P + Send + Sync + 'static,
    {
        let mut shutdown = std::pin::pin!(shutdown);
        let handle = tokio::select! {
            biased;
            // An error of the start wins over a shutdown that is ready at the same time.
            handle = self.start(factory) => handle?,
            // Dropping the start cancels it; no lease is held yet.
            _ = &mut shutdown => return Ok(Report::default()),
        };
        tokio::select! {
            biased;
            // The error of a worker that has ended wins over a shutdown.
            stopped = handle.stopped() => return stopped,
            _ = shutdown => {}
        }
        handle.shutdown(STOP_DEADLINE).await
    }

    /// Runs the control plane, from the first call to the last.
    async fn run(
        mut self,
        factory: Factory,
        data_plane: Handle,
        mut ready: oneshot::Sender<()>,
        stop: watch::Receiver<Option<tokio::time::Instant>>,
        commands: mpsc::Receiver<Command>,
        status: watch::Sender<Status>,
    ) -> Result<Report, Error> {
        // `is_by_other_life` and `WriteId::is_of` rely on this format.
        let incarnation = format!("{}#{:016x}", self.me, self.nonce);
        let lease_clock = LeaseClock::new(Arc::clone(&self.clock));
        let settings = Arc::new(self.settings);
        let control_context = ControlContext {
            store: self.store,
            // A placeholder: the keeper of a lease gets the stream of that lease.
            stream: Arc::clone(&self.streams[0].stream),
            clock: Arc::new(lease_clock.clone()),
            settings: Arc::clone(&settings),
            events: self.events.clone(),
            incarnation: incarnation.clone(),
            several_streams: self.streams.len() > 1,
            began: self.clock.now(),
        };
        let (streams, leases) = tokio::select! {
            biased;
            // The caller dropped `start`: no lease is held yet, and no caller waits for the outcome.
            () = ready.closed() => return Ok(Report::default()),
            made = start::make_ready(&control_context, &self.streams, &mut self.rng) => made?,
        };
        self.events.emit(&Event::Started { leases });
        // Fails if the caller dropped `start`. Then the handle is dropped too, and the coordinator stops.
        ready.send(()).ok();
        let sources = streams.values().map(|stream| stream.source.clone()).collect();
        let state = State::new(
            self.me.clone(),
            incarnation,
            Arc::clone(&settings),
            sources,
            self.clock.now(),
        );
        let (paused, is_paused) = watch::channel(false);
        let coordinator = Coordinator {
            judge_at: self.clock.now(),
            awake_since: self.clock.now(),
            me: self.me,
            shard_context: ShardTaskContext {
                // A placeholder, too, like `service_clock`: each tenure has those of its own
                // stream.
                stream: Arc::clone(&control_context.stream),
                clock: self.clock,
                budget: Budget::new(settings.memory_budget),
                settings,
                events: self.events,
                factory,
                dead_letter: self.dead_letter,
                paused: is_paused,
                packing_faults: PackingFaults::default(),
                service_clock: ServiceClock::new(Arc::clone(&control_context.clock)),
            },
            control_context,
            lease_clock,
            streams,
            commands,
            paused,
            data_plane,
            state,
            stop,
            status,
            rng: self.rng,
            held: Default::default(),
            calls: JoinSet::new(),
            keepers: JoinMap::new(),
            shards: JoinMap::new(),
            report: Report::default(),
            failure: None,
        };
        coordinator.run().await
    }
}

/// Creates the error of a start on paused time. Paused time jumps on this runtime, while the control
/// thread has its own runtime with real time, so leases that are valid on one have expired on the other.
fn paused_time() -> Error {
    Error::new(
        ErrorKind::Config,
        "tokio's time is paused on this runtime, but the control plane runs on its own thread with its \
         own time, so no record would be delivered: set `control_plane` to `ControlPlane::Inline`, or do \
         not pause time",
    )
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("application", &self.application)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.me).finish_non_exhaustive()
    }
}
