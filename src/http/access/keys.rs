//! API keys, and the file that they stand in: NDJSON, one key a line. Empty lines and those that begin with `#` say
//! nothing.
//!
//! A key is `sk_<id>_<secret>`. The id is public; the secret is 32 random bytes in base64url, of which the file has the
//! SHA-256. A slow hash is for passwords, which can be guessed: nobody guesses 256 bits.

use std::{collections::HashMap, sync::Arc};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::grant::{Grant, Pattern, Rights, Verb};
use crate::{model::parse_rfc3339, store::hex};

/// What every key begins with, so that those who look for leaked secrets find it.
pub const KEY_MARK: &str = "sk_";
/// Longest id of a key.
const ID_MAX: usize = 64;

/// A line of the file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLine {
    id: String,
    sha256: String,
    verbs: Vec<Verb>,
    #[serde(default)]
    streams: Vec<Pattern>,
    #[serde(default)]
    groups: Vec<Pattern>,
    #[serde(default, deserialize_with = "crate::model::present", skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

impl KeyLine {
    /// A new key, and its line.
    ///
    /// # Errors
    /// Where the id or the time breaks the rules, or the system has no random bytes.
    pub fn new(id: &str, rights: Rights, expires: Option<String>) -> Result<(String, Self), String> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| "the system has no random bytes")?;
        let secret = URL_SAFE_NO_PAD.encode(bytes);
        let sha256 = hex(&Sha256::digest(&secret));
        let Rights { verbs, streams, groups } = rights;
        let line = Self { id: id.to_owned(), sha256, verbs, streams, groups, expires };
        line.checked()?;
        Ok((format!("{KEY_MARK}{id}_{secret}"), line))
    }

    fn checked(&self) -> Result<Key, String> {
        let Self { id, verbs, streams, groups, .. } = self;
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        if !(1..=ID_MAX).contains(&id.len()) || !id.bytes().all(good) {
            return Err(format!("an id has 1 to {ID_MAX} characters of A-Z a-z 0-9 . -"));
        }
        let expires = self.expires.as_deref();
        let until_ms = match expires.map(parse_rfc3339) {
            Some(None) => return Err("expires is a time as in RFC 3339".to_owned()),
            Some(time) => time,
            None => None,
        };
        // What stands there instead is not shown: it might be the secret itself.
        let sha256 = parse_sha256(&self.sha256).ok_or("sha256 has 64 hex digits")?;
        let rights = Rights { verbs: verbs.clone(), streams: streams.clone(), groups: groups.clone() };
        Ok(Key { sha256, until_ms, grant: Arc::new(Grant { who: id.clone(), rights }) })
    }
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

struct Key {
    sha256: [u8; 32],
    until_ms: Option<u64>,
    grant: Arc<Grant>,
}

/// The keys of a file, by their ids.
#[derive(Default)]
pub struct Keys(HashMap<String, Key>);

impl Keys {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with which line. A file without keys is wrong too: it may be half written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let line: Result<KeyLine, _> = serde_json::from_str(line);
            let key = line.map_err(|error| error.to_string()).and_then(|line| Ok((line.checked()?, line.id)));
            let (key, id) = key.map_err(|why| format!("line {number}: {why}"))?;
            if keys.contains_key(&id) {
                return Err(format!("line {number}: the id {id} stands there twice"));
            }
            keys.insert(id, key);
        }
        if keys.is_empty() { Err("there is no key in it".to_owned()) } else { Ok(Self(keys)) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whose key this is, without its mark.
    ///
    /// # Errors
    /// What is wrong, in words for the client. Nothing tells an unknown id from a wrong secret.
    pub fn grant(&self, key: &str, now_ms: u64) -> Result<Arc<Grant>, &'static str> {
        const UNKNOWN: &str = "The key is not known.";
        let (id, secret) = key.split_once('_').ok_or(UNKNOWN)?;
        let known = self.0.get(id);
        let nobody = [0; 32];
        let same = verify_slices_are_equal(&Sha256::digest(secret), known.map_or(&nobody, |key| &key.sha256));
        let key = known.filter(|_| same.is_ok()).ok_or(UNKNOWN)?;
        if key.until_ms.is_some_and(|until| until <= now_ms) {
            return Err("The key has expired.");
        }
        Ok(Arc::clone(&key.grant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(id: &str, expires: Option<&str>) -> (String, String) {
        let rights = Rights { verbs: vec![Verb::Read], ..Rights::default() };
        let (key, line) = KeyLine::new(id, rights, expires.map(str::to_owned)).expect("a good key");
        (key, serde_json::to_string(&line).expect("plain members are JSON"))
    }

    #[test]
    fn a_key_opens_and_nothing_else_does() {
        let ((key, line), (other, other_line)) = (new("shop", None), new("shop.2", Some("2001-09-09T01:46:40Z")));
        assert!(!line.contains(key.rsplit_once('_').expect("a secret").1), "{line}");
        let keys = Keys::parse(&format!("# a comment\n{line}\n\n{other_line}\n")).expect("a good file");
        let inner = |key: &str| key.strip_prefix(KEY_MARK).expect("the mark").to_owned();
        assert_eq!(keys.grant(&inner(&key), 0).expect("known").who, "shop");
        assert_eq!(keys.grant(&inner(&other), 999_999_999_999).expect("still good").who, "shop.2");
        assert_eq!(keys.grant(&inner(&other), 1_000_000_000_000), Err("The key has expired."));
        let wrong = [
            inner(&key).replace("shop_", "shop.2_"),
            inner(&key).replace("shop_", "nobody_"),
            format!("{}x", inner(&key)),
            "shop".to_owned(),
            "shop_".to_owned(),
            String::new(),
        ];
        for wrong in wrong {
            assert_eq!(keys.grant(&wrong, 0), Err("The key is not known."), "{wrong}");
        }
    }

    #[test]
    fn a_broken_file_is_refused_with_the_line() {
        let hash = "0".repeat(64);
        let good = format!(r#"{{"id":"a","sha256":"{hash}","verbs":[]}}"#);
        assert_eq!(Keys::parse(&good).map(|keys| keys.len()), Ok(1));
        for (bad, what) in [
            (String::new(), "there is no key in it"),
            ("# nothing\n".to_owned(), "there is no key in it"),
            (format!("{good}\n{good}"), "line 2: the id a stands there twice"),
            (format!("{good}\nsk_a_b"), "line 2: "),
            (good.replace("\"a\"", "\"a_b\""), "line 1: an id has"),
            (good.replace(&hash, "sk_a_secret"), "line 1: sha256 has 64 hex digits"),
            (good.replace(&hash, &"é".repeat(32)), "line 1: sha256 has 64 hex digits"),
            (good.replace("[]", r#"["write"]"#), "line 1: unknown variant `write`"),
            (good.replace("[]", r#"[],"scope":"*""#), "line 1: unknown field `scope`"),
            (good.replace("[]", r#"[],"streams":["a*b"]"#), "line 1: \"a*b\" is no name"),
            (good.replace("[]", r#"[],"expires":"soon""#), "line 1: expires is a time"),
            (good.replace("[]", r#"[],"expires":null"#), "line 1: "),
            (good.replace(r#","verbs":[]"#, ""), "line 1: missing field `verbs`"),
        ] {
            let error = Keys::parse(&bad).err().unwrap_or_default();
            assert!(error.starts_with(what), "{bad}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
