//! Replies of Redis (RESP2), as they come in. What is fetched much stays the bytes that came: an event's parts are slices of
//! them.

use std::io;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use redis::{ServerError, Value};

/// Longest line, in bytes: that of an error, with the names that a client may have given.
const LINE_MAX: usize = 64 * 1024;

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply(Bytes);

impl Reply {
    /// What it says, where it is an error.
    pub(super) fn error(&self) -> Option<ServerError> {
        if !self.0.starts_with(b"-") {
            return None;
        }
        match redis::parse_redis_value(&self.0) {
            Ok(Value::ServerError(error)) => Some(error),
            _ => None,
        }
    }

    /// Goes through its parts.
    pub(super) fn parts(&self) -> Parts<'_> {
        Parts { reply: &self.0, at: 0 }
    }
}

impl From<Reply> for Value {
    fn from(reply: Reply) -> Self {
        // Only what is nested deeper than any reply cannot be read: `Replies` has looked at the rest.
        redis::parse_redis_value(&reply.0).unwrap_or(Self::Nil)
    }
}

/// By TLS, where redis-rs reads.
impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        let mut bytes = Vec::new();
        write(&mut bytes, &value);
        Self(bytes.into())
    }
}

fn write(out: &mut Vec<u8>, value: &Value) {
    let mut line = |kind: char, text: &str| out.extend_from_slice(format!("{kind}{text}\r\n").as_bytes());
    match value {
        Value::Int(number) => line(':', &number.to_string()),
        Value::Okay => line('+', "OK"),
        Value::SimpleString(text) => line('+', text),
        Value::ServerError(error) => {
            line('-', [error.code(), error.details().unwrap_or_default()].join(" ").trim_end());
        }
        Value::BulkString(text) => {
            line('$', &text.len().to_string());
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        }
        Value::Array(values) => {
            line('*', &values.len().to_string());
            for value in values {
                write(out, value);
            }
        }
        // RESP2 has nothing else.
        _ => line('$', "-1"),
    }
}

/// The parts of a reply, one after another: what a list holds comes behind its length. `None` where something else stands
/// there than is asked for.
#[derive(Clone)]
pub(super) struct Parts<'a> {
    reply: &'a Bytes,
    at: usize,
}

impl<'a> Parts<'a> {
    /// A list, of so many parts.
    pub(super) fn list(&mut self) -> Option<usize> {
        let Head { kind: b'*', number, length } = self.head()? else { return None };
        self.at += length;
        usize::try_from(number).ok()
    }

    /// An entry of a stream: its id, and how many parts follow, which are names and values in turns.
    pub(super) fn entry(&mut self) -> Option<(&'a str, usize)> {
        if self.list()? == 2 { Some((self.text()?, self.list()?)) } else { None }
    }

    /// A list of entries, of which only the id of the last one is wanted.
    pub(super) fn last_of_entries(&mut self) -> Option<&'a str> {
        let mut last = None;
        for _ in 0..self.list()? {
            let (id, fields) = self.entry()?;
            for _ in 0..fields {
                self.bytes()?;
            }
            last = Some(id);
        }
        last
    }

    /// A number.
    pub(super) fn number(&mut self) -> Option<u64> {
        let Head { kind: b':', number, length } = self.head()? else { return None };
        self.at += length;
        u64::try_from(number).ok()
    }

    /// Some bytes.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let Head { kind: b'$', number, length } = self.head()? else { return None };
        let begin = self.at + length;
        let bytes = self.reply.get(begin..begin + usize::try_from(number).ok()?)?;
        self.at = begin + bytes.len() + 2;
        Some(bytes)
    }

    /// Some bytes that are text, which stays a part of the reply.
    pub(super) fn string(&mut self) -> Option<ByteString> {
        ByteString::try_from(self.reply.slice_ref(self.bytes()?)).ok()
    }

    /// Some bytes that are text.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    fn head(&self) -> Option<Head> {
        head(self.reply.get(self.at..)?).ok().flatten()
    }
}

/// The line that begins a part.
struct Head {
    kind: u8,
    /// That of the line; 0 where it has none.
    number: i64,
    /// Bytes of the line, with its end.
    length: usize,
}

/// The line that `input` begins with; `None` where it is not all there.
fn head(input: &[u8]) -> io::Result<Option<Head>> {
    let Some((kind, text)) = input.split_first() else { return Ok(None) };
    let line = match kind {
        b'$' | b'*' | b':' => number(text)?,
        b'+' | b'-' => text.iter().take(LINE_MAX).position(|byte| *byte == b'\r').map(|end| (0, end)),
        _ => return Err(invalid()),
    };
    match line {
        Some((number, end)) => match text.get(end + 1) {
            Some(b'\n') => Ok(Some(Head { kind: *kind, number, length: end + 3 })),
            Some(_) => Err(invalid()),
            None => Ok(None),
        },
        None if input.len() > LINE_MAX => Err(invalid()),
        None => Ok(None),
    }
}

/// The number that `text` begins with, and where it ends: at the end of the line. `None` where that is not there.
fn number(text: &[u8]) -> io::Result<Option<(i64, usize)>> {
    let sign = usize::from(text.first() == Some(&b'-'));
    let mut number = 0_i64;
    for (at, byte) in text.iter().enumerate().skip(sign) {
        match byte {
            b'0'..=b'9' => {
                let more = number.checked_mul(10).and_then(|tens| tens.checked_add(i64::from(byte - b'0')));
                number = more.ok_or_else(invalid)?;
            }
            b'\r' if at > sign => return Ok(Some((if sign == 1 { -number } else { number }, at))),
            _ => return Err(invalid()),
        }
    }
    Ok(None)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "that is no reply of Redis")
}

