//! Behind gateways, what breaks costs nothing: a connection cut under a request, an instance that is stopped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    app::{Answer, TestRedis, eventually},
    feed::{Feed, name},
    gateway::{Behind, Gateway, host, instances},
    groups::{Taken, TestGroup, append},
    proxy::read,
};

/// How much of the next answer about taken events passes before the connection breaks.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Nothing,
    Half,
}

/// Stands between a gateway and an instance, and cuts one connection.
struct Cutter {
    address: String,
    armed: Arc<Mutex<Option<Cut>>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Cutter {
    async fn start(instance: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let armed = Arc::default();
        let arm = Arc::clone(&armed);
        let accepting = tokio::spawn(async move {
            while let Ok((gateway, _)) = listener.accept().await {
                let service = TcpStream::connect(&instance).await.unwrap();
                tokio::spawn(relay(gateway, service, Arc::clone(&arm)));
            }
        });
        Self { address, armed, _accepting: AbortOnDropHandle::new(accepting) }
    }

    fn cut(&self, cut: Option<Cut>) {
        *self.armed.lock().unwrap() = cut;
    }
}

async fn relay(mut gateway: TcpStream, mut service: TcpStream, armed: Arc<Mutex<Option<Cut>>>) {
    loop {
        let (bytes, to) = tokio::select! {
            bytes = read(&mut gateway) => (bytes, &mut service),
            bytes = read(&mut service) => (bytes, &mut gateway),
        };
        let Some(bytes) = bytes else { return };
        let taken = bytes.windows(10).any(|part| part == b"deliveries");
        match if taken { armed.lock().unwrap().take() } else { None } {
            None if to.write_all(&bytes).await.is_ok() => {}
            None | Some(Cut::Nothing) => return,
            Some(Cut::Half) => {
                let _ = to.write_all(&bytes[..bytes.len() - 100]).await;
                return;
            }
        }
    }
}

test_gateways! {
    /// The events of an answer that never came are handed out again when their lease has run out.
    async fn a_cut_take_loses_nothing(gateway) {
        let redis = TestRedis::start().await;
        let (mut app, _other) = instances(&redis, |_| {}).await;
        let cutter = Cutter::start(host(&app)).await;
        let gateway = Gateway::start(gateway, [&cutter.address, &cutter.address], |text| text).await;
        app.url.clone_from(&gateway.url);
        for cut in [Cut::Nothing, Cut::Half] {
            let (group, stream) = (format!("{cut:?}"), format!("order-{cut:?}"));
            let group = TestGroup::create(&app, &group, json!({ "stream": stream, "lease_ms": 1_000 })).await;
            append(&app, &stream, "t", 3).await;
            cutter.cut(Some(cut));
            let mut counts = BTreeMap::new();
            let answer = app.client.get(format!("{}{}/next?limit=2", app.url, group.path)).send().await.unwrap();
            match cut {
                // The gateway asks again, which takes what is left.
                Cut::Nothing => {
                    assert_eq!(answer.status(), 200);
                    let answer: serde_json::Value = answer.json().await.unwrap();
                    let taken = Taken::of(&answer["deliveries"][0]);
                    assert_eq!((taken.version, taken.count), (3, 1));
                    group.ack(std::slice::from_ref(&taken)).await.expect(200);
                    counts.insert(taken.version, taken.count);
                }
                // It is too late for that: the client sees an answer that is not whole.
                Cut::Half => {
                    answer.bytes().await.unwrap_err();
                }
            }
            assert!(cutter.armed.lock().unwrap().is_none(), "it was cut");
            while counts.len() < 3 {
                let taken = group.next("limit=3&wait=20").await;
                assert!(!taken.is_empty(), "lost: {counts:?}");
                group.ack(&taken).await.expect(200);
                counts.extend(taken.iter().map(|taken| (taken.version, taken.count)));
            }
            assert_eq!(counts, BTreeMap::from([(1, 2), (2, 2), (3, 1)]));
        }
    }
}

test_gateways! {
    /// One instance of two is stopped: appends go on at the other, feeds come back there, and miss nothing.
    async fn an_instance_may_stop(gateway) {
        let behind = Behind::start(gateway).await;
        let app = &behind.app;
        let path = "/streams/order-1";
        let feeds = [Feed::open(app, path, None).await, Feed::open(app, path, None).await];
        let (client, url) = (app.client.clone(), format!("{}{path}", app.url));
        let follow = async |mut feed: Feed| {
            let (mut names, mut opened) = (Vec::new(), 1);
            while names.len() < 60 {
                match feed.try_block().await {
                    Ok(Some(block)) => names.extend(block.message().as_ref().map(name)),
                    Ok(None) | Err(_) => {
                        let last = feed.last_id.clone();
                        eventually("the feed is there again", async || {
                            let again = Feed::open_at(&client, &url, Some(&last)).await;
                            again.map(|again| feed = again).is_ok()
                        })
                        .await;
                        opened += 1;
                    }
                }
            }
            (names, opened)
        };
        let append = async {
            for version in 0..60 {
                if version == 20 {
                    app.shutdown.cancel();
                }
                let event = json!({ "id": format!("e{version}"), "type": "t", "data": version });
                let body = json!({ "events": [event] }).to_string();
                let tag = format!("\"{version}\"");
                // Whatever the gateway says while it learns of it, the same once more is safe.
                eventually("the append is done", async || {
                    let request = app.client.post(format!("{url}/events")).header("content-type", "application/json");
                    let request = request.header("if-match", &tag).body(body.clone());
                    let Ok(answer) = request.send().await else { return false };
                    assert!([200, 201, 502, 503].contains(&answer.status().as_u16()), "{answer:?}");
                    answer.status().is_success()
                })
                .await;
            }
        };
        let [first, second] = feeds;
        let ((), first, second) = tokio::join!(append, follow(first), follow(second));
        let expected: Vec<_> = (1..=60).map(|version| format!("order-1@{version}")).collect();
        assert_eq!((&first.0, &second.0), (&expected, &expected));
        assert!(first.1 + second.1 > 2, "a feed was at the instance that was stopped");
        Answer::of(app.request(reqwest::Method::GET, "/readyz")).await.expect(200);
        eventually("it has stopped", async || app.served.is_finished()).await;
    }
}
