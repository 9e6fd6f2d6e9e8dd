//! Server-sent events, as far as the service speaks them: lines end with LF, or CRLF behind something that rewrites them.

use std::{mem, time::Duration};

/// What stands between two empty lines. Comments alone are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Its kind; empty for an event of the store.
    pub kind: String,
    /// Its data; empty where there is none, as in one that only moves the place.
    pub data: Vec<u8>,
    /// The place behind it.
    pub id: Option<String>,
    /// How soon the client may come back.
    pub retry: Option<Duration>,
}

/// Reads a feed. What a connection that breaks leaves unfinished is dropped with this.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    message: Message,
}

impl Reader {
    /// The next message that `bytes` complete; takes from them what it has read. `None` where it has read them all.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Message> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            *bytes = &bytes[end + 1..];
            self.line.pop_if(|last| *last == b'\r');
            let line = mem::take(&mut self.line);
            if !line.is_empty() {
                self.read(&line);
            } else if self.message != Message::default() {
                return Some(mem::take(&mut self.message));
            }
        }
        self.line.extend_from_slice(bytes);
        *bytes = &[];
        None
    }

    fn read(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            b"event" => self.message.kind = text(),
            b"data" if self.message.data.is_empty() => self.message.data = value.to_vec(),
            b"data" => self.message.data.extend([b"\n", value].concat()),
            b"id" => self.message.id = Some(text()),
            b"retry" => self.message.retry = text().parse().ok().map(Duration::from_millis),
            // Comments have no name.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEED: &str = "retry: 2000\n:\n\nid: a\ndata: {\"n\": 1}\n\n:\n\n:\nid: b\n\nid: c\nevent: caught-up\ndata: {}\n\n\
                        id:d\ndata:x\ndata: y:\nunknown: z\nalone\n\nid: e\ndata: unfinished\n";

    fn message(kind: &str, data: &str, id: &str) -> Message {
        Message { kind: kind.to_owned(), data: data.as_bytes().to_vec(), id: Some(id.to_owned()), retry: None }
    }

    fn expected() -> Vec<Message> {
        let retry = Message { retry: Some(Duration::from_secs(2)), ..Message::default() };
        let events = [message("", "{\"n\": 1}", "a"), message("", "", "b"), message("caught-up", "{}", "c")];
        [retry].into_iter().chain(events).chain([message("", "x\ny:", "d")]).collect()
    }

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Message> {
        let (mut reader, mut messages) = (Reader::default(), Vec::new());
        for mut piece in pieces {
            messages.extend(std::iter::from_fn(|| reader.next(&mut piece)));
        }
        messages
    }

    #[test]
    fn a_feed_may_be_split_anywhere() {
        for feed in [FEED.to_owned(), FEED.replace('\n', "\r\n")] {
            for at in 0..=feed.len() {
                let (first, second) = feed.as_bytes().split_at(at);
                assert_eq!(read([first, second]), expected(), "split at {at} of {feed:?}");
            }
            assert_eq!(read(feed.as_bytes().chunks(1)), expected(), "byte by byte");
        }
    }

    #[test]
    fn comments_and_empty_lines_are_no_messages() {
        assert_eq!(read([b":\n\n: id: x\n\n\n\r\n".as_slice()]), []);
    }
}
