//! Looking at all primaries: at the start, when somebody asks, and now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;

use crate::{
    model::Partition,
    store::{Connections, Health, Inner, Library, StartError, Store, health, primary::Primary},
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

/// The run id of each primary, as last seen.
#[derive(Default)]
pub(super) struct Runs(Mutex<HashMap<String, String>>);

impl Runs {
    /// Whether a primary that was seen before has another one now: after a failover, and after a restart.
    fn is_another(&self, primary: &str, run_id: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(primary.to_owned(), run_id.to_owned());
        before.is_some_and(|before| before != run_id)
    }
}

/// Checks each primary's version, and loads the functions. One that is away stops nothing as long as others answer: its
/// partitions are not available then, and the functions are loaded when they are missed.
pub(super) async fn prepare(connections: &Connections, library: &Library) -> Result<(), StartError> {
    let primaries = connections.primaries();
    let prepared = join_all(primaries.iter().map(|(primary, _)| async {
        health::check_version(primary).await?;
        library.load(&mut primary.exclusive().await?).await?;
        Ok::<_, StartError>(())
    }));
    let mut failures = Vec::new();
    for ((primary, _), done) in primaries.iter().zip(prepared.await) {
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
            Ok(Ok(health)) => Some(note_standing(&primary, health)),
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

/// From now on appends are judged by what was seen. Says where that is another level than before.
fn note_standing(primary: &Primary, health: Health) -> Health {
    let before = primary.standing.load_full();
    let standing = health.standing.after(&before);
    primary.standing.store(Arc::new(standing));
    if before.was_seen() && (before.level() != standing.level() || before.shortfall() != standing.shortfall()) {
        let (primary, shortfall) = (primary.name(), standing.shortfall());
        tracing::warn!(primary, before = %before.level(), now = %standing.level(), shortfall, "the durability of appends has changed");
    }
    Health { standing, ..health }
}

/// Loads the functions if they are gone.
async fn look_at(primary: &Primary, library: &Library) -> Result<Health, StartError> {
    let health = Health::look(primary, library).await?;
    if health.functions_loaded {
        return Ok(health);
    }
    library.load(&mut primary.exclusive().await?).await?;
    Health::look(primary, library).await
}

impl Store {
    /// Looks at Redis anew, at each primary of it, and loads the functions where they are gone.
    pub async fn check_health(&self) -> Arc<Vec<Seen>> {
        let seen = Arc::new(look(&self.0.connections, &self.0.library, self.0.timeout).await);
        for Seen { primary, health, .. } in seen.iter() {
            let Some(Health { role, run_id, .. }) = health else { continue };
            // One that came back as a replica, or lost its place while it was looked at: that failover is counted elsewhere.
            let is_primary = role == "master" && self.0.connections.is_primary(primary);
            if self.0.runs.is_another(primary, run_id) && is_primary {
                self.metrics().failover(primary);
                tracing::warn!(primary, role, "another Redis answers, or the same one started anew: a failover?");
            }
        }
        seen
    }
}

/// Looks at Redis again and again, so that what appends tell of their durability stays true when Redis' settings change.
pub(super) async fn watch(store: Weak<Inner>) {
    let Some(unseen) = store.upgrade().map(|inner| inner.connections.unseen()) else { return };
    loop {
        let _ = tokio::time::timeout(PAUSE, unseen.notified()).await;
        let Some(inner) = store.upgrade() else { return };
        let seen = Store(inner).check_health().await;
        for away in seen.iter().filter(|seen| seen.health.is_none()) {
            tracing::warn!(primary = away.primary, "Redis does not answer");
        }
    }
}
