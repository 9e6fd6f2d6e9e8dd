//! Appending: conditions, conflicts, retries.

const ONE: &str = r#"{"events":[{"type":"placed","data":{"total":0.10}}]}"#;

test_app! {
    async fn an_append_says_where_its_events_are(app) {
        let answer = app.append("order-1", r#"{"events":[{"type":"a","data":1},{"type":"b","data":2}]}"#).await.expect(201);
        assert_eq!(answer.header("etag"), "\"2\"");
        assert_eq!(answer.header("location"), "events/1");
        assert_eq!(answer.header("streamkeep-durability"), "fsync");
        let result = answer.json();
        assert_eq!(result["stream"], "order-1");
        assert_eq!((&result["first_version"], &result["version"]), (&1.into(), &2.into()));
        assert_eq!((&result["count"], &result["duplicate"]), (&2.into(), &false.into()));
        assert_eq!(result["position"], 2);
        app.append("order-1", ONE).await.expect(201);
    }
}
