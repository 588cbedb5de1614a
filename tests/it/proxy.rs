//! HTTPS in company networks: through a proxy, with a private certificate authority, or with none.
//!
//! The proxy and the TLS server in front of local-aws are real sockets of this process. The host
//! `aws.test` has no address, so that only the proxy reaches it.

use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use e2e::process::Process;
use e2e::workshop::Workshop;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::INT;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("it/fixtures").join(name)
}

/// Returns the configuration of a server `aws.test`, with a certificate of an authority that no
/// machine trusts. Its key has no other use.
fn tls() -> Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_file(fixture("server.pem"))?;
    let key = PrivateKeyDer::from_pem_file(fixture("server.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A proxy that tunnels every connection to local-aws, with TLS in between.
struct Tunnels {
    address: SocketAddr,
    /// The heads of the requests that it received.
    heads: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Tunnels {
    async fn open(workshop: &Workshop) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let heads = Arc::new(Mutex::new(Vec::new()));
        let services = workshop.aws.endpoint_url().replace("http://", "");
        let (acceptor, seen) = (TlsAcceptor::from(tls()?), Arc::clone(&heads));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                let services = services.clone();
                tunnels.spawn(async move { tunnel(client, acceptor, &seen, &services).await.ok() });
            }
        });
        Ok(Self { address, heads, _task: task })
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

async fn tunnel(
    mut client: TcpStream,
    acceptor: TlsAcceptor,
    seen: &Mutex<Vec<String>>,
    services: &str,
) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    seen.lock().push(String::from_utf8(head)?);
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let mut client = acceptor.accept(client).await?;
    let mut services = TcpStream::connect(services).await?;
    copy_bidirectional(&mut client, &mut services).await?;
    Ok(())
}

/// Starts a command whose endpoint is `https://aws.test`, with the certificate authority and these
/// variables.
fn start(workshop: &Workshop, line: &str, variables: &[(&str, &str)]) -> Result<Process> {
    let mut shell = workshop.shell("learner", &format!("exec {line}"));
    shell.env("AWS_ENDPOINT_URL", "https://aws.test").env("AWS_CA_BUNDLE", fixture("ca.pem"));
    shell.envs(variables.iter().copied());
    Process::start(&format!("{line} with {variables:?}"), shell)
}

#[tokio::test]
async fn every_way_to_name_a_proxy_leads_through_it() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        let tunnels = Tunnels::open(&workshop).await?;
        let proxy = format!("http://me:secret@{}", tunnels.address);
        let line = "./producer -interval 1ms -count 2";
        let mut producer =
            start(&workshop, line, &[(name, &proxy), ("HTTP_PROXY", "http://no.test")])?;
        assert!(producer.ended().await?.success(), "{}", producer.transcript().stderr);
        let heads = tunnels.heads();
        let head = heads.first().context("the proxy was asked")?;
        assert!(head.starts_with("CONNECT aws.test:443 "), "{head}");
        // `me:secret` in base64.
        assert!(head.to_lowercase().contains("proxy-authorization: basic"), "{head}");
        assert!(head.contains("bWU6c2VjcmV0"), "{head}");
        assert!(!producer.transcript().stderr.contains("secret"));
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_reads_through_a_proxy_by_polling_and_by_fan_out() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    workshop.aws.put("wildrydes", "Shadowfax", b"{}").await?;
    let tunnels = Tunnels::open(&workshop).await?;
    let proxy = format!("http://{}", tunnels.address);
    for line in
        ["./consumer --from trim-horizon", "./consumer --from trim-horizon --app tail --fan-out"]
    {
        let mut consumer = start(&workshop, line, &[("HTTPS_PROXY", &proxy)])?;
        consumer.wait_for_records(1).await?;
        assert_eq!(consumer.stop(INT).await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_host_of_no_proxy_is_reached_without_it() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let tunnels = Tunnels::open(&workshop).await?;
    let proxy = format!("http://{}", tunnels.address);
    for name in ["NO_PROXY", "no_proxy"] {
        let line = "./producer -interval 1ms -count 1";
        let variables = [("HTTPS_PROXY", &*proxy), (name, "other.test, .test")];
        let mut producer = start(&workshop, line, &variables)?;
        producer.wait_for_stderr("retrying").await?;
        producer.kill().await?;
    }
    // A loopback address is never reached through a proxy.
    let line = "./producer -interval 1ms -count 1";
    let direct = workshop.aws.endpoint_url();
    let variables =
        [("HTTP_PROXY", &*proxy), ("ALL_PROXY", &*proxy), ("AWS_ENDPOINT_URL", &*direct)];
    let mut producer = start(&workshop, line, &variables)?;
    assert!(producer.ended().await?.success(), "{}", producer.transcript().stderr);
    assert_eq!(tunnels.heads(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn without_certificates_http_works_and_https_says_what_is_missing() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let direct = workshop.aws.endpoint_url();
    let none =
        [("AWS_CA_BUNDLE", ""), ("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/dev/null")];
    for (command, arguments) in
        [("./producer -interval 1ms", " -count 1"), ("./consumer --from trim-horizon", "")]
    {
        let variables = [&none[..], &[("AWS_ENDPOINT_URL", &*direct)]].concat();
        let mut process = start(&workshop, &format!("{command}{arguments}"), &variables)?;
        if arguments.is_empty() {
            process.wait_for_records(1).await?;
            process.signal(INT)?;
        }
        assert!(process.ended().await?.success(), "{}", process.transcript().stderr);
        let mut process = start(&workshop, command, &none)?;
        assert_eq!(process.ended().await?.code(), Some(1));
        let stderr = &process.transcript().stderr;
        for part in ["https://aws.test cannot be called", "ca-certificates", "AWS_CA_BUNDLE"] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
    }
    Ok(())
}
