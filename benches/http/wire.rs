//! Bytes of HTTP and of Redis: how requests are written, and how long replies are.

use std::io::Write as _;

/// A request with a JSON body.
pub fn post(out: &mut Vec<u8>, path: &str, method: &str, body: &[u8]) {
    let length = body.len();
    write!(
        out,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .expect("memory takes it");
    out.extend_from_slice(body);
}

/// A command of Redis.
pub fn command(out: &mut Vec<u8>, arguments: &[&str]) {
    write!(out, "*{}\r\n", arguments.len()).expect("memory takes it");
    for argument in arguments {
        bulk(out, argument);
    }
}

pub fn bulk(out: &mut Vec<u8>, text: &str) {
    write!(out, "${}\r\n{text}\r\n", text.len()).expect("memory takes it");
}

/// The length of a reply with a `content-length`, once it is all there.
pub fn http_reply(input: &[u8], status: &[u8]) -> Option<usize> {
    let head = input.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    assert!(input.starts_with(status), "{}", String::from_utf8_lossy(input));
    let length = input[..head].split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked("content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let length = number(length.expect("answers have a length").trim_ascii());
    let all = head + usize::try_from(length).expect("a length is not negative");
    (input.len() >= all).then_some(all)
}

/// The length of so many replies, once they are all there.
pub fn resp_replies(input: &[u8], count: usize) -> Option<usize> {
    let (mut at, mut values) = (0, i64::try_from(count).expect("a count is small"));
    while values > 0 {
        let line = &input[at..];
        let end = line.iter().position(|byte| *byte == b'\n')?;
        at += end + 1;
        values -= 1;
        match line[0] {
            b'$' => at += usize::try_from(number(line[1..end].trim_ascii())).map_or(0, |length| length + 2),
            // No entries is an array of no length.
            b'*' => values += number(line[1..end].trim_ascii()).max(0),
            b':' | b'+' => {}
            _ => panic!("{}", String::from_utf8_lossy(input)),
        }
        if at > input.len() {
            return None;
        }
    }
    Some(at)
}

pub fn number(digits: &[u8]) -> i64 {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).expect("a number")
}
