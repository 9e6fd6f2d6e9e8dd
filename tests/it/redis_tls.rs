//! Redis by TLS: the service trusts a CA of its own, and shows a certificate.

use std::fs;

use tempfile::TempDir;

use crate::{app::free_address, nodes::Node, program};

#[tokio::test]
async fn redis_is_reached_by_tls_with_certificates_on_both_sides() {
    let folder = TempDir::new().unwrap();
    let plain = free_address();
    let listen = std::net::TcpListener::bind((plain.ip(), 0)).unwrap().local_addr().unwrap();
    let made = rcgen::generate_simple_self_signed(vec![listen.ip().to_string()]).unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (cert, key) = (write("cert", &made.cert.pem()), write("key", &made.signing_key.serialize_pem()));
    let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
    let foreign = write("foreign", &other.cert.pem());
    let port = listen.port().to_string();
    let tls = [("tls-port", port.as_str()), ("tls-cert-file", &cert), ("tls-key-file", &key)];
    let both = [&tls[..], &[("tls-ca-cert-file", cert.as_str()), ("tls-auth-clients", "yes")]].concat();
    let redis = Node::start_at(plain, &both).await;

    let url = format!("rediss://{listen}");
    let whole = ["--redis-url", &url, "--redis-ca-cert", &cert, "--redis-tls-cert", &cert, "--redis-tls-key", &key];
    let at = free_address();
    let service = program::Service::start(program::serve_at(&at.to_string(), &whole), at, folder.path()).await;
    let events = serde_json::json!({ "events": [{ "type": "t", "data": 1 }] });
    let append = service.client.post(format!("{}/streams/order-1/events", service.url)).json(&events);
    assert_eq!(append.send().await.unwrap().status(), 201);
    assert_eq!(redis.ask::<u64>("XLEN events:order-1").await, 1);
    drop(service);

    for (what, arguments) in [
        (
            "a CA that did not sign it",
            vec!["--redis-ca-cert", &foreign, "--redis-tls-cert", &cert, "--redis-tls-key", &key],
        ),
        ("no certificate to show", vec!["--redis-ca-cert", &cert]),
    ] {
        let arguments = [&["--redis-url", url.as_str()][..], &arguments].concat();
        let output = program::serve_at(&free_address().to_string(), &arguments).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("streamkeep: Redis: "), "{what}: {said}");
    }
}
