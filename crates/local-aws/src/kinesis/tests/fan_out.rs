//! Consumers and their subscriptions.

use aws_smithy_eventstream::frame::read_message_from;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

use super::*;

const STREAM_ARN: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/s";

/// Returns a frame's kind and payload.
fn read_frame(frame: &Bytes) -> (String, Value) {
    let message = read_message_from(&mut frame.as_ref()).unwrap();
    let header = |name: &str| {
        let found = message.headers().iter().find(|header| header.name().as_str() == name);
        found.map(|header| header.value().as_string().unwrap().as_str().to_owned())
    };
    assert_eq!(header(":content-type").unwrap(), "application/x-amz-json-1.1");
    let kind = header(":event-type").or_else(|| header(":exception-type")).unwrap();
    (kind, serde_json::from_slice(message.payload()).unwrap())
}

struct Subscription(BoxStream<'static, Bytes>);

impl Subscription {
    /// Returns the next event, or `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        let (kind, payload) = read_frame(&self.0.next().await?);
        assert_eq!(kind, "SubscribeToShardEvent", "{payload}");
        Some(payload)
    }
}

impl Local {
    fn register(&self, name: &str) -> String {
        let body = json!({"StreamARN": STREAM_ARN, "ConsumerName": name});
        let answer = self.ok("RegisterStreamConsumer", &body);
        assert_eq!(answer["Consumer"]["ConsumerStatus"], "CREATING");
        self.settle();
        answer["Consumer"]["ConsumerARN"].as_str().unwrap().to_owned()
    }

    fn try_subscribe(&self, consumer: &str, start: &Value) -> Result<Subscription, ApiError> {
        let body = json!({
            "ConsumerARN": consumer, "ShardId": id(0), "StartingPosition": start,
        });
        let body = body.to_string();
        match self.kinesis.call("SubscribeToShard", Format::Json, body.as_bytes())? {
            Reply::EventStream(frames) => Ok(Subscription(frames)),
            Reply::Body(body) => panic!("a subscription answered {body:?}"),
        }
    }

    /// Returns a subscription whose opening frame has been read.
    async fn subscribe(&self, consumer: &str, start: &Value) -> Subscription {
        let mut subscription = self.try_subscribe(consumer, start).unwrap();
        let (kind, _) = read_frame(&subscription.0.next().await.unwrap());
        assert_eq!(kind, "initial-response");
        subscription
    }
}

fn latest() -> Value {
    json!({"Type": "LATEST"})
}

