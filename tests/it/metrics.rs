//! `GET /metrics`: what is counted, what is shown of groups, and that dashboard, alerts and documentation speak of nothing
//! else.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use reqwest::Method;
use streamkeep::http::{Access, AccessFiles};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{
    access::new_key,
    app::{Answer, TestApp, TestRedis, eventually, free_address},
    program::{Service, serve},
    tidy::root,
};

const ONE: &str = r#"{"events":[{"id":"1","type":"placed","data":{"total":42}}]}"#;
const TWO: &str = r#"{"events":[{"type":"a","data":1},{"type":"b","data":22}]}"#;

/// A scrape: the value of each sample, by its whole name.
pub struct Scrape(String);

impl Scrape {
    pub async fn of(app: &TestApp) -> Self {
        let answer = app.get("/metrics").await.expect(200);
        assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert!(answer.text.ends_with("# EOF\n"), "OpenMetrics 1.0 ends with this");
        Self(answer.text)
    }

    /// A sample, by its name behind `streamkeep_`, with its labels.
    #[track_caller]
    pub fn get(&self, name: &str) -> f64 {
        let found = self.0.lines().find_map(|line| line.strip_prefix(&format!("streamkeep_{name} ")));
        found.unwrap_or_else(|| panic!("no {name} in\n{}", self.0)).parse().unwrap()
    }

    /// Of a metric with labels, all together; there is at least one.
    fn sum(&self, name: &str) -> f64 {
        let with_labels = format!("streamkeep_{name}{{");
        let values =
            self.0.lines().filter(|line| line.starts_with(&with_labels)).map(|line| line.rsplit_once(' ').unwrap().1);
        values.map(|value| value.parse::<f64>().unwrap()).reduce(|one, other| one + other).unwrap()
    }

    fn samples(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#')).count()
    }

    /// Of each metric its type and help.
    fn metrics(&self) -> BTreeMap<String, (String, String)> {
        let mut metrics = BTreeMap::<_, (String, String)>::new();
        for line in self.0.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
                help.clone_into(&mut metrics.entry(name.to_owned()).or_default().1);
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
                kind.clone_into(&mut metrics.entry(name.to_owned()).or_default().0);
            }
        }
        metrics
    }
}

async fn post(app: &TestApp, path: &str, body: &str) -> Answer {
    let request = app.request(Method::POST, path).header("content-type", "application/json");
    Answer::of(request.body(body.to_owned())).await
}

async fn put_group(app: &TestApp, name: &str, body: &str) {
    let request = app.request(Method::PUT, &format!("/groups/{name}")).header("content-type", "application/json");
    Answer::of(request.body(body.to_owned())).await.expect(201);
}

/// Takes an event of the group `mailer`; its lease.
async fn take(app: &TestApp) -> String {
    let answer = app.get("/groups/mailer/next").await.expect(200).json();
    answer["deliveries"][0]["lease"].as_str().expect("an event").to_owned()
}

