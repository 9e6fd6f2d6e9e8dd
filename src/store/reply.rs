//! Replies of Redis (RESP2), as they come in.

use std::io;

use bytes::{Buf as _, BytesMut};
use redis::Value;

/// Most lists within lists. Redis' own are four deep.
const DEPTH_MAX: usize = 32;
/// Longest line, in bytes: that of an error, with the names that a client may have given.
const LINE_MAX: usize = 64 * 1024;

/// Takes replies apart. Keeps what has come of one that is not all there, and looks at no byte of it twice.
#[derive(Default)]
pub(super) struct Replies {
    /// The lists around the next value, each with how many values it will have.
    open: Vec<(Vec<Value>, usize)>,
}

impl Replies {
    /// The next reply, if all of it is in `input`.
    ///
    /// # Errors
    /// That is no RESP.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Value>> {
        while let Some(read) = value(input)? {
            let mut value = match read {
                Read::Value(value) => value,
                Read::List(0) => Value::Array(Vec::new()),
                Read::List(_) if self.open.len() == DEPTH_MAX => return Err(invalid()),
                Read::List(count) => {
                    // What is said to come may not.
                    self.open.push((Vec::with_capacity(count.min(1024)), count));
                    continue;
                }
            };
            loop {
                let Some((values, count)) = self.open.last_mut() else { return Ok(Some(value)) };
                values.push(value);
                if values.len() < *count {
                    break;
                }
                value = Value::Array(std::mem::take(values));
                self.open.pop();
            }
        }
        Ok(None)
    }
}

enum Read {
    Value(Value),
    /// A list of so many values, which follow.
    List(usize),
}

/// What stands at the beginning of `input`, and takes it away; `None` where it is not all there.
fn value(input: &mut BytesMut) -> io::Result<Option<Read>> {
    let Some(end) = line_end(input) else { return if input.len() > LINE_MAX { Err(invalid()) } else { Ok(None) } };
    let Some((kind, text)) = input[..end].split_first() else { return Err(invalid()) };
    let behind = end + 2;
    let read = match kind {
        b'$' => match length(text)? {
            None => Value::Nil,
            Some(length) => {
                if input.len() - behind < length.saturating_add(2) {
                    return Ok(None);
                }
                let body = input[behind..behind + length].to_vec();
                input.advance(behind + length + 2);
                return Ok(Some(Read::Value(Value::BulkString(body))));
            }
        },
        b'*' => match length(text)? {
            None => Value::Nil,
            Some(count) => {
                input.advance(behind);
                return Ok(Some(Read::List(count)));
            }
        },
        b':' => Value::Int(number(text)?),
        // Rare, and redis-rs knows what each error means.
        b'+' | b'-' => redis::parse_redis_value(&input[..behind]).map_err(|_| invalid())?,
        _ => return Err(invalid()),
    };
    input.advance(behind);
    Ok(Some(Read::Value(read)))
}

/// Where the first line ends, without its line break.
fn line_end(input: &[u8]) -> Option<usize> {
    let end = input.iter().take(LINE_MAX).position(|byte| *byte == b'\r')?;
    (input.get(end + 1) == Some(&b'\n')).then_some(end)
}

/// -1 stands for nothing.
fn length(text: &[u8]) -> io::Result<Option<usize>> {
    match number(text)? {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| invalid()),
    }
}

fn number(text: &[u8]) -> io::Result<i64> {
    str::from_utf8(text).ok().and_then(|digits| digits.parse().ok()).ok_or_else(invalid)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "that is no reply of Redis")
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

    fn all(pieces: impl Iterator<Item = Vec<u8>>) -> io::Result<Vec<Value>> {
        let (mut replies, mut input, mut values) = (Replies::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(&piece);
            while let Some(value) = replies.next(&mut input)? {
                values.push(value);
            }
        }
        assert!(input.is_empty() && replies.open.is_empty(), "nothing is left");
        Ok(values)
    }

    #[test]
    fn replies_are_as_redis_rs_reads_them_in_pieces_of_any_size() {
        let expected = REPLIES.map(|reply| redis::parse_redis_value(reply).expect("it is RESP"));
        let text = REPLIES.concat();
        for size in 1..=text.len() {
            let values = all(text.chunks(size).map(<[u8]>::to_vec)).expect("it is RESP");
            assert_eq!(values, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_reply_is_told() {
        for text in ["x\r\n", "$x\r\n", "*-2\r\n", "$-2\r\n", ":1x\r\n", "\r\n", "$99999999999999999999\r\n"] {
            assert!(all(std::iter::once(text.as_bytes().to_vec())).is_err(), "{text:?}");
        }
        assert!(all(std::iter::once(b"*1\r\n".repeat(DEPTH_MAX + 1))).is_err(), "deeper than any reply");
        assert!(all(std::iter::once(vec![b'-'; LINE_MAX + 1])).is_err(), "longer than any line");
        let mut input = BytesMut::from(&b"$9223372036854775807\r\nx"[..]);
        assert!(matches!(Replies::default().next(&mut input), Ok(None)), "it may still come");
    }
}
