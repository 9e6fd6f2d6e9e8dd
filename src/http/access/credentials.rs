//! The files of credentials, read again when they change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::{
    grant::Grant,
    keys::{KEY_MARK, Keys},
    tokens::Tokens,
};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(2);
/// Largest file, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// Where the credentials stand.
#[derive(Clone, Debug, Default)]
pub struct AccessFiles {
    /// API keys: NDJSON.
    pub keys: Option<PathBuf>,
    /// Keys of JWTs: a JWKS, a public key in PEM, or a secret.
    pub jwt_keys: Option<PathBuf>,
    /// The `iss` that every JWT must have.
    pub jwt_issuer: Option<String>,
    /// The `aud` that every JWT must have; where absent, none may have one.
    pub jwt_audience: Option<String>,
}

/// What is compared to find out whether a file has changed: its time, its length, and itself.
type Stamp = Option<(SystemTime, u64, u64)>;

/// The credentials that hold now.
pub struct Access {
    files: AccessFiles,
    current: ArcSwap<Credentials>,
    /// Of the files when they were read last, well or badly.
    stamps: Mutex<[Stamp; 2]>,
}

#[derive(Default)]
struct Credentials {
    keys: Keys,
    tokens: Option<Tokens>,
}

impl AccessFiles {
    fn stamps(&self) -> [Stamp; 2] {
        let stamp = |path: &Option<PathBuf>| {
            let metadata = fs::metadata(path.as_ref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        [stamp(&self.keys), stamp(&self.jwt_keys)]
    }

    fn read(&self) -> Result<Credentials, String> {
        let parsed = |path: &Path, error: String| format!("{}: {error}", path.display());
        let mut credentials = Credentials::default();
        if let Some(path) = &self.keys {
            credentials.keys = text(path).and_then(|text| Keys::parse(&text)).map_err(|why| parsed(path, why))?;
            info!(file = %path.display(), keys = credentials.keys.len(), "API keys read");
        }
        if let Some(path) = &self.jwt_keys {
            let tokens = text(path)
                .and_then(|text| Tokens::parse(&text, self.jwt_issuer.clone(), self.jwt_audience.clone()))
                .map_err(|why| parsed(path, why))?;
            info!(file = %path.display(), keys = tokens.len(), "keys of JWTs read");
            credentials.tokens = Some(tokens);
        }
        Ok(credentials)
    }
}

fn text(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<String> {
        if fs::metadata(path)?.len() > FILE_MAX {
            return Err(io::Error::other("it is too large"));
        }
        fs::read_to_string(path)
    };
    read().map_err(|error| error.to_string())
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is broken, and where.
    pub fn open(files: AccessFiles) -> Result<Arc<Self>, String> {
        // Before they are read: what is changed meanwhile is read again.
        let stamps = Mutex::new(files.stamps());
        let current = ArcSwap::from_pointee(files.read()?);
        Ok(Arc::new(Self { files, current, stamps }))
    }

    /// Reads the files again whenever they change, and on SIGHUP. While one is broken, what was read last holds.
    pub async fn watch(self: Arc<Self>) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return warn!(%error, "cannot wait for SIGHUP: the files of keys are not read again"),
        };
        loop {
            let told = tokio::select! {
                () = tokio::time::sleep(POLL) => false,
                _ = hangup.recv() => true,
            };
            let this = Arc::clone(&self);
            // A file may be far away, and slow.
            if let Err(error) = tokio::task::spawn_blocking(move || this.refresh(told)).await {
                error!(%error, "reading the files of keys failed");
            }
        }
    }

    fn refresh(&self, told: bool) {
        let stamps = self.files.stamps();
        let before = std::mem::replace(&mut *self.stamps.lock().expect("nobody panics while it is locked"), stamps);
        if !told && stamps == before {
            return;
        }
        match self.files.read() {
            Ok(credentials) => self.current.store(Arc::new(credentials)),
            Err(error) => error!(error, "the credentials that were read before still hold"),
        }
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// What is wrong, in words for the client.
    pub fn grant(&self, token: &str, now_ms: u64) -> Result<Arc<Grant>, &'static str> {
        let current = self.current.load();
        match (token.strip_prefix(KEY_MARK), &current.tokens) {
            (Some(key), _) => current.keys.grant(key, now_ms),
            (None, Some(tokens)) => tokens.grant(token, now_ms),
            (None, None) => Err("The token is not known."),
        }
    }
}