test_app! {
    async fn what_happens_is_counted(app) {
        app.append("order-1", ONE).await.expect(201);
        app.append("order-1", ONE).await.expect(200);
        app.append_with("order-1", &[("if-match", "\"7\"")], TWO).await.expect(409);
        app.append("order-1", TWO).await.expect(201);
        app.get("/streams/none-1").await.expect(404);
        put_group(&app, "mailer", "{}").await;
        let settle = async |action: &str, lease: &str, more: &str, expected| {
            post(&app, &format!("/groups/mailer/{action}"), &format!(r#"{{"leases":["{lease}"]{more}}}"#)).await.expect(expected);
        };
        let first = take(&app).await;
        settle("extend", &first, "", 200).await;
        settle("ack", &first, "", 200).await;
        settle("ack", &first, "", 200).await;
        let second = take(&app).await;
        settle("nack", &second, r#","action":"retry""#, 200).await;
        settle("ack", &second, "", 409).await;
        let again = take(&app).await;
        settle("nack", &again, r#","action":"park","reason":"x""#, 200).await;
        let scrape = Scrape::of(&app).await;
        for (name, value) in [
            ("appends_total{outcome=\"appended\"}", 2.0),
            ("appends_total{outcome=\"duplicate\"}", 1.0),
            ("http_problems_total{code=\"version-conflict\"}", 1.0),
            ("http_problems_total{code=\"stream-not-found\"}", 1.0),
            ("http_problems_total{code=\"lease-lost\"}", 1.0),
            ("http_problems_total{code=\"overloaded\"}", 0.0),
            ("events_appended_total", 3.0),
            ("event_bytes_appended_total", 12.0 + 1.0 + 2.0 + 3.0 * 2.0),
            ("append_events_count", 2.0),
            ("append_events_sum", 3.0),
            ("append_events_bucket{le=\"1.0\"}", 1.0),
            ("append_pipeline_calls_count", 4.0),
            ("http_requests_total{method=\"POST\",route=\"/streams/{id}/events\",status=\"409\"}", 1.0),
            ("http_requests_total{method=\"GET\",route=\"/groups/{group}/next\",status=\"200\"}", 3.0),
            ("http_request_duration_seconds_count{method=\"GET\",route=\"/groups/{group}/next\"}", 3.0),
            ("http_requests_in_flight", 1.0),
            ("deliveries_total{outcome=\"first\"}", 2.0),
            ("deliveries_total{outcome=\"again\"}", 1.0),
            ("leases_settled_total{outcome=\"acked\"}", 1.0),
            ("leases_settled_total{outcome=\"already\"}", 1.0),
            ("leases_settled_total{outcome=\"extended\"}", 1.0),
            ("leases_settled_total{outcome=\"retried\"}", 1.0),
            ("leases_settled_total{outcome=\"parked\"}", 1.0),
            ("leases_settled_total{outcome=\"lost\"}", 1.0),
            ("redis_failures_total{operation=\"es_append\"}", 0.0),
            ("redis_round_trip_duration_seconds_count{operation=\"es_append\"}", 4.0),
            ("redis_reconnects_total", 0.0),
            ("redis_pool_waiting", 0.0),
            ("deliveries_exhausted_total", 0.0),
            ("http_clients_stalled_total", 0.0),
            ("redis_up", 1.0),
            ("partitions_unavailable", 0.0),
            ("durability_fsync", 1.0),
            ("groups", 1.0),
            ("group_lag_events{group=\"mailer\"}", 1.0),
            ("group_parked_events{group=\"mailer\"}", 1.0),
            ("group_in_flight_events{group=\"mailer\"}", 0.0),
            ("group_consumers{group=\"mailer\"}", 1.0),
            ("group_paused{group=\"mailer\"}", 0.0),
        ] {
            assert!((scrape.get(name) - value).abs() < 1e-9, "{name}: {} is not {value}", scrape.get(name));
        }
        assert!(scrape.sum("failovers_total").abs() < 1e-9);
        let age = scrape.get("group_oldest_unacked_seconds{group=\"mailer\"}");
        assert!((0.0..60.0).contains(&age), "{age}");
    }
}

#[tokio::test]
async fn what_is_open_is_shown_and_gone_again() {
    let app = TestApp::start(1).await;
    let follow = |path: &str| app.request(Method::GET, path).header("accept", "text/event-stream").send();
    let feed = follow("/events").await.unwrap();
    let poll = tokio::spawn(app.request(Method::GET, "/streams/none-1?wait=60").send());
    let waiting = async |feeds: f64, waiting: f64| {
        eventually("it is shown", async || {
            let scrape = Scrape::of(&app).await;
            (scrape.get("feeds_open") - feeds).abs() < 0.5 && (scrape.get("waiting_requests") - waiting).abs() < 0.5
        })
        .await;
    };
    waiting(1.0, 2.0).await;
    drop(feed);
    poll.abort();
    waiting(0.0, 0.0).await;
    assert!((Scrape::of(&app).await.get("http_clients_gone_total") - 1.0).abs() < 0.5, "the poll's client left");
}

test_app! {
    async fn what_groups_park_by_themselves_is_counted(app) {
        app.append("order-1", ONE).await.expect(201);
        app.append("order-1", TWO).await.expect(201);
        put_group(&app, "mailer", r#"{"max_deliveries":1,"lease_ms":1000}"#).await;
        let lease = take(&app).await;
        let body = format!(r#"{{"leases":["{lease}"],"action":"retry"}}"#);
        post(&app, "/groups/mailer/nack", &body).await.expect(200);
        let scrape = Scrape::of(&app).await;
        for (name, value) in [
            ("deliveries_exhausted_total", 1.0),
            ("leases_settled_total{outcome=\"retried\"}", 1.0),
            ("group_parked_events{group=\"mailer\"}", 1.0),
        ] {
            assert!((scrape.get(name) - value).abs() < 0.5, "{name}: {} is not {value}", scrape.get(name));
        }
        take(&app).await;
        eventually("what nobody settles is parked too", async || {
            let scrape = Scrape::of(&app).await;
            let parked = scrape.get("group_parked_events{group=\"mailer\"}");
            (parked - 2.0).abs() < 0.5 && (scrape.get("deliveries_exhausted_total") - 2.0).abs() < 0.5
        })
        .await;
    }
}

#[tokio::test]
async fn followers_that_take_nothing_are_counted() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.server.idle_timeout = Duration::from_millis(500)).await;
    let feed = app.request(Method::GET, "/events").header("accept", "text/event-stream").send().await.unwrap();
    let open = Scrape::of(&app).await;
    assert!((open.get("feeds_open") - 1.0).abs() < 0.5 && open.get("http_connections_open") > 1.5);
    let large = format!(r#"{{"events":[{{"type":"large","data":"{}"}}]}}"#, "x".repeat(500_000));
    eventually("it is closed", async || {
        app.append("s-1", &large).await.expect(201);
        Scrape::of(&app).await.get("http_clients_stalled_total") > 0.5
    })
    .await;
    eventually("it is open no more", async || Scrape::of(&app).await.get("feeds_open").abs() < 0.5).await;
    assert!((Scrape::of(&app).await.get("http_clients_stalled_total") - 1.0).abs() < 0.5, "once");
    drop(feed);
}

/// While all connections of the pool wait for a Redis that is stopped, others wait for one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_the_pool_is_shown() {
    let app = TestApp::start(1).await;
    app.redis.signal("STOP");
    let mut probes = JoinSet::new();
    for _ in 0..20 {
        let probe = app.request(Method::GET, "/readyz").send();
        probes.spawn(probe);
    }
    eventually("some wait", async || app.store.load().pool_waiting > 0).await;
    let load = app.store.load();
    assert!(load.pool_in_use > 0 && load.pool_idle == 0, "{load:?}");
    app.redis.signal("CONT");
    probes.join_all().await;
    let scrape = Scrape::of(&app).await;
    assert!(scrape.get("redis_pool_waiting").abs() < 0.5);
    assert!(scrape.get("redis_pool_connections{state=\"idle\"}") > 0.5);
}

#[tokio::test]
async fn labels_are_few_whatever_is_asked_for() {
    let app = TestApp::start(1).await;
    let ask = async || {
        for number in 0..50 {
            for method in ["GET", "DELETE", "PATCH", "BREW", &format!("X{number}")] {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                for path in ["/streams/a-{}", "/{}", "/groups/g{}/next", "/streams/a/events/{}", "/events?category=c{}"]
                {
                    // Small enough for a version: a larger one would be answered otherwise.
                    let path = path.replace("{}", &fastrand::u32(1..).to_string());
                    app.request(method.clone(), &path).send().await.unwrap();
                }
            }
        }
        Scrape::of(&app).await.samples()
    };
    // The first scrape is not yet among the requests that it shows.
    ask().await;
    assert_eq!(ask().await, ask().await);
}

#[tokio::test]
async fn of_groups_a_thousand_are_shown() {
    let app = Arc::new(TestApp::start(1).await);
    let mut tasks = JoinSet::new();
    for task in 0..7 {
        let app = Arc::clone(&app);
        tasks.spawn(async move {
            for number in 0..143 {
                put_group(&app, &format!("g-{}", task * 143 + number), "{}").await;
            }
        });
    }
    tasks.join_all().await;
    let scrape = Scrape::of(&app).await;
    assert!((scrape.get("groups") - 1_001.0).abs() < 0.5);
    assert_eq!(scrape.0.matches("\nstreamkeep_group_lag_events{").count(), 1_000);
    // A group that goes is shown no more.
    app.request(Method::DELETE, "/groups/g-7").send().await.unwrap();
    eventually("it is shown no more", async || !Scrape::of(&app).await.0.contains("group=\"g-7\"")).await;
}

#[tokio::test]
async fn they_are_there_while_redis_is_not() {
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| {
        config.store.timeout = Duration::from_millis(300);
    });
    let app = app.await;
    put_group(&app, "mailer", "{}").await;
    assert!(Scrape::of(&app).await.0.contains("group=\"mailer\""));
    app.redis.signal("STOP");
    app.get("/streams/order-1").await.expect(503);
    let scrape = Scrape::of(&app).await;
    assert!(scrape.get("redis_up").abs() < 0.5);
    assert!(scrape.get("partitions_unavailable") > 0.5);
    assert!(scrape.get("redis_failures_total{operation=\"XLEN\"}") > 0.5);
    app.redis.signal("CONT");
    eventually("Redis is back", async || Scrape::of(&app).await.get("redis_up") > 0.5).await;
    assert!(Scrape::of(&app).await.sum("failovers_total").abs() < 0.5, "it was the same one all the time");
    app.append("order-1", ONE).await.expect(201);
    let before = Scrape::of(&app).await.get("redis_reconnects_total");
    app.redis.signal("KILL");
    eventually("another one answers", async || Scrape::of(&app).await.sum("failovers_total") > 0.5).await;
    eventually("a writer has connected again", async || {
        app.append("order-2", TWO).await;
        Scrape::of(&app).await.get("redis_reconnects_total") > before
    })
    .await;
}

#[tokio::test]
async fn with_keys_they_are_for_those_who_manage_all_groups() {
    let folder = TempDir::new().unwrap();
    let key = |id, verbs, groups| new_key(&folder, id, &["--verbs", verbs, "--streams", "*", "--groups", groups]);
    let (all, some, reader) = (key("a", "manage", "*"), key("b", "manage", "m*"), key("c", "read,append,consume", "*"));
    let files = AccessFiles { keys: Some(folder.path().join("keys.ndjson")), ..AccessFiles::default() };
    let access = Access::open(files).unwrap();
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| config.access = Some(access)).await;
    let ask = async |key: &str| Answer::of(app.request(Method::GET, "/metrics").bearer_auth(key)).await;
    ask(&all).await.expect(200);
    ask(&some).await.expect_problem(403, "forbidden");
    ask(&reader).await.expect_problem(403, "forbidden");
    app.get("/metrics").await.expect_problem(401, "unauthorized");
}

/// With keys, for there none are asked for; and to the end of the drain.
#[tokio::test]
async fn operators_have_an_address_of_their_own() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let key = new_key(&folder, "a", &["--verbs", "manage", "--groups", "*"]);
    let (main, admin, keys) = (free_address(), free_address().to_string(), folder.path().join("keys.ndjson"));
    let arguments = ["--admin-listen", &admin, "--drain-delay-secs", "3", "--keys", keys.to_str().unwrap()];
    let command = serve(&redis, &main.to_string(), &arguments);
    let mut service = Service::start(command, main, folder.path()).await;
    let client = service.client.clone();
    let get = async |address: &str, path: &str| {
        let asked = client.get(format!("http://{address}{path}")).bearer_auth(&key).send();
        asked.await.map(|answer| answer.status().as_u16())
    };
    assert_eq!(get(&admin, "/readyz").await.unwrap(), 200);
    assert_eq!(client.get(format!("http://{admin}/metrics")).send().await.unwrap().status(), 200, "without a key");
    assert_eq!(get(&admin, "/livez").await.unwrap(), 200);
    for other in ["/streams", "/events", "/groups", "/docs/", "/openapi.json"] {
        assert_eq!(get(&admin, other).await.unwrap(), 404, "{other}");
    }
    assert_eq!(get(&main.to_string(), "/metrics").await.unwrap(), 404);
    service.signal("TERM");
    eventually("it drains", async || get(&admin, "/readyz").await.is_ok_and(|status| status == 503)).await;
    assert!(service.ended().await.success());
}

/// The names of metrics in a text.
fn names(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !word(c));
    words.filter(|word| word.starts_with("streamkeep_")).collect()
}

