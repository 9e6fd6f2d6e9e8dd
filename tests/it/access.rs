//! Who may do what. One partition: requests are judged before the store is asked.

use std::{fmt::Write as _, process::Command, sync::Arc};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use streamkeep::http::{Access, AccessFiles};
use tempfile::TempDir;

use crate::{
    app::{Answer, TestApp, TestRedis},
    input::GOOD,
    openapi::{document, operations},
};

/// What may be shown of no credential at all.
const CHALLENGE: &str = "Bearer realm=\"streamkeep\"";

/// A service that asks for credentials.
pub struct Guarded {
    pub app: TestApp,
    pub folder: TempDir,
    /// A key that may do everything.
    pub admin: String,
}

/// Makes a key, and adds its line to the file of the folder.
pub fn new_key(folder: &TempDir, id: &str, options: &[&str]) -> String {
    let file = folder.path().join("keys.ndjson");
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    let output = command.args(["key", "new", id]).args(options).arg("--file").arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let key = String::from_utf8(output.stdout).unwrap();
    assert_eq!(key.lines().count(), 1, "the key alone: {key}");
    key.trim().to_owned()
}

/// A key with these verbs for everything.
fn with_verbs(folder: &TempDir, id: &str, verbs: &[&str]) -> String {
    new_key(folder, id, &["--verbs", &verbs.join(","), "--streams", "*", "--groups", "*"])
}

impl Guarded {
    pub async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// `prepare` may write further keys, and name further files.
    pub async fn start_with(prepare: impl FnOnce(&TempDir, &mut AccessFiles)) -> Self {
        let folder = TempDir::new().unwrap();
        let admin = with_verbs(&folder, "admin", &["read", "append", "consume", "manage"]);
        let mut files = AccessFiles { keys: Some(folder.path().join("keys.ndjson")), ..AccessFiles::default() };
        prepare(&folder, &mut files);
        let access: Arc<Access> = Access::open(files).unwrap();
        let app = TestApp::start_with(TestRedis::start().await, 1, |config| config.access = Some(access)).await;
        let guarded = Self { app, folder, admin };
        guarded.append(&guarded.admin, "order-12345").await.expect(201);
        guarded
    }

    pub fn request(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.app.request(method, path).bearer_auth(token)
    }

    pub async fn get(&self, token: &str, path: &str) -> Answer {
        Answer::of(self.request(token, Method::GET, path)).await
    }

    pub async fn append(&self, token: &str, stream: &str) -> Answer {
        self.send(token, Method::POST, &format!("/streams/{stream}/events"), GOOD).await
    }

    pub async fn send(&self, token: &str, method: Method, path: &str, body: &str) -> Answer {
        let request = self.request(token, method, path).header("content-type", "application/json");
        Answer::of(request.body(body.to_owned())).await
    }

    /// That a token is refused everywhere, with these words.
    #[track_caller]
    pub fn refused(answer: Answer, words: &str) {
        let answer = answer.expect_problem(401, "unauthorized");
        assert_eq!(answer.json()["detail"], words);
        let challenge = format!("{CHALLENGE}, error=\"invalid_token\", error_description=\"{words}\"");
        assert_eq!(answer.header("www-authenticate"), challenge);
    }
}

/// The verbs that an operation needs one of; none where anybody may.
fn verbs(operation: &Value) -> Vec<&str> {
    let alternatives = operation["security"].as_array().unwrap().iter().filter_map(|one| one["bearer"].as_array());
    alternatives.flatten().map(|verb| verb.as_str().unwrap()).collect()
}

/// Written once more by hand, for the document and the service have it from the same rules.
#[test]
fn every_operation_needs_what_was_decided() {
    const LOOK: &[&str] = &["consume", "manage"];
    let document = document();
    for (path, method, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        let needed = match id {
            "livez" | "readyz" => &[][..],
            "readLog" | "readStream" | "headStream" | "readEvent" | "listStreams" => &["read"],
            "appendEvents" => &["append"],
            "takeNext" | "takeNextByPost" | "ack" | "nack" | "extendLeases" => &["consume"],
            "listGroups" | "getGroup" | "listParked" => LOOK,
            "metrics" | "putGroup" | "deleteGroup" | "seekGroup" | "pauseGroup" | "resumeGroup" | "dropParked"
            | "replayParked" => &["manage"],
            other => panic!("{method} {path}: nobody decided who may {other}"),
        };
        assert_eq!(verbs(operation), needed, "{id}");
    }
}

