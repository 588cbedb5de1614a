//! From names, settings and components to a running worker.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::JoinMap;

use super::coordinator::Coordinator;
use super::handle::{self, WorkerHandle};
use super::lease_keeper::KeeperContext;
use super::shard_task::ShardTaskContext;
use super::state::State;
use super::{Report, Status, start};
use crate::aws;
use crate::clock::{Clock, TokioClock};
use crate::error::Error;
use crate::event::{Event, Events, Sink};
use crate::lease::dynamo::DynamoStore;
use crate::lease::store::LeaseStore;
use crate::processor::{ErasedProcessor, Factory, RecordProcessor, ShardContext};
use crate::record::WorkerId;
use crate::settings::Settings;
use crate::stream::Stream;
use crate::stream::kinesis::{KinesisOptions, KinesisStream};

/// Builds a [`Worker`]: names first, then settings and components.
#[must_use]
pub struct WorkerBuilder {
    application: String,
    stream_name: String,
    worker_id: Option<WorkerId>,
    settings: Settings,
    aws_config: Option<aws_config::SdkConfig>,
    store: Option<Arc<dyn LeaseStore>>,
    stream: Option<Arc<dyn Stream>>,
    clock: Arc<dyn Clock>,
    sink: Option<Sink>,
}

/// One instance of an application, ready to start.
pub struct Worker {
    me: WorkerId,
    settings: Settings,
    store: Arc<dyn LeaseStore>,
    stream: Arc<dyn Stream>,
    clock: Arc<dyn Clock>,
    events: Events,
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

    /// Another lease store than the DynamoDB table named after the application.
    pub fn lease_store(mut self, store: impl LeaseStore + 'static) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Another stream than the Kinesis stream of that name.
    pub fn stream(mut self, stream: impl Stream + 'static) -> Self {
        self.stream = Some(Arc::new(stream));
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

    /// Checks the settings and loads what was not given.
    ///
    /// # Errors
    /// Kind `Config` when settings are out of bounds.
    pub async fn build(self) -> Result<Worker, Error> {
        self.settings.validate()?;
        // The only chance in the library that is not seeded: names must differ between processes.
        let nonce = fastrand::u64(..);
        let me = self.worker_id.unwrap_or_else(|| format!("worker-{nonce:016x}").into());
        let seed = self.settings.seed.unwrap_or(nonce);
        let settings = Settings { seed: Some(seed), ..self.settings };
        let (config, lease_config) = match self.aws_config {
            Some(config) => (config.clone(), config),
            None if self.store.is_some() && self.stream.is_some() => {
                let none = aws_config::SdkConfig::builder().build();
                (none.clone(), none)
            }
            None => {
                let config = aws::config().load().await;
                // Connections are driven by the runtime that opened them: renewals get their own,
                // so that a processor that blocks the user's runtime cannot hold them up.
                let own = config.to_builder().http_client(aws::https_client()).build();
                (config, own)
            }
        };
        let store = self.store.unwrap_or_else(|| {
            Arc::new(DynamoStore::new(&lease_config, self.application, settings.create_table))
        });
        let stream = self.stream.unwrap_or_else(|| {
            let clock = Arc::clone(&self.clock);
            let options = KinesisOptions { poll_interval: settings.poll_interval, clock, seed };
            Arc::new(KinesisStream::new(&config, self.stream_name, options))
        });
        Ok(Worker {
            events: Events::new(me.clone(), self.sink),
            me,
            settings,
            store,
            stream,
            clock: self.clock,
            rng: fastrand::Rng::with_seed(seed),
            nonce,
        })
    }
}

impl Worker {
    /// A worker of `application`, which names the lease table, on the stream `stream` (name or ARN).
    pub fn builder(application: impl Into<String>, stream: impl Into<String>) -> WorkerBuilder {
        WorkerBuilder {
            application: application.into(),
            stream_name: stream.into(),
            worker_id: None,
            settings: Settings::default(),
            aws_config: None,
            store: None,
            stream: None,
            clock: Arc::new(TokioClock),
            sink: None,
        }
    }

    /// This worker's id.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.me
    }

    /// Starts, and returns when the worker is ready: the stream and the table exist and the shards
    /// have leases. A stream that is being created is waited for.
    ///
    /// # Cancel safety
    /// Dropping the future stops the worker.
    ///
    /// # Errors
    /// `Missing` (stream, or table that may not be created), `Denied`, `Unavailable` after bounded
    /// attempts, each naming the call and its object.
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
        let me = self.me.clone();
        let control = self.settings.control_plane;
        let clock = Arc::clone(&self.clock);
        // Boxed, because it is large and the caller's future would carry it.
        let run = Box::pin(self.run(factory, Handle::current(), ready, asked, status));
        let handle = handle::spawn(control, me, clock, stop, seen, run)?;
        match is_ready.await {
            Ok(()) => Ok(handle),
            Err(_) => Err(handle.stopped().await.err().unwrap_or_else(handle::ended_early)),
        }
    }

    /// Starts, runs until `shutdown` completes, then stops in good order within 30 seconds.
    ///
    /// # Errors
    /// As [`start`](Self::start); and `Missing` when the stream is deleted while it runs.
    pub async fn run_until<P, F>(self, factory: F, shutdown: impl Future) -> Result<Report, Error>
    where
        P: RecordProcessor,
        F: Fn(&ShardContext) -> P + Send + Sync + 'static,
    {
        let handle = self.start(factory).await?;
        tokio::select! {
            biased;
            stopped = handle.stopped() => return stopped,
            _ = shutdown => {}
        }
        handle.shutdown(std::time::Duration::from_secs(30)).await
    }

    /// The control plane from the first call to the last.
    async fn run(
        mut self,
        factory: Factory,
        data_plane: Handle,
        ready: oneshot::Sender<()>,
        stop: watch::Receiver<Option<tokio::time::Instant>>,
        status: watch::Sender<Status>,
    ) -> Result<Report, Error> {
        let incarnation = format!("{}#{:016x}", self.me, self.nonce);
        let keeper_context = KeeperContext {
            store: self.store,
            stream: Arc::clone(&self.stream),
            clock: Arc::clone(&self.clock),
            settings: self.settings.clone(),
            events: self.events.clone(),
            incarnation: incarnation.clone(),
        };
        let leases = start::make_ready(&keeper_context, &mut self.rng).await?;
        self.events.emit(&Event::Started { leases });
        if ready.send(()).is_err() {
            return Err(handle::ended_early());
        }
        let state =
            State::new(self.me.clone(), incarnation, self.settings.clone(), self.clock.now());
        let coordinator = Coordinator {
            me: self.me,
            keeper_context,
            shard_context: ShardTaskContext {
                stream: self.stream,
                clock: self.clock,
                settings: self.settings,
                events: self.events,
                factory,
            },
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
            gone: None,
        };
        coordinator.run().await
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("application", &self.application)
            .field("stream", &self.stream_name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.me).finish_non_exhaustive()
    }
}
