//! Hostile input in JSON.

use serde_json::json;

use crate::input::{GOOD, Input};

/// A body with one event, which has these members.
fn event(members: &str) -> String {
    format!("{{\"events\":[{{{members}}}]}}")
}

/// `levels` arrays around nothing.
fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

/// Members of an event that are no JSON.
const NO_JSON: [&str; 29] = [
    r#""type":"a","data":NaN"#,
    r#""type":"a","data":Infinity"#,
    r#""type":"a","data":-"#,
    r#""type":"a","data":01"#,
    r#""type":"a","data":1."#,
    r#""type":"a","data":.5"#,
    r#""type":"a","data":+1"#,
    r#""type":"a","data":0x1"#,
    r#""type":"a","data":"\x""#,
    r#""type":"a","data":"\u12g4""#,
    r#""type":"a","data":{"a":1,}"#,
    r#""type":"a","data":[1,]"#,
    r#""type":"a","data":[1 2]"#,
    r#""type":"a","data":{"a" 1}"#,
    r#""type":"a","data":{a:1}"#,
    r#""type":"a","data":'a'"#,
    r#""type":"a","data":tru"#,
    r#""type":"a","data":"#,
    r#""type":"a","data":undefined"#,
    "\"type\":\"a\",\"data\":\"\n\"",
    "\"type\":\"a\",\"data\":\"\t\"",
    "\"type\":\"a\",\"data\":\"\0\"",
    "\"type\":\"a\u{1}\",\"data\":1",
    r#""type":"\ud800","data":1"#,
    r#""type":"\udc00\ud800","data":1"#,
    r#""id":"\ud800","type":"a","data":1"#,
    r#""type":"a","data":[}"#,
    r#""type":"a","data":{]"#,
    r#""type":"a","data":1]"#,
];

