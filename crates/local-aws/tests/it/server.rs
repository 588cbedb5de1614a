//! Tests of the socket: requests that no SDK sends, HTTP/2, keep-alive, and shutdown.

use std::convert::Infallible;

use aws_sdk_dynamodb::Client;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use local_aws::{Effect, LocalAws, Rule};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clients::{http, over_http, without_retries};

const KINESIS: &str = "CreateStream DeleteStream DescribeStream DescribeStreamSummary ListStreams \
    ListShards PutRecord PutRecords GetShardIterator GetRecords SplitShard MergeShards \
    UpdateShardCount IncreaseStreamRetentionPeriod DecreaseStreamRetentionPeriod \
    RegisterStreamConsumer DescribeStreamConsumer ListStreamConsumers DeregisterStreamConsumer \
    SubscribeToShard UpdateStreamMode DescribeLimits AddTagsToStream Nonsense";
const DYNAMO: &str = "CreateTable DescribeTable UpdateTable DeleteTable ListTables PutItem GetItem \
    UpdateItem DeleteItem Query Scan BatchGetItem BatchWriteItem TransactWriteItems \
    TransactGetItems UpdateTimeToLive DescribeTimeToLive TagResource ListTagsOfResource \
    UpdateContinuousBackups DescribeContinuousBackups Nonsense";

/// Goal: no request makes the services panic. A panic would break the connection, so that the test
/// requires a reply to each request, and none that is an internal error.
#[tokio::test]
async fn garbage_gets_an_error_of_the_caller_and_never_a_panic() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let deep = "[".repeat(2000);
    let bodies: [&[u8]; 10] = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe\x00",
        br#"{"StreamName":7,"TableName":{},"Limit":-1}"#,
        br#"{"StreamName":"","TableName":"","ShardIterator":"AAAA","NextToken":"\u0000"}"#,
        br#"{"TableName":"t","Key":{"k":{"S":1}},"Item":{"k":{}},"Records":[{}],"Tags":{"a":1}}"#,
        br#"{"StreamName":"s","ShardId":"shardId-x","ShardCount":99999999999999999999}"#,
        deep.as_bytes(),
    ];
    let calls = KINESIS
        .split_whitespace()
        .map(|operation| format!("Kinesis_20131202.{operation}"))
        .chain(DYNAMO.split_whitespace().map(|operation| format!("DynamoDB_20120810.{operation}")));
    for target in calls {
        for content in ["application/x-amz-json-1.1", "application/x-amz-cbor-1.1", "text/x"] {
            let headers = [("x-amz-target", target.as_str()), ("content-type", content)];
            for body in bodies {
                let (status, reply) = http(server.addr(), "POST", "/", &headers, body).await;
                let shown = String::from_utf8_lossy(body);
                assert!(status == 200 || status == 400, "{target} {shown}: {status} {reply}");
                assert!(status == 200 || reply.contains("Exception"), "{target} {shown}: {reply}");
            }
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn noise_on_the_socket_ends_its_connection_only() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    for length in [1, 16, 300, 5_000] {
        let noise: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(&noise).await.unwrap();
        stream.shutdown().await.unwrap();
        // Whatever the reply is, it ends; a reset is an end too.
        drop(stream.read_to_end(&mut Vec::new()).await);
    }
    for (target, status) in [("nonsense", 400), ("S3.GetObject", 400), ("Kinesis_20131202", 400)] {
        let headers = [("x-amz-target", target)];
        assert_eq!(http(server.addr(), "POST", "/", &headers, b"{}").await.0, status, "{target}");
    }
    assert_eq!(http(server.addr(), "GET", "/", &[], b"").await.0, 400);
    assert_eq!(http(server.addr(), "GET", "/_local-aws/health", &[], b"").await.0, 200);
    server.shutdown().await;
}

#[tokio::test]
async fn a_body_without_end_is_refused() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: x\r\nx-amz-target: Kinesis_20131202.PutRecord\r\n\
        content-length: 99000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b'x'; 1 << 20];
    let mut reply = [0; 12];
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        for _ in 0..94 {
            if writer.write_all(&chunk).await.is_err() {
                break;
            }
        }
    };
    let (read, ()) = tokio::join!(reader.read_exact(&mut reply), sending);
    read.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 413");
    server.shutdown().await;
}

#[tokio::test]
async fn one_connection_carries_many_requests_and_http_2_works_without_tls() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let request = || {
        http::Request::post(server.endpoint_url())
            .header("host", "local")
            .header("x-amz-target", "DynamoDB_20120810.ListTables")
            .header("authorization", "AWS4-HMAC-SHA256 Credential=plain/20260101/x, Signature=0")
            .body(Full::new(Bytes::from_static(b"{}")))
            .unwrap()
    };
    let mut tasks = tokio::task::JoinSet::new();
    let stream = TcpStream::connect(server.addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tasks.spawn(connection);
    for _ in 0..3 {
        let reply = sender.send_request(request()).await.unwrap();
        assert_eq!(reply.status(), 200);
        assert!(reply.headers().contains_key("x-amzn-requestid"));
        assert!(reply.headers()["date"].to_str().unwrap().ends_with("GMT"));
        reply.into_body().collect().await.unwrap();
        sender.ready().await.unwrap();
    }
    let stream = TcpStream::connect(server.addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tasks.spawn(connection);
    for _ in 0..3 {
        let reply = sender.send_request(request()).await.unwrap();
        assert_eq!((reply.status().as_u16(), reply.version()), (200, http::Version::HTTP_2));
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"TableNames":[]}"#);
    }
    assert_eq!(local.requests().count("plain", "ListTables"), 6);
    server.shutdown().await;
}

/// Goal: shutdown completes although a client never closes its connection, and the port is free
/// afterwards.
#[tokio::test]
async fn shutdown_ends_a_request_that_hangs_and_closes_the_port() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let addr = server.addr();
    let client = Client::new(&without_retries(&over_http(&server.endpoint_url(), "stuck")));
    local.faults().add(Rule::new(Effect::Hang).client("stuck"));
    let stopping = async {
        local.requests().wait_for("stuck", "ListTables", 1).await;
        server.shutdown().await;
        Ok::<_, Infallible>(())
    };
    let (hung, stopped) = tokio::join!(client.list_tables().send(), stopping);
    stopped.unwrap();
    hung.unwrap_err();
    TcpStream::connect(addr).await.unwrap_err();
}

#[tokio::test]
async fn a_dropped_server_closes_its_port_and_connections() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let mut idle = TcpStream::connect(server.addr()).await.unwrap();
    let addr = server.addr();
    // One exchange, which proves that the connection is accepted.
    idle.write_all(b"GET /_local-aws/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    idle.read_exact(&mut [0; 12]).await.unwrap();
    drop(server);
    idle.read_to_end(&mut Vec::new()).await.unwrap();
    TcpStream::connect(addr).await.unwrap_err();
}
