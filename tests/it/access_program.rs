//! Access control of the program: what it listens on, what it logs, SIGHUP, and its clients.

use std::{
    fs::{self, File, FileTimes},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt as _,
};

use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    access::new_key,
    app::{TestRedis, eventually, free_address},
    program::{Service, serve},
};

const EVERYTHING: &[&str] = &["--verbs", "read,append,consume,manage", "--streams", "*", "--groups", "*"];

/// The service on a host, which is asked at this machine's own address.
async fn start(redis: &TestRedis, folder: &TempDir, host: &str, arguments: &[&str]) -> Service {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_address().port()));
    let command = serve(redis, &format!("{host}:{}", address.port()), arguments);
    Service::start(command, address, folder.path()).await
}

async fn read(service: &Service, token: &str) -> StatusCode {
    let request = service.client.get(format!("{}/events", service.url)).bearer_auth(token);
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn it_is_open_to_others_only_where_that_is_said() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let output = serve(&redis, listen, &[]).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in [listen, "--keys", "--jwt-keys", "--insecure-listen"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    let open = start(&redis, &folder, "0.0.0.0", &["--insecure-listen"]).await;
    assert_eq!(read(&open, "nonsense").await, 200);
    drop(open);
    let key = new_key(&folder, "all", EVERYTHING);
    let keys = folder.path().join("keys.ndjson");
    let guarded = start(&redis, &folder, "0.0.0.0", &["--keys", keys.to_str().unwrap()]).await;
    assert_eq!(
        (read(&guarded, "nonsense").await, read(&guarded, &key).await),
        (StatusCode::UNAUTHORIZED, StatusCode::OK)
    );
    drop(guarded);
    // Said for once and for all, as in the image, it takes nothing away.
    let both = ["--insecure-listen", "--keys", keys.to_str().unwrap()];
    let both = start(&redis, &folder, "0.0.0.0", &both).await;
    assert_eq!((read(&both, "nonsense").await, read(&both, &key).await), (StatusCode::UNAUTHORIZED, StatusCode::OK));
}

/// The id of a key is there, and nothing of its secret.
#[tokio::test]
async fn logs_tell_who_and_no_secret() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let key = new_key(&folder, "auditor", EVERYTHING);
    let keys = folder.path().join("keys.ndjson");
    let arguments = ["--keys", keys.to_str().unwrap(), "--log", "trace"];
    let program = start(&redis, &folder, "127.0.0.1", &arguments).await;
    assert_eq!(read(&program, &key).await, 200);
    assert_eq!(read(&program, &format!("{key}x")).await, 401);
    let basic = program.client.get(format!("{}/events", program.url)).basic_auth("ada", Some("open-sesame"));
    assert_eq!(basic.send().await.unwrap().status(), 401);
    let in_address = program.client.get(format!("{}/events?access_token={key}", program.url)).bearer_auth(&key);
    assert_eq!(in_address.send().await.unwrap().status(), 400);
    eventually("the requests are logged", async || program.log().matches("status=40").count() == 3).await;
    let log = program.log();
    assert!(log.contains("by=\"auditor\""), "{log}");
    let secret = key.strip_prefix("sk_auditor_").unwrap();
    for secret in [secret, "open-sesame", "b3Blbi1zZXNhbWU", "earer", "Basic"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

/// While a file is broken what was read before holds, and it is said once for each change.
#[tokio::test]
async fn a_broken_file_changes_nothing() {
    const TOLD: &str = "the credentials that were read before still hold";
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let key = new_key(&folder, "all", EVERYTHING);
    let keys = folder.path().join("keys.ndjson");
    let program = start(&redis, &folder, "127.0.0.1", &["--keys", keys.to_str().unwrap()]).await;
    let good = fs::read_to_string(&keys).unwrap();
    for (before, broken) in ["{", "", "\u{0}\u{0}"].into_iter().enumerate() {
        fs::write(&keys, broken).unwrap();
        eventually("it is told", async || program.log().matches(TOLD).count() > before).await;
        assert_eq!(read(&program, &key).await, 200, "{broken:?}");
        assert_eq!(program.log().matches(TOLD).count(), before + 1, "once");
    }
    fs::remove_file(&keys).unwrap();
    eventually("it is told", async || program.log().matches(TOLD).count() == 4).await;
    assert_eq!(read(&program, &key).await, 200);
    fs::write(&keys, good).unwrap();
    let late = new_key(&folder, "late", EVERYTHING);
    eventually("a good file is read", async || read(&program, &late).await == 200).await;
}

/// A change that nobody sees from outside: the file is as long as before, and has its time.
#[tokio::test]
async fn sighup_reads_the_files_again() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let key = new_key(&folder, "all", EVERYTHING);
    let keys = folder.path().join("keys.ndjson");
    let program = start(&redis, &folder, "127.0.0.1", &["--keys", keys.to_str().unwrap()]).await;
    let file = File::options().write(true).open(&keys).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_at(b"{\"id\":\"ALL\"", 0).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
    let renamed = key.replace("sk_all_", "sk_ALL_");
    assert_eq!(read(&program, &key).await, 200);
    program.signal("HUP");
    eventually("the file is read", async || read(&program, &renamed).await == 200).await;
    assert_eq!(read(&program, &key).await, 401);
}

#[tokio::test]
async fn the_clients_show_their_token() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let key = new_key(&folder, "all", EVERYTHING);
    let keys = folder.path().join("keys.ndjson");
    let program = start(&redis, &folder, "127.0.0.1", &["--keys", keys.to_str().unwrap()]).await;
    let lines = folder.path().join("lines");
    fs::write(&lines, "{\"stream\":\"order-1\",\"type\":\"placed\",\"data\":{\"total\":1}}\n").unwrap();
    let run = async |arguments: &[&str], token: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
        command
            .args(arguments)
            .args(["--url", &program.url])
            .env("NO_PROXY", "*")
            .envs(token.map(|token| ("STREAMKEEP_TOKEN", token)));
        let output = command.output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let import = ["import", lines.to_str().unwrap()];
    let (ok, _, said) = run(&import, None).await;
    assert!(!ok && said.contains("401 unauthorized"), "{said}");
    let (ok, said, _) = run(&import, Some(&key)).await;
    assert!(ok && said.contains("1 appended"), "{said}");
    let (ok, _, said) = run(&["export"], None).await;
    assert!(!ok && said.contains("401 unauthorized"), "{said}");
    let (ok, exported, _) = run(&["export", "--token", &key], None).await;
    assert!(ok && exported.contains("order-1"), "{exported}");
    let tail = ["tail", "--from", "beginning", "--count", "1"];
    let (ok, _, said) = run(&tail, None).await;
    assert!(!ok && said.contains("401 unauthorized"), "{said}");
    let (ok, shown, said) = run(&tail, Some(&key)).await;
    assert!(ok && shown.contains("order-1"), "{shown}{said}");
    for token in [None, Some(key.as_str())] {
        assert!(run(&["health"], token).await.0);
    }
    let (ok, _, said) = run(&["export"], Some("secret\nvalue")).await;
    assert!(!ok && said.contains("the token has characters") && !said.contains("secret"), "{said}");
    let mut help = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    help.args(["export", "--help"]).env("STREAMKEEP_TOKEN", &key);
    let help = String::from_utf8(help.output().await.unwrap().stdout).unwrap();
    assert!(help.contains("STREAMKEEP_TOKEN") && !help.contains(&key), "{help}");
}

