//! The tour by the generated Rust client. STREAMKEEP_URL says where; with STREAMKEEP_TOKEN a key is needed there.

use std::env;

use serde_json::json;
use streamkeep_client::{
    apis::{
        Error,
        configuration::Configuration,
        groups_api::{GetGroupError, ack, get_group, put_group, take_next},
        log_api::read_log,
        streams_api::{append_events, read_stream},
    },
    models::{Ack, AppendRequest, ConflictProblem, Direction, GroupSettings, NewEvent, Ordering, Start},
};

const ORDER: &str = "order-12345";

async fn streams(client: &Configuration) {
    let mut paid = NewEvent::new(Some(json!({"by": "card"})), "order-paid".to_owned());
    paid.metadata = Some([("user".to_owned(), json!("ada"))].into());
    let placed = NewEvent::new(Some(json!({"total": 42.5})), "order-placed".to_owned());
    let body = AppendRequest::new(vec![placed, paid]);
    let appended = append_events(client, ORDER, body.clone(), None, None, Some("*"), None, None, None, None).await;
    assert_eq!(appended.expect("appended").version, 2);

    let conflict =
        append_events(client, ORDER, body, Some("events"), Some("\"1\""), None, None, None, None, None).await;
    let Err(Error::ResponseError(response)) = conflict else { panic!("{conflict:?}") };
    assert_eq!(response.status.as_u16(), 409);
    // `response.entity` is the first variant that fits, which is that of 400: problems are told apart by their status.
    let conflict: ConflictProblem = serde_json::from_str(&response.content).expect("a conflict");
    assert_eq!((conflict.code.as_str(), conflict.current_version), ("version-conflict", Some(2)));
    assert_eq!(conflict.expected_version, Some(Some(vec![1])));
    assert_eq!(conflict.events.expect("what was missed")[0].r#type, "order-paid");

    let (mut versions, mut place) = (Vec::new(), Some(1));
    while place.is_some() {
        let direction = Some(Direction::Forward);
        let page = read_stream(client, ORDER, place, None, Some(1), direction, None, None, None, None, None).await;
        let page = page.expect("a page");
        versions.extend(page.events.iter().map(|event| event.version));
        place = page.next;
    }
    assert_eq!(versions, [1, 2]);

    let category = Some(vec!["order".to_owned()]);
    let log = read_log(client, None, None, None, category, None, None, None, None, None, None, None).await;
    assert_eq!(log.expect("a page of the log").events[1].metadata["user"], "ada");
}

async fn group(client: &Configuration) {
    let settings = GroupSettings {
        categories: Some(vec!["order".to_owned()]),
        ordering: Some(Ordering::Stream),
        start: Some(Box::new(Start::String("beginning".to_owned()))),
        ..GroupSettings::new()
    };
    let created = put_group(client, "mailer", settings).await.expect("created");
    assert_eq!(created.settings.ordering, Some(Ordering::Stream));

    let taken = take_next(client, "mailer", Some("ada"), Some(10), Some(5)).await.expect("deliveries");
    let leases: Vec<_> = taken.deliveries.into_iter().map(|delivery| delivery.lease).collect();
    assert_eq!(leases.len(), 1, "in order: the second event waits for the first");
    assert_eq!(ack(client, "mailer", Ack::new(leases)).await.expect("acked").acked, 1);

    let missing = get_group(client, "nobody", None, None).await;
    let Err(Error::ResponseError(response)) = missing else { panic!("{missing:?}") };
    assert_eq!(response.status.as_u16(), 404);
    let Some(GetGroupError::Status400(problem)) = response.entity else { panic!("{:?}", response.content) };
    assert_eq!(problem.code, "group-not-found");
}

async fn without_key(client: &Configuration) {
    let nobody = Configuration { bearer_access_token: None, ..client.clone() };
    let answer = read_stream(&nobody, ORDER, None, None, None, None, None, None, None, None, None).await;
    match answer {
        Ok(_) => assert!(client.bearer_access_token.is_none()),
        Err(Error::ResponseError(response)) => assert_eq!(response.status.as_u16(), 401),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::main]
async fn main() {
    let client = Configuration {
        base_path: env::var("STREAMKEEP_URL").unwrap_or_else(|_| "http://127.0.0.1:7070".to_owned()),
        bearer_access_token: env::var("STREAMKEEP_TOKEN").ok(),
        ..Configuration::new()
    };
    streams(&client).await;
    group(&client).await;
    without_key(&client).await;
}
