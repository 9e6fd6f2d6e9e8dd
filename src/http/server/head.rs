//! What hyper shows to nobody of a head: how often it says how long the body is.

/// The fields that say how long a body is.
const LENGTHS: [&[u8]; 2] = [b"content-length:", b"transfer-encoding:"];
/// No more of a line is looked at.
const LINE_START: usize = LENGTHS[1].len();

/// Marks a request whose head says more than once how long its body is.
#[derive(Clone, Copy, Debug)]
pub struct TwoLengths;

/// Counts the fields of a head that say how long its body is, while the head comes in. hyper takes one of them, and
/// removes the others.
#[derive(Debug, Default)]
pub struct LengthFields {
    part: Part,
    /// The start of a line whose end has not come yet.
    line: Vec<u8>,
    count: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    /// Blank lines may stand before it (RFC 9112 §2.2).
    #[default]
    RequestLine,
    Fields,
    End,
}

impl LengthFields {
    /// Takes the bytes that follow on those before, and tells how many such fields there are so far. What comes after
    /// the head is not looked at.
    pub fn read(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() && self.part != Part::End {
            let end = memchr::memchr(b'\n', rest);
            let (line, behind) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
            rest = behind;
            if end.is_some() && self.line.is_empty() {
                self.read_line(line);
                continue;
            }
            let room = LINE_START - self.line.len();
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                self.read_line(&line);
            }
        }
        self.count
    }

    /// Whether the head's first line has not ended yet.
    pub fn in_request_line(&self) -> bool {
        self.part == Part::RequestLine
    }

    fn read_line(&mut self, line: &[u8]) {
        let blank = matches!(line, b"\n" | b"\r\n");
        match self.part {
            Part::RequestLine if !blank => self.part = Part::Fields,
            Part::Fields if blank => self.part = Part::End,
            Part::Fields => self.count += usize::from(is_length(line)),
            _ => {}
        }
    }
}

fn is_length(line: &[u8]) -> bool {
    LENGTHS.iter().any(|name| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_however_the_bytes_are_cut() {
        for (head, wanted) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1", 1),
            ("POST / HTTP/1.1\r\ncontent-LENGTH:1\r\nA: b\r\nTRANSFER-encoding: chunked\r\n\r\n", 2),
            ("\r\n\nPOST / HTTP/1.1\nContent-Length: 1\nContent-Length: 1\n\n", 2),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nContent-Length: 1\r\n", 1),
            ("Content-Length: 1\r\nContent-Lengths: 1\r\nX-Content-Length: 1\r\n: Content-Length: 1\r\n\r\n", 0),
        ] {
            let head = head.as_bytes();
            for size in 1..=head.len() {
                let mut fields = LengthFields::default();
                let counts: Vec<usize> = head.chunks(size).map(|piece| fields.read(piece)).collect();
                assert_eq!(counts.last(), Some(&wanted), "{:?} by {size}", String::from_utf8_lossy(head));
            }
        }
    }
}
