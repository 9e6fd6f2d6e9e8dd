//! The Redis Functions library: joined from `migrations-lua/functions/`, versioned by its own text.

use std::{collections::BTreeSet, fmt::Write as _};

use redis::aio::ConnectionLike;
use sha2::{Digest, Sha256};
use tracing::info;

use crate::store::{connections::Connections, errors::StartError};

macro_rules! lua {
    ($($name:literal)*) => { &[$(include_str!(concat!("../../migrations-lua/functions/", $name, ".lua")),)*] };
}

const SHARED: &[&str] = lua!("library" "groups");
const FUNCTIONS: &[&str] = lua!(
    "ack" "append" "copy" "delete_group" "drop_consumers" "expire" "extend" "nack" "next" "put_group" "register_group"
    "release" "replay" "settled" "status"
);

/// Every library of ours begins with this; the suffix follows.
const LIBRARY_PREFIX: &str = "streamkeep_";

/// A Redis Functions library: its text, and the suffix that its names end in.
#[derive(Clone, Debug)]
pub struct Library {
    suffix: String,
    code: String,
}

impl Default for Library {
    fn default() -> Self {
        Self::from_source(&Self::source())
    }
}

impl Library {
    /// The text of this build's library, without the lines that depend on its hash.
    #[must_use]
    pub fn source() -> String {
        let mut source = SHARED.concat();
        for function in FUNCTIONS {
            // A block of its own, so that no file sees another's locals.
            write!(source, "\ndo\n{function}end\n").expect("writing to memory cannot fail");
        }
        source
    }

    /// A library with this text. Names end in the first 8 hex digits of its SHA-256, so another text never replaces it.
    #[must_use]
    pub fn from_source(source: &str) -> Self {
        let suffix = format!("_{}", &hex(&Sha256::digest(source))[..8]);
        let code = format!("#!lua name={LIBRARY_PREFIX}{}\nlocal suffix = '{suffix}'\n{source}", &suffix[1..]);
        Self { suffix, code }
    }

    /// The full name of a function, for `FCALL`.
    #[must_use]
    pub fn function(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    /// The name under which `FUNCTION LIST` shows the library.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{LIBRARY_PREFIX}{}", &self.suffix[1..])
    }

    /// Loads the library unless it is there (`FUNCTION LOAD`, Redis 7.0). Never replaces anything.
    ///
    /// # Errors
    /// What Redis answers; that the library is there already is no error.
    pub async fn load(&self, redis: &mut impl ConnectionLike) -> redis::RedisResult<()> {
        let loaded: redis::RedisResult<String> =
            redis::cmd("FUNCTION").arg("LOAD").arg(&self.code).query_async(redis).await;
        match loaded {
            Ok(_) => info!(library = self.name(), "functions loaded"),
            Err(error) if error.to_string().contains("already exists") => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the library is loaded (`FUNCTION LIST`).
    ///
    /// # Errors
    /// What Redis answers.
    pub async fn is_loaded(&self, redis: &mut impl ConnectionLike) -> redis::RedisResult<bool> {
        Ok(names(redis, &self.name()).await?.contains(&self.name()))
    }

    /// The names of the libraries of other versions that are loaded.
    ///
    /// # Errors
    /// What Redis answers.
    pub async fn others(&self, redis: &mut impl ConnectionLike) -> redis::RedisResult<Vec<String>> {
        let mut others = names(redis, &format!("{LIBRARY_PREFIX}*")).await?;
        others.retain(|name| *name != self.name());
        Ok(others)
    }

    /// Removes the libraries of other versions, and says which they were. Only for when no older instance runs.
    ///
    /// # Errors
    /// What Redis answers.
    pub async fn prune(&self, connections: &Connections) -> Result<Vec<String>, StartError> {
        let mut removed = BTreeSet::new();
        for (primary, _) in connections.primaries() {
            let mut redis = primary.exclusive().await?;
            for name in self.others(&mut redis).await? {
                redis::cmd("FUNCTION").arg("DELETE").arg(&name).query_async::<()>(&mut redis).await?;
                removed.insert(name);
            }
        }
        Ok(removed.into_iter().collect())
    }

    /// Loads the library on each primary, unless it is there.
    ///
    /// # Errors
    /// What Redis answers.
    pub async fn load_everywhere(&self, connections: &Connections) -> Result<(), StartError> {
        for (primary, _) in connections.primaries() {
            self.load(&mut primary.exclusive().await?).await?;
        }
        Ok(())
    }
}

/// The names of the loaded libraries that match a pattern.
async fn names(redis: &mut impl ConnectionLike, pattern: &str) -> redis::RedisResult<Vec<String>> {
    let libraries: Vec<std::collections::HashMap<String, redis::Value>> =
        redis::cmd("FUNCTION").arg("LIST").arg("LIBRARYNAME").arg(pattern).query_async(redis).await?;
    let name = |mut library: std::collections::HashMap<_, _>| library.remove("library_name");
    libraries.into_iter().filter_map(name).map(|name| Ok(redis::from_redis_value(name)?)).collect()
}

/// Lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to memory cannot fail");
        text
    })
}
