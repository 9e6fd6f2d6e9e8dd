//! The log: all events in commit order, and cursors that know their history.

use serde_json::json;

use crate::app::TestApp;

/// `count` events over ten streams in two categories.
async fn fill(app: &TestApp, count: usize) {
    for n in 0..count {
        let stream = format!("{}-{}", if n % 2 == 0 { "order" } else { "invoice" }, n % 10);
        app.append(&stream, &json!({"events": [{"type": "t", "data": n}]}).to_string()).await.expect(201);
    }
}

/// Reads pages until caught up; returns the events and the last cursor.
pub async fn read_all(app: &TestApp, query: &str) -> (Vec<serde_json::Value>, String) {
    let (mut events, mut after) = (Vec::new(), String::new());
    for _ in 0..1_000 {
        let cursor = if after.is_empty() { String::new() } else { format!("&after={after}") };
        let page = app.get(&format!("/events?{query}{cursor}")).await.expect(200).json();
        events.extend(page["events"].as_array().unwrap().iter().cloned());
        page["next"].as_str().unwrap().clone_into(&mut after);
        if page["caught_up"] == true {
            return (events, after);
        }
    }
    panic!("the pages do not end");
}

test_app! {
    async fn pages_of_the_log_hold_every_event_once_in_order(app) {
        fill(&app, 60).await;
        for limit in [1, 7, 60, 1000] {
            let (events, after) = read_all(&app, &format!("limit={limit}")).await;
            let mut numbers: Vec<_> = events.iter().map(|event| event["data"].as_u64().unwrap()).collect();
            if app.store.partitions().count() == 1 {
                assert!(numbers.is_sorted());
            }
            numbers.sort_unstable();
            assert_eq!(numbers, (0..60).collect::<Vec<_>>());
            let empty = app.get(&format!("/events?after={after}")).await.expect(200).json();
            assert_eq!((&empty["events"], &empty["caught_up"]), (&json!([]), &json!(true)));
            // Whatever the partition: the versions of a stream rise.
            for stream in events.iter().map(|event| &event["stream"]) {
                let of = events.iter().filter(|event| event["stream"] == *stream);
                assert!(of.map(|event| event["version"].as_u64()).is_sorted());
            }
        }
    }
}

test_app! {
    async fn a_cursor_goes_on_where_it_was_taken(app) {
        fill(&app, 20).await;
        let (_, after) = read_all(&app, "limit=1000").await;
        fill(&app, 20).await;
        let page = app.get(&format!("/events?limit=1000&after={after}")).await.expect(200).json();
        assert_eq!(page["events"].as_array().unwrap().len(), 20);
    }
}

test_app! {
    async fn filters_take_a_category_or_a_stream(app) {
        fill(&app, 60).await;
        let (orders, _) = read_all(&app, "category=order&limit=7").await;
        assert_eq!(orders.len(), 30);
        assert!(orders.iter().all(|event| event["stream"].as_str().unwrap().starts_with("order-")));
        let (one, _) = read_all(&app, "stream=invoice-3&limit=2").await;
        assert_eq!(one.len(), 6);
        assert_eq!(read_all(&app, "category=nothing").await.0.len(), 0);
        for bad in ["category=a-b", "category=", "stream=%2F", "after=x", "after=", "limit=0", "from=1"] {
            let answer = app.get(&format!("/events?{bad}")).await;
            assert_eq!(answer.status, 400, "{bad}: {answer:?}");
        }
    }
}

test_app! {
    async fn a_cursor_of_another_history_is_refused(app) {
        fill(&app, 20).await;
        let (_, after) = read_all(&app, "limit=1000").await;
        let mut redis = app.redis.connection().await;
        redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
        let problem = app.get(&format!("/events?after={after}")).await.expect_problem(409, "history-diverged");
        assert_eq!(problem.json()["head"], 0);
        // The same number of events, and others: the functions are gone too, and come back by themselves.
        fill(&app, 20).await;
        app.get(&format!("/events?after={after}")).await.expect_problem(409, "history-diverged");
        assert_eq!(read_all(&app, "limit=1000").await.0.len(), 20);
    }
}

test_app! {
    async fn removed_events_are_gaps_and_no_errors(app) {
        fill(&app, 20).await;
        let (_, after) = read_all(&app, "limit=1000").await;
        let mut redis = app.redis.connection().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*events:*-9").query_async(&mut redis).await.unwrap();
        for key in keys {
            redis::cmd("DEL").arg(key).exec_async(&mut redis).await.unwrap();
        }
        assert_eq!(read_all(&app, "limit=3").await.0.len(), 18);
        app.get(&format!("/events?after={after}")).await.expect(200);
    }
}