/// The routes and codes that a text asks for, as in `code="overloaded"`.
fn labels(text: &str) -> Vec<String> {
    let text = text.replace('\\', "");
    let of = |label: &str| {
        let begin = format!("{label}=\"");
        let values = text.split(&begin).skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
        values.map(|value| format!("{begin}{value}\"")).collect::<Vec<_>>()
    };
    [of("code"), of("route")].concat()
}

#[tokio::test]
async fn dashboard_alerts_and_documentation_speak_of_what_there_is() {
    let app = TestApp::start(1).await;
    app.append("order-1", ONE).await.expect(201);
    put_group(&app, "mailer", "{}").await;
    take(&app).await;
    let scrape = Scrape::of(&app).await;
    let metrics = scrape.metrics();
    let exists = |sample: &str| {
        metrics.iter().any(|(name, (kind, _))| {
            let suffixes: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => &[""],
            };
            suffixes.iter().any(|suffix| sample == format!("{name}{suffix}"))
        })
    };
    for file in ["deploy/grafana/streamkeep.json", "deploy/prometheus/alerts.yml"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let names = names(&text);
        assert!(names.len() > 10, "{file}");
        for name in names {
            assert!(exists(name), "{file} speaks of {name}, which there is not");
        }
        // Of what begins at zero every value is there.
        for label in labels(&text) {
            assert!(scrape.0.contains(&label), "{file} asks for {label}, which there is not");
        }
    }
    let dashboard = fs::read_to_string(root().join("deploy/grafana/streamkeep.json")).unwrap();
    let missing: Vec<_> = metrics.keys().filter(|name| !dashboard.contains(*name)).collect();
    assert!(missing.is_empty(), "the dashboard lacks {missing:?}");
    let rows =
        metrics.iter().map(|(name, (kind, help))| format!("| `{name}` | {kind} | {} |\n", help.trim_end_matches('.')));
    let table = format!("| metric | type | meaning |\n|---|---|---|\n{}", rows.collect::<String>());
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap_or_default();
    assert!(page.contains(&table), "docs/metrics.md lacks this table:\n{table}");
}
