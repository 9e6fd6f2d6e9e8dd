//! Who may do what: API keys and JWTs, judged before the router and so before Redis is asked. Off where no file of keys
//! is given.

mod credentials;
mod grant;
mod keys;
mod rules;
mod tokens;

use std::{sync::Arc, time::SystemTime};

use axum::http::{HeaderMap, HeaderValue, Request, header};

pub use credentials::{Access, AccessFiles};
pub use grant::{Grant, Pattern, Rights, Verb};
pub use keys::KeyLine;
pub use rules::{is_open, need};

use rules::{Need, Target};

use super::{
    addresses::Addresses,
    extract::decoded_pairs,
    problem::{Code, Problem},
};

/// The scheme of the credentials (RFC 6750), without its capitals.
const SCHEME: &str = "bearer";

impl Access {
    /// Judges a request, and takes its credentials out, so that nothing behind this sees them. `None` where nobody has
    /// to show any.
    ///
    /// # Errors
    /// `unauthorized`, `forbidden`, `invalid-request`
    pub fn admit<B>(&self, request: &mut Request<B>, addresses: &Addresses) -> Result<Option<Arc<Grant>>, Problem> {
        let header = bearer(request.headers());
        let open = is_open(request.method(), addresses.beneath(request.uri().path()));
        let granted = if open { Ok(None) } else { header.and_then(|token| self.granted(token)).map(Some) };
        request.headers_mut().remove(header::AUTHORIZATION);
        let granted = granted?;
        if let Some(grant) = &granted {
            request.extensions_mut().insert(Arc::clone(grant));
        }
        Ok(granted)
    }

    fn granted(&self, token: &str) -> Result<Arc<Grant>, Problem> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.grant(token, u64::try_from(now.as_millis()).unwrap_or(u64::MAX)).map_err(|why| {
            let why_header = format!(", error=\"invalid_token\", error_description=\"{why}\"");
            unauthorized(why, &why_header)
        })
    }
}

/// The token of the one `Authorization` field.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    const HOW: &str = "Send Authorization: Bearer with an API key or a JWT.";
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let Some(field) = fields.next() else { return Err(unauthorized(HOW, "")) };
    if fields.next().is_some() {
        let problem = Problem::new(Code::InvalidRequest, "A request has one Authorization field.");
        return Err(challenge(problem, ", error=\"invalid_request\""));
    }
    let parts = field.to_str().ok().and_then(|field| field.split_once(' '));
    match parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME)) {
        Some((_, token)) => Ok(token.trim()),
        None => Err(unauthorized(HOW, "")),
    }
}

fn unauthorized(detail: &str, error: &str) -> Problem {
    challenge(Problem::new(Code::Unauthorized, detail), error)
}

fn challenge(problem: Problem, error: &str) -> Problem {
    let challenge = format!("Bearer realm=\"streamkeep\"{error}");
    problem.header(header::WWW_AUTHENTICATE, HeaderValue::from_str(&challenge).expect("our own words are ASCII"))
}

/// That they are not enough. It is told by what was asked alone: the same whether or not there is such a stream or group.
fn forbidden(detail: impl Into<String>, verbs: &[Verb]) -> Problem {
    let scope = verbs.iter().map(|verb| verb.as_str()).collect::<Vec<_>>().join(" ");
    challenge(Problem::new(Code::Forbidden, detail), &format!(", error=\"insufficient_scope\", scope=\"{scope}\""))
}

impl Grant {
    /// That it is enough for a request.
    ///
    /// # Errors
    /// `forbidden`
    pub fn check(&self, need: &Need<'_>, query: Option<&str>) -> Result<(), Problem> {
        let Need { verbs, target } = need;
        if !verbs.iter().any(|verb| self.rights.verbs.contains(verb)) {
            let verbs_text = verbs.iter().map(|verb| verb.as_str()).collect::<Vec<_>>().join(" or ");
            return Err(forbidden(format!("{} may not do this: it needs {verbs_text}.", self.name()), verbs));
        }
        // A conflict can bring the events that the caller has missed, which is to read them.
        let reads = verbs.contains(&Verb::Append) && names(query, "include").next().is_some();
        if reads && !self.rights.verbs.contains(&Verb::Read) {
            return Err(forbidden(format!("{} may not read: include needs it.", self.name()), &[Verb::Read]));
        }
        let within = match target {
            Target::Stream(id) => self.rights.stream(id),
            Target::Group(name) => self.rights.group(name),
            // The handler leaves out what may not be seen.
            Target::Groups => true,
            Target::AllGroups => self.rights.all_groups(),
            Target::Log => self.rights.all_streams() || self.covers_filter(query),
        };
        let advice = match target {
            Target::Log => "It may not see all streams: ask with category or stream, for what lies within its own.",
            _ => "It holds for other streams or groups.",
        };
        if within { Ok(()) } else { Err(forbidden(format!("{} may not do this here. {advice}", self.name()), verbs)) }
    }

    /// That the events of a group are within its streams.
    ///
    /// # Errors
    /// `forbidden`
    pub fn check_source(&self, settings: &crate::model::GroupSettings) -> Result<(), Problem> {
        if self.rights.source(settings) {
            return Ok(());
        }
        let detail = format!("{} holds for other streams than those of the group.", self.name());
        Err(forbidden(detail, &[Verb::Manage]))
    }

    /// Whether a query asks only for streams among those of the grant.
    fn covers_filter(&self, query: Option<&str>) -> bool {
        let all = |key, covers: &dyn Fn(&str) -> bool| {
            let mut values = names(query, key).peekable();
            values.peek().is_some() && values.all(|value| covers(&value))
        };
        all("stream", &|id| self.rights.stream(id)) || all("category", &|category| self.rights.category(category))
    }

    fn name(&self) -> String {
        format!("The credential {:?}", self.who)
    }
}

/// The values of a key of a query.
fn names<'q>(query: Option<&'q str>, key: &'q str) -> impl Iterator<Item = String> + 'q {
    let pairs = decoded_pairs(query.unwrap_or_default());
    pairs.filter_map(move |pair| pair.filter(|(name, _)| name == key).map(|(_, value)| value))
}
