//! One run of a worker: starts it, reports its events, shuts it down.
//!
//! The request to stop comes as a token; its source is not known here. A worker that has started is
//! always shut down gracefully, also after stdout has ended.

use std::future::{Future, pending};
use std::io::{self, Write};
use std::pin::{Pin, pin};
use std::time::Duration;

use aws_config::SdkConfig;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::{Error, Event, ShardContext, Worker, WorkerBuilder, WorkerHandle};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::console::Console;
use crate::options::{Options, Sharing};
use crate::output::{Output, Writer};
use crate::print::Printer;

/// The events that may wait to be reported. They are reported immediately; a burst beyond this
/// (thousands of shards at the same moment) loses lines, never records.
const WAITING_EVENTS: usize = 4096;

/// The longest graceful shutdown: less than the 30 s that containers get before SIGKILL.
const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// The deadline after stdout was closed: nothing can be drained into it, so this is for releasing
/// leases.
const RELEASE_DEADLINE: Duration = Duration::from_secs(3);

/// A shutdown that takes longer is explained on stderr.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stdout that accepts nothing for this long is reported, once.
const STALL: Duration = Duration::from_secs(30);

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// A stop was requested.
    Stopped,
    /// Stdout failed: a closed pipe or a full disk.
    OutputEnded(io::Error),
    /// The worker could not start, or failed.
    Failed(Error),
}

/// Why waiting for other work was interrupted.
enum Interruption {
    StopAsked,
    OutputEnded(io::Error),
}

/// The future that completes when stdout ends: at a failed write, or when its reader goes away
/// while nothing is written. `None` after it has completed.
type EndOfOutput = Option<Pin<Box<dyn Future<Output = io::Error>>>>;

/// The state of one run besides the worker.
pub(crate) struct Session<W> {
    console: Console<W>,
    output: Output,
    end_of_output: EndOfOutput,
    has_told_of_stall: bool,
    events: mpsc::Receiver<Event>,
    to_console: mpsc::Sender<Event>,
}

/// Returns the builder of the worker that the options describe.
pub(crate) fn worker(options: &Options, config: SdkConfig) -> WorkerBuilder {
    let builder = match &options.sharing {
        // The application name is never visible: without a lease table it names nothing.
        Sharing::Alone => {
            Worker::builder("consumer", options.target.stream()).lease_store(MemoryStore::new())
        }
        Sharing::Group { application, worker_id } => {
            let builder = Worker::builder(application, options.target.stream());
            match worker_id {
                Some(id) => builder.worker_id(id.as_str()),
                None => builder,
            }
        }
    };
    builder.settings(options.settings.clone()).aws_config(config)
}

impl<W: Write> Session<W> {
    /// Creates a run that prints to `out` until `reader_is_gone`, and reports on `console`.
    pub(crate) fn new(
        console: Console<W>,
        out: impl Write + Send + 'static,
        reader_is_gone: impl Future<Output = ()> + 'static,
    ) -> Self {
        let (output, writer) = Output::start(out);
        let (to_console, events) = mpsc::channel(WAITING_EVENTS);
        let end = async move {
            tokio::select! {
                biased;
                error = failed(writer) => error,
                () = reader_is_gone => io::ErrorKind::BrokenPipe.into(),
            }
        };
        Self {
            console,
            output,
            end_of_output: Some(Box::pin(end)),
            has_told_of_stall: false,
            events,
            to_console,
        }
    }

    /// Runs the worker until `stop`, until it fails, or until stdout ends; then prints the summary.
    pub(crate) async fn run(
        &mut self,
        builder: WorkerBuilder,
        options: &Options,
        stop: &CancellationToken,
    ) -> Ending {
        let started = Instant::now();
        let ending = match self.start(builder, options, stop).await {
            Ok(handle) => self.serve(&handle, stop).await,
            // The caller reports the failure in one line, which is enough.
            Err(failed @ Ending::Failed(_)) => return failed,
            Err(ending) => ending,
        };
        // A user who closed stdout wants no more messages, least of all about the consequences.
        if !matches!(ending, Ending::OutputEnded(_)) {
            while let Ok(event) = self.events.try_recv() {
                self.console.event(&event, Instant::now());
            }
            self.console.sum(self.output.printed(), started.elapsed());
        }
        ending
    }

