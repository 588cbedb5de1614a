//! From names, settings and components to a running worker.

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
    /// The Kinesis stream of that name or ARN.
    #[must_use]
    pub fn new(name_or_arn: impl Into<Arc<str>>) -> Self {
        Self { name_or_arn: name_or_arn.into(), position: None, aws_config: None, stream: None }
    }

    /// Another initial position than that of the settings.
    #[must_use]
    pub fn initial_position(mut self, position: InitialPosition) -> Self {
        self.position = Some(position);
        self
    }

    /// Another region, account or endpoint than the worker's.
    #[must_use]
    pub fn aws_config(mut self, config: aws_config::SdkConfig) -> Self {
        self.aws_config = Some(config);
        self
    }

    /// Another stream than the Kinesis stream of that name.
    #[must_use]
    pub fn stream(mut self, stream: impl Stream + 'static) -> Self {
        self.stream = Some(Arc::new(stream));
        self
    }
}

impl StreamSource {
    /// A service knows the streams of its own region only, and would call the ARN malformed.
    fn is_in_region_of(&self, config: &aws_config::SdkConfig) -> Result<(), Error> {
        let config = self.aws_config.as_ref().unwrap_or(config);
        let of_arn = self.name_or_arn.strip_prefix("arn:").and_then(|arn| arn.split(':').nth(2));
        match (of_arn, config.region()) {
            (Some(of_arn), Some(region)) if self.stream.is_none() && of_arn != region.as_ref() => {
                let stream = &self.name_or_arn;
                let context = format!(
                    "stream `{stream}` is in region `{of_arn}`, but its configuration names \
                     `{region}`: give it one for its own region with `StreamSource::aws_config`"
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

/// Builds a [`Worker`]: names first, then settings and components.
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
    /// Tells this start from every other one, also of the same id and seed: its writes carry it.
    nonce: u64,
}

impl WorkerBuilder {
    /// Another id than a random one. Two running workers must not share one.
    pub fn worker_id(mut self, id: impl Into<WorkerId>) -> Self {
        self.worker_id = Some(id.into());
        self
    }

    /// All settings at once.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Region, credentials, endpoints; without it the shared AWS configuration is loaded.
    ///
    /// Its HTTP client is used for the lease table too. If your processors block whole threads, do
    /// not use the same client for DynamoDB calls of your own: see `DESIGN.md`.
    pub fn aws_config(mut self, config: aws_config::SdkConfig) -> Self {
        self.aws_config = Some(config);
        self
    }

    /// Another region, account or endpoint for the lease table than for the streams.
    pub fn lease_aws_config(mut self, config: aws_config::SdkConfig) -> Self {
        self.lease_aws_config = Some(config);
        self
    }

    /// One more stream. All streams share the lease table and the workers; leases are then keyed by
    /// stream, as in the Java KCL.
    pub fn and_stream(mut self, stream: impl Into<StreamSource>) -> Self {
        self.streams.push(stream.into());
        self
    }

    /// Another lease store than the DynamoDB table named after the application.
    pub fn lease_store(mut self, store: impl LeaseStore + 'static) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Another stream than the Kinesis stream of that name, for the first stream.
    pub fn stream(mut self, stream: impl Stream + 'static) -> Self {
        self.streams[0].stream = Some(Arc::new(stream));
        self
    }

    /// Another clock than tokio's.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Who receives the events. Called on the worker's tasks: it must not block.
    pub fn on_event(mut self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Sets where the records go that the processor rejects ([`Ack::reject`](crate::Ack::reject),
    /// [`PoisonRecord`](crate::PoisonRecord)), and those that keep failing if the policy is
    /// [`FailurePolicy::DeadLetter`](crate::FailurePolicy::DeadLetter).
    pub fn dead_letter(mut self, sink: impl DeadLetter + 'static) -> Self {
        self.dead_letter = Some(Arc::new(sink));
        self
    }

    /// Checks the settings and loads what was not given.
    ///
    /// # Errors
    /// Kind `Config` when settings are out of bounds, a stream is given twice, the failure policy is
    /// `DeadLetter` and no [`dead_letter`](Self::dead_letter) was given, or a configuration names no
    /// region, a malformed one, or another than the ARN of its stream. Without
    /// [`aws_config`](Self::aws_config), also when environment or profile cannot work, as
    /// [`Lookup::load`](aws::Lookup::load) says.
    pub async fn build(mut self) -> Result<Worker, Error> {
        self.settings.retrieval.name_consumer(&self.application);
        self.settings.validate()?;
        self.no_stream_twice()?;
        self.one_stream_for_a_consumer_arn()?;
        self.a_place_for_dead_letters()?;
        let needs_no_service = self.needs_no_service();
        // The only chance in the library that is not seeded: names must differ between processes.
        let nonce = fastrand::u64(..);
        let me = self.worker_id.unwrap_or_else(|| format!("worker-{nonce:016x}").into());
        let seed = self.settings.seed.unwrap_or(nonce);
        let settings = Settings { seed: Some(seed), ..self.settings };
        let own = self.streams.iter().filter_map(|source| source.aws_config.as_ref());
        own.chain(&self.lease_aws_config).try_for_each(aws::check)?;
        let (config, lease_config) = match self.aws_config {
            Some(config) => {
                if !needs_no_service {
                    aws::check(&config)?;
                }
                (config.clone(), config)
            }
            None if needs_no_service => {
                let none = aws_config::SdkConfig::builder().build();
                (none.clone(), none)
            }
            None => {
                // Boxed, because it is large and every caller's future would carry it.
                let config = Box::pin(aws::Lookup::new().load()).await?.config;
                // Connections are driven by the runtime that opened them: renewals get their own,
                // so that a processor that blocks the user's runtime cannot hold them up.
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
                "`failures` is `DeadLetter`, but there is no sink: give one to \
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
                "the consumer of `retrieval` is given by its ARN, which belongs to one stream, but \
                 there are several: give its name",
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
    /// A worker of `application`, which names the lease table, on the stream `stream` (name or ARN).
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

    /// This worker's id.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.me
    }

    /// Starts, and returns when the worker is ready: the stream and the table exist and the shards
    /// have leases. Waits for what is transient, such as a stream that is being created, throttling, or
    /// a service that cannot be reached, up to `Settings::start_timeout`; events tell of it.
    ///
    /// The worker runs as long as the handle is kept: [dropping it](WorkerHandle#dropping-the-handle)
    /// stops the worker.
    ///
    /// # Cancel safety
    /// Dropping the future stops the worker.
    ///
    /// # Errors
    /// At once `Missing` (the stream, or a table that may not be created), `Credentials`, `Denied` or
    /// `Config`; `Unavailable` with the last reason after `Settings::start_timeout`. Each names the
    /// call and its object. `Config` also when tokio's time is paused and
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
        let (commands, asked_for) = mpsc::channel(1);
        let me = self.me.clone();
        let control = self.settings.control_plane;
        let clock = Arc::clone(&self.clock);
        if control == ControlPlane::OwnThread && is_paused(&*clock) {
            return Err(paused_time());
        }
        // Boxed, because it is large and the caller's future would carry it.
        let run = Box::pin(self.run(factory, Handle::current(), ready, asked, asked_for, status));
        let handle = handle::spawn(control, me, clock, stop, seen, commands, run)?;
        match is_ready.await {
            Ok(()) => Ok(handle),
            Err(_) => Err(handle.stopped().await.err().unwrap_or_else(Error::runtime_gone)),
        }
    }

    /// Starts, runs until `shutdown` completes, then stops gracefully within 30 seconds.
    ///
    /// # Cancel safety
    /// Dropping the future stops the worker in the background, as
    /// [dropping a handle](WorkerHandle#dropping-the-handle) does.
    ///
    /// # Errors
    /// As [`start`](Self::start); and `Missing` when the stream is deleted while it runs.
    pub async fn run_until<P, F>(self, factory: F, shutdown: impl Future) -> Result<Report, Error>
    where
        P: RecordProcessor,
        F: Fn(&ShardContext) -> P + Send + Sync + 'static,
    {
        let mut shutdown = std::pin::pin!(shutdown);
        let handle = tokio::select! {
            biased;
            handle = self.start(factory) => handle?,
            // Dropping the start stops it; nothing is held yet.
            _ = &mut shutdown => return Ok(Report::default()),
        };
        tokio::select! {
            biased;
            stopped = handle.stopped() => return stopped,
            _ = shutdown => {}
        }
        handle.shutdown(STOP_DEADLINE).await
    }

    /// The control plane from the first call to the last.
    async fn run(
        mut self,
        factory: Factory,
        data_plane: Handle,
        mut ready: oneshot::Sender<()>,
        stop: watch::Receiver<Option<tokio::time::Instant>>,
        commands: mpsc::Receiver<Command>,
        status: watch::Sender<Status>,
    ) -> Result<Report, Error> {
        let incarnation = format!("{}#{:016x}", self.me, self.nonce);
        let lease_clock = LeaseClock::new(Arc::clone(&self.clock));
        let settings = Arc::new(self.settings);
        let control_context = ControlContext {
            store: self.store,
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
            // Nothing is held yet, and nobody hears how it ends.
            () = ready.closed() => return Ok(Report::default()),
            made = start::make_ready(&control_context, &self.streams, &mut self.rng) => made?,
        };
        self.events.emit(&Event::Started { leases });
        // If nobody waits any more, the handle is gone, too: the coordinator stops.
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

/// Paused time stops on this runtime and jumps; the control thread has a runtime of its own, where time
/// goes on. What the one proves of a lease has expired for the other, so nothing would be delivered.
fn paused_time() -> Error {
    Error::new(
        ErrorKind::Config,
        "tokio's time is paused on this runtime, but the control plane has a thread and a time of its \
         own, so nothing would be delivered: set `control_plane` to `ControlPlane::Inline`, or do not \
         pause time",
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
