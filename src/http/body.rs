//! Reading bodies: JSON, plain or compressed, bounded in bytes and time, and all together bounded in memory.

use std::{io::Read as _, ops::Deref, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header},
};
use flate2::read::MultiGzDecoder;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Limits,
    extract::{ACCEPT_POST, JSON},
    problem::{Code, Problem},
};

/// How long a request waits for room before it is refused.
const ROOM_WAIT: Duration = Duration::from_secs(1);
/// Largest window of a zstd frame: 8 MiB, what RFC 8878 §3.1.1.1.2 asks decoders to support. More is memory that a few
/// bytes could ask for.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Room for the bodies of all requests under way.
#[derive(Clone)]
pub struct Room(Arc<Semaphore>);

impl Room {
    /// Room for that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.div_ceil(1024))))
    }

    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let taken = tokio::time::timeout(ROOM_WAIT, Arc::clone(&self.0).acquire_many_owned(kib(bytes))).await;
        let refused =
            || Problem::new(Code::Overloaded, "Too many bytes are under way; nothing was written. Try again soon.");
        taken.map_err(|_| refused()).map(|permit| permit.expect("the semaphore is never closed"))
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// A body that was read. Gives back its room when it is dropped.
pub struct ReadBody {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Deref for ReadBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a JSON body within the limits, which count after decompression.
///
/// # Errors
/// `unsupported-media-type`, `payload-too-large`, `request-timeout`, `invalid-json`, `overloaded`
pub async fn json_body(headers: &HeaderMap, body: Body, limits: &Limits, room: &Room) -> Result<ReadBody, Problem> {
    check_json_type(headers)?;
    let max = limits.body_bytes;
    let coding =
        headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes).filter(|coding| *coding != b"identity");
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > max) {
        return Err(too_large(max));
    }
    // Where nobody has said how much will come, it is the most that may.
    let mut room = room.take(length.filter(|_| coding.is_none()).unwrap_or(max)).await?;
    let read = tokio::time::timeout(limits.body_timeout, Limited::new(body, max).collect()).await;
    let bytes = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large(max)),
        Ok(Err(_)) => return Err(Problem::new(Code::InvalidJson, "The body broke off.").closing()),
        Err(_) => {
            let detail = format!("A body arrives within {} seconds.", limits.body_timeout.as_secs());
            return Err(Problem::new(Code::RequestTimeout, detail).closing());
        }
    };
    let bytes = match coding {
        None => bytes,
        Some(coding) => decompressed(coding == b"zstd", bytes, max).await?,
    };
    let needed = usize::try_from(kib(bytes.len())).unwrap_or(usize::MAX);
    drop(room.split(room.num_permits().saturating_sub(needed)));
    Ok(ReadBody { bytes, _room: room })
}

/// Decompresses on a thread where it holds up nobody. All members of a gzip file and all frames of zstd belong to the
/// body; bytes behind them are a fault.
async fn decompressed(zstd: bool, bytes: Bytes, max: usize) -> Result<Bytes, Problem> {
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let decompress = move || -> std::io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        if zstd {
            let mut decoder = zstd::stream::read::Decoder::new(&*bytes)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            decoder.take(most).read_to_end(&mut plain)?;
        } else {
            MultiGzDecoder::new(&*bytes).take(most).read_to_end(&mut plain)?;
        }
        Ok(plain)
    };
    match tokio::task::spawn_blocking(decompress).await {
        Ok(Ok(plain)) if plain.len() > max => Err(too_large(max)),
        Ok(Ok(plain)) => Ok(plain.into()),
        _ => Err(Problem::new(Code::InvalidJson, "The body cannot be decompressed.")),
    }
}

fn too_large(max: usize) -> Problem {
    Problem::new(Code::PayloadTooLarge, format!("A body has at most {max} bytes, after decompression.")).closing()
}

fn check_json_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    // Two types are none: nobody knows which one was meant.
    let one = types.next().filter(|_| types.next().is_none());
    let text = one.and_then(|value| value.to_str().ok()).unwrap_or_default();
    // As nearly all write it.
    if text == "application/json" {
        return Ok(());
    }
    let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let json = parts.next().is_some_and(|media| media == "application/json");
    let utf8 = parts.all(|part| part.strip_prefix("charset=").is_none_or(|set| set.trim_matches('"') == "utf-8"));
    if json && utf8 {
        return Ok(());
    }
    let detail = "Send Content-Type: application/json (in UTF-8).";
    Err(Problem::new(Code::UnsupportedMediaType, detail).header(ACCEPT_POST, JSON))
}
