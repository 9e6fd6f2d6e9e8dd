//! The files of credentials.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::info;

use super::{
    grant::Grant,
    keys::{KEY_MARK, Keys},
    tokens::Tokens,
};
use crate::http::reload::{Reloaded, text};

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

/// The credentials that hold now.
pub struct Access(Arc<Reloaded<Credentials>>);

#[derive(Default)]
struct Credentials {
    keys: Keys,
    tokens: Option<Tokens>,
}

impl AccessFiles {
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

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is broken, and where.
    pub fn open(files: AccessFiles) -> Result<Arc<Self>, String> {
        const STILL: &str = "the credentials that were read before still hold";
        let paths = files.keys.iter().chain(&files.jwt_keys).cloned().collect();
        Ok(Arc::new(Self(Reloaded::open(paths, STILL, move || files.read())?)))
    }

    /// Reads the files again whenever they change, and on SIGHUP.
    pub async fn watch(self: Arc<Self>) {
        Arc::clone(&self.0).watch().await;
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// What is wrong, in words for the client.
    pub fn grant(&self, token: &str, now_ms: u64) -> Result<Arc<Grant>, &'static str> {
        let current = self.0.current();
        match (token.strip_prefix(KEY_MARK), &current.tokens) {
            (Some(key), _) => current.keys.grant(key, now_ms),
            (None, Some(tokens)) => tokens.grant(token, now_ms),
            (None, None) => Err("The token is not known."),
        }
    }
}