    /// Watches the started worker and shuts it down.
    async fn serve(&mut self, handle: &WorkerHandle, stop: &CancellationToken) -> Ending {
        let mut ending = self.watch(handle, stop).await;
        if matches!(ending, Ending::Stopped) {
            ending = self.drain(handle).await;
        }
        if matches!(ending, Ending::OutputEnded(_)) {
            // Drops the texts that wait, so that no shard waits for their acknowledgement.
            self.output.close();
            // Its report would only repeat that stdout has ended.
            handle.shutdown(RELEASE_DEADLINE).await.ok();
        }
        ending
    }

    /// Returns the console, for the caller's last message.
    pub(crate) fn console(&mut self) -> &mut Console<W> {
        &mut self.console
    }

    async fn start(
        &mut self,
        builder: WorkerBuilder,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<WorkerHandle, Ending> {
        let events = self.to_console.clone();
        let builder = builder.on_event(move |event| {
            // A full channel drops the event: the worker must never wait for stderr.
            events.try_send(event.clone()).ok();
        });
        let (format, output) = (options.format, self.output.clone());
        let printer = move |shard: &ShardContext| Printer {
            format,
            output: output.clone(),
            heartbeat: shard.heartbeat.clone(),
        };
        let started = Box::pin(async { builder.build().await?.start(printer).await });
        match self.unless_interrupted(stop, started).await {
            Ok(started) => started.map_err(Ending::Failed),
            Err(interruption) => Err(interruption.into()),
        }
    }

    async fn watch(&mut self, handle: &WorkerHandle, stop: &CancellationToken) -> Ending {
        match self.unless_interrupted(stop, handle.stopped()).await {
            Ok(Ok(_)) => Ending::Stopped,
            Ok(Err(error)) => Ending::Failed(error),
            Err(interruption) => interruption.into(),
        }
    }

    /// Waits until the records that were read are printed and stored; explains on stderr if that
    /// takes long.
    async fn drain(&mut self, handle: &WorkerHandle) -> Ending {
        // The stop that was requested would end this wait at once.
        let never = CancellationToken::new();
        let mut shutdown = pin!(handle.shutdown(DRAIN_DEADLINE));
        // Borrowed, so that the same shutdown continues after the message.
        let at_once = timeout(PATIENCE, shutdown.as_mut());
        let drained = match self.unless_interrupted(&never, at_once).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(_elapsed)) => {
                self.console.say(
                    "stopping: waiting for stdout and for the checkpoints; press Ctrl-C again to exit \
                     now; records since the last checkpoint will be printed again",
                );
                self.unless_interrupted(&never, shutdown).await
            }
            Err(interruption) => Err(interruption),
        };
        match drained {
            Ok(Ok(report)) => {
                self.console.undrained(&report);
                Ending::Stopped
            }
            Ok(Err(error)) => Ending::Failed(error),
            Err(interruption) => interruption.into(),
        }
    }

    /// Waits for `work` and reports events meanwhile.
    ///
    /// The order of the arms matters: a stop has priority over everything, the end of stdout over
    /// the events that it causes, and events that happened before `work` completed are reported
    /// before it returns.
    async fn unless_interrupted<T>(
        &mut self,
        stop: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<T, Interruption> {
        let mut work = pin!(work);
        let output = self.output.clone();
        let mut stalled = pin!(output.stalled(STALL));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Interruption::StopAsked),
                error = ended(&mut self.end_of_output) => {
                    return Err(Interruption::OutputEnded(error));
                }
                () = &mut stalled, if !self.has_told_of_stall => {
                    self.has_told_of_stall = true;
                    self.console.stalled(STALL);
                }
                Some(event) = self.events.recv() => self.console.event(&event, Instant::now()),
                done = &mut work => return Ok(done),
            }
        }
    }
}

