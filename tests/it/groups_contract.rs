//! What is promised of groups to the letter: bounds, defaults, headers, and leases that nobody gave.

use reqwest::Method;
use serde_json::{Value, json};
use streamkeep::model::{LeaseToken, Position};

use crate::{
    app::{Answer, TestApp},
    groups::{TestGroup, append, leases, names},
};

test_app! {
    async fn settings_hold_up_to_their_bounds_and_change_where_they_may(app) {
        let least = json!({"ordering": "stream", "lease_ms": 1_000, "max_deliveries": 1, "max_in_flight": 1, "backoff_ms": [0]});
        let most = json!({
            "ordering": "stream", "lease_ms": 43_200_000, "max_deliveries": 1_000_000, "max_in_flight": 10_000,
            "backoff_ms": vec![604_800_000; 100], "on_exhausted": "park_stream",
        });
        for (settings, status) in [(&least, 201), (&most, 200), (&least, 200)] {
            let told = app.put("/groups/g", &settings.to_string()).await.expect(status).json()["settings"].clone();
            for (member, value) in settings.as_object().unwrap() {
                assert_eq!(&told[member], value, "{member}");
            }
            let expected = settings.get("on_exhausted").cloned().unwrap_or(json!("park"));
            assert_eq!(told["on_exhausted"], expected, "what is absent has its default again");
            assert_eq!(app.get("/groups/g").await.expect(200).json()["settings"], told);
        }
        let categories: Vec<_> = (0..100).map(|number| format!("c{number}")).collect();
        let types: Vec<_> = (0..100).map(|number| format!("t{number}")).collect();
        TestGroup::create(&app, "lists", json!({"categories": categories, "types": types})).await;
        for (body, pointer) in [
            (json!({"max_deliveries": 1_000_001}), "#/max_deliveries"),
            (json!({"backoff_ms": vec![0; 101]}), "#/backoff_ms"),
            (json!({"categories": vec!["a"; 101]}), "#/categories"),
            (json!({"types": vec!["a"; 101]}), "#/types"),
        ] {
            let problem = app.put("/groups/h", &body.to_string()).await.expect_problem(422, "invalid-group").json();
            assert_eq!(problem["errors"][0]["pointer"], pointer);
        }
    }
}

