//! How appends become calls of `es_append`, and answers of theirs.

use bytes::Bytes;
use redis::{Arg, Cmd, ServerError, ToRedisArgs, Value};

use crate::model::Partition;

/// The log, and the three keys of a stream.
const KEYS: usize = 4;
/// One call has at most so many bytes of payload, unless one append has more: Redis does nothing else meanwhile. About
/// 150 small events, some two milliseconds.
const BYTES_MAX: usize = 64 * 1024;

/// One append: the keys and arguments that a call has which is about this alone.
pub(super) struct AppendCall {
    pub(super) partition: Partition,
    /// Bytes of payload.
    pub(super) bytes: usize,
    words: Cmd,
}

impl AppendCall {
    /// `events` and `bytes` are how many there will be.
    pub(super) fn new(partition: Partition, keys: &[String; KEYS], events: usize, bytes: usize) -> Self {
        let mut words = Cmd::with_capacity(KEYS + 5 + 5 * events, bytes + 256);
        words.arg(keys);
        Self { partition, bytes, words }
    }

    pub(super) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.words.arg(arg);
        self
    }

    fn words(&self) -> impl Iterator<Item = &[u8]> {
        simple(&self.words)
    }
}

/// The words of a command without a cursor: all of them.
fn simple(command: &Cmd) -> impl Iterator<Item = &[u8]> {
    command.args_iter().filter_map(|word| if let Arg::Simple(word) = word { Some(word) } else { None })
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

/// One call for appends of one partition.
pub(super) fn command<'a>(function: &str, appends: impl Iterator<Item = &'a AppendCall> + Clone) -> Cmd {
    let (mut words, mut bytes, mut count) = (0, 0, 0);
    for append in appends.clone() {
        words += append.words.args_iter().len();
        bytes += append.bytes + 256;
        count += 1;
    }
    let mut call = Cmd::with_capacity(3 + words, bytes);
    call.arg("FCALL").arg(function).arg(1 + (KEYS - 1) * count);
    for (number, append) in appends.clone().enumerate() {
        for key in append.words().take(KEYS).skip(usize::from(number > 0)) {
            call.arg(key);
        }
    }
    for argument in appends.flat_map(|append| append.words().skip(KEYS)) {
        call.arg(argument);
    }
    call
}

/// What a call said of one of its appends.
#[derive(Debug)]
pub(super) enum Answer {
    /// A line of its own: numbers, or an error of the function.
    Line(Bytes),
    /// Redis refused the call.
    Refused(ServerError),
    /// That is no answer of `es_append`.
    Strange(Value),
}

/// The answers to `count` appends that were one call.
pub(super) fn answers(reply: Value, count: usize) -> Vec<Answer> {
    match reply {
        Value::ServerError(error) => (0..count).map(|_| Answer::Refused(error.clone())).collect(),
        Value::BulkString(text) if text.split(|byte| *byte == b'\n').count() == count => {
            let text = Bytes::from(text);
            text.split(|byte| *byte == b'\n').map(|line| Answer::Line(text.slice_ref(line))).collect()
        }
        strange => (0..count).map(|_| Answer::Strange(strange.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Partitions;

    fn append(partition: Partition, stream: &str, bytes: usize) -> AppendCall {
        let keys = ["l".to_owned(), format!("e:{stream}"), format!("i:{stream}"), format!("s:{stream}")];
        let mut append = AppendCall::new(partition, &keys, 1, bytes);
        append.arg("1").arg(stream);
        append
    }

    #[test]
    fn a_call_has_all_keys_and_then_all_arguments() {
        let appends = ["a", "b"].map(|stream| append(Partition::FIRST, stream, 9));
        let call = command("es_append", appends.iter());
        let words: Vec<_> = simple(&call).map(String::from_utf8_lossy).collect();
        let expected = ["FCALL", "es_append", "7", "l", "e:a", "i:a", "s:a", "e:b", "i:b", "s:b", "1", "a", "1", "b"];
        assert_eq!(words, expected);
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
        let lines = answers(Value::BulkString(b"1 1 5 0\nWRONGVERSION 7".to_vec()), 2);
        assert!(
            matches!(&lines[..], [Answer::Line(one), Answer::Line(two)] if one == "1 1 5 0" && two == "WRONGVERSION 7")
        );
        for strange in [Value::BulkString(b"1 1 5 0".to_vec()), Value::Nil] {
            assert!(matches!(&answers(strange, 2)[..], [Answer::Strange(_), Answer::Strange(_)]));
        }
    }
}