impl From<Interruption> for Ending {
    fn from(interruption: Interruption) -> Self {
        match interruption {
            Interruption::StopAsked => Self::Stopped,
            Interruption::OutputEnded(error) => Self::OutputEnded(error),
        }
    }
}

/// Ends the writer's thread, unless it is blocked in a write.
impl<W> Drop for Session<W> {
    fn drop(&mut self) {
        self.output.close();
    }
}

impl<W> std::fmt::Debug for Session<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("output", &self.output).finish_non_exhaustive()
    }
}

/// Completes once, when stdout has ended.
async fn ended(end: &mut EndOfOutput) -> io::Error {
    let Some(ending) = end else { return pending().await };
    let error = ending.await;
    *end = None;
    error
}

/// Returns why the writer has ended.
async fn failed(writer: Writer) -> io::Error {
    match writer.await {
        Ok(Err(error)) => error,
        // A session closes its output only after it stops waiting here.
        Ok(Ok(())) => io::Error::other("the writer of stdout has stopped"),
        Err(panic) => io::Error::other(panic),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sdk_kinesis::Client;
    use aws_sdk_kinesis::primitives::Blob;
    use kcl_lite::ErrorKind;
    use local_aws::{Clock, LocalAws};

    use super::*;
    use crate::failure;
    use crate::options::Verbosity;
    use crate::options::tests::{options, place};
    use crate::output::tests::{Broken, Paused, Recorder};

    /// `wildrydes` with one shard.
    async fn stream() -> (LocalAws, Client) {
        stream_that_takes(Duration::ZERO).await
    }

    /// `wildrydes` with one shard, CREATING for as long as `transition`.
    async fn stream_that_takes(transition: Duration) -> (LocalAws, Client) {
        stream_of(LocalAws::builder().transition(transition).build().unwrap()).await
    }

    async fn stream_of(local: LocalAws) -> (LocalAws, Client) {
        let kinesis = Client::new(&local.sdk_config("producer"));
        kinesis.create_stream().stream_name("wildrydes").shard_count(1).send().await.unwrap();
        (local, kinesis)
    }

    async fn put(kinesis: &Client, data: &str) {
        let record = kinesis.put_record().stream_name("wildrydes").partition_key("Shadowfax");
        record.data(Blob::new(data)).send().await.unwrap();
    }

    /// One instance of the command against `local`, with everything that it writes.
    struct Instance {
        local: LocalAws,
        options: Options,
        stdout: Recorder,
        stderr: Recorder,
        stop: CancellationToken,
    }

    impl Instance {
        fn new(local: &LocalAws, flags: &[&str]) -> Self {
            Self::with(local, &[flags, &["--from", "trim-horizon"]].concat())
        }

        fn with(local: &LocalAws, flags: &[&str]) -> Self {
            let flags = [flags, &["--poll-interval", "200ms"]].concat();
            Self {
                local: local.clone(),
                options: options(&flags).unwrap(),
                stdout: Recorder::default(),
                stderr: Recorder::default(),
                stop: CancellationToken::new(),
            }
        }

        async fn run(&self) -> Ending {
            self.run_into(self.stdout.clone(), pending()).await
        }

        async fn run_into(
            &self,
            stdout: impl Write + Send + 'static,
            reader_is_gone: impl Future<Output = ()> + 'static,
        ) -> Ending {
            let builder = worker(&self.options, self.local.sdk_config("consumer"));
            let console = Console::new(self.stderr.clone(), Verbosity::Quiet, place());
            let mut session = Session::new(console, stdout, reader_is_gone);
            session.run(builder, &self.options, &self.stop).await
        }

        /// Runs until `part` has been printed, then shuts down gracefully.
        async fn run_until_printed(&self, part: &str) -> Ending {
            let stop = async {
                self.stdout.until_written(part).await;
                self.stop.cancel();
            };
            tokio::join!(self.run(), stop).0
        }
    }

    #[tokio::test]
    async fn alone_it_prints_what_comes_and_stores_nothing() {
        let (local, kinesis) = stream().await;
        put(&kinesis, "{\"a\":1}").await;
        put(&kinesis, "not json").await;
        let instance = Instance::new(&local, &[]);
        let ending = instance.run_until_printed("not json").await;
        assert!(matches!(ending, Ending::Stopped), "{ending:?}");
        assert_eq!(instance.stdout.text(), "{\n    \"a\": 1\n}\nnot json\n");
        let summary = instance.stderr.text();
        assert!(summary.starts_with("consumer: printed 2 records of 1 shard in "), "{summary}");
        let called = local.requests().operations("consumer");
        assert!(called.iter().all(|call| call.starts_with("kinesis:")), "{called:?}");
    }

    #[tokio::test]
    async fn an_application_goes_on_where_it_stopped() {
        let (local, kinesis) = stream().await;
        put(&kinesis, "first").await;
        Instance::new(&local, &["--app", "tail"]).run_until_printed("first").await;
        put(&kinesis, "second").await;
        let restarted = Instance::new(&local, &["--app", "tail"]);
        restarted.run_until_printed("second").await;
        assert_eq!(restarted.stdout.text(), "second\n");
        let other = Instance::new(&local, &["--app", "other"]);
        other.run_until_printed("second").await;
        assert_eq!(other.stdout.text(), "first\nsecond\n");
    }

    #[tokio::test]
    async fn with_fan_out_it_prints_what_is_sent_and_polls_nothing() {
        let (local, kinesis) = stream().await;
        put(&kinesis, "first").await;
        let instance = Instance::new(&local, &["--app", "tail", "--fan-out"]);
        let more = async {
            instance.stdout.until_written("first").await;
            put(&kinesis, "second").await;
        };
        tokio::join!(instance.run_until_printed("second"), more);
        assert_eq!(instance.stdout.text(), "first\nsecond\n");
        let requests = local.requests();
        assert_eq!(requests.count("consumer", "GetRecords"), 0);
        assert_eq!(requests.count("consumer", "RegisterStreamConsumer"), 1);
    }

    #[tokio::test]
    async fn a_stream_that_is_being_created_is_waited_for() {
        let (local, kinesis) = stream_that_takes(Duration::from_secs(3600)).await;
        let instance = Instance::new(&local, &[]);
        let create = async {
            instance.stderr.until_written("waiting until stream `wildrydes`").await;
            local.clock().advance(Duration::from_secs(3600));
            put(&kinesis, "ready").await;
        };
        tokio::join!(instance.run_until_printed("ready"), create);
        assert_eq!(instance.stdout.text(), "ready\n");
    }

    /// `--from 5m` means the same whatever the local clock shows, alone and in a group.
    #[tokio::test]
    async fn how_long_ago_counts_by_the_clock_of_the_service() {
        for hours in [-1, 1] {
            let clock = Clock::starting_at(Clock::new().now_ms() + hours * 3_600_000);
            let local = LocalAws::builder().transition(Duration::ZERO).clock(clock);
            let (local, kinesis) = stream_of(local.build().unwrap()).await;
            put(&kinesis, "too old").await;
            local.clock().advance(Duration::from_secs(1_800));
            put(&kinesis, "wanted").await;
            for flags in [&["--from", "5m"][..], &["--from", "5m", "--app", "tail"]] {
                let instance = Instance::with(&local, flags);
                instance.run_until_printed("wanted").await;
                assert_eq!(instance.stdout.text(), "wanted\n", "{hours} {flags:?}");
            }
        }
    }

    /// By a clock that is behind, the time is in the future.
    #[tokio::test]
    async fn a_time_that_has_come_by_the_clock_of_the_service_is_a_start() {
        let clock = Clock::starting_at(Clock::new().now_ms() + 3_600_000);
        let local = LocalAws::builder().transition(Duration::ZERO).clock(clock);
        let (local, kinesis) = stream_of(local.build().unwrap()).await;
        put(&kinesis, "too old").await;
        local.clock().advance(Duration::from_secs(60));
        let time = jiff::Timestamp::from_millisecond(local.clock().now_ms()).unwrap().to_string();
        put(&kinesis, "wanted").await;
        let instance = Instance::with(&local, &["--from", &time]);
        instance.run_until_printed("wanted").await;
        assert_eq!(instance.stdout.text(), "wanted\n");
        assert!(!instance.stderr.text().contains("--from"), "{}", instance.stderr.text());
    }

    #[tokio::test]
    async fn a_time_that_is_still_to_come_is_said_to_be_replaced() {
        let (local, kinesis) = stream().await;
        let instance = Instance::with(&local, &["--from", "2999-01-01T00:00:00Z", "--app", "tail"]);
        let more = async {
            instance.stderr.until_written("is later than the service's clock").await;
            put(&kinesis, "after").await;
        };
        tokio::join!(instance.run_until_printed("after"), more);
        assert_eq!(instance.stdout.text(), "after\n");
    }

    #[tokio::test]
    async fn a_split_is_followed() {
        let (local, kinesis) = stream().await;
        put(&kinesis, "before").await;
        let instance = Instance::new(&local, &[]);
        let split = async {
            instance.stdout.until_written("before").await;
            let split = kinesis.split_shard().stream_name("wildrydes");
            let split = split.shard_to_split("shardId-000000000000");
            split.new_starting_hash_key((1_u128 << 127).to_string()).send().await.unwrap();
            put(&kinesis, "after").await;
        };
        tokio::join!(instance.run_until_printed("after"), split);
        assert_eq!(instance.stdout.text(), "before\nafter\n");
    }

    #[tokio::test]
    async fn an_instance_without_a_shard_says_that_it_stands_by_and_takes_over() {
        let (local, kinesis) = stream().await;
        let flags = |id| ["--app", "tail", "--failover", "1s", "--worker-id", id];
        let (first, second) =
            (Instance::new(&local, &flags("w1")), Instance::new(&local, &flags("w2")));
        let hand_over = async {
            put(&kinesis, "one").await;
            first.stdout.until_written("one").await;
            let stop_first = async {
                second.stderr.until_written("standing by: 1 of 1 shards is held by w1").await;
                put(&kinesis, "two").await;
                first.stdout.until_written("two").await;
                first.stop.cancel();
            };
            let stop_second = async {
                second.stdout.until_written("three").await;
                second.stop.cancel();
            };
            tokio::join!(second.run(), stop_first, stop_second)
        };
        let put_three = async {
            first.run().await;
            put(&kinesis, "three").await;
        };
        tokio::join!(hand_over, put_three);
        assert_eq!(first.stdout.text(), "one\ntwo\n");
        assert_eq!(second.stdout.text(), "three\n");
        assert_eq!(second.stderr.text().matches("standing by").count(), 1);
    }

    #[tokio::test]
    async fn a_closed_stdout_ends_it_silently_and_leaves_records_and_shard_to_the_next() {
        let (local, kinesis) = stream().await;
        put(&kinesis, "unread").await;
        // So long that a shard which is not released would not be taken during this test.
        let flags = ["--app", "tail", "--failover", "5m"];
        let instance = Instance::new(&local, &flags);
        let ending = instance.run_into(Broken, pending()).await;
        let Ending::OutputEnded(error) = ending else { panic!("{ending:?}") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(instance.stderr.text(), "");
        put(&kinesis, "last").await;
        let next = Instance::new(&local, &flags);
        let stop = async {
            tokio::select! {
                biased;
                () = next.stdout.until_written("last") => {}
                () = next.stderr.until_written("standing by") => {}
            }
            next.stop.cancel();
        };
        tokio::join!(next.run(), stop);
        assert_eq!(next.stdout.text(), "unread\nlast\n");
    }

    /// Stdout blocks for longer than a callback may take: the records are printed once, in order, and
    /// the checkpoint follows what is written.
    #[tokio::test]
    async fn a_reader_that_pauses_keeps_its_records_and_its_shard() {
        let (local, kinesis) = stream().await;
        let record = |number: u32| format!("{number}{}", "-".repeat(4000));
        let numbers = [1, 2, 3, 4, 5];
        for number in numbers {
            put(&kinesis, &record(number)).await;
        }
        let flags = ["--app", "tail", "--failover", "1s", "--callback-deadline", "3s"];
        let instance = Instance::new(&local, &flags);
        let paused = Paused::new(instance.stdout.clone());
        let read = async {
            paused.take(2);
            instance.stdout.until_written("2-").await;
            paused.until_blocked().await;
            // A renewal every third of a second.
            let renewals = local.requests().count("consumer", "UpdateItem");
            local.requests().wait_for("consumer", "UpdateItem", renewals + 18).await;
            paused.take(u64::MAX);
            instance.stdout.until_written("5-").await;
            instance.stop.cancel();
        };
        tokio::join!(instance.run_into(paused.clone(), pending()), read);
        let printed = instance.stdout.text();
        let printed: Vec<_> = printed.lines().collect();
        assert_eq!(printed, numbers.map(record), "{}", instance.stderr.text());
        let said = instance.stderr.text();
        assert!(said.starts_with("consumer: printed 5 records of 1 shard"), "{said}");
        put(&kinesis, "last").await;
        let next = Instance::new(&local, &flags);
        next.run_until_printed("last").await;
        assert_eq!(next.stdout.text(), "last\n", "everything was acknowledged");
    }

    #[tokio::test]
    async fn a_reader_that_goes_while_nothing_comes_ends_it_silently_and_frees_the_shard() {
        let (local, kinesis) = stream().await;
        put(&kinesis, "first").await;
        let flags = ["--app", "tail", "--failover", "5m"];
        let instance = Instance::new(&local, &flags);
        let (gone, is_gone) = tokio::sync::oneshot::channel::<()>();
        let reader_is_gone = async {
            is_gone.await.ok();
        };
        let leave = async {
            instance.stdout.until_written("first").await;
            gone.send(()).unwrap();
        };
        let ending =
            tokio::join!(instance.run_into(instance.stdout.clone(), reader_is_gone), leave).0;
        let Ending::OutputEnded(error) = ending else { panic!("{ending:?}") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(instance.stderr.text(), "");
        put(&kinesis, "last").await;
        let next = Instance::new(&local, &flags);
        next.run_until_printed("last").await;
        assert_eq!(next.stdout.text(), "last\n");
    }

    #[tokio::test]
    async fn a_missing_stream_is_one_line_with_stream_region_and_hint() {
        let instance = Instance::new(&LocalAws::in_memory(), &[]);
        let ending = instance.run().await;
        let Ending::Failed(error) = ending else { panic!("{ending:?}") };
        assert_eq!(error.kind(), ErrorKind::Missing);
        insta::assert_snapshot!(failure::explained(&error, &place()), @"stream `wildrydes` in region us-west-2 (from -region, at http://127.0.0.1:9) was not found; hint: `aws kinesis list-streams --region us-west-2` lists the streams; create `wildrydes` with `producer --create-stream 1`, or choose another stream with -stream or another region with -region");
        assert_eq!(instance.stderr.text(), "");
    }

    #[tokio::test]
    async fn a_stop_while_it_starts_ends_it_at_once() {
        let (local, _kinesis) = stream().await;
        let instance = Instance::new(&local, &["--app", "tail"]);
        instance.stop.cancel();
        assert!(matches!(instance.run().await, Ending::Stopped));
        assert!(local.requests().operations("consumer").is_empty());
    }
}
