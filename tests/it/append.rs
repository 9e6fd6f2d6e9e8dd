//! Appending: what is answered, the conditions, the conflict.

use serde_json::{Value, json};

const ONE: &str = r#"{"events":[{"type":"placed","data":{"total":0.10}}]}"#;
const TWO: &str = r#"{"events":[{"type":"a","data":1},{"type":"b","data":2}]}"#;

test_app! {
    async fn an_append_says_where_its_events_are(app) {
        let answer = app.append("order-1", TWO).await.expect(201);
        assert_eq!(answer.header("etag"), "\"2\"");
        assert_eq!(answer.header("location"), "events/1");
        assert_eq!(answer.header("streamkeep-durability"), "fsync");
        let partition = app.store.partition(&streamkeep::model::StreamId::parse("order-1").unwrap()).get();
        let expected = json!({"stream": "order-1", "first_version": 1, "version": 2, "partition": partition,
            "position": 2, "count": 2, "duplicate": false});
        let mut told = answer.json();
        let cursor = told.as_object_mut().unwrap().remove("cursor").unwrap();
        assert_eq!(told, expected);
        let next = app.append("order-1", ONE).await.expect(201);
        assert_eq!((next.header("etag"), next.header("location")), ("\"3\"", "events/3"));
        assert_eq!(next.json()["position"], 3);
        let after = app.get(&format!("/events?after={}", cursor.as_str().unwrap())).await.expect(200).json();
        assert_eq!(after["events"].as_array().unwrap().len(), 1, "the cursor is that of the last event: {after}");
    }
}

test_app! {
    async fn the_conditions_hold_or_nothing_is_written(app) {
        // Conditions that hold for a stream without events; each writes to a stream of its own.
        for (number, condition) in [("if-match", "\"0\""), ("if-none-match", "*"), ("if-match", "0"), ("if-match", "W/\"0\""),
            ("if-match", "\"7\", \"0\"")].iter().enumerate() {
            app.append_with(&format!("new-{number}"), &[*condition], ONE).await.expect(201);
        }
        for condition in [("if-match", "*"), ("if-match", "\"1\""), ("if-match", "\"1\", \"2\"")] {
            let conflict = app.append_with("none-1", &[condition], ONE).await.expect_problem(409, "version-conflict");
            assert_eq!(conflict.header("etag"), "\"0\"");
            app.get("/streams/none-1").await.expect_problem(404, "stream-not-found");
        }
        app.append("order-1", TWO).await.expect(201);
        for condition in [("if-match", "\"0\""), ("if-none-match", "*"), ("if-match", "\"1\""), ("if-match", "\"3\""),
            ("if-match", "\"9007199254740991\""), ("if-match", "\"1\", \"3\"")] {
            let conflict = app.append_with("order-1", &[condition], ONE).await.expect_problem(409, "version-conflict");
            assert_eq!(conflict.header("etag"), "\"2\"");
            assert_eq!(conflict.json()["current_version"], 2);
            assert_eq!(conflict.json()["stream"], "order-1");
        }
        for (version, condition) in [(3, "\"2\""), (4, "*"), (5, "W/\"4\""), (6, "5"), (7, "\"1\",\"6\",\"9\"")] {
            let answer = app.append_with("order-1", &[("if-match", condition)], ONE).await.expect(201);
            assert_eq!(answer.json()["version"], version);
        }
    }
}

test_app! {
    async fn a_conflict_names_what_was_expected(app) {
        app.append("order-1", TWO).await.expect(201);
        for (condition, expected) in [(("if-match", "\"1\", 7"), json!([1, 7])), (("if-none-match", "*"), json!([0]))] {
            let conflict = app.append_with("order-1", &[condition], ONE).await.expect_problem(409, "version-conflict");
            assert_eq!(conflict.json()["expected_version"], expected);
        }
        let conflict = app.append_with("order-2", &[("if-match", "*")], ONE).await.expect_problem(409, "version-conflict");
        assert_eq!(conflict.json()["expected_version"], Value::Null);
        assert_eq!(conflict.json()["retryable"], false);
    }
}

