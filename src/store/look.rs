//! Looking at all primaries: at the start, when somebody asks, and now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;

use crate::{
    model::Partition,
    store::{Connections, Durability, Health, Inner, Library, StartError, Store, health, primary::Primary},
};

/// How often Redis' settings are looked at.
const PAUSE: Duration = Duration::from_secs(5);

/// What a look at one primary showed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it is: `host:port`, or a path.
    pub primary: String,
    /// What it has; where there is one primary, everything.
    pub partitions: Vec<Partition>,
    /// What it says; `None` where it does not answer.
    pub health: Option<Health>,
}

/// The replication id of each primary, as last seen.
#[derive(Default)]
pub(super) struct Histories(Mutex<HashMap<String, String>>);

impl Histories {
    /// Whether a primary that was seen before has another one now: after a failover, and after a restart.
    fn is_another(&self, primary: &str, replication_id: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(primary.to_owned(), replication_id.to_owned());
        before.is_some_and(|before| before != replication_id)
    }
}

/// Checks each primary's version, and loads the functions. One that is away stops nothing as long as others answer: its
/// partitions are not available then, and the functions are loaded when they are missed.
pub(super) async fn prepare(connections: &Connections, library: &Library) -> Result<(), StartError> {
    let primaries = connections.primaries();
    let prepared = join_all(primaries.iter().map(|(primary, _)| async {
        health::check_version(primary).await?;
        library.load(&mut primary.pool.get().await?).await?;
        Ok::<_, StartError>(())
    }));
    let (mut failures, mut prepared) = (Vec::new(), prepared.await);
    for ((primary, _), done) in primaries.iter().zip(prepared.drain(..)) {
        match done {
            Err(error) if error.is_away() => {
                tracing::warn!(%error, primary = primary.name(), "a primary does not answer");
                failures.push(error);
            }
            done => done?,
        }
    }
    if failures.len() == primaries.len() { failures.pop().map_or(Ok(()), Err) } else { Ok(()) }
}

/// Looks at all primaries at the same time.
pub(super) async fn look(connections: &Connections, library: &Library, timeout: Duration) -> Vec<Seen> {
    let looks = connections.primaries().into_iter().map(|(primary, partitions)| async move {
        let looked = tokio::time::timeout(timeout, look_at(&primary, library)).await;
        let name = primary.name();
        let health = match looked {
            Ok(Ok(health)) => Some(health),
            Ok(Err(error)) => {
                tracing::debug!(%error, primary = name, "cannot look at Redis");
                None
            }
            Err(_) => None,
        };
        primary.set_away(health.is_none());
        if health.as_ref().is_none_or(|health| health.role != "master") {
            primary.server.doubt();
        }
        Seen { primary: name, partitions, health }
    });
    join_all(looks).await
}

/// Loads the functions if they are gone.
async fn look_at(primary: &Primary, library: &Library) -> Result<Health, StartError> {
    let health = Health::look(primary, library).await?;
    if health.functions_loaded {
        return Ok(health);
    }
    library.load(&mut primary.pool.get().await?).await?;
    Health::look(primary, library).await
}

impl Store {
    /// Looks at Redis anew, at each primary of it, and loads the functions where they are gone.
    pub async fn check_health(&self) -> Arc<Vec<Seen>> {
        let seen = Arc::new(look(&self.0.connections, &self.0.library, self.0.timeout).await);
        for Seen { primary, health, .. } in seen.iter() {
            let Some(Health { role, replication_id, .. }) = health else { continue };
            if self.0.histories.is_another(primary, replication_id) {
                self.metrics().failover(primary);
                tracing::warn!(primary, role, "another Redis answers, or the same one started anew: a failover?");
            }
        }
        if seen.iter().any(|seen| seen.health.is_some()) {
            self.0.health.store(Arc::clone(&seen));
        }
        seen
    }

    /// What an acknowledged append survives, as last seen: the least of what the primaries promise.
    #[must_use]
    pub fn durability(&self) -> Durability {
        let seen = self.0.health.load();
        seen.iter().filter_map(|seen| seen.health.as_ref()).map(|health| health.durability).min().unwrap_or_default()
    }
}

/// Looks at Redis again and again, so that what appends tell of their durability stays true when Redis' settings change.
pub(super) async fn watch(store: Weak<Inner>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(inner) = store.upgrade() else { return };
        let seen = Store(inner).check_health().await;
        for away in seen.iter().filter(|seen| seen.health.is_none()) {
            tracing::warn!(primary = away.primary, "Redis does not answer");
        }
    }
}
