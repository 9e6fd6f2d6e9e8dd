//! What the README says to type, typed as it stands.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use crate::{
    app::{TestApp, TestRedis, eventually, free_address},
    groups::{TestGroup, append},
};

/// The commands of a section.
fn commands(section: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let text = readme.split(&format!("## {section}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// Not every machine has every program: what needs it is left out then, and says so.
pub fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("skipped what needs {program}: it is not there");
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tour_works_as_it_stands() {
    let app = TestApp::start(1).await;
    let commands = commands("Five-minute tour");
    let (last, curl) = commands.split_last().unwrap();
    let run = |script: &str| {
        let script = script.replace("http://127.0.0.1:7070", &app.url);
        let script = script.replace("./streamkeep-data", app.redis.data.path().to_str().unwrap());
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let answers = run(&curl.concat());
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    let expected = ["201", "201", "409", "200", "200", "200", "200", "304", "201", "200", "200", "200", "400"];
    assert_eq!(statuses, expected, "{answers}");
    assert!(answers.contains(r#""current_version":3,"events":[{"stream":"order-12345","version":3"#), "{answers}");
    assert!(last.starts_with("redis-cli "), "{last}");
    // Where Redis came as a wheel, there is no redis-cli; the test of the layout needs none.
    if is_there("redis-cli") {
        assert!(run(last).contains("order-placed"));
    }
}

/// A key is made, the service started with it, and asked: in one shell, as a user has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_opens_what_it_says_as_it_stands() {
    let (redis, folder) = (TestRedis::start().await, tempfile::TempDir::new().unwrap());
    let address = free_address().to_string();
    let commands = commands("Access");
    let [new, serve, ask] = &commands[..] else { panic!("{commands:?}") };
    let ready = "until curl -sf -o /dev/null http://127.0.0.1:7070/readyz; do kill -0 $! && sleep 0.05; done";
    let script = format!("{new}\n{} &\ntrap \"kill $!\" EXIT\n{ready}\n{ask}", serve.trim());
    let script = script.replace("127.0.0.1:7070", &address);
    let script = script.replace("./target/release/streamkeep", env!("CARGO_BIN_EXE_streamkeep"));
    let mut command = Command::new("sh");
    command.args(["-ec", &script]).current_dir(folder.path()).env("STREAMKEEP_LISTEN", &address).env("NO_PROXY", "*");
    let redis_url = redis.url();
    let output = command.env("REDIS_URL", redis_url).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    let answers = String::from_utf8(output.stdout).unwrap();
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["201", "200", "403", "401"], "{answers}");
}

/// The worker handles what comes; what fails at first it handles later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_works_as_it_stands() {
    if !is_there("jq") {
        return;
    }
    let app = TestApp::start(1).await;
    let script = commands("Workers").remove(0);
    let folder = tempfile::TempDir::new().unwrap();
    let handle = "#!/bin/sh\ncat >> handled\n[ -e failed ] || { touch failed; exit 1; }\n";
    std::fs::write(folder.path().join("handle"), handle).unwrap();
    let script = script.replace("http://127.0.0.1:7070", &app.url).replace("./handle", "sh ./handle");
    append(&app, "order-1", "placed", 2).await;
    let mut worker = Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).spawn().unwrap();
    let group = TestGroup::at(&app, "mailer");
    eventually("the group is there", async || app.get("/groups/mailer").await.status == 200).await;
    eventually("all is handled", async || {
        group.numbers(&["lag", "in_flight", "waiting", "held", "parked"]).await == [0; 5]
    })
    .await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    let handled = std::fs::read_to_string(folder.path().join("handled")).unwrap();
    let versions: Vec<_> =
        handled.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [1, 1, 2], "the first failed once");
}

/// The excerpt is imported, exported, and drained by a group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_data_are_drained_as_it_stands() {
    let (app, folder) = (TestApp::start(1).await, tempfile::TempDir::new().unwrap());
    let run = |script: &str| {
        let script = script.replace("http://127.0.0.1:7070", &app.url);
        let script = script.replace("./target/release/streamkeep", env!("CARGO_BIN_EXE_streamkeep"));
        let script = script.replace("examples/", concat!(env!("CARGO_MANIFEST_DIR"), "/examples/"));
        let mut command = Command::new("sh");
        command.args(["-ec", &script]).current_dir(folder.path()).env("STREAMKEEP_URL", &app.url).env("NO_PROXY", "*");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let commands = commands("Real data");
    let [import, drain] = &commands[..] else { panic!("{commands:?}") };
    run(import);
    assert_eq!(std::fs::read_to_string(folder.path().join("out.ndjson")).unwrap().lines().count(), 150);
    if !is_there("jq") {
        return;
    }
    let answers = run(drain);
    let answers: Vec<Value> =
        serde_json::Deserializer::from_str(&answers).into_iter().collect::<Result<_, _>>().unwrap();
    let acked: u64 = answers.iter().filter_map(|answer| answer["acked"].as_u64()).sum();
    let status = answers.last().unwrap();
    assert_eq!((acked, &status["lag"], &status["in_flight"]), (150, &Value::from(0), &Value::from(0)));
}

/// Each line shows an event that is appended while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_is_followed_as_it_stands() {
    let blocks = commands("Following");
    let lines: Vec<&str> = blocks.iter().flat_map(|block| block.lines()).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for line in lines {
        // Where the tour has left it.
        let app = TestApp::start(1).await;
        append(&app, "order-12345", "order-placed", 3).await;
        expect_followed(&app, line).await;
    }
}

async fn expect_followed(app: &TestApp, line: &str) {
    let marker = "meanwhile";
    let line = line.replace("http://127.0.0.1:7070", &app.url);
    let line = line.replace("./target/release/streamkeep", env!("CARGO_BIN_EXE_streamkeep"));
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &format!("exec {line}")]).env("STREAMKEEP_URL", &app.url).env("NO_PROXY", "*");
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let event = format!(r#"{{"events":[{{"type":"order-placed","data":"{marker}"}}]}}"#);
    // One of them may come too early for what begins at the end.
    for _ in 0..200 {
        app.append("order-12345", &event).await.expect(201);
        while let Ok(shown) = timeout(Duration::from_millis(100), output.next_line()).await {
            let shown = shown.unwrap().unwrap_or_else(|| panic!("{line} ended without {marker}"));
            if shown.contains(marker) {
                return;
            }
        }
    }
    panic!("{line} does not show {marker}");
}
