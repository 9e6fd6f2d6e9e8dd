//! Followers of the log, of little cost: all read into one buffer, on the one thread of the generator, and look at no more
//! than the id of an event, which says its position. Each checks that every event comes once and in order.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, BufRead as _},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, ready},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf},
    task::JoinSet,
};

use crate::load::{self, Address, Connection};

/// Bytes read at once.
const INPUT: usize = 64 * 1024;
/// Followers that connect at the same time.
const CONNECTING: usize = 64;
/// How long a follower may take to catch up, and all of them to be given the last event.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether they were: to be told of each event would cost as much as the event.
const LOOK: Duration = Duration::from_millis(1);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; INPUT].into());
}

/// What is followed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Followed {
    /// All of the log.
    #[default]
    All,
    /// The events of one category.
    Category(&'static str),
}

/// Followers of the log from its end on. They leave when dropped.
pub struct Followers {
    count: usize,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// What they have seen.
#[derive(Default)]
struct Seen {
    events: AtomicU64,
    /// `None` where only their number matters.
    arrivals: Option<Mutex<Vec<Arrival>>>,
}

/// A position, and when the event there came, or was asked for.
pub type Arrival = (u64, Instant);

impl Followers {
    /// Connects so many, and waits until all have caught up. With `arrivals` it is kept what came when.
    pub async fn connect(address: &Address, followed: Followed, count: usize, arrivals: bool) -> Self {
        let seen = Arc::new(Seen { arrivals: arrivals.then(Mutex::default), ..Seen::default() });
        let begun = stream::iter(0..count).map(|_| tokio::time::timeout(PATIENCE, begin(address, followed, &seen)));
        let begun: Vec<_> = begun.buffer_unordered(CONNECTING).try_collect().await.expect("a follower catches up");
        let mut tasks = JoinSet::new();
        for (mut connection, mut feed) in begun {
            let seen = Arc::clone(&seen);
            tasks.spawn(async move {
                loop {
                    read(&mut connection, &mut feed, &seen).await;
                }
            });
        }
        Self { count, seen, _tasks: tasks }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Waits until each of them was given so many events; says how many were missing in the end.
    pub async fn all_given(&self, events: usize) -> u64 {
        let all = u64::try_from(self.count * events).expect("a count is not that large");
        let given = || self.seen.events.load(Relaxed);
        let until = Instant::now() + PATIENCE;
        while given() < all && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        all.checked_sub(given()).expect("nobody is given more than there was")
    }

    /// What came to all of them.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let arrivals = self.seen.arrivals.as_ref().expect("they were kept");
        arrivals.lock().expect("no holder panics").clone()
    }
}

async fn begin(address: &Address, followed: Followed, seen: &Seen) -> (Box<dyn Connection>, Feed) {
    let filter = match followed {
        Followed::All => String::new(),
        Followed::Category(name) => format!("&category={name}"),
    };
    let request =
        format!("GET /events?after=end{filter} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    let (mut connection, mut feed) = (load::connect(address).await, Feed { followed, ..Feed::default() });
    connection.write_all(request.as_bytes()).await.expect("the service reads");
    while !feed.caught_up {
        read(&mut connection, &mut feed, seen).await;
    }
    (connection, feed)
}

/// Reads what there is, or waits for it.
async fn read(connection: &mut Box<dyn Connection>, feed: &mut Feed, seen: &Seen) {
    let read = poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut into = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *connection).poll_read(context, &mut into))?;
            assert!(!into.filled().is_empty(), "the feed ended");
            feed.read(into.filled(), seen);
            Poll::Ready(Ok::<_, io::Error>(()))
        })
    });
    read.await.expect("the connection stays open");
}

/// How far a follower has read in its answer.
#[derive(Default)]
struct Feed {
    followed: Followed,
    begun: bool,
    /// A line of which the end has not come.
    line: Vec<u8>,
    /// The id that was read last.
    position: u64,
    /// Whether the lines that are read are no event of the log.
    named: bool,
    caught_up: bool,
    /// Of the last event.
    given: u64,
}

impl Feed {
    /// Looks at lines; those between the chunks are none of the feed, and mean nothing to it.
    fn read(&mut self, mut bytes: &[u8], seen: &Seen) {
        if !self.begun {
            assert!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
            self.begun = true;
        }
        let now = Instant::now();
        while !bytes.is_empty() {
            let mut rest = bytes;
            let length = rest.skip_until(b'\n').expect("memory can be read");
            let (line, ended) = (&bytes[..length], bytes[length - 1] == b'\n');
            bytes = rest;
            if self.line.is_empty() && ended {
                self.take(line, now, seen);
                continue;
            }
            self.line.extend_from_slice(line);
            if ended {
                let line = std::mem::take(&mut self.line);
                self.take(&line, now, seen);
            }
        }
    }

    fn take(&mut self, line: &[u8], now: Instant, seen: &Seen) {
        if let Some(token) = line.strip_prefix(b"id: ") {
            self.position = position(token.trim_ascii_end());
        } else if line.starts_with(b"data: ") && !self.named {
            let next = self.given + 1;
            let passed_over = self.followed != Followed::All && self.position > next;
            assert!(self.position == next || passed_over, "every event once, in order");
            self.given = self.position;
            seen.events.fetch_add(1, Relaxed);
            if let Some(arrivals) = &seen.arrivals {
                arrivals.lock().expect("no holder panics").push((self.position, now));
            }
        } else if line.starts_with(b"event: ") {
            assert_eq!(line, b"event: caught-up\n", "{}", String::from_utf8_lossy(line));
            let passed_over = self.followed != Followed::All;
            assert!(!self.caught_up || passed_over || self.position == self.given, "nothing is passed over");
            (self.named, self.caught_up, self.given) = (true, true, self.position);
        } else if line == b"\n" {
            self.named = false;
        }
    }
}

/// The position in a cursor of a log with one partition.
fn position(token: &[u8]) -> u64 {
    let mut text = [0; 64];
    let length = URL_SAFE_NO_PAD.decode_slice(token, &mut text).expect("a cursor");
    let digits =
        text[..length].iter().skip_while(|byte| **byte != b':').skip(1).take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
