//! How many requests a caller may make: off unless a limit is set. Judged after who asks is known, and before Redis is.
//!
//! Callers are credentials where access control is on, and addresses where it is not. Headers and the problem are those of
//! draft-ietf-httpapi-ratelimit-headers-11.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue, header};
use clap::ValueEnum as _;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::HashMapStateStore,
};

use super::{
    access::Verb,
    problem::{Code, Problem},
};

/// `RateLimit-Policy`: the limit that holds for this request.
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// `RateLimit`: what is left of it.
pub const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// What an answer says of a limit.
pub type Headers = [(HeaderName, HeaderValue); 2];

/// How often callers that have not asked of late are forgotten, in requests.
const FORGET_EVERY: usize = 4_096;

/// Most requests a second of one caller, for one verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    verb: Verb,
    /// Requests a second, and as many at once.
    rate: NonZeroU32,
}

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(verb, rate)| {
            let rate = rate.parse().ok().filter(|rate: &NonZeroU32| rate.get() <= 1_000_000)?;
            Some(Self { verb: Verb::from_str(verb, false).ok()?, rate })
        });
        parsed
            .ok_or_else(|| "as in append=1000: read, append, consume or manage, and 1 to 1,000,000 a second".to_owned())
    }
}

/// Who is counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// The id of a credential.
    Credential(String),
    /// An address; of IPv6 the network of 64 bits, for one host has as many addresses as it likes.
    Address(IpAddr),
}

impl From<IpAddr> for Counted {
    fn from(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

type Limiter = RateLimiter<Counted, HashMapStateStore<Counted>, DefaultClock, StateInformationMiddleware>;

/// The limits, and who has used how much of them.
pub struct Rates {
    limits: Vec<(RateLimit, Limiter)>,
    judged: AtomicUsize,
}

impl Rates {
    /// `None` where there are no limits. The last one of a verb holds.
    pub fn new(limits: &[RateLimit]) -> Option<Self> {
        let limiter = |limit: &RateLimit| RateLimiter::hashmap(Quota::per_second(limit.rate)).with_middleware();
        let limits: Vec<_> = limits.iter().rev().map(|limit| (*limit, limiter(limit))).collect();
        (!limits.is_empty()).then(|| Self { limits, judged: AtomicUsize::new(0) })
    }

    /// Counts a request that needs `verb`. Gives the headers of its answer, where there is a limit for it.
    ///
    /// # Errors
    /// `quota-exceeded`
    pub fn admit(&self, verb: Verb, caller: &Counted) -> Result<Option<Headers>, Problem> {
        let Some((limit, limiter)) = self.limits.iter().find(|(limit, _)| limit.verb == verb) else { return Ok(None) };
        if self.judged.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        match limiter.check_key(caller) {
            Ok(state) => Ok(Some(limit.headers(state.remaining_burst_capacity(), Duration::from_secs(1)))),
            Err(until) => Err(limit.exceeded(until.wait_time_from(DefaultClock::default().now()))),
        }
    }
}

impl RateLimit {
    fn headers(self, left: u32, until: Duration) -> Headers {
        let (verb, rate, seconds) = (self.verb.as_str(), self.rate, whole_seconds(until));
        let value = |text: String| HeaderValue::from_str(&text).expect("names of verbs and digits are ASCII");
        [(POLICY, value(format!("\"{verb}\";q={rate};w=1"))), (LEFT, value(format!("\"{verb}\";r={left};t={seconds}")))]
    }

    fn exceeded(self, wait: Duration) -> Problem {
        let verb = self.verb.as_str();
        let detail = format!(
            "A caller has {} requests a second of this kind ({verb}). Wait as Retry-After says, then longer and longer.",
            self.rate
        );
        let problem = Problem::new(Code::QuotaExceeded, detail).with("violated-policies", format!("[\"{verb}\"]"));
        let problem = problem.header(header::RETRY_AFTER, whole_seconds(wait).into());
        self.headers(0, wait).into_iter().fold(problem, |problem, (name, value)| problem.header(name, value))
    }
}

/// At least one: a client that comes back at once would only be refused again.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1_000).max(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_verb_and_a_rate() {
        assert!("append=1000".parse::<RateLimit>().is_ok());
        for bad in ["", "append", "append=", "append=0", "append=-1", "append=1.5", "append=1000001", "write=1", "=1"] {
            assert!(bad.parse::<RateLimit>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn callers_that_stay_away_are_forgotten() {
        let rates = Rates::new(&["read=1000000".parse().expect("a limit")]).expect("there is one");
        for number in 0..3 * FORGET_EVERY {
            let caller = Counted::Credential(number.to_string());
            rates.admit(Verb::Read, &caller).expect("the first of its caller");
        }
        assert!(rates.limits[0].1.len() <= FORGET_EVERY + 1, "{}", rates.limits[0].1.len());
    }

    #[test]
    fn addresses_of_a_network_of_one_host_are_one() {
        let counted = |address: &str| Counted::from(address.parse::<IpAddr>().expect("an address"));
        assert_eq!(counted("2001:db8::1"), counted("2001:db8::ffff:1"));
        assert_ne!(counted("2001:db8::1"), counted("2001:db8:0:1::1"));
        assert_ne!(counted("192.0.2.1"), counted("192.0.2.2"));
    }
}
