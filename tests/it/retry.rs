//! Repeating an append: safe for ever, by event id or key.

use serde_json::json;

const WITH_IDS: &str = r#"{"events":[{"id":"a","type":"t","data":{"n":1}},{"id":"01890a5d-ac96-774b-bcce-b302099a8057","type":"t","data":2}]}"#;
const WITHOUT: &str = r#"{"events":[{"type":"t","data":{"n":1}},{"type":"u","data":2}]}"#;

test_app! {
    async fn the_same_ids_answer_with_the_first_result(app) {
        app.append("order-1", WITHOUT).await.expect(201);
        let first = app.append_with("order-1", &[("if-match", "\"2\"")], WITH_IDS).await.expect(201);
        app.append("order-1", WITHOUT).await.expect(201);
        // Whatever the condition says by now.
        for condition in [("if-match", "\"2\""), ("if-none-match", "*"), ("if-match", "*"), ("if-match", "\"99\"")] {
            let again = app.append_with("order-1", &[condition], WITH_IDS).await.expect(200);
            let mut expected = first.json();
            expected["duplicate"] = json!(true);
            assert_eq!(again.json(), expected);
            assert_eq!((again.header("etag"), again.header("location")), ("\"4\"", "events/3"));
        }
        assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], 6);
    }
}

test_app! {
    async fn metadata_may_differ_in_a_repeat_and_nothing_else(app) {
        app.append("order-1", WITH_IDS).await.expect(201);
        let traced = WITH_IDS.replace(r#""type""#, r#""metadata":{"trace":1},"type""#);
        app.append("order-1", &traced).await.expect(200);
        let other_type = WITH_IDS.replacen(r#""type":"t""#, r#""type":"x""#, 1);
        let other_data = WITH_IDS.replace(r#""data":2"#, r#""data":2.0"#);
        for body in [other_type, other_data] {
            let problem = app.append("order-1", &body).await.expect_problem(422, "event-id-reused").json();
            assert!(problem["errors"][0]["pointer"].as_str().unwrap().starts_with("#/events/"), "{problem}");
        }
        assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], 2);
    }
}

test_app! {
    async fn a_batch_that_partly_exists_is_refused(app) {
        app.append("order-1", WITH_IDS).await.expect(201);
        let event = |id: &str, data: &str| format!(r#"{{"id":"{id}","type":"t","data":{data}}}"#);
        let uuid = "01890a5d-ac96-774b-bcce-b302099a8057";
        let partly = [event("a", r#"{"n":1}"#), event("new", "3")];
        let swapped = [event(uuid, "2"), event("a", r#"{"n":1}"#)];
        for events in [partly, swapped] {
            let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
            app.append("order-1", &body).await.expect_problem(409, "duplicate-event-id");
        }
        let single = format!(r#"{{"events":[{}]}}"#, event(uuid, "2"));
        assert_eq!(app.append("order-1", &single).await.expect(200).json()["first_version"], 2);
        assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], 2);
        // Ids are unique in their stream, not beyond.
        app.append("order-2", WITH_IDS).await.expect(201);
    }
}

test_app! {
    async fn a_key_makes_a_request_repeatable(app) {
        for (number, key) in ["\"8e03978e-40d5\"", "bare-key", "\"with \\\" and \\\\\""].iter().enumerate() {
            let stream = format!("order-{number}");
            let first = app.append_with(&stream, &[("idempotency-key", key)], WITHOUT).await.expect(201);
            app.append(&stream, WITHOUT).await.expect(201);
            let again = app.append_with(&stream, &[("idempotency-key", key), ("if-match", "\"0\"")], WITHOUT).await.expect(200);
            assert_eq!(again.json()["first_version"], first.json()["first_version"]);
            assert_eq!(again.json()["duplicate"], true);
            let other = WITHOUT.replace("\"u\"", "\"v\"");
            app.append_with(&stream, &[("idempotency-key", key)], &other).await.expect_problem(422, "idempotency-key-reused");
            app.append_with(&stream, &[("idempotency-key", "another")], WITHOUT).await.expect(201);
        }
        // Fewer or more events with the same key are another request.
        let one = r#"{"events":[{"type":"t","data":{"n":1}}]}"#;
        let three = WITHOUT.replace("]}", r#",{"type":"t","data":3}]}"#);
        for body in [one, &three] {
            let answer = app.append_with("order-1", &[("idempotency-key", "bare-key")], body).await;
            answer.expect_problem(422, "idempotency-key-reused");
        }
        // The quoted and the bare form are one key.
        assert_eq!(app.append_with("order-1", &[("idempotency-key", "\"bare-key\"")], WITHOUT).await.expect(200).json()["version"], 2);
    }
}

test_app! {
    async fn a_conflict_leaves_no_trace_in_the_index(app) {
        app.append("order-1", WITHOUT).await.expect(201);
        app.append_with("order-1", &[("if-match", "\"1\"")], WITH_IDS).await.expect_problem(409, "version-conflict");
        app.append_with("order-1", &[("if-match", "\"2\"")], WITH_IDS).await.expect(201);
        assert_eq!(app.append("order-1", WITH_IDS).await.expect(200).json()["first_version"], 3);
    }
}

test_app! {
    async fn many_ids_of_one_stream_stay_known(app) {
        let batch = |from: usize| {
            let events: Vec<_> = (from..from + 1_000).map(|n| json!({"id": format!("id-{n}"), "type": "t", "data": n})).collect();
            json!({ "events": events }).to_string()
        };
        for from in [0, 1_000, 2_000] {
            app.append("order-1", &batch(from)).await.expect(201);
        }
        for from in [0, 1_000, 2_000] {
            assert_eq!(app.append("order-1", &batch(from)).await.expect(200).json()["first_version"], from + 1);
        }
        app.append("order-1", &batch(2_500)).await.expect_problem(409, "duplicate-event-id");
    }
}

test_app! {
    async fn without_ids_nothing_is_indexed(app) {
        app.append("order-1", WITHOUT).await.expect(201);
        let mut redis = app.redis.connection().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*ids:*").query_async(&mut redis).await.unwrap();
        assert!(keys.is_empty(), "{keys:?}");
    }
}
