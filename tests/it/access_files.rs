//! The files of credentials are read again when they change.

use std::{fs, time::Duration};

use reqwest::Method;
use streamkeep::http::{Access, AccessFiles};
use tempfile::TempDir;

use crate::{
    access::{Guarded, new_key},
    app::eventually,
};

const EVERYTHING: &[&str] = &["--verbs", "read,append", "--streams", "*"];

#[tokio::test]
async fn a_key_comes_and_goes_while_the_service_runs() {
    let guarded = Guarded::start().await;
    let file = guarded.folder.path().join("keys.ndjson");
    let before = fs::read_to_string(&file).unwrap();
    let key = new_key(&guarded.folder, "late", EVERYTHING);
    eventually("it is known", async || guarded.get(&key, "/events").await.status == 200).await;
    guarded.get(&guarded.admin, "/events").await.expect(200);

    let follow =
        |token: &str| guarded.request(token, Method::GET, "/events?after=end").header("accept", "text/event-stream");
    let mut feed = follow(&key).send().await.unwrap();
    assert_eq!(feed.status(), 200);
    fs::write(&file, &before).unwrap();
    eventually("it is not known any more", async || guarded.get(&key, "/events").await.status == 401).await;
    assert_eq!(follow(&key).send().await.unwrap().status(), 401);
    // A feed that was opened before goes on.
    guarded.append(&guarded.admin, "order-late").await.expect(201);
    let mut text = String::new();
    while !text.contains("order-late") {
        let piece = tokio::time::timeout(Duration::from_secs(20), feed.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece));
    }
}

#[test]
fn a_broken_file_stops_the_start() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys");
    let keys = || Access::open(AccessFiles { keys: Some(file.clone()), ..AccessFiles::default() }).err();
    assert!(keys().unwrap().contains("keys: "), "it is not there");
    fs::write(&file, "{}").unwrap();
    assert!(keys().unwrap().contains("keys: line 1: missing field `id`"));
    let jwt_keys = || Access::open(AccessFiles { jwt_keys: Some(file.clone()), ..AccessFiles::default() }).err();
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----";
    for (bad, what) in [
        ("{}", "it is no JWKS"),
        (r#"{"keys":[]}"#, "no key in it"),
        (r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"},{"kty":"new"}]}"#, "no key in it"),
        ("MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "without the lines"),
        ("short", "32 or more characters"),
        ("", "32 or more characters"),
        (public, "neither of RSA nor of Ed25519"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----", "must be a PUBLIC KEY"),
        (&format!("# ours\n{public}"), "must be a PUBLIC KEY"),
        ("\u{1}\u{2}thirty-two bytes that are not a text", "32 or more characters"),
    ] {
        fs::write(&file, bad).unwrap();
        let error = jwt_keys().unwrap_or_else(|| panic!("{bad}"));
        assert!(error.contains(what), "{bad}: {error}");
    }
}
