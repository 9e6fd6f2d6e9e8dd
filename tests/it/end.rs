//! Reads everything that is stored, from Redis and through the service.

use std::collections::BTreeMap;

use redis::aio::MultiplexedConnection;
use reqwest::Client;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::record::{End, Partition, Pointer, Stored};

#[derive(Deserialize)]
struct Event<'a> {
    stream: String,
    version: u64,
    position: u64,
    id: String,
    r#type: String,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

impl From<Event<'_>> for Stored {
    fn from(event: Event<'_>) -> Self {
        let content = format!("{}\n{}\n{}", event.r#type, event.data, event.metadata);
        Self { stream: event.stream, version: event.version, position: event.position, id: event.id, content }
    }
}

#[derive(Deserialize)]
struct StreamPage<'a> {
    version: u64,
    #[serde(borrow)]
    events: Vec<Event<'a>>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct LogPage<'a> {
    #[serde(borrow)]
    events: Vec<Event<'a>>,
    next: String,
    caught_up: bool,
}

/// What stands in a store with this number of partitions, and what an instance shows of it.
pub async fn read_end(url: &str, redis: &mut MultiplexedConnection, partitions: u16) -> End {
    let prefix = |number| if partitions == 1 { String::new() } else { format!("{{{number}}}:") };
    read_end_of(url, (0..partitions).map(|number| (prefix(number), redis.clone())).collect()).await
}

/// The same, of partitions each with what stands before its keys, and a connection to where it is.
pub async fn read_end_of(url: &str, partitions: Vec<(String, MultiplexedConnection)>) -> End {
    let client = Client::builder().no_proxy().build().unwrap();
    let mut end = End::default();
    for (prefix, mut redis) in partitions {
        let partition = read_partition(&mut redis, &prefix).await;
        for stream in partition.streams.keys() {
            end.shown_streams.insert(stream.clone(), read_stream(&client, url, stream).await);
        }
        end.partitions.push(partition);
    }
    end.shown_log = read_log(&client, url).await;
    end
}

async fn get(client: &Client, url: String) -> (String, String) {
    let response = client.get(&url).send().await.unwrap();
    let (status, etag) = (response.status(), response.headers().get("etag").cloned());
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{url}: {text}");
    (text, etag.map_or_else(String::new, |tag| tag.to_str().unwrap().to_owned()))
}

async fn read_stream(client: &Client, url: &str, stream: &str) -> Vec<Stored> {
    let mut events: Vec<Stored> = Vec::new();
    let mut from = Some(1);
    while let Some(version) = from {
        let (text, etag) = get(client, format!("{url}/streams/{stream}?limit=1000&from={version}")).await;
        let page: StreamPage<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(etag, format!("\"{}\"", page.version), "{stream}");
        events.extend(page.events.into_iter().map(Stored::from));
        from = page.next;
        assert!(from.is_none_or(|from| from > version), "{stream}: pages go on");
    }
    events
}

async fn read_log(client: &Client, url: &str) -> Vec<Stored> {
    let mut events = Vec::new();
    let mut after = String::new();
    loop {
        let (text, _) = get(client, format!("{url}/events?limit=1000{after}")).await;
        let page: LogPage<'_> = serde_json::from_str(&text).unwrap();
        assert!(page.caught_up || !page.events.is_empty(), "an unfiltered page that is not the last has events");
        events.extend(page.events.into_iter().map(Stored::from));
        if page.caught_up {
            return events;
        }
        after = format!("&after={}", page.next);
    }
}

type Entries = Vec<(String, BTreeMap<String, String>)>;

/// All entries of a Redis stream, a thousand at a time: none of the calls takes long.
async fn entries(redis: &mut MultiplexedConnection, key: &str) -> Entries {
    let mut all = Entries::new();
    loop {
        let after = all.last().map_or("-".to_owned(), |(id, _)| format!("({id}"));
        let mut range = redis::cmd("XRANGE");
        range.arg(key).arg(after).arg("+").arg("COUNT").arg(1_000);
        let entries: Entries = range.query_async(redis).await.unwrap();
        if entries.is_empty() {
            return all;
        }
        all.extend(entries);
    }
}

/// The number of an entry; 0, which is no version or position, where its id is not of our form.
fn number(id: &str) -> u64 {
    id.strip_prefix("0-").and_then(|number| number.parse().ok()).unwrap_or(0)
}

async fn read_partition(redis: &mut MultiplexedConnection, prefix: &str) -> Partition {
    let mut partition = Partition::default();
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}events:*")).query_async(redis).await.unwrap();
    for key in keys {
        let stream = key[prefix.len()..].strip_prefix("events:").unwrap().to_owned();
        let events = entries(redis, &key).await.into_iter().map(|(id, fields)| {
            assert_eq!(fields["version"], number(&id).to_string(), "{stream}");
            Stored {
                stream: stream.clone(),
                version: number(&id),
                position: fields["position"].parse().unwrap(),
                id: fields["id"].clone(),
                content: format!("{}\n{}\n{}", fields["type"], fields["data"], fields["metadata"]),
            }
        });
        let events = events.collect();
        partition.streams.insert(stream, events);
    }
    let pointers = entries(redis, &format!("{prefix}log")).await.into_iter().map(|(id, fields)| Pointer {
        position: number(&id),
        stream: fields["s"].clone(),
        version: fields["v"].parse().unwrap(),
    });
    partition.log = pointers.collect();
    partition
}