/// Without a file the line is printed behind the key; what breaks the rules is refused.
#[tokio::test]
async fn a_new_key_is_printed_with_its_line() {
    let new = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
        let output = command.args(["key", "new"]).args(arguments).output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let options =
        ["shop", "--verbs", "read,append", "--streams", "order-*,payment-7", "--expires", "2030-01-01T00:00:00Z"];
    let (ok, printed) = new(&options).await;
    let (key, line) = printed.split_once('\n').unwrap();
    let secret = key.strip_prefix("sk_shop_").unwrap();
    assert_eq!((ok, secret.len()), (true, 43), "32 bytes in base64url");
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["verbs"], serde_json::json!(["read", "append"]));
    assert_eq!(line["streams"], serde_json::json!(["order-*", "payment-7"]));
    assert_ne!(new(&options).await.1, printed, "each is another");
    for bad in [
        &["shop"][..],
        &["sh_op", "--verbs", "read"],
        &["shop", "--verbs", "write"],
        &["shop", "--verbs", "read", "--streams", "a*b"],
        &["shop", "--verbs", "read", "--expires", "soon"],
    ] {
        assert_eq!(new(bad).await, (false, String::new()), "{bad:?}");
    }
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.ndjson");
    fs::write(&file, "# without a line break at its end").unwrap();
    new_key(&folder, "a", EVERYTHING);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
    fs::remove_file(&file).unwrap();
    new_key(&folder, "a", EVERYTHING);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