/// Every operation, with an address and a body that would do.
fn requests(document: &Value) -> impl Iterator<Item = (String, Method, String, String, Vec<&str>)> {
    operations(document).map(|(path, method, operation)| {
        let address = path.replace("{id}", "order-12345").replace("{version}", "1").replace("{group}", "mailer");
        let body = match path.rsplit('/').next().unwrap() {
            "ack" | "extend" => json!({ "leases": [] }),
            "nack" => json!({ "leases": [], "action": "park" }),
            _ => operation["requestBody"]["content"]["application/json"]["example"].clone(),
        };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        (format!("{method} {path}"), method.to_uppercase().parse().unwrap(), address, body, verbs(operation))
    })
}

#[track_caller]
fn expect_refusal(name: &str, answer: Answer, status: u16, code: &str) -> String {
    let challenge = answer.header("www-authenticate").to_owned();
    assert_eq!(answer.status.as_u16(), status, "{name}: {answer:?}");
    if !name.starts_with("head ") {
        answer.expect_problem(status, code);
    }
    challenge
}

/// Redis stands still meanwhile: nothing of this may ask it.
#[tokio::test]
async fn no_operation_is_forgotten() {
    const VERBS: [&str; 4] = ["read", "append", "consume", "manage"];
    let mut lacking = Vec::new();
    let mut elsewhere = String::new();
    let guarded = Guarded::start_with(|folder, _| {
        for needed in [&["read"][..], &["append"], &["consume"], &["manage"], &["consume", "manage"]] {
            let others: Vec<_> = VERBS.into_iter().filter(|verb| !needed.contains(verb)).collect();
            lacking.push((needed.to_vec(), with_verbs(folder, &format!("not-{}", needed.join(".")), &others)));
        }
        let verbs = VERBS.join(",");
        elsewhere =
            new_key(folder, "elsewhere", &["--verbs", &verbs, "--streams", "order-1,other-*", "--groups", "mail"]);
    })
    .await;
    let (app, document) = (&guarded.app, document());
    app.redis.signal("STOP");
    let (mut open, mut judged) = (0, 0);
    for (name, method, address, body, needed) in requests(&document) {
        let send = async |token: Option<&str>| {
            let request = app.request(method.clone(), &address).header("content-type", "application/json");
            let request = token.into_iter().fold(request, RequestBuilder::bearer_auth);
            Answer::of(request.body(body.clone())).await
        };
        if needed.is_empty() {
            open += 1;
            continue;
        }
        judged += 1;
        assert_eq!(expect_refusal(&name, send(None).await, 401, "unauthorized"), CHALLENGE, "{name}");
        let (_, key) = lacking.iter().find(|(verbs, _)| *verbs == needed).unwrap_or_else(|| panic!("{name}"));
        let challenge = expect_refusal(&name, send(Some(key)).await, 403, "forbidden");
        let scope = format!("{CHALLENGE}, error=\"insufficient_scope\", scope=\"{}\"", needed.join(" "));
        assert_eq!(challenge, scope, "{name}");
        // The list of groups is asked of Redis, and shows only what may be seen.
        if name != "get /groups" {
            expect_refusal(&name, send(Some(&elsewhere)).await, 403, "forbidden");
        }
    }
    app.redis.signal("CONT");
    assert_eq!((open, judged > 20), (2, true), "the probes are open: {open}, {judged}");
}

