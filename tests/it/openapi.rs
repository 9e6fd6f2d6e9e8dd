//! The OpenAPI document: that it is committed as it is, keeps the conventions, and says what the service does.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    app::{Answer, TestApp},
    input::GOOD,
};

pub fn document() -> Value {
    serde_json::to_value(streamkeep::http::document()).unwrap()
}

/// Every operation: its path, its method, and itself.
pub fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

/// What a `$ref` points at, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => {
            document.pointer(reference.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{reference}"))
        }
        None => value,
    }
}

#[test]
fn the_committed_document_is_that_of_the_code() {
    let made = streamkeep::http::document().to_yaml().unwrap();
    let committed = include_str!("../../openapi.yaml");
    assert!(made == committed, "openapi.yaml is old: cargo run -- openapi > openapi.yaml");
}

#[test]
fn the_document_keeps_the_conventions() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["info"]["license"]["identifier"].is_string(), "generators and linters ask for it");
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name}: operationId"));
        assert!(ids.insert(id), "{name}: {id} stands twice");
        assert!(operation["summary"].is_string(), "{name}: summary");
        assert!(operation["security"].is_array(), "{name}: whether credentials are needed is said");
        assert!(operation["tags"].as_array().is_some_and(|tags| !tags.is_empty()), "{name}: tags");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('4')), "{name}: no 4xx");
        for (status, response) in responses {
            let response = resolved(&document, response);
            let described = response["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(described, "{name} {status}: description");
            // HEAD has no bodies.
            if status.starts_with(['4', '5']) && method != "head" {
                assert!(response["content"]["application/problem+json"].is_object(), "{name} {status}: a problem");
            }
            if status.starts_with(['2', '3']) {
                assert!(response["headers"]["X-Request-Id"].is_object(), "{name} {status}: X-Request-Id");
            }
            if status == "503" && method != "head" {
                assert!(response["headers"]["Retry-After"].is_object(), "{name} {status}: Retry-After");
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{name}: a parameter without description: {parameter}");
            let schema = resolved(&document, &parameter["schema"]);
            assert!(schema["type"].is_string(), "{name}: absent, not null: {parameter}");
        }
        if let Some(content) = operation["requestBody"]["content"].as_object() {
            assert_eq!(content.keys().collect::<Vec<_>>(), ["application/json"], "{name}: generators take the first");
        }
    }
}

#[test]
fn optional_members_are_absent_and_not_null() {
    let document = document();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let own = schema["allOf"].as_array().and_then(|parts| parts.last()).unwrap_or(schema);
        assert!(schema["description"].is_string(), "{name}: description");
        // A position is a number, all other places are text.
        let union = schema.get("oneOf").is_some() || schema.get("anyOf").is_some();
        assert!(!union || name == "Start", "{name}: no untagged unions");
        let required: BTreeSet<_> =
            own["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (member, schema) in own["properties"].as_object().into_iter().flatten() {
            assert!(schema["description"].is_string(), "{name}.{member}: description");
            let nullable = schema["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
            // A condition that names no version: the member says so, beside conflicts that have none.
            let stands_for_none = (name.as_str(), member.as_str()) == ("ConflictProblem", "expected_version");
            assert!(!nullable || required.contains(member.as_str()) || stands_for_none, "{name}.{member}: null");
        }
    }
}

/// A lease of a group that is there.
async fn fresh_lease(app: &TestApp) -> String {
    app.delete("/groups/mailer").await;
    app.put("/groups/mailer", "{}").await.expect(201);
    app.append("order-1", GOOD).await.expect(201);
    let next = app.get("/groups/mailer/next").await.expect(200).json();
    next["deliveries"][0]["lease"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_operation_answers_as_documented() {
    let document = document();
    let app = TestApp::start(1).await;
    app.append("order-12345", GOOD).await.expect(201);
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        let address = path.replace("{id}", "order-12345").replace("{version}", "1").replace("{group}", "mailer");
        assert!(!address.contains('{'), "{name}: this test does not know the parameter");
        let lease = fresh_lease(&app).await;
        if method == "put" {
            app.delete(&address).await.expect(204);
        }
        let request = app.request(method.to_uppercase().parse().unwrap(), &address);
        let example = match path.rsplit('/').next().unwrap() {
            "ack" | "extend" => json!({ "leases": [lease] }),
            "nack" => json!({ "leases": [lease], "action": "park" }),
            _ => operation["requestBody"]["content"]["application/json"]["example"].clone(),
        };
        let request = if example.is_null() { request } else { request.json(&example) };
        let answer = Answer::of(request).await;
        assert!(answer.status.is_success(), "{name}: {answer:?}");
        let documented = &operation["responses"][answer.status.as_str()];
        assert!(documented.is_object(), "{name}: {} is not documented", answer.status);
        for header in documented["headers"].as_object().unwrap().keys() {
            assert!(answer.headers.contains_key(header), "{name}: no {header}");
        }
        if method == "head" || answer.status == StatusCode::NO_CONTENT {
            assert_eq!(answer.text, "", "{name}");
            continue;
        }
        let media_type = answer.header("content-type").split(';').next().unwrap();
        assert!(documented["content"][media_type].is_object(), "{name}: {media_type} is not documented");
        if media_type != "application/json" {
            continue;
        }
        let schema = resolved(&document, &documented["content"][media_type]["schema"]);
        let (body, known) = (answer.json(), schema["properties"].as_object().unwrap());
        let members: BTreeSet<_> = body.as_object().unwrap().keys().collect();
        assert!(members.iter().all(|member| known.contains_key(*member)), "{name}: not documented: {members:?}");
        for member in schema["required"].as_array().unwrap() {
            assert!(body.get(member.as_str().unwrap()).is_some(), "{name}: {member} is missing");
        }
    }
}

#[tokio::test]
async fn the_document_is_served() {
    let app = TestApp::start(1).await;
    assert_eq!(app.get("/openapi.json").await.expect(200).json(), document());
    let docs = app.get("/docs/").await.expect(200);
    assert!(docs.header("content-type").starts_with("text/html"), "{docs:?}");
    let answer = app.request(Method::GET, "/docs").send().await.unwrap();
    assert_eq!((answer.status(), answer.url().path()), (StatusCode::OK, "/docs/"), "led there");
}
