//! How far a command is, on standard error: a bar on a terminal, elsewhere a plain line every two seconds.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;

/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows how far a command is; nothing is left of the bar when this is dropped.
pub struct Progress {
    counts: Arc<Counts>,
    bar: Option<ProgressBar>,
    /// Only held: it ends with this.
    ticker: Option<AbortOnDropHandle<()>>,
}

struct Counts {
    began: Instant,
    events: AtomicU64,
    /// Bytes of the source that are done with.
    bytes: AtomicU64,
    /// Bytes of the whole source, where that is known.
    bytes_all: Option<u64>,
}

impl Progress {
    /// Begins to show progress through a source of `bytes_all` bytes; `None` where the size is not known.
    #[must_use]
    pub fn start(bytes_all: Option<u64>) -> Self {
        let mut progress = Self::hidden(bytes_all);
        let bar = io::stderr().is_terminal().then(|| bar(bytes_all));
        progress.bar.clone_from(&bar);
        let every = if bar.is_some() { BAR_EVERY } else { LINE_EVERY };
        let counts = Arc::clone(&progress.counts);
        let ticker = tokio::spawn(async move {
            let mut ticks = interval_at((Instant::now() + every).into(), every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match &bar {
                    Some(bar) => {
                        bar.set_position(counts.bytes.load(Ordering::Relaxed));
                        bar.set_message(counts.text());
                        bar.tick();
                    }
                    // A closed standard error is no reason to stop.
                    None => drop(writeln!(io::stderr(), "{}", counts.text())),
                }
            }
        });
        progress.ticker = Some(AbortOnDropHandle::new(ticker));
        progress
    }

    /// Counts, but shows nothing.
    #[must_use]
    pub fn hidden(bytes_all: Option<u64>) -> Self {
        let (began, events, bytes) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
        Self { counts: Arc::new(Counts { began, events, bytes, bytes_all }), bar: None, ticker: None }
    }

    /// Counts events that are done with; the source was read up to `bytes` then.
    pub fn add(&self, events: u64, bytes: u64) {
        self.counts.events.fetch_add(events, Ordering::Relaxed);
        self.counts.bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Writes a line, above the bar where there is one.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // As above.
            None => drop(writeln!(io::stderr(), "{line}")),
        }
    }

    /// How many events were counted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.counts.events.load(Ordering::Relaxed)
    }

    /// Time and rate, for a summary.
    #[must_use]
    pub fn pace(&self) -> String {
        let seconds = self.counts.began.elapsed().as_secs_f64();
        format!("{seconds:.1} s, {:.0} events/s", per_second(self.events(), seconds))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.ticker.take());
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Counts {
    fn text(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        let (events, bytes) = (self.events.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let done = format!("{events} events, {:.0} events/s", per_second(events, seconds));
        match self.bytes_all.map(|all| share(bytes, all)) {
            Some(share) if share > 0.0 => {
                let left = seconds * (1.0 - share) / share;
                format!("{done}, {:.0} %, about {left:.0} s left", share * 100.0)
            }
            _ => done,
        }
    }
}

fn bar(bytes_all: Option<u64>) -> ProgressBar {
    let (bar, form) = match bytes_all {
        Some(all) => (ProgressBar::new(all), "{spinner} {bar:30} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.with_style(ProgressStyle::with_template(form).expect("the template is a good one"))
}

#[expect(clippy::cast_precision_loss, reason = "numbers to look at, not to count with")]
fn per_second(events: u64, seconds: f64) -> f64 {
    events as f64 / seconds.max(0.001)
}

#[expect(clippy::cast_precision_loss, reason = "numbers to look at, not to count with")]
fn share(bytes: u64, all: u64) -> f64 {
    if all == 0 { 1.0 } else { (bytes as f64 / all as f64).min(1.0) }
}