#[tokio::test]
async fn the_verb_that_is_documented_is_enough() {
    let mut keys = Vec::new();
    let guarded = Guarded::start_with(|folder, _| {
        keys = ["read", "append", "consume", "manage"].map(|verb| (verb, with_verbs(folder, verb, &[verb]))).to_vec();
    })
    .await;
    let document = document();
    for (name, method, address, body, needed) in requests(&document) {
        for verb in needed {
            guarded.send(&guarded.admin, Method::PUT, "/groups/mailer", "{}").await;
            let (_, key) = keys.iter().find(|(one, _)| *one == verb).unwrap();
            let answer = guarded.send(key, method.clone(), &address, &body).await;
            assert!(!answer.status.is_server_error(), "{name}: {answer:?}");
            assert!(![401, 403].contains(&answer.status.as_u16()), "{name} with {verb}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn probes_and_documentation_are_open() {
    let guarded = Guarded::start().await;
    let app = &guarded.app;
    for path in ["/livez", "/readyz", "/openapi.json", "/docs/"] {
        app.get(path).await.expect(200);
        guarded.get("nonsense", path).await.expect(200);
    }
    let options = Answer::of(app.request(Method::OPTIONS, "/groups/mailer/next")).await.expect(204);
    assert_eq!(options.header("allow"), "GET, POST, OPTIONS");
    app.get("/nowhere").await.expect_problem(401, "unauthorized");
    guarded.get(&guarded.admin, "/nowhere").await.expect_problem(404, "not-found");
    guarded.send(&guarded.admin, Method::PATCH, "/groups/mailer", "").await.expect_problem(405, "method-not-allowed");
}

#[tokio::test]
async fn without_files_nobody_is_asked() {
    let app = TestApp::start(1).await;
    for authorization in ["", "Basic eDp5", "Bearer nonsense"] {
        app.append_with("order-1", &[("authorization", authorization)], GOOD).await.expect(201);
    }
}

#[tokio::test]
async fn other_credentials_than_one_good_token_are_refused() {
    let guarded = Guarded::start().await;
    let (app, admin) = (&guarded.app, &guarded.admin);
    let ask = async |authorization: &[u8]| {
        let value = reqwest::header::HeaderValue::from_bytes(authorization).unwrap();
        Answer::of(app.request(Method::GET, "/events").header("authorization", value)).await
    };
    for good in [format!("Bearer {admin}"), format!("bearer {admin}"), format!("BEARER   {admin} ")] {
        ask(good.as_bytes()).await.expect(200);
    }
    for none in
        ["", "Bearer", "Basic eDp5", admin, &format!("Bearer\t{admin}"), &format!("Basic {admin}"), "Bearer\u{e9}"]
    {
        let answer = ask(none.as_bytes()).await.expect_problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), CHALLENGE, "{none}");
    }
    let huge = format!("sk_admin_{}", "x".repeat(12_000));
    let (other_id, short) = (admin.replace("admin", "adminx"), &admin[..admin.len() - 1]);
    let list = format!("{admin}, {admin}");
    for bad in ["sk_", "sk_admin", "sk_admin_", "sk__", &huge, &other_id, short, &list, &admin.to_uppercase()] {
        let answer = ask(format!("Bearer {bad}").as_bytes()).await;
        let words = if bad.starts_with("SK_") { "The token is not known." } else { "The key is not known." };
        Guarded::refused(answer, words);
    }
    for bad in ["nonsense", "a.b.c", "..", "eyJhbGciOiJub25lIn0.e30."] {
        Guarded::refused(ask(format!("Bearer {bad}").as_bytes()).await, "The token is not known.");
    }
    let twice = app.request(Method::GET, "/events").bearer_auth(admin).bearer_auth(admin);
    let answer = Answer::of(twice).await.expect_problem(400, "invalid-request");
    assert_eq!(answer.header("www-authenticate"), format!("{CHALLENGE}, error=\"invalid_request\""));
    // Addresses are logged on the way: no token is taken from there.
    let mut address = String::from("/events?");
    write!(address, "access_token={admin}").unwrap();
    app.get(&address).await.expect_problem(401, "unauthorized");
}

#[tokio::test]
async fn a_key_ends() {
    let (mut past, mut coming) = (String::new(), String::new());
    let guarded = Guarded::start_with(|folder, _| {
        let options = ["--verbs", "read", "--streams", "*", "--expires"];
        past = new_key(folder, "past", &[&options[..], &["2026-01-01T00:00:00Z"]].concat());
        coming = new_key(folder, "coming", &[&options[..], &["9999-01-01T00:00:00Z"]].concat());
    })
    .await;
    Guarded::refused(guarded.get(&past, "/events").await, "The key has expired.");
    guarded.get(&coming, "/events").await.expect(200);
}

#[tokio::test]
async fn a_key_holds_for_its_streams() {
    let (mut orders, mut one) = (String::new(), String::new());
    let guarded = Guarded::start_with(|folder, _| {
        orders = new_key(folder, "orders", &["--verbs", "read,append", "--streams", "order,order-*"]);
        one = new_key(folder, "one", &["--verbs", "append", "--streams", "order-1"]);
    })
    .await;
    guarded.append(&guarded.admin, "payment-1").await.expect(201);
    guarded.append(&orders, "order-1").await.expect(201);
    guarded.append(&orders, "order%2D1").await.expect(201);
    guarded.append(&one, "order-1").await.expect(201);
    for (key, stream) in [(&orders, "payment-1"), (&orders, "orders-1"), (&orders, "nobody-1"), (&one, "order-12345")] {
        guarded.append(key, stream).await.expect_problem(403, "forbidden");
    }
    for path in ["/streams/order-1", "/streams/order-1/events/1", "/events?category=order", "/events?stream=order-1"] {
        guarded.get(&orders, path).await.expect(200);
    }
    let list = guarded.get(&orders, "/streams?%63ategory=order").await.expect(200).json();
    assert_eq!(list["streams"].as_array().unwrap().len(), 2, "{list}");
    for path in [
        "/streams/payment-1",
        "/streams/%70ayment-1",
        "/streams/payment-1/events/1",
        "/streams/%FF",
        "/events",
        "/events?type=placed",
        "/events?category=payment",
        "/events?category=order&category=payment",
        "/events?stream=payment-1",
        "/events?stream=order-1&stream=payment-1",
        "/streams",
        "/streams?category=payment",
    ] {
        guarded.get(&orders, path).await.expect_problem(403, "forbidden");
    }
    // The router does not decode what it compares: no address has a second spelling.
    for path in ["/%73treams/payment-1", "/streams/payment-1/", "//streams/payment-1", "/streams//payment-1"] {
        guarded.get(&orders, path).await.expect_problem(404, "not-found");
    }
    // Whether there is such a stream, nobody learns.
    let (there, not_there) =
        (guarded.get(&orders, "/streams/payment-1").await, guarded.get(&orders, "/streams/payment-2").await);
    assert_eq!(there.json()["detail"], not_there.json()["detail"]);
    // A conflict would bring the events.
    let path = "/streams/order-1/events?include=events";
    guarded.send(&orders, Method::POST, path, GOOD).await.expect(201);
    guarded.send(&one, Method::POST, path, GOOD).await.expect_problem(403, "forbidden");
    guarded.send(&one, Method::POST, &path.replace("incl", "%69ncl"), GOOD).await.expect_problem(403, "forbidden");
}

#[tokio::test]
async fn a_key_holds_for_its_groups_and_their_sources() {
    let (mut mail, mut worker) = (String::new(), String::new());
    let guarded = Guarded::start_with(|folder, _| {
        mail = new_key(folder, "mail", &["--verbs", "manage", "--streams", "order*", "--groups", "mail-*"]);
        worker = new_key(folder, "worker", &["--verbs", "consume", "--groups", "mail-1"]);
    })
    .await;
    let put = async |name: &str, body: &str| guarded.send(&mail, Method::PUT, &format!("/groups/{name}"), body).await;
    put("mail-1", r#"{"categories":["order"]}"#).await.expect(201);
    put("mail-2", r#"{"stream":"order-12345"}"#).await.expect(201);
    let elsewhere = [r#"{"categories":["order","payment"]}"#, r#"{"stream":"payment-1"}"#, r#"{"types":["placed"]}"#];
    for source in elsewhere.into_iter().chain(["{}"]) {
        put("mail-3", source).await.expect_problem(403, "forbidden");
    }
    put("other", r#"{"categories":["order"]}"#).await.expect_problem(403, "forbidden");
    guarded.send(&guarded.admin, Method::PUT, "/groups/other", "{}").await.expect(201);
    let names = async |key: &str| {
        let list = guarded.get(key, "/groups").await.expect(200).json();
        let names = list["groups"].as_array().unwrap().iter().map(|group| group["group"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&guarded.admin).await, ["mail-1", "mail-2", "other"]);
    assert_eq!(names(&mail).await, ["mail-1", "mail-2"]);
    assert_eq!(names(&worker).await, ["mail-1"]);
    let deliveries = guarded.get(&worker, "/groups/mail-1/next").await.expect(200).json();
    assert_eq!(deliveries["deliveries"].as_array().unwrap().len(), 1);
    guarded.get(&worker, "/groups/mail-1").await.expect(200);
    for path in ["/groups/mail-2/next", "/groups/nobody", "/groups/mail-11"] {
        guarded.get(&worker, path).await.expect_problem(403, "forbidden");
    }
}

/// A shared cache would hand on what it has to anybody.
#[tokio::test]
async fn what_needs_credentials_is_kept_by_no_shared_cache() {
    let folder = TempDir::new().unwrap();
    let key = with_verbs(&folder, "all", &["read", "append"]);
    let files = AccessFiles { keys: Some(folder.path().join("keys.ndjson")), ..AccessFiles::default() };
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| {
        config.access = Some(Access::open(files).unwrap());
        config.cache_max_age = std::time::Duration::from_mins(1);
    })
    .await;
    app.append_with("order-1", &[("authorization", &format!("Bearer {key}"))], GOOD).await.expect(201);
    let event = Answer::of(app.request(Method::GET, "/streams/order-1/events/1").bearer_auth(&key)).await.expect(200);
    assert_eq!(event.header("cache-control"), "private, max-age=60, immutable");
}

/// What lies beneath a base path is judged by what it is there, and pages of other origins can read a refusal.
#[tokio::test]
async fn behind_a_base_path_and_for_pages_it_is_the_same() {
    let folder = TempDir::new().unwrap();
    let key = new_key(&folder, "shop", &["--verbs", "read,append", "--streams", "order-*"]);
    let files = AccessFiles { keys: Some(folder.path().join("keys.ndjson")), ..AccessFiles::default() };
    let access = Access::open(files).unwrap();
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| {
        config.access = Some(access);
        "/store".clone_into(&mut config.base_path);
        config.cors_origins = vec!["https://shop.example".parse().unwrap()];
    });
    let app = app.await;
    let ask = async |method, path: &str, key: &str| {
        let request = app.request(method, path).header("origin", "https://shop.example").bearer_auth(key);
        let answer = Answer::of(request.header("content-type", "application/json").body(GOOD)).await;
        assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example", "{path}");
        answer
    };
    ask(Method::POST, "/store/streams/order-1/events", &key).await.expect(201);
    ask(Method::GET, "/store/streams/order-1", &key).await.expect(200);
    ask(Method::GET, "/store/streams/order-1", "wrong").await.expect_problem(401, "unauthorized");
    ask(Method::POST, "/store/streams/payment-1/events", &key).await.expect_problem(403, "forbidden");
    for outside in ["/streams/order-1", "/storestreams/order-1", "/livez", "/"] {
        ask(Method::GET, outside, &key).await.expect_problem(404, "not-found");
        ask(Method::GET, outside, "wrong").await.expect_problem(401, "unauthorized");
    }
    ask(Method::GET, "/store/livez", "wrong").await.expect(200);
    let preflight = app.request(Method::OPTIONS, "/store/streams/order-1/events");
    let preflight = preflight.header("origin", "https://shop.example").header("access-control-request-method", "POST");
    let allowed = Answer::of(preflight.header("access-control-request-headers", "authorization")).await;
    assert_eq!(allowed.expect(200).header("access-control-allow-origin"), "https://shop.example");
}
