//! TLS: who gets in, who does not, and certificates that change.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{Certificate, Client, ClientBuilder, Version, tls};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use streamkeep::http::Tls;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    app::{TestApp, TestConfig, TestRedis, eventually},
    feed::Feed,
    input::{GOOD, Input, read_to_close},
    program::{command, finish, streamkeep},
};

/// A certificate of one's own, and its key, in files.
pub struct Files {
    folder: TempDir,
}

impl Files {
    pub fn new() -> Self {
        let files = Self { folder: TempDir::new().unwrap() };
        files.renew();
        files
    }

    pub fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Puts others in their place.
    fn renew(&self) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        fs::write(self.cert(), made.cert.pem()).unwrap();
    }

    pub fn open(&self) -> Result<Arc<Tls>, String> {
        Tls::open(self.cert(), self.key())
    }

    /// A client that trusts the certificate of now.
    pub fn client(&self) -> ClientBuilder {
        let cert = Certificate::from_pem(&fs::read(self.cert()).unwrap()).unwrap();
        Client::builder().tls_certs_only([cert]).no_proxy()
    }

    /// Has a test's service speak TLS.
    pub fn configure(&self, config: &mut TestConfig) {
        config.server.tls = Some(self.open().unwrap());
        config.client = self.client();
    }

    pub async fn serve(&self) -> TestApp {
        TestApp::start_with(TestRedis::start().await, 1, |config| self.configure(config)).await
    }

    /// A connection of one's own, that speaks `protocol`.
    pub async fn connect(&self, address: &str, protocol: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.cert()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }
}

#[tokio::test]
async fn both_versions_of_both_protocols_are_spoken() {
    let files = Files::new();
    let app = files.serve().await;
    app.append("order-1", GOOD).await.expect(201);
    for version in [tls::Version::TLS_1_2, tls::Version::TLS_1_3] {
        for (client, spoken) in [(files.client(), Version::HTTP_2), (files.client().http1_only(), Version::HTTP_11)] {
            let client = client.tls_version_min(version).tls_version_max(version).build().unwrap();
            let answer = client.get(format!("{}/streams/order-1", app.url)).send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, spoken));
        }
    }
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.until_caught_up().await;
    app.append("order-1", GOOD).await.expect(201);
    assert_eq!(feed.event().await["version"], 2);
}

#[tokio::test]
async fn what_speaks_no_tls_is_closed_and_holds_up_nobody() {
    let (files, timeout) = (Files::new(), Duration::from_millis(500));
    let mut input = Input::start_with(|config| {
        files.configure(config);
        config.server.header_timeout = timeout;
    })
    .await;
    for bytes in [&b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 4096]] {
        let mut connection = input.connect().await;
        let _ = connection.write_all(bytes).await;
        let text = read_to_close(&mut connection).await;
        assert!(!text.contains("HTTP"), "{text:?}");
        input.untouched("no TLS").await;
    }
    // Half a handshake, or nothing at all: others get in meanwhile, and its time ends.
    let began = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut connection = input.connect().await;
        connection.write_all(b"\x16\x03\x01\x02\x00\x01\x00").await.unwrap();
        silent.push(connection);
    }
    files.client().build().unwrap().get(format!("{}/livez", input.app.url)).send().await.unwrap();
    for connection in &mut silent {
        read_to_close(connection).await;
    }
    assert!(began.elapsed() >= timeout);
    // In full, and then no request.
    let mut secure = files.connect(input.app.address(), "http/1.1").await;
    assert_eq!(secure.read(&mut [0; 64]).await.unwrap_or(0), 0);
    input.untouched("half of TLS").await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go_with_tls_too() {
    let files = Files::new();
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| {
        files.configure(config);
        // Which keeps its connection.
        config.client = files.client().http1_only();
        config.server.idle_timeout = Duration::from_millis(500);
        config.server.connections_max = 2;
    })
    .await;
    let big = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(1_000_000));
    for _ in 0..8 {
        app.append("big-1", &big).await.expect(201);
    }
    let mut deaf = files.connect(app.address(), "http/1.1").await;
    for _ in 0..4 {
        deaf.write_all(b"GET /streams/big-1 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    }
    app.get("/livez").await.expect(200);
    // A third one is served once the deaf one has been let go.
    let mut third = files.connect(app.address(), "http/1.1").await;
    third.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    third.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), deaf.read_to_end(&mut rest)).await.expect("closed");
    assert!(ended.is_err() || rest.len() < 30_000_000, "the whole was sent after all");
}