#[tokio::test(start_paused = true)]
async fn records_are_pushed_as_they_come_without_any_time_passing() {
    let local = local_with_stream(1);
    let consumer = local.register("app");
    local.put("old");
    let mut events = local.subscribe(&consumer, &json!({"Type": "TRIM_HORIZON"})).await;
    assert_eq!(texts_of(&events.next().await.unwrap()), ["old"]);
    let before = tokio::time::Instant::now();
    let put = async {
        tokio::task::yield_now().await;
        local.put("new")
    };
    let (event, number) = tokio::join!(biased; events.next(), put);
    let event = event.unwrap();
    assert_eq!(texts_of(&event), ["new"]);
    assert_eq!(event["ContinuationSequenceNumber"], number.as_str());
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_idle_subscription_says_that_it_lives_and_ends_after_five_minutes() {
    let local = local_with_stream(1);
    let consumer = local.register("app");
    let before = tokio::time::Instant::now();
    let mut events = local.subscribe(&consumer, &latest()).await;
    let mut heartbeats = 0;
    while let Some(event) = events.next().await {
        assert_eq!(texts_of(&event), Vec::<String>::new());
        assert!(event.get("ContinuationSequenceNumber").is_some());
        heartbeats += 1;
    }
    assert_eq!(before.elapsed(), Duration::from_mins(5));
    assert_eq!(heartbeats, 60);
    assert_eq!(events.next().await, None, "the end stays the end");
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_clock_ends_a_session_too() {
    let local = local_with_stream(1);
    let consumer = local.register("app");
    let mut events = local.subscribe(&consumer, &latest()).await;
    events.next().await.unwrap();
    let jump = async {
        tokio::task::yield_now().await;
        local.clock.advance(Duration::from_mins(5));
    };
    let before = tokio::time::Instant::now();
    let (end, ()) = tokio::join!(biased; events.next(), jump);
    assert_eq!(end, None);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_continuation_resumes_exactly_also_where_nothing_was_read() {
    let local = local_with_stream(2);
    let consumer = local.register("app");
    let mut events = local.subscribe(&consumer, &latest()).await;
    let event = events.next().await.unwrap();
    let number = event["ContinuationSequenceNumber"].clone();
    let body = json!({
        "StreamName": "s", "PartitionKey": "k", "Data": base64("next"), "ExplicitHashKey": "0",
    });
    local.ok("PutRecord", &body);
    local.clock.advance(Duration::from_secs(5));
    for (kind, again) in [("AFTER_SEQUENCE_NUMBER", "next"), ("AT_SEQUENCE_NUMBER", "next")] {
        let start = json!({"Type": kind, "SequenceNumber": number});
        let mut events = local.subscribe(&consumer, &start).await;
        assert_eq!(texts_of(&events.next().await.unwrap()), [again], "{kind}");
        local.clock.advance(Duration::from_secs(5));
    }
}

#[tokio::test(start_paused = true)]
async fn a_young_subscription_keeps_its_place_and_an_older_one_is_reported_that_it_lost_it() {
    let local = local_with_stream(1);
    let consumer = local.register("app");
    let mut first = local.subscribe(&consumer, &latest()).await;
    first.next().await.unwrap();
    local.clock.advance(Duration::from_millis(4_999));
    let refused = local.try_subscribe(&consumer, &latest()).err().unwrap();
    assert_eq!(refused.code, "ResourceInUseException");
    local.clock.advance(Duration::from_millis(1));
    let mut second = local.subscribe(&consumer, &latest()).await;
    let (kind, _) = read_frame(&first.0.next().await.unwrap());
    assert_eq!(kind, "ResourceInUseException");
    assert!(first.0.next().await.is_none());
    second.next().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_shard_names_the_children_and_nowhere_to_go_on() {
    let local = local_with_stream(1);
    let consumer = local.register("app");
    local.put("last");
    let mut events = local.subscribe(&consumer, &json!({"Type": "TRIM_HORIZON"})).await;
    assert_eq!(texts_of(&events.next().await.unwrap()), ["last"]);
    let split = async {
        tokio::task::yield_now().await;
        local.split(0, 1 << 127);
    };
    let (event, ()) = tokio::join!(biased; events.next(), split);
    let event = event.unwrap();
    assert_eq!(event["ChildShards"].as_array().unwrap().len(), 2);
    assert!(event.get("ContinuationSequenceNumber").is_none());
    assert_eq!(events.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_ends_with_its_consumer_and_its_stream() {
    let local = local_with_stream(1);
    let [one, two] = [local.register("one"), local.register("two")];
    let mut first = local.subscribe(&one, &latest()).await;
    let mut second = local.subscribe(&two, &latest()).await;
    first.next().await.unwrap();
    second.next().await.unwrap();
    local.ok("DeregisterStreamConsumer", &json!({"ConsumerARN": one}));
    local.settle();
    let (kind, _) = read_frame(&first.0.next().await.unwrap());
    assert_eq!(kind, "ResourceNotFoundException");
    let name = json!({"StreamName": "s"});
    assert_eq!(local.error("DeleteStream", &name), "ResourceInUseException");
    local.ok("DeleteStream", &json!({"StreamName": "s", "EnforceConsumerDeletion": true}));
    let (kind, _) = read_frame(&second.0.next().await.unwrap());
    assert_eq!(kind, "ResourceNotFoundException");
    assert!(second.0.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn consumers_are_listed_page_by_page_and_found_by_both_names() {
    let local = local_with_stream(1);
    let arns: Vec<_> = ["a", "b", "c"].iter().map(|name| local.register(name)).collect();
    let list = |more: Value| {
        let mut body = json!({"StreamARN": STREAM_ARN, "MaxResults": 2});
        if let Some(token) = more.as_str() {
            body["NextToken"] = json!(token);
        }
        local.ok("ListStreamConsumers", &body)
    };
    let first = list(Value::Null);
    let second = list(first["NextToken"].clone());
    let names: Vec<_> = [&first, &second]
        .iter()
        .flat_map(|page| page["Consumers"].as_array().unwrap())
        .map(|consumer| consumer["ConsumerName"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(second.get("NextToken").is_none());

    let by_name = json!({"StreamARN": STREAM_ARN, "ConsumerName": "b"});
    let by_arn = json!({"ConsumerARN": arns[1]});
    assert_eq!(
        local.ok("DescribeStreamConsumer", &by_name),
        local.ok("DescribeStreamConsumer", &by_arn)
    );
    let unknown = json!({"ConsumerARN": format!("{}9", arns[1])});
    assert_eq!(local.error("DescribeStreamConsumer", &unknown), "ResourceNotFoundException");
    let again = json!({"StreamARN": STREAM_ARN, "ConsumerName": "b"});
    assert_eq!(local.error("RegisterStreamConsumer", &again), "ResourceInUseException");
    for number in 3..20 {
        local.register(&format!("c{number}"));
    }
    let one_more = json!({"StreamARN": STREAM_ARN, "ConsumerName": "one-more"});
    assert_eq!(local.error("RegisterStreamConsumer", &one_more), "LimitExceededException");
}
