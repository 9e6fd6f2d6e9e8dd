//! What is in `deploy/` speaks of settings that there are. What the files say is checked by `make lint-deploy`, and those of
//! gateways run in `gateways.rs`.

use std::{fs, process::Command};

use redis::IntoConnectionInfo as _;
use serde_json::json;

use crate::{
    app::{TestApp, TestRedis},
    groups::TestGroup,
    readme::is_there,
    tidy::root,
};

fn help() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_streamkeep")).args(["serve", "--help"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn words<'t>(text: &'t str, start: &'static str) -> impl Iterator<Item = &'t str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.split(move |c: char| !word(c)).filter(move |word| word.starts_with(start) && word.len() > start.len())
}

#[test]
fn settings_are_those_that_there_are() {
    let help = help();
    let mut found = 0;
    for file in [
        "deploy/compose.yaml",
        "deploy/kubernetes/streamkeep.yaml",
        "deploy/systemd/streamkeep.env",
        "deploy/systemd/streamkeep.service",
        "deploy/nginx.conf",
        "deploy/haproxy.cfg",
        "deploy/Caddyfile",
        "docs/operations.md",
        "Dockerfile",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        for variable in
            words(&text, "STREAMKEEP_").filter(|name| !["STREAMKEEP_URL", "STREAMKEEP_TOKEN"].contains(name))
        {
            assert!(help.contains(&format!("[env: {variable}=")), "{file} speaks of {variable}, which there is not");
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn the_unit_of_systemd_is_understood() {
    if !is_there("systemd-analyze") {
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let unit = fs::read_to_string(root().join("deploy/systemd/streamkeep.service")).unwrap();
    let unit = unit.replace("/usr/local/bin/streamkeep", env!("CARGO_BIN_EXE_streamkeep"));
    // Whether this machine has the manual's pages says nothing of the unit.
    let unit = unit.lines().filter(|line| !line.starts_with("Documentation=")).collect::<Vec<_>>().join("\n");
    let path = folder.path().join("streamkeep.service");
    fs::write(&path, &unit).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("streamkeep.service")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
    // Where /tmp is private, the socket of the service's own Redis is to be elsewhere: backups are made from outside.
    assert!(!unit.contains("PrivateTmp=yes") || unit.contains("Environment=TMPDIR=/run/"), "{unit}");
}

/// The access list of the page, and what it says is needed in a cluster besides.
pub fn access_rule() -> (String, String) {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let rule = page.lines().map(str::trim).find(|line| line.starts_with("ACL SETUSER ")).unwrap();
    let besides = page.split("in a cluster `").nth(1).unwrap().split('`').next().unwrap();
    (rule.to_owned(), besides.to_owned())
}

/// With the access list of the page the service does all that it does.
#[tokio::test]
async fn a_user_of_redis_needs_no_more_than_the_page_says() {
    let redis = TestRedis::start().await;
    let mut admin = redis.connection().await;
    let mut command = redis::Cmd::new();
    command.arg(access_rule().0.split(' ').collect::<Vec<_>>());
    let _: () = command.query_async(&mut admin).await.unwrap();
    let socket = redis.data.path().join("redis.sock");
    let address = format!("redis+unix://{}?user=streamkeep&pass=secret", socket.display());
    let app = TestApp::start_with(redis.clone(), 4, |config| {
        config.store.address = address.as_str().into_connection_info().unwrap().into();
    });
    let app = app.await;
    app.append("order-1", crate::input::GOOD).await.expect(201);
    app.append_with("order-1", &[("idempotency-key", "k")], crate::input::GOOD).await.expect(201);
    let settings = json!({"ordering": "stream", "on_exhausted": "park_stream", "start": "2020-01-01T00:00:00Z"});
    let group = TestGroup::create(&app, "mailer", settings).await;
    let taken = group.next("wait=5").await;
    for (action, body) in [
        ("extend", json!({ "leases": [taken[0].lease] })),
        ("nack", json!({ "leases": [taken[0].lease], "action": "park" })),
        ("parked/replay", json!({})),
        ("seek", json!({ "to": "beginning" })),
        ("pause", json!({})),
        ("resume", json!({})),
    ] {
        group.post(action, body).await.expect(200);
    }
    group.ack(&group.next("wait=5").await).await.expect(200);
    for path in [
        "/readyz",
        "/streams",
        "/events?wait=1",
        "/streams/order-1",
        "/groups",
        "/groups/mailer",
        "/groups/mailer/parked",
    ] {
        app.get(path).await.expect(200);
    }
    app.delete("/groups/mailer").await.expect(204);
    let verify = Command::new(env!("CARGO_BIN_EXE_streamkeep"))
        .args(["verify", "--partitions", "4", "--redis-url", &address])
        .output();
    assert!(verify.unwrap().status.success());
    let refused: redis::Value = redis::cmd("ACL").arg("LOG").query_async(&mut admin).await.unwrap();
    assert_eq!(refused, redis::Value::Array(Vec::new()), "nothing was refused");
}
