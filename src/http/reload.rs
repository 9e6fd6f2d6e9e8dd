//! What is read from files, and read again when they change, or on SIGHUP. While one is broken, what was read last holds.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, warn};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(2);
/// Largest file, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// What is compared to find out whether a file has changed: its time, its length, and itself.
type Stamp = Option<(SystemTime, u64, u64)>;

/// What some files say.
pub struct Reloaded<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    current: ArcSwap<T>,
    /// Of the files when they were read last, well or badly.
    stamps: Mutex<Vec<Stamp>>,
    /// What is logged where a file is broken.
    still: &'static str,
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the files. `still` is what is logged where one of them is broken later.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn open(
        files: Vec<PathBuf>,
        still: &'static str,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, String> {
        // Before they are read: what is changed meanwhile is read again.
        let stamps = Mutex::new(stamps(&files));
        let current = ArcSwap::from_pointee(read()?);
        Ok(Arc::new(Self { files, read: Box::new(read), current, stamps, still }))
    }

    /// What they say now.
    pub fn current(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads them again whenever it is due; never ends.
    pub async fn watch(self: Arc<Self>) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return warn!(%error, "cannot wait for SIGHUP: files are not read again"),
        };
        loop {
            let told = tokio::select! {
                () = tokio::time::sleep(POLL) => false,
                _ = hangup.recv() => true,
            };
            let this = Arc::clone(&self);
            // A file may be far away, and slow.
            if let Err(error) = tokio::task::spawn_blocking(move || this.refresh(told)).await {
                error!(%error, "reading files failed");
            }
        }
    }

    fn refresh(&self, told: bool) {
        let stamps = stamps(&self.files);
        let mut last = self.stamps.lock().expect("nobody panics while it is locked");
        let before = std::mem::replace(&mut *last, stamps);
        if !told && *last == before {
            return;
        }
        drop(last);
        match (self.read)() {
            Ok(read) => self.current.store(Arc::new(read)),
            Err(error) => error!(error, "{}", self.still),
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    files.iter().map(stamp).collect()
}

/// The text of a file.
///
/// # Errors
/// Why it cannot be had, without the file's name.
pub fn text(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<String> {
        if fs::metadata(path)?.len() > FILE_MAX {
            return Err(io::Error::other("it is too large"));
        }
        fs::read_to_string(path)
    };
    read().map_err(|error| error.to_string())
}