test_app! {
    async fn whole_numbers_may_have_a_fraction_of_zero(app) {
        let settings = r#"{"lease_ms":2000.0,"max_deliveries":5.0,"max_in_flight":7e0,"backoff_ms":[1.0e3]}"#;
        let told = app.put("/groups/g", settings).await.expect(201).json()["settings"].clone();
        let expected = json!({"lease_ms": 2000, "max_deliveries": 5, "max_in_flight": 7, "backoff_ms": [1000]});
        for (member, value) in expected.as_object().unwrap() {
            assert_eq!(&told[member], value, "{member}");
        }
        append(&app, "order-1", "placed", 2).await;
        let group = TestGroup::at(&app, "g");
        let taken = group.next("").await;
        let lease = leases(&taken)[0];
        app.post("/groups/g/extend", &[], &format!(r#"{{"leases":["{lease}"],"lease_ms":3000.0}}"#)).await.expect(200);
        let nack = format!(r#"{{"leases":["{lease}"],"action":"retry","delay_ms":0.0}}"#);
        app.post("/groups/g/nack", &[], &nack).await.expect(200);
        app.post("/groups/g/parked/replay", &[], r#"{"count":1.0}"#).await.expect(200);
        if app.store.partitions().count() == 1 {
            app.post("/groups/g/seek", &[], r#"{"to":1.0}"#).await.expect(200);
            assert_eq!(names(&group.next("").await), ["order-1@2"]);
        }
        let many = r#"{"count":9007199254740992}"#;
        app.post("/groups/g/parked/replay", &[], many).await.expect_problem(422, "invalid-group");
        for number in ["5.5", "-1", "-1.0", "1e300", "\"5\"", "null"] {
            let body = format!(r#"{{"max_deliveries":{number}}}"#);
            let problem = app.put("/groups/g", &body).await.expect_problem(400, "invalid-json").json();
            assert_eq!(problem["errors"][0]["pointer"], "#/max_deliveries", "{number}");
        }
    }
}

test_app! {
    async fn positions_and_cursors_start_a_group_where_they_name_a_place(app) {
        let cursor = append(&app, "order-1", "placed", 3).await["cursor"].clone();
        append(&app, "order-1", "placed", 2).await;
        let one_partition = app.store.partitions().count() == 1;
        let put = async |name: &str, settings: Value| app.put(&format!("/groups/{name}"), &settings.to_string()).await;
        if one_partition {
            put("position", json!({"start": 3})).await.expect(201);
            let taken = TestGroup::at(&app, "position").next("limit=10").await;
            assert_eq!(names(&taken), ["order-1@4", "order-1@5"]);
        } else {
            put("position", json!({"start": 3})).await.expect_problem(422, "invalid-group");
        }
        // A cursor is of the log.
        put("one", json!({"stream": "order-1", "start": cursor})).await.expect_problem(422, "invalid-group");
        put("g", json!({})).await.expect(201);
        let foreign = if one_partition { "MDo5OTktZGVhZGJlZWY" } else { return }; // 0:999-deadbeef
        put("other", json!({"start": foreign})).await.expect_problem(409, "history-diverged");
        app.get(&format!("/groups/g?acked={foreign}")).await.expect_problem(409, "history-diverged");
        app.get("/groups/other").await.expect_problem(404, "group-not-found");
    }
}

test_app! {
    async fn one_event_for_default_is_what_is_asked_without_a_parameter(app) {
        append(&app, "order-1", "placed", 1_000).await;
        append(&app, "order-1", "placed", 3).await;
        let group = TestGroup::create(&app, "g", json!({})).await;
        assert_eq!(group.next("").await.len(), 1);
        assert_eq!(app.post("/groups/g/next", &[], "").await.expect(200).json()["deliveries"].as_array().unwrap().len(), 1);
        let consumers = group.status().await["consumers"].clone();
        assert_eq!((&consumers[0]["name"], &consumers[0]["in_flight"]), (&json!("default"), &json!(2)));
        assert_eq!(group.next("limit=1000&consumer=ada").await.len(), 1_000, "as many as may be asked for");
        assert_eq!(group.next("limit=1000&consumer=ada&wait=0").await.len(), 1);
    }
}

test_app! {
    async fn deadlines_are_as_far_as_told(app) {
        append(&app, "order-1", "placed", 1).await;
        TestGroup::create(&app, "g", json!({"lease_ms": 3_600_000})).await;
        let ms = |time: &Value| i128::from(streamkeep::model::parse_rfc3339(time.as_str().unwrap()).unwrap());
        let answer = app.get("/groups/g/next").await.expect(200).json();
        let delivery = &answer["deliveries"][0];
        let near = |from: i128, to: i128, ms: i128| (ms..ms + 60_000).contains(&(to - from));
        let first = ms(&delivery["deadline"]);
        assert!(near(ms(&delivery["event"]["time"]), first, 3_600_000), "{delivery}");
        let extend = async |more: Value| {
            let mut body = json!({"leases": [delivery["lease"]]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = app.post("/groups/g/extend", &[], &body.to_string()).await.expect(200).json();
            assert_eq!(answer["extended"][0]["lease"], delivery["lease"]);
            ms(&answer["extended"][0]["deadline"])
        };
        assert!(near(first, extend(json!({"lease_ms": 43_200_000})).await, 43_200_000 - 3_600_000));
        assert!(near(first, extend(json!({})).await, 0), "as long as the group's leases last");
    }
}

/// A lease names an event, and is no proof by that.
#[tokio::test]
async fn a_lease_that_nobody_gave_settles_nothing() {
    let app = TestApp::start(1).await;
    append(&app, "order-1", "placed", 2).await;
    let group = TestGroup::create(&app, "g", json!({})).await;
    let taken = group.next("").await;
    let good = LeaseToken::parse(&taken[0].lease, app.store.partitions()).unwrap();
    let with = |position: u64, text: String| {
        LeaseToken { position: Position::new(position).unwrap(), text, ..good.clone() }.token()
    };
    let nonce = good.text.split(':').next().unwrap();
    let not_yet = with(2, format!("{nonce}:1:2:order-1"));
    let never = with(99, format!("{nonce}:1:99:order-1"));
    let guessed = with(1, "0123456789abcdef:1:1:order-1".to_owned());
    let other_count = with(1, format!("{nonce}:2:1:order-1"));
    for (lease, reason) in [(not_yet, "not-delivered"), (never, "not-delivered"), (guessed, ""), (other_count, "")] {
        for (what, more) in [("ack", ""), ("extend", ""), ("nack", r#","action":"skip""#)] {
            let body = format!(r#"{{"leases":["{lease}"]{more}}}"#);
            let lost =
                app.post(&format!("/groups/g/{what}"), &[], &body).await.expect_problem(409, "lease-lost").json();
            assert_eq!(lost["lost"][0]["lease"], lease.as_str());
            assert!(reason.is_empty() || lost["lost"][0]["reason"] == reason, "{lost}");
        }
    }
    assert_eq!(group.one().await.name(), "order-1@2");
    assert_eq!(group.ack(&taken).await.expect(200).json()["acked"], 1, "the good one holds");
}

/// Whatever is answered about groups, no cache keeps it.
#[tokio::test]
async fn nothing_about_groups_is_stored() {
    let app = TestApp::start(1).await;
    append(&app, "order-1", "placed", 3).await;
    app.put("/groups/g", "{}").await.expect(201);
    let taken = TestGroup::at(&app, "g").next("limit=3").await;
    let of = |at: usize| leases(&taken[at..=at]);
    let bad = json!({"leases": ["x"], "action": "park"});
    for (method, path, body, status) in [
        (Method::PUT, "/groups/g", json!({}), 200),
        (Method::PUT, "/groups/g", json!({"ordering": "stream"}), 409),
        (Method::PUT, "/groups/g", json!({"lease_ms": 1}), 422),
        (Method::GET, "/groups", Value::Null, 200),
        (Method::GET, "/groups/g", Value::Null, 200),
        (Method::HEAD, "/groups/g", Value::Null, 200),
        (Method::GET, "/groups/none", Value::Null, 404),
        (Method::GET, "/groups/g/next?limit=0", Value::Null, 400),
        (Method::HEAD, "/groups/g/next", Value::Null, 405),
        (Method::POST, "/groups/g/extend", json!({"leases": of(0)}), 200),
        (Method::POST, "/groups/g/ack", json!({"leases": of(0)}), 200),
        (Method::POST, "/groups/g/nack", json!({"leases": of(1), "action": "park"}), 200),
        (Method::POST, "/groups/g/nack", json!({"leases": of(1), "action": "park"}), 200),
        (Method::POST, "/groups/g/ack", json!({"leases": of(1)}), 409),
        (Method::POST, "/groups/g/nack", bad.clone(), 400),
        (Method::GET, "/groups/g/parked", Value::Null, 200),
        (Method::POST, "/groups/g/parked/replay", json!({}), 200),
        (Method::DELETE, "/groups/g/parked", Value::Null, 200),
        (Method::POST, "/groups/g/seek", json!({"to": "end"}), 200),
        (Method::POST, "/groups/g/pause", Value::Null, 200),
        (Method::POST, "/groups/g/resume", Value::Null, 200),
        (Method::DELETE, "/groups/g", Value::Null, 204),
    ] {
        let mut request = app.request(method.clone(), path);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = Answer::of(request).await.expect(status);
        assert_eq!(answer.header("cache-control"), "no-store", "{method} {path}: {answer:?}");
    }
}
