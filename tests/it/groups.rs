//! What the tests of consumer groups share: a client of one group.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::app::{Answer, TestApp};

/// A consumer group at an instance of the service.
pub struct TestGroup<'a> {
    pub app: &'a TestApp,
    pub path: String,
}

/// A delivery, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub lease: String,
    pub count: u64,
    pub stream: String,
    pub version: u64,
}

impl Taken {
    pub fn of(delivery: &Value) -> Self {
        let event = &delivery["event"];
        Self {
            lease: delivery["lease"].as_str().unwrap().to_owned(),
            count: delivery["delivery_count"].as_u64().unwrap(),
            stream: event["stream"].as_str().unwrap().to_owned(),
            version: event["version"].as_u64().unwrap(),
        }
    }

    /// Stream and version.
    pub fn name(&self) -> String {
        format!("{}@{}", self.stream, self.version)
    }
}

/// The names of deliveries, in order of their text.
pub fn names(taken: &[Taken]) -> Vec<String> {
    let mut names: Vec<_> = taken.iter().map(Taken::name).collect();
    names.sort();
    names
}

pub fn leases(taken: &[Taken]) -> Vec<&str> {
    taken.iter().map(|taken| taken.lease.as_str()).collect()
}

impl<'a> TestGroup<'a> {
    /// Creates a group.
    pub async fn create(app: &'a TestApp, name: &str, settings: Value) -> Self {
        app.put(&format!("/groups/{name}"), &settings.to_string()).await.expect(201);
        Self::at(app, name)
    }

    /// A group that is there.
    pub fn at(app: &'a TestApp, name: &str) -> Self {
        Self { app, path: format!("/groups/{name}") }
    }

    pub async fn next(&self, query: &str) -> Vec<Taken> {
        let answer = self.app.get(&format!("{}/next?{query}", self.path)).await.expect(200);
        assert_eq!(answer.header("cache-control"), "no-store");
        answer.json()["deliveries"].as_array().unwrap().iter().map(Taken::of).collect()
    }

    /// The only event that there is to take.
    pub async fn one(&self) -> Taken {
        let mut taken = self.next("limit=10").await;
        assert_eq!(taken.len(), 1, "{taken:?}");
        taken.remove(0)
    }

    pub async fn post(&self, what: &str, body: Value) -> Answer {
        self.app.post(&format!("{}/{what}", self.path), &[], &body.to_string()).await
    }

    /// Takes and acks until nothing comes any more. Answers with the names of what came.
    pub async fn drain(&self) -> BTreeSet<String> {
        let mut came = BTreeSet::new();
        loop {
            let taken = self.next("limit=100").await;
            if taken.is_empty() {
                return came;
            }
            self.ack(&taken).await.expect(200);
            came.extend(names(&taken));
        }
    }

    pub async fn ack(&self, taken: &[Taken]) -> Answer {
        self.post("ack", json!({ "leases": leases(taken) })).await
    }

    pub async fn nack(&self, taken: &[Taken], action: &str) -> Answer {
        self.post("nack", json!({ "leases": leases(taken), "action": action })).await
    }

    pub async fn status(&self) -> Value {
        self.app.get(&self.path).await.expect(200).json()
    }

    /// Some numbers of the status.
    pub async fn numbers(&self, members: &[&str]) -> Vec<u64> {
        let status = self.status().await;
        members.iter().map(|member| status[member].as_u64().unwrap_or_else(|| panic!("{member}: {status}"))).collect()
    }
}

/// Appends `count` events of a type to a stream.
pub async fn append(app: &TestApp, stream: &str, kind: &str, count: usize) -> Value {
    let events: Vec<_> = (0..count).map(|number| json!({ "type": kind, "data": number })).collect();
    app.append(stream, &json!({ "events": events }).to_string()).await.expect(201).json()
}
