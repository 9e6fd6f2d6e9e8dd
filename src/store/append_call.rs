//! How appends become calls of `es_append`, and answers of theirs.

use bytestring::ByteString;
use redis::ServerError;

use crate::{
    model::Partition,
    store::{
        packed::{Packed, add_word},
        reply::Reply,
    },
};

/// The log, and the three keys of a stream.
const KEYS: usize = 4;
/// One call has at most so many bytes of payload, unless one append has more: Redis does nothing else meanwhile. About
/// 150 small events, some two milliseconds.
const BYTES_MAX: usize = 64 * 1024;

/// One append: the keys and arguments that a call has which is about this alone, packed.
pub(super) struct AppendCall {
    pub(super) partition: Partition,
    /// Bytes of payload.
    pub(super) bytes: usize,
    words: Vec<u8>,
    /// Where the log's key ends, and the last key.
    ends: [usize; 2],
    /// How many arguments there are.
    arguments: usize,
}

impl AppendCall {
    /// `bytes` is how many the payload will have.
    pub(super) fn new(partition: Partition, keys: &[String; KEYS], bytes: usize) -> Self {
        let mut words = Vec::with_capacity(bytes + 512);
        add_word(&mut words, &keys[0]);
        let log = words.len();
        for key in &keys[1..] {
            add_word(&mut words, key);
        }
        let ends = [log, words.len()];
        Self { partition, bytes, words, ends, arguments: 0 }
    }

    pub(super) fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        add_word(&mut self.words, arg);
        self.arguments += 1;
        self
    }
}

/// Those of the same partition that follow one another, as far as they fit into one call.
pub(super) fn shares<T>(appends: &[T], append: impl Fn(&T) -> &AppendCall) -> impl Iterator<Item = &[T]> {
    let mut bytes = 0;
    appends.chunk_by(move |one, next| {
        let (one, next) = (append(one), append(next));
        bytes += one.bytes;
        let together = one.partition == next.partition && bytes + next.bytes <= BYTES_MAX;
        if !together {
            bytes = 0;
        }
        together
    })
}

/// Adds a call for appends of one partition.
pub(super) fn add_call<'a>(
    commands: &mut Packed,
    function: &str,
    appends: impl Iterator<Item = &'a AppendCall> + Clone,
) {
    let (mut keys, mut arguments, mut bytes) = (1, 0, 0);
    for append in appends.clone() {
        keys += KEYS - 1;
        arguments += append.arguments;
        bytes += append.words.len();
    }
    commands.reserve(bytes);
    commands.begin(3 + keys + arguments);
    commands.word("FCALL");
    commands.word(function);
    commands.number(keys);
    if let Some(AppendCall { words, ends: [log, _], .. }) = appends.clone().next() {
        commands.words(&words[..*log]);
    }
    for AppendCall { words, ends: [log, keys], .. } in appends.clone() {
        commands.words(&words[*log..*keys]);
    }
    for AppendCall { words, ends: [_, keys], .. } in appends {
        commands.words(&words[*keys..]);
    }
}

/// What a call said of one of its appends.
#[derive(Debug)]
pub(super) enum Answer {
    /// A line of its own: numbers, or an error of the function.
    Line(ByteString),
    /// Redis refused the call.
    Refused(ServerError),
    /// That is no answer of `es_append`.
    Strange(Reply),
}

/// The answers to `count` appends that were one call.
pub(super) fn answers(reply: &Reply, count: usize) -> Vec<Answer> {
    if let Some(error) = reply.error() {
        return (0..count).map(|_| Answer::Refused(error.clone())).collect();
    }
    match reply.parts().string() {
        Some(text) if text.split('\n').count() == count => {
            text.split('\n').map(|line| Answer::Line(text.slice_ref(line))).collect()
        }
        _ => (0..count).map(|_| Answer::Strange(reply.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use redis::{Pipeline, Value};

    use super::*;
    use crate::model::Partitions;

    fn append(partition: Partition, stream: &str, bytes: usize) -> AppendCall {
        let keys = ["l".to_owned(), format!("e:{stream}"), format!("i:{stream}"), format!("s:{stream}")];
        let mut append = AppendCall::new(partition, &keys, bytes);
        append.arg("1").arg(stream);
        append
    }

    #[test]
    fn a_call_has_all_keys_and_then_all_arguments() {
        let appends = ["a", "b"].map(|stream| append(Partition::FIRST, stream, 9));
        let mut call = Packed::default();
        add_call(&mut call, "es_append", appends.iter());
        let mut expected = Pipeline::new();
        let words = ["es_append", "7", "l", "e:a", "i:a", "s:a", "e:b", "i:b", "s:b", "1", "a", "1", "b"];
        expected.cmd("FCALL").arg(&words);
        assert_eq!(call, Packed::from(&expected));
    }

    #[test]
    fn a_call_is_about_one_partition_and_has_an_end() {
        let two: Vec<_> = Partitions::new(2).expect("in range").all().collect();
        let (p, q) = (two[0], two[1]);
        let sizes = |appends: &[AppendCall]| shares(appends, |append| append).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(&[append(p, "a", 9), append(p, "b", 9), append(q, "c", 9), append(p, "d", 9)]), [2, 1, 1]);
        let (half, whole) = (BYTES_MAX / 2, BYTES_MAX + 1);
        let appends = [half, half, half, whole, 1, 2].map(|bytes| append(p, "a", bytes));
        assert_eq!(sizes(&appends), [2, 1, 1, 2]);
        assert_eq!(sizes(&[]), [] as [usize; 0]);
    }

    #[test]
    fn each_append_has_an_answer_of_its_own() {
        let reply = |text: &[u8]| Reply::from(Value::BulkString(text.to_vec()));
        let lines = answers(&reply(b"1 1 5 0\nWRONGVERSION 7"), 2);
        assert!(
            matches!(&lines[..], [Answer::Line(one), Answer::Line(two)] if one == "1 1 5 0" && two == "WRONGVERSION 7")
        );
        for strange in [reply(b"1 1 5 0"), Reply::from(Value::Nil), reply(b"\xff\n1")] {
            assert!(matches!(&answers(&strange, 2)[..], [Answer::Strange(_), Answer::Strange(_)]));
        }
        let refused = Reply::from(redis::parse_redis_value(b"-READONLY no\r\n").expect("it is RESP"));
        assert!(matches!(&answers(&refused, 2)[..], [Answer::Refused(_), Answer::Refused(_)]));
    }
}