#[tokio::test]
async fn what_is_no_json_is_refused() {
    let mut input = Input::start().await;
    let bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "nul",
        "NaN",
        "{\"events\":",
        "{\"events\":[}",
        "\u{feff}{\"events\":[]}",
        "{'events':[]}",
        "{events:[]}",
        "{\"events\":[],}",
        "{\"events\":[]} x",
        "{\"events\":[]}{}",
        "// {}\n{}",
        "\0",
        "{\"events\":[]}\0",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .chain(NO_JSON.into_iter().map(|members| event(members).into_bytes()))
    .chain([
        b"{\"events\":[{\"type\":\"a\",\"data\":\"\xff\"}]}".to_vec(),
        b"{\"events\":[{\"type\":\"\xc3\x28\",\"data\":1}]}".to_vec(),
        b"{\"events\":[{\"type\":\"a\",\"data\":\"\xed\xa0\x80\"}]}".to_vec(),
        b"\xff\xfe{\x00}\x00".to_vec(),
    ])
    .collect();
    for body in bodies {
        let answer = input.refused_body(body, 400, "invalid-json").await;
        assert!(answer.json().get("errors").is_none(), "no member is wrong, the whole is: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_json_of_another_form_is_refused_with_a_pointer() {
    let mut input = Input::start().await;
    let whole = [
        ("null", "#"),
        ("1", "#"),
        ("\"a\"", "#"),
        ("[]", "#"),
        ("{}", "#"),
        // As serde reads structs by default, arrays would do for objects.
        (r#"[[{"type":"a","data":1}]]"#, "#"),
        (r#"{"events":[["i-1","a",1,{}]]}"#, "#/events/0"),
        (r#"{"events":null}"#, "#/events"),
        (r#"{"events":{}}"#, "#/events"),
        (r#"{"events":"a"}"#, "#/events"),
        (r#"{"events":[1]}"#, "#/events/0"),
        (r#"{"events":[null]}"#, "#/events/0"),
        (r#"{"events":[{"type":"a","data":1},[]]}"#, "#/events/1"),
        (r#"{"events":[],"events":[]}"#, "#"),
        (r#"{"events":[],"q7b3secret":1}"#, "#"),
        (r#"{"Events":[]}"#, "#"),
        (r#"[{"type":"a","data":1}]"#, "#"),
    ];
    let members = [
        (r#""data":1"#, "#/events/0"),
        (r#""type":"a""#, "#/events/0"),
        ("", "#/events/0"),
        (r#""type":null,"data":1"#, "#/events/0/type"),
        (r#""type":1,"data":1"#, "#/events/0/type"),
        (r#""type":["a"],"data":1"#, "#/events/0/type"),
        (r#""id":null,"type":"a","data":1"#, "#/events/0/id"),
        (r#""id":7,"type":"a","data":1"#, "#/events/0/id"),
        (r#""id":true,"type":"a","data":1"#, "#/events/0/id"),
        (r#""type":"a","data":1,"metadata":null"#, "#/events/0/metadata"),
        (r#""type":"a","data":1,"metadata":[]"#, "#/events/0/metadata"),
        (r#""type":"a","data":1,"metadata":"m""#, "#/events/0/metadata"),
        (r#""type":"a","data":1,"metadata":1"#, "#/events/0/metadata"),
        (r#""type":"a","type":"b","data":1"#, "#/events/0"),
        (r#""type":"a","data":1,"data":2"#, "#/events/0"),
        (r#""id":"a","id":"a","type":"a","data":1"#, "#/events/0"),
        (r#""type":"a","data":1,"metadata":{},"metadata":{}"#, "#/events/0"),
        (r#""type":"a","data":1,"q7b3secret":1"#, "#/events/0"),
        (r#""type":"a","data":1,"":1"#, "#/events/0"),
        (r#""type":"a","data":1,"time":"2026-01-01T00:00:00Z""#, "#/events/0"),
        (r#""type":"a","data":1,"Type":"b""#, "#/events/0"),
        (r#""type":"a","data":"\ud800""#, "#/events/0/data"),
        (r#""type":"a","data":{"\udfff":1}"#, "#/events/0/data"),
        (r#""type":"a","data":1,"metadata":{"a":"\ud83d\u0041"}"#, "#/events/0/metadata"),
    ];
    let members = members.map(|(members, pointer)| (event(members), pointer));
    for (body, pointer) in whole.map(|(body, pointer)| (body.to_owned(), pointer)).into_iter().chain(members) {
        let answer = input.refused_body(body.clone(), 400, "invalid-json").await;
        let errors = &answer.json()["errors"];
        assert_eq!(errors.as_array().map(Vec::len), Some(1), "{body}: {answer:?}");
        assert_eq!(errors[0]["pointer"], pointer, "{body}: {answer:?}");
        assert!(errors[0]["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}: {answer:?}");
        assert!(!answer.text.contains("q7b3secret"), "echoes: {answer:?}");
    }
    let long = event(&format!(r#""type":"a","data":1,"{}":1"#, "x".repeat(100_000)));
    let answer = input.refused_body(long, 400, "invalid-json").await;
    assert!(answer.text.len() < 2_000, "echoes {} bytes", answer.text.len());
}

#[tokio::test]
async fn events_that_break_the_rules_are_refused() {
    let mut input = Input::start().await;
    let (long_id, long_type) = ("i".repeat(129), "ä".repeat(257));
    let ids = ["", "\\u0000", "a\\u0000b", "\\n", "a\\tb", "ä", "\\u007f", "\\ud83d\\ude00", &long_id];
    for id in ids {
        let body = event(&format!(r#""id":"{id}","type":"a","data":1"#));
        let answer = input.refused_body(body, 422, "invalid-event").await;
        assert_eq!(answer.json()["errors"][0]["pointer"], "#/events/0/id", "{id}");
    }
    for kind in ["", "\\u0000", "a\\u0000", "\\n", "a\\rb", "\\u001f", "\\u007f", "\\u0085", &long_type] {
        let body = event(&format!(r#""type":"{kind}","data":1"#));
        let answer = input.refused_body(body, 422, "invalid-event").await;
        assert_eq!(answer.json()["errors"][0]["pointer"], "#/events/0/type", "{kind}");
    }
    let answer = input.refused_body(r#"{"events":[]}"#, 422, "invalid-event").await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/events");
    let twice = r#"{"events":[{"id":"a","type":"a","data":1},{"type":"a","data":1},{"id":"a","type":"a","data":1}]}"#;
    let answer = input.refused_body(twice, 422, "invalid-event").await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/events/2/id");
    let second = r#"{"events":[{"type":"a","data":1},{"type":"","data":1}]}"#;
    let answer = input.refused_body(second, 422, "invalid-event").await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/events/1/type");
    // The longest that will do, with every kind of printable ASCII in the id.
    let printable: String = (b' '..=b'~').map(char::from).chain("i".repeat(33).chars()).collect();
    let body = json!({"events": [{"id": printable, "type": "ä".repeat(256), "data": 1}]});
    input.app.append("good-1", &body.to_string()).await.expect(201);
    let read = input.app.get("/streams/good-1/events/1").await.expect(200).json();
    assert_eq!((&read["id"], &read["type"]), (&body["events"][0]["id"], &body["events"][0]["type"]));
}

#[tokio::test]
async fn json_nested_too_deep_is_refused() {
    let mut input = Input::start().await;
    let objects = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    for levels in [129, 100_000] {
        for (members, pointer) in [
            (format!(r#""type":"a","data":{}"#, nested(levels)), "#/events/0/data"),
            (format!(r#""type":"a","data":{}"#, objects(levels)), "#/events/0/data"),
            // Data may be 1 MiB, metadata 64 KiB.
            (format!(r#""type":"a","data":1,"metadata":{}"#, objects(levels.min(10_000))), "#/events/0/metadata"),
        ] {
            let answer = input.refused_body(event(&members), 422, "too-deep").await;
            assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
        }
        input.refused_body(nested(levels), 400, "invalid-json").await;
        input.refused_body(objects(levels), 400, "invalid-json").await;
        input.refused_body(event(&format!(r#""type":{},"data":1"#, nested(levels))), 400, "invalid-json").await;
        input.refused_body("[".repeat(levels), 400, "invalid-json").await;
        input.refused_body(event(&format!(r#""type":"a","data":{}"#, "[".repeat(levels))), 400, "invalid-json").await;
    }
    for members in [
        format!(r#""type":"a","data":{}"#, nested(128)),
        format!(r#""type":"a","data":{},"metadata":{}"#, objects(128), objects(128)),
        format!(r#""type":"a","data":"{}""#, "[".repeat(1_000)),
    ] {
        input.app.append("good-1", &event(&members)).await.expect(201);
    }
}

test_app! {
    async fn data_comes_back_byte_for_byte(app) {
        let data = [
            "9007199254740993", "123456789012345678901234567890.10", "1e999", "-0", "1E+2", "0.10", r#"{"a":1,"a":2,"":3}"#,
            "[ 1 , 2 ]", "{\n\t\"a\" : null\r\n}", r#""\ud83d\ude00 \u00e4 ä \/ \u0000""#, "null", "true", "\"\"", "{}", "[]",
        ];
        let metadata = ["{}", r#"{"a":1,"a":1.0}"#, "{ }", r#"{"n":18446744073709551617}"#];
        for (index, data) in data.into_iter().enumerate() {
            let metadata = metadata[index % metadata.len()];
            let body = event(&format!(r#""type":"a","data": {data} ,"metadata":{metadata}"#));
            app.append("exact-1", &body).await.expect(201);
            let wanted = format!(r#""data":{data},"metadata":{metadata}}}"#);
            let one = app.get(&format!("/streams/exact-1/events/{}", index + 1)).await.expect(200);
            assert!(one.text.ends_with(&wanted), "{wanted}: {one:?}");
            for path in ["/streams/exact-1?direction=backward&limit=1", "/events?stream=exact-1"] {
                let page = app.get(path).await.expect(200);
                assert!(page.text.contains(&wanted), "{wanted}: {page:?}");
            }
        }
        app.append("exact-1", GOOD).await.expect(201);
    }
}
