//! gRPC over HTTP/2 with ready bytes: one request at a time on a connection, headers that the static table has, and of the
//! answer only the frames' heads and the data are looked at.

/// What a client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for answers, in a stream and in all of the connection's life.
const WINDOW: u32 = 1 << 30;
/// The largest frame that may be sent without asking.
const FRAME: usize = 16_384;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection to one method.
pub struct Connection {
    path: &'static str,
    /// What is sent before the next request.
    before: Vec<u8>,
    /// The next request's.
    stream: u32,
    /// Whether the server's settings have come.
    settled: bool,
    /// The message of the last answer, or the last one of several.
    pub data: Vec<u8>,
}

impl Connection {
    pub fn new(path: &'static str) -> Self {
        let mut before = PREFACE.to_vec();
        let room = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
        frame(&mut before, SETTINGS, 0, 0, &room);
        frame(&mut before, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        Self { path, before, stream: 1, settled: false, data: Vec::new() }
    }

    pub fn request(&mut self, out: &mut Vec<u8>, message: &[u8]) {
        out.append(&mut self.before);
        // POST, http; then literals that are not kept, with names of the static table where it has them.
        let mut head = vec![0x83, 0x86];
        literal(&mut head, &[0x04], self.path);
        literal(&mut head, &[0x01], "localhost");
        literal(&mut head, &[0x0f, 0x10], "application/grpc");
        literal(&mut head, b"\x00\x02te", "trailers");
        frame(out, HEADERS, END_HEADERS, self.stream, &head);
        let length = u32::try_from(message.len()).expect("messages are short");
        let body = [&[0][..], &length.to_be_bytes(), message].concat();
        let mut parts = body.chunks(FRAME).peekable();
        while let Some(part) = parts.next() {
            frame(out, DATA, if parts.peek().is_none() { END_STREAM } else { 0 }, self.stream, part);
        }
        self.stream += 2;
    }

    /// The length of all frames up to the end of the answer.
    pub fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let (mut at, mut data, mut settled) = (0, Vec::new(), false);
        loop {
            let head: [u8; 9] = input.get(at..at + 9)?.try_into().expect("it is as long");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let end = at + 9 + usize::try_from(length).expect("frames are short");
            let payload = input.get(at + 9..end)?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            at = end;
            assert!(!matches!(head[3], RESET | GO_AWAY), "{}", String::from_utf8_lossy(payload));
            settled |= head[3] == SETTINGS && head[4] == 0;
            if head[3] == DATA {
                data.extend_from_slice(payload);
            }
            if stream + 2 == self.stream && matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0 {
                assert!(
                    !data.is_empty(),
                    "an answer without a message is an error: {:?}",
                    String::from_utf8_lossy(input)
                );
                if settled && !self.settled {
                    self.settled = true;
                    frame(&mut self.before, SETTINGS, 1, 0, &[]);
                }
                self.data = data;
                return Some(at);
            }
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A header field whose name is written already; values are short and not compressed.
fn literal(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.push(u8::try_from(value.len()).expect("values are short"));
    out.extend_from_slice(value.as_bytes());
}