/// Finds where replies end. Looks at no part twice that is all there.
#[derive(Default)]
pub(super) struct Replies {
    /// Bytes of the next reply that were looked at.
    looked: usize,
    /// Parts that it has beyond those.
    left: usize,
}

impl Replies {
    /// The next reply, if all of it is in `input`.
    ///
    /// # Errors
    /// That is no RESP.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Reply>> {
        loop {
            let Some(Head { kind, number, length }) = head(&input[self.looked..])? else { return Ok(None) };
            let count = match (kind, number) {
                // -1 stands for nothing.
                (b'$' | b'*', ..-1) => return Err(invalid()),
                (b'$' | b'*', number) => usize::try_from(number).ok(),
                _ => None,
            };
            let (bytes, parts) = match (kind, count) {
                (b'$', Some(count)) => (count.saturating_add(length + 2), 0),
                (_, count) => (length, count.unwrap_or(0)),
            };
            if input.len() - self.looked < bytes {
                return Ok(None);
            }
            // The first part stands for itself.
            let left = if self.looked == 0 { 0 } else { self.left - 1 };
            self.looked += bytes;
            self.left = left.checked_add(parts).ok_or_else(invalid)?;
            if self.left == 0 {
                return Ok(Some(Reply(input.split_to(std::mem::take(&mut self.looked)).freeze())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every kind that Redis says to us.
    const REPLIES: [&[u8]; 9] = [
        b"*2\r\n*2\r\n$3\r\n0-1\r\n*4\r\n$4\r\ndata\r\n$7\r\na\r\nb\r\n\0\r\n$1\r\nx\r\n$0\r\n\r\n*2\r\n$3\r\n0-2\r\n*0\r\n",
        b":-7\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"+OK\r\n",
        b"+PONG\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n",
        b"*0\r\n",
        b"*1\r\n*1\r\n-ERR no\r\n",
    ];

    fn all(pieces: impl Iterator<Item = Vec<u8>>) -> io::Result<Vec<Reply>> {
        let (mut replies, mut input, mut values) = (Replies::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(&piece);
            while let Some(value) = replies.next(&mut input)? {
                values.push(value);
            }
        }
        assert!(input.is_empty() && replies.looked == 0, "nothing is left");
        Ok(values)
    }

    #[test]
    fn replies_are_as_redis_rs_reads_them_in_pieces_of_any_size() {
        let expected = REPLIES.map(|reply| redis::parse_redis_value(reply).expect("it is RESP")).to_vec();
        let text = REPLIES.concat();
        for size in 1..=text.len() {
            let values = all(text.chunks(size).map(<[u8]>::to_vec)).expect("it is RESP");
            let bytes: Vec<&[u8]> = values.iter().map(|reply| &*reply.0).collect();
            assert_eq!(bytes, REPLIES, "in pieces of {size}");
            let read: Vec<Value> = values.into_iter().map(Value::from).collect();
            assert_eq!(read, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_reply_is_told() {
        for text in ["x\r\n", "$x\r\n", "*-2\r\n", "$-2\r\n", ":1x\r\n", "\r\n", "$99999999999999999999\r\n"] {
            assert!(all(std::iter::once(text.as_bytes().to_vec())).is_err(), "{text:?}");
        }
        assert!(all(std::iter::once(vec![b'-'; LINE_MAX + 1])).is_err(), "longer than any line");
        let mut input = BytesMut::from(&b"$9223372036854775807\r\nx"[..]);
        assert!(matches!(Replies::default().next(&mut input), Ok(None)), "it may still come");
    }

    #[test]
    fn what_redis_rs_has_read_becomes_the_bytes_that_came() {
        for text in REPLIES {
            let value = redis::parse_redis_value(text).expect("it is RESP");
            let reply = Reply::from(value.clone());
            // There are two ways to say that there is nothing.
            assert!(reply.0 == text || text == b"*-1\r\n" && reply.0.as_ref() == b"$-1\r\n", "{reply:?}");
            assert_eq!((Value::from(reply.clone()), reply.error().is_some()), (value, text[0] == b'-'));
        }
    }

    #[test]
    fn parts_come_one_after_another() {
        let reply = Reply(Bytes::from_static(b"*3\r\n$1\r\na\r\n:7\r\n*1\r\n$2\r\n\xc3\xa9\r\n"));
        let mut parts = reply.parts();
        assert_eq!(
            (parts.list(), parts.number(), parts.bytes()),
            (Some(3), None, Some(&b"a"[..])),
            "nothing is passed"
        );
        assert_eq!((parts.number(), parts.list(), parts.string()), (Some(7), Some(1), Some("é".into())));
        assert_eq!((parts.text(), parts.list()), (None, None), "the end");
        let reply = Reply(Bytes::from_static(
            b"*2\r\n*2\r\n$3\r\n0-1\r\n*0\r\n*2\r\n$3\r\n0-2\r\n*2\r\n$1\r\ng\r\n$1\r\nx\r\n:1\r\n",
        ));
        let mut parts = reply.parts();
        assert_eq!((parts.last_of_entries(), parts.number()), (Some("0-2"), Some(1)), "all of it is passed");
        let nested = Reply(Bytes::from(b"*1\r\n".repeat(1_000)));
        assert_eq!(Value::from(nested), Value::Nil, "deeper than any reply");
    }
}
