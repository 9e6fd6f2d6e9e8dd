//! How many requests a second a caller may make. Off unless limits are given.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    str::FromStr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use clap::ValueEnum as _;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::HashMapStateStore,
};

use super::{
    access::{Grant, Verb, need},
    addresses::Addresses,
    caller::Caller,
    problem::{Code, Problem},
};

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11).
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// See [`POLICY`].
pub const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Callers that had their whole quota again are forgotten this often. After a second everybody has, so those are kept
/// that asked within the last two.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// A limit as it is written: `append=1000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What is limited: requests that need this verb.
    pub verb: Verb,
    /// How many of them a caller may make in a second.
    pub per_second: NonZeroU32,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.trim().split_once('=');
        let rate = parts.and_then(|(verb, number)| {
            Some(Self { verb: Verb::from_str(verb.trim(), false).ok()?, per_second: number.trim().parse().ok()? })
        });
        rate.ok_or_else(|| "a verb and a number of requests a second, as in append=1000".to_owned())
    }
}

/// Who asks: a credential, or where access is off an address. Those of IPv6 are given out by the 2^64, and count as one.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Who {
    Credential(String),
    Address(IpAddr),
}

impl Who {
    fn of<B>(request: &Request<B>, grant: Option<&Grant>) -> Self {
        if let Some(grant) = grant {
            return Self::Credential(grant.who.clone());
        }
        // Absent only where there is no connection.
        let caller = request.extensions().get::<Caller>().map_or(Ipv6Addr::UNSPECIFIED.into(), |caller| caller.0);
        Self::Address(match caller {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

/// The limits, and who has how much left.
pub struct Rates(Vec<Limit>);

struct Limit {
    rate: Rate,
    left: RateLimiter<Who, HashMapStateStore<Who>, DefaultClock, StateInformationMiddleware>,
    forgot: Mutex<Instant>,
}

/// What is left to a caller; for the headers of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    rate: Rate,
    requests: u32,
    /// Until there are more, in seconds.
    seconds: u64,
}

impl Rates {
    /// Judges by these limits; `None` where there are none.
    ///
    /// # Errors
    /// Where a verb has two.
    pub fn new(rates: &[Rate]) -> Result<Option<Arc<Self>>, String> {
        let verbs: HashMap<_, _> = rates.iter().map(|rate| (rate.verb.as_str(), rate)).collect();
        if verbs.len() < rates.len() {
            return Err("a verb has one limit (--rate-limit)".to_owned());
        }
        let limits = rates.iter().map(|rate| Limit {
            rate: *rate,
            left: RateLimiter::<Who, _, _>::hashmap(Quota::per_second(rate.per_second)).with_middleware(),
            forgot: Mutex::new(Instant::now()),
        });
        let limits: Vec<_> = limits.collect();
        Ok((!limits.is_empty()).then(|| Arc::new(Self(limits))))
    }

    /// Takes a request from what its caller may make; `None` where it is not limited. What nobody needs a verb for never
    /// is: probes, the documentation, and OPTIONS.
    ///
    /// # Errors
    /// `quota-exceeded`
    pub fn take<B>(
        &self,
        request: &Request<B>,
        grant: Option<&Grant>,
        addresses: &Addresses,
    ) -> Result<Option<Left>, Problem> {
        let verb = need(request.method(), addresses.beneath(request.uri().path())).map(|need| need.verbs[0]);
        let limit = self.0.iter().find(|limit| Some(limit.rate.verb) == verb);
        limit.map(|limit| limit.take(&Who::of(request, grant))).transpose()
    }
}

impl Limit {
    fn take(&self, who: &Who) -> Result<Left, Problem> {
        self.forget();
        let rate = self.rate;
        match self.left.check_key(who) {
            Ok(state) => Ok(Left { rate, requests: state.remaining_burst_capacity(), seconds: 1 }),
            Err(until) => {
                let wait = until.wait_time_from(DefaultClock::default().now());
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                Err(Left { rate, requests: 0, seconds: seconds.max(1) }.exceeded())
            }
        }
    }

    /// Bounds the memory of the table.
    fn forget(&self) {
        let mut forgot = self.forgot.lock().expect("nobody panics while it is locked");
        if forgot.elapsed() >= FORGET_EVERY {
            *forgot = Instant::now();
            drop(forgot);
            self.left.retain_recent();
        }
    }
}

impl Left {
    /// Tells the caller.
    pub fn tell(self, headers: &mut HeaderMap) {
        headers.extend(self.headers());
    }

    fn headers(self) -> [(HeaderName, HeaderValue); 2] {
        let Self { rate: Rate { verb, per_second }, requests, seconds } = self;
        let value = |text: String| HeaderValue::try_from(text).expect("verbs and numbers are ASCII");
        [
            (POLICY, value(format!("\"{}\";q={per_second};w=1", verb.as_str()))),
            (LIMIT, value(format!("\"{}\";r={requests};t={seconds}", verb.as_str()))),
        ]
    }

    fn exceeded(self) -> Problem {
        let (verb, most) = (self.rate.verb.as_str(), self.rate.per_second);
        let detail = format!(
            "A caller may make {most} requests a second that need {verb}; nothing was done. Try again after Retry-After, \
             and more slowly."
        );
        let problem = Problem::new(Code::QuotaExceeded, detail)
            .with("violated-policies", format!("[\"{verb}\"]"))
            .header(header::RETRY_AFTER, self.seconds.into());
        self.headers().into_iter().fold(problem, |problem, (name, value)| problem.header(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let rate: Rate = " append = 1000 ".parse().expect("a rate");
        assert_eq!((rate.verb, rate.per_second.get()), (Verb::Append, 1000));
        for bad in ["", "append", "append=", "append=0", "append=-1", "append=1.5", "append=1/s", "write=1", "=1"] {
            bad.parse::<Rate>().expect_err(bad);
        }
        assert!(Rates::new(&[]).is_ok_and(|rates| rates.is_none()));
        assert!(Rates::new(&[rate, rate]).is_err());
    }

    #[test]
    fn callers_are_forgotten() {
        let rate = "read=1".parse().expect("a rate");
        let rates = Rates::new(&[rate]).expect("good").expect("one");
        let address = |number: u32| Who::Address(IpAddr::V4(number.into()));
        for number in 0..1000 {
            rates.0[0].take(&address(number)).expect("its first");
        }
        assert_eq!(rates.0[0].left.len(), 1000);
        // The clock is that of the limiter.
        std::thread::sleep(FORGET_EVERY + Duration::from_millis(50));
        rates.0[0].take(&address(1000)).expect("its first");
        assert_eq!(rates.0[0].left.len(), 1);
    }

    #[test]
    fn addresses_of_one_network_are_one_caller() {
        let who = |ip: &str| {
            let mut request = Request::new(());
            request.extensions_mut().insert(Caller(ip.parse().expect("an address")));
            Who::of(&request, None)
        };
        assert!(who("2001:db8::1") == who("2001:db8::2"));
        assert!(who("2001:db8::1") != who("2001:db8:0:1::1"));
        assert!(who("192.0.2.1") != who("192.0.2.2"));
    }
}
