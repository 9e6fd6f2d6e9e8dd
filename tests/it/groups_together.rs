//! Requests to a group at the same time: they share calls, and each gets its own.

use std::{collections::HashSet, pin::pin};

use futures::{future::join_all, poll};
use serde_json::json;
use streamkeep::{
    model::{GroupName, LeaseToken, Settled},
    store::Next,
};

use crate::{
    app::TestApp,
    groups::{TestGroup, append},
    groups_wait::calls,
};

fn name(text: &str) -> GroupName {
    GroupName::parse(text).unwrap()
}

/// Of one thread, so that all ask before the first call leaves.
async fn ask_together(app: &TestApp, limits: &[usize]) -> Vec<Next> {
    let consumers: Vec<GroupName> = (0..limits.len()).map(|number| name(&format!("c{number}"))).collect();
    let group = name("g");
    let asks = consumers.iter().zip(limits).map(|(consumer, limit)| app.store.next(&group, consumer, *limit, 0));
    join_all(asks).await.into_iter().map(Result::unwrap).collect()
}

async fn with_events(settings: serde_json::Value, streams: usize, events: usize) -> TestApp {
    let app = TestApp::start(1).await;
    for stream in 0..streams {
        append(&app, &format!("a-{stream}"), "x", events).await;
    }
    TestGroup::create(&app, "g", settings).await;
    // Nothing is to be looked up first.
    assert_eq!(ask_together(&app, &[1]).await[0].deliveries.len(), 1);
    app
}

#[tokio::test]
async fn whoever_asks_together_shares_a_call_and_gets_its_own() {
    for settings in [json!({}), json!({"ordering": "stream"}), json!({"categories": ["a"]}), json!({"types": ["x"]})] {
        let app = with_events(settings.clone(), 40, 1).await;
        let before = calls(&app).await;
        let limits = [1, 3, 1, 10, 5, 40, 1];
        let found = ask_together(&app, &limits).await;
        assert_eq!(calls(&app).await - before, 1, "{settings}");
        let counts: Vec<usize> = found.iter().map(|next| next.deliveries.len()).collect();
        assert_eq!(counts, [1, 3, 1, 10, 5, 19, 0], "{settings}: who asks first is served first");
        let positions: Vec<_> =
            found.iter().flat_map(|next| &next.deliveries).map(|delivery| delivery.lease.position.get()).collect();
        assert_eq!(positions, (2..=40).collect::<Vec<_>>(), "{settings}");

        let status = TestGroup::at(&app, "g").status().await;
        let in_flight: Vec<_> = (0..7).map(|number| in_flight(&status, &format!("c{number}"))).collect();
        assert_eq!(in_flight, [2, 3, 1, 10, 5, 19, 0], "{settings}: each event is its consumer's in Redis too");
    }
}

fn in_flight(status: &serde_json::Value, consumer: &str) -> u64 {
    let consumers = status["consumers"].as_array().unwrap();
    consumers.iter().find(|one| one["name"] == consumer).map_or(0, |one| one["in_flight"].as_u64().unwrap())
}

#[tokio::test]
async fn what_fits_in_no_call_comes_with_the_next() {
    let app = with_events(json!({"max_in_flight": 400}), 1, 600).await;
    let found = ask_together(&app, &[200, 200, 40]).await;
    let counts: Vec<usize> = found.iter().map(|next| next.deliveries.len()).collect();
    // Each of the calls is on its way before the other is answered: either may be the first.
    let possible = [[200, 199, 0], [159, 200, 40]];
    assert!(possible.iter().any(|possible| counts == possible), "{counts:?}: 250 in a call, 400 in flight");
}

#[tokio::test]
async fn a_lease_that_two_ack_together_is_acked_once() {
    for settings in [json!({}), json!({"ordering": "stream"})] {
        let app = with_events(settings, 10, 1).await;
        let found = ask_together(&app, &[9]).await;
        let leases: Vec<LeaseToken> = found[0].deliveries.iter().map(|delivery| delivery.lease.clone()).collect();
        let group = name("g");
        let before = calls(&app).await;
        let parts = [&leases[..1], &leases[1..4], &leases[3..6], &leases[6..]];
        let answers = join_all(parts.map(|part| app.store.ack(&group, part))).await;
        let calls = calls(&app).await - before;
        assert_eq!(calls, 2, "the third part waits for the second: both have the fourth lease");
        let answers: Vec<Vec<Settled>> = answers.into_iter().map(Result::unwrap).collect();
        let all = |count| vec![Settled::Done; count];
        assert_eq!(answers, [all(1), all(3), vec![Settled::Already, Settled::Done, Settled::Done], all(3)]);
    }
}

#[tokio::test]
async fn whoever_has_gone_before_its_turn_takes_nothing() {
    let app = with_events(json!({}), 3, 1).await;
    let (group, gone, here) = (name("g"), name("gone"), name("here"));
    {
        let mut ask = pin!(app.store.next(&group, &gone, 1, 0));
        assert!(poll!(&mut ask).is_pending());
    }
    let found = app.store.next(&group, &here, 10, 0).await.unwrap();
    let positions: HashSet<u64> = found.deliveries.iter().map(|delivery| delivery.lease.position.get()).collect();
    assert_eq!(positions, HashSet::from([2, 3]));
}
