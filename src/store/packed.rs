//! Commands of Redis (RESP2) as they are sent: what many requests add to is put together from what each has ready.

use bytes::BytesMut;
use redis::{Cmd, Pipeline};

use crate::store::reply::{Parts, Replies};

/// Room for the beginning of a command: its length, `FCALL`, the function's name, and how many keys there are.
const HEAD: usize = 128;

/// Adds a word to those of a command.
pub(super) fn add_word(packed: &mut Vec<u8>, word: impl AsRef<[u8]>) {
    let word = word.as_ref();
    add_head(packed, b'$', word.len());
    packed.extend_from_slice(word);
    packed.extend_from_slice(b"\r\n");
}

fn add_head(packed: &mut Vec<u8>, kind: u8, number: usize) {
    packed.push(kind);
    packed.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    packed.extend_from_slice(b"\r\n");
}

/// Commands, ready to be sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) bytes: Vec<u8>,
    /// How many commands.
    pub(super) count: usize,
}

impl Packed {
    /// Makes room for so many further bytes of words.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes + HEAD);
    }

    /// Begins a command of so many words, which are to be added.
    pub(super) fn begin(&mut self, words: usize) {
        add_head(&mut self.bytes, b'*', words);
        self.count += 1;
    }

    /// Adds a word.
    pub(super) fn word(&mut self, word: impl AsRef<[u8]>) {
        add_word(&mut self.bytes, word);
    }

    /// Adds a number.
    pub(super) fn number(&mut self, number: impl itoa::Integer) {
        self.word(itoa::Buffer::new().format(number));
    }

    /// Adds words that are packed already.
    pub(super) fn words(&mut self, packed: &[u8]) {
        self.bytes.extend_from_slice(packed);
    }
}

impl From<&Pipeline> for Packed {
    fn from(commands: &Pipeline) -> Self {
        Self { bytes: commands.get_packed_pipeline(), count: commands.len() }
    }
}

/// By TLS, where redis-rs sends. Commands look as replies do: lists of words.
impl From<&Packed> for Pipeline {
    fn from(packed: &Packed) -> Self {
        let (mut rest, mut commands) = (BytesMut::from(&packed.bytes[..]), Replies::default());
        let mut pipeline = Self::with_capacity(packed.count);
        while let Ok(Some(command)) = commands.next(&mut rest) {
            pipeline.add_command(unpacked(&mut command.parts()));
        }
        pipeline
    }
}

fn unpacked(words: &mut Parts<'_>) -> Cmd {
    let mut command = Cmd::new();
    for _ in 0..words.list().unwrap_or_default() {
        command.arg(words.bytes().unwrap_or_default());
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_as_redis_rs_packs_them() {
        let mut packed = Packed::default();
        packed.begin(3);
        packed.word("SET");
        packed.words(b"$1\r\nk\r\n");
        packed.word([0, 13, 10, 255]);
        packed.begin(3);
        packed.word("WAIT");
        packed.number(1_u16);
        packed.number(2_500_u64);
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg("k").arg(&[0_u8, 13, 10, 255][..]);
        pipeline.cmd("WAIT").arg(1).arg(2_500);
        assert_eq!(packed, Packed::from(&pipeline));
        assert_eq!(packed, Packed::from(&Pipeline::from(&packed)));
    }
}
