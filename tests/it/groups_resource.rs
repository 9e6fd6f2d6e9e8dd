//! Consumer groups as resources: settings, listing, seek, pause, delete.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, TestApp},
    groups::{TestGroup, append, names},
};

/// What is in force where nothing is said.
fn defaults() -> Value {
    json!({
        "categories": [], "types": [], "start": "beginning", "ordering": "none", "lease_ms": 30_000, "max_deliveries": 10,
        "backoff_ms": [], "max_in_flight": 10_000, "on_exhausted": "park",
    })
}

test_app! {
    async fn a_group_is_created_changed_listed_and_deleted(app) {
        let created = app.put("/groups/mailer", "{}").await.expect(201);
        assert_eq!(created.header("cache-control"), "no-store");
        assert_eq!(created.json(), json!({"group": "mailer", "settings": defaults(), "paused": false}));
        app.put("/groups/mailer", "{}").await.expect(200);
        let changed = r#"{"lease_ms":1000,"max_deliveries":3,"backoff_ms":[10,20],"max_in_flight":5}"#;
        let settings = app.put("/groups/mailer", changed).await.expect(200).json()["settings"].clone();
        assert_eq!((&settings["lease_ms"], &settings["backoff_ms"]), (&json!(1_000), &json!([10, 20])));
        // What GET tells can be put back as it is.
        app.put("/groups/mailer", &settings.to_string()).await.expect(200);
        app.put("/groups/archive", r#"{"types":["b","a"]}"#).await.expect(201);
        app.put("/groups/archive", r#"{"types":["a","b","a"]}"#).await.expect(200);
        let list = app.get("/groups").await.expect(200);
        assert_eq!(list.header("cache-control"), "no-store");
        let listed: Vec<_> = list.json()["groups"].as_array().unwrap().iter().map(|group| group["group"].clone()).collect();
        assert_eq!(listed, ["archive", "mailer"]);
        let gone = app.delete("/groups/mailer").await.expect(204);
        assert_eq!((gone.header("cache-control"), gone.text.as_str()), ("no-store", ""));
        app.delete("/groups/mailer").await.expect_problem(404, "group-not-found");
        app.get("/groups/mailer").await.expect_problem(404, "group-not-found");
        app.get("/groups/mailer/next").await.expect_problem(404, "group-not-found");
        for path in ["seek", "pause", "resume", "ack", "nack", "extend", "parked/replay"] {
            let lease = "MC5hMWIyYzNkNGU1ZjYwNzE4LjczLmI3YzhkOWUwZjFhMjM0NTY6MToxOm9yZGVyLTEyMzQ1";
            let body = match path {
                "seek" => json!({"to": "end"}),
                "ack" | "extend" => json!({"leases": [lease]}),
                "nack" => json!({"leases": [lease], "action": "skip"}),
                _ => json!({}),
            };
            let answer = app.post(&format!("/groups/mailer/{path}"), &[], &body.to_string()).await;
            answer.expect_problem(404, "group-not-found");
        }
    }
}

test_app! {
    async fn source_ordering_and_start_are_fixed(app) {
        let settings = r#"{"categories":["order"],"types":["placed"],"ordering":"stream","start":"end"}"#;
        app.put("/groups/g", settings).await.expect(201);
        app.put("/groups/g", r#"{"types":["placed"],"start":"end","ordering":"stream","categories":["order"],"lease_ms":1000}"#)
            .await
            .expect(200);
        for other in [
            r#"{"stream":"order-1","ordering":"stream","start":"end"}"#,
            r#"{"categories":["pay"],"types":["placed"],"ordering":"stream","start":"end"}"#,
            r#"{"categories":["order"],"ordering":"stream","start":"end"}"#,
            r#"{"categories":["order"],"types":["placed"],"ordering":"none","start":"end"}"#,
            r#"{"categories":["order"],"types":["placed"],"ordering":"stream"}"#,
        ] {
            app.put("/groups/g", other).await.expect_problem(409, "group-exists");
        }
        assert_eq!(app.get("/groups/g").await.expect(200).json()["settings"]["lease_ms"], 1_000);
    }
}

test_app! {
    async fn settings_are_checked(app) {
        for (body, pointer) in [
            (json!({"lease_ms": 999}), "#/lease_ms"),
            (json!({"lease_ms": 43_200_001}), "#/lease_ms"),
            (json!({"max_deliveries": 0}), "#/max_deliveries"),
            (json!({"max_in_flight": 10_001}), "#/max_in_flight"),
            (json!({"max_in_flight": 0}), "#/max_in_flight"),
            (json!({"backoff_ms": [0, 604_800_001]}), "#/backoff_ms/1"),
            (json!({"stream": "a/b"}), "#/stream"),
            (json!({"stream": "a-1", "categories": ["a"]}), "#/categories"),
            (json!({"categories": ["a", "b-1"]}), "#/categories/1"),
            (json!({"types": ["a", ""]}), "#/types/1"),
            (json!({"types": ["a\nb"]}), "#/types/0"),
            (json!({"on_exhausted": "park_stream"}), "#/on_exhausted"),
            (json!({"start": "yesterday"}), "#/start"),
            (json!({"start": null}), "#/start"),
            (json!({"start": -1}), "#/start"),
            (json!({"start": 1.5}), "#/start"),
            (json!({"start": "2026-11-23T25:00:00Z"}), "#/start"),
        ] {
            let problem = app.put("/groups/g", &body.to_string()).await.expect_problem(422, "invalid-group").json();
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
        }
        for body in [
            "[]", "{\"lease\":1}", "{\"lease_ms\":null}", "{\"lease_ms\":\"1000\"}", "{\"lease_ms\":-1}", "",
            "{\"ordering\":\"streams\"}", "{\"types\":\"a\"}", "{\"lease_ms\":1000,\"lease_ms\":2000}", "{\"stream\":null}",
            "{\"ordering\":\"stream\",\"on_exhausted\":\"drop\"}",
        ] {
            app.put("/groups/g", body).await.expect_problem(400, "invalid-json");
        }
        for name in ["a%2Fb", "%7Ba%7D", "%2E%2E", &"x".repeat(201)] {
            let answer = app.put(&format!("/groups/{name}"), "{}").await;
            assert!([400, 404].contains(&answer.status.as_u16()), "{answer:?}");
        }
        app.put("/groups/a%20b", "{}").await.expect_problem(400, "invalid-group-name");
        app.put("/groups/g?x=1", "{}").await.expect_problem(400, "invalid-parameter");
        Answer::of(app.request(Method::PUT, "/groups/g").body("{}")).await.expect_problem(415, "unsupported-media-type");
        assert_eq!(app.get("/groups").await.json(), json!({"groups": []}), "nothing was written");
    }
}

test_app! {
    async fn sources_narrow_what_is_delivered(app) {
        append(&app, "order-1", "placed", 2).await;
        append(&app, "order-1", "paid", 1).await;
        append(&app, "pay-1", "paid", 1).await;
        append(&app, "user-1", "placed", 1).await;
        for (name, settings, expected) in [
            ("all", json!({}), vec!["order-1@1", "order-1@2", "order-1@3", "pay-1@1", "user-1@1"]),
            ("categories", json!({"categories": ["order", "pay"]}), vec!["order-1@1", "order-1@2", "order-1@3", "pay-1@1"]),
            ("types", json!({"types": ["paid"]}), vec!["order-1@3", "pay-1@1"]),
            ("both", json!({"types": ["paid"], "categories": ["pay", "user"]}), vec!["pay-1@1"]),
            ("stream", json!({"stream": "order-1"}), vec!["order-1@1", "order-1@2", "order-1@3"]),
            ("stream-types", json!({"stream": "order-1", "types": ["paid"]}), vec!["order-1@3"]),
            ("none-yet", json!({"stream": "order-2"}), vec![]),
        ] {
            let group = TestGroup::create(&app, name, settings).await;
            let taken = group.next("limit=100").await;
            assert_eq!(names(&taken), expected, "{name}");
            assert_eq!(group.numbers(&["lag", "in_flight"]).await, [0, expected.len() as u64], "{name}");
        }
        append(&app, "order-2", "placed", 1).await;
        assert_eq!(TestGroup::at(&app, "none-yet").one().await.name(), "order-2@1");
    }
}

test_app! {
    async fn a_group_begins_where_it_is_told_and_is_sought(app) {
        let first = append(&app, "order-1", "placed", 3).await;
        let time = app.get("/streams/order-1?from=3").await.json()["events"][0]["time"].clone();
        crate::app::eventually("a later millisecond", async || {
            append(&app, "clock-1", "tick", 1).await;
            app.get("/streams/clock-1?direction=backward&limit=1").await.json()["events"][0]["time"] != time
        })
        .await;
        append(&app, "order-1", "placed", 2).await;
        let later = app.get("/streams/order-1?from=4").await.json()["events"][0]["time"].clone();
        for (name, start, expected) in [
            ("end", json!("end"), vec![]),
            ("cursor", first["cursor"].clone(), vec!["order-1@4", "order-1@5"]),
            ("time", later.clone(), vec!["order-1@4", "order-1@5"]),
            ("future", json!("2999-01-01T00:00:00+01:00"), vec![]),
            ("past", json!("1969-01-01T00:00:00Z"), vec!["order-1@1", "order-1@2", "order-1@3", "order-1@4", "order-1@5"]),
        ] {
            let settings = json!({"categories": ["order"], "start": start});
            let group = TestGroup::create(&app, name, settings.clone()).await;
            assert_eq!(names(&group.next("limit=100").await), expected, "{name}");
            let told = group.status().await["settings"].clone();
            app.put(&format!("/groups/{name}"), &told.to_string()).await.expect(200);
            app.put(&format!("/groups/{name}"), &settings.to_string()).await.expect(200);
        }
        let version = TestGroup::create(&app, "version", json!({"stream": "order-1", "start": 3})).await;
        assert_eq!(names(&version.next("limit=100").await), ["order-1@4", "order-1@5"]);
        let group = TestGroup::at(&app, "end");
        for (to, expected) in [
            (json!("beginning"), 5), (first["cursor"].clone(), 2), (json!("end"), 0), (later, 2),
        ] {
            let answer = group.post("seek", json!({"to": to})).await.expect(200);
            assert_eq!(answer.json()["settings"]["start"], "end", "where it began stays what it was");
            assert_eq!(group.next("limit=100").await.len(), expected, "{to}");
        }
        let taken = { group.post("seek", json!({"to": "beginning"})).await.expect(200); group.next("").await };
        group.post("seek", json!({"to": "beginning"})).await.expect(200);
        let lost = group.ack(&taken).await.expect_problem(409, "lease-lost").json();
        assert_eq!(lost["lost"][0]["reason"], "sought");
        for bad in [json!({}), json!({"to": 1, "x": 1}), json!({"at": "end"})] {
            group.post("seek", bad).await.expect_problem(400, "invalid-json");
        }
        group.post("seek", json!({"to": "soon"})).await.expect_problem(422, "invalid-group");
        let foreign = "MDo5OTktZGVhZGJlZWY"; // 0:999-deadbeef
        if app.store.partitions().count() == 1 {
            group.post("seek", json!({"to": foreign})).await.expect_problem(409, "history-diverged");
            group.post("seek", json!({"to": 1})).await.expect(200);
        } else {
            group.post("seek", json!({"to": foreign})).await.expect_problem(422, "invalid-group");
            group.post("seek", json!({"to": 1})).await.expect_problem(422, "invalid-group");
        }
    }
}

test_app! {
    async fn a_paused_group_hands_out_nothing(app) {
        append(&app, "order-1", "placed", 2).await;
        let group = TestGroup::create(&app, "g", json!({})).await;
        let taken = group.next("").await;
        assert_eq!(app.post("/groups/g/pause", &[], "").await.expect(200).json()["paused"], true);
        assert!(group.next("").await.is_empty());
        assert_eq!(group.status().await["paused"], true);
        group.ack(&taken).await.expect(200);
        assert_eq!(app.post("/groups/g/resume", &[], "").await.expect(200).json()["paused"], false);
        assert_eq!(group.one().await.name(), "order-1@2");
    }
}

/// A group of the same name, made anew, has nothing of the old one.
#[tokio::test]
async fn a_group_made_anew_begins_anew() {
    let app = TestApp::start(4).await;
    append(&app, "order-1", "placed", 3).await;
    let group = TestGroup::create(&app, "g", json!({})).await;
    let taken = group.next("limit=2").await;
    group.nack(&taken[..1], "park").await.expect(200);
    app.delete("/groups/g").await.expect(204);
    let group = TestGroup::create(&app, "g", json!({})).await;
    assert_eq!(group.numbers(&["lag", "in_flight", "parked"]).await, [3, 0, 0]);
    group.ack(&taken[1..]).await.expect_problem(409, "lease-lost");
    assert_eq!(group.next("limit=10").await.len(), 3);
}
