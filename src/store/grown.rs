//! Telling those who follow the log that it has grown.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// What it costs to wake one follower and to write to its connection is about half of this: waking them takes at most
/// half of a core, and leaves the rest to those who append.
const EACH: Duration = Duration::from_micros(10);
/// Shorter pauses are not worth a timer, which has steps of 1 ms.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longer ones would be felt.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Told when events were taken in; shared by all partitions. Where many follow, what comes soon after the last time is
/// told together with what comes after it.
#[derive(Clone, Default)]
pub(super) struct Grown(Arc<State>);

#[derive(Default)]
struct State {
    told: watch::Sender<()>,
    next: Mutex<Next>,
}

/// When it may be told next.
#[derive(Default)]
enum Next {
    #[default]
    AtOnce,
    From(Instant),
    /// A task is about to tell it.
    Soon,
}

impl Grown {
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.told.subscribe()
    }

    /// Tells it, at once or soon.
    pub(super) fn tell(&self) {
        let pause = EACH * u32::try_from(self.0.told.receiver_count()).unwrap_or(u32::MAX);
        if pause < PAUSE_MIN {
            self.0.told.send_replace(());
            return;
        }
        let mut next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        match *next {
            Next::Soon => {}
            Next::From(from) if Instant::now() < from => {
                *next = Next::Soon;
                tokio::spawn(self.clone().tell_from(from, pause));
            }
            Next::AtOnce | Next::From(_) => {
                *next = Next::From(Instant::now() + pause.min(PAUSE_MAX));
                self.0.told.send_replace(());
            }
        }
    }

    async fn tell_from(self, from: Instant, pause: Duration) {
        tokio::time::sleep_until(from).await;
        // Before it is told: what is taken in from now on may not be seen by those who are woken.
        *self.0.next.lock().unwrap_or_else(PoisonError::into_inner) = Next::From(Instant::now() + pause.min(PAUSE_MAX));
        self.0.told.send_replace(());
    }
}
