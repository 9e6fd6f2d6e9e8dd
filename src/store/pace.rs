//! When the reader of a log is to wait a moment: every follower that is woken costs the time of an append. Of a busy log
//! many entries are taken in at once, and told once.

use std::time::{Duration, Instant};

/// From so many entries within this time on the log is busy.
const BUSY: usize = 16;
const WITHIN: Duration = Duration::from_millis(2);
/// The pause is for each follower, and in all no more than the most.
const PAUSE: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// How fast entries come.
pub(super) struct Pace {
    since: Instant,
    entries: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, entries: 0 }
    }

    /// Counts entries, and says how long to wait for more, where the log is busy.
    pub(super) fn pause(&mut self, entries: usize, followers: usize, now: Instant) -> Option<Duration> {
        if now.duration_since(self.since) > WITHIN {
            *self = Self::new(now);
        }
        self.entries += entries;
        let followers = u32::try_from(followers).unwrap_or(u32::MAX);
        (self.entries >= BUSY).then(|| PAUSE.saturating_mul(followers).min(PAUSE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_busy_log_is_waited_for() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut pace = Pace::new(began);
        assert!((1..1_000).all(|ms| pace.pause(1, 100, at(ms)).is_none()), "a thousand a second");
        assert!((0..15).all(|_| pace.pause(1, 100, at(2_000)).is_none()));
        assert_eq!(pace.pause(1, 100, at(2_001)), Some(PAUSE_MAX), "sixteen within a millisecond");
        assert_eq!(pace.pause(1, 100, at(2_006)), None, "a pause later");
        assert_eq!(pace.pause(16, 2, at(2_007)), Some(2 * PAUSE), "all at once");
    }
}
