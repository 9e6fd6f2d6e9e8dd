//! The lines of a file or of standard input, plain or gzip.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

use super::Stopped;
use crate::cli::Failure;

/// What gzip begins with (RFC 1952 §2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Longest line: the longest body that a service can be made to take (`--body-bytes-max`).
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Lines that wait for the dispatcher. A few: lines may be large.
const LINES_WAITING: usize = 4;
/// Read at a time. Small, for progress is told by what was read.
const BUFFER_BYTES: usize = 16 * 1024;

/// Where lines come from.
pub struct Source {
    input: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
    /// Bytes in all, as they lie on disk; `None` where that is not known.
    pub bytes_all: Option<u64>,
}

/// A line that is not blank, without its end.
pub struct RawLine {
    /// Its number in the file, from 1; blank lines count.
    pub number: u64,
    /// What stands in it.
    pub text: String,
    /// How many bytes of the source had been read by then, as they lie on disk.
    pub offset: u64,
}

enum ReadError {
    /// The line breaks a rule.
    Line(&'static str),
    /// The file, the pipe or the compression is broken.
    Input(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Input(error)
    }
}

struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Source {
    /// Opens the file, or standard input where it is `-`.
    ///
    /// # Errors
    /// Where there is no such file, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let read = Arc::new(AtomicU64::new(0));
        if path.as_os_str() == "-" {
            return Ok(Self { input: Box::new(io::stdin()), read, bytes_all: None });
        }
        let open = || {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok((file, metadata)) }
        };
        let (file, metadata) = open().map_err(|error: io::Error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Self { input: Box::new(file), read, bytes_all: metadata.is_file().then_some(metadata.len()) })
    }

    /// Reads the lines on a thread of its own.
    ///
    /// No task of the runtime: at its end the runtime would wait for a read of standard input, which may never come.
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn lines(self) -> io::Result<mpsc::Receiver<Result<RawLine, Stopped>>> {
        let (lines, receiver) = mpsc::channel(LINES_WAITING);
        let reader = thread::Builder::new().name("import-reader".to_owned());
        reader.spawn(move || {
            let mut number = 0;
            if let Err(error) = self.send_lines(&mut number, &lines) {
                let (problem, line_is_wrong) = match error {
                    ReadError::Line(problem) => (problem.to_owned(), true),
                    ReadError::Input(error) => (format!("cannot read on: {error}"), false),
                };
                // Nobody listens any more where the import has stopped.
                let _ = lines.blocking_send(Err(Stopped { number, problem, line_is_wrong }));
            }
        })?;
        Ok(receiver)
    }

    fn send_lines(self, number: &mut u64, lines: &mpsc::Sender<Result<RawLine, Stopped>>) -> Result<(), ReadError> {
        let Self { input, read, .. } = self;
        *number = 1;
        let mut reader = decoded(Counted { input, read: Arc::clone(&read) })?;
        while let Some(text) = next_line(&mut reader)? {
            if !text.trim_ascii().is_empty() {
                let line = RawLine { number: *number, text, offset: read.load(Ordering::Relaxed) };
                if lines.blocking_send(Ok(line)).is_err() {
                    return Ok(());
                }
            }
            *number += 1;
        }
        Ok(())
    }
}

/// The input's text, gzip or not: its first bytes tell.
fn decoded(mut input: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead>> {
    let mut magic = Vec::with_capacity(GZIP_MAGIC.len());
    // A pipe may hand over a single byte, so this reads until it has both.
    input.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    let gzip = magic == GZIP_MAGIC;
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(input));
    Ok(if gzip {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(whole)))
    } else {
        Box::new(whole)
    })
}

/// The next line without its end; `None` where there is no more.
fn next_line(reader: &mut impl BufRead) -> Result<Option<String>, ReadError> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_some() {
        line.pop_if(|last| *last == b'\r');
    } else if line.len() as u64 > LINE_BYTES_MAX {
        return Err(ReadError::Line("it is longer than 64 MiB"));
    }
    String::from_utf8(line).map(Some).map_err(|_| ReadError::Line("it is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn texts(bytes: Vec<u8>) -> Vec<String> {
        let mut reader = decoded(Cursor::new(bytes)).expect("memory can be read");
        std::iter::from_fn(|| next_line(&mut reader).ok().expect("good lines")).collect()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).expect("memory can be written");
        encoder.finish().expect("memory can be written")
    }

    #[test]
    fn lines_end_with_or_without_their_end() {
        assert_eq!(texts(b"a\r\nb\n\nc".to_vec()), ["a", "b", "", "c"]);
        assert_eq!(texts(b"x".to_vec()), ["x"], "shorter than the magic bytes");
        assert!(texts(Vec::new()).is_empty());
    }

    #[test]
    fn gzip_may_have_several_members() {
        assert_eq!(texts([gzip(b"a\nb"), gzip(b"c\n")].concat()), ["a", "bc"]);
    }
}