#[tokio::test]
async fn a_certificate_is_replaced_while_the_service_runs() {
    let files = Files::new();
    let app = files.serve().await;
    let old = app.client.clone();
    let livez = async |client: &Client| client.get(format!("{}/livez", app.url)).send().await.is_ok();
    assert!(livez(&old).await);
    // Broken, and of two that do not belong together: the old one holds.
    let (good_cert, good_key) = (fs::read(files.cert()).unwrap(), fs::read(files.key()).unwrap());
    let before = files.client();
    fs::write(files.cert(), "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    assert!(files.open().is_err());
    files.renew();
    fs::write(files.key(), &good_key).unwrap();
    assert!(files.open().is_err_and(|error| error.contains("cert.pem") && error.contains("key.pem")));
    // Time is the condition here: the files are looked at every two seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(livez(&before.build().unwrap()).await);
    assert_ne!(fs::read(files.cert()).unwrap(), good_cert);
    files.renew();
    eventually("the new one is shown", async || livez(&files.client().build().unwrap()).await).await;
    assert!(livez(&old).await, "a connection that is open stays open");
}

#[tokio::test]
async fn a_broken_file_stops_the_start_and_is_named() {
    let files = Files::new();
    let (cert, key) = (files.cert(), files.key());
    let serve = async || {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--redis-url", "redis://127.0.0.1:1"];
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
        let output = program.args(arguments).arg("--tls-cert").arg(&cert).arg("--tls-key").arg(&key).output();
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let good = fs::read_to_string(&key).unwrap();
    let secret = good.lines().nth(1).unwrap();
    for (path, text) in [(&key, ""), (&cert, ""), (&cert, good.as_str()), (&key, &good.replace("PRIVATE", "PUBLIC"))] {
        files.renew();
        fs::write(path, text).unwrap();
        let said = serve().await;
        assert!(said.contains(path.to_str().unwrap()) && !said.contains(secret), "{text}: {said}");
    }
    files.renew();
    fs::remove_file(&key).unwrap();
    let said = serve().await;
    assert!(said.contains("key.pem"), "{said}");
}

#[tokio::test]
async fn the_programs_clients_speak_tls() {
    let files = Files::new();
    let app = files.serve().await;
    let (cert, folder) = (files.cert(), TempDir::new().unwrap());
    let lines = folder.path().join("lines");
    fs::write(&lines, "{\"stream\":\"order-1\",\"type\":\"placed\",\"data\":1}\n").unwrap();
    let (lines, cert) = (lines.to_str().unwrap(), cert.to_str().unwrap());
    streamkeep(&app, &["import", lines, "--ca-cert", cert]).await.expect_summary(1, 1, 0);
    let exported = streamkeep(&app, &["export", "--ca-cert", cert]).await.expect_success();
    assert!(exported.stdout.contains("order-1"), "{exported:?}");
    let tail = ["tail", "--from", "beginning", "--count", "1", "--ca-cert", cert];
    assert!(streamkeep(&app, &tail).await.expect_success().stdout.contains("order-1"));
    streamkeep(&app, &["health", "--ca-cert", cert]).await.expect_success();
    // Whom nobody vouches for is not asked again and again.
    let other = Files::new();
    for command in [&["export"][..], &["import", lines], &["tail"]] {
        let run = streamkeep(&app, &[command, &["--ca-cert", other.cert().to_str().unwrap()]].concat()).await;
        run.expect_failure(&["certificate", "--ca-cert"]);
    }
    streamkeep(&app, &["export", "--ca-cert", lines]).await.expect_failure(&[lines]);
}

/// As in a container: the variables of the service, and no file of CAs.
#[tokio::test]
async fn health_needs_no_address_and_no_cas() {
    let files = Files::new();
    let secure = files.serve().await;
    let plain = TestApp::start_on(Arc::clone(&secure.redis), 1).await;
    for (app, cert) in [(&secure, Some(files.cert())), (&plain, None)] {
        let mut health = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
        health.arg("health").envs(cert.map(|cert| ("STREAMKEEP_TLS_CERT", cert)));
        health.env("STREAMKEEP_LISTEN", app.address().replace("127.0.0.1", "0.0.0.0"));
        health.env("SSL_CERT_FILE", "/nowhere").env("SSL_CERT_DIR", "/nowhere");
        let output = health.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let mut export = command(&plain.url, &["export"]);
    export.env("SSL_CERT_FILE", "/nowhere").env("SSL_CERT_DIR", "/nowhere");
    finish(export.spawn().unwrap()).await.expect_success();
}
