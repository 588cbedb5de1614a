//! Subscriptions over real sockets, with the HTTP client that the library builds.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::polling::put;

fn through_socket(local: &LocalAws, endpoint: String) -> SdkConfig {
    let config = local.sdk_config(READER).into_builder().endpoint_url(endpoint);
    config.http_client(kcl_lite::aws::https_client()).build()
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, format!("127.0.0.1:{port}"))
}

/// Answers every request of a connection with an error, and keeps it open.
async fn refuse_all(mut connection: TcpStream) {
    let mut bytes = Vec::new();
    while connection.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() < length.unwrap().parse().unwrap() {
            continue;
        }
        bytes.clear();
        let body = r#"{"__type":"InvalidArgumentException","message":"no"}"#;
        let head = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.write_all((head + body).as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn s03_each_subscription_has_a_connection_of_its_own_and_other_calls_share_one() {
    let (listener, address) = listener().await;
    let accepting = async {
        let mut connections = JoinSet::new();
        let calling = async {
            let local = LocalAws::in_memory();
            let config = through_socket(&local, format!("http://{address}"));
            let client = Client::new(
                &config
                    .to_builder()
                    .retry_config(aws_config::retry::RetryConfig::disabled())
                    .build(),
            );
            for _ in 0..3 {
                client.list_shards().stream_name(STREAM).send().await.unwrap_err();
            }
            let from = aws_sdk_kinesis::types::StartingPosition::builder()
                .r#type(aws_sdk_kinesis::types::ShardIteratorType::Latest)
                .build()
                .unwrap();
            for _ in 0..3 {
                let call = client.subscribe_to_shard().consumer_arn("arn").shard_id("s");
                call.starting_position(from.clone()).send().await.unwrap_err();
            }
        };
        let mut calling = std::pin::pin!(calling);
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => {
                    connections.spawn(refuse_all(accepted.unwrap().0));
                }
                () = &mut calling => return connections.len(),
            }
        }
    };
    assert_eq!(accepting.await, 1 + 3);
}

/// The first bytes of a TLS connection name the protocols that the client speaks.
#[tokio::test]
async fn the_service_is_offered_http_2_with_every_connection() {
    let (listener, address) = listener().await;
    let local = LocalAws::in_memory();
    let client = Client::new(&through_socket(&local, format!("https://{address}")));
    let calling = client.list_shards().stream_name(STREAM).send();
    let hello = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut header = [0; 5];
        connection.read_exact(&mut header).await.unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        connection.read_exact(&mut hello).await.unwrap();
        hello
    };
    let hello = tokio::select! {
        biased;
        hello = hello => hello,
        reply = calling => panic!("{reply:?}"),
    };
    assert!(hello.windows(3).any(|bytes| bytes == b"\x02h2"), "HTTP/2 is not offered");
}

/// Forwards bytes in both directions; reports when the client has closed its side.
async fn pass_on(client: TcpStream, server: String, closed: mpsc::Sender<()>) {
    let server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let sending = async {
        tokio::io::copy(&mut from_client, &mut to_server).await.ok();
        closed.send(()).await.unwrap();
    };
    tokio::join!(biased; sending, async {
        tokio::io::copy(&mut from_server, &mut to_client).await.ok();
    });
}

#[tokio::test]
async fn s05_a_reader_over_a_socket_delivers_live_and_closes_its_connection_when_it_is_dropped() {
    let local = LocalAws::in_memory();
    let writer = Client::new(&local.sdk_config("writer"));
    writer.create_stream().stream_name(STREAM).shard_count(1).send().await.unwrap();
    local.clock().advance(MINUTE);
    fan_out_stream(&local.sdk_config(READER)).prepare().await.unwrap();

    let server = local.serve().await.unwrap();
    let upstream = server.endpoint_url().trim_start_matches("http://").to_owned();
    let (listener, address) = listener().await;
    let (closed, mut closings) = mpsc::channel(16);
    let mut connections = JoinSet::new();
    connections.spawn(async move {
        let mut forwarding = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            forwarding.spawn(pass_on(client, upstream.clone(), closed.clone()));
        }
    });
    let stream = fan_out_stream(&through_socket(&local, format!("http://{address}")));
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    for number in 0..3 {
        put(&writer, number..number + 1).await;
        assert_eq!(polling::read(&mut reader, 1, &[]).await, [number]);
    }
    assert!(closings.try_recv().is_err(), "it is open");
    drop(reader);
    closings.recv().await.unwrap();
    server.shutdown().await;
}