test_app! {
    async fn a_conflict_brings_the_missed_events_on_demand(app) {
        for _ in 0..3 {
            app.append("order-1", TWO).await.expect(201);
        }
        let path = "/streams/order-1/events?include=events";
        let conflict = app.post(path, &[("if-match", "\"4\"")], ONE).await.expect_problem(409, "version-conflict");
        let versions: Vec<_> = conflict.json()["events"].as_array().unwrap().iter().map(|e| e["version"].clone()).collect();
        assert_eq!(versions, [5, 6]);
        let all = app.post(path, &[("if-none-match", "*")], ONE).await.expect_problem(409, "version-conflict");
        assert_eq!(all.json()["events"].as_array().unwrap().len(), 6);
        let without = app.append_with("order-1", &[("if-match", "\"4\"")], ONE).await.expect_problem(409, "version-conflict");
        assert!(without.json().get("events").is_none());
        app.post("/streams/order-1/events?include=all", &[], ONE).await.expect_problem(400, "invalid-parameter");
    }
}

test_app! {
    async fn data_comes_back_byte_for_byte(app) {
        for (number, data) in [
            r#"{"big":9007199254740993,"small":0.10,"exp":1E+2,"twice":1,"twice":2}"#, r#""\u00e9\n\"""#, "null", "[ 1 , 2 ]",
            "-0.0", "12345678901234567890123456789", "{ \"a\" :\t[ ] }", "\"日本語 🎈\"",
        ].iter().enumerate() {
            let body = format!(r#"{{"events":[{{"type":"t","data": {data} ,"metadata":{{"k" : 1.50}}}}]}}"#);
            app.append(&format!("bytes-{number}"), &body).await.expect(201);
            let text = app.get(&format!("/streams/bytes-{number}")).await.expect(200).text;
            assert!(text.contains(&format!(r#""data":{data},"metadata":{{"k" : 1.50}}}}"#)), "{text}");
        }
    }
}

test_app! {
    async fn an_event_carries_all_that_is_known_of_it(app) {
        let body = r#"{"events":[{"id":"my id","type":"höhe \"x\"","data":{"a":1},"metadata":{"user":"ada"}},{"type":"t","data":0}]}"#;
        app.append("order-1", body).await.expect(201);
        let page = app.get("/streams/order-1").await.expect(200).json();
        let event = &page["events"][0];
        assert_eq!((&event["id"], &event["type"]), (&"my id".into(), &"höhe \"x\"".into()));
        assert_eq!((&event["stream"], &event["version"], &event["position"]), (&"order-1".into(), &1.into(), &1.into()));
        assert_eq!((&event["data"], &event["metadata"]), (&json!({"a": 1}), &json!({"user": "ada"})));
        let time = event["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        let second = &page["events"][1];
        assert_eq!(second["metadata"], json!({}));
        let id = uuid::Uuid::try_parse(second["id"].as_str().unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 7);
    }
}

test_app! {
    async fn any_redis_client_can_read_the_stream(app) {
        app.append("order-12345", r#"{"events":[{"type":"placed","data":{"total":42},"metadata":{"user":"ada"}}]}"#).await.expect(201);
        let prefix = if app.store.partitions().count() == 1 {
            String::new()
        } else {
            let partition = app.store.partition(&streamkeep::model::StreamId::parse("order-12345").unwrap());
            format!("{{{}}}:", partition.get())
        };
        let mut redis = app.redis.connection().await;
        let entries: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg(format!("{prefix}events:order-12345")).arg("-").arg("+").query_async(&mut redis).await.unwrap();
        let (id, fields) = &entries[0];
        assert_eq!(id, "0-1");
        let names: Vec<_> = fields.iter().step_by(2).map(String::as_str).collect();
        assert_eq!(names, ["id", "type", "data", "metadata", "timestamp", "version", "position"]);
        let values: Vec<_> = fields.iter().skip(1).step_by(2).map(String::as_str).collect();
        assert_eq!((values[1], values[2], values[3]), ("placed", r#"{"total":42}"#, r#"{"user":"ada"}"#));
        assert!(values[4].parse::<u64>().unwrap() > 1_700_000_000_000);
        assert_eq!((values[5], values[6]), ("1", "1"));
        let pointers: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg(format!("{prefix}log")).arg("-").arg("+").query_async(&mut redis).await.unwrap();
        let fields = ["s", "order-12345", "v", "1", "t", "placed"].map(str::to_owned).to_vec();
        assert_eq!(pointers, [("0-1".to_owned(), fields)]);
    }
}

test_app! {
    async fn a_stream_that_somebody_trimmed_by_hand_heals(app) {
        if app.store.partitions().count() > 1 {
            return; // the names of the keys are what differs, and another test sees to them
        }
        for _ in 0..3 {
            app.append("order-1", TWO).await.expect(201);
        }
        let mut redis = app.redis.connection().await;
        redis::cmd("XTRIM").arg("events:order-1").arg("MAXLEN").arg("=").arg(2).exec_async(&mut redis).await.unwrap();
        let conflict = app.append_with("order-1", &[("if-match", "\"2\"")], ONE).await.expect_problem(409, "version-conflict");
        assert_eq!(conflict.json()["current_version"], 6);
        assert_eq!(app.append_with("order-1", &[("if-match", "\"6\"")], ONE).await.expect(201).json()["version"], 7);
        assert_eq!(app.append("order-1", ONE).await.expect(201).json()["version"], 8);
        let page = app.get("/streams/order-1").await.expect(200).json();
        assert_eq!((&page["version"], &page["events"][0]["version"]), (&8.into(), &5.into()));
        // Whoever pages through it misses nothing, though Redis now counts fewer events than there were.
        let first = app.get("/streams/order-1?limit=1").await.expect(200).json();
        assert_eq!((&first["events"][0]["version"], &first["next"]), (&5.into(), &6.into()));
        let last = app.get("/streams/order-1?from=7&limit=1").await.expect(200).json();
        assert_eq!(last["next"], 8);
        redis::cmd("XTRIM").arg("log").arg("MAXLEN").arg("=").arg(1).exec_async(&mut redis).await.unwrap();
        assert_eq!(app.append("order-1", ONE).await.expect(201).json()["position"], 9);
    }
}

test_app! {
    async fn a_tombstoned_stream_takes_nothing(app) {
        if app.store.partitions().count() > 1 {
            return; // as above
        }
        app.append("order-1", ONE).await.expect(201);
        let mut redis = app.redis.connection().await;
        redis::cmd("HSET").arg("stream:order-1").arg("tombstone").arg(1).exec_async(&mut redis).await.unwrap();
        redis::cmd("XSETID").arg("events:order-1").arg("18446744073709551615-18446744073709551615").exec_async(&mut redis).await.unwrap();
        app.append("order-1", ONE).await.expect_problem(410, "stream-deleted");
        app.append_with("order-1", &[("if-match", "\"1\"")], ONE).await.expect_problem(410, "stream-deleted");
        app.get("/streams/order-1").await.expect_problem(410, "stream-deleted");
    }
}

test_app! {
    async fn what_streamkeep_did_not_write_is_left_alone(app) {
        if app.store.partitions().count() > 1 {
            return; // as above
        }
        let mut redis = app.redis.connection().await;
        redis::cmd("XADD").arg("events:foreign-1").arg("*").arg("type").arg("x").exec_async(&mut redis).await.unwrap();
        redis::cmd("SET").arg("events:text-1").arg("x").exec_async(&mut redis).await.unwrap();
        for stream in ["foreign-1", "text-1"] {
            app.append_with(stream, &[("if-match", "\"0\"")], ONE).await.expect_problem(500, "storage-corrupt");
            app.append(stream, ONE).await.expect_problem(500, "storage-corrupt");
            app.get(&format!("/streams/{stream}")).await.expect_problem(500, "storage-corrupt");
        }
        assert_eq!(redis::cmd("XLEN").arg("events:foreign-1").query_async::<u64>(&mut redis).await.unwrap(), 1);
        assert_eq!(redis::cmd("EXISTS").arg("log").query_async::<u64>(&mut redis).await.unwrap(), 0);
        // The events of a request that cannot get its place in the log are there once, however often it is repeated.
        redis::cmd("XADD").arg("log").arg("*").arg("msg").arg("hello").exec_async(&mut redis).await.unwrap();
        app.append_with("order-1", &[("idempotency-key", "k")], ONE).await.expect_problem(500, "storage-corrupt");
        app.append_with("order-1", &[("idempotency-key", "k")], ONE).await.expect(200);
        assert_eq!(redis::cmd("XLEN").arg("events:order-1").query_async::<u64>(&mut redis).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_condition_can_be_demanded() {
    let redis = crate::app::TestRedis::start().await;
    let app = crate::app::TestApp::start_with(redis, 1, |config| config.require_condition = true).await;
    app.append("order-1", ONE).await.expect_problem(428, "precondition-required");
    app.append_with("order-1", &[("if-match", "\"0\"")], ONE).await.expect(201);
}

#[tokio::test]
async fn everysec_is_told_as_memory() {
    let everysec = streamkeep::redis_server::AppendFsync::Everysec;
    let redis = crate::app::TestRedis::start_with(|config| config.append_fsync = everysec).await;
    let app = crate::app::TestApp::start_on(redis, 1).await;
    assert_eq!(app.append("order-1", ONE).await.expect(201).header("streamkeep-durability"), "memory");
    // What is told follows what Redis does.
    let mut plain = app.redis.connection().await;
    redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg("always").exec_async(&mut plain).await.unwrap();
    crate::app::eventually("the level follows", async || {
        app.append("order-1", ONE).await.expect(201).header("streamkeep-durability") == "fsync"
    })
    .await;
}

test_app! {
    /// In the metadata of each event, as CloudEvents name it; a repeat in another trace is the same request.
    async fn events_keep_the_trace_of_their_request(app) {
        const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        const LATER: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00";
        let body = r#"{"events":[{"id":"1","type":"a","data":1},{"id":"2","type":"b","data":2,"metadata":{"n" : 1.50}},
            {"id":"3","type":"c","data":3,"metadata":{"traceparent":"mine"}}]}"#;
        let trace = [("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")];
        app.append_with("order-1", &trace, body).await.expect(201);
        app.append_with("order-1", &[("traceparent", LATER)], body).await.expect(200);
        let text = app.get("/streams/order-1").await.expect(200).text;
        let members = format!(r#""traceparent":"{PARENT}","tracestate":"a=1,b=2"}}"#);
        for metadata in [format!("{{{members}"), format!(r#"{{"n" : 1.50,{members}"#), r#"{"traceparent":"mine"}"#.to_owned()] {
            assert!(text.contains(&format!(r#""metadata":{metadata}"#)), "{metadata}: {text}");
        }
        // What is none is no reason to refuse a request.
        app.append_with("order-2", &[("traceparent", "none"), ("tracestate", "a=1")], ONE).await.expect(201);
        assert_eq!(app.get("/streams/order-2").await.expect(200).json()["events"][0]["metadata"], json!({}));
    }
}

/// Appends that wait together leave in few calls of the function, and what becomes of one is no matter to the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_share_a_call_stand_for_themselves() {
    const GOOD: usize = 60;
    let app = std::sync::Arc::new(crate::app::TestApp::start(1).await);
    app.append("order-1", ONE).await.expect(201);
    let mut plain = app.redis.connection().await;
    // What Streamkeep did not write.
    redis::cmd("SET").arg("events:strange-1").arg("x").exec_async(&mut plain).await.unwrap();
    let before = crate::groups_wait::calls(&app).await;
    redis::cmd("CLIENT").arg("PAUSE").arg(60_000).arg("WRITE").exec_async(&mut plain).await.unwrap();

    let send = |stream: String, condition: &'static str| {
        let app = std::sync::Arc::clone(&app);
        tokio::spawn(async move { app.append_with(&stream, &[("if-match", condition)], TWO).await })
    };
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for number in 0..GOOD {
        good.push(send(format!("order-{}", number + 10), "\"0\""));
        if number % 20 == 10 {
            bad.push((409, send("order-1".to_owned(), "\"7\"")));
            bad.push((500, send("strange-1".to_owned(), "\"0\"")));
        }
    }
    // With the one that asks.
    let all = format!("streamkeep_http_requests_in_flight {}\n", GOOD + bad.len() + 1);
    let under_way = async || app.get("/metrics").await.expect(200).text.contains(&all);
    crate::app::eventually("all are under way", under_way).await;
    redis::cmd("CLIENT").arg("UNPAUSE").exec_async(&mut plain).await.unwrap();

    let mut positions = Vec::new();
    for answer in good {
        positions.push(answer.await.unwrap().expect(201).json()["position"].as_u64().unwrap());
    }
    for (status, answer) in bad {
        let answer = answer.await.unwrap().expect(status);
        assert_eq!(status == 409, answer.text.contains(r#""current_version":1"#), "{answer:?}");
    }
    positions.sort_unstable();
    let expected: Vec<u64> = (0..GOOD as u64).map(|number| 3 + 2 * number).collect();
    assert_eq!(positions, expected, "without gaps, behind the first event");
    let calls = crate::groups_wait::calls(&app).await - before;
    assert!(calls < GOOD as u64 / 2, "{calls} calls");
}
